"""A run stands where its last whole checkpoint says."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.errors import RunError
from server.checkpoints import Checkpoint, CheckpointStore

RUN = "a" * 32


def checkpoint(step: int) -> Checkpoint:
    model = np.arange(5, dtype=np.float32) + step
    return Checkpoint(RUN, step, step + 1, model, {"momentum": model * 2}, step - 1, {"upload_bytes": 7})


def test_a_checkpoint_reads_back_bit_for_bit(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(checkpoint(3))
    read = store.latest(RUN)
    assert read is not None
    assert (read.step, read.round_number, read.measured_step, read.numbers) == (3, 4, 2, {"upload_bytes": 7})
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
