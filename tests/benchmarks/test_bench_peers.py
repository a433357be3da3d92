"""The benchmark of the peers finds its processes, and says what it cannot measure; no test asserts a time."""

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from common.errors import ConfideError, RunError
from tests.benchmarks import bench_peers, peer_apps
from tests.benchmarks.bench_peers import MARK, PeerMeasured, Place, cpu_of_marked, end, marked, ratios


@pytest.mark.parametrize("program", [peer_apps.FLOWER_APP, peer_apps.FLOWER_SECAGG_APP, peer_apps.NVFLARE_APP])
def test_what_peers_run_is_python(program: str) -> None:
    compile(program, "app.py", "exec")


@pytest.mark.parametrize("he", [False, True])
def test_a_job_of_nvflare_names_all_that_its_workflow_needs(he: bool, tmp_path: Path) -> None:
    bench_peers._write_job(tmp_path / "job", 10, 3, tmp_path / "times", he=he)
    server = json.loads((tmp_path / "job" / "app" / "config" / "config_fed_server.json").read_text())
    (workflow,) = server["workflows"]
    named = {value for name, value in workflow["args"].items() if name.endswith("_id")}
    assert named == {"persistor", "shareable_generator", "aggregator"}
    assert named < {component["id"] for component in server["components"]}
    client = json.loads((tmp_path / "job" / "app" / "config" / "config_fed_client.json").read_text())
    assert bool(client["task_result_filters"]) is bool(client["task_data_filters"]) is he


def test_processes_of_a_peer_are_known_by_their_mark_and_all_are_ended() -> None:
    mark = uuid.uuid4().hex
    inner = "import time; sum(range(20_000_000)); print(flush=True); time.sleep(60)"
    # A peer's processes may leave their parents.
    outer = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {inner!r}], start_new_session=True)"
    with subprocess.Popen(
        (sys.executable, "-c", outer), env={**os.environ, MARK: mark}, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert process.wait(60) == 0
        assert len(marked(mark)) == 1
        assert cpu_of_marked(mark) > 0.1
        end(mark)
        assert not marked(mark)


def test_ratios_are_to_our_masked_round_on_the_same_line() -> None:
    measured = [
        PeerMeasured("confide masked", "loopback", 1, 0.5, 1.0),
        PeerMeasured("flower", "loopback", 1, 2.0, 3.0),
        PeerMeasured("flower", "100 ms", 1, 9.0, 9.0),
    ]
    assert list(ratios(measured)) == ["loopback: flower / confide masked 4.00 (seconds), 3.00 (processor)"]


def test_rounds_are_measured_between_their_beginnings_without_the_first(tmp_path: Path) -> None:
    times = tmp_path / "times"
    times.write_text("".join(f"{at}\n" for at in (0.0, 9.0, 18.0, 20.0, 24.0, 26.0)))
    place = Place(tmp_path, tmp_path, (), {})
    done = bench_peers._window("flower", "loopback", 3, times, "nobody", place)
    assert (done.seconds, done.rounds, done.cpu_seconds) == (2.0, 3, 0.0)


def test_a_program_that_fails_is_named_with_its_last_words(tmp_path: Path) -> None:
    place = Place(tmp_path, Path("/bin"), (), {"PATH": os.environ["PATH"]})
    with pytest.raises(RunError, match="false must succeed"):
        place.run(0, "log", "false")


@pytest.mark.parametrize(
    ("options", "words"), [(("--rounds", "0"), "--rounds"), (("--peers", "gossip"), "--peers must be of")]
)
def test_what_cannot_be_measured_is_refused_by_name(options: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfideError, match=words):
        bench_peers.main(["peers", *options])
