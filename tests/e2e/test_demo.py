"""The demo as a person runs it: real processes on loopback, real masks, real privacy."""

import contextlib
import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.kept_runs import kept_runs
from common.config import load_config
from common.settings import ServerSettings, free_port
from deploy.demo.consortium import ConsortiumOnThisMachine
from tests.e2e.capture import Capture, is_tls_only
from tests.support.printed import unwrapped

ROOT = Path(__file__).parents[2]
DEMO = (
    sys.executable,
    "-m",
    "deploy",
    "demo",
    "--data",
    "phantom",
    "--hospitals",
    "3",
    "--set",
    "data.phantom_records=900",
    "--set",
    "model.name=cnn",  # Without it a demo first computes the features of its recipe's model, which takes minutes once.
)
PLAINTEXT_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def start(out: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        (*DEMO, "--out", str(out), *arguments),
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def processes_of(out: Path) -> list[int]:
    """Return the processes whose command line names the run's folder."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                line = (folder / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if str(out) in line:
                found.append(int(folder.name))
    return found


def wait_for(condition: object, seconds: float) -> bool:
    assert callable(condition)
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        if condition():
            return True
        time.sleep(0.1)
    return False


def fleet_port(out: Path) -> int:
    return int(json.loads((out / "consortium" / "server" / "server.json").read_text())["fleet_port"])


def speaks_plaintext(port: int) -> bool:
    """Say whether a listener answers an HTTP/2 preface that is not inside TLS."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(PLAINTEXT_PREFACE)
        try:
            answer = connection.recv(64)
        except ConnectionResetError:
            return False
    return answer[3:4] == b"\x04"  # an HTTP/2 SETTINGS frame, in the clear


@pytest.mark.e2e
@pytest.mark.timeout(280)
def test_a_demo_trains_and_leaves_its_files_and_no_process(tmp_path: Path) -> None:
    out = tmp_path / "run"
    demo = start(out, "--rounds", "2")
    assert wait_for((out / "consortium" / "server" / "server.json").exists, 120)
    with Capture(fleet_port(out)) if os.geteuid() == 0 else contextlib.nullcontext() as capture:
        assert wait_for((out / "consortium" / "server" / "ready").exists, 120)
        assert not speaks_plaintext(fleet_port(out))
        printed, _ = demo.communicate(timeout=240)
    assert demo.returncode == 0, printed
    if capture is not None:
        sent = [stream for stream in capture.streams() if not stream.startswith(PLAINTEXT_PREFACE)]
        assert sum(map(len, sent)) > 1_000_000
        assert all(map(is_tls_only, sent))
    assert "phantom" in printed
    rows = list(csv.DictReader((out / "metrics.csv").read_text().splitlines()))
    assert [row["round"] for row in rows] == ["1", "2"]
    assert all(row["hospitals"] == "3" and 0 < float(row["epsilon"]) <= 8.0 for row in rows)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["state"] == "completed"
    assert summary["data_set"].startswith("phantom")
    assert sorted(summary["privacy"]["hospitals"]) == ["hospital-1", "hospital-2", "hospital-3"]
    files = ("model.safetensors", "model.json", "report.html", "report.md", "model_card.md")
    for name in (*files, "plots/learning.png", "plots/privacy.png", "plots/confusion.png"):
        assert (out / name).stat().st_size > 0
    # Each hospital was asked, has agreed, and has the model at home.
    for hospital in ("hospital-1", "hospital-2", "hospital-3"):
        state = out / "consortium" / hospital
        assert [kept.steps for kept in kept_runs(state)] == [2]
        assert '"kind":"answered"' in (state / "audit.jsonl").read_text()
    assert "3 hospitals have verified the model by their own chains, and keep it" in unwrapped(printed)
    assert processes_of(out) == []


@pytest.mark.e2e
@pytest.mark.timeout(280)
def test_an_interrupted_demo_stops_everything(tmp_path: Path) -> None:
    out = tmp_path / "run"
    demo = start(out, "--rounds", "50")
    assert wait_for((out / "events.jsonl").exists, 150)
    port = fleet_port(out)
    demo.send_signal(signal.SIGINT)
    demo.communicate(timeout=60)
    assert demo.returncode == 130
    assert processes_of(out) == []
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.e2e
@pytest.mark.timeout(400)
def test_a_stopped_demo_goes_on_where_it_was_and_leaves_no_key_or_image(tmp_path: Path) -> None:
    out = tmp_path / "run"
    demo = start(out, "--rounds", "4")
    assert wait_for(lambda: list(out.glob("checkpoints/step-00000001-*")), 200)
    demo.send_signal(signal.SIGINT)
    printed, _ = demo.communicate(timeout=60)
    assert demo.returncode == 130
    assert f"--resume {out}" in " ".join(printed.split())
    assert list(out.rglob("identity.key"))
    resumed = subprocess.run(
        (sys.executable, "-m", "deploy", "demo", "--resume", str(out)),
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    rows = list(csv.DictReader((out / "metrics.csv").read_text().splitlines()))
    assert [row["round"] for row in rows] == ["1", "2", "3", "4"]
    verified = subprocess.run(
        (sys.executable, "-m", "deploy", "audit", "verify", str(out)),
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert not [path for path in out.rglob("*") if path.suffix in {".key", ".secret"} or path.name == "shard"]
    assert processes_of(out) == []


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--set", "experiment.round=3"), "unknown key 'experiment.round'"),
        (("--rounds", "0"), "experiment.rounds should be greater than or equal to 1"),
        (("--hospitals", "2"), "experiment.num_clients should be greater than or equal to 3"),
        (("--data", "/nowhere/data.npz"), "there is no /nowhere/data.npz"),
        (("--set", "training.sample_rate=1.5"), "training.sample_rate should be less than or equal to"),
        (("--task", "astrology"), "astrology"),
        (("--set", "data.phantom_records=200", "--set", "data.partition=dirichlet", "--set",
          "data.dirichlet_alpha=0.01"), "hospital"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_line(tmp_path: Path, arguments: tuple[str, ...], complaint: str) -> None:
    assert complaint in refusal(start(tmp_path / "run", *arguments))


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of one MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(
            ("mount", "-t", "tmpfs", "-o", "size=1m", "confide-test", str(folder)), check=False
        ).returncode
    ):
        pytest.skip("only root can mount a small file system")
    yield folder
    subprocess.run(("umount", str(folder)), check=True)


def refusal(demo: subprocess.Popen[str]) -> str:
    """Return the one line a refused command ended with."""
    printed, _ = demo.communicate(timeout=120)
    assert demo.returncode == 2, printed
    assert "Traceback" not in printed
    (line,) = (line for line in printed.splitlines() if line.startswith("confide: "))
    return line


def test_a_full_disk_is_refused_before_anything_starts(full_disk: Path) -> None:
    assert "--out needs 64 MiB of disk, 1 MiB are free" in refusal(start(full_disk / "run"))


def test_a_folder_that_cannot_be_made_is_refused() -> None:
    assert "--out must be a folder that can be written" in refusal(start(Path("/proc/run")))


def test_a_server_whose_port_is_taken_names_the_port(tmp_path: Path) -> None:
    config = load_config(ROOT / "config.yaml")
    consortium = ConsortiumOnThisMachine(tmp_path / "consortium", config)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = ServerSettings(
            config=consortium.server_state / "config.yaml",
            run=tmp_path,
            logs=tmp_path / "logs",
            run_id="0" * 32,
            data_set="none",
            classes=("normal", "pneumonia"),
            channels=1,
            fleet_host="127.0.0.1",
            fleet_port=port,
            runtime_port=free_port(),
            metrics_port=0,
        )
        consortium.set_up(settings, (), ())
        command = (sys.executable, "-m", "server", "--state", str(consortium.server_state), "--once")
        server = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert server.returncode == 2
    assert server.stderr.startswith(f"confide: port {port} on 127.0.0.1 must be free for the Fleet API")
    assert server.stderr.count("\n") == 1


def test_a_corrupt_data_file_is_refused(tmp_path: Path) -> None:
    corrupt = tmp_path / "pneumoniamnist.npz"
    corrupt.write_bytes(b"PK\x03\x04 not an archive")
    assert "pneumoniamnist.npz" in refusal(start(tmp_path / "run", "--data", str(corrupt)))


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "run" / "precious.txt"
    precious.parent.mkdir()
    precious.write_text("do not touch")
    assert "not empty" in refusal(start(precious.parent))
    assert [path.name for path in precious.parent.iterdir()] == ["precious.txt"]
