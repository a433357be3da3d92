"""``confide hospital ledger``: what an operator sees and decides."""

import json
import re
import shutil
from pathlib import Path

import click
import pytest

from client.ledger.chain import Anchor
from client.ledger.ledger import LEDGER_FOLDER, Ledger
from common.audit.chain import AUDIT_FILE
from common.config import PrivacyUnit
from common.errors import LedgerError
from common.privacy.accounting import Accountant, MechanismEvent, MechanismKind, epsilon, rounded_up
from common.privacy.budget import Account, Booking, BudgetPolicy
from deploy.command import WIDTH
from deploy.hospital.ledger import main
from tests.support.ledger_of_version_1 import write_ledger
from tests.support.printed import unwrapped

FINGERPRINT = bytes(range(32))
RUN = "a1" * 16
EVENT = MechanismEvent(MechanismKind.POISSON_SUBSAMPLED_GAUSSIAN, 2.0, 0.1, 10)
RELEASE = MechanismEvent(MechanismKind.DISTRIBUTED_DISCRETE_GAUSSIAN, 4.0, 1.0, 1)
DELTA = 1e-5
POLICY = ("--set", "hospital.delta=1e-5", "--set", "hospital.epsilon_budget=10")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    ledger = Ledger.open(tmp_path / LEDGER_FOLDER, FINGERPRINT)
    policy = BudgetPolicy(10.0, DELTA)
    for number in (1, 2):
        booking = Booking(Account.TRAINING, EVENT, PrivacyUnit.RECORD, None, 1e-4)
        ledger.record(RUN, number, booking, policy, Accountant.RDP)
    release = Booking(Account.TEST, RELEASE, PrivacyUnit.PATIENT, 2, 1e-4)
    ledger.record(RUN, 3, release, policy, Accountant.RDP)
    return tmp_path


def told(state: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["ledger", *words, "--state", str(state)]) == 0
    return capsys.readouterr().out


def spoil(state: Path) -> None:
    (file,) = (state / LEDGER_FOLDER).glob("*.sqlite*")
    file.write_bytes(file.read_bytes()[:-100])


def enter_in_audit_chain(state: Path, ledger: Anchor) -> None:
    body = {"kind": "contributed", "ledger": str(ledger), "epsilon": 1.25, "budget": 10.0}
    (state / AUDIT_FILE).write_text(json.dumps({"previous": 64 * "0", "body": body}) + "\n")


