"""YAML from people and from files that may have been changed: read in time and memory that its length bounds."""

from typing import Any

import yaml

NO_YAML = (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What :func:`read_yaml` raises for text that is not YAML, is nested too deeply, or holds an invalid date or number."""

_DEEPEST = 64
"""Brackets in brackets; nothing that Confide reads has more than a handful."""


class _Loader(yaml.SafeLoader):
    """Plain values alone. For each bracket PyYAML looks at all that are still open, so they are bounded."""

    def fetch_flow_collection_start(self, token: Any) -> None:  # noqa: ANN401 - a class of PyYAML's tokens
        if self.flow_level >= _DEEPEST:
            raise RecursionError(f"YAML must nest at most {_DEEPEST} brackets in each other")
        super().fetch_flow_collection_start(token)


def read_yaml(text: str | bytes) -> Any:  # noqa: ANN401 - checked by whoever asks
    """Return the plain values that a YAML document holds.

    Raises:
        yaml.YAMLError: or another of :data:`NO_YAML`.
    """
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()
