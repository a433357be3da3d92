"""The server's memory between rounds: one file per finished step, written whole or not at all."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from common.errors import RunError
from common.files import sync_folder, whole_file
from common.run.flat_model import FlatModel, stretches
from server.progress import RunProgress

VERSION = "1"
_KEPT = 2
"""How many checkpoints are kept: the last one, and the one before in case a disk lies about its writes."""
_MODEL = "model"
_STATE_PREFIX = "strategy."
_HEADER_LENGTH_BYTES = 8
_ALIGNMENT_BYTES = 8
_MAXIMUM_HEADER_BYTES = 1 << 20
_FLOAT32 = "F32"
"""The name that safetensors gives float32."""


@dataclass(frozen=True)
class StoredModel:
    """An array in a checkpoint's file, by default the model; a :class:`common.run.flat_model.FlatModel`."""

    path: Path
    parameters: int
    name: str = _MODEL

    def __len__(self) -> int:
        """Return d, the number of parameters."""
        return self.parameters

    def __getitem__(self, stretch: slice, /) -> NDArray[np.float32]:
        """Read a stretch of the parameters.

        Raises:
            RunError: the file cannot be read any more.
        """
        try:
            with safe_open(self.path, framework="np") as file:
                read: NDArray[np.float32] = file.get_slice(self.name)[stretch]
        except (OSError, SafetensorError) as error:
            raise RunError(f"a run's last checkpoint must stay readable: {error}; start again") from None
        return read


@dataclass(frozen=True)
class Checkpoint:
    """Where a run stands.

    Attributes:
        run_id: 32 hexadecimal digits.
        step: finished steps of training; 0 is the initial model.
        round_number: the last round that may have been started; the next one gets a higher number.
        model: d parameters; of a checkpoint that was saved or read, those in its file.
        strategy: the strategy's own arrays, by name.
        measured_step: the last step whose metrics are written.
        progress: what else a run needs to go on.
    """

    run_id: str
    step: int
    round_number: int
    model: FlatModel
    strategy: Mapping[str, NDArray[Any]]
    measured_step: int
    progress: RunProgress


@dataclass(frozen=True)
class Draft:
    """A checkpoint that is on disk and does not count yet; its model is read from the draft."""

    temporary: Path
    path: Path
    checkpoint: Checkpoint


class CheckpointStore:
    """A folder of checkpoints; safetensors, so that reading one runs no code."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder

    @property
    def run_folder(self) -> Path:
        """Return the folder that the checkpoints' own lies in, which is the run's."""
        return self._folder.parent

    def save(self, checkpoint: Checkpoint) -> Checkpoint:
        """Write a checkpoint, and return it with its model in the file: :meth:`draft` and :meth:`publish` in one."""
        model = checkpoint.model
        return self.publish(self.draft(checkpoint, (model[stretch] for stretch in stretches(len(model)))))

    def draft(self, checkpoint: Checkpoint, model: Iterable[NDArray[np.float32]]) -> Draft:
        """Write a checkpoint durably that does not count yet.

        Args:
            checkpoint: what to write; its own model says only how many parameters there are. The strategy's arrays are
                written as they are when all of ``model`` has been taken.
            model: the parameters, a stretch at a time, so that no more than one is in memory.

        Raises:
            RunError: the disk is full or the folder cannot be written.
        """
        name = f"step-{checkpoint.step:08d}-round-{checkpoint.round_number:012d}"
        temporary, path = self._folder / f"{name}.new", self._folder / f"{name}.safetensors"
        try:
            with temporary.open("wb") as file:
                for part in _content(checkpoint, model):
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise _unwritten(error) from None
        return Draft(temporary, path, replace(checkpoint, model=StoredModel(temporary, len(checkpoint.model))))

    def publish(self, draft: Draft) -> Checkpoint:
        """Let a draft count, atomically; older checkpoints than the last but one are removed.

        Raises:
            RunError: the folder cannot be written; earlier checkpoints are untouched.
        """
        try:
            draft.temporary.replace(draft.path)
            sync_folder(self._folder)
        except OSError as error:
            raise _unwritten(error) from None
        for old in (*self._files()[:-_KEPT], *self._folder.glob("step-*.new")):
            old.unlink(missing_ok=True)
        return replace(draft.checkpoint, model=StoredModel(draft.path, len(draft.checkpoint.model)))

    def latest(self, run_id: str) -> Checkpoint | None:
        """Return the newest checkpoint of a run that can be read whole, None if no file can.

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

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("step-*.safetensors"))


