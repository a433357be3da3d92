"""Studies are taken once, at a measured pace, and each is accounted for, whatever a PACS does."""

import datetime
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from common.errors import RunError
from deploy.hospital.pacs import fetching
from deploy.hospital.pacs.accounts import Accounts, Outcome
from deploy.hospital.pacs.fetching import Fetching, FetchProgress, Pace
from deploy.hospital.pacs.files import file_of
from deploy.hospital.pacs.studies import (
    PacsAwayError,
    PacsError,
    PacsRefusesError,
    PacsStudy,
    Received,
    Series,
    StudyList,
    Wanted,
)
from tests.support.hospital_folder import chest_images, dicom

DAY = datetime.date(2024, 1, 5)
WANTED = Wanted(("CR", "DX"), ("CHEST",), DAY, DAY)
CHEST = (Series("1.9", "DX", "CHEST"),)


def image(study: str, number: int = 0) -> bytes:
    return dicom(chest_images()[number], StudyInstanceUID=study)


@dataclass
class Archive:
    """What a PACS holds and does, for all connections to it."""

    studies: dict[str, Sequence[bytes]]
    series: dict[str, tuple[Series, ...]] = field(default_factory=dict)
    troubles: dict[str, list[PacsError]] = field(default_factory=dict)
    unlisted: int = 0
    loses: set[str] = field(default_factory=set)
    asked: Counter[str] = field(default_factory=Counter)
    open: int = 0
    most_open: int = 0

    def loses_once(self, answer: str) -> bool:
        is_lost = answer in self.loses
        self.loses.discard(answer)
        return is_lost

    def connect(self) -> "Connection":
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        return Connection(self)


@dataclass
class Connection:
    """One connection."""

    archive: Archive
    busy: threading.Lock = field(default_factory=threading.Lock)

    def studies_of_day(self, day: datetime.date, modalities: Sequence[str]) -> StudyList:
        assert (day, tuple(modalities)) == (DAY, WANTED.modalities)
        studies = tuple(PacsStudy(uid, f"A{uid[-1]}", f"{day:%Y%m%d}") for uid in self.archive.studies)
        return StudyList(()) if self.archive.loses_once("studies_of_day") else StudyList(studies, self.archive.unlisted)

    def studies_of_accession(self, accession: str) -> list[PacsStudy]:
        self.archive.asked[accession] += 1
        return [PacsStudy(uid, accession, "20240105") for uid in self.archive.studies if f"A{uid[-1]}" == accession]

    def series_of(self, study: PacsStudy) -> list[Series]:
        return [] if self.archive.loses_once("series_of") else list(self.archive.series.get(study.uid, CHEST))

    def retrieve(self, study: PacsStudy, series: Series, folder: Path) -> Received:
        assert self.busy.acquire(blocking=False), "one thread at a time uses a connection"
        try:
            self.archive.asked[study.uid] += 1
            if self.archive.troubles.get(study.uid):
                raise self.archive.troubles[study.uid].pop(0)
            if self.archive.loses_once("retrieve"):
                return Received(())
            files = [file_of(folder, f"1.8.{number}") for number in range(len(self.archive.studies[study.uid]))]
            for path, content in zip(files, self.archive.studies[study.uid], strict=True):
                path.write_bytes(content)
            return Received(tuple(files))
        finally:
            self.busy.release()

    def close(self) -> None:
        self.archive.open -= 1


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_FIRST_WAIT_SECONDS", 0.001)


def run(
    archive: Archive, folder: Path, wanted: Wanted = WANTED, accessions: Sequence[str] = (), connections: int = 1
) -> tuple[FetchProgress, Accounts]:
    folder.mkdir(exist_ok=True)
    accounts = Accounts(folder)
    progress = Fetching(archive.connect, connections, wanted, folder, accounts, Pace(60_000)).run(accessions)
    accounts.close()
    return progress, accounts


def outcome(accounts: Accounts, uid: str) -> tuple[Outcome, str]:
    account = accounts.of_study(uid)
    assert account is not None
    return account.outcome, account.reason


def test_a_study_comes_whole_with_all_its_images(tmp_path: Path) -> None:
    archive = Archive({"1.1": [image("1.1"), image("1.1", 1)]})
    progress, accounts = run(archive, tmp_path / "out")
    assert progress.outcomes == {Outcome.FETCHED: 1}
    account = accounts.of_study("1.1")
    assert account is not None
    files = list((tmp_path / "out" / account.folder).iterdir())
    assert (
        (len(files), sum(path.stat().st_size for path in files)) == (account.images, account.size) == (2, account.size)
    )
    assert archive.open == 0


