"""One deployment for all tests of deployed systems that leave it as they found it."""

from collections.abc import Iterator

import pytest

from tests.support.deployed import Deployed, deployed_in


@pytest.fixture(scope="session")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """Start a server and its hospitals once; a test that needs another configuration, or breaks one, starts its own."""
    with deployed_in(tmp_path_factory.mktemp("deployed") / "run") as running:
        yield running
