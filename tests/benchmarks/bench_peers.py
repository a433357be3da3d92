"""``confide dev bench peers``: a round of Confide beside one of Flower's newest release and of NVIDIA FLARE's.

Each peer runs as its documents deploy it on one machine, with its defaults, in an environment of its own that pip
makes on demand. All have four hospitals, one vector of float32 and training that adds one. Seconds of a round are taken
between the beginnings of rounds. Processor time is that of all processes that have been started.
"""

import contextlib
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from common.errors import ConfigError, RunError
from common.processes import Stopping, raise_on_signals
from common.provenance import machine, versions
from common.settings import free_port
from deploy.command import CommaList, command, json_file_option
from deploy.json_report import write_json_report
from tests.benchmarks import peer_apps
from tests.benchmarks.bench_wire import HOSPITALS, LOOPBACK, PARAMETERS, WARM_ROUNDS, hosts_on, measure, model_and_lines
from tests.support.consortium import ROOT
from tests.support.hosts import Host

PACKAGES: Mapping[str, tuple[str, ...]] = {"flower": ("flwr", "numpy"), "nvflare": ("nvflare", "numpy", "tenseal")}
"""Environment to what pip installs into it: the newest release."""
PEERS = ("confide", "flower", "flower-secagg", "nvflare", "nvflare-he")
NVFLARE_PORTS = (8002, 8003)
"""Those of its POC mode; a forwarder carries them where hospitals are on hosts of their own."""
LONGEST_SECONDS = 300.0
MARK = "CONFIDE_BENCH_PEER"
"""An environment variable by which all processes of one peer are known, those that leave their parents too."""
_TICK = os.sysconf("SC_CLK_TCK")

FORWARDER = """
import asyncio, sys
async def pour(reader, writer):
    while data := await reader.read(2**18):
        writer.write(data)
        await writer.drain()
    writer.close()
async def carry(port, reader, writer):
    far_reader, far_writer = await asyncio.open_connection(sys.argv[1], port)
    await asyncio.gather(pour(reader, far_writer), pour(far_reader, writer), return_exceptions=True)
async def main():
    for port in map(int, sys.argv[2:]):
        await asyncio.start_server(lambda r, w, port=port: carry(port, r, w), "127.0.0.1", port)
    await asyncio.Event().wait()
asyncio.run(main())
"""
"""Lets a hospital's processes reach the server's ports under ``localhost``, the one name that POC certificates have."""


