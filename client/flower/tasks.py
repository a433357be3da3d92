"""Claims the tasks that this hospital's SuperNode has received and hands each message to the resident agent.

It is, with ``supernode`` and ``relay_waits``, the only user of Flower's private names on this side. ``TaskRunner``
replaces Flower's executor. The bundle that a server ships is never unpacked.
"""

import contextlib
import hashlib
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode, SubStatus
from flwr.proto.runtime_pb2 import AcquireTaskRequest, SendTaskHeartbeatRequest
from flwr.supercore.inflatable import inflatable_utils
from flwr.supercore.inflatable.inflatable_object import UnexpectedObjectContentError
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufClientInterceptor, ProtobufRequestContext
from flwr.supercore.retry import RetryInvoker, make_simple_http_retry_invoker
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.superexec import run_superexec
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output
from google.protobuf.message import DecodeError

from common.errors import RunError
from common.flower.bundle import bundle_without_code
from common.flower.waits import limit_pulls, shorten_backoff

_LOG = logging.getLogger("confide.hospital")

_HEARTBEAT_SECONDS = 10.0
"""The time between two heartbeats of a task in hand; Flower gives a task up after 60 s without one."""

_RECONNECT_SECONDS = 0.5


LONGEST_PULL_SECONDS = 60.0
"""The longest wait for the objects of one message; an exchange waits no longer either, by default."""

UNDELIVERABLE = (
    inflatable_utils.ObjectPullError,
    inflatable_utils.ObjectPushError,
    inflatable_utils.ObjectUnavailableError,
    UnexpectedObjectContentError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
    DecodeError,
)
"""What Flower raises when a message or its reply has expired with its exchange, or cannot be read at all."""

Answer = Callable[[Message], Message]


@dataclass(frozen=True)
class RuntimeApi:
    """Where the SuperNode's Runtime API listens on this machine, and what opens it."""

    address: str
    root_certificate: bytes = field(repr=False)
    secret: bytes = field(repr=False)


