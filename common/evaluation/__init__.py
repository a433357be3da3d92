"""How the global model is measured without anyone seeing one hospital's results, or learning of one record."""

from common.evaluation.exact import (
    EvaluationCounts,
    EvaluationShape,
    Metrics,
    PartCounts,
    count,
    metrics,
    threshold_edge,
)
from common.evaluation.question import Question

__all__ = [
    "EvaluationCounts",
    "EvaluationShape",
    "Metrics",
    "PartCounts",
    "Question",
    "count",
    "metrics",
    "threshold_edge",
]
