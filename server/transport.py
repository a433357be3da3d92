"""How a round's messages travel, whatever carries them: Flower in production, a function call in experiments."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from common.run.flat_model import FlatModel
from common.run.messages import Reply, Request, encode, in_version

JOINING_SECONDS = 0.5
JOINING_SHARE = 0.5
"""How long others get when everyone that a round needs has answered: a moment, or a share of the round's time."""


@dataclass(frozen=True)
class Outgoing:
    """A request and the model that goes with it."""

    request: Request
    model: FlatModel | None = None

    def in_version(self, version: int) -> Self:
        """Return the same in a version of the protocol; itself where it is of that version."""
        return self if self.request.version == version else replace(self, request=in_version(self.request, version))

    @cached_property
    def encoded(self) -> bytes:
        """Return the request's bytes, made once for all the hospitals it goes to."""
        return encode(self.request)

    @property
    def size_bytes(self) -> int:
        """Return what goes over the network to one hospital."""
        return len(self.encoded) + (0 if self.model is None else len(self.model) * np.dtype(np.float32).itemsize)


@dataclass(frozen=True)
class Incoming:
    """A node's reply, or why it cannot be read."""

    node: int
    reply: Reply | None
    array: npt.NDArray[Any] | None
    fault: str | None
    size_bytes: int
    code: str = "Fault"
    """The kind of the fault, fit for a metric's label."""


class Patience:
    """Decides how long one exchange waits for the nodes that have not answered yet.

    Nobody waits longer than ``longest_seconds``. Once ``enough`` of the ``essential`` nodes have answered, the others
    get ``straggler_factor`` times the time those took, and ``straggler_seconds`` at least: a hospital that was killed
    costs the round seconds and not the full deadline, and a slow one still gets its chance. Nodes that are not
    essential, such as a hospital that wants to join, never hold a round up for longer than a moment.
    """

    def __init__(
        self,
        longest_seconds: float,
        essential: frozenset[int],
        enough: int,
        straggler_factor: float,
        straggler_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.longest_seconds = longest_seconds
        self._waiting_for = set(essential)
        self._enough = min(enough, len(essential))
        self._factor = straggler_factor
        self._least_seconds = straggler_seconds
        self._clock = clock
        self._started = clock()
        self._ends = self._started + longest_seconds
        self._answers = 0

    def answered(self, node: int) -> None:
        """Note a node's answer."""
        if node not in self._waiting_for:
            return
        self._waiting_for.remove(node)
        self._answers += 1
        elapsed = self._clock() - self._started
        if self._answers == self._enough:
            self._end_in(max(self._least_seconds, (self._factor - 1) * elapsed))
        if not self._waiting_for:
            self._end_in(max(JOINING_SECONDS, JOINING_SHARE * elapsed))

    def gone(self, node: int) -> None:
        """Note that a node will not answer, so that nobody waits for it."""
        if node not in self._waiting_for:
            return
        self._waiting_for.remove(node)
        if not self._waiting_for:
            self._end_in(JOINING_SECONDS)

    def seconds_left(self) -> float:
        """Return how long the exchange still waits for those who have not answered."""
        return max(0.0, self._ends - self._clock())

    def is_over(self) -> bool:
        """Return whether the exchange ends without those who have not answered."""
        return self._clock() >= self._ends

    def _end_in(self, seconds: float) -> None:
        self._ends = min(self._ends, self._clock() + seconds)


class Transport(Protocol):
    """What a round needs of the network."""

    def online(self) -> Mapping[int, str]:
        """Return the nodes that are connected now, and the hospital each is registered for."""

    def exchange(
        self, outgoing: Mapping[int, Outgoing], patience: Patience, reply_array_bytes: int
    ) -> Iterator[Incoming]:
        """Send one request to each node and yield the replies as they arrive, until all did or patience ends.

        A caller that drops each reply before it asks for the next has one array in memory, however many answer.
        """
