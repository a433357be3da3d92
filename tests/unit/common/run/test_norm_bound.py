"""The bound on a proved sum: no honest sum passes it, and a cheat far beyond its noise always does."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from common.config import RunDescription, replace
from common.errors import ConfigError
from common.privacy.change_norm import clipped, norm
from common.privacy.mechanism import NoisySteps, mechanism_of
from common.proved_sums.errors import SumNormError
from common.run.next_model import SummedRound, check_norm
from common.run.round_terms import Purpose
from common.run.terms import describe, layout_of
from common.run.vector import Tail, VectorLayout
from common.secagg.errors import SERVER, Place
from common.secagg.phases import Phase
from tests.support.small_consortium import CONFIG

PLACE = Place(SERVER, 1, Phase.UNMASKING)
PARAMETERS = 26_000
STATED = 300


def described(hospitals: int, bound: float = 2.0, mean_share: float = 0.0) -> RunDescription:
    config = replace(
        CONFIG,
        aggregation={"proved_sums": True, "norm_bound": bound},
        experiment={"num_clients": hospitals},
        evaluation={"exact": True},
        privacy={"mean_share": mean_share},
        model={"name": "scattering_linear"} if mean_share else {},
    )
    roster = {f"hospital-{number}": "its certificate" for number in range(1, hospitals + 1)}
    return describe(config, "c0" * 16, ("normal", "pneumonia"), 1, roster, PARAMETERS)


def plan_of(run: RunDescription) -> NoisySteps:
    plan = mechanism_of(run).plan(run, PARAMETERS)
    assert isinstance(plan, NoisySteps)
    return plan


def nothing_measured(layout: VectorLayout) -> Tail:
    assert not isinstance(layout.evaluation, int)
    return Tail(STATED, 0, 0, np.zeros(layout.evaluation.bits().shape, np.int64))


def sent(
    run: RunDescription, layout: VectorLayout, weighted: npt.NDArray[np.float32], rng: np.random.Generator
) -> npt.NDArray[np.signedinteger]:
    """Return what a hospital commits to whose change, times its weight, is this."""
    change = weighted / np.float32(STATED)
    vector = plan_of(run).encode(layout, change, nothing_measured(layout), rng.bytes)
    return layout.proved_part(vector).view(layout.signed)


def check(
    run: RunDescription,
    layout: VectorLayout,
    vectors: list[npt.NDArray[np.signedinteger]],
    purpose: Purpose = Purpose.TRAIN,
) -> None:
    total = np.sum(vectors, axis=0, dtype=layout.signed)
    round_ = SummedRound(purpose, len(vectors), len(vectors))
    check_norm(run, layout, round_, total[: layout.proof.entries], PLACE)


def noise(run: RunDescription, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return what noise alone makes of w times a change."""
    longest = plan_of(run).longest
    assert longest is not None
    deviation = longest / run.aggregation.norm_bound / np.sqrt(PARAMETERS)
    return rng.normal(0.0, deviation, PARAMETERS).astype(np.float32)


@pytest.mark.parametrize("hospitals", [3, 4, 8])
def test_honest_changes_all_in_one_direction_and_far_too_long_pass_when_clipped(hospitals: int) -> None:
    run, rng = described(hospitals), np.random.default_rng(hospitals)
    layout = layout_of(run)
    worst = 1000 * noise(run, rng)
    longest = plan_of(run).longest
    assert longest is not None
    unclipped = layout.encode(worst / np.float32(STATED), nothing_measured(layout), rng.bytes)
    assert norm(layout.proved_part(unclipped).view(layout.signed)[:PARAMETERS]) > 1.5 * longest / layout.step
    check(run, layout, [sent(run, layout, worst, rng) for _ in range(hospitals)])


def cheat(
    run: RunDescription, layout: VectorLayout, factor: float, rng: np.random.Generator
) -> npt.NDArray[np.signedinteger]:
    """Return what a hospital commits to that scales its change after honest code has clipped it."""
    return scaled(run, layout, sent(run, layout, noise(run, rng), rng), factor)


def scaled(
    run: RunDescription, layout: VectorLayout, honest: npt.NDArray[np.signedinteger], factor: float
) -> npt.NDArray[np.signedinteger]:
    vector = honest.astype(np.int64)
    bound = 2**15 // len(run.roster) if layout.modulus_bits == 16 else 2**31 // len(run.roster)
    vector[:PARAMETERS] = np.clip(vector[:PARAMETERS] * factor, -bound + 1, bound - 1)
    return vector.astype(layout.signed)


