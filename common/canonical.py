"""The one JSON text of a value, for what is hashed or signed."""

import json
from typing import Any


def canonical_json(value: Any) -> bytes:  # noqa: ANN401 - any JSON
    """Return a value as JSON with sorted keys and no spaces, in UTF-8.

    Raises:
        ValueError: a number is not finite; JSON has no word for it.

    >>> canonical_json({"b": 1, "a": "ä"}).decode()
    '{"a":"ä","b":1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
