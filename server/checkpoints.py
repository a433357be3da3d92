"""The server's memory between rounds: one file per finished step, written whole or not at all."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from common.errors import RunError
from common.identity import sync_folder

VERSION = "1"
_KEPT = 2
"""The last checkpoint, and the one before in case a disk lies about what it has written."""
_MODEL = "model"
_STATE_PREFIX = "strategy."
_HEADER_LENGTH_BYTES = 8
_MAXIMUM_HEADER_BYTES = 1 << 20


@dataclass(frozen=True)
class Checkpoint:
    """Where a run stands.

    Attributes:
        run_id: 32 hexadecimal digits.
        step: finished steps of training; 0 is the initial model.
        round_number: the last round that may have been started; the next one gets a higher number.
        model: (d,) float32.
        strategy: the strategy's own arrays, by name.
        measured_step: the last step whose metrics are written.
        numbers: small facts of the run, such as the upload of a step whose metrics are not written yet.
    """

    run_id: str
    step: int
    round_number: int
    model: NDArray[np.float32]
    strategy: Mapping[str, NDArray[Any]]
    measured_step: int
    numbers: Mapping[str, Any]


class CheckpointStore:
    """A folder of checkpoints; safetensors, so that reading one runs no code."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder

    def save(self, checkpoint: Checkpoint) -> None:
        """Write durably and atomically; older checkpoints than the last but one are removed.

        Raises:
            RunError: the disk is full or the folder cannot be written; earlier checkpoints are untouched.
        """
        arrays = {_MODEL: checkpoint.model}
        arrays.update({_STATE_PREFIX + name: array for name, array in checkpoint.strategy.items()})
        facts = {
            "run_id": checkpoint.run_id,
            "step": checkpoint.step,
            "round_number": checkpoint.round_number,
            "measured_step": checkpoint.measured_step,
            "numbers": dict(checkpoint.numbers),
        }
        content = save(arrays, metadata={"version": VERSION, "facts": json.dumps(facts, sort_keys=True)})
        self._write(self._path(checkpoint.step, checkpoint.round_number), content)
        for old in self._files()[:-_KEPT]:
            old.unlink(missing_ok=True)

    def latest(self, run_id: str) -> Checkpoint | None:
        """Return the newest checkpoint of a run that can be read whole, None if there is none.

        Raises:
            RunError: checkpoints exist and none can be read, or they are another run's.
        """
        files = self._files()
        for path in reversed(files):
            try:
                checkpoint = _read(path)
            except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError, SafetensorError):
                continue
            if checkpoint.run_id != run_id:
                raise RunError(f"{self._folder} holds checkpoints of another run; choose another folder")
            return checkpoint
        if files:
            raise RunError(f"no checkpoint in {self._folder} can be read; restore one or start a new run")
        return None

    def _path(self, step: int, round_number: int) -> Path:
        return self._folder / f"step-{step:08d}-round-{round_number:012d}.safetensors"

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("step-*.safetensors"))

    def _write(self, path: Path, content: bytes) -> None:
        temporary = path.with_suffix(".new")
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_folder(self._folder)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise RunError(
                f"a checkpoint could not be written: {error.strerror}; free space and start again, "
                "the run goes on from the last one"
            ) from None


def _read(path: Path) -> Checkpoint:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_HEADER_LENGTH_BYTES), "little")
        if length > _MAXIMUM_HEADER_BYTES:
            raise ValueError("header too long")
        metadata = json.loads(file.read(length))["__metadata__"]
    if metadata["version"] != VERSION:
        raise ValueError("another version")
    facts = json.loads(metadata["facts"])
    arrays = load_file(path)
    model = arrays.pop(_MODEL)
    return Checkpoint(
        run_id=facts["run_id"],
        step=int(facts["step"]),
        round_number=int(facts["round_number"]),
        model=model,
        strategy={name.removeprefix(_STATE_PREFIX): array for name, array in arrays.items()},
        measured_step=int(facts["measured_step"]),
        numbers=facts["numbers"],
    )
