"""Every way in which a server can lead a round of a few hospitals through both endings, and what it then knows.

An abstract model of a round over a complete graph: secrets are known or not, and whoever has t shares of one knows it.
The server shows each honest hospital a cohort, then asks it for any of F (open the sum over everybody), S (sign a list
of survivors) and R (reveal for the list signed), in any order. What a hospital answers is decided by the product's own
record of slots, :class:`~common.secagg.answered_rounds.AnsweredRounds`, and by the rules of the phases: R for a list
with t signatures, F when all of the cohort have signed its view. Nothing is forgotten in between, so that the slots
alone protect. Colluders sign and reveal whatever helps.

All configurations are looked at, up to a renaming of honest hospitals; those of a chunk at once, as arrays.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from common.secagg.answered_rounds import AnsweredRounds
from common.secagg.errors import AlreadyAnsweredError
from common.secagg.phases import Phase

F, S, R = Phase.FULL_UNMASKING, Phase.CONSISTENCY_CHECK, Phase.UNMASKING
ENDINGS = (F, S, R)

Flags = NDArray[np.bool_]
Sets = NDArray[np.int64]
"""Sets of hospitals as bits, a configuration an element."""

LOSES_BOTH = "a hospital loses b and s"
TWO_SUMS = "two sums of one round"
CONTRADICTION = "a hospital signs survivors and opens the sum over everybody"
"""By itself this reveals nothing; but then signatures, which the audit goes by, do not say which sum was opened."""


def behaviours() -> frozenset[frozenset[Phase]]:
    """Return what a hospital can have answered in the end, by its record, in whatever order it was asked."""
    found = set()
    for count in range(len(ENDINGS) + 1):
        for order in permutations(ENDINGS, count):
            record, done = AnsweredRounds(), set[Phase]()
            for phase in order:
                if phase is R and S not in done:
                    continue
                try:
                    record = record.check_and_advance("0" * 32, 1, phase, "hospital-1")
                except AlreadyAnsweredError:
                    continue
                done.add(phase)
            found.add(frozenset(done))
    return frozenset(found)


@dataclass(frozen=True)
class State:
    """What one hospital did: for which cohort it masked, what it answered, and for which survivors."""

    cohort: int = 0
    answered: frozenset[Phase] = frozenset()
    survivors: int = 0


@dataclass
class Findings:
    """How many configurations there were, how many gave the server a sum, and which promises how many broke."""

    configurations: int = 0
    with_a_sum: int = 0
    broken: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Round:
    """A round of ``hospitals``, the last ``colluders`` of whom collude, with threshold ``threshold``.

    Attributes:
        everyone_signs: F needs the signatures of all of the cohort, as in the product; otherwise of nobody.
        whole: also look at hospitals that do less than they could, who reveal less.
    """

    hospitals: int
    colluders: int
    threshold: int
    everyone_signs: bool = True
    whole: bool = True

    @property
    def honest(self) -> range:
        """Return the honest hospitals."""
        return range(self.hospitals - self.colluders)

    @property
    def honest_set(self) -> int:
        """Return the set of them."""
        return (1 << len(self.honest)) - 1

    def sets(self, within: int) -> Iterator[int]:
        """Yield every set within one, of at least t hospitals."""
        return (each for each in _subsets(within) if each.bit_count() >= self.threshold)

    def states(self, hospital: int) -> list[State]:
        """Return everything that an honest hospital can have done."""
        ways, found = behaviours(), [State()]
        if not self.whole:
            ways = frozenset(way for way in ways if not any(way < other for other in ways))
        for cohort in self.sets((1 << self.hospitals) - 1):
            if not cohort >> hospital & 1:
                continue
            for way in ways:
                if S not in way:
                    found.append(State(cohort, way))
                    continue
                lists = (each for each in self.sets(cohort) if each >> hospital & 1)
                found += [State(cohort, way, each) for each in lists if self.whole or each != cohort]
        return found

    def first_states(self) -> list[State]:
        """Return the states of the first hospital, one of those that a renaming of honest hospitals makes equal."""
        alike: dict[tuple[object, ...], State] = {}
        for state in self.states(0):
            kind = (
                (state.cohort & self.honest_set).bit_count(),
                state.cohort & ~self.honest_set,
                (state.survivors & self.honest_set).bit_count(),
                state.survivors & ~self.honest_set,
                state.answered,
            )
            alike.setdefault(kind, state)
        return list(alike.values())

    def check(self) -> Findings:
        """Look at every configuration."""
        findings = Findings()
        others = [self.states(hospital) for hospital in self.honest[1:]]
        grid = np.meshgrid(*(np.arange(len(states)) for states in others), indexing="ij")
        for first in self.first_states():
            columns = [_Column.of([first], np.zeros(grid[0].size, np.int64))]
            columns += [_Column.of(states, index.ravel()) for states, index in zip(others, grid, strict=True)]
            _Chunk(self, columns).look(findings)
        return findings


def _subsets(within: int) -> Iterator[int]:
    some = within
    while some:
        yield some
        some = (some - 1) & within


@dataclass(frozen=True)
class _Column:
    """One hospital in many configurations."""

    cohort: Sets
    survivors: Sets
    answered: Mapping[Phase, Flags]

    @classmethod
    def of(cls, states: list[State], index: Sets) -> "_Column":
        return cls(
            np.array([state.cohort for state in states])[index],
            np.array([state.survivors for state in states])[index],
            {phase: np.array([phase in state.answered for state in states])[index] for phase in ENDINGS},
        )


class _Chunk:
    """What the server knows in many configurations at once."""

    def __init__(self, model: Round, columns: list[_Column]) -> None:
        self.model, self.columns = model, columns
        self.size = len(columns[0].cohort)

    def nowhere(self) -> Flags:
        return np.zeros(self.size, np.bool_)

    @cached_property
    def lists(self) -> dict[tuple[int, int], Flags]:
        """Whether a list of survivors of a cohort has t signatures; colluders on it sign it."""
        model, found = self.model, {}
        for cohort in model.sets((1 << model.hospitals) - 1):
            for survivors in model.sets(cohort):
                colluding = (survivors & ~model.honest_set).bit_count()
                signed = sum(
                    (each.cohort == cohort) & (each.survivors == survivors) & each.answered[S] for each in self.columns
                )
                found[cohort, survivors] = np.asarray(signed) + colluding >= model.threshold
        return found

    @cached_property
    def full(self) -> dict[int, Flags]:
        """Whether every honest hospital of a cohort masked for it."""
        model, found = self.model, {}
        for cohort in model.sets((1 << model.hospitals) - 1):
            masked = ~self.nowhere()
            for hospital in model.honest:
                if cohort >> hospital & 1:
                    masked &= self.columns[hospital].cohort == cohort
            found[cohort] = masked
        return found

    def _opens(self, column: _Column) -> Flags:
        """Whether a hospital obeys F."""
        obeys = column.answered[F].copy()
        if self.model.everyone_signs:
            for cohort, full in self.full.items():
                obeys &= (column.cohort != cohort) | full
        return obeys

    def _reveals(self, column: _Column) -> Flags:
        """Whether a hospital obeys R."""
        obeyed = self.nowhere()
        for (cohort, survivors), signed in self.lists.items():
            obeyed |= (column.cohort == cohort) & (column.survivors == survivors) & signed
        return obeyed & column.answered[R]

    @cached_property
    def known(self) -> tuple[list[Flags], list[Flags]]:
        """Whether the server can rebuild b, and s, of each honest hospital."""
        model = self.model
        opens = [self._opens(column) for column in self.columns]
        reveals = [self._reveals(column) for column in self.columns]
        seeds, keys = [], []
        for hospital in model.honest:
            of_seed = np.full(self.size, model.colluders)
            of_key = np.full(self.size, model.colluders)
            for column, opened, revealed in zip(self.columns, opens, reveals, strict=True):
                together = column.cohort >> hospital & 1 == 1
                alive = column.survivors >> hospital & 1 == 1
                of_seed += opened & together | revealed & alive
                of_key += revealed & together & ~alive
            seeds.append(of_seed >= model.threshold)
            keys.append(of_key >= model.threshold)
        return seeds, keys

    def _readable(self, cohort: int, some: int) -> Flags:
        """Whether the sum over some honest hospitals that masked for a cohort can be read: no unknown mask is left."""
        (seeds, keys), model = self.known, self.model
        readable = ~self.nowhere()
        for hospital in model.honest:
            if not some >> hospital & 1:
                continue
            readable &= (self.columns[hospital].cohort == cohort) & seeds[hospital]
            for peer in model.honest:
                if cohort >> peer & 1 and not some >> peer & 1:
                    readable &= keys[hospital] | keys[peer]
        return readable

    def look(self, findings: Findings) -> None:
        """Hold every configuration against the promises."""
        (seeds, keys), model = self.known, self.model
        both, stray, sums = self.nowhere(), self.nowhere(), np.zeros(self.size, np.int64)
        contradiction = self.nowhere()
        for hospital in model.honest:
            column = self.columns[hospital]
            contradiction |= self._opens(column) & column.answered[S]
            both |= (self.columns[hospital].cohort != 0) & seeds[hospital] & keys[hospital]
        for cohort in model.sets((1 << model.hospitals) - 1):
            everybody = cohort & model.honest_set
            for some in _subsets(everybody):
                readable = self._readable(cohort, some)
                allowed = self.full[cohort].copy() if some == everybody else self.nowhere()
                for (of, survivors), signed in self.lists.items():
                    if of == cohort and survivors & model.honest_set == some:
                        allowed |= signed
                stray |= readable & ~allowed
                sums += readable
        signed_lists = np.asarray(sum(signed.astype(np.int64) for signed in self.lists.values()))
        findings.configurations += self.size
        findings.with_a_sum += int((sums > 0).sum())
        for promise, violated in {
            LOSES_BOTH: both,
            CONTRADICTION: contradiction,
            "a sum over others than all honest of a cohort or of its signed survivors": stray,
            TWO_SUMS: sums > 1,
            "two signed lists": signed_lists > 1,
        }.items():
            if violated.any():
                findings.broken[promise] += int(violated.sum())
