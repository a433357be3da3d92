"""How the global model is measured without anyone seeing one hospital's results, or learning of one record."""

from common.evaluation.decode import decode, next_question
from common.evaluation.exact import (
    FIXED_POINT,
    EvaluationCounts,
    EvaluationShape,
    PartCounts,
    count,
)
from common.evaluation.metrics import METRICS, Figures, Metric, Metrics, metrics, threshold_edge
from common.evaluation.plan import EvaluationPlan, Part, Release, ReleaseKind
from common.evaluation.question import Question
from common.evaluation.state import EvaluationState, Measured
from common.evaluation.tree import answer
from common.task import TaskKind

__all__ = [
    "FIXED_POINT",
    "METRICS",
    "EvaluationCounts",
    "EvaluationPlan",
    "EvaluationShape",
    "EvaluationState",
    "Figures",
    "Measured",
    "Metric",
    "Metrics",
    "Part",
    "PartCounts",
    "Question",
    "Release",
    "ReleaseKind",
    "TaskKind",
    "answer",
    "count",
    "decode",
    "metrics",
    "next_question",
    "threshold_edge",
]
