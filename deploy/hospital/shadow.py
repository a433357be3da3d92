"""``confide hospital shadow``: a silent trial week by week; nothing leaves the hospital.

Answers that ``confide predict --store`` kept are compared with labels from reports, and with answers on the hospital's
own training images, which say what scores and images the model knows.

**Drift.** With m reference values, the j-th smallest and the j-th largest, j = m / 100, end the known range.
Of n new values from the same distribution the number outside follows a beta-binomial law with parameters n, 2j and
m + 1 - 2j, whatever that distribution is. A line says drift where so many have a chance below 1 in 1,000. Four
statistics a week for a year then raise a false alarm in one trial of five.
"""

import datetime
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from scipy import stats

from common.errors import DataError
from common.shards import class_index
from deploy.command import FILE, command
from deploy.hospital.list_images import Key, labels_of, read_labels, renaming
from deploy.results.stored_answers import STATISTICS, StoredAnswer, read

EXIT_DRIFT = 1
"""So that a timer's mail is sent for a week that drifted."""

FEWEST_REFERENCES = 100
RARE = 1e-3
TWO_CLASSES = 2

_CONFIDENCE = 0.95
_WIDTH_ON_PIPE = 140
_TAIL = 100

Week = tuple[int, int]
"""Year and week of ISO 8601, in UTC."""


@dataclass(frozen=True)
class WeekResult:
    """What one week's answers were worth.

    Attributes:
        week: of the answers.
        images: that the model was asked about.
        flagged: of them, that got no answer.
        labelled: answers that a report gives a label.
        confusion: (label, predicted) counts, over those.
    """

    week: Week
    images: int
    flagged: int
    labelled: int
    confusion: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Drift:
    """How a statistic of one week lies against the reference.

    Attributes:
        week: of the answers.
        statistic: which.
        values: that the week has of it.
        outside: of them, outside the known range.
        expected: share that is outside without any drift.
        chance: of so many or more without drift.
    """

    week: Week
    statistic: str
    values: int
    outside: int
    expected: float
    chance: float

    @property
    def is_drift(self) -> bool:
        """Whether chance alone hardly explains it."""
        return self.chance < RARE


@command(
    "shadow",
    "Compare a silent trial's answers with reports, week by week. Nothing leaves the hospital.\n\n"
    "STORE is what confide predict --store wrote. The exit code is 1 where a week's scores or images left the range of "
    "the reference.",
    "./confide hospital shadow answers.jsonl --labels reports.csv",
)
@click.argument("store", type=FILE)
@click.option(
    "--labels", type=FILE, metavar="FILE", help="A table, CSV or .xlsx, from the reports, with columns KEY and label."
)
@click.option(
    "--key",
    type=click.Choice([Key.ACCESSION_NUMBER.value, Key.STUDY_INSTANCE_UID.value, Key.FILE.value]),
    default=Key.ACCESSION_NUMBER.value,
    help="The column that names an image in the table.",
)
@click.option(
    "--rename", multiple=True, metavar="OLD=NEW", help="What a label of the table is called here; repeatable."
)
@click.option(
    "--reference", type=FILE, metavar="STORE", help="Answers on this hospital's training images, for the drift line."
)
def main(store: Path, labels: Path | None, key: str, rename: tuple[str, ...], reference: Path | None) -> int:
    """Print the weeks.

    Returns:
        0, or 1 where a week's scores or images left the known range.

    Raises:
        ConfideError: a file cannot be read, or does not fit.
    """
    console = Console(width=None if sys.stdout.isatty() else _WIDTH_ON_PIPE)
    everything = read(store)
    if not everything:
        raise DataError("the file of answers holds none yet; store some: confide predict MODEL IMAGE --store FILE")
    answers = of_last_model(everything)
    for line in _other_models(everything, answers):
        console.print(line)
    by_image = {}
    if labels is not None:
        by_image = _labels(answers, labels, Key(key), dict(renaming(text) for text in rename), console)
    console.print(_table(compare(answers, by_image), answers[0].classes))
    drifted = False
    if reference is not None:
        for drift in drifts(answers, read(reference)):
            drifted = drifted or drift.is_drift
            if drift.is_drift:
                console.print(_said(drift), style="red", highlight=False)
        if not drifted:
            console.print("no drift: scores and images stay within what the reference knows", highlight=False)
    console.print("Research software: no decision about a patient may rest on its answers.", highlight=False)
    return EXIT_DRIFT if drifted else 0


def of_last_model(answers: Sequence[StoredAnswer]) -> list[StoredAnswer]:
    """Return the answers of the model that was asked last; figures of two models are never mixed."""
    return [answer for answer in answers if answer.model == answers[-1].model]


def compare(answers: Sequence[StoredAnswer], labels: dict[str, int]) -> list[WeekResult]:
    """Return each week's result, the oldest first.

    Args:
        answers: of one model.
        labels: class by the image's SHA-256; images without one count as unlabelled.
    """
    classes = range(len(answers[0].classes))
    results = []
    for week in sorted({week_of(answer) for answer in answers}):
        those = [answer for answer in answers if week_of(answer) == week]
        pairs = [
            (labels[answer.image], answer.classes.index(answer.predicted))
            for answer in those
            if answer.stands and answer.image in labels
        ]
        confusion = tuple(tuple(pairs.count((label, said)) for said in classes) for label in classes)
        flagged = sum(not answer.stands for answer in those)
        results.append(WeekResult(week, len(those), flagged, len(pairs), confusion))
    return results


