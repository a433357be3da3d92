from pathlib import Path

import pytest

from client.own_results import OWN_RESULTS_FILE, append
from common.errors import RunError
from deploy.hospital.report import main
from tests.support.own_result import OTHER, RUN, result


def test_the_last_run_is_shown_round_by_round(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for one in (result(1, OTHER), result(1), result(2, accuracy=0.925)):
        append(tmp_path / OWN_RESULTS_FILE, one)
    assert main(["report", "--state", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert f"run {RUN[:12]}" in printed
    assert "0.925" in printed
    assert "1.50" in printed
    assert "40 test records" in printed
    assert "stay in this hospital" in printed
    assert "exact counts: not differentially private" in " ".join(printed.split())
    assert OTHER[:12] not in printed


def test_another_run_can_be_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for one in (result(1, OTHER), result(1)):
        append(tmp_path / OWN_RESULTS_FILE, one)
    assert main(["report", "--state", str(tmp_path), "--run", OTHER[:6]]) == 0
    assert f"run {OTHER[:12]}" in capsys.readouterr().out
    with pytest.raises(RunError, match="--run must be one of"):
        main(["report", "--state", str(tmp_path), "--run", "ff"])


def test_a_hospital_without_results_says_when_there_will_be_some(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="from its first round on"):
        main(["report", "--state", str(tmp_path)])
