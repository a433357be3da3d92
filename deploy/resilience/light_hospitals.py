"""``python -m deploy.resilience.light_hospitals --states DIR…``: many hospitals in one process, for ``confide load``.

Each has its own identity, shard and connection to the server, speaks Flower's Fleet API as a SuperNode does, and
answers with the agent that is deployed: the server sees hospitals, not a simulation. Only what a hospital keeps apart,
the relay from the agent and one hospital from the other, is together here. Flower's private names are used here as in
``client/flower/tasks.py``; a release that moves them makes the import fail.
"""

import argparse
import os
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Message
from flwr.client.grpc_rere_client.connection import grpc_request_response
from flwr.supercore.inflatable import inflatable_utils
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree, push_objects
from flwr.supercore.retry import make_simple_grpc_retry_invoker
from flwr.supercore.task_identity import TaskIdentity

from client.agent import HospitalAgent, Surroundings
from client.app import answer
from common.config import load_config
from common.errors import RunError
from common.flower.waits import shorten_backoff
from common.identity.certificates import load_certificate, load_identity
from common.settings import HOSPITAL_SETTINGS_FILE, RELAY_FOLDER, HospitalSettings


def main() -> int:
    """Take part with every hospital until stopped."""
    parser = argparse.ArgumentParser(prog="python -m deploy.resilience.light_hospitals", description=__doc__)
    parser.add_argument("--states", type=Path, nargs="+", required=True)
    states = parser.parse_args().states
    torch.set_num_threads(1)
    for name in ("task_id", "run_id", "node_id"):  # A message can be made within a task only.
        setattr(TaskIdentity, name, 1)
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    turn = threading.Lock()
    threads = [threading.Thread(target=_take_part, args=(state, turn, stopping), daemon=True) for state in states]
    for thread in threads:
        thread.start()
    stopping.wait()
    return 0


def _take_part(state: Path, turn: threading.Lock, stopping: threading.Event) -> None:
    settings = HospitalSettings.read(state / HOSPITAL_SETTINGS_FILE)
    config = load_config(settings.config)
    identity = load_identity(state)
    surroundings = Surroundings(state=state, data=settings.data, cache=state / "cache", random=os.urandom)
    agent = HospitalAgent(identity, load_certificate(state / "ca.pem"), config.hospital, surroundings)
    key = load_ssh_private_key((state / RELAY_FOLDER / "supernode.key").read_bytes(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise RunError("a SuperNode's key must be an elliptic-curve key")
    shorten_backoff(inflatable_utils, config.transport.first_backoff_seconds)
    with grpc_request_response(
        settings.fleet_address,
        insecure=False,
        retry_invoker=make_simple_grpc_retry_invoker(),
        root_certificates=(state / RELAY_FOLDER / "ca.pem").read_bytes(),
        authentication_keys=(key, key.public_key()),
    ) as connection:
        _, receive, send, _, _, pull, push, confirm = connection
        while not stopping.is_set():
            received = receive()
            if received is None:
                stopping.wait(config.transport.poll_seconds)
                continue
            request = _pull(*received, pull, confirm)
            with turn:  # The hospitals share this machine's cores; two that train at once only slow each other.
                reply = answer(agent, identity.name, request)
            _push(reply, send, push)


def _pull(message: Message, tree: Any, pull: Any, confirm: Any) -> Message:  # noqa: ANN401 - Flower's own
    run = message.metadata.run_id
    request = pull_and_inflate_object_from_tree(tree, partial(pull, run), partial(confirm, run), return_type=Message)
    request.metadata.__dict__["_message_id"] = tree.object_id
    return request


def _push(reply: Message, send: Any, push: Any) -> None:  # noqa: ANN401 - Flower's own
    started = time.monotonic()
    reply.metadata.__dict__["_message_id"] = reply.object_id
    with no_object_id_recompute():
        missing, session = send(reply, get_object_tree(reply), time.monotonic() - started)
        objects = get_all_nested_objects(reply)
        push_objects(objects, partial(push, reply.metadata.run_id, session), object_ids_to_push=missing)


if __name__ == "__main__":
    sys.exit(main())
