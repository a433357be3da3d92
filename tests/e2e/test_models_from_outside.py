"""Models from outside over real processes: a package that pip installed, and who refuses it."""

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torchvision.models import resnet18

from common.config import Config, replace
from common.models.backbone_file import FOLDER_VARIABLE
from common.privacy.mechanism import mechanism_of
from common.settings import HOSPITAL_SETTINGS_FILE, HospitalSettings
from common.telemetry.events import COMPLETED, EVENTS_FILE, Event, EventFile, RoundDone, RunFinished
from deploy.datasets.datasets import obtain
from deploy.demo.dealer import deal
from deploy.demo.dealing import state_dealt
from deploy.demo.loopback import LoopbackDeployment
from server.run import new_run_id
from tests.support.booked import booked_by
from tests.support.deployed import start_anew
from tests.support.installed_package import NAME, install, source_of_the_example
from tests.support.onnx_files import FEATURES, HOSTILE, encoded, graph, honest, model, weight

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.e2e


def confide(*words: str, site: Path, seconds: float = 600) -> subprocess.CompletedProcess[str]:
    """Run a command with a folder of installed packages on the path, which holds the files of backbones as well."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(site))),
        FOLDER_VARIABLE: str(site),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        (sys.executable, "-m", "deploy", *words),
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=seconds,
    )  # fmt: skip


def demo(out: Path, *settings: str, site: Path) -> subprocess.CompletedProcess[str]:
    given = (
        "data.phantom_records=600", "privacy.accountant=rdp", "training.sample_rate=0.5", "experiment.rounds=2",
        "privacy.delta=0.001", "hospital.delta=0.001", *settings,
    )  # fmt: skip
    words = tuple(word for setting in given for word in ("--set", setting))
    return confide("demo", "--data", "phantom", "--hospitals", "3", "--out", str(out), *words, site=site)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the package of docs/extending.md."""
    return install(tmp_path_factory.mktemp("package"), NAME, {"__init__.py": source_of_the_example()})


@pytest.fixture(scope="module")
def sha256(site: Path) -> str:
    told = confide("model", "hash", NAME, site=site)
    assert told.returncode == 0, told.stderr
    return told.stdout.strip()


def assert_refused_before_any_epsilon(run: Path, words: str) -> None:
    """Check that each hospital refused in these words, and booked nothing."""
    for hospital in ("hospital-1", "hospital-2", "hospital-3"):
        logs = [path.read_text() for path in run.rglob("agent.log") if hospital in path.parts]
        assert any(words in log for log in logs), (hospital, logs)
        assert booked_by(run / "consortium" / hospital) == []


def test_the_example_is_checked_before_a_run(site: Path) -> None:
    told = confide("model", "check", f"{NAME}:small", "--set", "hospital.stated_training_units=40", site=site)
    assert told.returncode == 0, told.stderr
    assert "every layer is known" in told.stdout
    assert "1.layers.1: BatchNorm2d became GroupNorm of 16 groups" in told.stdout
    assert "ε for each unit" in told.stdout


