"""Asks hospitals and reports what happened: one exchange at a time, by the hospitals' names."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from common.config import PROTOCOL_VERSION, TransportConfig
from common.errors import OtherVersionError
from common.run.messages import RefusedReply, Reply
from common.secagg.errors import SecAggError
from common.telemetry.events import AttackRefused, Dropout, Event, Exchange, HospitalLost, HospitalOnline, Refusal
from server.transport import Incoming, Outgoing, Patience, Transport


@dataclass(frozen=True)
class Answer:
    """A hospital's reply to one request."""

    hospital: str
    reply: Reply
    array: npt.NDArray[Any] | None


@dataclass
class RoundTally:
    """What the exchanges of one round have cost so far."""

    seconds: float = 0.0
    upload_bytes: int = 0
    refused: dict[str, RefusedReply] = field(default_factory=dict)
    other_version: set[str] = field(default_factory=set)
    """The hospitals whose replies are of another version of the protocol."""


class Conversation:
    """Knows which hospitals are there, sends requests to them by name, and reports every exchange as an event.

    Args:
        transport: carries the messages.
        config: how long to wait.
        report: takes the events.
        clock: Unix seconds, for the events.
        version: of the protocol, which the run's description says; every request is of it.
        departed: returns the hospitals that were stopped where they are, and said so.
    """

    def __init__(
        self,
        transport: Transport,
        config: TransportConfig,
        report: Callable[[Event], None],
        clock: Callable[[], float] = time.time,
        version: int = PROTOCOL_VERSION,
        departed: Callable[[], frozenset[str]] = frozenset,
    ) -> None:
        self._departed = departed
        self._version = version
        self._transport = transport
        self._config = config
        self._report = report
        self._clock = clock
        self._nodes: dict[str, int] = {}
        self.tally = RoundTally()

    def begin_round(self) -> None:
        """Start to count again what the exchanges cost and who refuses."""
        self.tally = RoundTally()

    def online(self) -> frozenset[str]:
        """Return the hospitals whose nodes are connected now; comings and goings are reported."""
        nodes = {name: node for node, name in self._transport.online().items()}
        now = self._clock()
        for name in sorted(nodes.keys() - self._nodes.keys()):
            self._report(HospitalOnline(time=now, hospital=name))
        if gone := sorted(self._nodes.keys() - nodes.keys()):
            departed = self._departed()
            for name in gone:
                self._report(HospitalLost(time=now, hospital=name, left=name in departed))
        self._nodes = nodes
        return frozenset(nodes)

    def ask(
        self,
        round_number: int,
        phase: str,
        requests: Mapping[str, Outgoing],
        *,
        enough: int,
        joining: Mapping[str, Outgoing] | None = None,
        reply_array_bytes: int = 0,
        preparing: bool = False,
    ) -> Iterator[Answer]:
        """Send one request to each hospital and yield the answers as they arrive.

        Refusals and faults are reported and not yielded. A hospital of ``requests`` without an answer is reported
        as dropped; one of ``joining`` is not: nobody counts on it yet. An answer with an array must be let go
        before the next one is asked for, or two arrays are in memory.

        Args:
            round_number: of the protocol.
            phase: the exchange's name, for the report.
            requests: hospitals that the round counts on.
            enough: this many answers end the patience for the others; see :class:`server.transport.Patience`.
            joining: requests to hospitals that want to join, of whatever kind.
            reply_array_bytes: of the array that one reply may carry.
            preparing: some hear of the run for the first time and prepare their data before they answer; they get
                as long as the start of a run may take.
        """
        everyone = {name: item.in_version(self._version) for name, item in {**requests, **(joining or {})}.items()}
        asked = {self._nodes[name]: (name, item) for name, item in everyone.items() if name in self._nodes}
        essential = frozenset(node for node, (name, _) in asked.items() if name in requests)
        patience = Patience(
            self._config.start_deadline_seconds if preparing else self._config.exchange_deadline_seconds,
            essential,
            enough,
            self._config.straggler_factor,
            self._config.straggler_seconds,
        )
        started = time.monotonic()
        answered: set[str] = set()
        uploaded = 0
        outgoing = {node: item for node, (_, item) in asked.items()}
        for incoming in self._transport.exchange(outgoing, patience, reply_array_bytes):
            name = asked[incoming.node][0]
            answered.add(name)
            uploaded += incoming.size_bytes
            answer = self._sort(round_number, name, incoming)
            del incoming  # Only the receiver of the answer holds its array now, and the next one comes when it is gone.
            if answer is not None:
                yield answer
            del answer
        seconds = time.monotonic() - started
        self.tally.seconds += seconds
        self.tally.upload_bytes += uploaded
        self._take_down(round_number, phase, requests, answered, seconds, uploaded, outgoing)

    def refused_by_server(self, refusals: tuple[SecAggError, ...]) -> None:
        """Report what the server itself refused to take from hospitals."""
        for error in refusals:
            self._report(
                AttackRefused(
                    time=self._clock(), round=error.place.round_number, hospital=error.hospital, code=error.code
                )
            )

    def _sort(self, round_number: int, name: str, incoming: Incoming) -> Answer | None:
        now = self._clock()
        if incoming.reply is None:
            reason = incoming.fault or "no reply"
            self._report(Refusal(time=now, round=round_number, hospital=name, reason=reason, code=incoming.code))
            if incoming.code == OtherVersionError.code:
                self.tally.other_version.add(name)
            return None
        if isinstance(incoming.reply, RefusedReply):
            refused = incoming.reply
            self.tally.refused[name] = refused
            self._report(
                AttackRefused(time=now, round=round_number, hospital=name, code=refused.code)
                if refused.is_attack
                else Refusal(time=now, round=round_number, hospital=name, reason=refused.reason, code=refused.code)
            )
            return None
        return Answer(name, incoming.reply, incoming.array)

    def _take_down(
        self,
        round_number: int,
        phase: str,
        requests: Mapping[str, Outgoing],
        answered: set[str],
        seconds: float,
        uploaded: int,
        outgoing: Mapping[int, Outgoing],
    ) -> None:
        now = self._clock()
        missing = tuple(sorted(requests.keys() - answered))
        for name in missing:
            self._report(Dropout(time=now, round=round_number, hospital=name, phase=phase))
        self._report(
            Exchange(
                time=now,
                round=round_number,
                phase=phase,
                seconds=seconds,
                answered=tuple(sorted(answered)),
                missing=missing,
                upload_bytes=uploaded,
                download_bytes=sum(item.size_bytes for item in outgoing.values()),
            )
        )
