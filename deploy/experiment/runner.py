"""Runs the trials of an experiment one after the other; one that is killed continues where it was."""

import csv
import hashlib
import io
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from common.canonical import canonical_json
from common.config import Config
from common.errors import RunError
from common.files import replace_file
from common.provenance import machine, versions
from deploy.results.intervals import CONFIDENCE, Interval, over_runs

VERSION = 1
"""The version of a line in ``trials.jsonl``."""

TRIALS_FILE = "trials.jsonl"
TABLE_FILE = "results.csv"
RESULTS_FILE = "results.json"

Labels = Mapping[str, str | float]
Measures = Mapping[str, float]


@dataclass(frozen=True)
class Trial:
    """One training of an experiment.

    Attributes:
        labels: what distinguishes it from the others beside its seed, such as ``{"mode": "local", "epsilon": 1.0}``.
        config: what the training is determined by; ``experiment.seed`` is its seed.
        train: does it and returns what it measured.
    """

    labels: Labels
    config: Config
    train: Callable[[Config], Measures] = field(repr=False)

    @property
    def key(self) -> str:
        """Return a name that changes with anything the trial is determined by."""
        described = canonical_json([dict(self.labels), self.config.model_dump(mode="json")])
        return hashlib.sha256(described).hexdigest()[:16]


@dataclass(frozen=True)
class RunGroup:
    """What the trials with the same labels say together.

    Attributes:
        labels: theirs.
        trials: how many they are.
        measures: each measure's mean with its interval over the seeds.
        by_seed: what each trial measured, in the order of the trials.
    """

    labels: Labels
    trials: int
    measures: Mapping[str, Interval]
    by_seed: tuple[Measures, ...] = field(default=(), repr=False)


def run_trials(trials: Sequence[Trial], folder: Path, say: Callable[[str], None]) -> tuple[RunGroup, ...]:
    """Run what has not been run yet and write the table, ``results.csv``, and everything else, ``results.json``.

    Each finished trial is on the disk before the next begins. A trial whose settings have changed is run again.

    Args:
        trials: in the order they are run; those with the same labels differ in their seed.
        folder: of the experiment; made if missing.
        say: called with a line of progress after each trial.

    Raises:
        RunError: the folder cannot be written, or a trial does not reach its end.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        finished = _read(folder / TRIALS_FILE)
        waiting = [trial for trial in trials if trial.key not in finished]
        if len(waiting) < len(trials):
            say(f"{len(trials) - len(waiting)} of {len(trials)} trials were finished before")
        started = time.monotonic()
        for number, trial in enumerate(waiting, start=1):
            began = time.monotonic()
            measures = dict(trial.train(trial.config))
            finished[trial.key] = {**measures, "seconds": time.monotonic() - began}
            _append(folder / TRIALS_FILE, trial, finished[trial.key])
            left = (time.monotonic() - started) / number * (len(waiting) - number)
            say(f"{_named(trial)}: {_shown(measures)}; {len(waiting) - number} to go, about {left / 60:.0f} min")
        groups = _grouped(trials, finished)
        _write(folder, trials, finished, groups)
    except OSError as error:
        raise RunError(f"{folder} must be writable: {error.strerror}") from None
    return groups


def run_for_table(
    trials: Sequence[Trial],
    folder: Path,
    console: Console,
    table: Callable[[Sequence[RunGroup]], str],
    name: str,
) -> None:
    """Run trials as :func:`run_trials`, write their table in Markdown beside what that writes, and show it.

    Args:
        trials: in the order they are run.
        folder: of the experiment; made if missing.
        console: where progress and table are shown.
        table: makes the table.
        name: of its file.
    """
    groups = run_trials(trials, folder, lambda line: console.print(line, highlight=False, soft_wrap=True))
    shown = table(groups)
    replace_file(folder / name, shown.encode())
    console.print(shown, highlight=False, soft_wrap=True)
    console.print(f"{', '.join((name, TABLE_FILE, RESULTS_FILE))} are in {folder}", highlight=False)


def _read(path: Path) -> dict[str, Measures]:
    """Return what each finished trial measured, by its key; a torn last line is a trial that is run again."""
    if not path.exists():
        return {}
    finished = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record.get("version") == VERSION:
            finished[record["key"]] = record["measures"]
    return finished


def _append(path: Path, trial: Trial, measures: Measures) -> None:
    record = {
        "version": VERSION,
        "key": trial.key,
        "labels": dict(trial.labels),
        "seed": trial.config.experiment.seed,
        "measures": measures,
    }
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _grouped(trials: Sequence[Trial], finished: Mapping[str, Measures]) -> tuple[RunGroup, ...]:
    together: dict[tuple[tuple[str, str | float], ...], list[Measures]] = {}
    for trial in trials:
        together.setdefault(tuple(trial.labels.items()), []).append(finished[trial.key])
    return tuple(
        RunGroup(
            dict(labels),
            len(measured),
            {name: over_runs([measures[name] for measures in measured]) for name in measured[0]},
            tuple(measured),
        )
        for labels, measured in together.items()
    )


def _write(folder: Path, trials: Sequence[Trial], finished: Mapping[str, Measures], groups: Sequence[RunGroup]) -> None:
    rows = [_row(group) for group in groups]
    columns = dict.fromkeys(name for row in rows for name in row)  # Not every group measures the same.
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    replace_file(folder / TABLE_FILE, text.getvalue().encode())
    everything: dict[str, Any] = {
        "confidence": CONFIDENCE,
        "groups": rows,
        "trials": [
            {
                "labels": dict(trial.labels),
                "seed": trial.config.experiment.seed,
                "measures": {name: _rounded(value) for name, value in finished[trial.key].items()},
                "config": trial.config.model_dump(mode="json"),
            }
            for trial in trials
        ],
        "versions": versions(),
        "machine": machine(),
    }
    replace_file(folder / RESULTS_FILE, (json.dumps(everything, indent=2, allow_nan=False) + "\n").encode())


def _row(group: RunGroup) -> dict[str, str | float | None]:
    row: dict[str, str | float | None] = {**group.labels, "trials": group.trials}
    for name, interval in group.measures.items():
        row |= {name: _rounded(interval.value), f"{name}_low": _rounded(interval.low)}
        row[f"{name}_high"] = _rounded(interval.high)
    return row


def _rounded(value: float) -> float | None:
    """Return five decimals; None, which is null in JSON and empty in CSV, where there is no such number."""
    return round(value, 5) if math.isfinite(value) else None


def _named(trial: Trial) -> str:
    labels = " ".join(f"{name}={value}" for name, value in trial.labels.items())
    return f"{labels} seed={trial.config.experiment.seed}"


def _shown(measures: Measures) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in measures.items())
