"""Flower's environment and waits, in one place for both sides; imports nothing of Flower itself."""

import time
from collections.abc import Mapping
from types import MappingProxyType, ModuleType
from typing import Any

FLOWER_ENVIRONMENT: Mapping[str, str] = MappingProxyType(
    {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "PYTHONUNBUFFERED": "1"}
)
"""For every Flower process: nothing leaves this machine that we did not send."""


class CappedSleep:
    """Stands in for the module :mod:`time` inside one of Flower's modules, with no sleep longer than the cap.

    Flower 1.39 hard-codes ``time.sleep(3)`` and ``time.sleep(0.5)`` in the SuperNode's loop; an exchange of the
    protocol would spend most of its time there.
    """

    def __init__(self, longest_seconds: float) -> None:
        self._longest_seconds = longest_seconds

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the module time has
        """Return what the module :mod:`time` has under this name."""
        return getattr(time, name)

    def sleep(self, seconds: float) -> None:
        """Sleep for ``seconds`` or the cap, whichever is shorter."""
        time.sleep(min(seconds, self._longest_seconds))


def shorten_backoff(inflatable: ModuleType, first_seconds: float) -> None:
    """Shorten Flower's first back-off when a message is visible before its objects.

    Args:
        inflatable: ``flwr.supercore.inflatable.inflatable_utils``; given, for this package knows no Flower.
        first_seconds: instead of Flower's 1 s, doubling from there.

    Raises:
        AttributeError: Flower is not the release this was written for.
    """
    for name in ("pull_objects", "pull_and_inflate_object_from_tree"):
        function = getattr(inflatable, name)
        defaults = getattr(function, "__kwdefaults__", None) or {}
        if "initial_backoff" not in defaults:
            raise AttributeError(f"{function.__qualname__} has no keyword-only argument 'initial_backoff'")
        defaults["initial_backoff"] = first_seconds


def replace_in(module: ModuleType, name: str, value: object) -> None:
    """Replace what a module of Flower's knows under a name.

    Raises:
        AttributeError: it knows no such name, so Flower is not the release this was written for.
    """
    if not hasattr(module, name):
        raise AttributeError(f"{module.__name__} has no {name!r}")
    setattr(module, name, value)
