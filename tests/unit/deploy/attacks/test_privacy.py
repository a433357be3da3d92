"""The audit lets honest training pass and catches four faults, planted here into the code that is deployed."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from client import training
from client.ledger.ledger import Ledger
from client.training import TrainingData
from common.config import PrivacyConfig, PrivacyMode, PrivacyUnit
from common.errors import PrivacyError, RunError
from common.keystream import Keystream
from common.privacy.budget import Account, BudgetPolicy
from common.privacy.distributed import DistributedMechanism
from common.privacy.schedule import Schedule
from deploy.attacks import privacy as audit_privacy
from deploy.attacks.canary_evaluation import measure_with_a_canary
from deploy.attacks.canary_training import Setting, train_with_canaries
from deploy.attacks.one_run_bound import best_bound
from deploy.attacks.privacy import PrivacyVerdict

torch.set_num_threads(1)

TARGET, DELTA = 4.0, 1e-5


def records() -> TrainingData:
    random = np.random.default_rng(0)
    inputs = random.standard_normal((20, 4)).astype(np.float32)
    return TrainingData.of(inputs, random.integers(0, 2, 20), np.arange(20))


def audited(folder: Path, mode: PrivacyMode = PrivacyMode.LOCAL, seed: int = 1) -> PrivacyVerdict:
    privacy = PrivacyConfig(mode=mode, target_epsilon=TARGET, delta=DELTA)
    setting = Setting(canaries=1000, rounds=30, sample_rate=0.24, hospitals=3, privacy=privacy)
    exposure = train_with_canaries(records(), setting, folder / "ledger", np.random.default_rng(seed).bytes)
    return PrivacyVerdict(setting, exposure, best_bound(exposure.scores, exposure.included, DELTA, 0.95))


@pytest.mark.parametrize("mode", [PrivacyMode.LOCAL, PrivacyMode.DISTRIBUTED])
def test_honest_training_gives_away_something_and_less_than_it_claims(mode: PrivacyMode, tmp_path: Path) -> None:
    verdict = audited(tmp_path, mode)
    assert TARGET - 0.05 < verdict.exposure.claim.value <= TARGET
    assert 0.3 < verdict.bound.epsilon < verdict.exposure.claim.value
    assert not verdict.refuted


def without_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        training, "_noisy_mean", lambda clipped_sum, _, expected_units, __: clipped_sum / expected_units
    )


def without_clipping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_clipping", lambda norms, _: torch.ones(len(norms)))


def with_batches_larger_than_booked(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = training._poisson_batches

    def larger(data: TrainingData, unit: PrivacyUnit, plan: Schedule, stream: Keystream) -> Iterator[Tensor]:
        return honest(data, unit, Schedule(min(1.0, 10 * plan.sample_rate), plan.steps), stream)

    monkeypatch.setattr(training, "_poisson_batches", larger)


def with_a_ledger_that_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Ledger.record

    def record(ledger: Ledger, *what: object) -> float:
        shutil.rmtree(ledger._folder)
        fresh = Ledger.open(ledger._folder, bytes.fromhex(ledger._fingerprint))
        return honest(fresh, *what)  # type: ignore[arg-type]

    monkeypatch.setattr(Ledger, "record", record)


@pytest.mark.parametrize(
    "plant", [without_noise, without_clipping, with_batches_larger_than_booked, with_a_ledger_that_forgets]
)
def test_a_planted_fault_gives_away_more_than_is_claimed(
    plant: Callable[[pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    verdict = audited(tmp_path)
    assert verdict.refuted
    assert verdict.bound.epsilon > 1.2 * verdict.exposure.claim.value
    assert "REFUTED" in audit_privacy.as_text(verdict)


def test_a_sum_without_its_noise_shares_gives_away_more_than_is_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        DistributedMechanism, "noise_share", lambda mechanism, *_: np.zeros(mechanism.dimension, np.int64)
    )
    assert audited(tmp_path, PrivacyMode.DISTRIBUTED).refuted


def test_the_claim_is_what_the_ledger_holds(tmp_path: Path) -> None:
    claim, policy = audited(tmp_path).exposure.claim, BudgetPolicy(TARGET, DELTA)
    bound_to = json.loads((tmp_path / "ledger" / "ledger.anchor").read_text())["fingerprint"]
    assert Ledger.open(tmp_path / "ledger", bytes.fromhex(bound_to)).spent(Account.TRAINING, policy) == claim.value


def test_canaries_that_make_the_data_too_large_for_delta_are_refused(tmp_path: Path) -> None:
    setting = Setting(200, 1, 0.1, 1, PrivacyConfig(delta=0.05))
    with pytest.raises(PrivacyError, match="δ must be"):
        train_with_canaries(records(), setting, tmp_path / "ledger")


def test_the_command_says_what_it_found_and_what_it_cannot_show(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--canaries", "60", "--records", "30", "--rounds", "2", "--sample-rate", "0.3", "--delta", "1e-3"]
    assert audit_privacy.main(["privacy", *small, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "What this cannot show" in printed
    assert "not refuted" in printed
    result = json.loads((tmp_path / "out" / "privacy_audit.json").read_text())
    assert result["refuted"] is False
    assert result["bound"]["canaries"] == 60
    assert (tmp_path / "out" / "privacy_audit.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("wrong", [["--confidence", "1"], ["--canaries", "0"], ["--rounds", "0"]])
def test_what_means_nothing_is_refused(wrong: list[str]) -> None:
    with pytest.raises(RunError, match=wrong[0]):
        audit_privacy.main(["privacy", *wrong])


EVALUATED = PrivacyConfig(target_epsilon=1.0, delta=1e-4)


def test_honest_evaluation_gives_away_something_and_less_than_it_claims(tmp_path: Path) -> None:
    """Row 4 of the findings: one query told membership 100 times of 100; now at most Φ(μ/2), here .562 and sampling."""
    exposure = measure_with_a_canary(2000, 600, 4, EVALUATED, tmp_path, np.random.default_rng(1).bytes)
    bound = best_bound(exposure.scores, exposure.included, 1e-4, 0.95)
    assert 0.98 < exposure.claim.value <= 1.0
    assert bound.epsilon < exposure.claim.value
    assert 0.52 < audit_privacy._best_accuracy(exposure) <= 0.61


def test_evaluation_without_its_noise_is_refuted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        DistributedMechanism, "noise_share", lambda mechanism, *_: np.zeros(mechanism.dimension, np.int64)
    )
    exposure = measure_with_a_canary(2000, 600, 4, EVALUATED, tmp_path, np.random.default_rng(1).bytes)
    assert best_bound(exposure.scores, exposure.included, 1e-4, 0.95).epsilon > exposure.claim.value


@pytest.mark.slow
def test_the_membership_attack_on_evaluation_stays_at_its_bound_over_ten_thousand_trials(tmp_path: Path) -> None:
    exposure = measure_with_a_canary(10_000, 600, 4, EVALUATED, tmp_path)
    assert audit_privacy._best_accuracy(exposure) <= 0.61


def test_the_command_audits_test_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = audit_privacy.main(
        ["privacy", "--part", "test", "--epsilon", "1", "--canaries", "300", "--out", str(tmp_path)]
    )
    assert code == 0
    assert "best accuracy of a guess" in capsys.readouterr().out
    assert (tmp_path / "evaluation_audit.json").exists()
