"""Whole runs in one process that say for which prevalence their model's probabilities are."""

from pathlib import Path

import pytest
import torch

from server.checkpoints import CheckpointStore
from tests.support.small_consortium import RUN_ID, Dealt, everybody, small

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def dealt(tmp_path_factory: pytest.TempPathFactory) -> Dealt:
    return Dealt.into(tmp_path_factory.mktemp("dealt"))


def test_the_prevalence_is_that_of_the_validation_records_that_fixed_the_temperature(
    dealt: Dealt, tmp_path: Path
) -> None:
    run = small(dealt, tmp_path, policies=everybody(allow_exact_evaluation=True), evaluation={"exact": True})
    run.run().train()
    last = CheckpointStore(tmp_path / "checkpoints").latest(RUN_ID)
    assert last is not None
    shares = {part: float((dealt.data.parts[part].labels == 1).mean()) for part in ("val", "test")}
    assert last.progress.temperature is not None
    assert last.progress.prevalence == pytest.approx(shares["val"]) != pytest.approx(shares["test"])
