"""``python -m server.flower.superexec …``: Flower's executor, which keeps its token off command lines.

Flower's own puts the token that opens the Runtime API on the command line of ``flwr-serverapp``, where every user of
the machine reads it in the list of processes. Here the ServerApp reads it from a file in memory that only it inherits.
What follows are the arguments of ``flower-superexec``. This is the one module that uses these names of Flower's.
"""

import importlib
import os
import subprocess
from typing import Any

from flwr.supercore.cli.flower_superexec import flower_superexec
from flwr.supercore.constant import TaskType
from flwr.supercore.superexec.executor import ExecutionSpec, LaunchResult, SubprocessExecutor

from common.flower.seam import replace_in

_COMMAND = "flwr-serverapp"


class SilentExecutor(SubprocessExecutor):
    """Starts ServerApps, each with its token in a file in memory, and nothing else."""

    def __init__(self) -> None:
        self.started: list[subprocess.Popen[bytes]] = []

    def get_eligible_capacity(
        self,
        supported_task_types: set[TaskType],
        **_where: Any,  # noqa: ANN401 - whatever Flower says of the Runtime API
    ) -> tuple[set[TaskType], set[str]]:
        """Ask for ServerApps alone."""
        return supported_task_types & {TaskType.SERVER_APP}, set()

    def launch(self, spec: ExecutionSpec) -> LaunchResult:
        """Start the ServerApp of one task."""
        if spec.insecure or spec.root_certificates_path is None:
            return LaunchResult.failed("the Runtime API must be reached by TLS")
        token = os.memfd_create("task token", os.MFD_CLOEXEC)
        try:
            os.write(token, spec.token.encode())
            output = subprocess.DEVNULL if spec.suppress_output else None
            process = subprocess.Popen(
                (
                    _COMMAND,
                    "--runtime-api-address", spec.runtime_api_address,
                    "--root-certificates", spec.root_certificates_path,
                    "--token-file", f"/proc/self/fd/{token}",
                    "--parent-pid", str(os.getpid()),
                ),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(token,),
            )  # fmt: skip
        finally:
            os.close(token)
        self.started.append(process)
        return LaunchResult.accepted()

    def reconcile(self) -> None:
        """Drop those that have ended."""
        self.started = [process for process in self.started if process.poll() is None]


def keep_tokens_off_command_lines() -> None:
    """Change the executor in whose process this is called.

    Raises:
        AttributeError: Flower is not the release this was written for.
    """
    superexec = importlib.import_module("flwr.supercore.superexec.run_superexec")
    replace_in(superexec, "get_executor", lambda *_given, **_options: SilentExecutor(), used_by=superexec.run_superexec)


def main() -> None:
    """Start what is asked for until it is stopped."""
    keep_tokens_off_command_lines()
    flower_superexec()


if __name__ == "__main__":
    main()
