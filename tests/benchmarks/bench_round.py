"""``confide dev bench round``: a round with masks against one without, on the deployed processes.

For each model a server and its hospitals are started on loopback several times, in turn with bare and with masked
vectors; everything else is the same. A round's seconds are the server's, from its first question to the decoded sum.
"""

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from common.config import AggregationMode, Config, load_config
from common.errors import RunError
from common.models import registry
from common.processes import Stopping, raise_on_signals
from common.provenance import machine, versions
from common.telemetry.events import COMPLETED, EVENTS_FILE, Event, EventFile, Exchange, RoundDone, RunFinished
from deploy.command import command, config_options, json_file_option
from deploy.datasets.datasets import DataSet, obtain
from deploy.demo.dealer import deal
from deploy.demo.loopback import LoopbackDeployment
from deploy.json_report import write_json_report
from server.run import new_run_id

MODELS: Mapping[str, tuple[str, ...]] = {
    "cnn_wide": (),
    # Per-record gradients of so large a model take minutes a round, beside which no exchange would be seen.
    "resnet18": ("privacy.mode=none", "data.source=phantom", "data.phantom_records=800", "training.batch_size=64"),
}
"""What is measured, and what differs from ``config.yaml`` for it."""

MODES = (AggregationMode.PLAIN, AggregationMode.SECURE)

_AGREED = ("hospital.allow_plain=true", "hospital.allow_no_privacy=true", "hospital.epsilon_budget=1000",
           "hospital.allow_exact_evaluation=true", "evaluation.exact=true")  # fmt: skip
"""What the hospitals of this benchmark agree to beyond ``config.yaml``."""

_POLL_SECONDS = 0.1
EXIT_INTERRUPTED = 130


@dataclass(frozen=True)
class Rounds:
    """The rounds of one model and mode, over all its runs; seconds are medians.

    Attributes:
        rounds: measured; the first of each run, in which everyone prepares, is not.
        seconds: of a round.
        exchanges: of each exchange, by phase.
        training: of the slowest hospital.
        moving: of the other exchanges of a round.
    """

    rounds: int
    seconds: float
    exchanges: dict[str, float]
    training: float
    moving: float


@dataclass(frozen=True)
class Comparison:
    """One model's rounds in both modes."""

    model: str
    parameters: int
    hospitals: int
    data_set: str
    plain: Rounds
    secure: Rounds
    secure_to_plain_ratio: float
    """The ratio of the medians of a round's seconds."""


@dataclass(frozen=True)
class _Asked:
    """What the command line says of a comparison: see the options of the same names."""

    rounds: int
    repeat: int
    config_file: Path
    overrides: tuple[str, ...]


@command(
    "round",
    "Measure a round with masks against one without, on the deployed processes.",
    "./confide dev bench round --rounds 5",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    type=click.Choice(tuple(MODELS)),
    show_default="all",
    help="Only this one; repeatable.",
)
@click.option("--rounds", type=int, default=5, metavar="R", help="Measured rounds of each run.")
@click.option("--repeat", type=int, default=2, metavar="N", help="Runs of each mode, in turn.")
@json_file_option()
@config_options()
def main(models: tuple[str, ...], json_file: Path | None, **options: Any) -> int:  # noqa: ANN401 - the fields of _Asked
    """Measure, print, and write JSON where asked."""
    asked = _Asked(**options)
    if asked.rounds < 1 or asked.repeat < 1:
        raise RunError("--rounds and --repeat must be at least 1")
    raise_on_signals()
    try:
        compared = [_compare(model, asked) for model in models or MODELS]
    except Stopping:
        return EXIT_INTERRUPTED
    for comparison in compared:
        _show(comparison)
    if json_file is not None:
        result = {
            "models": {comparison.model: asdict(comparison) for comparison in compared},
            "machine": machine(),
            "versions": versions(),
            "commit": versions()["commit"],
        }
        write_json_report(json_file, result)
    return 0


