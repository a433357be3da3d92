"""The ledger's promises: budget, durability's form, and each way of tampering with it."""

import json
import os
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.ledger import chain as ledger_chain
from client.ledger.chain import Anchor
from client.ledger.ledger import Ledger, accept, export, verify
from common.config import PrivacyUnit
from common.errors import BudgetExceededError, LedgerError, PrivacyError
from common.privacy.accounting import Accountant, MechanismEvent, MechanismKind, epsilon, for_a_group
from common.privacy.budget import Account, Booking, BudgetPolicy
from common.privacy.calibration import noise_multiplier
from tests.support.ledger_of_version_1 import write_ledger

FINGERPRINT = bytes(range(32))
ANOTHER = bytes(32)
RUN, SECOND_RUN = "a1" * 16, "b2" * 16
DELTA = 1e-5
EVENT = MechanismEvent(MechanismKind.POISSON_SUBSAMPLED_GAUSSIAN, 2.0, 0.1, 3)
DISTRIBUTED = MechanismEvent(MechanismKind.DISTRIBUTED_DISCRETE_GAUSSIAN, 1.7, 0.2, 1, 7.99e-30)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


def booking(
    event: MechanismEvent = EVENT,
    account: Account = Account.TRAINING,
    unit: PrivacyUnit = PrivacyUnit.RECORD,
    colluders: int | None = None,
    delta: float = DELTA,
) -> Booking:
    return Booking(account, event, unit, colluders, delta)


def within(
    budget: float,
    delta: float = DELTA,
    unit: PrivacyUnit = PrivacyUnit.RECORD,
    min_colluders: int = 0,
    most_records_per_patient: int | None = None,
) -> BudgetPolicy:
    return BudgetPolicy(budget, delta, unit, min_colluders, most_records_per_patient)


AMPLE = within(1000.0)


def book(ledger: Ledger, rounds: int, event: MechanismEvent = EVENT, run: str = RUN) -> None:
    for round_number in range(1, rounds + 1):
        ledger.record(run, round_number, booking(event), AMPLE, Accountant.RDP)


def of(*events: MechanismEvent, delta: float = DELTA) -> float:
    return epsilon(events, delta, Accountant.RDP)


def spent(ledger: Ledger) -> float:
    return ledger.spent(Account.TRAINING, AMPLE, Accountant.RDP)


def test_what_is_booked_is_composed_over_all_rounds_of_all_runs(folder: Path) -> None:
    ledger = Ledger.open(folder, FINGERPRINT)
    first = ledger.record(RUN, 1, booking(), within(10.0))
    second = ledger.record(SECOND_RUN, 1, booking(DISTRIBUTED, colluders=1), within(10.0))
    assert first == epsilon([EVENT], DELTA)
    assert second == epsilon([EVENT, DISTRIBUTED], DELTA)
    assert Ledger.open(folder, FINGERPRINT).spent(Account.TRAINING, within(10.0)) == second


def test_an_unused_ledger_has_spent_nothing(folder: Path) -> None:
    assert spent(Ledger.open(folder, FINGERPRINT)) == 0.0


def test_a_round_beyond_the_budget_is_refused_and_nothing_is_written(folder: Path) -> None:
    ledger = Ledger.open(folder, FINGERPRINT)
    budget = of(EVENT, EVENT)
    for round_number in (1, 2):
        ledger.record(RUN, round_number, booking(), within(budget), Accountant.RDP)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(BudgetExceededError, match=r"round 3 would bring this hospital to ε = \d.*its budget is"):
        ledger.record(RUN, 3, booking(), within(budget), Accountant.RDP)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert spent(ledger) == budget


@pytest.mark.parametrize("budget", [0.0, -1.0, float("nan")])
def test_a_budget_that_allows_nothing_allows_nothing(folder: Path, budget: float) -> None:
    with pytest.raises(BudgetExceededError):
        Ledger.open(folder, FINGERPRINT).record(RUN, 1, booking(), within(budget), Accountant.RDP)


@pytest.mark.long
def test_no_delta_that_a_run_names_moves_the_hospitals_own(folder: Path) -> None:
    """A budget of 10 that a run filled at .99/n was 14.1 at 1e-5; now it is judged at the hospital's own δ alone."""
    runs_delta = 0.99 / 1177
    noise = noise_multiplier(10.0, runs_delta, 0.1, 100)
    event = MechanismEvent(MechanismKind.POISSON_SUBSAMPLED_GAUSSIAN, noise, 0.1, 10)
    assert epsilon([event] * 10, runs_delta) == pytest.approx(10.0, abs=0.01)
    assert epsilon([event] * 10, 1e-5) == pytest.approx(14.15, abs=0.05)
    ledger = Ledger.open(folder, FINGERPRINT)
    policy = within(10.0, delta=1e-5)
    fitting = max(rounds for rounds in range(10) if epsilon([event] * rounds, 1e-5) <= 10.0)
    for round_number in range(fitting):
        ledger.record(RUN, round_number, booking(event, delta=runs_delta), policy)
    with pytest.raises(BudgetExceededError, match="at δ = 1e-05 for each record of its training data"):
        ledger.record(RUN, fitting, booking(event, delta=runs_delta), policy)
    assert ledger.spent(Account.TRAINING, policy) <= 10.0
    # Nor does a tiny δ that some run names weigh on the budget for good.
    ledger.record(SECOND_RUN, 1, booking(account=Account.TEST, delta=1e-12), policy)
    assert ledger.spent(Account.TEST, policy) == epsilon([EVENT], 1e-5)


