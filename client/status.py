"""What a hospital's agent says about itself: a small file for the exporter and ``confide hospital status``."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.complaints import complaint
from common.config import HospitalConfig, RunDescription
from common.errors import RunError
from common.files import write_private
from common.run.guarantee import adversary_of_epsilon
from common.telemetry.events import Count, Time

STATUS_FILE = "status.json"
"""The name of the file in a hospital's state folder."""

_LOG = logging.getLogger("confide.hospital")


class HospitalStatus(BaseModel):
    """What a hospital's agent says about itself, to its own operator; never a count of patients or records."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    hospital: str
    time: Time
    run_id: str | None = None
    round: Count = 0
    """The last round trained in."""
    epsilon_spent: Annotated[float, Field(ge=0)] = 0.0
    """The ε spent on training by the hospital's own ledger, over all runs on its data."""
    epsilon_budget: Annotated[float, Field(gt=0)]
    delta: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The hospital's own δ, at which both budgets are judged."""
    unit: str = ""
    adversary: str = ""
    accountant: str = ""
    training_records_per_second: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """None before the first round."""
    evaluation_epsilon_spent: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """The ε spent on each part, over all runs."""
    evaluation_epsilon_budget: Annotated[float, Field(ge=0)] = 0.0
    notes: tuple[str, ...] = ()
    """What the operator should know about the data of the run at hand, such as fewer records than the policy states."""
    refusals: dict[str, Count] = Field(default_factory=dict)
    """How often each code of a refusal was the answer."""

    def write(self, path: Path) -> None:
        """Replace the status in ``path``, whole or not at all, readable by the hospital's own user alone."""
        write_private(path, self.model_dump_json().encode())

    @classmethod
    def read(cls, path: Path) -> "HospitalStatus | None":
        """Return the status in ``path``, None while the agent has not written any.

        Raises:
            RunError: it cannot be read or is not a status.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RunError(f"{path} must be readable: {error.strerror}") from None
        except ValidationError as error:
            raise RunError(f"{path} must be a hospital's status; {complaint(error, 'the file')}") from None


class StatusKeeper:
    """Keeps the status file of a running agent up to date, from where the agent before it left off.

    Only a hospital's operator reads it: a disk that refuses is logged, and does not end the round.
    """

    def __init__(self, path: Path, hospital: str, policy: HospitalConfig, clock: Callable[[], float]) -> None:
        self._path = path
        self._clock = clock
        before = self._before()
        if before is None or before.hospital != hospital:
            before = HospitalStatus(hospital=hospital, time=clock(), epsilon_budget=policy.epsilon_budget)
        self._status = before
        self._refusals = Counter(before.refusals)
        self._change(
            epsilon_budget=policy.epsilon_budget,
            evaluation_epsilon_budget=policy.evaluation_epsilon_budget,
            delta=policy.delta,
        )

    def joined(self, run: RunDescription) -> None:
        """Note the run that the hospital takes part in, and what its ε means."""
        self._change(
            run_id=run.run_id,
            unit=run.privacy.unit.value,
            adversary=adversary_of_epsilon(run.privacy),
            accountant=run.privacy.accountant,
        )

    def contributed(
        self,
        round_number: int,
        *,
        spent: float | None,
        evaluation_spent: Mapping[str, float],
        records_per_second: float | None,
        notes: tuple[str, ...],
    ) -> None:
        """Note a round that this hospital took part in; an argument is None where the round had no such figure."""
        changes: dict[str, Any] = {"round": round_number, "notes": notes}
        if spent is not None:
            changes["epsilon_spent"] = spent
        if evaluation_spent:
            changes["evaluation_epsilon_spent"] = dict(evaluation_spent)
        if records_per_second is not None:
            changes["training_records_per_second"] = records_per_second
        self._change(**changes)

    def refused(self, code: str) -> None:
        """Count a refusal."""
        self._refusals[code] += 1
        self._change(refusals=dict(self._refusals))

    def _before(self) -> HospitalStatus | None:
        try:
            return HospitalStatus.read(self._path)
        except RunError as error:
            _LOG.warning("the status starts again: %s", error)
            return None

    def _change(self, **changes: object) -> None:
        self._status = self._status.model_copy(update={"time": self._clock(), **changes})
        try:
            self._status.write(self._path)
        except OSError as error:
            _LOG.warning("%s must be writable: %s", self._path.name, error.strerror)
