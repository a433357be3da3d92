"""The token that opens the Runtime API is on no command line and in no environment."""

import importlib
import sys
import time
from pathlib import Path

import pytest
from flwr.supercore.constant import TaskType
from flwr.supercore.superexec.executor import ExecutionSpec, LaunchResultStatus

from server.flower import superexec

TOKEN = "5ec7e7" * 8
SECONDS = 20.0

SERVERAPP = f"""#!{sys.executable}
import os, pathlib, sys
token = pathlib.Path(sys.argv[sys.argv.index("--token-file") + 1])
assert os.path.isfile(token)
seen = pathlib.Path("/proc/self/cmdline").read_bytes() + pathlib.Path("/proc/self/environ").read_bytes()
pathlib.Path({{answer!r}} + ".new").write_bytes(token.read_bytes() + b"|" + seen)
os.replace({{answer!r}} + ".new", {{answer!r}})
"""


def spec(**changes: object) -> ExecutionSpec:
    fields: dict[str, object] = {
        "task_type": TaskType.SERVER_APP,
        "runtime_api_address": "127.0.0.1:8000",
        "token": TOKEN,
        "insecure": False,
        "root_certificates_path": "/dev/null",
        "runtime_dependency_install": False,
        "parent_pid": 1,
        "suppress_output": True,
        "task_id": 1,
        "fab_hash": None,
    }
    return ExecutionSpec(**{**fields, **changes})  # type: ignore[arg-type]


def test_a_serverapp_gets_its_token_and_its_command_line_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, program = tmp_path / "answer", tmp_path / "flwr-serverapp"
    program.write_text(SERVERAPP.format(answer=str(answer)))
    program.chmod(0o700)
    monkeypatch.setattr(superexec, "_COMMAND", str(program))
    executor = superexec.SilentExecutor()
    assert executor.launch(spec()).status is LaunchResultStatus.ACCEPTED
    give_up = time.monotonic() + SECONDS
    while executor.started and time.monotonic() < give_up:
        executor.reconcile()
        time.sleep(0.02)
    token, _, seen = answer.read_bytes().partition(b"|")
    assert token == TOKEN.encode()
    assert b"--token-file" in seen
    assert TOKEN.encode() not in seen


def test_a_serverapp_is_not_started_without_tls() -> None:
    assert superexec.SilentExecutor().launch(spec(insecure=True)).status is LaunchResultStatus.FAILED


def test_flower_s_executor_is_the_one_that_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    flowers = importlib.import_module("flwr.supercore.superexec.run_superexec")
    monkeypatch.setattr(flowers, "get_executor", flowers.get_executor)
    superexec.keep_tokens_off_command_lines()
    assert isinstance(flowers.get_executor("subprocess", executor_config=None), superexec.SilentExecutor)
    supported, _ = superexec.SilentExecutor().get_eligible_capacity({TaskType.SERVER_APP, TaskType.CLIENT_APP})
    assert supported == {TaskType.SERVER_APP}
