"""``confide hospital fetch``: takes studies from the hospital's own PACS into a folder.

``list-images`` and ``check-data`` read that folder. It takes the studies with the given modalities and body parts, of
the given days or with the accession numbers of a table. Every one is accounted for in ``fetched.csv``: fetched, partly,
empty, not wanted, not found, or failed with its reason. A call that was cut short, or in which some studies failed, is
repeated as it was: what is here is not asked for twice.

Nothing that names a patient is printed: the lines of ``fetched.csv`` are named by their numbers.
"""

import datetime
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from client.data.catalogue import FETCHED_NAME, ON_ITS_WAY_FOLDER
from client.data.readers import quiet
from client.data.tables import UnusableTableError, read_table
from common.errors import ConfigError, DataError
from common.files import alone, make_private_folder
from common.shards import MANIFEST_NAME, MAX_MANIFEST_BYTES
from deploy.command import FILE, command
from deploy.hospital.pacs.access import Access, read_access
from deploy.hospital.pacs.accounts import UNSETTLED, Accounts, Outcome
from deploy.hospital.pacs.fetching import Fetching, FetchProgress, Pace
from deploy.hospital.pacs.studies import Pacs, Wanted, is_accession

EXIT_UNSETTLED = 1

PER_MINUTE = 900.0
CONNECTIONS = 4
_MOST_CONNECTIONS = 16
_MOST_PER_MINUTE = 60_000  # A thousand a second is no limit any more.
_SHOWN_LINES = 8
_TOLD_SECONDS = 10.0
"""The time between two lines where the output is no terminal."""

_KEY = "accession_number"


def _day(_context: click.Context, _option: click.Parameter, text: str | None) -> datetime.date | None:
    try:
        return None if text is None else datetime.date.fromisoformat(text)
    except ValueError:
        raise click.BadParameter("it must be a day such as 2024-01-31") from None


@command(
    "fetch",
    "Take studies from the hospital's own PACS into a folder, which list-images and check-data read.\n\n"
    f"Every study is accounted for in {FETCHED_NAME}. Make a call that was cut short, or in which some studies failed, "
    "again as it was: what is here is not asked for twice. The exit code is 1 while a study is not settled.",
    "./confide hospital fetch --pacs pacs.yaml --out /data/export \\\n  --modality CR,DX --from 2024-01-01",
)
@click.option("--pacs", type=FILE, required=True, metavar="FILE", help="How the PACS is reached; mode 600.")
@click.option("--out", type=FILE, required=True, metavar="DIR", help="The export's folder; it may have some.")
@click.option("--modality", multiple=True, required=True, metavar="CR,DX", help="Which series; repeatable.")
@click.option(
    "--body-part",
    multiple=True,
    show_default="all",
    metavar="CHEST",
    help="Words of Body Part Examined; repeatable.",
)
@click.option("--from", "first", callback=_day, metavar="DAY", help="The first day, such as 2024-01-01.")
@click.option("--to", "last", callback=_day, show_default="today", metavar="DAY", help="The last day.")
@click.option(
    "--accessions",
    type=FILE,
    metavar="TABLE",
    help=f"A table with the column {_KEY}, such as that of the findings.",
)
@click.option(
    "--per-minute",
    type=click.FloatRange(0, _MOST_PER_MINUTE, min_open=True),
    default=PER_MINUTE,
    metavar="N",
    help="Studies at most.",
)
@click.option(
    "--connections",
    "most_connections",
    type=click.IntRange(1, _MOST_CONNECTIONS),
    default=CONNECTIONS,
    metavar="N",
    help=f"At a time, 1 to {_MOST_CONNECTIONS}; a C-MOVE has one.",
)
def main(
    *,
    pacs: Path,
    out: Path,
    modality: tuple[str, ...],
    body_part: tuple[str, ...],
    first: datetime.date | None,
    last: datetime.date | None,
    accessions: Path | None,
    per_minute: float,
    most_connections: int,
) -> int:
    """Run the command.

    Returns:
        0 if every study asked for is here, empty or not wanted; 1 if some could not be had, or not all of them.

    Raises:
        ConfideError: an option or the access file is wrong, the PACS is away or refuses, or the disk does.
    """
    access = read_access(pacs)
    if accessions is None and first is None:
        raise ConfigError("--from, or --accessions, must say which studies; --to is today where it is left out")
    wanted = _wanted(modality, body_part, first, last)
    numbers = read_accessions(accessions) if accessions is not None else ()
    console = Console(width=None if sys.stdout.isatty() else 120)
    work = out / ON_ITS_WAY_FOLDER
    make_private_folder(work)
    with _silent(), alone(work / "lock", 0.0):
        accounts = Accounts(out)
        connections = 1 if access.dicom is not None and access.dicom.retrieve == "move" else most_connections
        try:
            with _telling(console) as tell:
                pace = Pace(per_minute)
                fetching = Fetching(_connecting(access), connections, wanted, out, accounts, pace, tell)
                progress = fetching.run(numbers)
        finally:
            accounts.close()
        shutil.rmtree(work, ignore_errors=True)
    _show(console, accounts, progress, out)
    return EXIT_UNSETTLED if any(progress.outcomes[outcome] for outcome in UNSETTLED) else 0


