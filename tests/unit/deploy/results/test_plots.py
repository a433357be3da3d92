from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from common.config import Config, replace
from common.errors import RunError
from common.evaluation.calibration import Spread
from deploy.results import plots
from deploy.results.calibration import Calibration
from deploy.results.history import RunHistory
from deploy.results.leaves_picture import leaves
from tests.support.example_run import example_of_three_classes, example_run

EXACT = replace(Config(), evaluation={"exact": True}, privacy={"mode": "none"})
HISTORY = RunHistory.of(example_run(6))
assert HISTORY.tested is not None
TESTED = HISTORY.tested


def _texts(figure: Figure) -> str:
    axes = figure.axes[0]
    own = axes.get_legend()
    legends = [*([] if own is None else [own]), *figure.legends]
    labels = [text.get_text() for legend in legends for text in legend.get_texts()]
    return "\n".join(
        [*(text.get_text() for text in axes.texts), *labels, figure.get_supxlabel(), axes.get_title("left")]
    )


@pytest.mark.long
def test_a_run_is_drawn_as_images_one_can_open(tmp_path: Path) -> None:
    files = plots.plot_run(HISTORY, tmp_path / "plots", ("malignant", "benign"))
    assert [file.name for file in files] == ["learning.png", "privacy.png", "confusion.png", "roc.png", "time.png"]
    for file in files:
        with Image.open(file) as image:
            assert image.width > 1000
            assert len(image.getcolors(1 << 24) or []) > 20


def test_a_run_without_a_finished_round_has_no_plots(tmp_path: Path) -> None:
    assert plots.plot_run(RunHistory.of(example_run(3)[:1]), tmp_path) == ()


def test_accuracy_f1_and_auc_are_drawn_by_round_with_their_last_values() -> None:
    figure = plots.learning(HISTORY)
    last = HISTORY.rounds[-1]
    shown = _texts(figure)
    for label, value in (("AUC", last.auc), ("accuracy", last.accuracy), ("F1", last.f1)):
        assert f"{label} {value:.2f} ±" in shown
    for label, value in (("AUC", TESTED.auc), ("accuracy", TESTED.accuracy), ("F1", TESTED.f1)):
        assert f"{label}, test {value:.2f} ±" in shown
    assert figure.axes[0].get_ylabel() == "validation, after round r"
    for (line, _, bars), name in zip(figure.axes[0].containers, ("auc", "accuracy", "f1"), strict=False):
        assert np.allclose(line.get_xdata(), [1, 2, 3, 4, 5, 6], atol=0.1)
        assert np.array_equal(line.get_ydata(), [getattr(done, name) for done in HISTORY.rounds])
        ends = np.array([segment[:, 1] for segment in bars[0].get_segments()])
        assert np.allclose(ends, [done.intervals[name] for done in HISTORY.rounds])


def test_only_rounds_that_were_measured_are_drawn_and_rounds_are_whole_numbers() -> None:
    axes = plots.learning(RunHistory.of(example_run(12))).axes[0]
    assert np.allclose(axes.containers[0][0].get_xdata(), [1, 2, 4, 5, 6, 7, 8, 10, 11, 12], atol=0.1)
    assert all(float(tick).is_integer() for tick in axes.get_xticks())


def test_exact_counts_are_drawn_as_test_figures_and_called_exact() -> None:
    figure = plots.learning(RunHistory.of(example_run(3, config=EXACT)))
    assert figure.axes[0].get_ylabel() == "test, after round r"
    assert "exact counts: not differentially private" in _texts(figure)
    assert len(figure.axes[0].containers) == 3


def test_a_measure_that_a_task_lacks_has_no_line() -> None:
    shown = _texts(plots.learning(RunHistory.of(example_of_three_classes(4, has_auc=False))))
    assert "accuracy" in shown
    assert "AUC" not in shown


def test_a_run_without_a_final_test_has_no_picture_of_it(tmp_path: Path) -> None:
    files = plots.plot_run(RunHistory.of(example_run(3, tested=False)), tmp_path / "plots")
    assert [file.name for file in files] == ["learning.png", "privacy.png", "time.png"]


def test_what_each_hospital_spent_is_drawn_against_its_budget_and_the_target() -> None:
    shown = _texts(plots.privacy(HISTORY))
    assert "budget: ε = 10" in shown
    assert "target of this run: ε = 8" in shown
    for hospital, spent in HISTORY.rounds[-1].epsilon_spent.items():
        assert f"{hospital}: {spent:.2f}" in shown
    assert "δ=0.0001" in shown
    assert "RDP accountant" in shown


