"""Which versions the members speak, as each says when it asks how it stands; one small file in the state folder."""

from pathlib import Path

import msgspec

from common.config import PROTOCOL_VERSION
from common.files import locked, write_private

VERSIONS_FILE = "versions.json"


class SpokenVersions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one hospital speaks."""

    protocol: int
    software: str


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
            write_private(self._state / VERSIONS_FILE, msgspec.json.encode({**self.all(), name: spoken}))

    def others(self) -> frozenset[str]:
        """Return the hospitals that speak another version of the protocol than this server, and so take part in no run.

        One that has not said anything is taken at its word when it answers.
        """
        return frozenset(name for name, spoken in self.all().items() if spoken.protocol != PROTOCOL_VERSION)

    def all(self) -> dict[str, SpokenVersions]:
        """Return what each hospital said last; nothing of a missing or damaged file, for it is soon said again."""
        try:
            return msgspec.json.decode((self._state / VERSIONS_FILE).read_bytes(), type=dict[str, SpokenVersions])
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return {}