@pytest.mark.parametrize(
    ("objects", "expected"),
    [
        ([], (Outcome.EMPTY, "the PACS sent no image")),
        ([dicom(chest_images()[0], StudyInstanceUID="1.1", PixelData=None)], (Outcome.EMPTY, "1 no_pixels")),
        ([b"garbage" * 40], (Outcome.FAILED, "1 not_an_image")),
        ([image("1.1")[:-100]], (Outcome.FAILED, "1 image_damaged")),
        ([image("1.7")], (Outcome.FAILED, "1 of another study")),
        ([image("1.1"), image("1.1", 1)[:-9]], (Outcome.PARTLY, "1 image_damaged")),
        (
            [dicom(np.zeros((4, 4), np.uint8), StudyInstanceUID="1.1", NumberOfFrames=9)],
            (Outcome.FAILED, "1 multi_frame"),
        ),
    ],
    ids=["nothing", "no pixels", "garbage", "cut short", "another study", "one of two", "a film"],
)
def test_what_cannot_be_used_is_not_kept_and_its_row_says_why(
    objects: list[bytes], expected: tuple[Outcome, str], tmp_path: Path
) -> None:
    progress, accounts = run(Archive({"1.1": objects}), tmp_path / "out")
    assert outcome(accounts, "1.1") == expected
    assert progress.outcomes == {expected[0]: 1}
    kept = 1 if expected[0] is Outcome.PARTLY else 0
    assert len(list((tmp_path / "out").rglob("*.dcm"))) == kept


@pytest.mark.parametrize(
    ("series", "expected"),
    [
        ((), (Outcome.EMPTY, "the PACS lists no series of it")),
        ((Series("1.9", "CT", "CHEST"),), (Outcome.NOT_WANTED, "no series of CR+DX CHEST")),
        ((Series("1.9", "DX", "KNEE"),), (Outcome.NOT_WANTED, "no series of CR+DX CHEST")),
        ((Series("1.9", "DX", "Chest PA"),), (Outcome.FETCHED, "")),
        ((Series("1.9", "DX", ""),), (Outcome.FETCHED, "its body part is not said")),
        ((Series("1.9", "SR", ""), Series("1.10", "CR", "CHEST")), (Outcome.FETCHED, "")),
    ],
)
def test_series_are_chosen_by_modality_and_body_part_and_an_unsaid_part_is_taken_and_told(
    series: tuple[Series, ...], expected: tuple[Outcome, str], tmp_path: Path
) -> None:
    _, accounts = run(Archive({"1.1": [image("1.1")]}, {"1.1": series}), tmp_path / "out")
    assert outcome(accounts, "1.1") == expected


def test_what_is_here_is_not_asked_for_again_and_what_failed_is_after_the_new(tmp_path: Path) -> None:
    archive = Archive({"1.1": [b"bad" * 90], "1.2": [image("1.2")]})
    run(archive, tmp_path / "out")
    archive.studies = {"1.1": [image("1.1")], "1.2": [image("1.2")], "1.3": [image("1.3")]}
    archive.asked.clear()
    progress, _ = run(archive, tmp_path / "out")
    assert list(archive.asked) == ["1.3", "1.1"]
    assert progress.outcomes == {Outcome.FETCHED: 3}


def test_a_file_that_was_lost_since_is_asked_for_again(tmp_path: Path) -> None:
    archive = Archive({"1.1": [image("1.1")], "1.2": [image("1.2")]})
    _, accounts = run(archive, tmp_path / "out")
    account = accounts.of_study("1.2")
    assert account is not None
    next((tmp_path / "out" / account.folder).iterdir()).unlink()
    archive.asked.clear()
    run(archive, tmp_path / "out")
    assert dict(archive.asked) == {"1.2": 1}


def test_another_choice_of_series_takes_a_study_anew(tmp_path: Path) -> None:
    archive = Archive({"1.1": [image("1.1")]})
    run(archive, tmp_path / "out")
    run(archive, tmp_path / "out", Wanted(("CR", "DX"), (), DAY, DAY))
    assert archive.asked["1.1"] == 2
    assert len(list((tmp_path / "out").rglob("*.dcm"))) == 1


