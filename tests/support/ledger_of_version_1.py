"""A ledger as an earlier version of Confide wrote it, put on disk again from its rows."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

VECTOR = Path(__file__).parents[1] / "vectors" / "ledger_version_1.json"


def write_ledger(folder: Path) -> None:
    """Write database and anchor into ``folder``, which is made."""
    vector: dict[str, Any] = json.loads(VECTOR.read_text(encoding="utf-8"))
    folder.mkdir(mode=0o700)
    with closing(sqlite3.connect(folder / "ledger.sqlite", isolation_level=None)) as connection:
        connection.execute(f"PRAGMA user_version = {vector['user_version']:d}")
        for statement in vector["schema"]:
            connection.execute(statement)
        connection.executemany("INSERT INTO entries VALUES (?, ?, ?, ?)", vector["rows"])
    (folder / "ledger.anchor").write_text(vector["anchor"], encoding="utf-8")
