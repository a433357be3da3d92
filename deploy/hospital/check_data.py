"""``confide hospital check-data``: shows a data manager what stands between the images and a run, and what to do."""

import csv
import io
import itertools
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from client.data.contract import DataContract
from client.data.deidentify import deidentify as write_clean_copies
from client.data.hospital_data import Report, check_data
from client.data.mistakes import Finding, Mistake
from common.config import Config, load_config
from common.errors import DataError, RunError
from common.files import replace_file
from common.privacy.mechanism import mechanism_of
from common.shards import SPLITS
from deploy.command import FILE, command, config_options
from deploy.datasets.tasks import task_of_config

SHOWN_OF_A_KIND = 5
"""Places of one mistake in the table; all of them are in the file of ``--findings``."""

EXIT_UNUSABLE = 1


@command(
    "check-data",
    "Check a hospital's images against what a run asks, before any privacy is spent. Nothing leaves this machine.\n\n"
    "PATH is a folder with manifest.csv, a folder with one folder for each class, or an npz file.",
    "./confide hospital check-data /data/x-rays --findings findings.csv",
)
@click.argument("path", type=FILE)
@click.option("--deidentify", type=FILE, metavar="OUT", help="Write clean copies into this new folder.")
@click.option("--findings", type=FILE, metavar="FILE", help="Write every finding to this CSV file.")
@click.option("--cache", type=FILE, metavar="DIR", help="Keep the prepared images for the agent's start.")
@config_options("the consortium")
def main(
    path: Path,
    deidentify: Path | None,
    findings: Path | None,
    cache: Path | None,
    config_file: Path,
    overrides: tuple[str, ...],
) -> int:
    """Run the command.

    Returns:
        0 if a run may use the data, 1 if something must be put right first.

    Raises:
        ConfideError: the configuration is wrong, the path is missing, or a disk refuses.
    """
    console = Console(width=None if sys.stdout.isatty() else 120)
    contract = contract_of(load_config(config_file, overrides))
    with tempfile.TemporaryDirectory(prefix="confide-check-") as temporary:
        report = _check(path, contract, cache or Path(temporary), console)
    show(report, contract, console)
    if findings is not None:
        _write_findings(report.findings, findings)
    if deidentify is not None:
        copied = write_clean_copies(path, contract, report, deidentify)
        console.print(f"{copied} clean copies with a manifest of pseudonyms are in {deidentify}")
        if copied < report.images:
            console.print(f"{report.images - copied} images were left out: text in the pixels, or not readable.")
    return 0 if report.is_usable else EXIT_UNUSABLE


def contract_of(config: Config) -> DataContract:
    """Return the contract that a run of this configuration would ask hospitals to meet.

    Raises:
        DataError: the task is unknown.
    """
    task = task_of_config(config)
    return DataContract(
        config.experiment.task,
        task.classes,
        task.channels,
        config.model.image_size,
        mechanism_of(config).fewest_records(config.training),
        config.privacy.delta,
        config.privacy.unit,
        config.experiment.min_records_per_class,
        task.terms,
    )


def show(report: Report, contract: DataContract, console: Console) -> None:
    """Print what there is, what is wrong with it, and the verdict."""
    console.print(f"{report.images} images of {report.patients or 'unknown'} patients ({report.layout.value})")
    console.print(_summary(report, contract))
    if report.findings:
        console.print(_findings_table(report.findings))
    blocking = sum(finding.blocks for finding in report.findings)
    if report.is_usable:
        console.print("[green]The data meets the contract.[/green]", _warnings(report))
    else:
        places = "1 place" if blocking == 1 else f"{blocking} places"
        console.print(f"[red]{places} must be put right before a run can use this data.[/red]")


def _check(path: Path, contract: DataContract, cache: Path, console: Console) -> Report:
    columns = TextColumn("checking images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        work = bar.add_task("check")
        return check_data(path, contract, cache, lambda done, whole: bar.update(work, completed=done, total=whole))


def _summary(report: Report, contract: DataContract) -> Table:
    table = Table()
    table.add_column("part")
    for name in contract.classes:
        table.add_column(name, justify="right")
    for split in SPLITS:
        table.add_row(split, *(str(count) for count in report.counts[split]))
    return table


def _findings_table(findings: Sequence[Finding]) -> Table:
    table = Table(title="What was found", title_justify="left", show_lines=True)
    for column in ("mistake", "where", "why it matters", "what to do"):
        table.add_column(column, overflow="fold")
    by_kind = sorted(findings, key=lambda finding: (not finding.blocks, list(Mistake).index(finding.mistake)))
    for (blocks, mistake), group in itertools.groupby(by_kind, key=lambda finding: (finding.blocks, finding.mistake)):
        places = list(group)
        lines = [_place(finding) for finding in places[:SHOWN_OF_A_KIND]]
        if len(places) > SHOWN_OF_A_KIND:
            lines.append(f"and {len(places) - SHOWN_OF_A_KIND} more")
        colour = "red" if blocks else "yellow"
        advice = places[0].advice
        table.add_row(f"[{colour}]{mistake.value}[/{colour}]", "\n".join(lines), advice.reason, advice.remedy)
    return table


def _place(finding: Finding) -> str:
    text = ": ".join(part for part in (finding.where, finding.detail) if part) or "the data as a whole"
    return text.replace("[", r"\[")


def _warnings(report: Report) -> str:
    return f"{len(report.findings)} warnings above." if report.findings else ""


def _write_findings(findings: Sequence[Finding], path: Path) -> None:
    """Write every finding; its first two columns are those of ``accepted.csv``."""
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(("file", "mistake", "blocks", "detail", "reason", "remedy"))
    for finding in findings:
        blocks = "yes" if finding.blocks else "no"
        advice = finding.advice
        table.writerow((finding.where, finding.mistake.value, blocks, finding.detail, advice.reason, advice.remedy))
    try:
        replace_file(path, text.getvalue().encode())
    except RunError as error:
        raise DataError(f"--findings must name a file that can be written: {error}") from None
