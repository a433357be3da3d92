"""How far a run has come, read from its events while its processes are being killed."""

import statistics
from collections import Counter, defaultdict

from common.secagg.phases import Phase
from common.telemetry.events import (
    COMPLETED,
    AttackRefused,
    Event,
    Exchange,
    Refusal,
    RoundDone,
    RunFinished,
    RunStarted,
)
from deploy.resilience.chaos_plan import Point

_PREDECESSORS = {
    Phase.ADVERTISE_KEYS: (Point.SHARE_KEYS,),
    Phase.SHARE_KEYS: (Point.MASKED_INPUT,),
    Phase.MASKED_INPUT: (Point.FULL_UNMASKING,),
    Phase.CONSISTENCY_CHECK: (),
    Phase.UNMASKING: (Point.STEP, Point.MASKED_INPUT),
    Phase.FULL_UNMASKING: (Point.STEP, Point.MASKED_INPUT),
}
"""The end of an exchange is the beginning of these stretches."""

_FIRST_GUESS_SECONDS = 0.2
_STEP_SECONDS = 0.05
"""The time of unmasking and of the checkpoint with the small model."""
_REMEMBERED = 20


class Progress:
    """What the events of one run say so far."""

    def __init__(self) -> None:
        self.reason: str | None = None
        """Why the run has ended; None while it is active."""
        self.finished_rounds: dict[int, float] = {}
        """Rounds that gave a sum, with the time they did."""
        self.undone_rounds = 0
        self._begun: set[int] = set()
        self._steps: dict[int, int] = {}
        self._answered: dict[int, set[str]] = {}
        self._refused: set[tuple[int, str]] = set()
        self._reached: Counter[Point] = Counter()
        self._seconds: dict[str, list[float]] = defaultdict(list)

    @property
    def finished(self) -> bool:
        """Return whether the run has ended."""
        return self.reason is not None

    @property
    def gave_up(self) -> str | None:
        """Return why the run ended before its last round, None where it is active or was completed."""
        return None if self.reason == COMPLETED else self.reason

    def add(self, event: Event) -> None:
        """Take in one event."""
        match event:
            case RunStarted():
                self._reached[Point.START] += 1
                self._reached[Point.ADVERTISE_KEYS] += 1
            case Exchange():
                self._add_exchange(event)
            case Refusal() | AttackRefused():
                self._refused.add((event.round, event.hospital))
            case RoundDone():
                if self._steps.setdefault(event.step, event.round) != event.round:
                    self.undone_rounds += 1
            case RunFinished():
                self.reason = event.reason
            case _:
                pass

    def _add_exchange(self, event: Exchange) -> None:
        phase = Phase(event.phase)
        self._begun.add(event.round)
        for point in _PREDECESSORS[phase]:
            self._reached[point] += 1
        self._seconds[event.phase] = [*self._seconds[event.phase][-_REMEMBERED:], event.seconds]
        if phase is Phase.MASKED_INPUT:
            self._answered[event.round] = set(event.answered)
        if phase in {Phase.UNMASKING, Phase.FULL_UNMASKING}:
            self.finished_rounds[event.round] = event.time

    def times_reached(self, point: Point) -> int:
        """Return how often the run has reached a stretch of the protocol."""
        return self._reached[point]

    def usual_seconds(self, point: Point) -> float:
        """Return how long a stretch of the protocol usually takes."""
        if point is Point.STEP:
            return _STEP_SECONDS
        return statistics.median(self._seconds.get(str(point)) or [_FIRST_GUESS_SECONDS])

    def round_in_hand(self) -> int:
        """Return the highest number that a round under way now can have."""
        last = max(self._begun, default=0)
        return last + 1 if last in self.finished_rounds else last

    def first_finished_after(self, round_number: int, hospital: str | None) -> float | None:
        """Return when the first round above ``round_number`` gave a sum, one with ``hospital`` in it if given."""
        return min(
            (
                ended
                for number, ended in self.finished_rounds.items()
                if number > round_number and (hospital is None or number in self.rounds_sent_by(hospital))
            ),
            default=None,
        )

    def rounds_sent_by(self, hospital: str) -> set[int]:
        """Return the rounds in which a hospital answered and refused nothing; in the first it may only have joined."""
        return {
            number
            for number, names in self._answered.items()
            if hospital in names and (number, hospital) not in self._refused
        }

    def lost_rounds(self) -> set[int]:
        """Return the rounds that were begun and gave no sum, the one in hand at the end left out."""
        return {number for number in self._begun if number not in self.finished_rounds and number < max(self._begun)}
