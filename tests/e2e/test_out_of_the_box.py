"""A run's model in use, and a hospital's hardware, over real processes: export, predict, sinks, and a GPU not there."""

import csv
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from common.shards import to_image
from common.telemetry.events import RoundDone, parse_event
from deploy.datasets import phantom
from tests.support.booked import booked_by
from tests.support.hospital_folder import dicom

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "export.md"
SETTINGS = ("data.phantom_records=600", "model.name=cnn", "privacy.accountant=rdp", "training.sample_rate=0.5",
            "privacy.delta=0.001", "hospital.delta=0.001")  # fmt: skip

pytestmark = pytest.mark.e2e

A_MODULE_CALLED_MLFLOW = """
import contextlib, json, os

def _note(kind, value):
    with open(os.environ["NOTED"], "a") as file:
        file.write(json.dumps([kind, value]) + "\\n")

def set_experiment(name): _note("experiment", name)
@contextlib.contextmanager
def start_run(run_name): yield _note("run", run_name)
def log_params(values): _note("settings", values)
def log_metrics(values, step): _note("figures", [step, values])
"""
"""MLflow itself is no dependency: this module has the functions that are asked of it, and notes what it was told."""


def confide(*words: str, cwd: Path = ROOT, code: int = 0, **environment: str) -> str:
    """Run a command, and return what it printed on standard output, and on standard error where it fails."""
    done = subprocess.run(
        (sys.executable, "-m", "deploy", *words), cwd=cwd, capture_output=True, text=True, check=False, timeout=600,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "80", **environment},
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stdout + done.stderr


def demo(out: Path, *settings: str, code: int = 0) -> str:
    words = (word for setting in (*SETTINGS, *settings) for word in ("--set", setting))
    return confide("demo", "--data", "phantom", "--hospitals", "3", "--rounds", "2", "--out", str(out), *words,
                   code=code)  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """A finished run, and a folder of pictures of several kinds, two of them unusable."""

    run: Path
    pictures: Path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("box")
    demo(folder / "run")
    pictures = folder / "pictures"
    (pictures / "ward").mkdir(parents=True)
    made = phantom.chest(12, 64, seed=6).images
    for number, picture in enumerate(made[:9]):
        to_image(picture).save(pictures / f"{number}.png")
    (pictures / "ward" / "film.dcm").write_bytes(dicom(made[9][0]))
    (pictures / "ward" / "hand.dcm").write_bytes(dicom(made[10][0], Modality="MR"))
    to_image(255 - made[11]).save(pictures / "ward" / "inverted.png")
    to_image(np.full((1, 64, 64), 90, np.uint8)).save(pictures / "ward" / "constant.png")
    (pictures / "ward" / "broken.png").write_bytes((pictures / "0.png").read_bytes()[:80])
    (pictures / "notes.txt").write_text("no image")
    return Trained(folder / "run", pictures)


def answers(trained: Trained, *images: Path, code: int = 0) -> dict[str, dict[str, object]]:
    printed = confide("predict", str(trained.run), *map(str, images), "--json", code=code)
    lines = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    return {Path(line["file"]).name: line for line in lines}


def test_predict_answers_folders_and_dicom_goes_on_past_bad_files_and_says_what_a_check_says(
    trained: Trained, tmp_path: Path
) -> None:
    told = answers(trained, trained.pictures, code=2)
    assert len(told) == 14
    assert "error" in told["broken.png"]
    assert all("predicted" in line for name, line in told.items() if name != "broken.png")
    remarks = {name: " ".join(line["remarks"]) for name, line in told.items() if "remarks" in line}  # type: ignore[arg-type]
    assert "wrong_modality" in remarks["hand.dcm"]
    assert "inverted" in remarks["inverted.png"]
    assert "constant" in remarks["constant.png"]
    assert remarks["film.dcm"] == remarks["0.png"] == ""
    table = tmp_path / "answers.csv"
    confide("predict", str(trained.run), str(trained.pictures), "--csv", str(table), code=2)
    rows = {Path(row["file"]).name: row for row in csv.DictReader(table.read_text().splitlines())}
    assert set(rows) == set(told)
    assert rows["1.png"]["predicted"] == told["1.png"]["predicted"]


