"""Whole runs in memory, with any number of hospitals that vanish at any step and come back: the sum is always exact.

A round in which nobody is missing is ended both ways: the two sums have the same bits. (The agents' record, which the
functions here know nothing of, lets a hospital take part in one of them.)
"""

import copy
import random
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest

from common.secagg.advertise_keys import collect
from common.secagg.errors import ThresholdError
from common.secagg.full_unmasking import is_full
from common.secagg.masked_input import MaskedSum
from common.secagg.parameters import Adversary, Vector
from common.secagg.phases import Phase
from common.secagg.share_keys import route
from tests.support.parties import TERMS, Consortium, plain_sum, sent

FAST_RUNS, SLOW_RUNS, FULL_RUNS = 100, 1000, 1000
FEWEST, MOST = 3, 50
PAPER: list[Phase] = [phase for phase in Phase if phase is not Phase.FULL_UNMASKING]


@dataclass(frozen=True)
class RoundPlan:
    """Who vanishes when, in one round."""

    round_number: int
    vanishing: Mapping[str, Phase]

    def present(self, consortium: Consortium, phase: Phase) -> list[str]:
        """Return who still answers in ``phase``."""
        order = PAPER
        return [
            name
            for name in consortium.names
            if name not in self.vanishing or order.index(self.vanishing[name]) > order.index(phase)
        ]


def plan_round(consortium: Consortium, round_number: int, source: random.Random) -> RoundPlan:
    """Let up to the tolerated number vanish, each at a phase of its own."""
    online = len(consortium.names)
    # Who never advertises makes the round smaller and its threshold with it; the others must leave t to the end.
    absent = source.randint(0, online - next(n for n in range(1, online + 1) if consortium.run.threshold(n) <= n))
    present = online - absent
    leaving = source.randint(0, present - consortium.run.threshold(present))
    names = source.sample(consortium.names, absent + leaving)
    later = [phase for phase in PAPER if phase is not Phase.ADVERTISE_KEYS]
    return RoundPlan(
        round_number,
        {
            **dict.fromkeys(names[:absent], Phase.ADVERTISE_KEYS),
            **{name: source.choice(later) for name in names[absent:]},
        },
    )


def copied(total: MaskedSum) -> MaskedSum:
    """Return the same sum with memory of its own, to be ended in another way."""
    other = copy.copy(total)
    other.total = total.total.copy()
    return other


def play_round(consortium: Consortium, plan: RoundPlan) -> tuple[Vector, Vector, tuple[str, ...]]:
    """Return the unmasked sum, the plain sum of those who submitted, and who they are."""
    number = plan.round_number
    keys = {name: sent(consortium[name].advertise(number)) for name in plan.present(consortium, Phase.ADVERTISE_KEYS)}
    directory = sent(collect(consortium.run, number, keys).directory)
    shares = {name: sent(consortium[name].share(directory)) for name in plan.present(consortium, Phase.SHARE_KEYS)}
    routed = route(consortium.run, directory, shares)
    total = MaskedSum(routed, TERMS)
    plain = []
    for name in plan.present(consortium, Phase.MASKED_INPUT):
        vector = consortium.vector()
        message, masked = consortium[name].mask(sent(routed.request_for(name, TERMS)), vector)
        total.add(name, sent(message), masked)
        plain.append(vector)
    at_once = None
    if is_full(total):
        gone = set(consortium.names) - set(plan.present(consortium, Phase.UNMASKING))
        at_once = consortium.unmask_all(copied(total), lost=gone)
        assert at_once.refusals == ()
    gone = set(consortium.names) - set(plan.present(consortium, Phase.CONSISTENCY_CHECK))
    request = consortium.unmasking_request(total, lost=gone)
    gone = set(consortium.names) - set(plan.present(consortium, Phase.UNMASKING))
    unmasked = consortium.unmask(total, request, lost=gone)
    assert unmasked.refusals == ()
    if at_once is not None:
        assert at_once.survivors == unmasked.survivors
        assert at_once.total.tobytes() == unmasked.total.tobytes()
    return unmasked.total, plain_sum(consortium.run, plain), unmasked.survivors


