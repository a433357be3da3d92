"""One answer per round and slot, also after a restart: the record a hospital keeps on its disk.

Each phase has a slot of its own, but for two that share one: a hospital signs a list of survivors or opens the sum over
its whole cohort, never both (:mod:`common.secagg.full_unmasking`). To show its change in a dispute has one of its own.

A second masked vector under the same masks gives the server the difference of two inputs, and a second unmasking can
ask for the kind of share that the first withheld. Bonawitz et al. 2017 assume that a user answers once.

Proof: ``docs/proofs/one-answer.md``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from common.secagg.errors import AlreadyAnsweredError, Place, SecondMaskedInputError, SecondUnmaskingError
from common.secagg.phases import Phase

_SECOND: Mapping[Phase, type[AlreadyAnsweredError]] = {
    Phase.MASKED_INPUT: SecondMaskedInputError,
    Phase.UNMASKING: SecondUnmaskingError,
}

_SLOTS: Mapping[Phase, Phase] = {Phase.FULL_UNMASKING: Phase.CONSISTENCY_CHECK}
"""Phases that take another one's slot. Whoever has opened the sum over everybody signs no survivors afterwards, and the
other way round: this is what the proof of two exchanges stands on (docs/proofs/two-exchanges.md)."""


@dataclass(frozen=True)
class AnsweredRounds:
    """The highest round answered in each run and slot.

    >>> answered = AnsweredRounds().check_and_advance("0" * 32, 1, Phase.MASKED_INPUT, "st-mary")
    >>> answered.highest
    mappingproxy({('00000000000000000000000000000000', 'masked_input'): 1})
    """

    highest: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """(run id, slot) to round number; a slot has the name of a phase. The caller stores it as it likes."""

    def __post_init__(self) -> None:
        """Make the record read-only."""
        object.__setattr__(self, "highest", MappingProxyType(dict(self.highest)))

    def check_and_advance(self, run_id: str, round_number: int, phase: Phase, hospital: str) -> "AnsweredRounds":
        """Return the record that says this phase of this round, or the one it shares a slot with, is answered.

        The caller makes it durable before it computes or sends the answer: then a crash in between costs a round, and
        never a second answer.

        Raises:
            AlreadyAnsweredError: the phase's slot is taken by this or a later round of the run; for a masked vector and
                for an unmasking its own kind.
        """
        slot = _SLOTS.get(phase, phase)
        last = self.highest.get((run_id, slot.value))
        if last is not None and round_number <= last:
            raise _SECOND.get(phase, AlreadyAnsweredError)(
                Place(hospital, round_number, phase),
                f"one answer is given per round and slot; {slot} of round {last} is already answered",
            )
        return AnsweredRounds({**self.highest, (run_id, slot.value): round_number})
