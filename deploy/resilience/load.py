"""``confide load``: one real server against more and more hospitals; time of a round and memory of the server.

The hospitals are light: all of them in one process, each with its own identity, shard and connection, answering with
the deployed agent (``light_hospitals.py``). Training is small on purpose; what is measured is the server.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import click
from matplotlib.figure import Figure

from common.config import Config, load_config
from common.errors import RunError
from common.flower.waits import FLOWER_ENVIRONMENT
from common.models import registry
from common.processes import ProcessCommand, Stopping, python_module, raise_on_signals
from common.provenance import machine, versions
from common.telemetry.events import COMPLETED, EVENTS_FILE, EventFile, RoundDone, RunFinished
from deploy.command import FILE, CommaList, command, config_options, json_file_option
from deploy.datasets.datasets import obtain
from deploy.demo.dealer import deal
from deploy.demo.loopback import LoopbackDeployment
from deploy.json_report import write_json_report
from deploy.resilience.resources import Sampler
from deploy.results.plots import BLUE, ORANGE, styled
from deploy.source_tree import ROOT
from server.run import new_run_id

_RECORDS_EACH = 40
_LEAST_RECORDS = 400
_BATCH = 4
_SAMPLE_SECONDS = 0.2
_POLL_SECONDS = 0.1
_DEADLINE_SECONDS = 1800.0
_MIB = 2**20


@dataclass(frozen=True)
class LoadMeasured:
    """One run.

    Attributes:
        hospitals: that took part.
        parameters: of the model.
        rounds: that were finished.
        survivors: the fewest hospitals in a round's sum.
        seconds_per_round: median.
        serverapp_peak_bytes: of the process that aggregates.
        superlink_peak_bytes: of Flower's, which holds messages until they are fetched.
        vector_bytes: of one hospital's masked vector.
        serverapp_vectors: by how many vectors the ServerApp's peak lies above its peak with the small model of
            ``--constant``, and as many hospitals; None without that option.
        superlink_vectors: likewise.
    """

    hospitals: int
    parameters: int
    rounds: int
    survivors: int
    seconds_per_round: float
    serverapp_peak_bytes: int
    superlink_peak_bytes: int
    vector_bytes: int
    serverapp_vectors: float | None = None
    superlink_vectors: float | None = None


@command(
    "load",
    "Measure time and memory of one server against more and more hospitals, which run in one process.",
    "./confide load --hospitals 4,8,16 --plot load.png",
)
@click.option("--hospitals", type=CommaList(int), default="4,8,16,32,64", metavar="N,...", help="How many take part.")
@click.option("--rounds", type=int, default=20, metavar="R", help="Of each run.")
@click.option("--constant", metavar="MODEL", help="Also with this small model, to tell memory beyond it in vectors.")
@json_file_option()
@click.option("--plot", type=FILE, metavar="FILE", help="PNG of memory and time against N.")
@config_options()
def main(
    hospitals: tuple[int, ...],
    rounds: int,
    constant: str | None,
    json_file: Path | None,
    plot: Path | None,
    config_file: Path,
    overrides: tuple[str, ...],
) -> int:
    """Measure, print a line a run, and write JSON and a plot."""
    configured = partial(_config, config_file, overrides, rounds)
    raise_on_signals()
    measured: list[LoadMeasured] = []
    exit_code = 0
    try:
        for count in hospitals:
            run = _measure_apart(configured(count))
            if constant:
                run = beyond(_measure_apart(configured(count, f"model.name={constant}")), run)
            measured.append(run)
            _say(run)
            _write(json_file, measured, hospitals)
    except Stopping as stopping:
        exit_code = stopping.exit_code
        print(f"ended by a signal after {len(measured)} of {len(hospitals)} runs")
    if plot and measured:
        draw(measured).savefig(plot)
    return exit_code


def _write(path: Path | None, measured: Sequence[LoadMeasured], asked_for: Sequence[int]) -> None:
    """Write what was measured so far, so that nothing of it is lost when the next run is ended."""
    if path is not None:
        runs = [asdict(run) for run in measured]
        facts = {"runs": runs, "hospitals_asked_for": list(asked_for), "machine": machine(), "versions": versions()}
        write_json_report(path, facts)


def _measure_apart(config: Config) -> LoadMeasured:
    with tempfile.TemporaryDirectory(prefix="confide-load-") as folder:
        return measure(config, Path(folder) / "run")


def beyond(constant: LoadMeasured, run: LoadMeasured) -> LoadMeasured:
    """Return ``run`` with its memory beyond that of a run with a small model, in vectors of ``run``'s size."""
    return replace(
        run,
        serverapp_vectors=round((run.serverapp_peak_bytes - constant.serverapp_peak_bytes) / run.vector_bytes, 2),
        superlink_vectors=round((run.superlink_peak_bytes - constant.superlink_peak_bytes) / run.vector_bytes, 2),
    )


