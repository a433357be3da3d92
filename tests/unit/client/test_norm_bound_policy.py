"""A hospital's own limit on the bound that a run clips changes to."""

from pathlib import Path

import pytest

from deploy.experiment.consortium import InProcessConsortium
from tests.support.proving_run import ProvingRun, proving
from tests.support.small_consortium import Dealt, willing


def refused(made: ProvingRun) -> str:
    reason = made.run().train()
    return reason if "policy" in reason else ""


@pytest.mark.parametrize(("bound", "most", "is_taken"), [(2.0, 0.0, True), (2.0, 2.0, True), (2.0, 1.5, False)])
def test_a_run_is_judged_by_its_bound(
    dealt: Dealt, tmp_path: Path, bound: float, most: float, *, is_taken: bool
) -> None:
    made = proving(dealt, tmp_path, aggregation={"norm_bound": bound}, experiment={"rounds": 1})
    assert bool(refused(limited(made, most))) != is_taken


def test_a_hospital_with_a_limit_takes_no_run_without_a_bound(dealt: Dealt, tmp_path: Path) -> None:
    assert refused(limited(proving(dealt, tmp_path, experiment={"rounds": 1}), 2.0))


def limited(made: ProvingRun, most: float) -> ProvingRun:
    """Return the same consortium, whose hospitals take bounds up to ``most`` alone."""
    policies = {f"hospital_{number}": willing(most_norm_bound=most) for number in range(1, 5)}
    made.consortium = InProcessConsortium(made.config, made.dealt.sites(made.folder, **policies))
    return made
