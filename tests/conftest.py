"""Fixtures that any test may use."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.small_consortium import Dealt


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
