import ast
import math

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from common.evaluation import METRICS, Figures
from common.evaluation.metrics import quadratic_kappa
from common.telemetry.metric_names import MODEL_METRICS
from deploy.source_tree import ROOT
from tests.support.sources import sources, tree_of


def test_the_table_and_the_fields_of_figures_name_the_same_metrics() -> None:
    assert set(METRICS) == set(Figures.model_fields)


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_is_a_function_of_the_matrix_or_of_the_counts_and_not_of_both(name: str) -> None:
    metric = METRICS[name]
    assert (metric.of_confusion is None) != (metric.of_part is None)
    assert metric.low < metric.high


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if metric.of_confusion])
@pytest.mark.parametrize("classes", [2, 5])
def test_metrics_of_matrices_are_those_of_each_matrix_and_keep_their_bounds(name: str, classes: int) -> None:
    metric = METRICS[name]
    assert metric.of_confusion is not None
    drawn = np.random.default_rng(classes).integers(0, 30, (40, classes, classes)).astype(np.float64)
    drawn[0] = 0
    together = metric.of_confusion(drawn)
    assert together.tolist() == [float(metric.of_confusion(one[None])[0]) for one in drawn]
    assert ((together >= metric.low) & (together <= metric.high)).all()


def test_kappa_is_scikit_learns_and_zero_where_all_is_one_class() -> None:
    matrix = np.array([[12, 3, 1], [2, 9, 4], [0, 5, 14]])
    truth, decided = (np.repeat(axis.ravel(), matrix.ravel()) for axis in np.indices(matrix.shape))
    expected = cohen_kappa_score(truth, decided, weights="quadratic")
    assert quadratic_kappa(matrix[None].astype(np.float64))[0] == pytest.approx(expected)
    assert quadratic_kappa(np.array([[[7.0, 0.0], [0.0, 0.0]]])).tolist() == [0.0]


def test_the_exporter_has_a_metric_for_each_that_says_what_it_is() -> None:
    assert {name: metric.help for name, metric in MODEL_METRICS.items()} == {
        name: metric.help for name, metric in METRICS.items() if metric.help
    }


def test_an_undefined_figure_is_null_in_a_file_and_nan_here() -> None:
    figures = Figures.model_validate({"auc": None, "accuracy": 0.5, "precision": 1, "recall": 1, "f1": 1, "loss": 0})
    assert math.isnan(figures.auc)
    assert math.isnan(figures.kappa)


def _lists_of_metrics(tree: ast.AST) -> list[str]:
    """Return each list, tuple, set or table of a source that spells out three or more metrics."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.List | ast.Tuple | ast.Set):
            items: list[ast.expr | None] = [*node.elts]
        elif isinstance(node, ast.Dict):
            items = [*node.keys]
        else:
            continue
        named = [item.value for item in items if isinstance(item, ast.Constant) and item.value in METRICS]
        if len(named) > 2:
            found.append(", ".join(map(str, named)))
    return found


def test_no_place_but_evaluation_has_a_list_of_metrics_of_its_own() -> None:
    lists = {
        str(path.relative_to(ROOT)): _lists_of_metrics(tree_of(path))
        for path in sources()
        if ROOT / "common" / "evaluation" not in path.parents
    }
    assert {path: found for path, found in lists.items() if found} == {}
    assert _lists_of_metrics(ast.parse('SHOWN = ("auc", "accuracy", "f1")')) == ["auc, accuracy, f1"]
    assert _lists_of_metrics(ast.parse('{"auc": 1, "accuracy": 2, "loss": 3}')) == ["auc, accuracy, loss"]