@dataclass(frozen=True)
class PeerMeasured:
    """The rounds of one peer.

    Attributes:
        peer: one of :data:`PEERS`, with ``confide plain`` beside ``confide masked``.
        line: ``loopback``, or the round trip between two hosts.
        rounds: measured.
        seconds: of a round, median.
        cpu_seconds: of all processes, for each round.
    """

    peer: str
    line: str
    rounds: int
    seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class Place:
    """Where a peer runs.

    Attributes:
        folder: for all that it writes.
        programs: the ``bin`` folder of its environment.
        hosts: of the server and the hospitals; none on loopback.
        environment: of all of its processes.
    """

    folder: Path
    programs: Path
    hosts: tuple[Host, ...]
    environment: Mapping[str, str]

    def start(self, host: int, log: str, *words: str) -> subprocess.Popen[bytes]:
        """Start a program of the peer's environment on a host: 0 is the server's."""
        prefix = self.hosts[host].prefix if self.hosts else ()
        program = words[0] if "/" in words[0] else str(self.programs / words[0])
        with (self.folder / f"{log}.log").open("ab") as output:
            return subprocess.Popen(
                (*prefix, program, *words[1:]),
                cwd=self.folder, env=dict(self.environment), stdin=subprocess.DEVNULL,
                stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def run(self, host: int, log: str, *words: str) -> None:
        """Run a program to its end.

        Raises:
            RunError: it fails.
        """
        process = self.start(host, log, *words)
        try:
            failed = process.wait(LONGEST_SECONDS) != 0
        except subprocess.TimeoutExpired:
            failed = True
        if failed:
            raise RunError(f"{' '.join(words[:3])} must succeed:\n{self.last_words()}")

    def last_words(self) -> str:
        """Return the end of each log."""
        return "\n".join(
            f"== {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in sorted(self.folder.glob("*.log"))
        )


@command(
    "peers",
    "Measure a round beside those of Flower's newest release and NVIDIA FLARE's. pip fetches them. Lines other than "
    "loopback need root.",
    "./confide dev bench peers --rounds 5",
)
@model_and_lines("loopback")
@click.option("--rounds", type=int, default=5, metavar="R", help="Measured rounds of each.")
@click.option(
    "--peers", type=CommaList(str), default=",".join(PEERS), metavar="PEER,...", help=f"Of {', '.join(PEERS)}."
)
@click.option(
    "--environments", type=click.Path(path_type=Path), default=Path.home() / ".cache" / "confide" / "peers",
    metavar="DIR", help="Where the peers' environments are made, and found again.",
)  # fmt: skip
@json_file_option()
def main(
    model: str,
    lines: tuple[float, ...],
    rounds: int,
    peers: tuple[str, ...],
    environments: Path,
    json_file: Path | None,
) -> int:
    """Measure, print, and write JSON where asked."""
    if rounds < 1:
        raise RunError("--rounds must be at least 1")
    unknown = [peer for peer in peers if peer not in PEERS]
    if unknown:
        raise ConfigError(f"--peers must be of {', '.join(PEERS)}, got {', '.join(unknown)}")
    raise_on_signals()
    measured: list[PeerMeasured] = []
    failed: dict[str, str] = {}
    try:
        for line in lines:
            for peer in peers:
                try:
                    for done in _measured(peer, environments, line, model, rounds):
                        measured.append(done)
                        print(f"{done.peer}, {done.line}: {done.seconds:.3f} s a round, processor "
                              f"{done.cpu_seconds:.2f} s a round", flush=True)  # fmt: skip
                except RunError as error:  # One peer that does not run leaves the others.
                    failed[f"{peer}, {_name(line)}"] = str(error)
                    print(f"{peer}, {_name(line)}: not measured: {error}", flush=True)
    except Stopping as stopping:
        return stopping.exit_code
    finally:
        for words in ratios(measured):
            print(words, flush=True)
        if json_file is not None:
            facts = {
                "runs": [asdict(done) for done in measured],
                "not_measured": failed,
                "parameters": PARAMETERS[model],
                "hospitals": HOSPITALS,
                "peers": {name: _versions(environments / name) for name in PACKAGES if (environments / name).exists()},
                "machine": machine(),
                "versions": versions(),
            }
            write_json_report(json_file, facts)
    return 1 if failed else 0


def ratios(measured: Sequence[PeerMeasured]) -> Iterator[str]:
    """Say in words how each peer stands to Confide's masked round on the same line."""
    ours = {done.line: done for done in measured if done.peer == "confide masked"}
    for done in measured:
        base = ours.get(done.line)
        if base is not None and done is not base:
            yield (
                f"{done.line}: {done.peer} / confide masked {done.seconds / base.seconds:.2f} (seconds), "
                f"{done.cpu_seconds / base.cpu_seconds:.2f} (processor)"
            )


def _name(line: float) -> str:
    return "loopback" if line == LOOPBACK else f"{line:g} ms"


def _measured(peer: str, environments: Path, line: float, model: str, rounds: int) -> Iterator[PeerMeasured]:
    if peer == "confide":
        for done in measure("now", ROOT, line, model, rounds):
            mode = "plain" if done.mode == "plain" else "masked"
            yield PeerMeasured(f"confide {mode}", done.line, rounds, done.seconds, done.cpu_seconds)
        return
    programs = environment_of(environments, peer.partition("-")[0])
    mark = uuid.uuid4().hex
    with tempfile.TemporaryDirectory(prefix="confide-peer-") as scratch, hosts_on(line) as hosts:
        folder = Path(scratch)
        place = Place(folder, programs, hosts, _environment(folder, programs, mark))
        times = folder / "times"
        total = WARM_ROUNDS + rounds + 1
        try:
            if peer.startswith("flower"):
                _start_flower(place, PARAMETERS[model], total, times, secagg=peer == "flower-secagg")
            else:
                _start_nvflare(place, PARAMETERS[model], total, times, he=peer == "nvflare-he")
            yield _window(peer, _name(line), rounds, times, mark, place)
        finally:
            end(mark)


def _environment(folder: Path, programs: Path, mark: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("LANG", "TZ") if name in os.environ}
    return {
        **kept,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "HOME": str(folder),
        "FLWR_HOME": str(folder / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "NVFLARE_POC_WORKSPACE": str(folder / "poc"),
        "OMP_NUM_THREADS": "1",
        MARK: mark,
    }


def _window(peer: str, line: str, rounds: int, times: Path, mark: str, place: Place) -> PeerMeasured:
    """Wait for the measured rounds, between the warm ones and the last."""
    began = _wait_for(lambda: len(_lines(times)) > WARM_ROUNDS, place, lambda: cpu_of_marked(mark))
    ended = _wait_for(lambda: len(_lines(times)) > WARM_ROUNDS + rounds, place, lambda: cpu_of_marked(mark))
    beginnings = [float(text) for text in _lines(times)[WARM_ROUNDS : WARM_ROUNDS + rounds + 1]]
    seconds = [after - before for before, after in itertools.pairwise(beginnings)]
    return PeerMeasured(peer, line, rounds, statistics.median(seconds), (ended - began) / rounds)


def _lines(file: Path) -> list[str]:
    return file.read_text().split("\n")[:-1] if file.exists() else []


def _wait_for(condition: Callable[[], bool], place: Place, value: Callable[[], float]) -> float:
    give_up = time.monotonic() + LONGEST_SECONDS
    while not condition():
        if time.monotonic() > give_up:
            raise RunError(f"its rounds must end within {LONGEST_SECONDS:.0f} s:\n{place.last_words()}")
        time.sleep(0.02)
    return value()


def environment_of(environments: Path, name: str) -> Path:
    """Return the ``bin`` folder of a peer's environment, which pip makes when it is missing.

    Raises:
        RunError: pip cannot make it.
    """
    root = environments / name
    if not (root / "made").exists():
        root.parent.mkdir(parents=True, exist_ok=True)
        words = (str(root / "bin" / "python"), "-m", "pip", "install", "--quiet", *PACKAGES[name])
        for each in ((sys.executable, "-m", "venv", "--clear", str(root)), words):
            made = subprocess.run(each, check=False, capture_output=True, text=True)
            if made.returncode != 0:
                raise RunError(f"pip must install {' '.join(PACKAGES[name])}: {made.stderr.strip()[-500:]}")
        (root / "made").touch()
    return root / "bin"


def _versions(root: Path) -> dict[str, str]:
    told = subprocess.run(
        (str(root / "bin" / "python"), "-m", "pip", "list", "--format", "json"),
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    return {each["name"]: each["version"] for each in json.loads(told.stdout or "[]")}


def _start_flower(place: Place, parameters: int, rounds: int, times: Path, *, secagg: bool) -> None:
    """Deploy a SuperLink and its SuperNodes, without TLS as its quickstart does, and submit a run."""
    app = place.folder / "app"
    (app / "peer").mkdir(parents=True)
    (app / "pyproject.toml").write_text(peer_apps.FLOWER_PROJECT)
    (app / "peer" / "__init__.py").touch()
    (app / "peer" / "app.py").write_text(peer_apps.FLOWER_SECAGG_APP if secagg else peer_apps.FLOWER_APP)
    address = place.hosts[0].address if place.hosts else "127.0.0.1"
    port = free_port()
    connection = f'[superlink]\ndefault = "bench"\n[superlink.bench]\naddress = "{address}:{port}"\ninsecure = true\n'
    (place.folder / "flwr").mkdir()
    (place.folder / "flwr" / "config.toml").write_text(connection)
    listen = ("--host", address, "--port", str(port))
    place.start(0, "superlink", "flower-superlink", "--insecure", "--disable-runtime-dependency-installation", *listen)
    for number in range(1, HOSPITALS + 1):
        own = ("--superlink", f"{address}:{port}", "--port", str(free_port()))
        place.start(number, f"supernode-{number}", "flower-supernode", "--insecure", *own)
    config = f'rounds={rounds} parameters={parameters} hospitals={HOSPITALS} times="{times}"'
    _again(lambda: place.run(0, "run", "flwr", "run", str(app), "bench", "--run-config", config))


def _start_nvflare(place: Place, parameters: int, rounds: int, times: Path, *, he: bool) -> None:
    """Prepare and start POC mode, and submit a job."""
    workspace = place.folder / "poc"
    place.run(0, "prepare", "nvflare", "poc", "prepare", "-n", str(HOSPITALS), *(["-he"] if he else []), "--force")
    kits = next(workspace.glob("*/prod_00"))
    _write_job(kits / "admin@nvidia.com" / "transfer" / "peer", parameters, rounds, times, he=he)
    place.start(0, "server", str(kits / "server" / "startup" / "start.sh"))
    for number in range(1, HOSPITALS + 1):
        if place.hosts:
            ports = map(str, NVFLARE_PORTS)
            words = (sys.executable, "-c", FORWARDER, place.hosts[0].address, *ports)
            place.start(number, f"forwarder-{number}", *words)
        place.start(number, f"site-{number}", str(kits / f"site-{number}" / "startup" / "start.sh"))
    job = str(kits / "admin@nvidia.com" / "transfer" / "peer")
    _again(lambda: place.run(0, "submit", "nvflare", "job", "submit", "-j", job))


def _write_job(folder: Path, parameters: int, rounds: int, times: Path, *, he: bool) -> None:
    (folder / "app" / "config").mkdir(parents=True)
    (folder / "app" / "custom").mkdir()
    meta = {"name": "peer", "resource_spec": {}, "min_clients": HOSPITALS, "deploy_map": {"app": ["@ALL"]}}
    (folder / "meta.json").write_text(json.dumps(meta))
    server = peer_apps.nvflare_server(parameters, rounds, HOSPITALS, str(times), he=he)
    (folder / "app" / "config" / "config_fed_server.json").write_text(json.dumps(server))
    (folder / "app" / "config" / "config_fed_client.json").write_text(json.dumps(peer_apps.nvflare_client(he=he)))
    (folder / "app" / "custom" / "app.py").write_text(peer_apps.NVFLARE_APP)


def _again(action: Callable[[], None], times: int = 10) -> None:
    """Do what fails until a server listens."""
    for left in reversed(range(times)):
        try:
            action()
        except RunError:
            if left == 0:
                raise
            time.sleep(2.0)
        else:
            return


def marked(mark: str) -> list[int]:
    """Return the processes that have a mark in their environment."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
    return found


def cpu_of_marked(mark: str) -> float:
    """Return the processor seconds of marked processes, and of those of their children that have ended."""
    used = 0.0
    for pid in marked(mark):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            used += sum(map(int, fields[11:15])) / _TICK
    return used


def end(mark: str) -> None:
    """End all processes with a mark."""
    for each in (signal.SIGTERM, signal.SIGKILL, signal.SIGKILL):
        for pid in marked(mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, each)
        give_up = time.monotonic() + 5.0
        while marked(mark) and time.monotonic() < give_up:
            time.sleep(0.1)
