"""``confide soak``: let a deployment run for a while, and see whether memory, files or threads of any process grow."""

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from matplotlib.figure import Figure

from common.config import load_config
from common.errors import RunError
from common.processes import Stopping, raise_on_signals
from common.provenance import machine, versions
from common.telemetry.events import EVENTS_FILE, EventFile, RoundDone, RunFinished
from deploy.command import FILE, command, config_options, json_file_option
from deploy.datasets.datasets import obtain
from deploy.demo.dealer import deal
from deploy.demo.loopback import LoopbackDeployment
from deploy.json_report import write_json_report
from deploy.resilience.resources import Sampler, Usage
from deploy.results.plots import SERIES, styled
from server.run import new_run_id

_SAMPLE_SECONDS = 2.0
_POLL_SECONDS = 0.2
_START_SECONDS = 300.0
_ROUNDS = 100_000
_MIB = 2**20
_SETTLED = 1 / 3
"""The share of the first samples that is left out: caches fill, and allocators find their size."""
_FEWEST_MINUTES = 5.0
"""A shorter soak cannot judge: what a process takes in its first minutes, taken for its rate, is growth of any size."""
_GROWTH_MIB_PER_HOUR = 60.0
"""A process that holds this much more an hour, as a line through its samples says, has grown."""


@dataclass(frozen=True)
class Growth:
    """How one process changed once it had settled.

    Attributes:
        process: what it is called.
        memory_mib: at the end.
        memory_mib_per_hour: slope of the least-squares line.
        files: first and last number of open files.
        threads: first and last number of threads.
    """

    process: str
    memory_mib: float
    memory_mib_per_hour: float
    files: tuple[int, int]
    threads: tuple[int, int]

    def has_grown(self) -> bool:
        """Return whether anything is growing."""
        more_files = self.files[1] > self.files[0] + 2
        more_threads = self.threads[1] > self.threads[0] + 2
        return self.memory_mib_per_hour > _GROWTH_MIB_PER_HOUR or more_files or more_threads


@dataclass(frozen=True)
class _Asked:
    """What the command line says of a soak: see the options of the same names."""

    minutes: float
    hospitals: int
    config_file: Path
    overrides: tuple[str, ...]


@command(
    "soak",
    "Let a deployment run, and see whether memory, files or threads grow. The exit code is 1 when anything does.",
    "./confide soak --minutes 20",
)
@click.option("--minutes", type=float, default=20.0, metavar="M", help="How long to watch.")
@click.option("--hospitals", type=int, default=3, metavar="N", help="How many take part.")
@json_file_option()
@click.option("--plot", type=FILE, metavar="FILE", help="PNG of memory against time.")
@config_options()
def main(json_file: Path | None, plot: Path | None, **options: Any) -> int:  # noqa: ANN401 - the fields of _Asked
    """Run; returns 0 when nothing has grown."""
    asked = _Asked(**options)
    raise_on_signals()
    try:
        with tempfile.TemporaryDirectory(prefix="confide-soak-") as folder:
            soaked = soak(asked, Path(folder) / "run")
    except Stopping as stopping:
        print("ended by a signal before the first sample")
        return stopping.exit_code
    samples, stopped = soaked.samples, soaked.stopped
    growths = [growth(name, usages) for (name, _), usages in sorted(samples.items())]
    early = "" if stopped is None else f", ended by a signal; {asked.minutes:g} were asked for"
    print(f"{soaked.minutes:.3g} minutes, {soaked.rounds} rounds{early}")
    for item in growths:
        print(
            f"{item.process:<20} {item.memory_mib:6.0f} MiB {item.memory_mib_per_hour:+7.1f} MiB/h"
            f"  files {item.files[0]} → {item.files[1]}  threads {item.threads[0]} → {item.threads[1]}"
            + ("  GROWS" if item.has_grown() else "")
        )
    can_judge = soaked.minutes >= _FEWEST_MINUTES
    if not can_judge:
        print(
            f"This was too short to judge: whether a process grows shows after {_FEWEST_MINUTES:g} minutes at least, "
            f"and it was watched for {soaked.minutes:.2g}; the lines above do not tell"
        )
    if json_file:
        facts = {"minutes": round(soaked.minutes, 2), "minutes_asked_for": asked.minutes, "rounds": soaked.rounds,
                 "can_judge": can_judge, "processes": [asdict(item) for item in growths], "machine": machine(),
                 "versions": versions()}  # fmt: skip
        write_json_report(json_file, facts)
    if plot:
        draw(samples).savefig(plot)
    if stopped is not None:
        return stopped.exit_code
    return 1 if can_judge and any(item.has_grown() for item in growths) else 0


