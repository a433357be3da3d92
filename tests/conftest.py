"""How tests are collected and shared out, and fixtures that any test may use."""

import gc
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from deploy.development.checks import WHOLE

if TYPE_CHECKING:
    from tests.support.small_consortium import Dealt

_DEPLOYED = "tests/e2e/"

# A test never asserts a time: on a busy machine an example may take as long as it likes.
settings.register_profile("confide", deadline=None)
settings.load_profile("confide")


# Collection imports PyTorch, Flower and all our own code, and what it makes stays to the end.
gc.disable()


def pytest_collection_finish() -> None:
    """Let the cycle collector search what tests make, and not all modules again and again."""
    gc.enable()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put whole systems first, so that no worker is left alone with one of them at the end."""
    whole = tuple(f"tests/{place}" for place in WHOLE)
    items.sort(key=lambda item: (not item.nodeid.startswith(_DEPLOYED), not item.nodeid.startswith(whole)))


class _FileByFile(LoadScopeScheduling):  # type: ignore[misc]  # pytest-xdist has no types
    """A worker runs whole files, and one worker all tests of deployed systems, one after the other."""

    def _split_scope(self, nodeid: str) -> str:
        return _DEPLOYED if nodeid.startswith(_DEPLOYED) else nodeid.split("::", 1)[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Share out the tests among pytest-xdist's workers.

    The mark ``xdist_group``, which would say the same, has no effect: pytest-xdist 3.8 writes a group into
    ``Item._nodeid``, and pytest 9.2 no longer reads that.
    """
    gc.enable()  # This process collects no tests.
    config.option.loadscopereorder = False  # The order is that of the collection.
    return _FileByFile(config, log)


@pytest.fixture
def open_umask() -> Iterator[None]:
    """Run a test under umask 000, so that every mode it sees is one the code chose."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a server in this process ask again at once after a round that failed; in use it waits up to 2 seconds."""
    if "server.run" in sys.modules:
        monkeypatch.setattr(sys.modules["server.run"], "POLL_SECONDS", 0.001)


@pytest.fixture(scope="session")
def dealt(tmp_path_factory: pytest.TempPathFactory) -> "Dealt":
    """Deal four hospitals a few phantom images each, once."""
    from tests.support.small_consortium import Dealt  # imports torch, which most tests do without

    return Dealt.into(tmp_path_factory.mktemp("dealt"))