def drifts(answers: Sequence[StoredAnswer], reference: Sequence[StoredAnswer]) -> list[Drift]:
    """Return how each week lies against the reference, for every statistic that both have.

    Raises:
        DataError: the reference has too few answers of this model.
    """
    known = [answer for answer in reference if answer.model == answers[0].model and answer.stands]
    if len(known) < FEWEST_REFERENCES:
        raise DataError(
            f"--reference must hold at least {FEWEST_REFERENCES} answers of the model in the trial, got {len(known)}; "
            "store its answers on this hospital's training images"
        )
    found = []
    for statistic in STATISTICS:
        ordered = sorted(_values(known, statistic))
        if len(ordered) < FEWEST_REFERENCES:
            continue
        each_side = len(ordered) // _TAIL
        low, high = ordered[each_side - 1], ordered[-each_side]
        for week in sorted({week_of(answer) for answer in answers}):
            values = _values([answer for answer in answers if week_of(answer) == week], statistic)
            outside = sum(not low <= value <= high for value in values)
            beyond, within = 2 * each_side, len(ordered) + 1 - 2 * each_side
            chance = float(stats.betabinom.sf(outside - 1, len(values), beyond, within)) if values else 1.0
            found.append(Drift(week, statistic, len(values), outside, beyond / (len(ordered) + 1), chance))
    return found


def week_of(answer: StoredAnswer) -> Week:
    """Return the week in which the model was asked."""
    date = datetime.datetime.fromtimestamp(answer.time, datetime.UTC).isocalendar()
    return date.year, date.week


def _values(answers: Sequence[StoredAnswer], statistic: str) -> list[float]:
    """Return a statistic of all images, flagged ones too: an image that looks unlike the task is what drift is."""
    values = [getattr(answer, statistic) for answer in answers]
    return [value for value in values if value is not None]


def _labels(
    answers: Sequence[StoredAnswer], path: Path, key: Key, renamed: dict[str, str], console: Console
) -> dict[str, int]:
    """Return the class by image, and print what of the table found no answer and the other way round."""
    named_by = {
        Key.ACCESSION_NUMBER: "accession_number",
        Key.STUDY_INSTANCE_UID: "study_instance_uid",
        Key.FILE: "file",
    }
    table = read_labels(path, key, renamed)
    classes, field = answers[0].classes, named_by[key]
    names = {answer.image: str(getattr(answer, field)) for answer in answers}
    at_hand, shortened = labels_of(table, set(names.values()) - {""})
    indices = {name: class_index(label, classes) for name, label in at_hand.items()}
    unknown = sum(index is None for index in indices.values())
    labels = {image: index for image, name in names.items() if (index := indices.get(name)) is not None}
    unmatched = len(table.labels) - len(at_hand)
    without_report = sum(answer.image not in labels for answer in answers)
    console.print(
        f"{len(table.labels)} labels: {unmatched} match no answer, {unknown} name no class of the model "
        f"({', '.join(classes)}); {without_report} of {len(answers)} images have no label",
        highlight=False,
    )
    for said, lines in (("no key", table.without_key), ("no label", table.without_label)):
        if lines:
            console.print(f"{len(lines)} lines of the table have {said}, the first is line {lines[0]}", highlight=False)
    if shortened:
        console.print(
            f"{len(shortened)} labels matched without the '.0' that made a number of their key", highlight=False
        )
    for remark in table.remarks:
        console.print(remark, highlight=False)
    return labels


def _other_models(everything: Sequence[StoredAnswer], answers: Sequence[StoredAnswer]) -> Iterator[str]:
    left = len(everything) - len(answers)
    if left:
        yield f"{left} answers of other models are left out; the one asked last is {answers[0].model[:12]}"


def _table(results: Sequence[WeekResult], classes: Sequence[str]) -> Table:
    table = Table(title="answers against reports, by the week in which the model was asked", title_justify="left")
    for name in ("week", "images", "flagged", "labelled", "accuracy", *(f"{name} found" for name in classes)):
        table.add_column(name, justify="right")
    for result in results:
        right = sum(result.confusion[index][index] for index in range(len(classes)))
        rates = [_rate(right, result.labelled)]
        rates += [_rate(result.confusion[index][index], sum(result.confusion[index])) for index in range(len(classes))]
        year, week = result.week
        counts = (str(count) for count in (result.images, result.flagged, result.labelled))
        table.add_row(f"{year}-W{week:02d}", *counts, *rates)
    return table


def _rate(part: int, whole: int) -> str:
    """Return a share with its 95 % interval (Wilson 1927)."""
    if not whole:
        return "–"
    interval = stats.binomtest(part, whole).proportion_ci(_CONFIDENCE, method="wilson")
    return f"{part / whole:.2f} ({interval.low:.2f} to {interval.high:.2f})"


def _said(drift: Drift) -> str:
    year, week = drift.week
    return (
        f"DRIFT in {year}-W{week:02d}: {drift.statistic} of {drift.outside} of {drift.values} images lies outside the "
        f"reference's range, {drift.expected:.1%} is usual (by chance 1 in {1 / max(drift.chance, 1e-12):.0e}); find "
        f"out what changed before the trial goes on"
    )