@dataclass(frozen=True)
class Soaked:
    """What was seen of a deployment.

    Attributes:
        minutes: that it was watched for.
        rounds: finished meanwhile.
        samples: of each process, by its name and number.
        stopped: what ended it before its time, if anything did.
    """

    minutes: float
    rounds: int
    samples: dict[tuple[str, int], list[Usage]]
    stopped: Stopping | None


def soak(asked: _Asked, folder: Path) -> Soaked:
    """Let a deployment run, and look at its processes meanwhile.

    Raises:
        RunError: the run does not start, or ends before its time.
    """
    settings = (
        f"experiment.num_clients={asked.hospitals}", f"experiment.rounds={_ROUNDS}", "data.source=phantom",
        "data.phantom_records=600", "training.batch_size=32", "privacy.mode=none", "hospital.allow_no_privacy=true",
    )  # fmt: skip
    config = load_config(asked.config_file, (*settings, *asked.overrides))
    folder.mkdir(mode=0o700, parents=True)
    deployment = LoopbackDeployment(config, folder, new_run_id())
    events, rounds, stopped = EventFile(folder / EVENTS_FILE), 0, None
    try:
        data = obtain(config.data, config.experiment.task, config.model.image_size)
        deployment.set_up(data)
        deployment.start_server()
        folders = [member.data for member in deployment.members]
        deal(data, folders, config.data, config.experiment.seed, config.training.batch_size)
        deployment.await_server()
        deployment.start_hospitals()
        ends = time.monotonic() + _START_SECONDS
        while not any(isinstance(event, RoundDone) for event in events.read_new()):
            deployment.check_server(deployment.supervisor.ended())
            if time.monotonic() > ends:
                raise RunError(f"a round must be finished within {_START_SECONDS:g} s")
            time.sleep(_POLL_SECONDS)
        began = time.monotonic()
        with Sampler(os.getpid(), _SAMPLE_SECONDS) as sampler:
            try:
                while time.monotonic() < began + 60 * asked.minutes:
                    for event in events.read_new():
                        rounds += isinstance(event, RoundDone)
                        if isinstance(event, RunFinished):
                            raise RunError(f"the run must last, it ended: {event.reason}")
                    deployment.check_server(deployment.supervisor.ended())
                    time.sleep(_POLL_SECONDS)
            except Stopping as stopping:
                stopped = stopping
        minutes = (time.monotonic() - began) / 60
    finally:
        deployment.supervisor.stop()
    return Soaked(minutes, rounds, sampler.samples, stopped)


def growth(name: str, usages: Sequence[Usage]) -> Growth:
    """Return how a process changed after it had settled.

    >>> steady = [Usage(100 * 2**20, 100 * 2**20, 9, 4, time=second) for second in range(30)]
    >>> growth("agent", steady).has_grown()
    False
    """
    settled = usages[int(len(usages) * _SETTLED) :]
    hours = np.array([used.time - settled[0].time for used in settled]) / 3600
    memory = np.array([used.memory_bytes / _MIB for used in settled])
    slope = float(np.polyfit(hours, memory, 1)[0]) if len(settled) > 1 else 0.0
    first, last = settled[0], settled[-1]
    return Growth(
        process=name,
        memory_mib=round(last.memory_bytes / _MIB, 1),
        memory_mib_per_hour=round(slope, 1),
        files=(first.files, last.files),
        threads=(first.threads, last.threads),
    )


@styled
def draw(samples: Mapping[tuple[str, int], Sequence[Usage]]) -> Figure:
    """Draw each process's memory against time."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    names = sorted({name for name, _ in samples})
    began = min(usages[0].time for usages in samples.values())
    for (name, _), usages in sorted(samples.items()):
        minutes = [(used.time - began) / 60 for used in usages]
        color = SERIES[names.index(name) % len(SERIES)]
        style = "-" if names.index(name) < len(SERIES) else "--"
        axes.plot(minutes, [used.memory_bytes / _MIB for used in usages], style, color=color, label=name)
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    axes.legend(unique.values(), unique.keys(), fontsize=8, ncols=2)
    axes.set(title="Memory of each process", xlabel="minutes", ylabel="MiB", ylim=(0, None))
    return figure
