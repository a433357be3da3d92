"""The newest of the lists that an authority signs one after the other, on its keeper's own disk."""

from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from common.errors import IdentityError

T = TypeVar("T")


class NewestFile(Generic[T]):
    """A signed list in a file, verified when the file has changed and not again before.

    Several processes may hold one each for the same file.

    Args:
        path: of the file.
        verify: takes the file's bytes; raises :class:`IdentityError` where they are no list of the authority.
    """

    def __init__(self, path: Path, verify: Callable[[bytes], T]) -> None:
        self._path = path
        self._verify = verify
        self._read_at: tuple[int, int] | None = None
        self._newest: T | None = None

    def read(self) -> T | None:
        """Return the list, None where none has ever been there.

        Raises:
            IdentityError: the file cannot be read, is no list of the authority, or has been removed.
        """
        try:
            found = self._path.stat()
            if self._read_at != (found.st_mtime_ns, found.st_ino):
                self._newest = self._verify(self._path.read_bytes())
                self._read_at = (found.st_mtime_ns, found.st_ino)
        except FileNotFoundError:
            if self._newest is not None:
                raise IdentityError(f"{self._path.name} must stay where it is; it has been removed") from None
        except OSError as error:
            raise IdentityError(f"{self._path.name} must be readable: {error.strerror}") from None
        return self._newest
