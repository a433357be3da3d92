"""Which hospitals were stopped where they are and said so: an empty file for each in the server's state folder.

The SuperLink notes it (``server/flower/fleet.py``). The ServerApp, another process, tells by it whoever left from
whoever failed.
"""

from pathlib import Path

from common.files import make_private_folder
from common.identity.certificates import check_hospital_name

DEPARTED_FOLDER = "departed"


class Departures:
    """The hospitals that have left and have not come back.

    Args:
        state: the server's state folder.
    """

    def __init__(self, state: Path) -> None:
        self._folder = state / DEPARTED_FOLDER

    def note(self, name: str) -> None:
        """Note that a hospital leaves."""
        make_private_folder(self._folder)
        self._path(name).touch(0o600)

    def forget(self, name: str) -> None:
        """Note that a hospital is there again."""
        self._path(name).unlink(missing_ok=True)

    def all(self) -> frozenset[str]:
        """Return those that have left."""
        return frozenset(path.name for path in self._folder.glob("[!.]*"))

    def _path(self, name: str) -> Path:
        return self._folder / check_hospital_name(name)