class TaskRunner:
    """Claims a SuperNode's tasks one after the other and answers each in this process."""

    def __init__(self, api: RuntimeApi, poll_seconds: float, first_backoff_seconds: float, bundle: str) -> None:
        """Prepare to serve.

        Args:
            api: the SuperNode's Runtime API.
            poll_seconds: between two polls for a task, each of which waits a while for one.
            first_backoff_seconds: when a message is visible before its objects; doubles from there.
            bundle: SHA-256 hex digest of the one bundle whose messages are answered; it is never unpacked.
        """
        shorten_backoff(inflatable_utils, first_backoff_seconds)
        limit_pulls(inflatable_utils, LONGEST_PULL_SECONDS)
        self._api = api
        self._poll_seconds = poll_seconds
        self._bundle = bundle
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Let :meth:`serve` return after the task in hand; callable from a signal handler."""
        self._stopping.set()

    def serve(self, answer: Answer) -> None:
        """Answer tasks until :meth:`stop`; survives a SuperNode that restarts."""
        while not self._stopping.is_set():
            try:
                token = _TokenInHand()
                with contextlib.closing(self._claims()) as claims, contextlib.closing(self._tasks(token)) as task:
                    self._serve_connected(claims, task, token, answer)
            except (httpx.HTTPError, OSError) as error:
                _LOG.info("waiting for the SuperNode: %s", type(error).__name__)
                self._stopping.wait(_RECONNECT_SECONDS)

    def _serve_connected(
        self, claims: RuntimeHttpClient, task: RuntimeHttpClient, token: "_TokenInHand", answer: Answer
    ) -> None:
        request = AcquireTaskRequest(supported_task_types=["flwr-clientapp"], agentapp_fab_hashes=[])
        while not self._stopping.is_set():
            claim = claims.AcquireTask(request)
            if claim.HasField("task") and claim.token:
                token.take(claim.token)
                self._serve_task(task, answer)
            else:
                self._stopping.wait(self._poll_seconds)

    def _serve_task(self, task: RuntimeHttpClient, answer: Answer) -> None:
        with _beating(task):
            try:
                self._answer_task(task, answer)
            except UNDELIVERABLE as error:
                _LOG.warning("a task is dropped, its exchange is over: %s", type(error).__name__)
                push_task_output(client=task, context=None, sub_status=SubStatus.FAILED, details=type(error).__name__)

    def _answer_task(self, task: RuntimeHttpClient, answer: Answer) -> None:
        message, context, _, bundle = pull_task_input(task)
        status, details = SubStatus.COMPLETED, ""
        if bundle.hash_str != self._bundle:
            reply = _error(message, "this hospital does not answer messages of this bundle")
        else:
            reply = self._answer(message, answer)
        if reply.has_error():
            status, details = SubStatus.FAILED, reply.error.reason or ""
        # Flower dates a reply by this machine's clock, and drops one from a clock that is ahead by its lifetime.
        reply.metadata.created_at, reply.metadata.ttl = message.metadata.created_at, message.metadata.ttl
        push_message(task, reply, context)
        push_task_output(client=task, context=context, sub_status=status, details=details)

    def _answer(self, message: Message, answer: Answer) -> Message:
        try:
            return answer(message)
        except (ArithmeticError, AttributeError, LookupError, MemoryError, OSError, RuntimeError, TypeError,
                ValueError) as error:  # fmt: skip
            # A fault of ours must reach the server as an error reply, or the exchange would wait for its deadline.
            # Only the fault's type leaves the hospital: its text might hold anything.
            _LOG.exception("answering failed")
            return _error(message, f"internal error at the hospital: {type(error).__name__}")

    def _claims(self) -> RuntimeHttpClient:
        return self._connect(
            RuntimeVersionHttpInterceptor(component_name="SuperExec"),
            SuperExecAuthHttpInterceptor(
                master_secret=self._api.secret,
                protected_methods=run_superexec._SUPEREXEC_AUTH_METHODS,  # noqa: SLF001 - see the module's docstring
            ),
        )

    def _tasks(self, token: "_TokenInHand") -> RuntimeHttpClient:
        """Return the client for the task in hand: one for all tasks, to save several handshakes for each."""
        return self._connect(RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"), token)

    def _connect(self, *interceptors: ProtobufClientInterceptor) -> RuntimeHttpClient:
        return RuntimeHttpClient.from_server_address(
            server_address=self._api.address,
            insecure=False,
            root_certificates=self._api.root_certificate,
            interceptors=list(interceptors),
            retry_invoker=_tried_once(),
        )


class _TokenInHand:
    """Adds the token of the task in hand to each request."""

    def __init__(self) -> None:
        self._interceptor: RuntimeTokenHttpInterceptor | None = None

    def take(self, token: str) -> None:
        """Speak for another task from now on."""
        self._interceptor = RuntimeTokenHttpInterceptor(token)

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Send the request for the task in hand."""
        if self._interceptor is None:
            raise RuntimeError("a task must be in hand")
        response: httpx.Response = self._interceptor.intercept(context, call_next)
        return response


def _tried_once() -> RetryInvoker:
    """Return Flower's invoker of a call, made to raise at the first failure whatever it is.

    Flower itself would retry for minutes without checking whether the agent must stop, and would end this process
    with a signal when the SuperNode refuses a call with 401: it does so when it has given up the task in hand.
    """
    invoker = make_simple_http_retry_invoker()
    invoker.max_tries = 1
    invoker.should_giveup = None
    return invoker


@contextlib.contextmanager
def _beating(task: RuntimeHttpClient) -> Iterator[None]:
    """Keep the SuperNode from giving the task up while it is in hand.

    Flower's own sender raises SIGINT in the process when a heartbeat is refused, which would end the agent.
    """
    done = threading.Event()

    def beat() -> None:
        while not done.wait(_HEARTBEAT_SECONDS):
            try:
                task.SendTaskHeartbeat(SendTaskHeartbeatRequest())
            except httpx.HTTPError as error:
                _LOG.warning("a heartbeat did not reach the SuperNode: %s", type(error).__name__)

    thread = threading.Thread(target=beat, name="task-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _error(message: Message, reason: str) -> Message:
    error = Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=reason)
    return Message(error, reply_to=message)


def bundle_digest(scratch: Path) -> str:
    """Return the SHA-256 hex digest of the bundle without code, the only one answered.

    Args:
        scratch: a folder to lay the bundle's one file in.
    """
    from flwr.cli.build import build_fab_from_disk

    return hashlib.sha256(bundle_without_code(scratch, build_fab_from_disk)).hexdigest()


def read_runtime_api(address: str, root_certificate: Path, secret: Path) -> RuntimeApi:
    """Read what opens the SuperNode's Runtime API, or raise :class:`RunError`."""
    try:
        return RuntimeApi(address, root_certificate.read_bytes(), secret.read_bytes())
    except OSError as error:
        raise RunError(f"{error.filename} must be readable: {error.strerror}; join the consortium again") from None
