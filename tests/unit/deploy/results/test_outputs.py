import csv
import json
from pathlib import Path

import pytest

from common.config import Config, replace
from common.errors import RunError
from common.events import RoundDone
from deploy.events import RunHistory
from deploy.results.outputs import COLUMNS, MetricsFile, RunOutputs, metrics_row, summary
from tests.example_run import HOSPITALS, example_run


def _rounds(count: int) -> list[RoundDone]:
    return [event for event in example_run(count) if isinstance(event, RoundDone)]


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _run(folder: Path, rounds: int) -> RunOutputs:
    outputs = RunOutputs(folder)
    for event in example_run(rounds):
        outputs.add(event)
    return outputs


def test_metrics_csv_has_the_promised_columns_and_a_row_for_each_step(tmp_path: Path) -> None:
    _run(tmp_path, rounds=6)
    rows = _rows(tmp_path / "metrics.csv")
    assert tuple(rows[0]) == COLUMNS
    assert ",".join(COLUMNS) == ("round,accuracy,precision,recall,f1,auc,loss,epsilon,hospitals,seconds,upload_bytes")
    assert [row["round"] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    assert float(rows[-1]["epsilon"]) == pytest.approx(_rounds(6)[-1].epsilon, abs=1e-6)
    assert rows[2]["hospitals"] == "3"


def test_a_row_is_on_the_disk_before_the_next_round_begins(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.csv")
    for count, done in enumerate(_rounds(3), start=1):
        metrics.add(done)
        assert len(_rows(tmp_path / "metrics.csv")) == count


def test_a_step_measured_again_after_a_resumption_has_one_row(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.csv")
    first, second = _rounds(2)
    for done in (first, second, first.model_copy(update={"accuracy": 0.25})):
        metrics.add(done)
    assert [row["accuracy"] for row in _rows(tmp_path / "metrics.csv")] == ["0.250000", f"{second.accuracy:.6f}"]


def test_an_epsilon_that_nothing_bounds_is_inf_and_an_undefined_metric_is_empty() -> None:
    done = _rounds(1)[0].model_copy(update={"epsilon": float("nan"), "auc": float("nan")})
    row = dict(zip(COLUMNS, metrics_row(done), strict=True))
    assert row["epsilon"] == "inf"
    assert row["auc"] == ""


def test_the_summary_gives_every_epsilon_with_delta_unit_adversary_and_accountant() -> None:
    told = summary(RunHistory.of(example_run(6)))["privacy"]["hospitals"]
    assert sorted(told) == sorted(HOSPITALS)
    for hospital in told.values():
        assert set(hospital) == {"epsilon", "budget", "delta", "unit", "adversary", "accountant"}
        assert hospital["delta"] == 1e-4
        assert hospital["unit"] == "record"
        assert hospital["accountant"] == "rdp"
        assert "server included" in hospital["adversary"]


def test_the_summary_says_where_the_time_of_a_round_went() -> None:
    seconds = summary(RunHistory.of(example_run(4)))["seconds"]
    assert seconds["by_part"] == {"training": 8.0, "masking": 0.8, "moving": 2.4, "waiting": 1.6}
    assert seconds["rounds"] == pytest.approx(sum(seconds["by_part"].values()))


def test_the_summary_stands_beside_the_metrics_from_the_first_event_on(tmp_path: Path) -> None:
    RunOutputs(tmp_path).add(example_run(2)[0])
    told = json.loads((tmp_path / "summary.json").read_text())
    assert told["state"] == "running"
    assert told["metrics"] is None


def test_a_run_without_masks_noise_or_real_data_says_so() -> None:
    config = replace(Config(), privacy={"mode": "none"}, aggregation={"mode": "plain"})
    told = summary(RunHistory.of(example_run(2, "phantom", config)))
    assert [word for word in ("phantom", "none", "plain") if any(word in caveat for caveat in told["caveats"])] == [
        "phantom",
        "none",
        "plain",
    ]
    assert told["privacy"]["delta"] is None
    assert told["privacy"]["adversary"] == "nobody"


def test_finish_names_files_that_exist(tmp_path: Path) -> None:
    files = _run(tmp_path, rounds=2).finish(None, None)
    assert all(file.stat().st_size > 0 for file in files)
    assert {file.name for file in files} >= {
        "metrics.csv",
        "summary.json",
        "learning.png",
        "privacy.png",
        "confusion.png",
    }


def test_a_run_that_ends_before_its_first_round_still_leaves_a_summary(tmp_path: Path) -> None:
    outputs = RunOutputs(tmp_path)
    outputs.add(example_run(2)[0])
    assert [file.name for file in outputs.finish(None, None)] == ["metrics.csv", "summary.json"]


def test_a_folder_that_cannot_be_written_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(RunError, match="taken must be a folder that can be written"):
        RunOutputs(tmp_path / "taken")


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.csv")
    (tmp_path / "metrics.csv").unlink()
    (tmp_path / "metrics.csv").symlink_to("/dev/full")
    with pytest.raises(RunError, match=r"metrics\.csv must be writable: No space left on device"):
        metrics.add(_rounds(1)[0])