def play_run(seed: int, hospitals: int, rounds: int) -> None:
    source = random.Random(seed)  # noqa: S311 - repeatable
    bits, vector_length = source.choice((16, 32)), source.randint(1, 40)
    consortium = Consortium(
        hospitals,
        seed,
        modulus_bits=bits,
        vector_length=vector_length,
        # Without counts, with some, and with nothing else.
        counts_length=source.randint(0, vector_length * bits // 32),
        adversary=source.choice(list(Adversary)),
    )
    for round_number in range(1, rounds + 1):
        plan = plan_round(consortium, round_number, source)
        unmasked, plain, survivors = play_round(consortium, plan)
        assert survivors == tuple(plan.present(consortium, Phase.MASKED_INPUT)) == tuple(sorted(survivors))
        assert np.array_equal(unmasked, plain), f"seed {seed}, round {round_number}: {plan}"


@pytest.mark.parametrize("seed", range(FAST_RUNS))
def test_the_sum_is_that_of_those_who_submitted_whoever_vanishes(seed: int) -> None:
    source = random.Random(f"size {seed}")  # noqa: S311 - repeatable
    # Mostly small consortia, since the cost grows with the square; the largest is always among them.
    hospitals = MOST if seed == 0 else FEWEST + int((MOST - FEWEST) * source.random() ** 8)
    play_run(seed, hospitals, rounds=source.randint(1, 3) if hospitals <= 10 else 1)


@pytest.mark.parametrize(
    "hundred", [0, *(pytest.param(number, marks=pytest.mark.slow) for number in range(1, FULL_RUNS // 100))]
)
def test_a_thousand_full_rounds_end_in_the_same_bits_either_way(hundred: int) -> None:
    for seed in range(hundred * 100, hundred * 100 + 100):
        source = random.Random(f"full {seed}")  # noqa: S311 - repeatable
        bits, length, hospitals = source.choice((16, 32)), source.randint(1, 12), source.randint(FEWEST, 6)
        counts = source.randint(0, length * bits // 32)
        consortium = Consortium(hospitals, seed, modulus_bits=bits, vector_length=length, counts_length=counts)
        # Any t answers will do, not the same ones in both endings.
        tolerated = hospitals - consortium.run.threshold(hospitals)
        gone, later = (source.sample(consortium.names, source.randint(0, tolerated)) for _ in range(2))
        vectors = {name: consortium.vector() for name in consortium.names}
        total = consortium.masked_sum(vectors=vectors)
        at_once = consortium.unmask_all(copied(total), lost=gone)
        signed = consortium.unmask(total, consortium.unmasking_request(total), lost=later)
        assert at_once.refusals == signed.refusals == ()
        assert at_once.survivors == signed.survivors == consortium.names
        assert at_once.total.tobytes() == signed.total.tobytes()
        assert np.array_equal(at_once.total, plain_sum(consortium.run, vectors.values())), f"seed {seed}"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(FAST_RUNS, FAST_RUNS + SLOW_RUNS))
def test_the_sum_is_that_of_those_who_submitted_in_a_thousand_runs(seed: int) -> None:
    source = random.Random(f"size {seed}")  # noqa: S311 - repeatable
    play_run(seed, source.randint(FEWEST, MOST), rounds=source.randint(1, 3))


@pytest.mark.parametrize("adversary", list(Adversary))
@pytest.mark.parametrize("phase", [Phase.MASKED_INPUT, Phase.UNMASKING])
def test_one_fewer_than_the_threshold_never_yields_a_sum(adversary: Adversary, phase: Phase) -> None:
    consortium = Consortium(7, adversary=adversary)
    lost = consortium.names[consortium.run.threshold(7) - 1 :]
    late = lost if phase is Phase.MASKED_INPUT else ()
    vectors = {name: consortium.vector() for name in consortium.names}
    total = consortium.masked_sum(lost=late, vectors=vectors)
    masked = total.total.copy()
    with pytest.raises(ThresholdError):
        consortium.unmask(total, consortium.unmasking_request(total), lost=lost)
    assert np.array_equal(total.total, masked)
    plain = plain_sum(consortium.run, (vectors[name] for name in consortium.names if name not in late))
    assert not np.array_equal(total.total, plain)
