"""Fixtures that any test may use."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.small_consortium import Dealt


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let one of pytest-xdist's workers run all tests of deployed systems, one after the other."""
    for item in items:
        if item.get_closest_marker("e2e"):
            item.add_marker(pytest.mark.xdist_group("deployed"))


@pytest.fixture
def open_umask() -> Iterator[None]:
    """Run a test under umask 000, so that every mode it sees is one the code chose."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture(scope="session")
def dealt(tmp_path_factory: pytest.TempPathFactory) -> "Dealt":
    """Deal four hospitals a few phantom images each, once."""
    from tests.small_consortium import Dealt  # imports torch, which most tests do without

    return Dealt.into(tmp_path_factory.mktemp("dealt"))
