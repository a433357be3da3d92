"""The two files that an audit leaves: what it found, for people and for programs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from common.errors import RunError
from common.files import replace_file
from deploy.results.plots import png


def write_outcome(folder: Path, name: str, figure: Figure, facts: Mapping[str, Any]) -> None:
    """Write ``name``.png and ``name``.json into a folder, which is made if need be.

    Raises:
        RunError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / f"{name}.png", png(figure))
        replace_file(folder / f"{name}.json", (json.dumps(facts, indent=2) + "\n").encode())
    except OSError as error:
        raise RunError(f"--out must be a folder that can be written; {folder}: {error.strerror}") from None
    except RunError as error:
        raise RunError(f"--out must be a folder that can be written: {error}") from None
