"""Which versions the members speak, as each says when it asks how it stands; one small file in the state folder."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import msgspec

from common.config import PROTOCOL_VERSION
from common.files import locked, write_private
from common.run.versions import SPOKEN, Window

VERSIONS_FILE = "versions.json"
_VERSION = 1


class SpokenVersions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one hospital speaks."""

    protocol: int
    software: str
    oldest: int | None = None
    """The oldest version of the protocol that it speaks; None in a record of a server that was not told."""

    @property
    def window(self) -> Window:
        """Return the versions of the protocol that it speaks."""
        oldest = self.protocol if self.oldest is None else self.oldest
        return Window(min(oldest, self.protocol), self.protocol)


class SaidVersions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole of ``versions.json``."""

    members: dict[str, SpokenVersions]
    version: Annotated[int, msgspec.Meta(ge=_VERSION, le=_VERSION)] = _VERSION


class MemberVersions:
    """What the hospitals said last."""

    def __init__(self, state: Path) -> None:
        self._state = state

    def of(self, name: str) -> SpokenVersions | None:
        """Return what a hospital speaks, None where it has not said so."""
        return self.all().get(name)

    def note(self, name: str, spoken: SpokenVersions) -> None:
        """Remember what a hospital says."""
        with locked(self._state):
            said = SaidVersions({**self.all(), name: spoken})
            write_private(self._state / VERSIONS_FILE, msgspec.json.encode(said))

    def windows(self, names: Iterable[str]) -> dict[str, Window]:
        """Return what each of these hospitals speaks; one that has not said anything is taken to speak as we do."""
        said = self.all()
        return {name: said[name].window if name in said else SPOKEN for name in names}

    def others(self, version: int = PROTOCOL_VERSION) -> frozenset[str]:
        """Return the hospitals that do not speak a version of the protocol, and so take part in no run of it.

        One that has not said anything is taken at its word when it answers.
        """
        return frozenset(name for name, spoken in self.all().items() if version not in spoken.window)

    def strangers(self) -> frozenset[str]:
        """Return the hospitals that speak no version of the protocol that this server speaks."""
        return frozenset(name for name, spoken in self.all().items() if not spoken.window.meets(SPOKEN))

    def all(self) -> dict[str, SpokenVersions]:
        """Return what each hospital said last; nothing of a missing or damaged file, for it is soon said again."""
        try:
            return msgspec.json.decode((self._state / VERSIONS_FILE).read_bytes(), type=SaidVersions).members
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return {}
