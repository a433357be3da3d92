import csv
import json
from pathlib import Path

import pytest

from common.config import Config, replace
from common.errors import RunError
from common.telemetry.events import RoundDone
from deploy.results.history import RunHistory
from deploy.results.outputs import COLUMNS, MetricsFile, RunOutputs, metrics_row, summary
from tests.support.example_run import HOSPITALS, example_of_three_classes, example_run

EXACT = replace(Config(), evaluation={"exact": True}, privacy={"mode": "none"})


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
    assert ",".join(COLUMNS) == (
        "round,accuracy,precision,recall,f1,auc,loss,epsilon,hospitals,seconds,upload_bytes,"
        "part,accuracy_low,accuracy_high,auc_low,auc_high,evaluation_epsilon"
    )
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
        assert "the server and the other hospitals included" in hospital["adversary"]


def test_the_summary_says_where_the_time_of_a_round_went() -> None:
    seconds = summary(RunHistory.of(example_run(4)))["seconds"]
    assert seconds["by_part"] == {"training": 8.8, "moving": 2.4, "waiting": 1.6}
    assert seconds["rounds"] == pytest.approx(sum(seconds["by_part"].values()))


def test_the_summary_stands_beside_the_metrics_from_the_first_event_on(tmp_path: Path) -> None:
    RunOutputs(tmp_path).add(example_run(2)[0])
    told = json.loads((tmp_path / "summary.json").read_text())
    assert told["state"] == "running"
    assert told["metrics"] is None


def test_a_run_without_masks_noise_or_real_data_says_so() -> None:
    config = replace(Config(), privacy={"mode": "none"}, aggregation={"mode": "plain"}, evaluation={"exact": True})
    told = summary(RunHistory.of(example_run(2, "phantom", config)))
    assert [word for word in ("phantom", "none", "plain") if any(word in caveat for caveat in told["caveats"])] == [
        "phantom",
        "none",
        "plain",
    ]
    assert told["privacy"]["delta"] is None
    assert told["privacy"]["adversary"] == "nobody"


@pytest.mark.long
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


def test_a_row_tells_whose_records_it_is_of_how_sure_it_is_and_what_it_cost(tmp_path: Path) -> None:
    _run(tmp_path, rounds=12)
    rows = _rows(tmp_path / "metrics.csv")
    assert [row["round"] for row in rows if row["part"] == "none"] == ["3", "9"]
    unmeasured, last = rows[2], rows[-1]
    for column in ("accuracy", "auc", "loss", "accuracy_low", "auc_high", "evaluation_epsilon"):
        assert unmeasured[column] == ""
    assert unmeasured["epsilon"] != ""
    assert last["part"] == "validation"
    assert float(last["accuracy_low"]) < float(last["accuracy"]) < float(last["accuracy_high"])
    assert float(last["evaluation_epsilon"]) == pytest.approx(1.0, abs=1e-3)


def test_exact_counts_have_no_epsilon_that_bounds_them() -> None:
    done = next(event for event in example_run(1, config=EXACT) if isinstance(event, RoundDone))
    row = dict(zip(COLUMNS, metrics_row(done), strict=True))
    assert (row["part"], row["evaluation_epsilon"], row["accuracy_low"]) == ("test", "inf", "")


def test_the_summary_has_the_final_test_with_intervals_noise_and_claim() -> None:
    told = summary(RunHistory.of(example_run(10)))
    assert told["not_measured"] is None
    assert told["test"]["records"] == 143
    assert told["test"]["exact"] is False
    low, high = told["test"]["intervals"]["accuracy"]
    assert low < told["metrics"]["accuracy"] < high
    assert told["test"]["noise_sd"]["accuracy"] > 0
    assert told["test"]["epsilon"] == pytest.approx(1.0, abs=1e-3)
    assert "zero-out" in told["test"]["claim"]
    assert "zero-out" in told["test"]["relation"]
    assert [point["round"] for point in told["validation"]] == list(range(1, 11))
    assert told["validation"][0]["evaluation_epsilon"] < told["validation"][-1]["evaluation_epsilon"]
    assert told["evaluation_plan"]


def test_the_summary_of_exact_counts_says_that_they_are() -> None:
    told = summary(RunHistory.of(example_run(3, config=EXACT)))
    assert told["test"]["exact"] is True
    assert told["test"]["epsilon"] is None
    assert told["test"]["claim"].startswith("exact counts: not differentially private")
    assert told["test"]["intervals"]["auc"]
    assert any("exact counts: not differentially private" in caveat for caveat in told["caveats"])
    assert told["validation"] == []


def test_a_run_without_a_final_test_says_why_and_has_no_figure() -> None:
    told = summary(RunHistory.of(example_run(4, tested=False)))
    assert told["metrics"] is None
    assert told["test"] is None
    assert told["not_measured"] == "no round that asks the test parts gave a result"
    json.dumps(told, allow_nan=False)


def test_the_summary_of_three_classes_without_auc_is_strict_json() -> None:
    told = summary(RunHistory.of(example_of_three_classes(3, has_auc=False)))
    assert told["metrics"]["auc"] is None
    assert told["test"]["threshold"] is None
    assert len(told["confusion"]) == 3
    json.dumps(told, allow_nan=False)


def test_a_server_that_holds_the_authoritys_key_is_admitted_in_the_summary() -> None:
    told = summary(RunHistory.of(example_run(2, authority_on_server=True)))
    assert any("The server holds the authority's key" in caveat for caveat in told["caveats"])
