import io
from pathlib import Path

import pytest
from rich.console import Console

from client.own_results import OWN_RESULTS_FILE, AgainstAlone, append, read
from client.subgroups import GroupResult
from common.errors import RunError
from deploy.hospital.report import columns_in, main, table_of
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


@pytest.mark.parametrize("width", [72, 80, 109, 110, 120])
def test_no_figure_is_cut_whatever_the_width_of_the_terminal(width: int) -> None:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table_of([result(100, accuracy=0.925)], columns_in(console)))
    shown = console.export_text()
    assert "…" not in shown
    assert "0.925" in shown
    assert ("kappa" in shown) == (width >= 110)


def test_what_the_run_asked_of_the_hospitals_own_model_is_shown_and_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = AgainstAlone(records=40, together=0.925, alone=0.875)
    for one in (result(1), result(2).model_copy(update={"alone": alone}), result(3)):
        append(tmp_path / OWN_RESULTS_FILE, one)
    assert main(["report", "--state", str(tmp_path)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "the run's model was right of 0.925, its own of 0.875" in printed
    assert "the difference over all hospitals together, with noise" in printed
    assert "0.925" not in repr(read(tmp_path / OWN_RESULTS_FILE))


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


def group(name: str, records: int, sick: int, **shares: float) -> GroupResult:
    figures = {"recall": 0.9, "specificity": 0.8, "auc": 0.95} | shares
    return GroupResult(trait="sex", group=name, records=records, sick=sick, **figures)


def test_groups_are_shown_with_the_shares_that_enough_records_stand_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    groups = (group("female", 40, 20), group("male", 24, 9, recall=0.111), group("other", 3, 3, specificity=0.222))
    append(tmp_path / OWN_RESULTS_FILE, result().model_copy(update={"groups": groups}))
    assert main(["report", "--state", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    rows = {line.split("│")[1].strip(): line for line in printed.splitlines() if "sex: " in line}
    assert set(rows) == {"sex: female", "sex: male", "sex: other"}
    assert "0.900" in rows["sex: female"]
    assert "0.111" not in printed
    assert "0.800" in rows["sex: male"]
    assert "0.222" not in printed
    assert "A share of fewer than 10 records is not shown" in printed


def test_without_groups_nothing_is_said_of_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    append(tmp_path / OWN_RESULTS_FILE, result())
    assert main(["report", "--state", str(tmp_path)]) == 0
    assert "for whom it works" not in capsys.readouterr().out
