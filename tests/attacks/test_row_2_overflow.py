"""A server finds out whether a chosen image is a hospital's by a model that overflows on that image alone.

At 30890c7 (mode local at ε = .5, records of 70): 4 of 5 victims among training records were found with their
hospital in one round each (the fifth was in no batch), 5 of 5 among test records, without a false alarm: the refusal
"training diverged" came from the hospital that had the image.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.data.hospital_data import HospitalData, HospitalRecords
from common.config import HospitalConfig
from common.run.round_terms import Purpose
from tests.support.twins import Led, Twins, described, hospital_data, loud_images, overflowing_model, quick_accounting

POLICY = HospitalConfig(
    delta=1e-3,
    stated_training_units=24,
    stated_validation_units=6,
    stated_test_units=6,
    allow_no_privacy=True,
    allow_exact_evaluation=True,
)

RUNS: dict[str, dict[str, dict[str, Any]]] = {
    "local": {},
    "distributed": {"privacy": {"mode": "distributed"}},
    "none": {"privacy": {"mode": "none"}},
    "none, exact": {"privacy": {"mode": "none"}, "evaluation": {"exact": True}},
}


def with_image(data: HospitalData, part: str, image: Any) -> HospitalData:  # noqa: ANN401 - an array
    records: HospitalRecords = getattr(data, part)
    images = records.images.copy()
    images[2] = image
    parts = {name: getattr(data, name) for name in ("train", "validation", "test")}
    parts[part] = HospitalRecords(images, records.labels, records.patients)
    return HospitalData(**parts, fingerprint=bytes(31) + bytes([len(part)]))


@pytest.mark.parametrize("part", ["train", "validation", "test"])
@pytest.mark.parametrize("run", RUNS)
def test_a_model_that_overflows_on_one_image_finds_none_of_five_victims(run: str, part: str, tmp_path: Path) -> None:
    found = 0
    with quick_accounting():
        for victim, image in enumerate(loud_images()):
            plain = hospital_data(24)
            twins = Twins(tmp_path / str(victim), victim, POLICY, (plain, with_image(plain, part, image)))
            server = Led(twins, described(victim + 1, **RUNS[run]))
            # Every byte that leaves is the same with the image and without it: ``Twins`` raises where it is not. Nor is
            # there a refusal, which is what gave the image away.
            model = overflowing_model(victim)
            refused = [server.lead(Purpose.TRAIN, model)]
            if "exact" not in run:
                refused += [server.lead(Purpose.EVALUATE, model, release) for release in (1, 2, 3)]
            twins.close()
            found += any(each is not None for each in refused)
            assert server.finished == len(refused)
    assert found == 0


def test_the_models_do_overflow_on_their_images() -> None:
    assert len(np.unique(loud_images().reshape(5, -1), axis=0)) == 5
