"""What a run leaves in its folder: ``metrics.csv``, ``summary.json``, the model and the plots."""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import RunError
from common.evaluation import METRICS
from common.evaluation.calibration import tempered
from common.evaluation.metrics import BY_ROUND, ClassFigures
from common.files import replace_file
from common.provenance import machine, versions
from common.run.guarantee import Guarantee
from common.run.model_facts import ModelFacts
from common.run.words import RELATION, admitted
from common.task import TaskConfig, TaskKind, implied
from common.telemetry.events import Compared, Evaluated, Event, RoundDone, RoundTime, RunStarted, SpreadTold
from deploy.results.by_class import shown_metrics
from deploy.results.history import RunHistory
from deploy.results.intervals import of_test
from deploy.results.model_file import CARD_FILE, TENSORS_FILE, save_model
from deploy.results.site_spread import QUARTILES

METRICS_FILE = "metrics.csv"
SUMMARY_FILE = "summary.json"

COLUMNS = (
    "round", *BY_ROUND, "epsilon", "hospitals", "seconds", "upload_bytes",
    "part", "accuracy_low", "accuracy_high", "auc_low", "auc_high", "evaluation_epsilon",
)  # fmt: skip
"""The last model's figures on the test parts are in ``summary.json``: a row here is a round."""


