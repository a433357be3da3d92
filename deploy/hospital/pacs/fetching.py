"""Takes studies from a PACS into a folder: each once, at a measured pace, and each accounted for.

Rules:

1. A study is written beside the others in one step, when all of it is here and every file of it was opened; what a kill
   interrupts leaves nothing there.
2. A study that is here as its row says is not asked for again; one that failed is, after those never tried.
3. A file that cannot be read as an image is not kept, and its row says which mistake it has.
4. An answer that holds nothing is asked for once more: under load, Orthanc once listed no series of a study that had
   one, among 4,000.
5. A study that breaks the connection is tried three times. Where several in a row do, the PACS is taken to be away, and
   the command ends: the same command goes on from there.
"""

import datetime
import queue
import shutil
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from client.data.catalogue import ON_ITS_WAY_FOLDER
from client.data.mistakes import Mistake
from client.data.pixels import UnusableImageError
from client.data.readers.dicom import DECODER_ERRORS, is_dicom, parse_dicom, read_dicom
from common.errors import DataError, RunError
from common.files import make_private_folder
from common.shards import MAX_FILE_BYTES
from deploy.hospital.pacs.accounts import UNSETTLED, Accounts, Outcome, StudyAccount, size_of
from deploy.hospital.pacs.files import name_of
from deploy.hospital.pacs.studies import (
    Pacs,
    PacsAwayError,
    PacsError,
    PacsRefusesError,
    PacsStudy,
    Received,
    Series,
    StudyList,
    Wanted,
)

IMAGES_FOLDER = "images"

_TRIES = 3
_FIRST_WAIT_SECONDS = 1.0
"""The pause before the second try; four times as long before the third."""

_MOST_AWAY = 3
"""How many studies in a row find no PACS before it is taken to be away."""

_OF_A_QUERY = 0.1
"""The share of a study's pace that a query for a day or a number takes: it moves no image."""

_AHEAD = 2
"""Studies given to each connection before their turn."""

_DAY = datetime.timedelta(days=1)

_Got = TypeVar("_Got")


