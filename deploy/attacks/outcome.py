"""The two files that an audit leaves: what it found, for people and for programs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from common.errors import RunError


def write_outcome(folder: Path, name: str, figure: Figure, facts: Mapping[str, Any]) -> None:
    """Write ``name``.png and ``name``.json into a folder, which is made if need be.

    Raises:
        RunError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / f"{name}.png")
        (folder / f"{name}.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise RunError(f"--out must be a folder that can be written; {folder}: {error.strerror}") from None
