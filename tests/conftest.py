"""Fixtures that any test may use."""

import os
from collections.abc import Iterator

import pytest


@pytest.fixture
def open_umask() -> Iterator[None]:
    """Run a test under umask 000, so that every mode it sees is one the code chose."""
    before = os.umask(0)
    yield
    os.umask(before)