class Pace:
    """Lets at most ``per_minute`` pass in a minute, evenly, for all threads together."""

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin now; ``per_minute`` is above 0."""
        self._seconds = 60.0 / per_minute
        self._clock = clock
        self._next = clock()
        self._lock = threading.Lock()
        self.stopped = threading.Event()

    def wait(self, share: float = 1.0) -> None:
        """Wait for the next place, and take a share of it; at once when stopped."""
        with self._lock:
            now = self._clock()
            place = max(now, self._next)
            self._next = place + share * self._seconds
        self.stopped.wait(place - now)


@dataclass
class FetchProgress:
    """How far a call is.

    Attributes:
        studies: how many it must account for; grows while they are listed.
        done: how many it has.
        outcomes: of those.
    """

    studies: int = 0
    done: int = 0
    outcomes: Counter[Outcome] = field(default_factory=Counter)


@dataclass(frozen=True)
class Fetching:
    """One call: what is wanted, of which PACS, into which folder.

    Attributes:
        connect: makes a connection.
        connections: how many at a time.
        wanted: which studies and series.
        folder: of the export; holds ``fetched.csv`` and ``images``.
        accounts: of that folder.
        pace: for queries of days and numbers, and for studies.
        tell: called after each step.
    """

    connect: Callable[[], Pacs]
    connections: int
    wanted: Wanted
    folder: Path
    accounts: Accounts
    pace: Pace
    tell: Callable[[FetchProgress], None] = lambda _progress: None

    def run(self, accessions: Sequence[str]) -> FetchProgress:
        """Fetch all studies of the accession numbers, or of all days where there are none.

        Raises:
            RunError: the PACS is away or refuses; what was done is kept.
            DataError: the disk refuses.
        """
        progress = FetchProgress()
        try:
            studies = self._listed(accessions, progress)
            self._fetch_all(self._to_do(studies, progress), progress)
        except PacsError as error:
            raise RunError(f"{error}; {progress.done} studies are accounted for; the same command goes on") from None
        except OSError as error:
            raise DataError(f"the folder must be writable and have room: {error.strerror}") from None
        return progress

    def _listed(self, accessions: Sequence[str], progress: FetchProgress) -> list[PacsStudy]:
        pacs = self.connect()
        try:
            found = self._by_accession(pacs, accessions, progress) if accessions else self._by_day(pacs, progress)
            return list({study.uid: study for study in found}.values())
        finally:
            pacs.close()

    def _by_day(self, pacs: Pacs, progress: FetchProgress) -> Iterator[PacsStudy]:
        if self.wanted.first is None or self.wanted.last is None:
            raise DataError("a first and a last day, or accession numbers, must be given")
        day = self.wanted.first
        while day <= self.wanted.last:
            self.pace.wait(_OF_A_QUERY)
            found = self._listed_of(pacs, day)
            progress.studies += len(found.studies) + found.unlisted
            self.accounts.forget_unlisted(f"{day:%Y%m%d}")
            for number in range(1, found.unlisted + 1):
                self._account(self._unlisted(f"{day:%Y%m%d}", number), progress)
            self.tell(progress)
            yield from found.studies
            day += _DAY

    def _listed_of(self, pacs: Pacs, day: datetime.date) -> StudyList:
        found = patiently(lambda: pacs.studies_of_day(day, self.wanted.modalities))
        return found if found.studies else patiently(lambda: pacs.studies_of_day(day, self.wanted.modalities))

    def _by_accession(self, pacs: Pacs, accessions: Sequence[str], progress: FetchProgress) -> Iterator[PacsStudy]:
        accounts = self.accounts.by_accession()
        for number in dict.fromkeys(accessions):
            known = accounts.get(number)
            if known and all(self._is_settled(account) for account in known):
                studies = [PacsStudy(account.study_instance_uid, number, account.study_date) for account in known]
            else:
                studies = self._with_accession(pacs, number, progress)
            progress.studies += len(studies)
            self.tell(progress)
            yield from studies

    def _with_accession(self, pacs: Pacs, number: str, progress: FetchProgress) -> list[PacsStudy]:
        """Return the studies of a number, or account for one that the PACS does not have or cannot list."""
        self.pace.wait(_OF_A_QUERY)
        outcome, reason = Outcome.NOT_FOUND, ""
        try:
            studies = patiently(lambda: pacs.studies_of_accession(number) or pacs.studies_of_accession(number))
        except (PacsAwayError, PacsRefusesError):
            raise
        except PacsError as error:
            studies, outcome, reason = [], Outcome.FAILED, str(error)
        if not studies:
            progress.studies += 1
            self._account(StudyAccount(outcome, number, reason=reason, taken=self.wanted.kind), progress)
        return studies

    def _unlisted(self, date: str, number: int) -> StudyAccount:
        reason = f"the PACS cannot list it ({number} of its day)"
        return StudyAccount(Outcome.FAILED, "", study_date=date, reason=reason, taken=self.wanted.kind)

    def _to_do(self, studies: Sequence[PacsStudy], progress: FetchProgress) -> list[PacsStudy]:
        """Count what is here already, and put what failed before behind what was never tried."""
        new: list[PacsStudy] = []
        again: list[PacsStudy] = []
        progress.studies = progress.done + len(studies)
        for study in studies:
            account = self.accounts.of_study(study.uid)
            if account is not None and self._is_settled(account):
                progress.done += 1
                progress.outcomes[account.outcome] += 1
            else:
                (new if account is None else again).append(study)
        self.tell(progress)
        return [*new, *again]

    def _is_settled(self, account: StudyAccount) -> bool:
        """Return whether a study was taken by the same choice and is here, or was not wanted."""
        if account.taken != self.wanted.kind or account.outcome in UNSETTLED or account.outcome is Outcome.EMPTY:
            return False
        is_here = size_of(self.folder / account.folder) == (account.images, account.size)
        return account.outcome is Outcome.NOT_WANTED or is_here

    def _fetch_all(self, studies: Sequence[PacsStudy], progress: FetchProgress) -> None:
        free: queue.Queue[Pacs] = queue.Queue()
        for _ in range(self.connections):
            free.put(self.connect())
        try:
            with ThreadPoolExecutor(self.connections, "fetch") as threads:
                try:
                    accounts = _in_order(threads, lambda study: self._fetch(study, free), studies, self.connections)
                    self._account_all(accounts, progress)
                except BaseException:
                    self.pace.stopped.set()
                    threads.shutdown(wait=True, cancel_futures=True)
                    raise
        finally:
            while not free.empty():
                free.get().close()

    def _account_all(self, accounts: Iterator[StudyAccount], progress: FetchProgress) -> None:
        away = 0
        for account in accounts:
            self._account(account, progress)
            away = away + 1 if account.reason.startswith(_AWAY) else 0
            if away == _MOST_AWAY:
                raise PacsAwayError("the PACS no longer answers")

    def _account(self, account: StudyAccount, progress: FetchProgress) -> None:
        self.accounts.add(account)
        progress.done += 1
        progress.outcomes[account.outcome] += 1
        self.tell(progress)

    def _fetch(self, study: PacsStudy, free: "queue.Queue[Pacs]") -> StudyAccount:
        self.pace.wait()
        pacs = free.get()
        try:
            return patiently(lambda: self._taken(pacs, study), self.pace.stopped)
        except PacsRefusesError:
            raise
        except PacsAwayError as error:
            return self._failed(study, f"{_AWAY}: {error}")
        except PacsError as error:
            return self._failed(study, str(error))
        finally:
            free.put(pacs)

    def _failed(self, study: PacsStudy, reason: str) -> StudyAccount:
        return StudyAccount(
            Outcome.FAILED, study.accession, study.uid, study.date, reason=reason, taken=self.wanted.kind
        )

    def _taken(self, pacs: Pacs, study: PacsStudy) -> StudyAccount:
        """Retrieve the wanted series of a study and put them in place."""
        if not self.wanted.takes_date(study.date):
            return self._without(study, Outcome.NOT_WANTED, "another date")
        every = pacs.series_of(study) or pacs.series_of(study)
        series = [one for one in every if self.wanted.takes_series(one)]
        if not every:
            return self._without(study, Outcome.EMPTY, "the PACS lists no series of it")
        if not series:
            return self._without(study, Outcome.NOT_WANTED, f"no series of {self.wanted.kind}")
        work = self.folder / ON_ITS_WAY_FOLDER / name_of(study.uid)
        shutil.rmtree(work, ignore_errors=True)
        make_private_folder(work)
        received = [_retrieved(pacs, study, one, work) for one in series]
        mistakes = Counter(
            mistake for one in received for file in one.files if (mistake := _mistake_in(file, study)) is not None
        )
        return self._put_in_place(study, series, received, mistakes, work)

    def _put_in_place(
        self,
        study: PacsStudy,
        series: Sequence[Series],
        received: Sequence[Received],
        mistakes: Counter[str],
        work: Path,
    ) -> StudyAccount:
        not_sent = sum(one.not_sent for one in received)
        images, size = size_of(work)
        if not images:
            shutil.rmtree(work)
            if not not_sent and set(mistakes) <= {Mistake.NO_PIXELS.value}:
                return self._without(study, Outcome.EMPTY, _said(mistakes, 0) or "the PACS sent no image")
            return self._without(study, Outcome.FAILED, _said(mistakes, not_sent))
        folder = f"{IMAGES_FOLDER}/{name_of(study.uid)}"
        shutil.rmtree(self.folder / folder, ignore_errors=True)
        make_private_folder(self.folder / IMAGES_FOLDER)
        work.rename(self.folder / folder)
        lacking = _said(mistakes, not_sent)
        unnamed = self.wanted.body_parts and not all(one.body_part for one in series)
        reason = "; ".join(filter(None, (lacking, "its body part is not said" if unnamed else "")))
        outcome = Outcome.PARTLY if lacking else Outcome.FETCHED
        return StudyAccount(
            outcome, study.accession, study.uid, study.date, images, size, reason, folder, self.wanted.kind
        )

    def _without(self, study: PacsStudy, outcome: Outcome, reason: str) -> StudyAccount:
        return StudyAccount(outcome, study.accession, study.uid, study.date, reason=reason, taken=self.wanted.kind)


_AWAY = f"tried {_TRIES} times"


def patiently(call: Callable[[], _Got], stopped: threading.Event | None = None) -> _Got:
    """Call again, after a pause, where a PACS could not be reached.

    Raises:
        PacsError: what the last call raised.
    """
    waiting = stopped or threading.Event()
    seconds = _FIRST_WAIT_SECONDS
    for _ in range(_TRIES - 1):
        try:
            return call()
        except PacsAwayError:
            waiting.wait(seconds)
            seconds *= 4
    return call()


def _retrieved(pacs: Pacs, study: PacsStudy, series: Series, folder: Path) -> Received:
    received = pacs.retrieve(study, series, folder)
    return received if received.files or received.not_sent else pacs.retrieve(study, series, folder)


def _mistake_in(file: Path, study: PacsStudy) -> str | None:
    """Open an image as a check will; name the mistake of one that cannot be used, and remove it."""
    try:
        problem = None if _is_of(file, study) else "of another study"
    except UnusableImageError as unusable:
        problem = unusable.mistake.value
    except DECODER_ERRORS:
        problem = Mistake.IMAGE_DAMAGED.value
    if problem is None:
        file.chmod(0o600)
    else:
        file.unlink()
    return problem


def _is_of(file: Path, study: PacsStudy) -> bool:
    """Decode an image, and tell whether it belongs to a study.

    Raises:
        UnusableImageError: it cannot be decoded.
    """
    if file.stat().st_size > MAX_FILE_BYTES:
        raise UnusableImageError(Mistake.IMAGE_TOO_LARGE)
    content = file.read_bytes()
    if not is_dicom(content):
        raise UnusableImageError(Mistake.NOT_AN_IMAGE)
    dataset = parse_dicom(content)
    is_grey = str(dataset.get("PhotometricInterpretation", "")).startswith("MONOCHROME")
    read_dicom(content, 1 if is_grey else 3)
    return str(dataset.get("StudyInstanceUID", "")) == study.uid


def _said(mistakes: Counter[str], not_sent: int) -> str:
    """Say what is missing of a study; '' if nothing."""
    kinds = [f"{count} {mistake}" for mistake, count in sorted(mistakes.items())]
    return ", ".join([*kinds, *([f"{not_sent} not sent by the PACS"] if not_sent else [])])


def _in_order(
    threads: ThreadPoolExecutor,
    fetch: Callable[[PacsStudy], StudyAccount],
    studies: Sequence[PacsStudy],
    connections: int,
) -> Iterator[StudyAccount]:
    """Fetch on several connections, a few studies ahead of the row that is written."""
    waiting: deque[Future[StudyAccount]] = deque()
    for study in studies:
        waiting.append(threads.submit(fetch, study))
        if len(waiting) > _AHEAD * connections:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
