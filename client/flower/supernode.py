"""``python -m client.flower.supernode --relay DIR …``: Flower's SuperNode as this hospital's relay.

It is, with ``tasks`` and ``relay_waits``, the only user of Flower's private names on this side. Flower's hard-coded
waits are shortened or replaced. It runs as a user of its own where the hospital has one for it, so it gets all it needs
and reads its own folder alone: no settings, no data, no key of the hospital's.
"""

import argparse
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import grpc
from flwr.common.constant import SubStatus
from flwr.supercore.inflatable import inflatable_utils
from flwr.supercore.retry import RetryInvoker
from flwr.supercore.run import RunNotRunningException

from client.flower.relay_waits import Bell, TaskDoor, ringing_state
from client.flower.tasks import LONGEST_PULL_SECONDS
from common.flower.seam import replace_in
from common.flower.waits import PollingTime, limit_pulls, shorten_backoff

T = TypeVar("T")

_LOG = logging.getLogger("confide.hospital")

_LONGEST_RETRY_SECONDS = 2
"""The longest pause between two attempts of a SuperNode to reach its SuperLink; Flower's own grows to minutes."""


_NODE_HEARTBEAT_SECONDS = 10
"""A SuperLink misses a SuperNode that was killed after two of these, and lets none in with its key before; the least it
accepts. With Flower's own 30 s a hospital that has restarted waits for a minute."""


def run_supernode(arguments: Sequence[str], poll_seconds: float, first_backoff_seconds: float) -> None:
    """Run Flower's SuperNode in this process with ``arguments`` as on its command line, and end the process with it."""
    import flwr.supernode.main as runtime
    import flwr.supernode.start_client_internal as supernode
    from flwr.client.grpc_rere_client import connection
    from flwr.supercore import heartbeat
    from flwr.supercore.retry import grpc_retry
    from flwr.supernode.cli import flower_supernode

    bell, door = Bell(), TaskDoor()
    create_app = runtime.create_app
    started = supernode.start_client_internal
    commands = importlib.import_module("flwr.supernode.cli.flower_supernode")
    guarded = lambda **arguments: door.around(create_app(**arguments))  # noqa: E731 - as short as it is used
    replace_in(runtime, "create_app", guarded, used_by=vars(commands)["_start_supernode_http_api"])
    ring_for_replies(bell)
    reply_for_dropped_tasks()
    shorten_backoff(inflatable_utils, first_backoff_seconds)
    replace_in(
        supernode, "time", PollingTime(poll_seconds, bell.wait), used_by=(started, vars(supernode)["_push_messages"])
    )
    replace_in(grpc_retry, "MAX_RETRY_DELAY", _LONGEST_RETRY_SECONDS, used_by=grpc_retry.make_simple_grpc_retry_invoker)
    for module, user in ((connection, connection.grpc_request_response), (heartbeat, heartbeat.HeartbeatSender._run)):  # noqa: SLF001
        replace_in(module, "HEARTBEAT_DEFAULT_INTERVAL", _NODE_HEARTBEAT_SECONDS, used_by=user)
    pull_and_store = supernode._pull_and_store_message  # noqa: SLF001 - see the module's docstring
    receive = partial(_receive_whole_or_not, pull_and_store, door.open)
    replace_in(supernode, "_pull_and_store_message", receive, used_by=started)
    limit_pulls(inflatable_utils, LONGEST_PULL_SECONDS)
    make_invoker = vars(supernode)["make_simple_grpc_retry_invoker"]
    replace_in(
        supernode,
        "make_simple_grpc_retry_invoker",
        lambda: _naming_refusals(make_invoker()),
        used_by=vars(supernode)["_make_fleet_connection_retry_invoker"],
    )
    sys.argv = ["flower-supernode", *arguments]
    try:
        flower_supernode()
    finally:
        # Flower's threads can outlive its main loop; the supervisor would mistake the rest for a SuperNode.
        if not isinstance(sys.exc_info()[1], SystemExit | None):
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(os.EX_TEMPFAIL)


