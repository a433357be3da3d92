"""Who gets which shard of the demo's data: decided once, when the number of hospitals is stable."""

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from common.config import Config, PrivacyUnit, replace
from common.errors import DataError
from common.files import write_private
from common.shards import ManifestRow, read_description, read_manifest
from common.task import held_by

DEAL_FILE = "deal.json"

FEWEST_STATED = 20
"""Training units that a policy states at least; a hospital with fewer gets a warning, and takes part."""

_DIGITS = 2
"""The significant digits of a count that a demo's hospital states, which so need not follow each record."""


@dataclass(frozen=True)
class DealtCounts:
    """How many units one hospital got in each part, and how many to train on in its smallest class."""

    training: int
    validation: int
    test: int
    per_class: int


def count_dealt(shard: Path, unit: PrivacyUnit) -> DealtCounts:
    """Count what was dealt to one hospital.

    Args:
        shard: its folder.
        unit: what is counted: records, or patients.

    Raises:
        DataError: no whole shard lies there.
    """
    description = read_description(shard)
    if description is None:
        raise DataError(f"{shard} must hold a shard that was dealt; deal the data again")
    rows = read_manifest(shard)
    classes = [set[str]() for _ in description.classes]
    units: dict[str, set[str]] = {"train": set(), "val": set(), "test": set()}
    reader = description.terms.reader
    for row in rows:
        name = _unit_of(row, unit)
        units[row.split].add(name)
        label = reader.read(row.label)
        if row.split == "train" and isinstance(label, int):
            for place in held_by(description.terms, label):
                classes[place].add(name)
    return DealtCounts(len(units["train"]), len(units["val"]), len(units["test"]), min(map(len, classes)))


def stated(dealt: DealtCounts, most: int) -> dict[str, int]:
    """Return what a demo's hospital states about its data, as keys of the section ``hospital`` of its own config.

    Args:
        dealt: what it got; rounded down to two digits, so that what is stated is there.
        most: training units that a run lets one hospital state, ``aggregation.max_weight``.

    >>> list(stated(DealtCounts(1177, 131, 156, 303), 4096).values())
    [1100, 130, 150, 300]
    """
    return {
        "stated_training_units": max(FEWEST_STATED, min(most, _rounded_down(dealt.training))),
        "stated_validation_units": max(1, _rounded_down(dealt.validation)),
        "stated_test_units": max(1, _rounded_down(dealt.test)),
        "stated_units_per_class": _rounded_down(dealt.per_class),
    }


def state_dealt(own: Path, shard: Path, config: Config) -> None:
    """Write a hospital's own configuration, with the statement of what was dealt to it.

    Args:
        own: the file that the hospital reads.
        shard: its folder.
        config: what the statement is added to.
    """
    dealt = count_dealt(shard, config.privacy.unit)
    write_private(own, replace(config, hospital=stated(dealt, config.aggregation.max_weight)).as_yaml())


def _rounded_down(count: int) -> int:
    scale = int(10 ** max(0, len(str(count)) - _DIGITS))
    return count // scale * scale


def _unit_of(row: ManifestRow, unit: PrivacyUnit) -> str:
    is_known = unit is PrivacyUnit.PATIENT and row.patient_id
    return f"patient {row.patient_id}" if is_known else f"row {row.number}"


class Standing(Enum):
    """The answer to a hospital that asks for its shard."""

    WAIT = auto()
    """Nothing is dealt yet."""
    READY = auto()
    """Its shard is there to be taken."""
    SENT = auto()
    """It has taken its shard; there is no second one."""
    LATE = auto()
    """All records were dealt before it came, and no seat is free."""