def test_a_pacs_that_breaks_off_is_tried_three_times(tmp_path: Path) -> None:
    archive = Archive({"1.1": [image("1.1")], "1.2": [image("1.2")]})
    archive.troubles = {"1.1": [PacsAwayError("gone")] * 2, "1.2": [PacsAwayError("gone")] * 3}
    _, accounts = run(archive, tmp_path / "out")
    assert outcome(accounts, "1.1") == (Outcome.FETCHED, "")
    assert outcome(accounts, "1.2") == (Outcome.FAILED, "tried 3 times: gone")


def test_a_pacs_that_is_away_ends_the_call_and_every_study_is_fetched_by_a_later_one(tmp_path: Path) -> None:
    archive = Archive({f"1.{number}": [image(f"1.{number}")] for number in range(1, 9)})
    archive.troubles = {f"1.{number}": [PacsAwayError("gone")] * 99 for number in range(3, 9)}
    with pytest.raises(RunError, match="no longer answers; 5 studies are accounted for"):
        run(archive, tmp_path / "out")
    assert archive.asked["1.8"] == 0
    assert archive.open == 0
    archive.troubles = {}
    progress, _ = run(archive, tmp_path / "out")
    assert progress.outcomes == {Outcome.FETCHED: 8}


def test_a_refusal_is_not_tried_again(tmp_path: Path) -> None:
    archive = Archive({"1.1": [image("1.1")]}, troubles={"1.1": [PacsRefusesError("no entry")]})
    with pytest.raises(RunError, match="no entry"):
        run(archive, tmp_path / "out")
    assert archive.asked["1.1"] == 1


def test_studies_that_a_pacs_cannot_list_are_counted_once_however_often_it_is_asked(tmp_path: Path) -> None:
    archive = Archive({"1.1": [image("1.1")]}, unlisted=2)
    for _ in range(2):
        progress, accounts = run(archive, tmp_path / "out")
        assert progress.outcomes == {Outcome.FETCHED: 1, Outcome.FAILED: 2}
        assert progress.studies == progress.done == 3
        assert sum(accounts.counts().values()) == 3


def test_numbers_are_looked_up_once_and_those_without_a_study_are_not_found(tmp_path: Path) -> None:
    archive = Archive({"1.1": [image("1.1")], "1.2": [image("1.2")]})
    for _ in range(2):
        progress, accounts = run(archive, tmp_path / "out", accessions=["A1", "A9", "A1"])
        assert progress.outcomes == {Outcome.FETCHED: 1, Outcome.NOT_FOUND: 1}
        assert accounts.of_study("1.2") is None
    assert archive.asked["A1"] == 1
    assert archive.asked["A9"] == 4  # twice in each call, as it might have been lost


def test_a_study_of_a_number_but_of_another_date_is_not_wanted(tmp_path: Path) -> None:
    wanted = Wanted(("DX",), (), datetime.date(2024, 2, 1), None)
    _, accounts = run(Archive({"1.1": [image("1.1")]}), tmp_path / "out", wanted, ["A1"])
    assert outcome(accounts, "1.1") == (Outcome.NOT_WANTED, "another date")


def test_an_answer_that_was_lost_is_asked_for_once_more(tmp_path: Path) -> None:
    archive = Archive({"1.1": [image("1.1")]}, loses={"studies_of_day", "series_of", "retrieve"})
    _, accounts = run(archive, tmp_path / "out")
    assert archive.loses == set()
    assert outcome(accounts, "1.1") == (Outcome.FETCHED, "")


def test_several_connections_share_the_studies(tmp_path: Path) -> None:
    archive = Archive({f"1.{number}": [image(f"1.{number}")] for number in range(1, 31)})
    progress, _ = run(archive, tmp_path / "out", connections=3)
    assert progress.outcomes == {Outcome.FETCHED: 30}
    assert set(archive.asked.values()) == {1}
    assert (archive.most_open, archive.open) == (3, 0)


def test_a_pace_lets_evenly_pass_whichever_thread_asks() -> None:
    now = 0.0
    waited: list[float] = []

    class Stopped(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waited.append(round(timeout or 0.0, 6))
            return False

    pace = Pace(120, lambda: now)
    pace.stopped = Stopped()
    for _ in range(3):
        pace.wait()
    now = 10.0
    pace.wait()
    pace.wait(0.1)
    pace.wait()
    assert waited == [0.0, 0.5, 1.0, 0.0, 0.5, 0.55]
