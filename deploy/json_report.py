"""The file that ``--json`` names: what a command measured, for other programs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import RunError
from common.files import replace_file


def write_json_report(path: Path, facts: Mapping[str, Any]) -> None:
    """Write what a command measured.

    Raises:
        RunError: the file cannot be written.
    """
    try:
        replace_file(path, (json.dumps(facts, indent=2) + "\n").encode())
    except RunError as error:
        raise RunError(f"--json must name a file that can be written: {error}") from None