class _Dealt(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    shards: Annotated[int, Field(ge=1)]
    hospitals: tuple[str, ...]
    """The hospitals in the order of their shards; fewer than shards while seats are free."""
    sent: tuple[str, ...] = ()


class Deal:
    """The one deal of a demo; remembered on disk, so that a dealer that starts again deals nothing twice.

    Args:
        state: the dealer's own folder.
        least: hospitals below which nothing is dealt.
        seats: the fewest shards, so that hospitals may come later; records are never dealt again, because
            a ledger counts what was spent on a hospital's own.
        stable_seconds: how long the number of hospitals must be stable.
        write_shards: writes this many archives and returns them; for the same number always the same.
    """

    def __init__(
        self,
        state: Path,
        least: int,
        seats: int,
        stable_seconds: float,
        write_shards: Callable[[int], Sequence[Path]],
    ) -> None:
        self._path = state / DEAL_FILE
        self._least = least
        self._seats = seats
        self._stable_seconds = stable_seconds
        self._write_shards = write_shards
        self._lock = threading.Lock()
        self._waiting: set[str] = set()
        self._still: tuple[frozenset[str], int] = (frozenset(), 0)
        self._still_since = 0.0
        self._archives: tuple[Path, ...] = ()
        self._dealt = self._remembered()
        if self._dealt is not None:
            self._deal(self._dealt)

    @property
    def hospitals(self) -> tuple[str, ...]:
        """The hospitals that have a shard, in the order of the shards; none before the deal."""
        return self._dealt.hospitals if self._dealt is not None else ()

    def ask(self, hospital: str) -> Standing:
        """Note that a hospital wants its shard, and return how it stands."""
        with self._lock:
            if self._dealt is None:
                self._waiting.add(hospital)
                return Standing.WAIT
            if hospital in self._dealt.sent:
                return Standing.SENT
            if hospital not in self._dealt.hospitals:
                if len(self._dealt.hospitals) == self._dealt.shards:
                    return Standing.LATE
                self._remember(self._dealt.model_copy(update={"hospitals": (*self._dealt.hospitals, hospital)}))
            return Standing.READY

    def archive(self, hospital: str) -> Path:
        """Return where the shard of a hospital that is :attr:`Standing.READY` lies."""
        return self._archives[self.hospitals.index(hospital)]

    def taken(self, hospital: str) -> None:
        """Note that a hospital has its shard on its own disk, and remove the dealer's copy."""
        with self._lock:
            if self._dealt is None or hospital in self._dealt.sent or hospital not in self._dealt.hospitals:
                return
            self._remember(self._dealt.model_copy(update={"sent": (*self._dealt.sent, hospital)}))
            self._archives[self._dealt.hospitals.index(hospital)].unlink(missing_ok=True)

    def look(self, replicas: int, now: float) -> None:
        """Deal if every replica has asked, there are enough, and nothing has changed for long enough.

        Args:
            replicas: hospitals that run, whether they have asked or not.
            now: by a clock that never goes back, in seconds.

        Raises:
            DataError: the data cannot be split among this many.
        """
        with self._lock:
            if self._dealt is not None:
                return
            seen = (frozenset(self._waiting), replicas)
            if seen != self._still:
                self._still, self._still_since = seen, now
            complete = len(self._waiting) >= max(self._least, replicas)
            if complete and now - self._still_since >= self._stable_seconds:
                hospitals = tuple(sorted(self._waiting))
                dealt = _Dealt(shards=max(len(hospitals), self._seats), hospitals=hospitals)
                self._deal(dealt)
                self._remember(dealt)

    def _deal(self, dealt: _Dealt) -> None:
        if len(dealt.sent) == dealt.shards:
            return
        self._archives = tuple(self._write_shards(dealt.shards))
        for name in dealt.sent:
            self._archives[dealt.hospitals.index(name)].unlink()

    def _remember(self, dealt: _Dealt) -> None:
        write_private(self._path, dealt.model_dump_json().encode())
        self._dealt = dealt

    def _remembered(self) -> _Dealt | None:
        try:
            return _Dealt.model_validate(json.loads(self._path.read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, RecursionError, ValueError):
            raise DataError(f"{self._path} must be readable and whole; start the demo again") from None