def test_ten_lines_with_onnxruntime_alone_answer_as_predict_does(trained: Trained, tmp_path: Path) -> None:
    confide("export", str(trained.run), "--onnx")
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)[0]
    (tmp_path / "images").mkdir()
    (tmp_path / "model.onnx").write_bytes((trained.run / "model.onnx").read_bytes())
    files = sorted(trained.pictures.glob("*.png"))
    for file in files:
        (tmp_path / "images" / file.name).write_bytes(file.read_bytes())
    # Without this project on its path.
    lines = subprocess.run(
        (sys.executable, "-I", "-c", code), cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120
    ).stdout.splitlines()
    told = answers(trained, *files)
    assert len(lines) == len(files) == len(told)
    for line in lines:
        name, decided, *probabilities = line.split()
        answer = told[Path(name).name]
        assert decided == answer["predicted"]
        expected = list(answer["probabilities"].values())  # type: ignore[attr-defined]
        assert [float(one) for one in probabilities] == pytest.approx(expected, abs=1e-5)


def test_a_monai_bundle_holds_that_file_and_says_what_it_is(trained: Trained) -> None:
    confide("export", str(trained.run), "--monai")
    bundle = trained.run / "monai_bundle"
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"] == {"0": "normal", "1": "pneumonia"}
    assert (bundle / "models" / "model.onnx").stat().st_size > 10_000
    assert (bundle / "configs" / "inference.json").is_file()


def test_every_hospital_of_the_run_has_booked_what_it_spent(trained: Trained) -> None:
    """Without this the refusals below, which book nothing, would show nothing."""
    assert all(booked_by(trained.run / "consortium" / f"hospital-{number}") for number in (1, 2, 3))


def test_a_runs_metrics_go_to_mlflow_from_its_event_file(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "mlflow.py").write_text(A_MODULE_CALLED_MLFLOW)
    noted, before = tmp_path / "noted.jsonl", (trained.run / "events.jsonl").read_bytes()
    path = os.pathsep.join((str(ROOT), str(tmp_path)))
    confide("dashboard", str(trained.run), "--log", "mlflow", PYTHONPATH=path, NOTED=str(noted))
    lines = [json.loads(line) for line in noted.read_text().splitlines()]
    figures = [value for kind, value in lines if kind == "figures"]
    assert [step for step, _ in figures] == [1, 2, 2]
    assert "test/auc" in figures[-1][1]
    assert (trained.run / "events.jsonl").read_bytes() == before


def test_a_runs_metrics_go_to_tensorboard_from_its_event_file(trained: Trained) -> None:
    """TensorBoard is no dependency: this runs where it is installed."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    before = (trained.run / "events.jsonl").read_bytes()
    confide("dashboard", str(trained.run), "--log", "tensorboard")
    assert (trained.run / "events.jsonl").read_bytes() == before
    written = reader.EventAccumulator(str(trained.run / "tensorboard"))
    written.Reload()
    events = map(parse_event, before.decode().splitlines())
    rounds = [(event.step, pytest.approx(event.epsilon)) for event in events if isinstance(event, RoundDone)]
    assert [(point.step, point.value) for point in written.Scalars("epsilon")] == rounds
    told = json.loads((trained.run / "summary.json").read_text())["metrics"]["auc"]
    assert [point.value for point in written.Scalars("test/auc")] == [pytest.approx(told, abs=1e-6)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused_in_one_line_before_any_epsilon(tmp_path: Path) -> None:
    out = tmp_path / "run"
    demo(out, "hospital.device=cuda", "transport.start_deadline_seconds=20", code=2)
    for name in ("hospital-1", "hospital-2", "hospital-3"):
        words = (out / "logs" / name / "agent.log").read_text() + (out / "logs" / f"{name}.log").read_text()
        (line,) = {each for each in words.splitlines() if "PyTorch finds no GPU" in each}
        assert "hospital.device is cuda" in line
        assert booked_by(out / "consortium" / name) == []


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (("model.name=densenet121",), "model.image_size"),
        (("model.name=backbone_linear",), "backbone"),
        (("model.name=no_such_model",), "model.name must be one of"),
    ],
)
def test_a_model_that_does_not_fit_the_task_is_one_line_before_anything_starts(
    tmp_path: Path, settings: tuple[str, ...], complaint: str
) -> None:
    said = demo(tmp_path / "run", *settings, code=2)
    (line,) = (line for line in said.splitlines() if line.startswith("confide:"))
    assert complaint in line
    assert not list(tmp_path.rglob("ledger"))
