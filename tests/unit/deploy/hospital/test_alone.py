"""A hospital finds out at home whether joining paid, and nothing of it is written anywhere."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from client.alone import OwnRecords
from common.config import Config, RunDescription, replace
from common.errors import AuditError, DataError, IdentityError, RunError
from common.evaluation.paired import FIGURES, Difference
from deploy.hospital.alone import Comparison, Rival, remarks, verdict
from deploy.hospital.report import main
from tests.support.kept_run import KeptRun, kept_run

LOCAL = replace(
    Config(),
    model={"name": "scattering_linear"},
    training={"sample_rate": 0.5, "learning_rate": 0.5},
    privacy={"accountant": "rdp", "delta": 1e-3, "max_grad_norm": 2.8},
)
DISTRIBUTED = replace(
    LOCAL,
    training={"sample_rate": 1.0, "learning_rate": 2.0, "copies": 2, "warp": "chest"},
    privacy={"mode": "distributed", "mean_share": 0.05},
)
WITHOUT = replace(
    LOCAL,
    training={"batch_size": 16, "learning_rate": 0.1, "momentum": 0.9},
    privacy={"mode": "none"},
    evaluation={"exact": True, "score_bins": 64},
)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> KeptRun:
    return kept_run(tmp_path_factory.mktemp("local"), LOCAL)


def alone(hospital: KeptRun, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["report", "--state", str(hospital.state), "--alone", *words]) == 0
    return capsys.readouterr().out


def in_one_line(printed: str) -> str:
    return " ".join(printed.split())


def test_a_private_run_has_two_rivals_and_a_verdict(local: KeptRun, capsys: pytest.CaptureFixture[str]) -> None:
    printed = alone(local, capsys)
    rows = [line.split("│")[1].strip() for line in printed.splitlines() if line.startswith("│")]
    beside = ["together − alone", "95 % from", "to"]
    assert rows == ["together", "alone, no noise", *beside, "alone, ε = 8", *beside]
    assert max(map(len, printed.splitlines())) <= 80
    told = in_one_line(printed)
    assert "Joining did not pay here" in told  # The kept model was never trained.
    assert "publish by itself at the run's ε = 8" in told
    assert "a lying server could have chosen the final model" in told
    assert "All of this stays in this hospital" in told
    assert "are not kept" in told
    assert "images have changed" not in told


def test_no_file_of_the_hospital_changes(local: KeptRun, capsys: pytest.CaptureFixture[str]) -> None:
    before = local.files()
    alone(local, capsys)
    assert local.files() == before
    assert not [name for name in before if "ledger" in name]


@pytest.mark.parametrize("config", [DISTRIBUTED, WITHOUT], ids=["distributed", "none"])
def test_the_recipe_of_each_mode_is_followed(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hospital = kept_run(tmp_path, config)
    before = hospital.files()
    told = in_one_line(alone(hospital, capsys))
    assert ("alone, ε = 8" in told) == (config is DISTRIBUTED)
    assert ("2 copies of each image, centre and clipping" in told) == (config is DISTRIBUTED)
    assert hospital.files() == before


def test_without_noise_the_answer_is_the_same_each_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hospital = kept_run(tmp_path, WITHOUT)
    assert alone(hospital, capsys) == alone(hospital, capsys)


def test_what_a_hospital_learns_alone_is_learnt(local: KeptRun, capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = [line for line in alone(local, capsys).splitlines() if line.startswith("│ alone, no noise")]
    assert float(row.split("│")[2]) > 0.65


def test_nothing_is_trained_unless_it_is_asked_for(local: KeptRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        pytest.fail("it was trained")

    monkeypatch.setattr(OwnRecords, "of", refuse)
    monkeypatch.setattr(OwnRecords, "train_alone", refuse)
    with pytest.raises(RunError, match="no results yet"):
        main(["report", "--state", str(local.state)])


def test_the_report_of_rounds_does_without_pytorch() -> None:
    code = "import sys, deploy.hospital.report; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_images_that_changed_since_are_said_to_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hospital = kept_run(tmp_path, WITHOUT)
    manifest = hospital.data / "manifest.csv"
    lines = manifest.read_text(encoding="utf-8").splitlines(keepends=True)
    manifest.write_text("".join(lines[:-1]), encoding="utf-8")
    before = hospital.files()
    assert "images have changed since the run began" in in_one_line(alone(hospital, capsys))
    assert hospital.files() == before


def test_too_few_test_records_of_a_class_are_refused(tmp_path: Path) -> None:
    hospital = kept_run(tmp_path, WITHOUT, records=200)
    manifest = hospital.data / "manifest.csv"
    lines = manifest.read_text(encoding="utf-8").splitlines(keepends=True)
    sick = [line for line in lines if "test" in line and "pneumonia" in line]
    manifest.write_text("".join(line for line in lines if line not in sick[3:]), encoding="utf-8")
    with pytest.raises(DataError, match="at least 10 test records of each class, this hospital has 3 of pneumonia"):
        main(["report", "--state", str(hospital.state), "--alone"])


def test_images_that_are_gone_are_refused_with_where_to_look(tmp_path: Path) -> None:
    hospital = kept_run(tmp_path, WITHOUT, records=200)
    hospital.data.rename(hospital.data.with_name("elsewhere"))
    with pytest.raises(DataError, match="check-data"):
        main(["report", "--state", str(hospital.state), "--alone"])


def test_a_run_that_is_not_kept_is_refused(local: KeptRun, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="--run must be how one of this hospital's runs begins"):
        main(["report", "--state", str(local.state), "--alone", "--run", "ff"])
    with pytest.raises(RunError, match="keeps no model yet"):
        main(["report", "--state", str(tmp_path), "--alone"])


@pytest.mark.parametrize("name", ["audit.jsonl", "model.safetensors", "delivery.json"])
def test_a_kept_file_that_was_changed_is_refused(name: str, local: KeptRun, tmp_path: Path) -> None:
    state = tmp_path / "state"
    shutil.copytree(local.state, state)
    path = state / local.kept.relative_to(local.state) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises((AuditError, IdentityError, RunError)):
        main(["report", "--state", str(state), "--alone"])


def test_a_task_of_several_grades_is_refused_before_any_image_is_read(
    local: KeptRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = local.description
    graded = run.model_copy(update={"task": run.task.model_copy(update={"kind": "ordinal"})})
    monkeypatch.setattr("deploy.hospital.alone.kept_run", lambda *_: (graded, None))
    with pytest.raises(RunError, match="tasks with two classes, and run 0123456789ab is ordinal"):
        main(["report", "--state", str(local.state), "--alone"])


def found(run: RunDescription, *auc: Difference, **changes: Any) -> Comparison:  # noqa: ANN401 - fields of Comparison
    figures = dict.fromkeys(FIGURES, 0.5)
    rivals = (
        Rival(epsilon, figures, dict.fromkeys(FIGURES, each)) for epsilon, each in zip((None, 3.0), auc, strict=False)
    )
    told = {"trained": 500, "records": 90, "patients": 90, "sick": 30, "changed": False, **changes}
    return Comparison(run=run, together=figures, rivals=tuple(rivals), **told)


AHEAD, BEHIND, UNSURE = Difference(0.02, 0.01, 0.03), Difference(-0.02, -0.03, -0.01), Difference(0.02, -0.1, 0.2)


def test_the_verdict_says_what_the_intervals_allow(local: KeptRun) -> None:
    run = local.description
    assert next(verdict(found(run, AHEAD))).startswith("Joining paid here:")
    assert next(verdict(found(run, BEHIND))).startswith("Joining did not pay here:")
    assert next(verdict(found(run, UNSURE))).startswith("These 90 test records cannot tell whether joining paid")
    first, second = verdict(found(run, BEHIND, AHEAD))
    assert "ε = 3, the run's model is better (AUC +0.020, 95 %: +0.010 to +0.030)" in second
    assert "did not pay" in first


def test_a_wide_interval_is_said_to_be_wide(local: KeptRun) -> None:
    assert (
        "30 are pneumonia and 60 are not. A difference of AUC below about 0.15"
        in list(verdict(found(local.description, UNSURE)))[-1]
    )
    assert len(list(verdict(found(local.description, AHEAD)))) == 1


def test_the_remarks_follow_the_run_and_the_records(local: KeptRun) -> None:
    run = local.description
    proved = run.model_copy(update={"aggregation": run.aggregation.model_copy(update={"proved_sums": True})})
    assert "its server could not choose the final model" in " ".join(remarks(found(proved, AHEAD)))
    assert "a lying server could have chosen" in " ".join(remarks(found(run, AHEAD)))
    assert "not known here" in " ".join(remarks(found(run, AHEAD, changed=None)))
    assert "bootstrap over 60 patients" in " ".join(remarks(found(run, AHEAD, patients=60)))
    assert "bootstrap over 90 test records" in " ".join(remarks(found(run, AHEAD)))
