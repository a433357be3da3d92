"""Whole runs with proved sums over real agents and a real server: hospitals compute each model themselves."""

from pathlib import Path

import numpy as np
import pytest

from common.errors import AuditError
from common.proved_sums.parameters import parameters_for
from common.run.messages import Request, phase_of
from common.run.strategies import FedAvg
from common.telemetry.events import COMPLETED, AttackRefused, Exchange, Refusal
from deploy.experiment.consortium import Loss, sound_line
from server.proved_sums import PROOF, SUM, SUMS_FOLDER
from server.run import Run
from tests.support.proving_run import NAME, ProvingRun, proving, trained, verdict
from tests.support.small_consortium import HOSPITALS, Dealt, Vanishing

NONE = {"mode": "none"}


def all_agree(made: ProvingRun, run: Run) -> None:
    """Check that every hospital has computed the server's model and optimiser state, bit for bit."""
    for name in HOSPITALS:
        held = made.model_at(name)
        np.testing.assert_array_equal(held.model, run._checkpoint.model[:])
        for key, array in run._strategy.state().items():
            np.testing.assert_array_equal(held.state[key], array)


@pytest.mark.parametrize(("mode", "strategy"), [("distributed", "fedavg"), ("local", "fedavgm"), ("none", "fedadam")])
def test_every_hospital_computes_the_servers_model_bit_for_bit(
    dealt: Dealt, tmp_path: Path, mode: str, strategy: str
) -> None:
    terms = {"strategy": strategy, "server_learning_rate": 0.01}
    made = proving(dealt, tmp_path, aggregation=terms, privacy={"mode": mode})
    run = trained(made)
    assert run._checkpoint.step == 2
    assert not made.of(Refusal)
    assert not made.of(AttackRefused)
    all_agree(made, run)


@pytest.mark.parametrize(("mode", "bits", "most"), [("local", 16, 12_000), ("distributed", 32, 25_000)])
def test_a_hospital_uploads_12_kilobytes_more_a_round_in_16_bits_and_25_in_32(
    dealt: Dealt, tmp_path: Path, mode: str, bits: int, most: int
) -> None:
    uploads = {}
    for proves in (True, False):
        made = proving(dealt, tmp_path / str(proves), aggregation={"proved_sums": proves}, privacy={"mode": mode})
        assert trained(made)._layout.modulus_bits == bits
        asked = made.of(Exchange)
        vectors = sum(len(each.answered) for each in asked if each.phase == "masked_input")
        uploads[proves] = sum(each.upload_bytes for each in asked) / vectors
    run = made.agent._run
    assert run is not None
    more = uploads[True] - uploads[False]
    assert parameters_for(run.contributor.layout.parameters, bits, len(HOSPITALS)).upload_bytes <= more <= most


def test_a_mean_of_features_is_followed_like_a_step(dealt: Dealt, tmp_path: Path) -> None:
    made = proving(
        dealt,
        tmp_path,
        privacy={"mean_share": 0.2, **NONE},
        model={"name": "scattering_linear"},
        experiment={"rounds": 1},
    )
    run = trained(made)
    assert run._checkpoint.progress.centred
    assert not made.of(AttackRefused)
    all_agree(made, run)


def test_a_hospital_that_was_away_and_one_that_was_restarted_go_on(dealt: Dealt, tmp_path: Path) -> None:
    """Round 2 lacks one, and another is started again; both have the model of the others in the end."""
    made = proving(dealt, tmp_path, privacy=NONE, experiment={"rounds": 4}, audited=True)
    away = Vanishing("hospital-2", 2, "masked_input", Loss.OF_REQUEST)

    def line(hospital: str, request: Request) -> Loss | None:
        if (hospital, request.round_number) == ("hospital-3", 3) and "hospital-3" not in restarted:
            restarted.add(hospital)
            made.consortium.restart(hospital)
        return away(hospital, request)

    restarted: set[str] = set()
    made.consortium.transport.line = line
    run = made.run()
    assert run.train() == COMPLETED
    assert restarted
    assert made.hospitals[1] == 3
    all_agree(made, run)
    assert any(each.startswith("proved sums       4: each model follows") for each in verdict(made))


def test_how_many_rounds_may_be_void_follows_the_roster_while_a_run_goes_on(dealt: Dealt, tmp_path: Path) -> None:
    made = proving(dealt, tmp_path, privacy=NONE, experiment={"rounds": 1})
    trained(made)
    run, proved = made.agent._run, made.agent._proved
    assert run is not None
    assert proved is not None
    more = run.description.model_copy(update={"roster": {**run.description.roster, "hospital-5": ""}})
    proved.go_on_under(more, run.parameters, run.contributor.layout)
    assert proved._held is not None
    assert proved._held.lineage.most_void_rounds == len(HOSPITALS)


