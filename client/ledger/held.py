"""What the hospital's own audit chain knows of its ledger: the newest line, which the ledger must still hold.

A vector is entered in the chain after its cost is in the ledger, with the ledger's head. So a ledger that alone was put
back or removed is noticed. Both files lie on one disk: putting back both shows only against a copy that
left it (``confide hospital ledger verify --anchor``).
"""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.ledger.chain import Anchor
from common.errors import AuditError


@dataclass(frozen=True, slots=True)
class Held:
    """The chain's newest entry that names a line of the ledger.

    Attributes:
        anchor: the line.
        spent: ε that the hospital had spent on training by then, by its own policy.
        budget: of it, at the time.
    """

    anchor: Anchor
    spent: float | None
    budget: float | None


def newest_anchor(chain_file: Path) -> Anchor | None:
    """Return the newest line of the ledger that an audit chain knows, None where it knows none.

    Raises:
        AuditError: the file cannot be read, or is no chain; the message names the line.
    """
    held = newest_entry(chain_file)
    return None if held is None else held.anchor


def newest_entry(chain_file: Path) -> Held | None:
    """As :func:`newest_anchor`, with what the chain says was spent.

    That each line follows the one before it is checked, its signature is not: the hospital's own key signs it, which
    lies on the same disk. A line that a kill cut short was never acknowledged, and does not count.
    """
    try:
        content = chain_file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise AuditError(f"{chain_file.name} must be readable: {error.strerror}") from None
    found = None
    previous = 64 * "0"
    for number, encoded in enumerate(content.split(b"\n")[:-1], start=1):
        line = _parsed(encoded, f"{chain_file.name}, line {number}")
        if line.get("previous") != previous:
            raise AuditError(
                f"{chain_file.name}, line {number}: must follow the line before it; one was changed, removed or added"
            )
        previous = hashlib.sha256(encoded + b"\n").hexdigest()
        body = line.get("body")
        if isinstance(body, dict) and isinstance(body.get("ledger"), str):
            found = Held(Anchor.from_text(body["ledger"]), _number(body.get("epsilon")), _number(body.get("budget")))
    return found


def _parsed(encoded: bytes, place: str) -> dict[str, Any]:
    try:
        line = json.loads(encoded)
    except (ValueError, RecursionError):
        line = None
    if not isinstance(line, dict):
        raise AuditError(f"{place}: must be an entry of an audit chain")
    return line


def _number(value: object) -> float | None:
    return value if isinstance(value, float) and math.isfinite(value) else None
