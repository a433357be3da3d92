"""What a hospital's process of membership noted last of its server: one small file, for status and metrics."""

from pathlib import Path
from typing import Annotated

import msgspec

STANDING_FILE = "standing.json"
_VERSION = 1


class LastStanding(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When the enrolment service last answered, and what went wrong since; for ``confide hospital status``."""

    answered: float | None
    """Seconds since 1970."""
    problem: str | None
    protocol: int | None = None
    """The newest version of the protocol that the server speaks."""
    oldest: int | None = None
    """The oldest one."""
    software: str = ""
    """The server's version of Confide."""
    runs: dict[str, str] = {}
    """The runs that the server told of, by identifier: the state of each, and the reason where there is one."""
    version: Annotated[int, msgspec.Meta(ge=_VERSION, le=_VERSION)] = _VERSION


def read_last_standing(state: Path) -> LastStanding:
    """Return what was written last; empty where nothing was, or another version of it: it is soon said again."""
    try:
        return msgspec.json.decode((state / STANDING_FILE).read_bytes(), type=LastStanding)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return LastStanding(None, None)
