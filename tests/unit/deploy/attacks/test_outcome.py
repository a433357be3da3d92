"""An audit leaves a picture and a JSON file, or says in one line why it cannot."""

import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from common.errors import RunError
from deploy.attacks.outcome import write_outcome


def test_both_files_are_written_into_a_new_folder(tmp_path: Path) -> None:
    write_outcome(tmp_path / "new", "audit", Figure(), {"epsilon": 1.5})
    assert json.loads((tmp_path / "new" / "audit.json").read_text()) == {"epsilon": 1.5}
    assert (tmp_path / "new" / "audit.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="--out must be a folder that can be written"):
        write_outcome(tmp_path / "file" / "new", "audit", Figure(), {})
