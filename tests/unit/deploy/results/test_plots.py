from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from common.config import Config, replace
from common.errors import RunError
from deploy.events import RunHistory
from deploy.results import plots
from tests.example_run import example_run

HISTORY = RunHistory.of(example_run(6))


def _texts(figure: Figure) -> str:
    axes = figure.axes[0]
    legend = axes.get_legend()
    labels = [] if legend is None else [text.get_text() for text in legend.get_texts()]
    return "\n".join(
        [*(text.get_text() for text in axes.texts), *labels, figure.get_supxlabel(), axes.get_title("left")]
    )


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
    for label, value in (("AUC", last.auc), ("Accuracy", last.accuracy), ("F1", last.f1)):
        assert f"{label} {value:.3f}" in shown
    for line, name in zip(figure.axes[0].get_lines(), ("auc", "accuracy", "f1"), strict=True):
        assert np.array_equal(line.get_xdata(), [1, 2, 3, 4, 5, 6])
        assert np.array_equal(line.get_ydata(), [getattr(done, name) for done in HISTORY.rounds])


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
    figure = plots.confusion(HISTORY, ("malignant", "benign"))
    shown = _texts(figure)
    for row in HISTORY.rounds[-1].confusion:
        for count in row:
            assert f"{count}\n" in shown
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["malignant", "benign"]


@pytest.mark.parametrize("draw", [plots.learning, plots.privacy, plots.confusion, plots.time_by_part])
def test_every_plot_names_its_data_and_admits_what_weakens_the_run(draw: object) -> None:
    config = replace(Config(), privacy={"mode": "none"}, aggregation={"mode": "plain"})
    shown = _texts(draw(RunHistory.of(example_run(2, "phantom", config))))  # type: ignore[operator]
    assert "on phantom" in shown
    assert "NO differential privacy" in shown
    assert "saw every hospital's update" in shown


def test_the_chosen_threshold_is_marked_on_the_roc() -> None:
    curve, chance, chosen = plots.roc(HISTORY).axes[0].get_lines()
    last = HISTORY.rounds[-1]
    assert np.allclose(chosen.get_xydata(), [[1 - last.specificity, last.recall]])
    assert np.shape(curve.get_xydata())[0] >= len(last.roc or ())
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
