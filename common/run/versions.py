"""Which versions of the protocol a side speaks, and which one a run has.

**The window.** A release speaks its own version N of the protocol and the one before it, unless a decision page says
that the older one cannot keep what the newer one promises. The window begins with version 3, which 0.2.0 brought: a
hospital of 0.1.0 speaks version 2, where neither purpose nor question of a round is bound in its masks, so a run that
took one in could not keep the promise to anybody. Hence a release of version 3 speaks version 3 alone.

**A run has one version.** The server chooses the newest that it and all members that it names speak, and writes it into
the run's description. The description's hash is in every key, mask and signature, so a run cannot be moved to another
version, and nobody can believe to be in a run of another one. A hospital answers each request in the request's version
and refuses one of another version than its run's. So hospitals are upgraded one at a time while a run goes on.

**The order is server first.** Enrolment has a window of its own (``common/identity/enrolment.py``), and the server
answers in the version in which it is asked. A hospital is never newer than its server.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from common.config import OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION
from common.errors import OtherVersionError, RunError


@dataclass(frozen=True)
class Window:
    """The versions that one side speaks, from the oldest to the newest.

    >>> 3 in Window(3, 4), 5 in Window(3, 4)
    (True, False)
    >>> print(Window(3, 3), "and", Window(3, 4))
    version 3 and versions 3 to 4
    """

    oldest: int
    newest: int

    def __post_init__(self) -> None:
        """Refuse a window whose oldest version is newer than its newest."""
        if not 1 <= self.oldest <= self.newest:
            raise RunError(f"versions must go from an older one to a newer one, got {self.oldest} to {self.newest}")

    def __contains__(self, version: object) -> bool:
        """Return whether a version is spoken."""
        return isinstance(version, int) and self.oldest <= version <= self.newest

    def __str__(self) -> str:
        """Return the window in words."""
        return f"version {self.newest}" if self.oldest == self.newest else f"versions {self.oldest} to {self.newest}"

    def meets(self, other: "Window") -> bool:
        """Return whether there is a version that both speak."""
        return max(self.oldest, other.oldest) <= min(self.newest, other.newest)

    def require(self, version: int, whose: str, here: str) -> None:
        """Check that a message's version is spoken here.

        Raises:
            OtherVersionError: it is not; names both sides.
        """
        if version not in self:
            raise OtherVersionError(
                f"both sides must speak one version of the protocol; {whose} speaks version {version}, {here} speaks "
                f"{self}; upgrade the older one"
            )


SPOKEN = Window(OLDEST_PROTOCOL_VERSION, PROTOCOL_VERSION)
"""What this software speaks."""


def newest_common(windows: Iterable[Window]) -> int | None:
    """Return the newest version that all speak, None where there is none.

    >>> newest_common([Window(3, 4), Window(4, 5)]), newest_common([Window(3, 3), Window(4, 4)])
    (4, None)
    """
    every = tuple(windows)
    newest = min(window.newest for window in every)
    return newest if newest >= max(window.oldest for window in every) else None


def version_for_run(here: Window, named: Mapping[str, Window], others: Mapping[str, Window]) -> int:
    """Choose a run's version: the newest that this server and all that the run names speak.

    Args:
        here: what this server speaks.
        named: hospitals that must agree, with what each speaks.
        others: further members, who may take part too; they count where that costs nobody the run.

    Raises:
        RunError: there is no such version; names who speaks another.
    """
    reachable = [window for window in others.values() if window.meets(here)]
    chosen = newest_common((here, *named.values(), *reachable)) or newest_common((here, *named.values()))
    if chosen is None:
        speak = ", ".join(f"{name} {window}" for name, window in sorted(named.items()) if not window.meets(here))
        apart = speak or ", ".join(f"{name} {window}" for name, window in sorted(named.items()))
        raise RunError(
            f"a run must have one version of the protocol that all it names speak; this server speaks {here}, got "
            f"{apart}; upgrade the older side, or propose a run that does not name them"
        )
    return chosen
