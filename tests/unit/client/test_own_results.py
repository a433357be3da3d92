import logging
import math
import stat
from pathlib import Path

import pytest

from client.own_results import append, read
from common.errors import RunError
from tests.support.own_result import OTHER, RUN, result


def test_what_was_appended_is_read_in_order_with_undefined_figures(tmp_path: Path) -> None:
    path = tmp_path / "own-results.jsonl"
    for number in (1, 2):
        append(path, result(number))
    assert [one.round for one in read(path)] == [1, 2]
    assert math.isnan(read(path)[0].auc)
    assert read(path)[0].accuracy == 0.8


@pytest.mark.usefixtures("open_umask")
def test_only_the_hospitals_own_user_can_read_them(tmp_path: Path) -> None:
    append(tmp_path / "own-results.jsonl", result())
    assert stat.S_IMODE((tmp_path / "own-results.jsonl").stat().st_mode) == 0o600


def test_a_round_that_was_done_again_counts_once_with_its_last_result(tmp_path: Path) -> None:
    path = tmp_path / "own-results.jsonl"
    for one in (result(1), result(1, OTHER), result(1, accuracy=0.9)):
        append(path, one)
    assert [(one.run_id, one.accuracy) for one in read(path)] == [(OTHER, 0.8), (RUN, 0.9)]


def test_a_line_cut_short_is_left_out_and_a_broken_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "own-results.jsonl"
    append(path, result())
    path.write_text(path.read_text() + '{"time": 1.0, "run')
    assert len(read(path)) == 1
    path.write_text(path.read_text() + "\n")
    with pytest.raises(RunError, match="line 2, must be a result"):
        read(path)


def test_a_disk_that_refuses_is_logged_and_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        append(tmp_path / "missing" / "own-results.jsonl", result())
    assert "own-results.jsonl must be writable" in caplog.text


def test_no_file_is_no_result(tmp_path: Path) -> None:
    assert read(tmp_path / "own-results.jsonl") == ()


def test_a_repr_tells_no_figure() -> None:
    assert "0.8" not in repr(result())
    assert "40" not in repr(result())
