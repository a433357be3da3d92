"""The ServerApp's calls pass the Control API's middleware by; the Control API's own calls do not."""

import asyncio
import importlib

import pytest
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.flower.runtime_api import CONTROL_MIDDLEWARE, PastRuntimeCalls, spare_runtime_calls

superlink = importlib.import_module("flwr.superlink.main")


class Noting:
    """A middleware that notes which calls it has seen."""

    seen: list[str] = []  # noqa: RUF012 - shared on purpose

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.seen.append(scope.get("path", scope["type"]))
        await self._app(scope, receive, send)


async def nothing() -> Message:
    return {}


async def nowhere(_: Message) -> None:
    return


def test_runtime_calls_alone_pass_it_by(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Noting, "seen", [])
    answered: list[str] = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        answered.append(scope.get("path", scope["type"]))

    layer = PastRuntimeCalls(app, Noting)
    control, runtime = "/v1/control/start-run", "/v1/runtime/push-object"
    scopes: tuple[Scope, ...] = (
        {"type": "lifespan"}, {"type": "http", "path": control}, {"type": "http", "path": runtime},
    )  # fmt: skip
    for scope in scopes:
        asyncio.run(layer(scope, nothing, nowhere))
    assert answered == ["lifespan", control, runtime]
    assert Noting.seen == ["lifespan", control]


def test_only_the_control_apis_layers_are_changed_and_their_order_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    flowers: list[Middleware] = superlink._get_middleware()
    monkeypatch.setattr(superlink, "_get_middleware", superlink._get_middleware)
    spare_runtime_calls()
    ours: list[Middleware] = superlink._get_middleware()
    assert [layer.kwargs.get("middleware", layer.cls) for layer in ours] == [layer.cls for layer in flowers]
    changed = {getattr(layer.kwargs["middleware"], "__name__", "") for layer in ours if "middleware" in layer.kwargs}
    assert changed == set(CONTROL_MIDDLEWARE)