def test_a_package_of_ones_own_trains_over_real_processes(tmp_path: Path, site: Path, sha256: str) -> None:
    finished = demo(
        tmp_path / "run", f"model.name={NAME}:small", f"model.sha256={sha256}",
        f"hospital.accepted_models=[{sha256}]", site=site,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stdout + finished.stderr
    card = json.loads((tmp_path / "run" / "model.json").read_text())
    assert card["architecture"] == f"{NAME}:small@{sha256}"
    assert {tensor["name"] for tensor in card["tensors"]} >= {"0.weight", "1.layers.1.weight", "4.bias"}


def test_a_package_that_hospitals_did_not_accept_is_refused_by_name(tmp_path: Path, site: Path, sha256: str) -> None:
    finished = demo(
        tmp_path / "run", f"model.name={NAME}:small", f"model.sha256={sha256}",
        "transport.start_deadline_seconds=20", site=site,
    )  # fmt: skip
    assert finished.returncode != 0
    assert_refused_before_any_epsilon(
        tmp_path / "run", f"has the SHA-256 {sha256}; its operator can add it to hospital.accepted_models"
    )


@pytest.mark.parametrize("kind", ["onnx", "resnet18"])
def test_a_backbone_from_a_file_trains_over_real_processes(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(1)
    weights = {name: tensor.contiguous() for name, tensor in resnet18().state_dict().items()}
    file, ending, features = (honest(), "onnx", FEATURES) if kind == "onnx" else (save(weights), "safetensors", 512)
    (tmp_path / f"network.{ending}").write_bytes(file)
    told = confide("model", "hash", str(tmp_path / f"network.{ending}"), site=tmp_path)
    sha256 = told.stdout.strip()
    assert sha256 == hashlib.sha256(file).hexdigest()
    finished = demo(
        tmp_path / "run", "model.name=backbone_linear", f"model.backbone={kind}", f"model.features={features}",
        f"model.sha256={sha256}", f"hospital.accepted_models=[{sha256}]", site=tmp_path,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stdout + finished.stderr
    card = json.loads((tmp_path / "run" / "model.json").read_text())
    assert card["architecture"] == f"backbone_linear@{kind}/imagenet/{features}/{sha256}"


def test_a_hostile_backbone_that_was_accepted_is_refused_by_name_before_any_epsilon(tmp_path: Path) -> None:
    """The demo computes the features of all its hospitals, so that it meets the file before they do."""
    file = HOSTILE["control-flow bomb"][0]()
    (tmp_path / "network.onnx").write_bytes(file)
    sha256 = hashlib.sha256(file).hexdigest()
    finished = demo(
        tmp_path / "run", "model.name=backbone_linear", "model.backbone=onnx", f"model.features={FEATURES}",
        f"model.sha256={sha256}", f"hospital.accepted_models=[{sha256}]", "transport.start_deadline_seconds=20",
        site=tmp_path,
    )  # fmt: skip
    assert finished.returncode == 2
    (line,) = (line for line in finished.stderr.splitlines() if line.startswith("confide:"))
    assert "the backbone's file is refused, control flow" in line
    assert all(booked_by(folder) == [] for folder in (tmp_path / "run" / "consortium").iterdir())


def test_a_backbone_of_another_hash_at_a_hospital_is_refused_before_any_epsilon(tmp_path: Path) -> None:
    """What the run names is accepted, and another file is there: the demo's machine is every hospital's."""
    (tmp_path / "network.onnx").write_bytes(honest())
    named = "ab" * 32
    finished = demo(
        tmp_path / "run", "model.name=backbone_linear", "model.backbone=onnx", f"model.features={FEATURES}",
        f"model.sha256={named}", f"hospital.accepted_models=[{named}]", "transport.start_deadline_seconds=20",
        site=tmp_path,
    )  # fmt: skip
    assert finished.returncode == 2
    (line,) = (line for line in finished.stderr.splitlines() if line.startswith("confide:"))
    assert f"a backbone's file with the SHA-256 {named} must lie in the folder" in line
    assert all(booked_by(folder) == [] for folder in (tmp_path / "run" / "consortium").iterdir())


def test_one_hospital_that_has_another_backbone_refuses_in_one_line_and_the_others_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, other = honest(), encoded(model(graph(weights=[weight("kernel", FEATURES, 3, 5, 5, seed=1)])))
    for folder, content in (("theirs", file), ("own", other)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "network.onnx").write_bytes(content)
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "theirs"))
    sha256 = hashlib.sha256(file).hexdigest()
    config = replace(
        Config(),
        experiment={"rounds": 2},
        data={"source": "phantom", "phantom_records": 600},
        model={"name": "backbone_linear", "backbone": "onnx", "features": FEATURES, "sha256": sha256},
        training={"sample_rate": 0.5},
        privacy={"accountant": "rdp", "delta": 0.001},
        hospital={"accepted_models": [sha256], "delta": 0.001},
        transport={"start_deadline_seconds": 60.0},
    )
    data = obtain(config.data, config.experiment.task, config.model.image_size)
    deployment = LoopbackDeployment(config, tmp_path / "run", new_run_id())
    deployment.set_up(data)
    fewest = mechanism_of(config).fewest_records(config.training)
    deal(data, [member.data for member in deployment.members], config.data, config.experiment.seed, fewest)
    for member in deployment.members:
        settings = HospitalSettings.read(member.state / HOSPITAL_SETTINGS_FILE)
        state_dealt(settings.config, member.data, config)
    events = EventFile(tmp_path / "run" / EVENTS_FILE)
    seen: list[Event] = []
    try:
        deployment.start_server()
        deployment.await_server()
        deployment.start_hospitals()
        start_anew(
            deployment, "hospital-2", environment={"PYTHONPATH": str(ROOT), FOLDER_VARIABLE: str(tmp_path / "own")}
        )
        give_up = time.monotonic() + 240
        while not any(isinstance(event, RunFinished) for event in seen):
            assert time.monotonic() < give_up, [event.to_line()[:200] for event in seen[-6:]]
            time.sleep(0.2)
            seen += events.read_new()
    finally:
        deployment.supervisor.stop()
    (finished,) = (event for event in seen if isinstance(event, RunFinished))
    assert finished.reason == COMPLETED
    assert {event.hospitals for event in seen if isinstance(event, RoundDone)} == {3}
    logs = "".join(path.read_text() for path in tmp_path.rglob("agent.log") if "hospital-2" in path.parts)
    assert f"a backbone's file with the SHA-256 {sha256} must lie in the folder" in logs
    consortium = tmp_path / "run" / "consortium"
    assert booked_by(consortium / "hospital-2") == []
    assert booked_by(consortium / "hospital-1")


def test_a_deep_network_of_the_registry_trains_over_real_processes(tmp_path: Path) -> None:
    finished = demo(
        tmp_path / "run", "model.name=efficientnet_b0", "model.image_size=64", "privacy.mode=distributed",
        "training.sample_rate=0.05", "experiment.rounds=1", site=tmp_path,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert json.loads((tmp_path / "run" / "model.json").read_text())["architecture"] == "efficientnet_b0"
