"""Lets the ServerApp's calls skip what the SuperLink does for the Control API alone.

Flower serves both from one FastAPI application and lets every call pass the middleware of both; that of the Control
API hands the ServerApp's calls on unchanged, and costs most of the SuperLink's processor time doing so: a group of
tasks and two streams in memory for each of four layers, at some thirty calls an exchange.
"""

import importlib
from typing import Any

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from common.flower.seam import replace_in

RUNTIME_PATH = "/v1/runtime/"

CONTROL_MIDDLEWARE = (
    "ControlSensitiveResponseMiddleware",
    "ControlAuthenticationMiddleware",
    "ControlLicenseMiddleware",
    "ControlEventLogMiddleware",
)
"""Middleware that acts on calls of the Control API alone, or does nothing without a plugin."""


class PastRuntimeCalls:
    """A middleware that calls of the Runtime API pass by.

    Args:
        app: what comes after it.
        middleware: Flower's.
    """

    def __init__(self, app: ASGIApp, middleware: type[Any]) -> None:
        self._app = app
        self._behind: ASGIApp = middleware(app)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a call, or pass it on."""
        is_runtime = scope["type"] == "http" and scope["path"].startswith(RUNTIME_PATH)
        await (self._app if is_runtime else self._behind)(scope, receive, send)


def spare_runtime_calls() -> None:
    """Change the SuperLink in whose process this is called.

    Raises:
        AttributeError: Flower is not the release this was written for.
    """
    superlink = importlib.import_module("flwr.superlink.main")
    control = {getattr(superlink, name) for name in CONTROL_MIDDLEWARE}
    flowers = superlink._get_middleware  # noqa: SLF001 - the layers have no other name

    def layers() -> list[Middleware]:
        return [
            Middleware(PastRuntimeCalls, middleware=layer.cls) if layer.cls in control else layer for layer in flowers()
        ]

    replace_in(superlink, "_get_middleware", layers, used_by=superlink.create_app)
