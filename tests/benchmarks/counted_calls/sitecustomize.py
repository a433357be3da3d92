"""Counts the calls between the processes of a deployment; Python imports this by its name from the path.

Each call is a line in the folder :data:`FOLDER_VARIABLE` names, in a file of the process that counted it: what was
called, and when. Calls over gRPC are counted where they arrive, at the server; those over HTTP where they leave.
"""

import importlib.abc
import importlib.machinery
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial, wraps
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER_VARIABLE = "CONFIDE_COUNTED_CALLS"


def count(name: str) -> None:
    """Note a call."""
    with (Path(os.environ[FOLDER_VARIABLE]) / str(os.getpid())).open("a") as file:
        file.write(f"{time.time():.6f} {name}\n")


def count_at_the_server(grpc: ModuleType) -> None:
    """Count what a gRPC server of this process is asked."""
    made = grpc.server

    class Counter(grpc.ServerInterceptor):  # type: ignore[name-defined, misc]  # known only when this runs
        def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:  # noqa: ANN401 - as grpc's
            count(f"grpc {details.method.rpartition('/')[2]}")
            return continuation(details)

    @wraps(made)
    def counting(*arguments: Any, interceptors: Sequence[Any] | None = None, **options: Any) -> Any:  # noqa: ANN401
        return made(*arguments, interceptors=(Counter(), *(interceptors or ())), **options)

    grpc.server = counting  # type: ignore[attr-defined]


def count_at_the_client(httpx: ModuleType) -> None:
    """Count what this process asks over HTTP."""
    send = httpx.Client.send

    @wraps(send)
    def counting(client: Any, request: Any, **options: Any) -> Any:  # noqa: ANN401 - as httpx's
        count(f"http {request.url.path.rpartition('/')[2]}")
        return send(client, request, **options)

    httpx.Client.send = counting


CHANGED = {"grpc": count_at_the_server, "httpx": count_at_the_client}


class Finder(importlib.abc.MetaPathFinder):
    """Finds the modules of :data:`CHANGED` as others do, and changes each once it has been loaded."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """See :class:`importlib.abc.MetaPathFinder`."""
        if name not in CHANGED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module
            spec.loader.exec_module = partial(_load_and_change, load, CHANGED[name])  # type: ignore[method-assign]
        return spec


def _load_and_change(
    load: Callable[[ModuleType], None], change: Callable[[ModuleType], None], module: ModuleType
) -> None:
    load(module)
    change(module)


if FOLDER_VARIABLE in os.environ:
    sys.meta_path.insert(0, Finder())
