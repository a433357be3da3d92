"""Flower's environment and waits, in one place for both sides; imports nothing of Flower itself."""

import time
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
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


def shorten_keyword_default(functions: Iterable[Callable[..., Any]], keyword: str, value: float) -> None:
    """Replace the default of one keyword-only argument of some functions.

    Raises:
        KeyError: a function has no such keyword-only default, so Flower is not the release this was written for.
    """
    for function in functions:
        defaults = getattr(function, "__kwdefaults__", None) or {}
        if keyword not in defaults:
            raise KeyError(f"{function.__qualname__} has no keyword-only argument {keyword!r} with a default")
        defaults[keyword] = value
