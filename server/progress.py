"""What a checkpoint keeps of a run beside its arrays; typed, so that a damaged one is passed over, not half read."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

from common.run.messages import EpsilonReport
from common.task import MOST_CLASSES
from common.telemetry.events import Count, RoundTime, Seconds

Finite = Annotated[float, Field(allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Part(BaseModel):
    # A field of a newer server is no reason to lose a run.
    model_config = ConfigDict(extra="ignore", frozen=True)


class PendingStep(_Part):
    """A finished training step whose model is measured in the next round.

    Attributes:
        round_number: of the round that made it.
        hospitals: in its sum.
        seconds: that the round took.
        upload_bytes: from all hospitals together.
        parts: where the seconds went.
        epsilon: by hospital, what its ledger says: spent, and budget.
    """

    round_number: Count
    hospitals: Count
    seconds: Seconds
    upload_bytes: Count
    parts: RoundTime
    epsilon: dict[str, tuple[float, float]]

    @classmethod
    def reports(cls, epsilon: dict[str, EpsilonReport]) -> dict[str, tuple[float, float]]:
        """Return what hospitals reported as a checkpoint keeps it."""
        return {name: (report.spent, report.budget) for name, report in epsilon.items()}


class EvaluationProgress(_Part):
    """How far the evaluation plan of a run has been carried out.

    Attributes:
        asked: how often each release was asked for, by its number.
        state: what the releases told, as :class:`common.evaluation.state.EvaluationState` writes it.
        told: whether it is known who is trained on.
        decided_at: where the last model decides between two classes on test records, in log-odds, as the release on
            them asked; empty where a task has no such threshold, None before they were asked about.
        of_class: how many test units that release counted of each class; empty before.
        compared: whether it is known how the last model does against hospitals' own.
        spread: whether it is known how far hospitals' own AUC lie apart.
    """

    asked: dict[Annotated[int, Field(ge=0)], Count]
    state: str
    told: bool = False
    decided_at: Annotated[tuple[Finite, ...], Field(max_length=1)] | None = None
    of_class: Annotated[tuple[NotNegative, ...], Field(max_length=MOST_CLASSES)] = ()
    compared: bool = False
    spread: bool = False


class RunProgress(_Part):
    """Everything that a run needs to go on, its arrays and counters aside.

    Attributes:
        threshold: of the decision between two classes, as validation records last fixed it.
        thresholds: of each label of a multi-label task, likewise; empty in other tasks.
        temperature: that scores are divided by, as validation records last fixed it; None where none is known.
        prevalence: of the second of two classes in the validation part, as it was when the temperature was fixed.
        pending: the last step, as long as its model is not measured.
        evaluation: how far the plan of evaluations is; None where no plan is followed.
        centred: whether the mean of features is known, and in the model where it is used.
        proved: the round of the last sum that the model follows from, in a run that proves its sums.
        named: hospitals that were found to have cheated, and how, in a run that has disputes.
    """

    threshold: float | None = None
    thresholds: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(max_length=MOST_CLASSES)] = ()
    temperature: Annotated[float, Field(gt=0, le=1000)] | None = None
    prevalence: Annotated[float, Field(gt=0, lt=1)] | None = None
    pending: PendingStep | None = None
    evaluation: EvaluationProgress | None = None
    centred: bool = False
    proved: Count | None = None
    named: dict[str, str] = Field(default_factory=dict)

    @field_validator("evaluation", mode="before")
    @classmethod
    def _nothing_is_none(cls, value: object) -> object:
        return None if value == {} else value  # Where counts were exact, earlier versions wrote an empty object.