def keep_file_of(checkpoint: Checkpoint, path: Path) -> None:
    """Give a saved checkpoint's file a second name, which stays when the store removes the first.

    Raises:
        OSError: the disk refuses.
        TypeError: it was neither saved nor read.
    """
    if not isinstance(checkpoint.model, StoredModel):
        raise TypeError("a checkpoint must have been saved or read, to have a file")
    path.unlink(missing_ok=True)
    try:
        path.hardlink_to(checkpoint.model.path)
    except OSError:  # A file system without such names.
        with whole_file(path) as file, checkpoint.model.path.open("rb") as saved:
            shutil.copyfileobj(saved, file)


def arrays_in(path: Path) -> tuple[StoredModel, ...]:
    """Return a checkpoint's model, and the strategy's arrays in the order of their names, without reading them.

    Raises:
        OSError, ValueError, SafetensorError: it is no checkpoint.
    """
    with safe_open(path, framework="np") as file:
        lengths = {name: file.get_slice(name).get_shape()[0] for name in file.keys()}  # noqa: SIM118 - it is no mapping
    if _MODEL not in lengths:
        raise ValueError("a checkpoint without a model")
    state = sorted(name for name in lengths if name != _MODEL)
    return tuple(StoredModel(path, lengths[name], name) for name in (_MODEL, *state))


def _content(checkpoint: Checkpoint, model: Iterable[NDArray[np.float32]]) -> Iterator[bytes | memoryview]:
    """Return a checkpoint in the safetensors format, part by part: its library writes from memory alone."""
    facts = {
        "run_id": checkpoint.run_id,
        "step": checkpoint.step,
        "round_number": checkpoint.round_number,
        "measured_step": checkpoint.measured_step,
        "numbers": checkpoint.progress.model_dump(mode="json", exclude_none=True),
    }
    header: dict[str, Any] = {"__metadata__": {"version": VERSION, "facts": json.dumps(facts, sort_keys=True)}}
    lengths = {_MODEL: len(checkpoint.model)}
    lengths.update({_STATE_PREFIX + name: len(array) for name, array in checkpoint.strategy.items()})
    end = 0
    for name, length in lengths.items():
        start, end = end, end + length * np.dtype(np.float32).itemsize
        header[name] = {"dtype": _FLOAT32, "shape": [length], "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % _ALIGNMENT_BYTES)
    yield len(encoded).to_bytes(_HEADER_LENGTH_BYTES, "little")
    yield encoded
    for stretch in model:
        yield np.ascontiguousarray(stretch, "<f4").data.cast("B")
    for array in checkpoint.strategy.values():
        yield np.ascontiguousarray(array, "<f4").data.cast("B")


def _unwritten(error: OSError) -> RunError:
    return RunError(
        f"a checkpoint could not be written: {error.strerror}; free space and start again, "
        "the run continues from the last one"
    )


def _read(path: Path) -> Checkpoint:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_HEADER_LENGTH_BYTES), "little")
        if length > _MAXIMUM_HEADER_BYTES:
            raise ValueError("header too long")
        metadata = json.loads(file.read(length))["__metadata__"]
    if metadata["version"] != VERSION:
        raise ValueError("another version")
    facts = json.loads(metadata["facts"])
    progress = RunProgress.model_validate(facts["numbers"])
    with safe_open(path, framework="np") as file:
        for name in file.keys():  # noqa: SIM118 - it is no mapping
            described = file.get_slice(name)
            if described.get_dtype() != _FLOAT32 or len(described.get_shape()) != 1:
                raise ValueError("an array that is not flat, or not of float32")
        parameters = file.get_slice(_MODEL).get_shape()[0]
        state = [name for name in file.keys() if name != _MODEL]  # noqa: SIM118 - it is no mapping
        strategy = {name.removeprefix(_STATE_PREFIX): file.get_tensor(name) for name in state}
    return Checkpoint(
        run_id=facts["run_id"],
        step=int(facts["step"]),
        round_number=int(facts["round_number"]),
        model=StoredModel(path, parameters),
        strategy=strategy,
        measured_step=int(facts["measured_step"]),
        progress=progress,
    )
