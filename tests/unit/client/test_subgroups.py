import math

import numpy as np
import numpy.typing as npt
import pytest

from client.subgroups import Decided, GroupResult, by_group, decided
from common.evaluation.statistics import TRAITS
from common.task import TaskConfig, TaskKind

BINARY = TaskConfig(kind=TaskKind.BINARY, classes=("normal", "pneumonia"), positive=("pneumonia",))
THREE = TaskConfig(kind=TaskKind.MULTICLASS, classes=("normal", "covid", "tb"), positive=("covid", "tb"))
LABELS = TaskConfig(kind=TaskKind.MULTILABEL, classes=("edema", "mass"))


def traits(*views_and_sexes: tuple[int, int]) -> npt.NDArray[np.uint8]:
    rows = np.zeros((len(views_and_sexes), len(TRAITS)), np.uint8)
    rows[:, :2] = np.reshape(views_and_sexes, (-1, 2))
    return rows


def named(found: tuple[GroupResult, ...]) -> dict[str, GroupResult]:
    return {f"{group.trait}: {group.group}": group for group in found}


def test_each_group_has_its_own_shares() -> None:
    truth = np.array([1, 1, 0, 0, 1, 0])
    log_odds = np.array([2.0, -2.0, -1.0, 3.0, 1.0, -1.0], np.float32)
    scores = np.stack([np.zeros(6, np.float32), log_odds], axis=1)
    rows = traits((1, 1), (1, 1), (1, 1), (1, 2), (1, 2), (1, 2))
    found = named(by_group(rows, decided(BINARY, scores, truth, (0.5,))))
    women, men, frontal = found["sex: female"], found["sex: male"], found["view: frontal"]
    assert (women.records, women.sick, women.recall, women.specificity, women.auc) == (3, 2, 0.5, 1.0, 0.5)
    assert (men.records, men.sick, men.recall, men.specificity, men.auc) == (3, 1, 1.0, 0.5, 0.5)
    assert (frontal.records, frontal.sick) == (6, 3)
    assert frontal.recall == pytest.approx(2 / 3)
    assert not [name for name in found if name.startswith("age")]


def test_what_is_not_known_is_a_group_where_something_is_known() -> None:
    scores = np.zeros((3, 2), np.float32)
    truth = np.array([0, 1, 1])
    assert by_group(traits((0, 0), (0, 0), (0, 0)), decided(BINARY, scores, truth, (0.5,))) == ()
    found = named(by_group(traits((0, 0), (0, 1), (0, 1)), decided(BINARY, scores, truth, (0.5,))))
    assert set(found) == {"sex: not known", "sex: female"}
    assert math.isnan(found["sex: not known"].recall)
    assert math.isnan(found["sex: female"].specificity)
    assert math.isnan(found["sex: female"].auc)


def test_several_classes_count_as_sick_or_not() -> None:
    scores = np.array([[0, 3, 1], [0, 1, 3], [3, 0, 0], [0, 2, 0]], np.float32)
    found = by_group(traits(*[(1, 0)] * 4), decided(THREE, scores, np.array([2, 2, 0, 0]), ()))
    assert [(one.sick, one.recall, one.specificity, one.auc) for one in found] == [(2, 1.0, 0.5, 1.0)]


def test_labels_that_are_not_known_count_nowhere() -> None:
    scores = np.array([[2, -2], [2, 2], [-2, 2]], np.float32)
    truth = np.array([[1, 0], [0, -1], [1, -1]])
    (group,) = by_group(traits(*[(2, 0)] * 3), decided(LABELS, scores, truth, (0.5, 0.5)))
    assert (group.trait, group.group, group.records, group.sick) == ("view", "other", 3, 2)
    assert group.recall == 0.5
    assert group.specificity == 0.5
    assert math.isnan(group.auc)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_of_any_value_give_a_decision(value: float) -> None:
    what = decided(BINARY, np.full((2, 2), value, np.float32), np.array([0, 1]), (0.5,))
    assert isinstance(what, Decided)
    assert what.probability is not None
    assert np.isfinite(what.probability).all()


def test_a_part_without_records_has_no_groups() -> None:
    nothing = decided(BINARY, np.zeros((0, 2), np.float32), np.zeros(0, np.int64), (0.5,))
    assert by_group(traits(), nothing) == ()
