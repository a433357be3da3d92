"""What a hospital's ledger holds, read as its operator reads it."""

from pathlib import Path
from typing import Any

from client.ledger.ledger import LEDGER_FOLDER, export


def booked_by(state: Path) -> list[dict[str, Any]]:
    """Return what a hospital has spent, from the ledger in its state folder; nothing where it has none yet."""
    folder = state / LEDGER_FOLDER
    if not folder.exists():
        return []
    return [entry for entry in export(folder)["entries"] if entry["kind"] == "spent"]