def test_each_account_has_a_budget_of_its_own(folder: Path) -> None:
    ledger = Ledger.open(folder, FINGERPRINT)
    once = within(of(EVENT))
    for account in Account:
        assert ledger.record(RUN, 1, booking(account=account), once, Accountant.RDP) == of(EVENT)
    for account in Account:
        with pytest.raises(BudgetExceededError, match=f"of its {account} data"):
            ledger.record(RUN, 2, booking(account=account), once, Accountant.RDP)
    twice = within(of(EVENT, EVENT))
    ledger.record(RUN, 2, booking(account=Account.TEST), twice, Accountant.RDP)
    reopened = Ledger.open(folder, FINGERPRINT)
    totals = [reopened.spent(account, AMPLE, Accountant.RDP) for account in Account]
    assert dict(zip(Account, totals, strict=True)) == {each: of(EVENT) for each in Account} | {
        Account.TEST: of(EVENT, EVENT)
    }


def test_two_bookings_of_a_round_are_written_together_or_not_at_all(folder: Path) -> None:
    ledger = Ledger.open(folder, FINGERPRINT)
    release = booking(DISTRIBUTED, Account.VALIDATION, colluders=0)
    enough, too_little = within(of(DISTRIBUTED)), within(of(DISTRIBUTED) / 2)
    with pytest.raises(BudgetExceededError, match="of its validation data"):
        ledger.record_all(RUN, 1, [(booking(), AMPLE), (release, too_little)], Accountant.RDP)
    assert verify(folder).sequence == 1
    both = ledger.record_all(RUN, 1, [(booking(), AMPLE), (release, enough)], Accountant.RDP)
    assert both == (of(EVENT), of(DISTRIBUTED))
    assert verify(folder).sequence == 3
    # Two of one account are judged with each other.
    with pytest.raises(BudgetExceededError):
        ledger.record_all(RUN, 2, [(booking(), within(of(EVENT, EVENT)))] * 2, Accountant.RDP)
    assert Ledger.open(folder, FINGERPRINT).lines(RUN, Account.TRAINING) == 1


