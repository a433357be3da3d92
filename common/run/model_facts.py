"""What ``model.json`` says of a trained model, and what it must say by the audit chain of the run that made it.

The server writes it, and two sides compare it: ``confide audit verify``, and each hospital before it keeps a model.
A class's name or a threshold that was changed would turn every answer of the model, with each of its numbers intact.
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.audit.entries import Finished
from common.config import Config, RunDescription
from common.errors import AuditError
from common.evaluation.calibration import tempered
from common.run.guarantee import Guarantee
from common.run.words import admitted_of
from common.task import TaskKind


class ModelFacts(BaseModel):
    """What one must know to use a model, and to judge it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: str
    """A name of ``common.models.registry``."""
    classes: tuple[str, ...]
    channels: Annotated[int, Field(ge=1, le=4)]
    image_size: Annotated[int, Field(ge=1, le=4096)]
    threshold: Annotated[float, Field(ge=0, le=1)] | None
    """The probability from which the second of two classes is predicted; None where the most probable class is."""
    kind: TaskKind | None = None
    """How scores are read: of a multi-label task each for itself; None in a file of an earlier version."""
    positive: tuple[str, ...] = ()
    thresholds: tuple[Annotated[float, Field(ge=0, le=1)], ...] = ()
    """For each label of a multi-label task, the probability from which the label is said to be there."""
    temperature: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Scores are divided by it before they become probabilities; the thresholds are of what comes out."""
    prevalence: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The share of the second of two classes where the temperature was fixed, as noisy counts gave it: the mix that
    probabilities are for. None where no temperature was fixed."""
    run_id: str
    task: str
    data_set: str
    privacy: dict[str, str | float | None]
    """``Guarantee.as_dict()`` with ``epsilon``, the largest any hospital has spent by the model's last step."""
    caveats: tuple[str, ...] = ()


def expected_facts(
    description: RunDescription,
    data_set: str,
    last_epsilon: dict[str, float],
    finished: Finished | None,
    card: ModelFacts | None,
    *,
    authority_on_server: bool = False,
) -> ModelFacts:
    """Return what ``model.json`` must say of a run's last model.

    Args:
        description: what the hospitals agreed to last.
        data_set: its name in the chain.
        last_epsilon: what the survivors of the last training round had spent.
        finished: the chain's last entry of a run that ended.
        card: what decides in a run that has not ended: only the end is recorded with thresholds and a calibration.
        authority_on_server: as the run's events say.

    Raises:
        AuditError: the chain's own figures, or its terms, are of no run.
    """
    decision: dict[str, Any] = {}
    try:
        if finished is not None:
            threshold = finished.threshold
            if threshold is not None and finished.temperature is not None:
                threshold = tempered(threshold, finished.temperature)
            decision = {
                "threshold": threshold,
                "thresholds": finished.thresholds,
                "temperature": finished.temperature or 1.0,
                "prevalence": finished.prevalence,
            }
        elif card is not None:
            decision = {name: getattr(card, name) for name in ("threshold", "thresholds", "temperature", "prevalence")}
        config = Config(
            experiment=description.experiment,
            task=description.task,
            model=description.model,
            training=description.training,
            aggregation=description.aggregation,
            privacy=description.privacy,
            evaluation=description.evaluation,
        )
        return ModelFacts(
            architecture=description.model.architecture,
            classes=description.classes,
            channels=description.channels,
            image_size=description.model.image_size,
            **{"threshold": None, **decision},
            kind=TaskKind(description.task.kind),
            positive=description.task.positive,
            run_id=description.run_id,
            task=description.experiment.task,
            data_set=data_set,
            privacy={**Guarantee.of(config).as_dict(), "epsilon": max(last_epsilon.values(), default=None)},
            caveats=admitted_of(config, data_set, authority_on_server),
        )
    except (ValidationError, ArithmeticError, ValueError):
        raise AuditError("the server's chain must record terms and a threshold that a model can have") from None


def require_same(card: ModelFacts, expected: ModelFacts, name: str) -> None:
    """Refuse a card that says something else than the chains do.

    Raises:
        AuditError: naming the file ``name``, and what in it differs.
    """
    for key in ModelFacts.model_fields:
        said, due = getattr(card, key), getattr(expected, key)
        if said != due:
            if isinstance(said, dict) and isinstance(due, dict):  # A message is short, and shows what differs.
                said, due = _beside(said, due), _beside(due, said)
            raise AuditError(f"{name}: {key} must be {_short(due)} by the chains, got {_short(said)}")


def _beside(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return what stands in one and not, or otherwise, in the other."""
    return {key: value for key, value in one.items() if (key, value) not in other.items()}


def _short(value: object) -> str:
    """Return a value for a message: a server chose it, and a list of classes can be long."""
    shown = repr(value)
    return shown if len(shown) <= _LONGEST_SHOWN else f"{shown[:_LONGEST_SHOWN]}…"


_LONGEST_SHOWN = 200
