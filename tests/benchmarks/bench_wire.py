"""``confide dev bench wire``: what a deployed round costs between hosts, masked and plain: seconds, calls, CPU.

A server and its hospitals run as their own processes: on loopback, or each on a host of its own, a network namespace,
with a line between them that delays every frame and loses none. Training is made trivial, so what is measured is the
way of the messages. With ``--against`` the same is measured with the code of another checkout, in turn.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from common.errors import ConfigError, RunError
from common.processes import Stopping, children_of, raise_on_signals
from common.provenance import machine, versions
from common.settings import free_port
from common.telemetry.events import EVENTS_FILE
from deploy.command import FILE, CommaList, command, json_file_option
from deploy.json_report import write_json_report
from tests.benchmarks.counted_calls.sitecustomize import FOLDER_VARIABLE
from tests.support.consortium import ROOT, Consortium
from tests.support.hosts import Host, connected
from tests.support.installed_package import install

PACKAGE = "wire_net"
SOURCE = '''"""A network with as many parameters as wanted, trained in no time: the image shrinks to 7 x 7 pixels."""

import torch
from torch import nn


def _made(width: int, classes: int) -> nn.Module:
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(7), nn.Conv2d(1, width, kernel_size=7), nn.Tanh(), nn.Flatten(), nn.Linear(width, classes)
    )


def thousands(classes: int, channels: int, image_size: int) -> nn.Module:
    return _made(500, classes)


def more_thousands(classes: int, channels: int, image_size: int) -> nn.Module:
    return _made(1_100, classes)


class Wide(nn.Module):
    """A small layer, and millions of parameters of which a weighted sum is added: each has a gradient of its own."""

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.small = nn.Sequential(nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(channels * 49, classes))
        count = 11_180_002 - classes * (channels * 49 + 1)
        self.many = nn.Parameter(torch.zeros(count))
        self.weights = torch.linspace(-1, 1, count)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.small(images)
        # To one class alone: what is added to all of them has no gradient.
        return torch.cat((logits[:, :1] + self.many @ self.weights, logits[:, 1:]), dim=1)


def millions(classes: int, channels: int, image_size: int) -> nn.Module:
    return Wide(classes, channels)
'''
PARAMETERS = {"thousands": 26_002, "more_thousands": 57_202, "millions": 11_180_002}
"""Model to its parameters, for two classes."""

HOSPITALS = 4
RECORDS = 240
SETTINGS = (
    "training.batch_size=32", "hospital.stated_training_units=20", "hospital.stated_validation_units=4",
    "hospital.stated_test_units=4", "evaluation.exact=true", "hospital.allow_exact_evaluation=true",
    "hospital.allow_plain=true",
)  # fmt: skip
TRIVIAL = ("privacy.mode=none", "hospital.allow_no_privacy=true")
"""With ``millions`` training is one step without noise: the ten noisy ones of a private round draw 112 million
Gaussians at each hospital, which takes longer than all else in a round."""
MODES: Mapping[str, tuple[str, ...]] = {
    "secure": ("aggregation.mode=secure",),
    "plain": ("aggregation.mode=plain",),
    "proved": ("aggregation.mode=secure", "aggregation.proved_sums=true"),
}
"""What runs are made of: with masks, without, and with masks and proved sums."""
WARM_ROUNDS = 2
"""Rounds of each run that are not measured."""
LONGEST_SECONDS = 900.0
LOOPBACK = -1.0
"""The delay that says: no hosts and no line."""
_IDLE_SECONDS = 0.3
"""Processor time of all processes in a second in which none has anything to do but heartbeats."""
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Measured:
    """The rounds of one run.

    Attributes:
        code: ``now``, or ``before`` for the other checkout.
        line: ``loopback``, or the round trip between two hosts, such as ``100 ms``.
        mode: one of :data:`MODES`.
        rounds: measured.
        seconds: of a round, median.
        exchanges: of each exchange, by phase, median seconds.
        upload_bytes: of all hospitals in a round.
        cpu_seconds: of all processes of server and hospitals, for each round.
        cpu_by_process: the same, by what the processes are.
        calls: that a hospital makes to the server in a round, by name; heartbeats and enrolment are left out.
        local_calls: over HTTP between processes of one machine, for each round, all machines together.
    """

    code: str
    line: str
    mode: str
    rounds: int
    seconds: float
    exchanges: dict[str, float]
    upload_bytes: float
    cpu_seconds: float
    cpu_by_process: dict[str, float]
    calls: dict[str, float]
    local_calls: float


class MillisecondsOrLoopback(click.ParamType[float]):
    """``loopback``, or the milliseconds of a round trip."""

    name = "LINE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:  # noqa: ANN401
        """See :class:`click.ParamType`."""
        if value == "loopback":
            return LOOPBACK
        try:
            return max(0.0, float(value))
        except ValueError:
            self.fail(f"{value!r} must be loopback or milliseconds", param, ctx)


def line_of(text: str) -> float:
    """Return one of ``--lines`` in milliseconds."""
    return MillisecondsOrLoopback().convert(text, None, None)


_Function = TypeVar("_Function", bound=Callable[..., Any])


def model_and_lines(lines: str) -> Callable[[_Function], _Function]:
    """Add the options ``--model`` and ``--lines``.

    Args:
        lines: default of the latter.
    """

    def decorate(function: _Function) -> _Function:
        function = click.option(
            "--lines", type=CommaList(line_of), default=lines, metavar="LINE,...",
            help="loopback, or milliseconds of a round trip between hosts.",
        )(function)  # fmt: skip
        return click.option(
            "--model", type=click.Choice(tuple(PARAMETERS)), default="thousands",
            help="26 thousand, 57 thousand or 11.2 million parameters.",
        )(function)  # fmt: skip

    return decorate


@command(
    "wire",
    "Measure what a round costs between hosts, masked and plain: seconds, processor time and calls. Lines other than "
    "loopback need root.",
    "./confide dev bench wire --lines loopback,100 --rounds 20",
)
@model_and_lines("loopback,100")
@click.option("--rounds", type=int, default=10, metavar="R", help="Measured rounds of each run.")
@click.option("--modes", type=CommaList(str), default="secure,plain", metavar="MODE,...", help=", ".join(MODES) + ".")
@click.option("--against", type=FILE, metavar="DIR", help="Another checkout, measured in turn with this one.")
@json_file_option()
def main(
    model: str,
    lines: tuple[float, ...],
    rounds: int,
    modes: tuple[str, ...],
    against: Path | None,
    json_file: Path | None,
) -> int:
    """Measure, print, and write JSON where asked."""
    if not set(modes) <= set(MODES):
        raise ConfigError(f"--modes must be of {', '.join(MODES)}, got {','.join(modes)}")
    if rounds < 1:
        raise RunError("--rounds must be at least 1")
    if against is not None and not (against / "deploy" / "__main__.py").is_file():
        raise ConfigError(f"--against must be a checkout of Confide, got {against}")
    codes = {"now": ROOT, **({} if against is None else {"before": against.resolve()})}
    raise_on_signals()
    measured: list[Measured] = []
    try:
        for line in lines:
            for code, root in codes.items():
                for done in measure(code, root, line, model, rounds, modes):
                    measured.append(done)
                    _say(done)
    except Stopping as stopping:
        return stopping.exit_code
    finally:
        for words in ratios(measured):
            print(words, flush=True)
        if json_file is not None:
            facts = {
                "runs": [asdict(done) for done in measured],
                "parameters": PARAMETERS[model],
                "hospitals": HOSPITALS,
                "against": None if against is None else _commit(against),
                "machine": machine(),
                "versions": versions(),
            }
            write_json_report(json_file, facts)
    return 0


def measure(
    code: str, root: Path, line: float, model: str, rounds: int, modes: Sequence[str] = ("secure", "plain")
) -> Iterator[Measured]:
    """Deploy a consortium once and carry out one run in each mode."""
    with tempfile.TemporaryDirectory(prefix="confide-wire-") as scratch, hosts_on(line) as hosts:
        folder = Path(scratch)
        site = install(folder / "package", PACKAGE, {"__init__.py": SOURCE})
        counted = folder / "calls"
        counted.mkdir()
        path = (root, site, Path(__file__).parent / "counted_calls")
        environment = {
            "PYTHONPATH": os.pathsep.join(map(str, path)),
            FOLDER_VARIABLE: str(counted),
            # The hospitals share this machine's cores, and would each start as many threads as there are. The server
            # works while they wait, and has all of them.
            "OMP_NUM_THREADS": "1",
        }
        hashed = _hash(root, environment)
        chosen = (f"model.name={PACKAGE}:{model}", f"model.sha256={hashed}", f"hospital.accepted_models=[{hashed}]")
        consortium = Consortium(
            folder,
            HOSPITALS,
            (*SETTINGS, *(TRIVIAL if model == "millions" else ()), *chosen),
            root=root,
            environment=environment,
            records=RECORDS,
        )
        try:
            _start(consortium, hosts)
            for mode in modes:
                window = _run(consortium, mode, rounds)
                yield Measured(
                    code=code,
                    line="loopback" if line == LOOPBACK else f"{line:g} ms",
                    mode=mode,
                    rounds=rounds,
                    **window.figures(counted),
                )
        finally:
            consortium.stop()


@contextlib.contextmanager
def hosts_on(line: float) -> Iterator[tuple[Host, ...]]:
    """Connect a host for the server and one for each hospital; none on loopback."""
    if line == LOOPBACK:
        yield ()
        return
    if os.geteuid() != 0:
        raise ConfigError("a line between hosts needs root; --lines loopback does not")
    names = ("server", *(f"h{number}" for number in range(1, HOSPITALS + 1)))
    with connected(names, line / 2000, "--even") as (_, hosts):
        yield hosts


_ALL_CORES = ("env", "-u", "OMP_NUM_THREADS")


def _start(consortium: Consortium, hosts: tuple[Host, ...]) -> None:
    if hosts:
        consortium.start_server([hosts[0].address], ("--listen", hosts[0].address), (*hosts[0].prefix, *_ALL_CORES))
    else:
        ports = ("--fleet-port", "--enrolment-port", "--runtime-port")
        words = [word for port in ports for word in (port, str(free_port()))]
        consortium.start_server(["127.0.0.1"], words, _ALL_CORES)
    for number in range(1, HOSPITALS + 1):
        name = f"hospital-{number}"
        own = () if hosts else ("--runtime-port", str(free_port()))
        consortium.join(name, consortium.invite(name), own, hosts[number].prefix if hosts else ())


@dataclass(frozen=True)
class Window:
    """What was read at both ends of the measured rounds of a run, and what the server told of them."""

    rounds: int
    began: float
    ended: float
    cpu: Mapping[str, float]
    """Seconds used in between, by what a process is called."""
    told: Sequence[Mapping[str, Any]]
    """Events of the measured rounds."""

    def figures(self, counted: Path) -> dict[str, Any]:
        """Return the fields of :class:`Measured` that these give."""
        phases: dict[str, list[float]] = {}
        for event in self.told:
            if event["kind"] == "exchange":
                phases.setdefault(event["phase"], []).append(event["seconds"])
        done = [event for event in self.told if event["kind"] == "round"]
        calls = calls_between(counted, self.began, self.ended)
        remote = {name: number for name, number in calls.items() if name.startswith("grpc ")}
        each = self.rounds * HOSPITALS
        return {
            "seconds": statistics.median(event["seconds"] for event in done),
            "exchanges": {phase: statistics.median(seconds) for phase, seconds in phases.items()},
            "upload_bytes": statistics.median(event.get("upload_bytes", 0) for event in done),
            "cpu_seconds": sum(self.cpu.values()) / self.rounds,
            "cpu_by_process": {name: used / self.rounds for name, used in sorted(self.cpu.items())},
            "calls": {name.removeprefix("grpc "): number / each for name, number in sorted(remote.items())},
            "local_calls": sum(number for name, number in calls.items() if name.startswith("http ")) / self.rounds,
        }


IN_A_ROUND = frozenset(
    {"PullMessages", "PullObject", "ConfirmMessageReceived", "PushMessages", "PushObject", "GetRun", "GetFab"}
)
"""Calls of Flower's Fleet API that carry a round's messages."""


def calls_between(folder: Path, began: float, ended: float) -> Counter[str]:
    """Return how many calls of each name were counted in a time, on all machines together."""
    found: Counter[str] = Counter()
    for file in folder.iterdir():
        for line in file.read_text().splitlines():
            at, _, name = line.partition(" ")
            kind, _, method = name.partition(" ")
            if began <= float(at) < ended and (kind == "http" or method in IN_A_ROUND):
                found[name] += 1
    return found


def _run(consortium: Consortium, mode: str, rounds: int) -> Window:
    """Propose a run, wait for its end, and return what it told of the rounds between the warm ones and the last."""
    consortium.wait_for(lambda: _is_idle(consortium), LONGEST_SECONDS)
    before = set(consortium.state.rglob(EVENTS_FILE))
    total = WARM_ROUNDS + rounds + 1
    words = [word for setting in (f"experiment.rounds={total}", *MODES[mode]) for word in ("--set", setting)]
    consortium.propose(HOSPITALS, *words)
    consortium.wait_for(lambda: bool(set(consortium.state.rglob(EVENTS_FILE)) - before), LONGEST_SECONDS)
    (file,) = set(consortium.state.rglob(EVENTS_FILE)) - before
    steps = Steps(file)
    consortium.wait_for(lambda: steps.done() >= WARM_ROUNDS, LONGEST_SECONDS)
    began, used = time.time(), cpu_of(consortium.processes())
    consortium.wait_for(lambda: steps.done() >= WARM_ROUNDS + rounds, LONGEST_SECONDS)
    ended, later = time.time(), cpu_of(consortium.processes())
    consortium.wait_for(lambda: steps.done() >= total, LONGEST_SECONDS)
    measured = range(WARM_ROUNDS + 1, WARM_ROUNDS + rounds + 1)
    numbers = {event["round"] for event in steps.told if event["kind"] == "round" and event["step"] in measured}
    return Window(
        rounds,
        began,
        ended,
        {name: later[name] - used.get(name, 0.0) for name in later},
        [event for event in steps.told if event["kind"] in ("round", "exchange") and event["round"] in numbers],
    )


def _is_idle(consortium: Consortium) -> bool:
    """Say whether nothing is computed for a second: not the report of the run before, nor an agent that starts."""
    used = sum(cpu_of(consortium.processes()).values())
    time.sleep(1.0)
    return sum(cpu_of(consortium.processes()).values()) - used < _IDLE_SECONDS


class Steps:
    """The events of a run, read as plain JSON: those of another checkout may have other fields."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.told: list[Mapping[str, Any]] = []

    def done(self) -> int:
        """Return how many steps are done.

        Raises:
            RunError: the run has ended badly.
        """
        lines = self._file.read_text(encoding="utf-8").split("\n")[:-1]
        self.told += [json.loads(line) for line in lines[len(self.told) :]]
        last = self.told[-1] if self.told else {}
        if last.get("kind") == "run_finished" and last["reason"] != "completed":
            raise RunError(f"every round must be trained, got: {last['reason']}")
        return sum(event["kind"] == "round" for event in self.told)


