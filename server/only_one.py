"""One server on a state folder, and no second."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from common.errors import ConfigError
from common.files import hold, make_private_folder

_LOCK_FILE = "server.lock"


@contextmanager
def only_server(state: Path, patience_seconds: float) -> Iterator[None]:
    """Hold the state folder, so that nobody else changes what a server is started with.

    Raises:
        ConfigError: a server runs on it, still after ``patience_seconds``; nothing was changed.
    """
    make_private_folder(state)
    with ExitStack() as held:
        try:
            held.enter_context(hold(state / _LOCK_FILE, patience_seconds))
        except TimeoutError:
            raise ConfigError(
                f"one server alone may run on a state folder, and one runs on {state} already; nothing was changed; "
                "stop it first, or name another --state"
            ) from None
        yield
