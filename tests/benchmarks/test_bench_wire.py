"""The benchmark of the wire reads counts, processes and events; no test asserts a time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import ConfideError, RunError
from tests.benchmarks import bench_wire
from tests.benchmarks.bench_wire import LOOPBACK, Measured, Steps, Window, calls_between, cpu_of, line_of, ratios
from tests.benchmarks.counted_calls.sitecustomize import FOLDER_VARIABLE

COUNTED = Path(bench_wire.__file__).parent / "counted_calls"

CALLS = """
import concurrent.futures, grpc, httpx
server = grpc.server(concurrent.futures.ThreadPoolExecutor(1))
answer = grpc.unary_unary_rpc_method_handler(lambda request, context: request)
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("fleet", {"PullMessages": answer}),))
port = server.add_insecure_port("127.0.0.1:0")
server.start()
with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
    for _ in range(3):
        assert channel.unary_unary("/fleet/PullMessages")(b"x", timeout=30) == b"x"
server.stop(0)
with httpx.Client(transport=httpx.MockTransport(lambda request: httpx.Response(200))) as client:
    client.get("https://here/v1/acquire-task")
"""


def test_calls_are_counted_where_a_process_only_has_the_folder_on_its_path(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(COUNTED), FOLDER_VARIABLE: str(tmp_path)}
    subprocess.run((sys.executable, "-c", CALLS), env=environment, check=True, timeout=60)
    assert calls_between(tmp_path, 0, 1e12) == {"grpc PullMessages": 3, "http acquire-task": 1}


def test_calls_are_counted_within_a_time_and_heartbeats_are_not_of_a_round(tmp_path: Path) -> None:
    (tmp_path / "1").write_text("1.0 grpc PullObject\n2.0 grpc PullObject\n3.0 grpc SendNodeHeartbeat\n")
    (tmp_path / "2").write_text("2.5 http acquire-task\n4.0 grpc PushObject\n")
    assert calls_between(tmp_path, 2.0, 4.0) == {"grpc PullObject": 1, "http acquire-task": 1}


def test_a_run_of_another_version_is_read_and_one_that_ends_badly_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    told = [{"kind": "round", "step": 1, "unknown": 1}, {"kind": "round", "step": 2}]
    file.write_text("".join(json.dumps(event) + "\n" for event in told) + '{"kind": "rou')
    steps = Steps(file)
    assert (steps.done(), steps.done()) == (2, 2)
    file.write_text("".join(json.dumps(event) + "\n" for event in [*told, {"kind": "run_finished", "reason": "no"}]))
    with pytest.raises(RunError, match="got: no"):
        steps.done()


def test_figures_are_per_round_and_per_hospital(tmp_path: Path) -> None:
    (tmp_path / "1").write_text("".join("1.0 grpc PullMessages\n" for _ in range(16)) + "1.0 http pull\n" * 6)
    told = [
        {"kind": "exchange", "phase": "masked_input", "seconds": 0.2, "round": 1},
        {"kind": "exchange", "phase": "masked_input", "seconds": 0.4, "round": 2},
        {"kind": "round", "seconds": 1.0, "round": 1},
        {"kind": "round", "seconds": 2.0, "round": 2},
    ]
    figures = Window(2, 0.0, 2.0, {"agent": 3.0, "rest": 1.0}, told).figures(tmp_path)
    assert figures["seconds"] == 1.5
    assert figures["exchanges"] == {"masked_input": pytest.approx(0.3)}
    assert (figures["cpu_seconds"], figures["cpu_by_process"]) == (2.0, {"agent": 1.5, "rest": 0.5})
    assert (figures["calls"], figures["local_calls"]) == ({"PullMessages": 2.0}, 3.0)


def test_processor_time_is_that_of_a_process_and_all_it_has_started() -> None:
    program = "import subprocess, sys; print(sum(range(30_000_000)), flush=True); sys.stdin.read()"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {program!r}], stdin=sys.stdin)"
    command = (sys.executable, "-c", outer)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        used = cpu_of([process.pid])
        process.communicate(b"")
    assert used["rest"] > 0.1


def test_ratios_are_within_one_line_and_mode() -> None:
    def done(code: str, line: str, mode: str, seconds: float) -> Measured:
        return Measured(
            code, line, mode, 1, seconds, {"masked_input": seconds / 2}, 4096.0 * seconds, seconds, {}, {}, 0.0
        )

    measured = [
        done("now", "loopback", "secure", 2.0), done("now", "loopback", "plain", 1.0),
        done("now", "loopback", "proved", 3.0),
        done("before", "loopback", "secure", 4.0), done("now", "100 ms", "secure", 3.0),
    ]  # fmt: skip
    assert set(ratios(measured)) == {
        "now, loopback: masked / plain 2.00",
        "now, loopback: proved / masked 1.50 (seconds), 1.50 (processor); 1.0 KiB more from each hospital",
        "loopback, secure: now / before 0.50 (seconds), 0.50 (processor)",
        "now, 100 ms, secure: round trips an exchange (beyond loopback): masked_input 5.0",
    }


def test_a_line_is_loopback_or_milliseconds() -> None:
    assert [line_of(text) for text in ("loopback", "0", "100")] == [LOOPBACK, 0.0, 100.0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--rounds", "0"), "--rounds"),
        (("--modes", "bare"), "--modes must be of secure, plain, proved"),
        (("--against", "/nowhere"), "--against must be a checkout"),
    ],
)
def test_what_cannot_be_measured_is_refused_by_name(options: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfideError, match=words):
        bench_wire.main(["wire", *options])
