"""A person's own images, deployed: an unknown tree of three classes, and a public table of 14 labels."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from client.data.known_tables import CHEXPERT_LABELS, NIH_LABELS
from deploy.datasets import phantom

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
DEMO = (sys.executable, "-m", "deploy", "demo", "--hospitals", "4", "--rounds", "2")
MINUTES = 900


def run(data: Path, out: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        (*DEMO, "--data", str(data), "--out", str(out), *arguments),
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=MINUTES, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def summary(out: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return read


@pytest.fixture(scope="module")
def lungs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tree of three classes that no preset has: healthy lungs, sick ones, and sick ones with a grid."""
    folder = tmp_path_factory.mktemp("data") / "lungs"
    made = phantom.chest(600, 64, 7)
    grid = (np.indices((64, 64)).sum(axis=0) % 8 < 2) * 60
    for number, (image, label) in enumerate(zip(made.images, made.labels, strict=True)):
        name = "normal" if not label else ("covid", "tb")[number % 2]
        pixels = np.clip(image[0].astype(int) + (grid if name == "tb" else 0), 0, 255).astype(np.uint8)
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name / f"{number:04}.png")
    return folder


@pytest.mark.e2e
def test_an_unknown_tree_proposes_its_task_and_runs_to_a_report(lungs: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, screen = run(lungs, out)
    assert code == 0, screen
    proposed = yaml.safe_load((out / "task.yaml").read_text())
    assert proposed["task"]["classes"] == ["covid", "normal", "tb"]
    assert proposed["task"]["positive"] == ["covid", "tb"]
    assert "kind: multiclass" in screen
    told = summary(out)
    assert list(told["each"]) == ["covid", "normal", "tb"]
    assert told["metrics"]["kappa"] is None
    report = (out / "report.md").read_text()
    assert "### Each class" in report
    assert "covid (positive)" in report
    checked = subprocess.run(
        (sys.executable, "-m", "deploy", "hospital", "check-data", str(lungs), "--config", str(out / "task.yaml"),
         "--set", "training.sample_rate=0.5"),
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=MINUTES, check=False,
    )  # fmt: skip
    assert "label_unknown" not in checked.stdout
    assert "covid" in checked.stdout


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--set", "task.kind=binary", "--set", "task.classes=[a, b]", "--set", "task.positive=[a, b]"),
         "task.positive of a binary task must be one of its two classes, got a, b"),
        (("--set", "task.kind=binary", "--set", "task.classes=[normal, tb]", "--set", "task.positive=[flu]"),
         "got 'flu'; the classes are normal, tb"),
        (("--set", "task.kind=binary", "--set", "task.classes=[normal, tb]", "--set", "task.positive=[tb]"),
         "is not one of the run's classes, and its label map does not name it, in 1 places (covid)"),
        (("--task", "pneumonia"), "in 2 places (covid); the classes are normal, pneumonia"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_line_before_any_epsilon(
    lungs: Path, tmp_path: Path, arguments: tuple[str, ...], complaint: str
) -> None:
    out = tmp_path / "run"
    code, screen = run(lungs, out, *arguments)
    assert code == 2
    (line,) = (line for line in screen.splitlines() if line.startswith("confide:"))
    assert complaint in line
    assert not list(out.rglob("ledger.sqlite"))


@pytest.mark.e2e
def test_a_public_table_of_14_labels_runs_to_a_table_for_each_label(tmp_path: Path) -> None:
    """The head is NIH's; the images are the phantom's, so that no file is needed."""
    made = phantom.chest(320, 64, 11)
    random = np.random.default_rng(3)
    rows = ["Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"]
    folder = tmp_path / "nih"
    (folder / "images").mkdir(parents=True)
    for number, (image, label) in enumerate(zip(made.images, made.labels, strict=True)):
        name = f"{number:08}_000.png"
        Image.fromarray(image[0]).save(folder / "images" / name)
        extra = [each for each in NIH_LABELS if each != "Pneumonia" and random.random() < 0.08]
        findings = "|".join(sorted([*(["Pneumonia"] if label else []), *extra])) or "No Finding"
        rows.append(f"{name},{findings},0,{number},{20 + number % 60},{'MF'[number % 2]},{('PA', 'AP')[number % 2]}")
    (folder / "Data_Entry_2017.csv").write_text("\n".join(rows) + "\n")
    out = tmp_path / "run"
    exact = ("--set", "evaluation.exact=true", "--set", "hospital.allow_exact_evaluation=true")
    code, screen = run(folder, out, *exact)
    assert code == 0, screen
    told = summary(out)
    assert tuple(told["each"]) == NIH_LABELS
    assert told["terms"]["kind"] == "multilabel"
    assert sum(figures["support"] for figures in told["each"].values()) > 10
    report = (out / "report.md").read_text()
    assert "### Each label" in report
    assert all(f"| {name.replace('_', chr(92) + '_')} |" in report for name in NIH_LABELS)
    card = json.loads((out / "model.json").read_text())
    assert len(card["thresholds"]) == 14
    image = next((folder / "images").iterdir())
    predicted = subprocess.run(
        (sys.executable, "-m", "deploy", "predict", str(out), str(image), "--json"),
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=MINUTES, check=False,
    )  # fmt: skip
    assert predicted.returncode == 0, predicted.stderr
    assert set(json.loads(predicted.stdout)["probabilities"]) == set(NIH_LABELS)


@pytest.mark.e2e
def test_an_uncertain_label_of_a_public_table_is_left_out_of_its_record_alone(tmp_path: Path) -> None:
    """The head is CheXpert's. Every third label of Edema is uncertain, and costs that label alone."""
    made = phantom.chest(320, 64, 12)
    rows = [",".join(("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", "No Finding", *CHEXPERT_LABELS))]
    for number, (image, label) in enumerate(zip(made.images, made.labels, strict=True)):
        path = Path("CheXpert-v1.0-small") / "train" / f"patient{number:05}" / "study1" / "view1_frontal.jpg"
        (tmp_path / path).parent.mkdir(parents=True)
        Image.fromarray(image[0]).save(tmp_path / path)
        said = {"Pneumonia": f"{float(label)}", "Edema": "-1.0" if number % 3 == 0 else f"{float(label)}"}
        findings = (said.get(name, "") for name in CHEXPERT_LABELS)
        rows.append(",".join((str(path), "Female", "50", "Frontal", "AP", "" if label else "1.0", *findings)))
    (tmp_path / "CheXpert-v1.0-small" / "train.csv").write_text("\n".join(rows) + "\n")
    out = tmp_path / "run"
    exact = ("--set", "evaluation.exact=true", "--set", "hospital.allow_exact_evaluation=true")
    code, screen = run(tmp_path / "CheXpert-v1.0-small", out, *exact)
    assert code == 0, screen
    assert yaml.safe_load((out / "task.yaml").read_text())["task"]["uncertain"] == "leave_out"
    told = summary(out)
    records, each = told["test"]["records"], told["each"]
    assert each["Pneumonia"]["records"] == records
    assert 0.5 * records < each["Edema"]["records"] < 0.85 * records
    assert f"to {records} of {records} units" in (out / "report.md").read_text()