def _receive_whole_or_not(
    pull_and_store: Callable[..., int | None],
    announce: Callable[[], None],
    /,
    *,
    pull_object: Callable[[int, str], bytes],
    confirm_message_received: Callable[[int, str], None],
    **arguments: Any,  # noqa: ANN401 - as Flower's
) -> int | None:
    """Receive a message and announce it; one whose run ends meanwhile leaves nothing behind.

    Flower's SuperNode ignores the end of a run here and leaves the agent a task: one whose objects will never come, or,
    where they have come, one whose reply the SuperNode would take for the reply to the next message.
    """
    run = pull_and_store(
        pull_object=_failing_with_its_run(pull_object),
        confirm_message_received=_failing_with_its_run(confirm_message_received),
        **arguments,
    )
    if run is not None:
        announce()
    return run


def _naming_refusals(invoker: RetryInvoker) -> RetryInvoker:
    """Let the invoker of a SuperNode's calls log why the SuperLink turns it away; Flower's ends silently."""
    gives_up = invoker.should_giveup

    def name_and_give_up(error: grpc.RpcError) -> bool:
        if error.code() == grpc.StatusCode.UNAUTHENTICATED:
            reason = error.details() or ""
            todo = "; set this machine's clock, or the server's" if "timestamp" in reason else ""
            _LOG.error("the server must let this hospital's node in, and refuses it: %s%s", reason, todo)
        return bool(gives_up and gives_up(error))

    invoker.should_giveup = name_and_give_up
    return invoker


def _failing_with_its_run(ask: Callable[[int, str], T]) -> Callable[[int, str], T]:
    def ask_or_fail(run: int, object_id: str) -> T:
        try:
            return ask(run, object_id)
        except RunNotRunningException:
            raise inflatable_utils.ObjectPullError(object_id, "the run has ended") from None

    return ask_or_fail


def ring_for_replies(bell: Bell) -> None:
    """Let this process's SuperNode ring when a message or a part of one has come from the agent."""
    from flwr.supernode.nodestate import nodestate_factory

    state = nodestate_factory.NodeStateFactory.state
    replace_in(nodestate_factory, "InMemoryNodeState", ringing_state(bell), used_by=state)


def reply_for_dropped_tasks() -> None:
    """Let this process's SuperNode send an error for a message whose task its agent reports as failed without a reply.

    Flower 1.39 polls for the next message only when the one in hand has a reply. It makes one for an agent whose
    heartbeat has stopped, and none for an agent that gives the task up: it would wait for that reply for ever.
    """
    from flwr.supernode.nodestate import nodestate_factory

    before: Any = vars(nodestate_factory)["InMemoryNodeState"]  # It may have been replaced: this is added to it.

    class State(before):  # type: ignore[misc]  # known only when this runs
        def finish_task(self, task_id: int, sub_status: str, details: str) -> bool:
            finished: bool = super().finish_task(task_id, sub_status, details)
            if finished and sub_status == SubStatus.FAILED:
                self._on_task_tokens_expired(list(self.get_tasks(task_ids=[task_id])))
            return finished

    replace_in(nodestate_factory, "InMemoryNodeState", State, used_by=nodestate_factory.NodeStateFactory.state)


def main() -> None:
    """Relay messages between the server and this hospital's agent until it is stopped."""
    parser = argparse.ArgumentParser(prog="python -m client.flower.supernode", description=__doc__)
    parser.add_argument("--relay", type=Path, required=True, help="folder with its key and certificates")
    parser.add_argument("--superlink", required=True, help="host and port of the server's Fleet API")
    parser.add_argument("--port", required=True, help="of the Runtime API, on the loopback interface")
    parser.add_argument("--poll-seconds", type=float, required=True)
    parser.add_argument("--first-backoff-seconds", type=float, required=True)
    chosen = parser.parse_args()
    relay = chosen.relay
    arguments = (
        "--superlink", chosen.superlink,
        "--root-certificates", str(relay / "ca.pem"),
        "--auth-supernode-private-key", str(relay / "supernode.key"),
        "--isolation", "process",
        "--host", "127.0.0.1",
        "--port", chosen.port,
        "--ssl-certfile", str(relay / "runtime.pem"),
        "--ssl-keyfile", str(relay / "runtime.key"),
        "--ssl-ca-certfile", str(relay / "runtime.pem"),
        "--superexec-auth-secret-file", str(relay / "runtime.secret"),
    )  # fmt: skip
    run_supernode(arguments, chosen.poll_seconds, chosen.first_backoff_seconds)


if __name__ == "__main__":
    main()
