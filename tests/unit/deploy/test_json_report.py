"""The file that ``--json`` names."""

import json
from pathlib import Path

import pytest

from common.errors import RunError
from deploy.json_report import write_json_report


def test_what_was_measured_is_read_back(tmp_path: Path) -> None:
    write_json_report(tmp_path / "facts.json", {"kills": 3, "machine": "one"})
    assert json.loads((tmp_path / "facts.json").read_text()) == {"kills": 3, "machine": "one"}


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"--json must name a file that can be written: .*nowhere"):
        write_json_report(tmp_path / "nowhere" / "facts.json", {})
