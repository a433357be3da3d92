"""For whom a model works: its figures for each group of a hospital's own test records, for its own staff alone.

Groups are the bins of view, sex and age of :mod:`common.evaluation.statistics`, as header, table or manifest give them.
Every group is computed, whether it has records or not, so that the time a round takes does not say which there are.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from common.evaluation.exact import LARGEST_LOGIT
from common.evaluation.metrics import Measure
from common.evaluation.statistics import NOT_KNOWN, TRAITS
from common.task import TaskConfig, TaskKind
from common.telemetry.events import Count

GROUPED = ("view", "sex", "age in years")
"""The traits that make groups of patients; the others are of pictures."""

Floats = npt.NDArray[np.float64]


class GroupResult(BaseModel):
    """One group of a hospital's own test records.

    Attributes:
        trait: of :data:`GROUPED`.
        group: the bin's name.
        records: in the group.
        sick: of them that have a positive class, or a label.
        recall: share of the sick that are called so; of labels, share of those present that are found.
        specificity: share of the others that are not called sick.
        auc: of sick against not; NaN without both, and of labels.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    trait: str
    group: str
    records: Count
    sick: Count
    recall: Measure
    specificity: Measure
    auc: Measure


@dataclass(frozen=True)
class Decided:
    """What a model says of test records, and what is true.

    Attributes:
        truth: (n,) whether a record is sick; of labels (n, labels).
        called: the same shape, what is decided.
        known: the same shape, whether the truth is known; what is not known counts nowhere.
        probability: (n,) that a record is sick; None where a record has labels.
    """

    truth: npt.NDArray[np.bool_] = field(repr=False)
    called: npt.NDArray[np.bool_] = field(repr=False)
    known: npt.NDArray[np.bool_] = field(repr=False)
    probability: Floats | None = field(default=None, repr=False)


def decided(
    task: TaskConfig, scores: npt.NDArray[np.float32], targets: npt.NDArray[np.int64], thresholds: tuple[float, ...]
) -> Decided:
    """Return what a model decides.

    Args:
        task: whose classes they are.
        scores: (n, classes) logits; of labels (n, labels).
        targets: as :func:`common.task.targets` gives them.
        thresholds: the least probability that is called positive: of each label; of the second of two classes; unread
            with more classes, of which the most probable is called.
    """
    logits = np.clip(np.nan_to_num(scores.astype(np.float64), nan=-LARGEST_LOGIT), -LARGEST_LOGIT, LARGEST_LOGIT)
    if task.kind is TaskKind.MULTILABEL:
        called = _sigmoid(logits) >= np.array(thresholds)
        return Decided(targets == 1, called, targets >= 0)
    sick = np.isin(np.arange(logits.shape[1]), task.sick)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
    shares /= shares.sum(axis=1, keepdims=True)
    probable = shares[:, 1] >= thresholds[0] if task.kind is TaskKind.BINARY else shares.argmax(axis=1)
    truth = sick[targets]
    return Decided(truth, sick[probable.astype(np.int64)], np.ones(len(truth), bool), shares[:, sick].sum(axis=1))


def by_group(traits: npt.NDArray[np.uint8], what: Decided) -> tuple[GroupResult, ...]:
    """Return each group that has records; no group of a trait that is known of no record.

    Args:
        traits: (n, len(TRAITS)), as :mod:`client.data.traits` makes them.
        what: of the same records.
    """
    found: list[GroupResult] = []
    for column, (trait, bins) in enumerate(TRAITS):
        if trait not in GROUPED:
            continue
        groups = [_of(trait, name, traits[:, column] == place, what) for place, name in enumerate(bins)]
        groups = [group for group in groups if group.records]
        if any(group.group != NOT_KNOWN for group in groups):
            found += groups
    return tuple(found)


def _of(trait: str, name: str, chosen: npt.NDArray[np.bool_], what: Decided) -> GroupResult:
    truth, called, known = what.truth[chosen], what.called[chosen], what.known[chosen]
    positive, negative = truth & known, ~truth & known
    return GroupResult(
        trait=trait,
        group=name,
        records=len(truth),
        sick=int(positive.any(axis=1).sum() if positive.ndim > 1 else positive.sum()),
        recall=_share(called & positive, positive),
        specificity=_share(~called & negative, negative),
        auc=np.nan if what.probability is None else _area(what.probability[chosen], truth),
    )


def _share(part: npt.NDArray[np.bool_], whole: npt.NDArray[np.bool_]) -> float:
    return float(part.sum() / whole.sum()) if whole.any() else np.nan


def _area(probability: Floats, truth: npt.NDArray[np.bool_]) -> float:
    """Return the probability that a sick record has the higher score, ties half; NaN without records of both kinds."""
    others = np.sort(probability[~truth])
    sick = probability[truth]
    if not len(others) or not len(sick):
        return np.nan
    below = np.searchsorted(others, sick, "left") + np.searchsorted(others, sick, "right")
    return float(below.mean() / (2 * len(others)))


def _sigmoid(logits: Floats) -> Floats:
    return np.asarray(np.exp(-np.logaddexp(0.0, -logits)))
