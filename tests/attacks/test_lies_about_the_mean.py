"""A server that asks for the mean of features twice, late, of another model or of too few gets nothing for free."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.ledger.ledger import LEDGER_FOLDER, export
from common.config import HospitalConfig
from common.models.flat import flat_parameters
from common.models.registry import build
from common.privacy.mechanism import mechanism_of
from common.run.flat_model import hash_model
from common.run.round_terms import Purpose, RoundTerms
from common.run.terms import layout_of
from common.secagg.binding import request_hash
from tests.support.twins import CLASSES, SIDE, Array, Led, Twins, described, hospital_data, quick_accounting

POLICY = HospitalConfig(
    delta=1e-3,
    epsilon_budget=1000.0,
    stated_training_units=20,
    stated_validation_units=6,
    stated_test_units=6,
    allow_no_privacy=True,
)
MODES = ("local", "distributed")


def model(centre: float = 0.0) -> Array:
    flat: Array = flat_parameters(build("scattering_linear", len(CLASSES), 1, SIDE, 1))
    flat[-3472:] = centre
    return flat


class Asking(Led):
    """A server that is honest but for what a test changes in a round's terms."""

    changed: dict[str, Any]

    def terms(self, model: Array, cohort: int, purpose: Purpose | None) -> RoundTerms:
        """Return honest terms, with the changes."""
        honest = super().terms(model, cohort, purpose)
        fields = {name: getattr(honest, name) for name in honest.__struct_fields__}
        return RoundTerms(**{**fields, **self.changed})

    def booked(self) -> list[dict[str, Any]]:
        """Return the events on the first twin's account of training."""
        folder = self.twins.pair[0].state / LEDGER_FOLDER
        if not folder.exists():
            return []
        spent = [entry for entry in export(folder)["entries"] if entry["kind"] == "spent"]
        return [entry["booking"]["event"] for entry in spent if entry["booking"]["account"] == "training"]


def server(folder: Path, policy: HospitalConfig = POLICY, **changes: dict[str, Any]) -> Asking:
    """Return a server of a run with a mean, whose hospital has a twin that lacks one record."""
    sections: dict[str, dict[str, Any]] = {
        "model": {"name": "scattering_linear"},
        "training": {"copies": 2, "warp": "chest"},
        **changes,
    }
    sections["privacy"] = {"mean_share": 0.1, **changes.get("privacy", {})}
    twins = Twins(folder, 1, policy, (hospital_data(24), hospital_data(25)))
    made = Asking(twins, described(1, **sections))
    made.changed = {}
    return made


def mean_event(asking: Asking) -> float:
    """Return the noise multiplier of the mean, by which its lines are told from those of steps."""
    assert asking.description is not None
    plan = mechanism_of(asking.description).mean_plan(asking.description, layout_of(asking.description).parameters)
    assert plan is not None
    assert plan.event is not None
    return plan.event.noise_multiplier


@pytest.mark.parametrize("mode", MODES)
def test_each_answer_is_booked_and_there_are_no_more_than_the_run_allows(mode: str, tmp_path: Path) -> None:
    with quick_accounting():
        asking = server(tmp_path, privacy={"mode": mode})
        assert asking.lead(Purpose.MEAN, model()) is None
        first = asking.bare()
        # The same question about another model is another release: the answer does not depend on the model.
        assert asking.lead(Purpose.MEAN, model(0.25)) is None
        assert (first != asking.bare()).any()  # Fresh noise.
        assert [event["noise_multiplier"] for event in asking.booked()] == [mean_event(asking)] * 2
        refused = asking.lead(Purpose.MEAN, model())
        assert refused is not None
        assert "was asked for 2 times, the run allows 2" in refused.reason
        assert len(asking.booked()) == 2
        asking.twins.close()


@pytest.mark.parametrize("mode", MODES)
def test_a_mean_after_training_is_booked_like_one_before(mode: str, tmp_path: Path) -> None:
    with quick_accounting():
        asking = server(tmp_path, privacy={"mode": mode})
        assert asking.lead(Purpose.TRAIN, model()) is None
        assert asking.lead(Purpose.MEAN, model()) is None
        first, second = (event["noise_multiplier"] for event in asking.booked())
        assert first != second == mean_event(asking)
        asking.twins.close()


@pytest.mark.parametrize("mode", MODES)
def test_the_twins_budget_ends_what_a_server_may_ask(mode: str, tmp_path: Path) -> None:
    with quick_accounting():
        poor = POLICY.model_copy(update={"epsilon_budget": 1.5})
        # The run as planned fits the budget; what is asked again and again does not.
        asking = server(tmp_path, poor, privacy={"mode": mode, "target_epsilon": 0.5}, evaluation={"repeats": 100})
        answered = 0
        while (refused := asking.lead(Purpose.MEAN, model())) is None:
            answered += 1
        assert refused.code == "budget_exceeded"
        assert 0 < answered == len(asking.booked())
        asking.twins.close()


@pytest.mark.parametrize(
    ("mode", "changed", "words"),
    [
        ("distributed", {"fewest_survivors": 0}, "must be over at least 2 hospitals"),
        ("local", {"fewest_survivors": 3}, "must be over at least 0 hospitals"),
    ],
)
def test_terms_that_allow_too_little_noise_are_refused_before_anything_is_booked(
    mode: str, changed: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with quick_accounting():
        asking = server(tmp_path, privacy={"mode": mode})
        asking.changed = changed
        refused = asking.lead(Purpose.MEAN, model())
        assert refused is not None
        assert words in refused.reason
        assert asking.booked() == []
        asking.twins.close()


def test_a_mean_beside_a_question_or_of_a_run_without_one_is_refused(tmp_path: Path) -> None:
    with quick_accounting():
        asking = server(tmp_path / "question")
        refused = asking.lead(Purpose.MEAN, model(), release=0)
        assert refused is not None
        assert "without a question" in refused.reason
        without = server(tmp_path / "without", privacy={"mean_share": 0.0})
        told = without.lead(Purpose.MEAN, model())
        assert told is not None
        assert "must not ask for the mean" in told.reason
        for each in (asking, without):
            assert each.booked() == []
            each.twins.close()


def test_whoever_is_asked_for_the_mean_shares_no_mask_with_whoever_trains() -> None:
    """The purpose is in the terms, whose hash is in every mask: two purposes in one round leave the sum masked."""
    flat = model()
    hashes = {
        request_hash(RoundTerms(purpose=purpose, model_hash=hash_model(flat), fewest_survivors=2).encode())
        for purpose in Purpose
    }
    assert len(hashes) == len(Purpose)


def test_what_is_told_is_zero_but_for_the_centre(tmp_path: Path) -> None:
    with quick_accounting():
        asking = server(tmp_path, privacy={"mode": "distributed"})
        assert asking.lead(Purpose.MEAN, model()) is None
        assert asking.description is not None
        change = layout_of(asking.description).decode(asking.bare(), 1).total_of(slice(None))
        assert not change[:-3472].any()
        assert np.count_nonzero(change[-3472:]) > 3000
        asking.twins.close()
