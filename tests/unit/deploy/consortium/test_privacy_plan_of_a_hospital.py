"""A plan that is held against a hospital's ledger says whether the run fits, and what would."""

from pathlib import Path

import pytest

from client.ledger.ledger import LEDGER_FOLDER, Ledger
from common.config import Config
from common.files import write_private
from common.privacy.budget import Account, BudgetPolicy
from common.privacy.mechanism import mechanism_of
from common.settings import HOSPITAL_SETTINGS_FILE, HospitalSettings
from deploy.consortium.privacy_plan import _described, fitting
from deploy.hospital import policy

CONFIG = Config()
RUN_ID = 32 * "0"
PARAMETERS, CLASSES = 26_000, 2


@pytest.fixture
def state(tmp_path: Path) -> Path:
    write_private(tmp_path / "config.yaml", CONFIG.as_yaml())
    HospitalSettings(fleet_address="server:9092", logs=tmp_path, data=tmp_path, config=tmp_path / "config.yaml").write(
        tmp_path / HOSPITAL_SETTINGS_FILE
    )
    return tmp_path


@pytest.mark.long
def test_the_second_run_by_the_defaults_does_not_fit_and_the_plan_says_what_would(state: Path) -> None:
    assert fitting(CONFIG, state, PARAMETERS, CLASSES).endswith(": it fits")
    run = _described(CONFIG, type(mechanism_of(CONFIG)), PARAMETERS, CLASSES)
    booking = mechanism_of(run).plan(run, PARAMETERS).booking(run.privacy.delta)
    assert booking is not None
    ledger = Ledger.open(state / LEDGER_FOLDER, bytes(32))
    for number in range(CONFIG.experiment.rounds):
        ledger.record(RUN_ID, number, booking, BudgetPolicy.of(CONFIG.hospital, Account.TRAINING))
    told = fitting(CONFIG, state, PARAMETERS, CLASSES)
    assert "refused before its first round" in told
    assert "rounds would fit, or a run with privacy.target_epsilon" in told


def test_a_hospital_that_has_joined_shows_and_changes_its_own_policy(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert policy.main(["policy", "--state", str(state), "--set", "epsilon_budget=12.5"]) == 0
    assert "12.5  (was 10.0)" in capsys.readouterr().out
    assert policy.main(["policy", "--state", str(state)]) == 0
    shown = capsys.readouterr().out
    assert "12.5" in shown
    assert "was" not in shown
