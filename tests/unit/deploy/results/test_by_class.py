"""The table of each class or label, and what must not be missed in it."""

import math

import numpy as np
import pytest

from common.evaluation.metrics import ClassFigures, class_figures, metrics_of_kind
from common.task import Counts, TaskConfig, TaskKind
from common.telemetry.events import Evaluated, Event, RunStarted
from deploy.results.by_class import by_class, by_class_lines, shown_metrics
from deploy.results.history import RunHistory
from tests.support.example_run import example_of_three_classes

LUNGS = TaskConfig(kind=TaskKind.MULTICLASS, classes=("covid", "normal", "tb"), positive=("covid", "tb"))
MATRIX = np.array([[6, 2, 2], [1, 18, 1], [3, 7, 0]])


def history(terms: TaskConfig, each: dict[str, ClassFigures], **changes: object) -> RunHistory:
    events: list[Event] = []
    for event in example_of_three_classes():
        told: Event = event
        if isinstance(event, RunStarted):
            told = event.model_copy(update={"terms": terms})
        if isinstance(event, Evaluated):
            told = event.model_copy(update={"each": each, "records": 40, **changes})
        events.append(told)
    return RunHistory.of(events)


def exactly(matrix: np.ndarray = MATRIX) -> dict[str, ClassFigures]:
    return dict(zip(LUNGS.classes, class_figures(matrix, (0.9, 0.8, 0.7)), strict=True))


def test_each_class_has_its_support_and_its_own_sensitivity() -> None:
    table = by_class(history(LUNGS, exactly(), exact=True))
    assert table is not None
    assert table.columns[:5] == ("class", "units", "prevalence", "AUC", "recall (sensitivity)")
    assert [row[0] for row in table.rows] == ["covid (positive)", "normal", "tb (positive)"]
    assert table.rows[0][1:] == ("10", "25 %", "0.900", "0.600", "0.867", "0.600")


def test_a_class_that_is_never_predicted_is_named_aloud() -> None:
    matrix = MATRIX.copy()
    matrix[:, 0] += matrix[:, 2]
    matrix[:, 2] = 0
    table = by_class(history(LUNGS, exactly(matrix), exact=True))
    assert table is not None
    assert table.lines == ("The class tb is predicted never.",)
    assert any("NOTE: The class tb is predicted never." in line for line in by_class_lines(
        history(LUNGS, exactly(matrix), exact=True)
    ))  # fmt: skip


def test_under_noise_too_seldom_is_not_told_as_never() -> None:
    noisy = {
        name: figures.model_copy(update={"noise": {"called": 4.0, "support": 3.0}})
        for name, figures in exactly().items()
    }
    table = by_class(history(LUNGS, noisy, exact=False))
    assert table is not None
    (line,) = table.lines
    assert "never, or too seldom to stand out from the noise (±8 units): covid, tb" in line
    assert table.rows[0][1] == "10 ±6"


def test_the_positive_classes_together_are_told_from_the_others() -> None:
    table = by_class(history(LUNGS, exactly(), exact=True, confusion=tuple(map(tuple, MATRIX.tolist()))))
    assert table is not None
    (told,) = table.sums
    assert told.startswith("Of the units that are covid or tb, 55 % are decided to be one of these")
    assert "of the others, 90 %" in told


def test_labels_have_thresholds_and_what_noise_drowns_is_a_dash() -> None:
    terms = TaskConfig(kind=TaskKind.MULTILABEL, classes=("Edema",))
    figures = ClassFigures(
        support=9, called=30, recall=0.5, specificity=math.nan, precision=0.4, auc=0.8, threshold=0.25,
        intervals={"recall": (0.0, 1.0), "auc": (0.7, 0.9)}, noise={"called": 1.0},
    )  # fmt: skip
    table = by_class(history(terms, {"Edema": figures}))
    assert table is not None
    assert table.rows[0][3:] == ("0.80 (0.70 to 0.90)", "–", "–", "0.40", "0.250")


@pytest.mark.parametrize("kind", list(TaskKind))
def test_quadratic_kappa_is_told_of_ordered_grades_alone(kind: TaskKind) -> None:
    assert ("kappa" in metrics_of_kind(kind)) == (kind is TaskKind.ORDINAL)


def test_a_run_of_an_earlier_version_shows_all_metrics_and_no_table() -> None:
    old = RunHistory.of(example_of_three_classes())
    assert by_class(old) is None
    assert by_class_lines(old) == []
    assert "kappa" in shown_metrics(TaskConfig())


def test_the_lines_at_the_end_of_a_run_fit_80_columns() -> None:
    long = {f"{name} with a very long name indeed": figures for name, figures in exactly().items()}
    terms = TaskConfig(kind=TaskKind.MULTICLASS, classes=tuple(long))
    lines = by_class_lines(history(terms, long, exact=True))
    assert max(map(len, lines)) <= 80


def test_a_label_that_is_left_out_of_records_has_its_prevalence_among_the_others() -> None:
    terms = TaskConfig(kind=TaskKind.MULTILABEL, classes=LUNGS.classes, uncertain=Counts.LEAVE_OUT)
    each = {
        name: figures.model_copy(update={"records": records})
        for (name, figures), records in zip(exactly().items(), (20.0, 40.0, 25.0), strict=True)
    }
    table = by_class(history(terms, each, exact=True))
    assert table is not None
    assert [row[2] for row in table.rows] == ["50 %", "50 %", "40 %"]
    assert table.sums == ("A label is counted where it is known: of 20 to 40 of 40 units.",)
