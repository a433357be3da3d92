import datetime
from pathlib import Path

import click
import numpy as np
import pytest

from common.errors import DataError
from deploy.hospital.shadow import EXIT_DRIFT, compare, drifts, main
from deploy.results.stored_answers import StoredAnswer, store
from tests.support.answered_images import answer

MONDAY = datetime.datetime(2026, 1, 5, tzinfo=datetime.UTC).timestamp()
WEEK = 7 * 86400.0


def _answers(count: int, shift: float = 0.0, week: int = 0, seed: int = 1, first: int = 0) -> list[StoredAnswer]:
    generator = np.random.default_rng(seed)
    return [
        answer(
            first + number, time=MONDAY + week * WEEK + number,
            score=float(generator.normal() + shift), brightness=float(generator.normal(0.5, 0.05)),
            contrast=float(generator.normal(0.2, 0.02)), distance=float(generator.gamma(2, 0.1)),
        )
        for number in range(count)
    ]  # fmt: skip


def _said(number: int, predicted: str, week: int = 0) -> StoredAnswer:
    return answer(number, predicted=predicted, time=MONDAY + week * WEEK)


def test_answers_meet_reports_by_week() -> None:
    answers = [
        _said(1, "pneumonia"), _said(2, "normal"), _said(3, "pneumonia"), _said(4, "normal", week=1),
        answer(5, predicted="", score=None, probabilities={}, time=MONDAY + WEEK),
    ]  # fmt: skip
    labels = {answers[number].image: label for number, label in ((0, 1), (1, 1), (3, 0), (4, 1))}
    first, second = compare(answers, labels)
    assert (first.week, first.images, first.flagged, first.labelled) == ((2026, 2), 3, 0, 2)
    assert first.confusion == ((0, 0), (1, 1))
    assert (second.week, second.images, second.flagged, second.labelled) == ((2026, 3), 2, 1, 1)
    assert second.confusion == ((1, 0), (0, 0))


@pytest.mark.long
@pytest.mark.parametrize("week_size", [3, 40, 400])
def test_weeks_like_the_reference_raise_no_more_alarms_than_stated(week_size: int) -> None:
    alarms = 0
    for seed in range(40):
        reference = _answers(500, seed=seed)
        alarms += sum(drift.is_drift for drift in drifts(_answers(week_size, seed=1000 + seed), reference))
    assert alarms <= 2  # 160 tests at 1 in 1,000: three or more by chance is 1 in 1,700


def test_a_score_that_moves_is_drift_in_that_week_and_statistic_alone() -> None:
    answers = _answers(60) + _answers(60, shift=3.0, week=1, seed=5, first=100)
    found = [drift for drift in drifts(answers, _answers(500, seed=9)) if drift.is_drift]
    assert [(drift.week, drift.statistic) for drift in found] == [((2026, 3), "score")]


def test_images_without_an_answer_still_count_for_their_brightness() -> None:
    flagged = [
        answer(number, time=MONDAY, predicted="", score=None, probabilities={}, brightness=0.02) for number in range(30)
    ]
    found = {drift.statistic for drift in drifts(flagged, _answers(500)) if drift.is_drift}
    assert "brightness" in found
    assert "score" not in found


def test_the_expected_share_outside_is_what_the_law_says() -> None:
    found = drifts(_answers(50), _answers(500, seed=9))
    assert [drift.expected for drift in found] == [pytest.approx(10 / 501)] * 4


def test_a_reference_that_is_too_small_or_of_another_model_is_refused() -> None:
    for reference in (_answers(99), [answer(number, model="b" * 64) for number in range(200)]):
        with pytest.raises(DataError, match="at least 100 answers of the model in the trial"):
            drifts(_answers(10), reference)


def _run(tmp_path: Path, answers: list[StoredAnswer], *arguments: str) -> int:
    store(tmp_path / "trial.jsonl", answers)
    return main(["shadow", str(tmp_path / "trial.jsonl"), *arguments])


def test_reports_find_their_answers_and_what_finds_none_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "reports.csv"
    table.write_text("Accession Number;Label\nA1;Pneumonie\nA2;normal\nA9;normal\nA3;tumour\n;normal\n")
    said = [_said(1, "pneumonia"), _said(2, "pneumonia"), _said(3, "normal"), _said(4, "normal")]
    assert _run(tmp_path, said, "--labels", str(table), "--rename", "Pneumonie=pneumonia") == 0
    shown = capsys.readouterr().out
    assert (
        "4 labels: 1 match no answer, 1 name no class of the model (normal, pneumonia); 2 of 4 images have no label"
        in (" ".join(shown.split()))
    )
    assert "1 lines of the table have no key, the first is line 6" in shown
    assert "2026-W02" in shown
    assert "0.50 (0.09 to 0.91)" in shown
    assert "Research software" in shown


def test_a_week_that_drifts_ends_in_a_code_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store(tmp_path / "reference.jsonl", _answers(300, seed=4))
    reference = ("--reference", str(tmp_path / "reference.jsonl"))
    assert _run(tmp_path, _answers(50), *reference) == 0
    assert "no drift" in capsys.readouterr().out
    assert _run(tmp_path, _answers(50, shift=4.0, week=1, first=100), *reference) == EXIT_DRIFT
    assert "DRIFT in 2026-W03: score of" in " ".join(capsys.readouterr().out.split())


def test_answers_of_two_models_are_never_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = [answer(number, model="b" * 64) for number in range(5)] + [answer(9)]
    assert _run(tmp_path, answers) == 0
    assert "5 answers of other models are left out" in capsys.readouterr().out


def test_an_empty_store_and_a_key_that_is_not_stored_are_refused(tmp_path: Path) -> None:
    (tmp_path / "trial.jsonl").touch()
    with pytest.raises(DataError, match="holds none yet"):
        main(["shadow", str(tmp_path / "trial.jsonl")])
    (tmp_path / "t.csv").write_text("patient_id,label\n1,normal\n")
    with pytest.raises(click.UsageError, match="patient_id"):
        _run(tmp_path, [answer(1)], "--labels", str(tmp_path / "t.csv"), "--key", "patient_id")