class RunOutputs:
    """Writes a run's files while its events arrive; every file admits what :func:`common.run.words.admitted` says.

    ``metrics.csv`` grows by a flushed row a finished step. Its columns leave no room for words, so ``summary.json``
    stands beside it from the run's first event on.

    Args:
        folder: made when it does not exist; files of an earlier run in it are replaced.

    Raises:
        RunError: (any method) the folder cannot be written, or the disk is full.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._events: list[Event] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{folder} must be a folder that can be written: {error.strerror}") from None
        self._metrics = MetricsFile(folder / METRICS_FILE)

    def add(self, event: Event) -> None:
        """Take in the next event."""
        self._events.append(event)
        if isinstance(event, RunStarted):
            self._write_summary(self.history())
        elif isinstance(event, RoundDone):
            self._metrics.add(event)

    def history(self) -> RunHistory:
        """Return what the events so far say.

        Raises:
            RunError: the run has not started.
        """
        return RunHistory.of(self._events)

    def finish(self, model: NDArray[np.float32] | None, facts: ModelFacts | None) -> tuple[Path, ...]:
        """Write the model, the summary and the plots.

        Args:
            model: float32, shape (d,); None when no round was finished.
            facts: what goes with the model, from :func:`model_facts`.

        Returns:
            The files written, in the order a person wants to see them.
        """
        from deploy.results.plots import plot_run  # matplotlib takes half a second to import

        history = self.history()
        written = [self.folder / METRICS_FILE, self._write_summary(history)]
        if model is not None and facts is not None:
            save_model(self.folder, model, facts)
            written += [self.folder / TENSORS_FILE, self.folder / CARD_FILE]
        class_names = facts.classes if facts is not None else ()
        return (*written, *plot_run(history, self.folder / "plots", class_names))

    def _write_summary(self, history: RunHistory) -> Path:
        path = self.folder / SUMMARY_FILE
        replace_file(path, (json.dumps(summary(history), indent=2, allow_nan=False) + "\n").encode())
        return path


class MetricsFile:
    """``metrics.csv``: one row for each finished training step, on the disk before :meth:`add` returns."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: dict[int, RoundDone] = {}
        self._write("w", metrics_table(()))

    def add(self, done: RoundDone) -> None:
        """Append a step; one that was measured before (the run was resumed) has its row replaced.

        Raises:
            RunError: the disk is full.
        """
        repeated = done.step in self._rows
        self._rows[done.step] = done
        if repeated:
            self._write("w", metrics_table(self._rows.values()))
        else:
            self._write("a", _as_csv([metrics_row(done)]))

    def _write(self, mode: str, text: str) -> None:
        try:
            with self._path.open(mode, newline="", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise RunError(f"{self._path} must be writable: {error.strerror}") from None


def metrics_table(rounds: Iterable[RoundDone]) -> str:
    """Return ``metrics.csv`` as it is when these steps are finished."""
    return _as_csv([COLUMNS, *(metrics_row(done) for done in rounds)])


def _as_csv(rows: Iterable[Sequence[str | int]]) -> str:
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(rows)
    return table.getvalue()


def metrics_row(done: RoundDone) -> list[str | int]:
    """Return one row of ``metrics.csv``; an undefined measure is an empty cell, an ε that nothing bounds is ``inf``.

    A round that the plan of evaluations leaves out has its part ``none`` and no measure at all.
    """
    measures = (getattr(done, name) for name in BY_ROUND)
    ends = [end for name in ("accuracy", "auc") for end in done.intervals.get(name, (math.nan, math.nan))]
    return [
        done.step,
        *map(_cell, measures),
        _cell(done.epsilon) or "inf",
        done.hospitals,
        f"{done.seconds:.3f}",
        done.upload_bytes,
        done.part,
        *map(_cell, ends),
        "inf" if done.part == "test" else _cell(done.evaluation_epsilon),
    ]


def _cell(value: float) -> str:
    return f"{value:.6f}" if math.isfinite(value) else ""


def summary(history: RunHistory) -> dict[str, Any]:
    """Return the content of ``summary.json``: what ran, on what, how it ended and what it cost; strict JSON.

    ``metrics`` and ``test`` are of the last model on the pooled test parts, null where ``not_measured`` says why;
    ``validation`` is the curve over the rounds that were measured.
    """
    started, tested = history.started, history.tested
    return {
        "run_id": started.run_id,
        "state": history.finished.reason if history.finished else "running",
        "data_set": started.data_set,
        "task": started.task,
        "terms": started.terms.model_dump(mode="json"),
        "caveats": list(admitted(started)),
        "hospitals": list(started.hospitals),
        "rounds": {"asked": started.rounds, "done": len(history.rounds), "resumed_from": list(history.resumed_from)},
        "metrics": _told(tested, started.terms) if tested else None,
        "each": {name: each_as_json(figures) for name, figures in tested.each.items()} if tested else None,
        "confusion": [list(row) for row in tested.confusion] if tested else None,
        "test": _as_tested(history, tested) if tested else None,
        "against_alone": _as_compared(history.compared) if history.compared else None,
        "site_spread": _as_spread(history.spread) if history.spread else None,
        "not_measured": history.why_not_tested or None,
        "validation": [_as_measured(done) for done in history.measured if done.part == "validation"],
        "evaluation_plan": list(started.evaluation_plan),
        "privacy": {
            **Guarantee.of(started.config).as_dict(),
            "claims": list(started.claims),
            "hospitals": epsilon_by_hospital(history),
        },
        "seconds": time_spent(history),
        "upload_bytes": sum(done.upload_bytes for done in history.rounds),
        "dropouts": len(history.dropouts),
        "refusals": [
            {"hospital": item.hospital, "round": item.round, "reason": item.reason} for item in history.refusals
        ],
        "attacks_refused": len(history.attacks),
        "config": started.config.model_dump(mode="json"),
        "config_hash": started.config_hash,
        "versions": versions(),
        "machine": machine(),
    }


def _told(tested: Evaluated, terms: TaskConfig) -> dict[str, float | None]:
    """Return the figures by name; null what says nothing of the task."""
    shown = shown_metrics(terms)
    return {name: _number(getattr(tested, name)) if name in shown else None for name in METRICS}


def each_as_json(figures: ClassFigures) -> dict[str, Any]:
    """Return one class's or label's figures as strict JSON."""
    values = {name: getattr(figures, name) for name in ClassFigures.model_fields if name not in ("intervals", "noise")}
    return {
        **{name: _number(value) for name, value in values.items()},
        "intervals": _ends(figures.intervals),
        "noise_sd": {name: _number(deviation) for name, deviation in figures.noise.items()},
    }


def _as_tested(history: RunHistory, tested: Evaluated) -> dict[str, Any]:
    """Return how sure the final figures are and what they cost, beside the figures themselves."""
    return {
        "records": tested.records,
        "exact": tested.exact,
        "threshold": _number(tested.threshold),
        "intervals": _ends({name: (sure.low, sure.high) for name, sure in of_test(tested).items()}),
        "noise_sd": {name: _number(deviation) for name, deviation in tested.noise.items()},
        "epsilon": _number(history.test_epsilon),
        "relation": RELATION,
        "claim": history.test_claim,
    }


def _as_compared(compared: Compared) -> dict[str, Any]:
    """Return by how much the last model is right more often than hospitals' own, and what that cost."""
    return {
        "records": compared.records,
        "accuracy": compared.accuracy,
        "interval": list(compared.interval),
        "noise_sd": compared.noise,
        "disagree": compared.disagree,
        "recalls": {name: _number(value) for name, value in compared.recalls.items()},
        "recall_intervals": {name: list(ends) for name, ends in compared.recall_intervals.items()},
        "epsilon": _number(compared.epsilon),
        "training_epsilon": {name: _number(spent) for name, spent in compared.epsilon_spent.items()},
        "claim": compared.claim,
    }


def _as_spread(spread: SpreadTold) -> dict[str, Any]:
    """Return how far hospitals' own AUC lie apart, and what that cost."""
    return {
        "hospitals": spread.hospitals,
        "records": spread.records,
        "counted": spread.counted,
        "counted_interval": list(spread.counted_interval),
        "quartiles": {name: _number(value) for name, value in zip(QUARTILES, spread.quartiles, strict=True)},
        "intervals": {name: list(ends) for name, ends in zip(QUARTILES, spread.intervals, strict=True)},
        "hospitals_needed": spread.needed,
        "epsilon": _number(spread.epsilon),
        "claim": spread.claim,
    }


def _as_measured(done: RoundDone) -> dict[str, Any]:
    return {
        "round": done.step,
        **{name: _number(getattr(done, name)) for name in METRICS},
        "intervals": _ends(done.intervals),
        "evaluation_epsilon": _number(done.evaluation_epsilon),
    }


def _ends(intervals: Mapping[str, tuple[float, float]]) -> dict[str, list[float | None]]:
    return {
        name: [_number(low), _number(high)] for name, (low, high) in intervals.items() if not math.isnan(low + high)
    }


def epsilon_by_hospital(history: RunHistory) -> dict[str, dict[str, str | float | None]]:
    """Return what each hospital has spent over all runs on its data, with everything an ε must be shown with."""
    guarantee = Guarantee.of(history.started.config)
    spent: dict[str, float] = {}
    budget: dict[str, float] = {}
    for done in history.rounds:  # a hospital that left keeps the last figure it gave
        spent.update(done.epsilon_spent)
        budget.update(done.epsilon_budget)
    if history.compared is not None:
        spent.update(history.compared.epsilon_spent)
    return {
        hospital: {
            "epsilon": _number(spent[hospital]),
            "budget": _number(budget.get(hospital, math.nan)),
            "delta": guarantee.delta,
            "unit": guarantee.unit,
            "adversary": guarantee.adversary,
            "accountant": guarantee.accountant,
        }
        for hospital in sorted(spent)
    }


def time_spent(history: RunHistory) -> dict[str, Any]:
    """Return the seconds of all rounds and where they went: training, moving, waiting."""
    parts = tuple(RoundTime.model_fields)
    return {
        "rounds": round(sum(done.seconds for done in history.rounds), 3),
        "by_part": {
            part: round(sum(getattr(done.seconds_by_part, part) for done in history.rounds), 3) for part in parts
        },
    }


def model_facts(
    history: RunHistory,
    classes: tuple[str, ...],
    channels: int,
    threshold: float | None,
    thresholds: tuple[float, ...] = (),
    temperature: float | None = None,
    prevalence: float | None = None,
    *,
    last_epsilon: Mapping[str, float],
) -> ModelFacts:
    """Return what ``model.json`` says about the run's last model.

    Args:
        history: the run that made the model.
        classes: their names, in the order of the labels.
        channels: of an image.
        threshold: fixed on the pooled validation parts before the test parts are asked; None where the most probable
            class is predicted.
        thresholds: of each label of a multi-label task, likewise.
        temperature: of the scores of two classes, fixed likewise; the threshold that is returned is of the
            probabilities after it, so that the same images are decided the same.
        prevalence: of the second class where the temperature was fixed.
        last_epsilon: what each hospital of the model's last step had spent by then. The history may lack that step: a
            step is told once its model is measured, and a run that is stopped leaves that to when it goes on.
    """
    started = history.started
    terms = implied(started.task, classes) if started.terms.is_preset else started.terms
    return ModelFacts(
        architecture=started.config.model.architecture,
        classes=classes,
        channels=channels,
        image_size=started.config.model.image_size,
        threshold=threshold if threshold is None or temperature is None else tempered(threshold, temperature),
        temperature=1.0 if temperature is None else temperature,
        prevalence=prevalence,
        kind=TaskKind(terms.kind),
        positive=terms.positive,
        thresholds=thresholds,
        run_id=started.run_id,
        task=started.task,
        data_set=started.data_set,
        privacy={**Guarantee.of(started.config).as_dict(), "epsilon": max(last_epsilon.values(), default=None)},
        caveats=admitted(started),
    )


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