NAMES = {
    "server.flower.superlink": "SuperLink",
    "superexec": "executor",
    "serverapp": "ServerApp",
    "client.flower.": "relay",
    "client.resident": "agent",
}
"""What a command line holds, to what the process is called; all others are ``rest``."""


def cpu_of(roots: Sequence[int]) -> dict[str, float]:
    """Return the processor seconds that processes and all they have started have used, by what they are called."""
    used: dict[str, float] = {}
    waiting = [(root, "") for root in roots]
    while waiting:
        pid, line = waiting.pop()
        waiting += children_of(pid).items()
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            name = next((name for part, name in NAMES.items() if part in line), "rest")
            used[name] = used.get(name, 0.0) + (int(fields[11]) + int(fields[12])) / _TICK
    return used


def ratios(measured: Sequence[Measured]) -> Iterator[str]:
    """Say in words what figures of the same line tell together."""
    by = {(done.code, done.line, done.mode): done for done in measured}
    for (code, line, mode), done in by.items():
        plain = by.get((code, line, "plain"))
        if mode == "secure" and plain is not None:
            yield f"{code}, {line}: masked / plain {done.seconds / plain.seconds:.2f}"
        masked = by.get((code, line, "secure"))
        if mode == "proved" and masked is not None:
            more = (done.upload_bytes - masked.upload_bytes) / HOSPITALS / 1024
            yield (
                f"{code}, {line}: proved / masked {done.seconds / masked.seconds:.2f} (seconds), "
                f"{done.cpu_seconds / masked.cpu_seconds:.2f} (processor); {more:.1f} KiB more from each hospital"
            )
        before = by.get(("before", line, mode))
        if code == "now" and before is not None:
            quicker, cheaper = done.seconds / before.seconds, done.cpu_seconds / before.cpu_seconds
            yield f"{line}, {mode}: now / before {quicker:.2f} (seconds), {cheaper:.2f} (processor)"
        near = by.get((code, "loopback", mode))
        if line not in ("loopback", "0 ms") and near is not None:
            trip = float(line.removesuffix(" ms")) / 1000
            trips = {
                phase: (seconds - near.exchanges[phase]) / trip
                for phase, seconds in done.exchanges.items()
                if phase in near.exchanges
            }
            words = ", ".join(f"{phase} {number:.1f}" for phase, number in trips.items())
            yield f"{code}, {line}, {mode}: round trips an exchange (beyond loopback): {words}"


def _hash(root: Path, environment: Mapping[str, str]) -> str:
    told = subprocess.run(
        (sys.executable, "-m", "deploy", "model", "hash", PACKAGE),
        cwd=root, env={**os.environ, **environment}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return told.stdout.strip()


def _commit(root: Path) -> str:
    told = subprocess.run(
        ("git", "-C", str(root), "rev-parse", "HEAD"), check=False, capture_output=True, text=True
    ).stdout.strip()
    return told or "unknown"


def _say(done: Measured) -> None:
    exchanges = ", ".join(f"{phase} {seconds:.3f}" for phase, seconds in done.exchanges.items())
    cpu = ", ".join(f"{name} {used:.2f}" for name, used in done.cpu_by_process.items())
    calls = ", ".join(f"{name} {number:.1f}" for name, number in done.calls.items())
    print(
        f"{done.code}, {done.line}, {done.mode}: {done.seconds:.3f} s a round ({exchanges}); "
        f"processor {done.cpu_seconds:.2f} s a round ({cpu}); {sum(done.calls.values()):.1f} calls of a hospital "
        f"({calls}); {done.local_calls:.0f} local calls of all",
        flush=True,
    )
