"""How well each round's model does on this hospital's own records; never a message, only a file in its state folder.

The figures carry no differential privacy and show what the secure sum hides: they are for the hospital's own staff.
"""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from client.subgroups import GroupResult
from common.complaints import complaint
from common.config import RunId
from common.errors import RunError
from common.evaluation import METRICS, Figures, Metrics
from common.evaluation.metrics import Measure
from common.telemetry.events import Count, Share, Time

OWN_RESULTS_FILE = "own-results.jsonl"
"""A file in a hospital's state folder, readable by the hospital's own user alone: one JSON object a line."""

_LOG = logging.getLogger("confide.hospital")


class AgainstAlone(BaseModel):
    """The run's model and that of the hospital's own records alone, on its test records.

    Of two classes the run's model decides at the run's threshold, and the hospital's own at one that its training
    records gave.

    Attributes:
        records: of the test part.
        together: share of them of which the run's model is right.
        alone: likewise, of the hospital's own.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    records: Count
    together: Share
    alone: Share

    def __repr_args__(self) -> Iterator[tuple[str, object]]:
        """Name no figure: a repr ends up in logs."""
        yield from ()


class OwnResult(Figures):
    """The global model of one round on this hospital's own test part, at the threshold its own validation part gives.

    Attributes:
        time: seconds since the Unix epoch.
        run_id: of the run.
        round: of the protocol; its model is the one that the rounds before made.
        records: of the hospital's test part.
        epsilon_spent: in the hospital's ledger after this round; NaN without differential privacy.
        groups: the same model for each group of the test part; empty where nothing is known of the patients.
        alone: how it compared with the model of the hospital's own records alone; None where the run has not asked.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    time: Time
    run_id: RunId
    round: Count
    records: Count
    epsilon_spent: Measure
    groups: tuple[GroupResult, ...] = ()
    alone: AgainstAlone | None = None

    def __repr_args__(self) -> Iterator[tuple[str, object]]:
        """Name which result this is, and no figure of it: a repr ends up in logs."""
        yield from (("run_id", self.run_id), ("round", self.round))

    @classmethod
    def of(
        cls,
        time: float,
        run_id: str,
        round_number: int,
        own: Metrics,
        groups: tuple[GroupResult, ...],
        epsilon_spent: float,
        alone: AgainstAlone | None = None,
    ) -> "OwnResult":
        """Take the figures worth keeping from a hospital's own metrics."""
        return cls(
            time=time,
            run_id=run_id,
            round=round_number,
            records=own.records,
            **{name: getattr(own, name) for name in METRICS},
            epsilon_spent=epsilon_spent,
            groups=groups,
            alone=alone,
        )


def append(path: Path, result: OwnResult) -> None:
    """Add one line; a disk that refuses is logged, and does not end the round."""
    line = result.model_dump_json() + "\n"  # what is undefined is null
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "w", encoding="utf-8") as file:
            file.write(line)
    except OSError as error:
        _LOG.warning("%s must be writable: %s", path.name, error.strerror)


def read(path: Path) -> tuple[OwnResult, ...]:
    """Return the results in the order they were written, and the last one of a repeated round; none without a file.

    Raises:
        RunError: the file cannot be read, or a whole line is not a result; a last line cut short is left out.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError):
        raise RunError(f"{path} must be a readable file of results") from None
    results: dict[tuple[str, int], OwnResult] = {}
    for number, line in enumerate(lines, start=1):
        if not line.endswith("\n"):  # its writer was killed in the middle of it
            continue
        try:
            result = OwnResult.model_validate_json(line)
        except ValidationError as error:
            raise RunError(f"{path}, line {number}, must be a result; {complaint(error, 'the line')}") from None
        results.pop((result.run_id, result.round), None)
        results[result.run_id, result.round] = result
    return tuple(results.values())
