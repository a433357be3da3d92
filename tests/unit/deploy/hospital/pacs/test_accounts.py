"""The rows of ``fetched.csv`` survive a kill, and the last one of a study counts."""

import csv
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.data.catalogue import FETCHED_NAME
from common.errors import DataError
from deploy.hospital.pacs.accounts import Accounts, Outcome, StudyAccount

ONE = StudyAccount(Outcome.FETCHED, "A1", "1.2.3", "20240101", 2, 900, "", "images/ab", "CR")
TWO = StudyAccount(Outcome.FAILED, 'A"2,', "1.2.4", "20240102", reason="1 image_damaged", taken="CR")


def test_what_was_added_is_read_again_without_a_close(tmp_path: Path) -> None:
    accounts = Accounts(tmp_path)
    accounts.add(ONE)
    accounts.add(TWO)
    again = Accounts(tmp_path)
    assert (again.of_study("1.2.3"), again.of_study("1.2.4")) == (ONE, TWO)
    assert [line for line, _ in again.numbered()] == [2, 3]


def test_a_line_that_was_cut_short_is_dropped_and_those_before_it_stay(tmp_path: Path) -> None:
    accounts = Accounts(tmp_path)
    accounts.add(ONE)
    accounts.add(TWO)
    content = (tmp_path / FETCHED_NAME).read_bytes()
    for cut in range(1, len(content) - content[:-1].rfind(b"\n")):
        (tmp_path / FETCHED_NAME).write_bytes(content[:-cut])
        again = Accounts(tmp_path)
        assert again.of_study("1.2.3") == ONE
        assert again.of_study("1.2.4") is None


def test_the_last_row_of_a_study_counts_and_the_file_is_made_short_again(tmp_path: Path) -> None:
    accounts = Accounts(tmp_path)
    accounts.add(StudyAccount(Outcome.FAILED, "A1", "1.2.3"))
    accounts.add(ONE)
    accounts.close()
    with (tmp_path / FETCHED_NAME).open(encoding="utf-8", newline="") as file:
        assert [row["outcome"] for row in csv.DictReader(file)] == ["fetched"]


def test_a_number_that_was_not_found_is_forgotten_when_it_is(tmp_path: Path) -> None:
    accounts = Accounts(tmp_path)
    accounts.add(StudyAccount(Outcome.NOT_FOUND, "A1"))
    accounts.add(ONE)
    assert dict(accounts.counts()) == {Outcome.FETCHED: 1}


def test_studies_of_which_only_the_day_is_known_are_counted_one_by_one_and_forgotten_by_day(tmp_path: Path) -> None:
    accounts = Accounts(tmp_path)
    for number, day in ((1, "20240101"), (2, "20240101"), (1, "20240102")):
        accounts.add(StudyAccount(Outcome.FAILED, "", study_date=day, reason=f"{number} of its day"))
    assert accounts.counts()[Outcome.FAILED] == 3
    accounts.forget_unlisted("20240101")
    assert accounts.counts()[Outcome.FAILED] == 1


@pytest.mark.usefixtures("open_umask")
def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    accounts = Accounts(tmp_path)
    accounts.add(ONE)
    accounts.close()
    assert (tmp_path / FETCHED_NAME).stat().st_mode & 0o777 == 0o600


def test_another_file_of_that_name_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / FETCHED_NAME).write_text("accession_number,label\nA1,normal\n")
    with pytest.raises(DataError, match="move it away"):
        Accounts(tmp_path)
    assert (tmp_path / FETCHED_NAME).read_text().startswith("accession_number")


@settings(max_examples=50)
@given(st.text(max_size=16), st.text(max_size=30))
def test_any_number_and_reason_come_back_on_one_line(
    tmp_path_factory: pytest.TempPathFactory, number: str, reason: str
) -> None:
    folder = tmp_path_factory.mktemp("accounts")
    Accounts(folder).add(StudyAccount(Outcome.FAILED, number, "1.2.3", reason=reason))
    assert (folder / FETCHED_NAME).read_bytes().count(b"\n") == 2
    account = Accounts(folder).of_study("1.2.3")
    assert account is not None
    known = " ".join(number.encode("utf-8", "backslashreplace").decode().split())
    assert account.accession_number == known