def _config(file: Path, overrides: Sequence[str], rounds: int, hospitals: int, *further: str) -> Config:
    settings = {
        "experiment.num_clients": hospitals,
        "experiment.rounds": rounds,
        "model.name": "cnn_wide",
        "data.source": "phantom",
        "data.phantom_records": max(_LEAST_RECORDS, _RECORDS_EACH * hospitals),
        "training.batch_size": _BATCH,
        "training.learning_rate": 0.01,
        "privacy.mode": "none",
        "hospital.allow_no_privacy": "true",
    }
    given = (*(f"{key}={value}" for key, value in settings.items()), *overrides, *further)
    return load_config(file, given)


def measure(config: Config, folder: Path) -> LoadMeasured:
    """Carry out one run.

    Raises:
        RunError: it does not end well.
    """
    folder.mkdir(mode=0o700, parents=True)
    deployment = LoopbackDeployment(config, folder, new_run_id())
    events = EventFile(folder / EVENTS_FILE)
    rounds: list[RoundDone] = []
    try:
        data = obtain(config.data, config.experiment.task, config.model.image_size)
        deployment.set_up(data)
        folders = [member.data for member in deployment.members]
        deal(data, folders, config.data, config.experiment.seed, config.training.batch_size)
        deployment.start_server()
        deployment.await_server()
        states = (str(member.state) for member in deployment.members)
        command = python_module("deploy.resilience.light_hospitals", "--states", *states)
        log = folder / "logs" / "hospitals.log"
        deployment.supervisor.start(
            ProcessCommand("hospitals", command, log, {**FLOWER_ENVIRONMENT, "PYTHONPATH": str(ROOT)})
        )
        with Sampler(os.getpid(), _SAMPLE_SECONDS) as sampler:
            _follow(deployment, events, rounds)
    finally:
        deployment.supervisor.stop()
    parameters = registry.parameter_count(
        config.model.architecture, len(data.classes), data.channels, config.model.image_size
    )
    return LoadMeasured(
        hospitals=config.experiment.num_clients,
        parameters=parameters,
        rounds=len(rounds),
        survivors=min(done.hospitals for done in rounds),
        seconds_per_round=round(statistics.median(done.seconds for done in rounds), 3),
        serverapp_peak_bytes=sampler.peak_bytes("ServerApp"),
        superlink_peak_bytes=sampler.peak_bytes("SuperLink"),
        vector_bytes=parameters * config.aggregation.modulus_bits // 8,
    )


def _follow(deployment: LoopbackDeployment, events: EventFile, rounds: list[RoundDone]) -> None:
    give_up = time.monotonic() + _DEADLINE_SECONDS
    while time.monotonic() < give_up:
        ended = deployment.supervisor.ended()
        for event in events.read_new():
            if isinstance(event, RoundDone):
                rounds.append(event)
            if isinstance(event, RunFinished):
                if event.reason != COMPLETED:
                    raise RunError(f"the run must end well, got: {event.reason}")
                return
        deployment.check_server(ended)
        if "hospitals" in ended:
            raise RunError(f"the hospitals must run: {deployment.last_words('hospitals')}")
        time.sleep(_POLL_SECONDS)
    raise RunError(f"the run must end within {_DEADLINE_SECONDS:g} s; {len(rounds)} rounds were finished")


@styled
def draw(measured: Sequence[LoadMeasured]) -> Figure:
    """Draw time of a round and memory of the server against the number of hospitals."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    time_axes, memory_axes = figure.subplots(1, 2)
    counts = [run.hospitals for run in measured]
    time_axes.plot(counts, [run.seconds_per_round for run in measured], "o-", color=BLUE)
    time_axes.set(title="Time of a round", xlabel="hospitals", ylabel="seconds (median)", ylim=(0, None))
    for label, color, peaks in (
        ("ServerApp (ours)", BLUE, [run.serverapp_peak_bytes for run in measured]),
        ("SuperLink (Flower's)", ORANGE, [run.superlink_peak_bytes for run in measured]),
    ):
        memory_axes.plot(counts, [peak / _MIB for peak in peaks], "o-", color=color, label=label)
    memory_axes.set(title="Peak memory of the server", xlabel="hospitals", ylabel="MiB", ylim=(0, None))
    memory_axes.legend()
    for axes in (time_axes, memory_axes):
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])  # A point at the top would be cut in half.
    parameters = measured[0].parameters
    figure.suptitle(
        f"{parameters:,} parameters, {measured[0].rounds} rounds, light hospitals on one machine", fontsize=9
    )
    return figure


def _say(run: LoadMeasured) -> None:
    print(
        f"{run.hospitals} hospitals ({run.survivors} at least in a sum), {run.parameters:,} parameters, "
        f"{run.rounds} rounds: {run.seconds_per_round:.2f} s a round; ServerApp {run.serverapp_peak_bytes // _MIB} "
        f"and SuperLink {run.superlink_peak_bytes // _MIB} MiB at most; a vector is {run.vector_bytes / _MIB:.1f} MiB",
        flush=True,
    )
    if run.serverapp_vectors is not None:
        print(
            f"  beyond the small model's: ServerApp {run.serverapp_vectors:.1f} and SuperLink "
            f"{run.superlink_vectors:.1f} vectors",
            flush=True,
        )
