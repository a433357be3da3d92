from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.metrics import HospitalMetrics, one_significant_digit
from client.status import HospitalStatus
from common.errors import RunError

STATUS = HospitalStatus(
    hospital="st-mary",
    time=1_750_000_000.0,
    run_id="0" * 32,
    round=7,
    epsilon_spent=3.25,
    epsilon_budget=10.0,
    delta=1e-4,
    unit="patient",
    adversary="everyone outside the hospital, the server included",
    accountant="prv",
    training_records_per_second=1234.5,
    refusals={"budget": 2},
)


def _samples(path: Path) -> dict[tuple[str, tuple[str, ...]], float]:
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in HospitalMetrics(path).collect()
        for sample in family.samples
    }


def test_a_hospital_exports_its_epsilon_budget_and_speed_under_its_own_name(tmp_path: Path) -> None:
    STATUS.write(tmp_path / "status.json")
    samples = _samples(tmp_path / "status.json")
    assert samples["confide_hospital_epsilon_spent", ("st-mary",)] == 3.25
    assert samples["confide_hospital_epsilon_budget", ("st-mary",)] == 10.0
    assert samples["confide_hospital_training_records_per_second", ("st-mary",)] == 1000.0
    assert samples["confide_hospital_own_refusals_total", ("st-mary", "budget")] == 2
    privacy = ("st-mary", "0.0001", "patient", "everyone outside the hospital, the server included", "prv")
    assert samples["confide_hospital_privacy_info", privacy] == 1


def test_a_hospital_that_has_not_begun_tells_its_version_alone(tmp_path: Path) -> None:
    assert {name for name, _ in _samples(tmp_path / "status.json")} == {
        "confide_build_info", "confide_disk_free_ratio",
    }  # fmt: skip


def test_each_scrape_reads_the_latest_status(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    metrics = HospitalMetrics(path)
    for spent in (1.0, 2.0):
        STATUS.model_copy(update={"epsilon_spent": spent}).write(path)
        assert spent in [sample.value for family in metrics.collect() for sample in family.samples]


def test_the_status_is_for_the_hospitals_own_user_alone(tmp_path: Path) -> None:
    STATUS.write(tmp_path / "status.json")
    assert (tmp_path / "status.json").stat().st_mode & 0o777 == 0o600


def test_a_status_that_is_not_one_fails_the_scrape(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text('{"hospital": "st-mary"}')
    with pytest.raises(RunError, match="must be a hospital's status"):
        HospitalMetrics(tmp_path / "status.json").collect()


def test_a_status_cannot_hold_a_count_of_records() -> None:
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        HospitalStatus.model_validate({**STATUS.model_dump(), "records": 4708})


@given(st.floats(1e-3, 1e6))
def test_a_rate_keeps_one_digit_and_its_size(rate: float) -> None:
    told = one_significant_digit(rate)
    assert len(Decimal(str(told)).normalize().as_tuple().digits) == 1
    assert abs(told - rate) <= rate / 2


def test_what_measuring_has_cost_is_exported_by_part_and_notes_by_their_number_alone(tmp_path: Path) -> None:
    note = "hospital.stated_test_units states 64 records, 61 are there"
    status = STATUS.model_copy(
        update={
            "evaluation_epsilon_spent": {"validation": 0.75, "test": 1.0},
            "evaluation_epsilon_budget": 4.0,
            "notes": (note,),
        }
    )
    status.write(tmp_path / "status.json")
    samples = _samples(tmp_path / "status.json")
    assert samples["confide_hospital_evaluation_epsilon_spent", ("st-mary", "validation")] == 0.75
    assert samples["confide_hospital_evaluation_epsilon_spent", ("st-mary", "test")] == 1.0
    assert samples["confide_hospital_evaluation_epsilon_budget", ("st-mary",)] == 4.0
    assert samples["confide_hospital_notes", ("st-mary",)] == 1
    assert not any("61 are" in label for _, labels in samples for label in labels)