def test_without_differential_privacy_the_plot_says_so_instead_of_drawing_a_line() -> None:
    config = replace(Config(), privacy={"mode": "none"})
    assert "ε is not bounded" in _texts(plots.privacy(RunHistory.of(example_run(2, config=config))))


def test_the_confusion_matrix_shows_every_count_and_the_names_of_the_classes() -> None:
    figure = plots.confusion(HISTORY, TESTED, ("malignant", "benign"))
    shown = _texts(figure)
    assert "counts with privacy noise" in shown
    for row in TESTED.confusion:
        for count in row:
            assert f"{count}\n" in shown
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["malignant", "benign"]


def test_every_plot_names_its_data_and_admits_what_weakens_the_run() -> None:
    config = replace(EXACT, aggregation={"mode": "plain"})
    history = RunHistory.of(example_run(2, "phantom", config, authority_on_server=True))
    figures = plots.figures_of_run(history)
    assert len(figures) == 5
    for figure in figures.values():
        shown = _texts(figure)
        assert "on phantom" in shown
        assert "NO differential privacy" in shown
        assert "saw every hospital's update" in shown
        assert "exact counts: not differentially private" in shown
        assert "The server holds the authority's key" in shown


def test_the_chosen_threshold_is_marked_on_the_roc() -> None:
    axes = plots.roc(HISTORY, TESTED).axes[0]
    curve, chance = axes.get_lines()[:2]
    chosen = axes.containers[0][0]
    assert np.allclose(chosen.get_xydata(), [[1 - TESTED.specificity, TESTED.recall]])
    assert np.shape(curve.get_xydata())[0] >= len(TESTED.roc or ())
    assert np.array_equal(chance.get_xydata(), [[0, 0], [1, 1]])


def test_runs_are_drawn_together_with_one_line_each() -> None:
    axes = plots.auc_of_runs([HISTORY, HISTORY]).axes[0]
    assert len([line for line in axes.get_lines() if np.size(line.get_xydata())]) == 2


def test_with_many_hospitals_the_legend_stays_short() -> None:
    spent = {f"hospital-{number}": 1.0 for number in range(40)}
    rounds = tuple(done.model_copy(update={"epsilon_spent": spent}) for done in HISTORY.rounds)
    many = RunHistory(HISTORY.started, (), rounds, (), (), (), (), None)
    assert "40 hospitals" in _texts(plots.privacy(many))


def test_a_folder_that_cannot_be_written_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "plots").write_text("a file")
    with pytest.raises(RunError, match="plots must be writable"):
        plots.plot_run(HISTORY, tmp_path / "plots")


def test_a_legend_beside_the_axes_hides_no_curve() -> None:
    drawn = (plots.learning(HISTORY), plots.privacy(HISTORY), plots.roc(HISTORY, TESTED))
    for figure in drawn:
        figure.draw_without_rendering()
        (legend,) = figure.legends
        assert legend.get_window_extent().x0 >= figure.axes[0].get_window_extent().x1


def test_rounds_are_whole_numbers_also_where_there_is_one() -> None:
    for rounds in (1, 2, 12):
        figure = plots.learning(RunHistory.of(example_run(rounds)))
        figure.draw_without_rendering()
        assert all(float(place).is_integer() for place in figure.axes[0].get_xticks())


def test_reliability_is_drawn_without_and_with_the_temperature() -> None:
    spread = Spread.of(TESTED.scores)
    assert spread is not None
    calibration = Calibration(spread, 2.0)
    shown = _texts(plots.reliability(HISTORY, calibration))
    assert f"as trained: ECE {calibration.before:.3f}" in shown
    assert f"with the temperature: ECE {calibration.after:.3f}" in shown
    assert calibration.before != pytest.approx(calibration.after, abs=1e-3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ("masked", "no single vector", "noise")),
        ({"aggregation": {"mode": "plain"}, "evaluation": {"exact": True}}, ("not masked", "every hospital's")),
        ({"privacy": {"mode": "none"}}, ("masked", "no noise")),
    ],
)
def test_the_picture_of_what_leaves_follows_the_configuration(
    changes: dict[str, dict[str, Any]], words: tuple[str, ...]
) -> None:
    figure = leaves(RunHistory.of(example_run(2, config=replace(Config(), **changes))))
    shown = "\n".join(text.get_text() for text in figure.axes[0].texts)
    assert all(word in shown for word in words)
