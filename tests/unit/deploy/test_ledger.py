"""``confide hospital ledger``: what an operator sees and decides."""

import json
from pathlib import Path

import pytest

from client.ledger import LEDGER_FOLDER, Ledger
from common.errors import LedgerError
from common.privacy.accounting import Accountant, MechanismEvent, MechanismKind, epsilon, rounded_up
from deploy.ledger import main

FINGERPRINT = bytes(range(32))
RUN = "a1" * 16
EVENT = MechanismEvent(MechanismKind.POISSON_SUBSAMPLED_GAUSSIAN, 2.0, 0.1, 10)
DELTA = 1e-5


@pytest.fixture
def state(tmp_path: Path) -> Path:
    ledger = Ledger.open(tmp_path / LEDGER_FOLDER, FINGERPRINT)
    for number in (1, 2):
        ledger.record(RUN, number, EVENT, 10.0, DELTA, Accountant.RDP)
    return tmp_path


def told(state: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["ledger", *words, "--state", str(state)]) == 0
    return capsys.readouterr().out


def spoil(state: Path) -> None:
    (file,) = (state / LEDGER_FOLDER).glob("*.sqlite*")
    file.write_bytes(file.read_bytes()[:-100])


def test_show_tells_every_line_and_what_it_comes_to_by_both_accountants(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = told(state, capsys, "show", "--budget", "10")
    assert shown.count("poisson_subsampled_gaussian") == 2
    for accountant in Accountant:
        spent = rounded_up(epsilon([EVENT, EVENT], DELTA, accountant))
        assert f"spent: ε = {spent:.3f} at δ = 1e-05 ({accountant.upper()})" in shown
    assert "for each record" in shown
    left = 10 - rounded_up(epsilon([EVENT, EVENT], DELTA, Accountant.PRV))
    assert f"left of the budget of 10: {left:.3f}" in shown


def test_show_of_an_unused_ledger_says_that_nothing_is_spent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Ledger.open(tmp_path / LEDGER_FOLDER, FINGERPRINT)
    assert told(tmp_path, capsys, "show").endswith("nothing is spent\n")


def test_verify_names_the_head_which_verifies_later(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = told(state, capsys, "verify").removeprefix("whole: ").strip()
    assert head.startswith("3:")
    told(state, capsys, "verify", "--anchor", head)
    with pytest.raises(LedgerError):
        main(["ledger", "verify", "--anchor", f"3:{'0' * 64}", "--state", str(state)])


def test_export_is_json_of_the_whole_ledger(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exported = json.loads(told(state, capsys, "export"))
    assert exported["fingerprint"] == FINGERPRINT.hex()
    assert [entry["kind"] for entry in exported["entries"]] == ["opened", "spent", "spent"]
    assert exported["events"][0]["steps"] == 20


def test_a_damaged_ledger_is_refused_until_the_operator_accepts(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(state)
    with pytest.raises(LedgerError):
        main(["ledger", "verify", "--state", str(state)])
    assert told(state, capsys, "accept", "--reason", "the disk was full").startswith("accepted")
    shown = told(state, capsys, "show")
    assert "accepted with 20 steps spent: the disk was full" in shown


@pytest.mark.parametrize("words", [["verify", "--anchor", "two"], ["accept", "--reason", "x", "--data-set", "no hex"]])
def test_words_that_mean_nothing_are_refused(state: Path, words: list[str]) -> None:
    with pytest.raises(SystemExit):
        main(["ledger", *words, "--state", str(state)])