def test_show_tells_every_line_with_account_unit_adversary_and_delta(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = told(state, capsys, "show", *POLICY).splitlines()
    for line in shown[2:4]:
        assert "training" in line
        assert line.endswith(" 10  [1]")
    assert "test" in shown[4]
    assert shown[4].endswith(" 1  [2]")
    assert "[1] each record, against everyone, δ = 1e-04, poisson_subsampled_gaussian" in shown
    note = "[2] each patient, against the server with 2 hospitals, δ = 1e-04, distributed_discrete_gaussian"
    assert note in unwrapped("\n".join(shown))


def test_show_fits_80_columns(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ((), ("--set", "hospital.unit=patient", "--set", "hospital.min_colluders=3")):
        shown = told(state, capsys, "show", *POLICY, *words).splitlines()
        # The head is one word, to be copied as an anchor.
        assert [line for line in shown if len(line) > WIDTH and not re.fullmatch(r" *\d+:[0-9a-f]{64}", line)] == []


def test_show_tells_what_each_account_has_spent_by_the_hospitals_own_policy(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = unwrapped(told(state, capsys, "show", *POLICY))
    prv, rdp = (rounded_up(epsilon([EVENT, EVENT], DELTA, accountant)) for accountant in Accountant)
    assert (
        f"training spent: ε = {prv:.3f} (PRV), {rdp:.3f} (RDP) at δ = 1e-05; left of the budget of 10: {10 - prv:.3f}"
    ) in shown
    assert "validation nothing is spent of 4" in shown
    test = rounded_up(epsilon([RELEASE], DELTA))
    assert f"test spent: ε = {test:.3f} (PRV)" in shown
    assert f"left of the budget of 4: {4 - test:.3f}" in shown
    assert "for each record of its part (zero-out: a record against an empty one" in shown


def test_show_says_why_no_epsilon_can_be_told(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = unwrapped(
        told(state, capsys, "show", *POLICY, "--set", "hospital.unit=patient", "--set", "hospital.min_colluders=3")
    )
    assert "training no ε can be computed, and further rounds are refused" in shown
    assert "hospital.most_records_per_patient" in shown
    assert "test no ε can be computed" in shown
    assert "lowers hospital.min_colluders to 2" in shown
    assert "against the server with up to 3 colluding hospitals" in shown


def test_show_of_an_unused_ledger_says_that_nothing_is_spent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Ledger.open(tmp_path / LEDGER_FOLDER, FINGERPRINT)
    assert told(tmp_path, capsys, "show").count("nothing is spent of") == len(Account)


def test_verify_names_the_head_which_verifies_later(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = told(state, capsys, "verify").removeprefix("whole: ").strip()
    assert head.startswith("4:")
    told(state, capsys, "verify", "--anchor", head)
    with pytest.raises(LedgerError):
        main(["ledger", "verify", "--anchor", f"3:{'0' * 64}", "--state", str(state)])


def test_export_is_json_of_the_whole_ledger(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exported = json.loads(told(state, capsys, "export"))
    assert exported["fingerprint"] == FINGERPRINT.hex()
    assert [entry["kind"] for entry in exported["entries"]] == ["opened", "spent", "spent", "spent"]
    assert exported["bookings"][0]["event"]["steps"] == 20
    assert exported["entries"][3]["booking"]["colluders"] == 2


def test_a_damaged_ledger_is_refused_until_the_operator_accepts(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(state)
    with pytest.raises(LedgerError):
        main(["ledger", "verify", "--state", str(state)])
    assert told(state, capsys, "accept", "--reason", "the disk was full").startswith("accepted")
    shown = unwrapped(told(state, capsys, "show"))
    assert "accepted with 21 steps spent: the disk was full" in shown
    assert "ATTENTION" not in shown


def test_a_ledger_that_the_audit_chain_misses_goes_on_only_by_forgetting_which_show_tells_from_then_on(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    enter_in_audit_chain(state, Ledger.open(state / LEDGER_FOLDER, FINGERPRINT).head())
    told(state, capsys, "verify")
    shutil.rmtree(state / LEDGER_FOLDER)
    with pytest.raises(LedgerError, match="audit chain knows line 4 of it"):
        main(["ledger", "verify", "--state", str(state)])
    accepting = ["accept", "--reason", "a new disk", "--data-set", FINGERPRINT.hex()]
    with pytest.raises(LedgerError, match="accept with --forget"):
        main(["ledger", *accepting, "--state", str(state)])
    shown = capsys.readouterr().out
    assert "the audit chain's newest entry says: ε = 1.25 spent on training (zero-out), line 4" in shown
    assert "accepted; the ledger continues from 1:" in told(state, capsys, *accepting, "--forget")
    assert "ATTENTION: what was spent before line 1 was lost" in unwrapped(told(state, capsys, "show"))
    told(state, capsys, "verify")


def test_a_ledger_of_version_1_is_taken_over_with_all_it_spent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_ledger(tmp_path / LEDGER_FOLDER)
    with pytest.raises(LedgerError, match="of an earlier version of Confide"):
        main(["ledger", "show", "--state", str(tmp_path)])
    told(tmp_path, capsys, "accept", "--reason", "the new version")
    assert "accepted with 7 steps spent: the new version" in unwrapped(told(tmp_path, capsys, "show"))


@pytest.mark.parametrize("words", [["verify", "--anchor", "two"], ["accept", "--reason", "x", "--data-set", "no hex"]])
def test_words_that_mean_nothing_are_refused(state: Path, words: list[str]) -> None:
    with pytest.raises(click.UsageError):
        main(["ledger", *words, "--state", str(state)])