def test_a_full_disk_between_two_bookings_of_a_round_leaves_neither(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger.open(folder, FINGERPRINT)
    append, calls = ledger_chain.append, iter((False, True))

    def failing(connection: sqlite3.Connection, head: Anchor, line: ledger_chain.Line) -> ledger_chain.LedgerEntry:
        if next(calls):
            raise sqlite3.OperationalError("database or disk is full")
        return append(connection, head, line)

    monkeypatch.setattr(ledger_chain, "append", failing)
    with pytest.raises(LedgerError, match="disk is full"):
        ledger.record_all(RUN, 1, [(booking(), AMPLE), (booking(account=Account.TEST), AMPLE)], Accountant.RDP)
    assert verify(folder).sequence == 1
    assert spent(ledger) == 0.0


def test_how_often_a_run_was_booked_is_known_by_account_and_event(folder: Path) -> None:
    ledger = Ledger.open(folder, FINGERPRINT)
    book(ledger, 3)
    book(ledger, 2, run=SECOND_RUN)
    for event in (EVENT, DISTRIBUTED, DISTRIBUTED):
        ledger.record(RUN, 4, booking(event, Account.TEST), AMPLE, Accountant.RDP)
    for each in (ledger, Ledger.open(folder, FINGERPRINT)):
        assert {account: each.lines(RUN, account) for account in Account} == {
            Account.TRAINING: 3,
            Account.VALIDATION: 0,
            Account.TEST: 3,
            Account.STATISTICS: 0,
        }
        assert each.lines(SECOND_RUN, Account.TRAINING) == 2
        assert each.lines(RUN, Account.TEST, DISTRIBUTED) == 2
        assert each.lines(RUN, Account.TRAINING, DISTRIBUTED) == 0


@pytest.mark.long
def test_rounds_for_records_are_no_rounds_for_patients(folder: Path) -> None:
    """50 rounds that protect a record and 50 that protect a patient were 5.59; for a patient with ten it is 80."""
    event = MechanismEvent(MechanismKind.POISSON_SUBSAMPLED_GAUSSIAN, 1.994, 0.1, 5)
    records, patients = booking(event), booking(event, unit=PrivacyUnit.PATIENT)
    ledger = Ledger.open(folder, FINGERPRINT)
    by_record = within(1000.0)
    for round_number in range(50):
        ledger.record(RUN, round_number, records, by_record)
    for round_number in range(50):
        ledger.record(SECOND_RUN, round_number, patients, by_record)
    assert ledger.spent(Account.TRAINING, by_record) == pytest.approx(5.59, abs=0.005)

    by_patient = within(1000.0, unit=PrivacyUnit.PATIENT)
    with pytest.raises(PrivacyError, match=r"bounded for each patient.*states hospital.most_records_per_patient"):
        ledger.spent(Account.TRAINING, by_patient)
    with pytest.raises(PrivacyError, match="most_records_per_patient"):
        ledger.record(SECOND_RUN, 51, patients, by_patient)
    assert verify(folder).sequence == 101

    of_ten = within(1000.0, unit=PrivacyUnit.PATIENT, most_records_per_patient=10)
    assert ledger.spent(Account.TRAINING, of_ten) == pytest.approx(80.8, abs=0.1)
    with pytest.raises(BudgetExceededError, match="for each patient of its training data"):
        ledger.record(SECOND_RUN, 51, patients, within(77.7, unit=PrivacyUnit.PATIENT, most_records_per_patient=10))
    # Where no patient has more than one record, a round for records is one for patients.
    of_one = within(1000.0, unit=PrivacyUnit.PATIENT, most_records_per_patient=1)
    assert ledger.spent(Account.TRAINING, of_one) == ledger.spent(Account.TRAINING, by_record)


def test_a_run_of_a_weaker_unit_is_refused_before_anything_is_written(folder: Path) -> None:
    ledger = Ledger.open(folder, FINGERPRINT)
    by_patient = within(1000.0, unit=PrivacyUnit.PATIENT)
    with pytest.raises(PrivacyError, match=r"sets hospital\.unit to record"):
        ledger.record(RUN, 1, booking(), by_patient, Accountant.RDP)
    assert verify(folder).sequence == 1
    assert ledger.record(RUN, 1, booking(unit=PrivacyUnit.PATIENT), by_patient, Accountant.RDP) == of(EVENT)
    converted = within(1000.0, unit=PrivacyUnit.PATIENT, most_records_per_patient=4)
    total = ledger.record(RUN, 2, booking(), converted, Accountant.RDP)
    assert total == of(EVENT, for_a_group(EVENT, 4))


def test_a_round_whose_noise_withstands_fewer_colluders_is_refused(folder: Path) -> None:
    ledger = Ledger.open(folder, FINGERPRINT)
    ledger.record(RUN, 1, booking(DISTRIBUTED, colluders=1), AMPLE, Accountant.RDP)
    against_two = within(1000.0, min_colluders=2)
    with pytest.raises(PrivacyError, match=r"lowers hospital.min_colluders to 1"):
        ledger.record(RUN, 2, booking(DISTRIBUTED, colluders=1), against_two, Accountant.RDP)
    # A weaker line of before is no less in the way of a strong one.
    with pytest.raises(PrivacyError, match=r"withstands the server with 1 hospital; "):
        ledger.record(RUN, 2, booking(DISTRIBUTED, colluders=2), against_two, Accountant.RDP)
    assert verify(folder).sequence == 2
    # It is in no other account's way, and noise that is complete inside the hospital withstands everyone.
    for colluders in (2, 3, None):
        ledger.record(RUN, 2, booking(DISTRIBUTED, Account.TEST, colluders=colluders), against_two, Accountant.RDP)
    assert ledger.spent(Account.TEST, against_two, Accountant.RDP) == of(*[DISTRIBUTED] * 3)


def test_two_open_ledgers_see_each_others_lines(folder: Path) -> None:
    first, second = Ledger.open(folder, FINGERPRINT), Ledger.open(folder, FINGERPRINT)
    budget = of(*[EVENT] * 4)
    for ledger in (first, second, first, second):
        ledger.record(RUN, 1, booking(), within(budget), Accountant.RDP)
    for ledger in (first, second):
        with pytest.raises(BudgetExceededError):
            ledger.record(RUN, 2, booking(), within(budget), Accountant.RDP)
        assert spent(ledger) == budget
    assert first.head() == second.head() == verify(folder)


def test_threads_of_one_process_take_turns(folder: Path) -> None:
    ledgers = [Ledger.open(folder, FINGERPRINT) for _ in range(4)]
    threads = [threading.Thread(target=book, args=(ledger, 5)) for ledger in ledgers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert spent(Ledger.open(folder, FINGERPRINT)) == of(*[EVENT] * 20)


def test_a_lock_that_is_never_let_go_of_is_an_error_not_a_wait(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger.open(folder, FINGERPRINT)
    monkeypatch.setattr(ledger_chain, "LOCK_SECONDS", 0.0)
    with ledger_chain.exclusive(folder), pytest.raises(LedgerError, match="another process has held the ledger"):
        ledger.record(RUN, 1, booking(), within(10.0))


def test_a_clock_set_back_changes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger.open(folder, FINGERPRINT)
    for round_number, now in enumerate((2e9, 1e9, 5.0, -3.0, 4e9)):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        ledger.record(RUN, round_number, booking(), within(1000.0), Accountant.RDP)
    reopened = Ledger.open(folder, FINGERPRINT)
    assert spent(reopened) == of(*[EVENT] * 5)
    assert [entry["round_number"] for entry in export(folder)["entries"][1:]] == [0, 1, 2, 3, 4]


@pytest.mark.usefixtures("open_umask")
def test_nobody_but_the_hospital_can_read_it(folder: Path) -> None:
    Ledger.open(folder, FINGERPRINT).record(RUN, 1, booking(), within(10.0))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_a_folder_that_others_can_read_is_closed_to_them(folder: Path) -> None:
    folder.mkdir(mode=0o755)
    Ledger.open(folder, FINGERPRINT)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_lines_are_durable_before_record_returns(folder: Path) -> None:
    Ledger.open(folder, FINGERPRINT)
    with ledger_chain.connected(folder) as connection:
        extra = 3
        assert connection.execute("PRAGMA synchronous").fetchone() == (extra,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)


def test_an_anchor_is_on_the_disk_before_it_takes_its_place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Ledger.open(folder, FINGERPRINT)
    done: list[str] = []
    sync, move = os.fsync, Path.replace

    def noted_sync(number: int) -> None:
        done.append(f"synced {Path(f'/proc/self/fd/{number}').readlink().name}")
        sync(number)

    def noted_move(path: Path, target: Path) -> Path:
        done.append(f"moved {path.name}")
        return move(path, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(Path, "replace", noted_move)
    ledger_chain.write_anchor(folder, ledger_chain.read_anchor(folder))
    (new,) = (each.removeprefix("moved ") for each in done if each.startswith("moved "))
    assert done == [f"synced {new}", f"moved {new}", f"synced {folder.name}"]


def test_the_data_set_is_bound(folder: Path) -> None:
    Ledger.open(folder, FINGERPRINT)
    with pytest.raises(LedgerError, match="bound to another data set"):
        Ledger.open(folder, ANOTHER)
    with pytest.raises(LedgerError, match="must be 32 bytes"):
        Ledger.open(folder, b"short")


@pytest.mark.parametrize(
    ("run", "round_number"), [("A1" * 16, 1), ("a1" * 15, 1), ("patient-jones", 1), (RUN, -1)], ids=repr
)
def test_a_line_without_its_form_is_never_written(folder: Path, run: str, round_number: int) -> None:
    ledger = Ledger.open(folder, FINGERPRINT)
    with pytest.raises(LedgerError, match=r"a ledger line's ro?un"):
        ledger.record(run, round_number, booking(), within(10.0), Accountant.RDP)
    assert verify(folder).sequence == 1


def test_a_delta_that_is_no_probability_is_refused(folder: Path) -> None:
    with pytest.raises(PrivacyError, match="δ"):
        Ledger.open(folder, FINGERPRINT).record(RUN, 1, booking(), within(10.0, delta=0.0))


# --- tampering ---


def database(folder: Path) -> sqlite3.Connection:
    """Open the file as someone with a text book would, the append-only triggers out of the way."""
    connection = sqlite3.connect(folder / "ledger.sqlite", isolation_level=None)
    connection.execute("DROP TRIGGER IF EXISTS append_only_update")
    connection.execute("DROP TRIGGER IF EXISTS append_only_delete")
    return connection


def execute(statement: str) -> Callable[[Path], None]:
    def tamper(folder: Path) -> None:
        connection = database(folder)
        connection.execute(statement)
        connection.close()

    return tamper


def recompute_from(first: int) -> Callable[[Path], None]:
    """Lower one line's cost and make all digests after it fit again, but not the anchor."""

    def tamper(folder: Path) -> None:
        connection = database(folder)
        (previous,) = connection.execute("SELECT previous FROM entries WHERE sequence = ?", (first,)).fetchone()
        for sequence, line in connection.execute(
            "SELECT sequence, line FROM entries WHERE sequence >= ? ORDER BY sequence", (first,)
        ).fetchall():
            cheaper = line.replace('"noise_multiplier":2.0', '"noise_multiplier":9.0') if sequence == first else line
            digest = ledger_chain._digest(sequence, previous, cheaper)
            connection.execute(
                "UPDATE entries SET line = ?, previous = ?, digest = ? WHERE sequence = ?",
                (cheaper, previous, digest, sequence),
            )
            previous = digest
        connection.close()

    return tamper


def swap_lines(one: int, other: int) -> Callable[[Path], None]:
    def tamper(folder: Path) -> None:
        connection = database(folder)
        for before, after in ((one, -1), (other, one), (-1, other)):
            connection.execute("UPDATE entries SET sequence = ? WHERE sequence = ?", (after, before))
        connection.close()

    return tamper


def overwrite(name: str, content: bytes) -> Callable[[Path], None]:
    def tamper(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return tamper


def truncate(name: str, share: float) -> Callable[[Path], None]:
    def tamper(folder: Path) -> None:
        os.truncate(folder / name, int((folder / name).stat().st_size * share))

    return tamper


def remove(name: str) -> Callable[[Path], None]:
    def tamper(folder: Path) -> None:
        (folder / name).unlink()

    return tamper


TAMPERING = {
    "a cheaper line": execute(
        "UPDATE entries SET line = replace(line, '\"steps\":3', '\"steps\":1') WHERE sequence = 3"
    ),
    "another run": execute("UPDATE entries SET line = replace(line, 'a1a1', 'b2b2') WHERE sequence = 2"),
    "a digest": execute("UPDATE entries SET digest = previous WHERE sequence = 4"),
    "digests that fit": recompute_from(3),
    "a number for a digest": execute("UPDATE entries SET digest = '7' WHERE sequence = 2"),
    "the last line": execute("DELETE FROM entries WHERE sequence = 5"),
    "a line in the middle": execute("DELETE FROM entries WHERE sequence = 3"),
    "the first line": execute("DELETE FROM entries WHERE sequence = 1"),
    "every line": execute("DELETE FROM entries"),
    "the table": execute("DROP TABLE entries"),
    "two lines swapped": swap_lines(4, 5),
    "a line by hand": execute("INSERT INTO entries SELECT 6, digest, line, digest FROM entries WHERE sequence = 5"),
    "half the database": truncate("ledger.sqlite", 0.5),
    "most of the database": truncate("ledger.sqlite", 0.05),
    "an empty database": truncate("ledger.sqlite", 0.0),
    "no database": remove("ledger.sqlite"),
    "a database of something else": overwrite("ledger.sqlite", b"not a database at all" * 500),
    "no anchor": remove("ledger.anchor"),
    "an empty anchor": overwrite("ledger.anchor", b""),
    "an anchor of something else": overwrite("ledger.anchor", b'{"version":3,"head":{"sequence":1}}'),
    "half the anchor": truncate("ledger.anchor", 0.5),
}


@pytest.mark.parametrize("tamper", TAMPERING.values(), ids=TAMPERING.keys())
def test_tampering_is_detected_and_refused_until_accepted_and_forgets_nothing(
    folder: Path, tamper: Callable[[Path], None]
) -> None:
    book(Ledger.open(folder, FINGERPRINT), 4)
    tamper(folder)
    for use in (lambda: Ledger.open(folder, FINGERPRINT), lambda: verify(folder), lambda: export(folder)):
        with pytest.raises(LedgerError):
            use()
    accept(folder, "looked into it")
    ledger = Ledger.open(folder, FINGERPRINT)
    assert spent(ledger) >= of(*[EVENT] * 4)
    book(ledger, 1)
    assert verify(folder).sequence == 2


def test_a_ledger_put_back_to_an_earlier_state_is_detected(folder: Path) -> None:
    ledger = Ledger.open(folder, FINGERPRINT)
    book(ledger, 2)
    earlier = (folder / "ledger.sqlite").read_bytes()
    book(ledger, 3)
    (folder / "ledger.sqlite").write_bytes(earlier)
    with pytest.raises(LedgerError, match="ends at line 3, but the anchor beside it knows line 6"):
        Ledger.open(folder, FINGERPRINT)
    with pytest.raises(LedgerError, match="put back to an earlier state while in use"):
        ledger.record(RUN, 9, booking(), within(1000.0), Accountant.RDP)
    accept(folder, "the backup was restored by mistake")
    assert spent(Ledger.open(folder, FINGERPRINT)) == of(*[EVENT] * 5)


def test_a_whole_disk_put_back_is_told_only_by_an_anchor_that_was_kept_elsewhere(folder: Path, tmp_path: Path) -> None:
    book(Ledger.open(folder, FINGERPRINT), 2)
    shutil.copytree(folder, tmp_path / "snapshot")
    ledger = Ledger.open(folder, FINGERPRINT)
    book(ledger, 3)
    kept = Anchor.from_text(str(ledger.head()))
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "snapshot", folder)
    assert spent(Ledger.open(folder, FINGERPRINT)) == of(*[EVENT] * 2)
    with pytest.raises(LedgerError, match="the anchor that was kept elsewhere knows line 6"):
        Ledger.open(folder, FINGERPRINT, held=kept)
    with pytest.raises(LedgerError, match="the anchor that was kept elsewhere"):
        verify(folder, kept)


def test_an_anchor_of_another_history_is_not_taken_for_this_one(folder: Path, tmp_path: Path) -> None:
    book(Ledger.open(folder, FINGERPRINT), 3)
    other = Ledger.open(tmp_path / "other", FINGERPRINT)
    book(other, 2)
    with pytest.raises(LedgerError, match="line 3 is not the one"):
        verify(folder, other.head())


def test_a_line_whose_anchor_was_never_written_counts(folder: Path) -> None:
    ledger = Ledger.open(folder, FINGERPRINT)
    book(ledger, 1)
    anchor = (folder / "ledger.anchor").read_bytes()
    book(ledger, 1)
    (folder / "ledger.anchor").write_bytes(anchor)  # as if killed between the line and its anchor
    assert spent(Ledger.open(folder, FINGERPRINT)) == of(EVENT, EVENT)


def test_a_ledger_killed_before_its_first_anchor_goes_on(folder: Path) -> None:
    Ledger.open(folder, FINGERPRINT)
    (folder / "ledger.anchor").unlink()
    assert spent(Ledger.open(folder, FINGERPRINT)) == 0.0


def test_a_new_file_left_behind_by_a_kill_is_no_obstacle(folder: Path) -> None:
    folder.mkdir()
    (folder / "ledger.new").write_bytes(b"half of a datab")
    assert Ledger.open(folder, FINGERPRINT).head().sequence == 1


def test_a_ledger_accepted_while_in_use_is_not_written_to_by_who_had_it_open(folder: Path) -> None:
    in_use = Ledger.open(folder, FINGERPRINT)
    book(in_use, 2)
    accept(folder, "new images were added", ANOTHER)
    with pytest.raises(LedgerError, match="changed or put back"):
        in_use.record(RUN, 3, booking(), within(1000.0), Accountant.RDP)


def test_a_changed_data_set_carries_its_spending_along(folder: Path) -> None:
    book(Ledger.open(folder, FINGERPRINT), 3)
    accept(folder, "new images were added", ANOTHER)
    ledger = Ledger.open(folder, ANOTHER)
    assert spent(ledger) == of(*[EVENT] * 3)
    with pytest.raises(LedgerError, match="another data set"):
        Ledger.open(folder, FINGERPRINT)


def test_what_is_in_order_cannot_be_accepted(folder: Path) -> None:
    book(Ledger.open(folder, FINGERPRINT), 3)
    for fingerprint in (None, FINGERPRINT):
        with pytest.raises(LedgerError, match="nothing needs accepting"):
            accept(folder, "just in case", fingerprint)


def test_accepting_keeps_the_refused_file_and_says_why(folder: Path) -> None:
    book(Ledger.open(folder, FINGERPRINT), 3)
    execute("DELETE FROM entries WHERE sequence = 3")(folder)
    refused = (folder / "ledger.sqlite").read_bytes()
    head = accept(folder, "a colleague tried something")
    assert (folder / "refused-1.sqlite").read_bytes() == refused
    (line,) = export(folder)["entries"]
    assert line["kind"] == "accepted"
    assert line["reason"] == "a colleague tried something"
    assert "line 3 does not follow" in line["fault"]
    assert line["digest"] == head.digest


def test_accepting_twice_adds_nothing_twice(folder: Path) -> None:
    book(Ledger.open(folder, FINGERPRINT), 3)
    for times in (1, 2):
        remove("ledger.anchor")(folder)
        if times == 2:
            book_unanchored(folder)
        accept(folder, f"time {times}")
    assert spent(Ledger.open(folder, FINGERPRINT)) == of(*[EVENT] * 4)
    assert sorted(path.name for path in folder.glob("refused-*")) == ["refused-1.sqlite", "refused-2.sqlite"]


def book_unanchored(folder: Path) -> None:
    book(Ledger.open(folder, FINGERPRINT), 1)
    remove("ledger.anchor")(folder)


def test_when_nothing_tells_what_was_spent_only_the_operator_can_forget(folder: Path) -> None:
    book(Ledger.open(folder, FINGERPRINT), 3)
    for name in ("ledger.sqlite", "ledger.anchor"):
        overwrite(name, b"gone")(folder)
    for fingerprint in (None, FINGERPRINT):
        with pytest.raises(LedgerError, match="or, where there is none, accept with --forget"):
            accept(folder, "no idea", fingerprint)
    accept(folder, "there is no copy", FINGERPRINT, forget=True)
    ledger = Ledger.open(folder, FINGERPRINT)
    assert spent(ledger) == 0.0
    assert export(folder)["entries"][0]["forgotten"] is True
    # Nor is that itself forgotten.
    book(ledger, 1)
    accept(folder, "new images were added", ANOTHER)
    assert export(folder)["entries"][0]["forgotten"] is True


# --- the hospital's audit chain knows the newest line ---


@pytest.mark.parametrize("whole_folder", [True, False])
def test_a_ledger_that_was_removed_is_missed(folder: Path, whole_folder: bool) -> None:
    ledger = Ledger.open(folder, FINGERPRINT)
    book(ledger, 3)
    held = ledger.head()
    if whole_folder:
        shutil.rmtree(folder)
    else:
        for path in folder.glob("ledger.*"):
            path.unlink()
    for use in (lambda: Ledger.open(folder, FINGERPRINT, held), lambda: verify(folder, held)):
        with pytest.raises(LedgerError, match="not here, but the hospital's audit chain knows line 4"):
            use()
    with pytest.raises(LedgerError, match="knows line 4 of the ledger, and nothing here says what it spent"):
        accept(folder, "the disk is new", FINGERPRINT, held)
    with pytest.raises(LedgerError, match="give its fingerprint"):
        accept(folder, "the disk is new", None, held, forget=True)
    accept(folder, "the disk is new", FINGERPRINT, held, forget=True)
    again = Ledger.open(folder, FINGERPRINT, held)
    assert export(folder)["entries"][0]["forgotten"] is True
    book(again, 1)
    assert Ledger.open(folder, FINGERPRINT, again.head()).head() == verify(folder, again.head())


def test_a_ledger_put_back_is_accepted_only_by_forgetting_in_so_many_words(folder: Path, tmp_path: Path) -> None:
    book(Ledger.open(folder, FINGERPRINT), 2)
    shutil.copytree(folder, tmp_path / "snapshot")
    ledger = Ledger.open(folder, FINGERPRINT)
    book(ledger, 3)
    held = ledger.head()
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "snapshot", folder)
    with pytest.raises(LedgerError, match="the anchor that was kept elsewhere knows line 6"):
        Ledger.open(folder, FINGERPRINT, held)
    with pytest.raises(LedgerError, match="put back the newest copy"):
        accept(folder, "restored", held=held)
    accept(folder, "restored", held=held, forget=True)
    (line,) = export(folder)["entries"]
    assert line["forgotten"] is True
    assert line["superseded"] == {"sequence": 6, "digest": held.digest}
    # What the files told stays spent.
    assert spent(Ledger.open(folder, FINGERPRINT, held)) == of(EVENT, EVENT)
    # The decision is about that line alone: a ledger that the decision put aside is not taken again.
    head = Ledger.open(folder, FINGERPRINT, held).head()
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "snapshot", folder)
    with pytest.raises(LedgerError, match="line 1 is not the one that the anchor that was kept elsewhere knows"):
        Ledger.open(folder, FINGERPRINT, head)


def test_a_damaged_ledger_that_has_the_line_forgets_nothing_and_stands_for_it(folder: Path) -> None:
    ledger = Ledger.open(folder, FINGERPRINT)
    book(ledger, 3)
    held = ledger.head()
    for times in (1, 2):
        remove("ledger.anchor")(folder)
        if times == 2:
            book(Ledger.open(folder, FINGERPRINT, held), 1)
            remove("ledger.anchor")(folder)
        accept(folder, f"time {times}", held=held)
        assert export(folder)["entries"][0]["forgotten"] is False
    assert spent(Ledger.open(folder, FINGERPRINT, held)) == of(*[EVENT] * 4)


def test_what_is_in_order_for_the_audit_chain_cannot_be_accepted(folder: Path) -> None:
    ledger = Ledger.open(folder, FINGERPRINT)
    book(ledger, 2)
    with pytest.raises(LedgerError, match="nothing needs accepting"):
        accept(folder, "just in case", held=ledger.head(), forget=True)


# --- ledgers of an earlier version ---


def test_a_ledger_of_version_1_is_taken_over_by_its_operator_and_loses_nothing(folder: Path) -> None:
    write_ledger(folder)
    for use in (lambda: Ledger.open(folder, FINGERPRINT), lambda: verify(folder), lambda: export(folder)):
        with pytest.raises(LedgerError, match=r"of an earlier version.*`confide hospital ledger accept`"):
            use()
    accept(folder, "the new version")
    ledger = Ledger.open(folder, FINGERPRINT)
    assert spent(ledger) == of(EVENT, EVENT, DISTRIBUTED)
    assert ledger.spent(Account.TEST, AMPLE, Accountant.RDP) == 0.0
    local, distributed = (ledger_chain.read_anchor(folder)).bookings
    assert local == booking(MechanismEvent(EVENT.kind, 2.0, 0.1, 6))
    assert distributed == booking(DISTRIBUTED, colluders=0)


@pytest.mark.parametrize("lost", ["ledger.sqlite", "ledger.anchor"])
def test_either_file_of_version_1_tells_everything(folder: Path, lost: str) -> None:
    write_ledger(folder)
    remove(lost)(folder)
    accept(folder, "the new version")
    assert spent(Ledger.open(folder, FINGERPRINT)) == of(EVENT, EVENT, DISTRIBUTED)


def test_a_ledger_of_version_1_counts_for_records_alone_and_against_the_server_alone(folder: Path) -> None:
    write_ledger(folder)
    accept(folder, "the new version")
    ledger = Ledger.open(folder, FINGERPRINT)
    with pytest.raises(PrivacyError, match="most_records_per_patient"):
        ledger.spent(Account.TRAINING, within(10.0, unit=PrivacyUnit.PATIENT))
    with pytest.raises(PrivacyError, match="withstands the server alone"):
        ledger.spent(Account.TRAINING, within(10.0, min_colluders=1))


def test_lines_without_a_data_set_need_it_named(folder: Path) -> None:
    book(Ledger.open(folder, FINGERPRINT), 3)
    remove("ledger.anchor")(folder)
    execute("DELETE FROM entries WHERE sequence = 1")(folder)
    with pytest.raises(LedgerError, match="give its fingerprint"):
        accept(folder, "why")
    accept(folder, "why", FINGERPRINT)
    assert spent(Ledger.open(folder, FINGERPRINT)) == of(*[EVENT] * 3)


@pytest.mark.parametrize("reason", ["", "x" * 1001])
def test_a_decision_without_a_reason_is_none(folder: Path, reason: str) -> None:
    book(Ledger.open(folder, FINGERPRINT), 3)
    remove("ledger.anchor")(folder)
    with pytest.raises(LedgerError, match="reason"):
        accept(folder, reason)
    with pytest.raises(LedgerError):
        verify(folder)


def test_where_there_is_no_ledger_nothing_is_verified_shown_or_accepted(folder: Path) -> None:
    for made in (False, True):
        if made:
            folder.mkdir()
        for use in (lambda: verify(folder), lambda: export(folder), lambda: accept(folder, "why")):
            with pytest.raises(LedgerError, match="there is no ledger here"):
                use()


def test_a_line_of_a_newer_version_is_not_guessed_at(folder: Path) -> None:
    Ledger.open(folder, FINGERPRINT)
    connection = database(folder)
    (line,) = connection.execute("SELECT line FROM entries").fetchone()
    newer = line.replace('"version":2', '"version":3')
    digest = ledger_chain._digest(1, "0" * 64, newer)
    connection.execute("UPDATE entries SET line = ?, digest = ?", (newer, digest))
    connection.close()
    with pytest.raises(LedgerError, match="line 1 cannot be read by this version"):
        verify(folder)


def test_the_file_only_grows(folder: Path) -> None:
    book(Ledger.open(folder, FINGERPRINT), 1)
    with ledger_chain.connected(folder) as connection:
        for statement in ("UPDATE entries SET digest = ''", "DELETE FROM entries"):
            with pytest.raises(sqlite3.IntegrityError, match="only grows"):
                connection.execute(statement)


def test_exports_are_json_and_complete(folder: Path) -> None:
    book(Ledger.open(folder, FINGERPRINT), 2, DISTRIBUTED)
    exported = json.loads(json.dumps(export(folder)))
    assert exported["fingerprint"] == FINGERPRINT.hex()
    assert exported["head"] == str(verify(folder))
    assert [entry["kind"] for entry in exported["entries"]] == ["opened", "spent", "spent"]
    (total,) = exported["bookings"]
    assert total["event"]["noise_multiplier"] == DISTRIBUTED.noise_multiplier
    assert total["event"]["steps"] == 2
    assert (total["account"], total["unit"], total["colluders"]) == ("training", "record", None)


@given(st.floats(1e-3, 1e3), st.floats(1e-9, 1.0), st.integers(1, 2**40), st.floats(0, 0.5))
def test_every_event_is_read_back_to_the_last_bit(noise: float, rate: float, steps: int, approximation: float) -> None:
    event = MechanismEvent(MechanismKind.DISTRIBUTED_DISCRETE_GAUSSIAN, noise, rate, steps, approximation)
    line = ledger_chain.Spent(run_id=RUN, round_number=1, booking=booking(event, colluders=3))
    read = ledger_chain.parsed(line.model_dump_json(), 1)
    assert isinstance(read, ledger_chain.Spent)
    assert read.booking == booking(event, colluders=3)


@settings(max_examples=200)
@given(
    st.one_of(st.text(), st.binary().map(repr), st.from_regex(r'\{"kind":"spent","booking":\{.*\}\}', fullmatch=True))
)
def test_no_text_is_read_as_a_line_unless_it_is_one(text: str) -> None:
    with pytest.raises(LedgerError, match="cannot be read by this version"):
        ledger_chain.parsed(text, 1)


@settings(max_examples=40)
@given(st.data())
def test_any_flipped_byte_of_either_file_is_an_error_or_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory,
    data: Any,  # noqa: ANN401 - Hypothesis's own
) -> None:
    folder = tmp_path_factory.mktemp("flipped") / "ledger"
    book(Ledger.open(folder, FINGERPRINT), 3)
    name = data.draw(st.sampled_from(["ledger.sqlite", "ledger.anchor"]))
    content = bytearray((folder / name).read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    (folder / name).write_bytes(content)
    try:
        total = spent(Ledger.open(folder, FINGERPRINT))
    except LedgerError:
        return
    assert total >= of(*[EVENT] * 3)


def test_a_schema_that_is_no_text_is_an_error_of_the_ledger(folder: Path) -> None:
    """SQLite quotes what it cannot read in its error, and Python fails on the quotation."""
    book(Ledger.open(folder, FINGERPRINT), 3)
    content = (folder / "ledger.sqlite").read_bytes()
    start = content.index(b"CREATE TABLE")
    for place in range(start, start + len(b"CREATE TABLE")):
        (folder / "ledger.sqlite").write_bytes(content[:place] + bytes((content[place] ^ 0x80,)) + content[place + 1 :])
        with pytest.raises(LedgerError):
            Ledger.open(folder, FINGERPRINT)


@pytest.mark.parametrize("text", ["", "7", ":", "7:abc", "-1:" + "0" * 64, "7:" + "G" * 64, "7:" + "0" * 64 + "\n"])
def test_what_is_no_anchor_is_refused(text: str) -> None:
    with pytest.raises(LedgerError, match="an anchor must read"):
        Anchor.from_text(text)


def test_no_error_names_a_path(folder: Path) -> None:
    book(Ledger.open(folder, FINGERPRINT), 2)
    overwrite("ledger.sqlite", b"not a database at all" * 500)(folder)
    with pytest.raises(LedgerError) as caught:
        verify(folder)
    assert not re.search(re.escape(str(folder.parent)), str(caught.value))


def test_the_ledger_is_imported_without_torch() -> None:
    probe = "import sys, client.ledger.ledger; sys.exit('torch' in sys.modules or 'opacus' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], cwd=Path(__file__).parents[4], check=False).returncode == 0
