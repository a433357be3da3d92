"""Lets the members' SuperNodes in at the SuperLink, and nobody else's; waits until a run can start."""

import time
from collections.abc import Collection, Iterator, Mapping
from typing import Protocol

from server.members.roster import Membership

_POLL_SECONDS = 0.5


class Nodes(Protocol):
    """What is asked of the SuperLink (:class:`server.flower.control.Control`)."""

    def register(self, name: str, public_key: bytes) -> None:
        """Let the SuperNode with this key in."""

    def unregister(self, name: str) -> bool:
        """Cut off every SuperNode registered as ``name``."""

    def online(self) -> Collection[str]:
        """Return the hospitals whose SuperNodes are connected."""


class Admission:
    """Keeps one SuperLink's nodes in step with the members; a new SuperLink knows none, and gets a new one of these."""

    def __init__(self, membership: Membership, nodes: Nodes) -> None:
        self._membership = membership
        self._nodes = nodes
        self._registered: Mapping[str, bytes] = {}

    def keep_in_step(self) -> None:
        """Register who has joined and cut off who was revoked, since the last call."""
        keys = self._membership.supernode_keys()
        for name, key in self._registered.items():
            if keys.get(name) != key:
                self._nodes.unregister(name)
        for name, key in keys.items():
            if self._registered.get(name) != key:
                self._nodes.register(name, key)
        self._registered = keys

    def gather(self, least: int, expected: frozenset[str], patience_seconds: float) -> Iterator[frozenset[str]]:
        """Yield who is online, poll after poll, until a run can start.

        That is when all of ``expected`` are online, or at least ``least`` of them and their number has been stable for
        ``patience_seconds``.
        """
        last: frozenset[str] = frozenset()
        since = time.monotonic()
        while True:
            self.keep_in_step()
            online = frozenset(self._nodes.online()) & expected
            if online != last:
                last, since = online, time.monotonic()
            still = time.monotonic() - since >= patience_seconds
            if online == expected or (len(online) >= least and still):
                return
            yield online
            time.sleep(_POLL_SECONDS)
