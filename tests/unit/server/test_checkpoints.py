"""A run stands where its last whole checkpoint says."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from common.errors import RunError
from common.evaluation.state import EvaluationState
from common.telemetry.events import RoundTime
from server.checkpoints import Checkpoint, CheckpointStore, arrays_in, keep_file_of
from server.progress import EvaluationProgress, PendingStep, RunProgress

RUN = "a" * 32

PROGRESS = RunProgress(
    threshold=0.5,
    pending=PendingStep(
        round_number=4,
        hospitals=3,
        seconds=1.5,
        upload_bytes=7,
        parts=RoundTime(training=1.0),
        epsilon={"hospital-1": (1.25, math.inf)},
    ),
    evaluation=EvaluationProgress(asked={1: 2, 10: 1}, state=EvaluationState().to_json()),
)


def checkpoint(step: int) -> Checkpoint:
    model = np.arange(5, dtype=np.float32) + step
    return Checkpoint(RUN, step, step + 1, model, {"momentum": model * 2}, step - 1, PROGRESS)


def test_a_checkpoint_reads_back_bit_for_bit(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(checkpoint(3))
    read = store.latest(RUN)
    assert read is not None
    assert (read.step, read.round_number, read.measured_step, read.progress) == (3, 4, 2, PROGRESS)
    assert read.model[:].tobytes() == checkpoint(3).model[:].tobytes()
    assert read.strategy["momentum"].tobytes() == checkpoint(3).strategy["momentum"].tobytes()


def test_an_empty_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path).latest(RUN) is None


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step in range(5):
        store.save(checkpoint(step))
    assert len(list(tmp_path.iterdir())) == 2
    latest = store.latest(RUN)
    assert latest is not None
    assert latest.step == 4


@pytest.mark.parametrize("kept", [-3, 0, 4])
def test_a_truncated_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path, kept: int) -> None:
    store = CheckpointStore(tmp_path)
    store.save(checkpoint(1))
    store.save(checkpoint(2))
    newest = max(tmp_path.iterdir())
    newest.write_bytes(newest.read_bytes()[:kept])
    latest = store.latest(RUN)
    assert latest is not None
    assert latest.step == 1


def test_checkpoints_of_another_run_are_refused(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(replace(checkpoint(1), run_id="b" * 32))
    with pytest.raises(RunError, match="another run"):
        store.latest(RUN)


def test_a_folder_with_damaged_checkpoints_alone_is_no_fresh_start(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(checkpoint(1))
    next(tmp_path.iterdir()).write_bytes(b"")
    with pytest.raises(RunError, match="can be read"):
        store.latest(RUN)


@pytest.mark.parametrize(
    "progress",
    [
        {"pending": {"round_number": 4}},
        {"pending": 7},
        {"threshold": "high"},
        {"evaluation": {"asked": {"1": 2}}},
        {"evaluation": {"asked": {"first": 2}, "state": ""}},
        [],
    ],
)
def test_a_checkpoint_with_a_damaged_record_is_passed_over_for_the_one_before(tmp_path: Path, progress: object) -> None:
    store = CheckpointStore(tmp_path)
    store.save(checkpoint(1))
    store.save(checkpoint(2))
    rewrite_progress(max(tmp_path.iterdir()), progress)
    latest = store.latest(RUN)
    assert latest is not None
    assert latest.step == 1


def test_a_checkpoint_of_a_version_that_wrote_no_record_of_evaluations_is_read(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(checkpoint(1))
    rewrite_progress(next(tmp_path.iterdir()), {"threshold": 0.25, "evaluation": {}})
    latest = store.latest(RUN)
    assert latest is not None
    assert latest.progress == RunProgress(threshold=0.25)


def rewrite_progress(path: Path, progress: object) -> None:
    """Put another record into a checkpoint's header and leave its arrays."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    facts = json.loads(header["__metadata__"]["facts"])
    header["__metadata__"]["facts"] = json.dumps({**facts, "numbers": progress})
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + content[8 + length :])


@pytest.mark.parametrize("has_links", [True, False])
def test_a_checkpoint_keeps_its_second_name_when_the_store_removes_the_first(
    has_links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_path: Path, _target: Path) -> None:
        raise PermissionError

    if not has_links:
        monkeypatch.setattr(Path, "hardlink_to", refused)
    store, kept = CheckpointStore(tmp_path / "store"), tmp_path / "kept"
    kept.write_bytes(b"of an earlier try")
    first = store.save(checkpoint(1))
    expected = [first.model[:], first.strategy["momentum"]]
    keep_file_of(first, kept)
    for step in range(2, 5):
        store.save(checkpoint(step))
    assert not list((tmp_path / "store").glob("step-00000001*"))
    found = arrays_in(kept)
    assert [len(array) for array in found] == [len(array) for array in expected]
    assert all(np.array_equal(array[:], was) for array, was in zip(found, expected, strict=True))


def test_a_file_without_a_model_is_no_checkpoint(tmp_path: Path) -> None:
    save_file({"strategy.velocity": np.zeros(2, np.float32)}, tmp_path / "other")
    with pytest.raises(ValueError, match="without a model"):
        arrays_in(tmp_path / "other")