def _compare(model: str, asked: _Asked) -> Comparison:
    recorded: dict[AggregationMode, list[Sequence[Event]]] = {mode: [] for mode in MODES}
    for repetition in range(1, asked.repeat + 1):
        for mode in MODES:
            print(f"{model}, {mode}, run {repetition} of {asked.repeat}: ", end="", flush=True)
            config = _config(model, mode, asked)
            data = obtain(config.data, config.experiment.task, config.model.image_size)
            recorded[mode].append(_run(config, data))
            print(f"{_rounds(recorded[mode][-1:]).seconds:.2f} s a round", flush=True)
    plain, secure = (_rounds(recorded[mode]) for mode in MODES)
    return Comparison(
        model=model,
        parameters=registry.parameter_count(model, len(data.classes), data.channels, config.model.image_size),
        hospitals=config.experiment.num_clients,
        data_set=data.name,
        plain=plain,
        secure=secure,
        secure_to_plain_ratio=secure.seconds / plain.seconds,
    )


def _config(model: str, mode: AggregationMode, asked: _Asked) -> Config:
    measured = (f"model.name={model}", f"aggregation.mode={mode}", f"experiment.rounds={asked.rounds + 1}")
    return load_config(asked.config_file, (*_AGREED, *MODELS[model], *asked.overrides, *measured))


def _run(config: Config, data: DataSet) -> Sequence[Event]:
    """Carry out one run and return what its server had to tell.

    Raises:
        RunError: the run ended before its last round.
    """
    with tempfile.TemporaryDirectory(prefix="confide-bench-") as scratch:
        folder = Path(scratch) / "run"
        deployment = LoopbackDeployment(config, folder, new_run_id())
        deployment.set_up(data)
        shards = [member.data for member in deployment.members]
        deal(data, shards, config.data, config.experiment.seed, config.training.batch_size)
        try:
            deployment.start_server()
            deployment.await_server()
            deployment.start_hospitals()
            return _follow(deployment)
        finally:
            deployment.supervisor.stop()


def _follow(deployment: LoopbackDeployment) -> Sequence[Event]:
    log, events = EventFile(deployment.folder / EVENTS_FILE), list[Event]()
    while True:
        ended = deployment.supervisor.ended()
        events += log.read_new()
        for event in events:
            if isinstance(event, RunFinished):
                if event.reason != COMPLETED:
                    raise RunError(f"every round must be trained, got: {event.reason}")
                return events
        deployment.check_server(ended)
        time.sleep(_POLL_SECONDS)


def _rounds(runs: Sequence[Sequence[Event]]) -> Rounds:
    done: list[RoundDone] = []
    exchanges: dict[str, list[float]] = {}
    for run in runs:
        measured = [event for event in run if isinstance(event, RoundDone) and event.step > 1]
        numbers = {event.round for event in measured}
        done += measured
        for event in run:
            if isinstance(event, Exchange) and event.round in numbers:
                exchanges.setdefault(event.phase, []).append(event.seconds)
    return Rounds(
        rounds=len(done),
        seconds=statistics.median(event.seconds for event in done),
        exchanges={phase: statistics.median(seconds) for phase, seconds in exchanges.items()},
        training=statistics.median(event.seconds_by_part.training for event in done),
        moving=statistics.median(event.seconds_by_part.moving for event in done),
    )


def _show(comparison: Comparison) -> None:
    print(
        f"{comparison.model}: {comparison.parameters:,} parameters, {comparison.hospitals} hospitals, "
        f"{comparison.data_set}, {comparison.plain.rounds} rounds each"
    )
    for name, rounds in (("plain", comparison.plain), ("secure", comparison.secure)):
        exchanges = ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in rounds.exchanges.items())
        print(
            f"  {name:7} {rounds.seconds:7.2f} s a round: training {rounds.training:.2f}, "
            f"moving {rounds.moving:.2f}; exchanges: {exchanges}"
        )
    print(f"  secure to plain: {comparison.secure_to_plain_ratio:.2f}", flush=True)