@pytest.mark.parametrize("lost_files", ["proved-*", "proved-*.model"])
def test_a_hospital_that_lost_its_disk_joins_with_what_the_others_signed(
    lost_files: str, dealt: Dealt, tmp_path: Path
) -> None:
    """The model alone is lost where the power failed before it was on the disk."""
    made = proving(dealt, tmp_path, privacy=NONE, experiment={"rounds": 4})

    def line(hospital: str, request: Request) -> Loss | None:
        if (hospital, request.round_number) == (NAME, 3) and not lost:
            for path in (tmp_path / NAME).glob(lost_files):
                path.unlink()
                lost.append(path)
            made.consortium.restart(NAME)
        return None

    lost: list[Path] = []
    made.consortium.transport.line = line
    run = made.run()
    assert run.train() == COMPLETED
    assert lost
    all_agree(made, run)


def test_a_survivor_that_vanishes_before_its_last_reply_spoils_no_proof(dealt: Dealt, tmp_path: Path) -> None:
    made = proving(dealt, tmp_path, privacy=NONE, experiment={"rounds": 3})
    made.consortium.transport.line = Vanishing(NAME, 1, "full_unmasking", Loss.OF_REQUEST)
    run = made.run()
    assert run.train() == COMPLETED
    assert not made.of(AttackRefused)
    all_agree(made, run)


def test_a_server_that_is_killed_before_its_step_counts_goes_on_and_the_round_is_void(
    dealt: Dealt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = proving(dealt, tmp_path, privacy=NONE, experiment={"rounds": 3}, audited=True)
    take = Run._take_step

    def killed(run: Run, number: int, *others: object) -> None:
        if number == 2:
            raise KeyboardInterrupt
        take(run, number, *others)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_take_step", killed)
        with pytest.raises(KeyboardInterrupt):
            made.run().train()
    run = made.run()
    assert run.train() == COMPLETED
    assert not made.of(AttackRefused)
    all_agree(made, run)
    lines = verdict(made)
    told = "proved sums       4: each model follows from what hospitals committed to; 4 times a hospital opened a sum"
    assert any(each.startswith(told) for each in lines), lines


def test_a_hospital_that_missed_the_last_sum_is_of_use_after_a_server_was_started_again(
    dealt: Dealt, tmp_path: Path
) -> None:
    """Round numbers jump then. Without it there are too few for a sum, so the run would end."""
    made = proving(dealt, tmp_path, privacy=NONE, experiment={"rounds": 4})

    def line(hospital: str, request: Request) -> Loss | None:
        if phase_of(request) != "masked_input":
            return None
        if request.round_number == 3:
            raise KeyboardInterrupt
        return Loss.OF_REQUEST if hospital == NAME else None

    made.consortium.transport.line = line
    with pytest.raises(KeyboardInterrupt):
        made.run().train()
    assert made.hospitals == [3]
    made.consortium.transport.line = sound_line
    made.consortium.transport.offline.add("hospital-2")
    run = made.run()
    assert run._round > 2 + len(HOSPITALS)
    assert run.train() == COMPLETED
    assert not made.of(AttackRefused)
    assert made.hospitals[1:] == [3, 3, 3]


def test_a_sum_or_a_proof_that_is_changed_on_the_disk_is_found_by_the_audit(dealt: Dealt, tmp_path: Path) -> None:
    made = proving(dealt, tmp_path, privacy=NONE, experiment={"rounds": 1}, audited=True)
    trained(made)
    for kind in (SUM, PROOF):
        (path,) = (tmp_path / SUMS_FOLDER).glob(f"round-*{kind}")
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(AuditError, match=f"{path.name}: must be the file that the server's chain has the hash of"):
            verdict(made)
        path.write_bytes(content)
    assert any("each model follows" in each for each in verdict(made))


def test_an_audit_finds_a_step_that_does_not_follow(
    dealt: Dealt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server takes another step than the one that the proved sum gives, and signs it."""
    made = proving(dealt, tmp_path, privacy=NONE, experiment={"rounds": 1}, audited=True)
    step = FedAvg.step
    with monkeypatch.context() as patch:
        patch.setattr(FedAvg, "step", lambda self, model, change, start=0: step(self, model, 2 * change, start))
        made.consortium.transport.line = lambda _, request: Loss.OF_REQUEST if request.round_number > 1 else None
        made.run().train()
    with pytest.raises(AuditError, match="its model is another than the one that follows from the proved sum"):
        verdict(made)
