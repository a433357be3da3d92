"""Registers SuperNodes with the SuperLink and submits the run.

Flower 1.39's Control API has no authentication, so it listens on the loopback interface alone.
"""

import contextlib
import hashlib
from pathlib import Path
from typing import Any

import httpx

from common.errors import RunError
from common.flower.bundle import bundle_without_code

_KEY_IN_USE = "already in use"


class Control:
    """Flower's Control API on the loopback interface: registers SuperNodes, submits and watches the run."""

    def __init__(self, address: str, root_certificate: bytes) -> None:
        from flwr.cli.cli_client_interceptor import CliClientHttpInterceptor
        from flwr.supercore.control import ControlHttpClient
        from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

        self._client = ControlHttpClient.from_server_address(
            server_address=address,
            insecure=False,
            root_certificates=root_certificate,
            interceptors=[CliClientHttpInterceptor(), RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
        )

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def is_up(self) -> bool:
        """Return whether the SuperLink answers."""
        from flwr.proto.control_pb2 import ListNodesRequest

        try:
            self._client.ListNodes(ListNodesRequest())
        except (httpx.HTTPError, OSError):
            return False
        return True

    def register(self, name: str, public_key: bytes) -> None:
        """Let the SuperNode that holds the private half of ``public_key`` (OpenSSH, EC) connect.

        Registering a key again is no error.
        """
        from flwr.proto.control_pb2 import RegisterNodeRequest
        from flwr.supercore.primitives.asymmetric import public_key_to_bytes

        key = _load_ssh_public_key(public_key)
        try:
            self._client.RegisterNode(RegisterNodeRequest(public_key=public_key_to_bytes(key), name=name))
        except httpx.HTTPStatusError as error:
            if error.response.status_code != httpx.codes.CONFLICT and _KEY_IN_USE not in error.response.text:
                raise RunError(f"the SuperLink did not register the node of {name}: {error.response.text}") from None

    def unregister(self, name: str) -> bool:
        """Cut off every SuperNode registered as ``name``; return whether there was one."""
        from flwr.proto.control_pb2 import ListNodesRequest, UnregisterNodeRequest

        nodes = [node for node in self._client.ListNodes(ListNodesRequest()).nodes_info if node.name == name]
        for node in nodes:
            with contextlib.suppress(httpx.HTTPStatusError):
                self._client.UnregisterNode(UnregisterNodeRequest(node_id=node.node_id))
        return bool(nodes)

    def online(self) -> frozenset[str]:
        """Return the hospitals whose SuperNodes are connected now."""
        from flwr.proto.control_pb2 import ListNodesRequest
        from flwr.supercore.constant import NodeStatus

        nodes = self._client.ListNodes(ListNodesRequest()).nodes_info
        return frozenset(node.name for node in nodes if node.status == NodeStatus.ONLINE)

    def start_run(self, scratch: Path) -> int:
        """Submit the bundle without code, made in folder ``scratch``; returns Flower's number of the run."""
        from flwr.cli.build import build_fab_from_disk
        from flwr.common.serde import fab_to_proto
        from flwr.proto.control_pb2 import StartRunRequest
        from flwr.supercore.fab import Fab

        content = bundle_without_code(scratch, build_fab_from_disk)
        fab = Fab(hashlib.sha256(content).hexdigest(), content, {})
        response = self._client.StartRun(StartRunRequest(fab=fab_to_proto(fab)))
        if not response.HasField("run_id"):
            raise RunError("the SuperLink did not start the run; see superlink.log")
        return int(response.run_id)

    def end_run(self, run: int) -> None:
        """End a run whose ServerApp is gone, so that nobody waits any longer for what it would have sent.

        Flower itself notices after a minute, and until then the SuperNodes hold on to messages whose arrays were
        still under way. A run that has ended is no error.
        """
        from flwr.proto.control_pb2 import StopRunRequest

        with contextlib.suppress(httpx.HTTPStatusError):
            self._client.StopRun(StopRunRequest(run_id=run))

    def run_status(self, run: int) -> tuple[str, str]:
        """Return Flower's status of a run (``pending``, ``starting``, ``running``, ``finished``) and its details."""
        from flwr.proto.control_pb2 import ListRunsRequest

        runs = self._client.ListRuns(ListRunsRequest(run_id=run)).run_dict
        if run not in runs:
            return "finished", "unknown to the SuperLink"
        status = runs[run].status
        return str(status.status), f"{status.sub_status} {status.details}".strip()


def _load_ssh_public_key(public_key: bytes) -> Any:  # noqa: ANN401 - Flower checks the curve
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key

    try:
        return load_ssh_public_key(public_key)
    except ValueError:
        raise RunError("a SuperNode's key must be an OpenSSH public key") from None