@pytest.mark.parametrize(("hospitals", "factor"), [(4, 20), (4, -20), (4, 1000), (8, 40), (8, -40)])
def test_a_change_that_is_scaled_is_seen_in_the_sum(hospitals: int, factor: float) -> None:
    run, rng = described(hospitals), np.random.default_rng(hospitals)
    layout = layout_of(run)
    for _ in range(20):
        others = [sent(run, layout, noise(run, rng), rng) for _ in range(hospitals - 1)]
        check(run, layout, [*others, sent(run, layout, noise(run, rng), rng)])
        with pytest.raises(SumNormError, match="long at most"):
            check(run, layout, [*others, cheat(run, layout, factor, rng)])


# The mean of features


MEAN_SHARE = 0.2


def part_of_mean(
    run: RunDescription, layout: VectorLayout, rng: np.random.Generator, length: float = 1.0
) -> npt.NDArray[np.signedinteger]:
    """Return what a hospital commits to whose features all point one way, which makes their mean as long as may be.

    Args:
        run: with a mean of features.
        layout: of its vectors.
        rng: of noise and rounding.
        length: of the mean without its noise; 1 at most where it is honest.
    """
    plan = mechanism_of(run).mean_plan(run, PARAMETERS)
    assert plan is not None
    assert isinstance(plan.release, NoisySteps)
    width = PARAMETERS // 2
    mean = np.zeros(PARAMETERS, np.float32)
    mean[-width:] = length / np.sqrt(width) + rng.normal(0.0, plan.release.noise_multiplier / STATED, width)
    vector = plan.encode(layout, mean, nothing_measured(layout), rng.bytes)
    return layout.proved_part(vector).view(layout.signed)


@pytest.mark.parametrize("hospitals", [3, 4, 8])
def test_means_of_features_that_all_point_one_way_pass(hospitals: int) -> None:
    run, rng = described(hospitals, mean_share=MEAN_SHARE), np.random.default_rng(hospitals)
    layout = layout_of(run)
    for length in (1.0, 1000.0):  # The latter is clipped, as honest code does with anything.
        check(run, layout, [part_of_mean(run, layout, rng, length) for _ in range(hospitals)], Purpose.MEAN)


@pytest.mark.parametrize(("hospitals", "factor"), [(4, 20), (4, -20), (4, 1000), (8, 40), (8, -40)])
def test_a_mean_of_features_that_is_scaled_is_seen_in_the_sum(hospitals: int, factor: float) -> None:
    run, rng = described(hospitals, mean_share=MEAN_SHARE), np.random.default_rng(hospitals)
    layout = layout_of(run)
    for _ in range(20):
        *others, honest = (part_of_mean(run, layout, rng) for _ in range(hospitals))
        with pytest.raises(SumNormError, match="long at most"):
            check(run, layout, [*others, scaled(run, layout, honest, factor)], Purpose.MEAN)


def test_a_run_without_a_bound_and_a_round_that_evaluates_alone_are_not_judged() -> None:
    run, unbounded = described(3), described(3, 0.0)
    layout = layout_of(run)
    total = np.full(layout.proof.entries, 30_000, np.int16)
    check_norm(run, layout, SummedRound(Purpose.EVALUATE, 3, 3), total, PLACE)
    check_norm(unbounded, layout, SummedRound(Purpose.TRAIN, 3, 3), total, PLACE)
    check_norm(unbounded, layout, SummedRound(Purpose.MEAN, 3, 3), total, PLACE)
    with pytest.raises(SumNormError):
        check_norm(run, layout, SummedRound(Purpose.TRAIN, 3, 3), total, PLACE)


def test_the_clip_costs_an_honest_hospital_its_length_alone() -> None:
    run = described(4)
    longest = plan_of(run).longest
    assert longest is not None
    change = np.linspace(-1.0, 1.0, 100, dtype=np.float32)
    assert norm(clipped(change, longest)) <= longest


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"aggregation": {"norm_bound": 2.0}}, "aggregation.norm_bound must be 0 without aggregation.proved_sums"),
        (
            {"aggregation": {"proved_sums": True, "norm_bound": 2.0}, "privacy": {"mode": "distributed"}},
            "aggregation.norm_bound must be 0 in privacy.mode distributed",
        ),
    ],
)
def test_a_bound_without_what_it_needs_is_refused(sections: dict[str, dict[str, object]], said: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=said):
        replace(CONFIG, **sections)


def test_the_shipped_configuration_has_no_bound() -> None:
    assert "norm_bound: 0.0" in (Path(__file__).parents[4] / "config.yaml").read_text()
