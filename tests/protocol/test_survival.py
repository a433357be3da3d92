"""Whole runs of the deployed server and agents under adversity: each has its named outcome."""

import datetime
import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from common.errors import RunError
from common.files import write_private
from common.identity.certificates import (
    certificate_pem,
)
from common.run.messages import Request, phase_of
from common.telemetry.events import COMPLETED, Refusal
from deploy.audit.verify import verify
from deploy.experiment.consortium import InProcessConsortium, InProcessTransport, Loss
from server.checkpoints import Checkpoint, CheckpointStore, Draft
from server.transport import Incoming, Outgoing
from tests.support.small_consortium import HOSPITALS, RUN_ID, Dealt, Small, Vanishing, everybody, small

ROUNDS = 3


def together(dealt: Dealt, folder: Path) -> Small:
    """Return a consortium without privacy in which every sum is one over everybody."""
    return small(
        dealt,
        folder,
        policies=everybody(allow_no_privacy=True),
        privacy={"mode": "none"},
        experiment={"rounds": ROUNDS},
        aggregation={"min_hospitals": len(HOSPITALS)},
    )


def model_of(made: Small) -> bytes:
    checkpoint = CheckpointStore(made.folder / "checkpoints").latest(RUN_ID)
    assert checkpoint is not None
    assert checkpoint.step == ROUNDS
    return checkpoint.model[:].tobytes()


def audited(made: Small) -> Small:
    made.consortium = InProcessConsortium(made.config, made.dealt.sites(made.folder), audited=True)
    return made


@dataclass
class VanishingAndRestarted(Vanishing):
    """A hospital that is killed in one exchange and begins anew: what was in its memory is gone."""

    made: Small

    def __call__(self, hospital: str, request: Request) -> Loss | None:
        lost = super().__call__(hospital, request)
        if lost is not None:
            self.made.consortium.restart(hospital)
        return lost


@pytest.mark.parametrize("phase", ["masked_input", "full_unmasking"])
def test_without_privacy_a_killed_hospital_leaves_the_model_as_it_would_be_bit_for_bit(
    dealt: Dealt, tmp_path: Path, phase: str
) -> None:
    undisturbed, disturbed = together(dealt, tmp_path / "a"), together(dealt, tmp_path / "b")
    assert undisturbed.run().train() == COMPLETED
    line = VanishingAndRestarted("hospital-3", 2, phase, Loss.OF_REQUEST, disturbed)
    disturbed.consortium.transport.line = line
    assert disturbed.run().train() == COMPLETED
    assert model_of(disturbed) == model_of(undisturbed)


@pytest.mark.parametrize("phase", ["masked_input", "full_unmasking"])
def test_a_runs_chains_agree_with_each_other_whoever_vanished(dealt: Dealt, tmp_path: Path, phase: str) -> None:
    made = audited(small(dealt, tmp_path, experiment={"rounds": ROUNDS}))
    made.consortium.transport.line = Vanishing("hospital-2", 1, phase, Loss.OF_REPLY)
    assert made.run().train() == COMPLETED
    write_private(tmp_path / "ca.pem", certificate_pem(made.consortium.authority))
    verdict = verify(tmp_path, [tmp_path / name / "audit.jsonl" for name in HOSPITALS], tmp_path / "ca.pem")
    assert verdict.hospitals == HOSPITALS
    assert verdict.steps == ROUNDS
    assert verdict.is_complete


class Garbling(InProcessTransport):
    """Replaces one hospital's vectors by noise of another shape, as a broken or hostile one might send."""

    def _deliver(self, node: int, item: Outgoing) -> Incoming | None:
        incoming = super()._deliver(node, item)
        if incoming is None or node != 2 or phase_of(item.request) != "masked_input":
            return incoming
        return replace(incoming, array=np.frombuffer(os.urandom(64), np.uint8))


def test_a_hospital_that_sends_garbage_is_left_out_of_the_sum(dealt: Dealt, tmp_path: Path) -> None:
    made = small(dealt, tmp_path)
    made.consortium.transport = Garbling(made.consortium.agents)
    assert made.run().train() == COMPLETED
    assert made.hospitals == [3, 3]


def test_a_full_disk_on_the_server_stops_the_run_and_space_lets_it_go_on(
    dealt: Dealt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = small(dealt, tmp_path, experiment={"rounds": ROUNDS})
    draft, drafted = CheckpointStore.draft, []

    def fill_up(store: CheckpointStore, checkpoint: Checkpoint, model: Iterable[NDArray[np.float32]]) -> Draft:
        drafted.append(checkpoint)
        if len(drafted) > 2:
            raise RunError("a checkpoint could not be written: No space left on device")
        return draft(store, checkpoint, model)

    with monkeypatch.context() as patched:
        patched.setattr(CheckpointStore, "draft", fill_up)
        with pytest.raises(RunError, match="No space left"):
            made.run().train()
    assert made.run().train() == COMPLETED
    steps = [event.step for event in made.events if event.kind == "round"]
    assert sorted(set(steps)) == list(range(1, ROUNDS + 1))


def test_a_full_disk_at_a_hospital_makes_it_refuse_and_the_others_go_on(
    dealt: Dealt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = small(dealt, tmp_path)

    def write(path: Path, content: bytes) -> None:
        if "hospital-4" in path.parts:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_private(path, content)

    monkeypatch.setattr("client.round_state.write_private", write)
    assert made.run().train() == COMPLETED
    assert made.hospitals == [3, 3]
    refusal = made.of(Refusal)[0]
    assert (refusal.hospital, refusal.code) == ("hospital-4", "run")
    assert "could not note its answer on disk" in refusal.reason
    assert os.strerror(errno.ENOSPC) not in refusal.reason
    assert f"must be writable: {os.strerror(errno.ENOSPC)}; free space" in caplog.text


@pytest.mark.parametrize("jump", [datetime.timedelta(days=900), datetime.timedelta(days=-900)])
def test_a_clock_that_jumps_makes_a_hospital_refuse_by_name(
    dealt: Dealt, tmp_path: Path, jump: datetime.timedelta
) -> None:
    made = small(dealt, tmp_path)
    agent = made.consortium.agents["hospital-1"]
    agent._here = replace(agent._here, now=lambda: datetime.datetime.now(datetime.UTC) + jump)
    assert made.run().train() == COMPLETED
    assert made.hospitals == [3, 3]
    refusal = made.of(Refusal)[0]
    assert (refusal.hospital, refusal.code) == ("hospital-1", "standing")
    assert "check this machine's clock" in refusal.reason
