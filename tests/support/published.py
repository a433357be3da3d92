"""Values that independent projects publish, each with its source in the file, and the events they are about."""

import json
import math
from pathlib import Path
from typing import Any

import dp_accounting
import pytest

from common.privacy.accounting import MechanismEvent, MechanismKind

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "dp_reference_values.json").read_text(encoding="utf-8")
)


def published(source: str, **criteria: object) -> list[Any]:
    """Return a source's cases in which every criterion holds (None: the key is absent), as test parameters."""
    cases = [
        pytest.param(case, id=f"{source}-{number}")
        for number, case in enumerate(VECTORS[source]["cases"])
        if all(case.get(key) == value for key, value in criteria.items())
    ]
    if not cases:
        raise LookupError(f"no published value of {source} with {criteria}")
    return cases


def gaussian(noise_multiplier: float, sample_rate: float, steps: int) -> MechanismEvent:
    """Return an event of DP-SGD."""
    return MechanismEvent(MechanismKind.POISSON_SUBSAMPLED_GAUSSIAN, noise_multiplier, sample_rate, steps)


def as_dp_event(event: MechanismEvent) -> dp_accounting.DpEvent:
    """Return the same mechanism for the independent accountant."""
    noise = dp_accounting.GaussianDpEvent(event.noise_multiplier)
    return dp_accounting.SelfComposedDpEvent(dp_accounting.PoissonSampledDpEvent(event.sample_rate, noise), event.steps)


def steps_of(case: dict[str, Any]) -> tuple[float, int]:
    """Read sample rate and steps of a case of TensorFlow Privacy, which counts a last part of an epoch as a step."""
    if "n" in case:
        return case["batch_size"] / case["n"], math.ceil(case["epochs"] * case["n"] / case["batch_size"])
    rate = case["poisson_q"] or 1.0
    return rate, math.ceil(case["num_epochs"] / rate)