def read_accessions(path: Path) -> tuple[str, ...]:
    """Return the accession numbers of a table, such as that of the findings, each once and in its order.

    Raises:
        DataError: it is no table with this column, has none, or one that is no accession number; names the line only.
    """
    numbers: dict[str, int] = {}
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise DataError(f"--accessions must have at most {MAX_MANIFEST_BYTES} bytes")
        for line, cells in read_table(path.read_bytes(), (_KEY,), (_KEY,)).rows():
            number = cells[_KEY] if cells is not None else ""
            if number and not is_accession(number):
                raise DataError(f"--accessions, line {line}: an accession number has at most 16 letters and no * ? \\")
            if number:
                numbers.setdefault(number, line)
    except OSError as error:
        raise DataError(f"--accessions must be a readable file: {error.strerror}") from None
    except UnusableTableError as problem:
        raise DataError(f"--accessions must be a table with the column {_KEY}: {problem.detail}") from None
    if not numbers:
        raise DataError("--accessions must name at least one study")
    return tuple(numbers)


def _wanted(
    modality: Sequence[str], body_part: Sequence[str], first: datetime.date | None, asked_last: datetime.date | None
) -> Wanted:
    last = asked_last or (datetime.datetime.now(datetime.UTC).date() if first else None)
    if first is not None and last is not None and last < first:
        raise ConfigError("--to must not lie before --from")
    modalities = _words(modality)
    if not modalities:
        raise ConfigError("--modality must name at least one, such as CR,DX")
    return Wanted(modalities, _words(body_part), first, last)


def _words(given: Sequence[str]) -> tuple[str, ...]:
    """Return the words of options that may be repeated and may hold commas, in capitals and in a fixed order.

    >>> _words(["dx,CR", "DX"])
    ('CR', 'DX')
    """
    words = {word.strip().upper() for text in given for word in text.split(",")} - {""}
    for word in words:
        if not word.replace(" ", "").replace("_", "").isalnum():
            raise ConfigError("--modality and --body-part must be words such as CR or CHEST")
    return tuple(sorted(words))


def _connecting(access: Access) -> Callable[[], Pacs]:
    """Return what makes a connection; loads the libraries of that protocol alone."""
    if access.dicomweb is not None:
        from deploy.hospital.pacs.dicomweb import WebPacs

        web = access.dicomweb
        return lambda: WebPacs(web)
    if access.dicom is None:
        raise ConfigError("the access file must have one of the sections dicomweb and dicom")
    from deploy.hospital.pacs.dimse import DicomPacs

    dicom = access.dicom
    return lambda: DicomPacs(dicom)


@contextmanager
def _silent() -> Iterator[None]:
    """Keep the libraries from logging: their lines quote addresses with identifiers in them, and header fields."""
    loggers = [logging.getLogger(name) for name in ("pynetdicom", "httpx", "httpcore", "python_multipart")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with quiet():
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


@contextmanager
def _telling(console: Console) -> Iterator[Callable[[FetchProgress], None]]:
    """Show a bar on a terminal, and elsewhere a line now and then."""
    if not console.is_terminal:
        last = time.monotonic()

        def say(progress: FetchProgress) -> None:
            nonlocal last
            if time.monotonic() - last >= _TOLD_SECONDS:
                last = time.monotonic()
                console.print(f"{progress.done} of {progress.studies} studies: {_said(progress)}", highlight=False)

        yield say
        return
    columns = (
        TextColumn("studies"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[said]}"),
    )
    with Bar(*columns, console=console, transient=True) as bar:
        work = bar.add_task("fetch", said="")
        yield lambda progress: bar.update(
            work, completed=progress.done, total=progress.studies or None, said=_said(progress)
        )


def _said(progress: FetchProgress) -> str:
    counted = [f"{progress.outcomes[outcome]} {outcome.value}" for outcome in Outcome if progress.outcomes[outcome]]
    return ", ".join(counted) or "none accounted for yet"


def _show(console: Console, accounts: Accounts, progress: FetchProgress, folder: Path) -> None:
    """Print the outcomes of this call, then why studies of this folder are not here whole, by line of the file."""
    console.print(f"{progress.done} studies: {_said(progress)}", highlight=False)
    reasons: dict[tuple[Outcome, str], list[int]] = {}
    images = size = 0
    for line, account in accounts.numbered():
        images, size = images + account.images, size + account.size
        if account.outcome is not Outcome.NOT_WANTED and (account.reason or account.outcome is not Outcome.FETCHED):
            reasons.setdefault((account.outcome, account.reason), []).append(line)
    if reasons:
        console.print(_reasons(reasons))
    console.print(f"{images} images, {size / 2**20:.0f} MiB, are in {folder}; {FETCHED_NAME} has a line for each study")
    if (folder / MANIFEST_NAME).exists():
        console.print(f"{MANIFEST_NAME} is from before: list-images makes a new one when it is moved away")
    elif images:
        console.print(f"next: confide hospital list-images {folder} --labels TABLE")


def _reasons(reasons: dict[tuple[Outcome, str], list[int]]) -> Table:
    table = Table(title=f"Look at these lines of {FETCHED_NAME}", title_justify="left")
    for column in ("outcome", "studies", "reason", "lines"):
        table.add_column(column, overflow="fold")
    for (outcome, reason), lines in sorted(reasons.items()):
        shown = ", ".join(map(str, lines[:_SHOWN_LINES]))
        more = f" and {len(lines) - _SHOWN_LINES} more" if len(lines) > _SHOWN_LINES else ""
        table.add_row(outcome.value, str(len(lines)), reason or _WHY[outcome], shown + more)
    return table


_WHY = {Outcome.NOT_FOUND: "the PACS has no study with this accession number"}
