"""``confide chaos``: kill a running consortium's processes one after the other, and see whether the run survives.

A server and its hospitals run on loopback as in production. Time after time a process is chosen at random (SuperLink,
ServerApp, executor, the server's supervisor, a SuperNode, an agent, a hospital's supervisor) and killed with SIGKILL at
a random point of the protocol. Whatever is killed comes back by itself: a role's supervisor restarts its own
processes; a killed supervisor is restarted by what started it, which is Docker's restart policy in a container and this
command here.
"""

import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from client.ledger.ledger import LEDGER_FOLDER, export
from common.audit.chain import AUDIT_FILE, Chain, read_chain
from common.audit.entries import Contributed, Summed
from common.config import Config, load_config
from common.config import replace as replaced
from common.errors import ConfigError, LedgerError, RunError
from common.identity.certificates import load_certificate
from common.privacy.mechanism import mechanism_of
from common.processes import Stopping, children_of, raise_on_signals
from common.provenance import machine, versions
from common.settings import CHECKPOINTS_FOLDER
from common.telemetry.events import EVENTS_FILE, EventFile
from deploy.audit.verify import verify
from deploy.command import command, config_options, json_file_option, out_option
from deploy.datasets.datasets import obtain
from deploy.demo.dealer import deal
from deploy.demo.loopback import SERVER, LoopbackDeployment
from deploy.json_report import write_json_report
from deploy.resilience.chaos_plan import Kill, Role, plan_kills
from deploy.resilience.chaos_progress import Progress
from server.checkpoints import CheckpointStore
from server.run import new_run_id

HUNG_SECONDS = 180.0
"""A run that has not continued this long after a kill counts as hung."""

_START_SECONDS = 300.0
_POLL_SECONDS = 0.01
_ROUNDS_PER_KILL = 100
"""Rounds that are asked for, so that the run outlasts the kills; a hospital that restarts misses several."""
_ROUNDS_PER_KILL_TOGETHER = 4
"""Rounds for each kill where everybody must be in every round: a kill costs one repeated round at most; two follow."""
_RECORDS = 900
"""The number of phantom images: enough for four hospitals, few enough that a round takes about a second."""

_PROCESSES = {
    Role.SUPERLINK: "server.flower.superlink",
    Role.SUPEREXEC: "flower-superexec",
    Role.SUPERNODE: "client.flower.supernode",
    Role.AGENT: "client.resident",
}
"""What stands in the command line of a process that a supervisor started."""


@dataclass(frozen=True)
class ChaosReport:
    """What the kills did.

    Attributes:
        asked_for: kills.
        kills: processes killed; fewer than asked for when the run or the command was ended before.
        resumed: kills after which a later round was finished, with the killed hospital in it where it was one.
        hung: kills after which none was within :data:`HUNG_SECONDS`.
        lost_rounds: rounds begun that gave no step; their work was done again in a later one.
        undone_rounds: finished rounds that a restarted server did not remember.
        finished_rounds: rounds that gave a step.
        median_recovery_seconds: from a kill to the end of that later round.
        longest_recovery_seconds: likewise.
        ledger_under_counts: rounds that a hospital made a vector for, by its own audit chain or the server's, without
            a line in its ledger.
        ledger_over_counts: lines of rounds that it was killed in before there was a vector; the safe side.
        gave_up: why the run ended before its last round, whatever the kills; None where it did not.
        same_model: whether the model is, byte for byte, that of a run without kills; None when not asked.
        ended_early: by a signal; the last kill may not have been recovered from yet.
    """

    asked_for: int
    kills: int
    resumed: int
    hung: int
    lost_rounds: int
    undone_rounds: int
    finished_rounds: int
    median_recovery_seconds: float | None
    longest_recovery_seconds: float | None
    ledger_under_counts: int
    ledger_over_counts: int
    gave_up: str | None = None
    same_model: bool | None = None
    ended_early: bool = False

    def holds(self) -> bool:
        """Return whether everything holds that must hold."""
        return (
            not (self.hung or self.undone_rounds or self.ledger_under_counts or self.gave_up)
            and self.same_model is not False
        )


@dataclass(frozen=True)
class _Asked:
    """What the command line says of an experiment: see the options of the same names."""

    kills: int
    seed: int
    hospitals: int
    same_model: bool
    config_file: Path
    overrides: tuple[str, ...]


@command(
    "chaos",
    "Kill a deployment's processes at random, and see whether it survives. The exit code is 0 when nothing hung, no "
    "finished round was lost and no ledger counted too little.",
    "./confide chaos --kills 50 --json chaos.json",
)
@click.option("--kills", type=int, default=50, metavar="K", help="How many.")
@click.option("--seed", type=int, default=1, metavar="S", help="Chooses the victims and the moments.")
@json_file_option()
@click.option("--hospitals", type=int, default=4, metavar="N", help="How many take part.")
@click.option(
    "--same-model",
    is_flag=True,
    help="Train without privacy and with everybody in every round, first undisturbed, then with the kills, and compare "
    "the two models byte for byte.",
)
@out_option(help="Keep the run's files in this new folder.")
@config_options()
def main(json_file: Path | None, out: Path | None, **options: Any) -> int:  # noqa: ANN401 - the fields of _Asked
    """Run the kills; returns 0 when nothing hung, nothing finished was lost and no ledger counted too little."""
    asked = _Asked(**options)
    config = _config(asked)
    raise_on_signals()
    with tempfile.TemporaryDirectory(prefix="confide-chaos-") as scratch:
        report, strikes, stopped = _run(config, out or Path(scratch), asked)
    print(
        ("" if stopped is None else f"ended by a signal after {report.kills} of {report.asked_for} kills: ")
        + f"{report.kills} kills, {report.resumed} resumed, {report.hung} hung, "
        f"{report.lost_rounds} rounds begun again, {report.undone_rounds} finished rounds lost, "
        f"median recovery {report.median_recovery_seconds or 0:.1f} s; "
        f"ledgers: {report.ledger_under_counts} under-counts, {report.ledger_over_counts} over-counts"
        + ("" if report.gave_up is None else f"; THE RUN GAVE UP: {report.gave_up}")
        + ("" if report.same_model is None else f"; same model: {'yes' if report.same_model else 'NO'}")
    )
    if json_file:
        facts = {
            **asdict(report),
            "seed": asked.seed,
            "hospitals": config.experiment.num_clients,
            "strikes": [_strike_facts(strike) for strike in strikes],
            "machine": machine(),
            "versions": versions(),
        }
        write_json_report(json_file, facts)
    if stopped is not None:
        return stopped.exit_code
    return 0 if report.holds() else 1


def _config(asked: _Asked) -> Config:
    if asked.kills < 1:
        raise ConfigError(f"--kills must be at least 1, got {asked.kills}")
    together = asked.same_model
    rounds = asked.kills * (_ROUNDS_PER_KILL_TOGETHER if together else _ROUNDS_PER_KILL)
    short = {
        "experiment.num_clients": asked.hospitals,
        "experiment.rounds": rounds,
        "data.source": "phantom",
        "data.phantom_records": _RECORDS,
        # A hospital that was killed is waited for this long at most, before the round continues or is begun again.
        "transport.exchange_deadline_seconds": 15.0,
        "transport.straggler_seconds": 2.0,
        "transport.start_deadline_seconds": 60.0,
    }
    config = load_config(asked.config_file, (*(f"{key}={value}" for key, value in short.items()), *asked.overrides))
    if together:
        config = replaced(
            config,
            privacy={"mode": "none"},
            aggregation={"min_hospitals": asked.hospitals},
            hospital={"allow_no_privacy": True},
        )
    return config


def _run(config: Config, folder: Path, asked: _Asked) -> tuple[ChaosReport, list["Strike"], Stopping | None]:
    """Carry out the kills; returns also what ended them before the last, if anything did."""
    plan = plan_kills(asked.kills, config.experiment.num_clients, asked.seed)
    chaos = Chaos(config, folder / "killed")
    same_model = None
    try:
        undisturbed = _undisturbed_model(config, folder / "undisturbed") if asked.same_model else None
        chaos.carry_out(plan, to_the_end=asked.same_model)
        if undisturbed is not None:
            same_model = chaos.model().tobytes() == undisturbed.tobytes()
        stopped = None
    except Stopping as stopping:
        stopped = stopping
    report = replace(chaos.report(len(plan)), same_model=same_model, ended_early=stopped is not None)
    return report, chaos.strikes, stopped


def _undisturbed_model(config: Config, folder: Path) -> np.ndarray[Any, np.dtype[np.float32]]:
    run = Chaos(config, folder)
    run.carry_out((), to_the_end=True)
    return run.model()


@dataclass
class Strike:
    """A kill that was carried out, and what followed.

    Attributes:
        kill: as planned.
        time: of the kill, seconds since the epoch.
        round_number: the round in hand.
        recovered_seconds: until a later round was finished; None before that.
        hung: given up on.
    """

    kill: Kill
    time: float
    round_number: int
    recovered_seconds: float | None = None
    hung: bool = False


class Chaos:
    """One deployment under fire; ``strikes`` are the kills so far.

    Args:
        config: of the run.
        folder: a new folder for everything the deployment writes.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True)
        self._config = config
        self._deployment = LoopbackDeployment(config, folder, new_run_id())
        self._events = EventFile(folder / EVENTS_FILE)
        self._progress = Progress()
        self.strikes: list[Strike] = []

    def carry_out(self, kills: Sequence[Kill], *, to_the_end: bool) -> None:
        """Start the deployment, kill, and stop it.

        Args:
            kills: in their order, each when the run has recovered from the one before unless it says otherwise.
            to_the_end: wait until every round is trained, also when nobody is left to kill.

        Raises:
            RunError: the deployment does not start, or a process refuses to work.
        """
        try:
            self._start()
            for kill in kills:
                if not kill.while_recovering:
                    self._await_recovery()
                if self._progress.finished:
                    break
                self.strikes.append(self._strike(kill))
                self._say()
            self._await_recovery()
            if to_the_end:
                self._wait(lambda: self._progress.finished, HUNG_SECONDS + _START_SECONDS)
        finally:
            self._deployment.supervisor.stop()
            self._look()

    def model(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return the run's last model, (d,) float32."""
        checkpoint = CheckpointStore(self._deployment.folder / CHECKPOINTS_FOLDER).latest(self._deployment.run_id)
        if checkpoint is None or checkpoint.step < self._config.experiment.rounds:
            raise RunError("the run must end with every round trained; read its logs with --out")
        return checkpoint.model[:]

    def report(self, asked_for: int) -> ChaosReport:
        """Sum up what the kills did, from the run's events, the audit chains and the hospitals' ledgers.

        Args:
            asked_for: kills.

        Raises:
            AuditError: the audit chains do not verify, or contradict each other.
        """
        recovered = [strike.recovered_seconds for strike in self.strikes if strike.recovered_seconds is not None]
        under, over = self._ledger_miscounts(*self._chains()) if self.strikes else (0, 0)
        return ChaosReport(
            asked_for=asked_for,
            kills=len(self.strikes),
            resumed=len(recovered),
            hung=sum(strike.hung for strike in self.strikes),
            lost_rounds=len(self._progress.lost_rounds()),
            undone_rounds=self._progress.undone_rounds,
            finished_rounds=len(self._progress.finished_rounds),
            median_recovery_seconds=round(statistics.median(recovered), 2) if recovered else None,
            longest_recovery_seconds=round(max(recovered), 2) if recovered else None,
            ledger_under_counts=under,
            ledger_over_counts=over,
            gave_up=self._progress.gave_up,
        )

    def _start(self) -> None:
        config, deployment = self._config, self._deployment
        data = obtain(config.data, config.experiment.task, config.model.image_size)
        deployment.set_up(data)
        deployment.start_server()
        folders = [member.data for member in deployment.members]
        deal(data, folders, config.data, config.experiment.seed, config.training.batch_size)
        deployment.await_server()
        deployment.start_hospitals()
        if not self._wait(lambda: bool(self._progress.finished_rounds), _START_SECONDS):
            raise RunError(f"the run must start within {_START_SECONDS:g} s; {deployment.last_words(SERVER)}")

    def _strike(self, kill: Kill) -> Strike:
        """Wait for the kill's moment, then kill."""
        before = self._progress.times_reached(kill.point)
        self._wait(lambda: self._progress.times_reached(kill.point) > before or self._progress.finished, HUNG_SECONDS)
        time.sleep(kill.fraction * self._progress.usual_seconds(kill.point))
        pid = None

        def find() -> bool:
            nonlocal pid
            pid = self._victim(kill)
            return pid is not None

        self._wait(find, HUNG_SECONDS)
        self._look()
        strike = Strike(kill, time.time(), self._progress.round_in_hand())
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
        return strike

    def _victim(self, kill: Kill) -> int | None:
        """Return the number of the process to kill, None while it is not running."""
        owner = SERVER if kill.hospital is None else self._deployment.members[kill.hospital].name
        supervisor = self._deployment.supervisor.pid(owner)
        if supervisor is None or kill.role in (Role.SERVER, Role.HOSPITAL):
            return supervisor
        if kill.role is Role.SERVERAPP:
            executor = _child(supervisor, _PROCESSES[Role.SUPEREXEC])
            return None if executor is None else next(iter(children_of(executor)), None)
        return _child(supervisor, _PROCESSES[kill.role])

    def _await_recovery(self) -> None:
        """Wait until the run has continued after each kill so far, and note how long it took."""
        for strike in self.strikes:
            if strike.recovered_seconds is None and not strike.hung:
                hospital = None if strike.kill.hospital is None else self._deployment.members[strike.kill.hospital].name
                self._wait(partial(self._recovered, strike, hospital), HUNG_SECONDS)
                strike.hung = strike.recovered_seconds is None

    def _recovered(self, strike: Strike, hospital: str | None) -> bool:
        """Note when the run had continued after a kill; return whether that, or the end of the run, has come."""
        ended = self._progress.first_finished_after(strike.round_number, hospital)
        if ended is None and self._progress.finished and self._progress.gave_up is None:
            ended = time.time()  # Nothing was left to continue.
        if ended is not None:
            strike.recovered_seconds = max(0.0, ended - strike.time)
        return ended is not None or self._progress.finished

    def _wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Keep everything going until ``condition`` or for ``seconds``; says whether it came true."""
        give_up = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > give_up:
                return False
            self._look()
            if not self._progress.finished:
                self._deployment.supervisor.revive()
            time.sleep(_POLL_SECONDS)
        return True

    def _look(self) -> None:
        for event in self._events.read_new():
            self._progress.add(event)

    def _ledger_miscounts(self, chains: Sequence[Chain], server: Chain) -> tuple[int, int]:
        """Compare each hospital's ledger with the rounds that it, or the server, recorded a vector of its for."""
        under = over = 0
        if not mechanism_of(self._config).is_private:
            return under, over
        summed = [entry.body for entry in server.entries if isinstance(entry.body, Summed) and entry.body.train]
        for member, chain in zip(self._deployment.members, chains, strict=True):
            made = {
                entry.body.round_number
                for entry in chain.entries
                if isinstance(entry.body, Contributed) and entry.body.train
            }
            made |= {body.round_number for body in summed if member.name in body.survivors}
            booked = _booked_rounds(member.state / LEDGER_FOLDER, self._deployment.run_id)
            under += len(made - booked)
            over += len(booked - made)
        return under, over

    def _chains(self) -> tuple[list[Chain], Chain]:
        """Return the verified audit chains of the hospitals, in order, and of the server, which agree with each other.

        Raises:
            AuditError: one does not verify, or they contradict each other.
        """
        folder, authority_file = self._deployment.folder, self._deployment.consortium.server_state / "ca.pem"
        files = [member.state / AUDIT_FILE for member in self._deployment.members]
        verify(folder, files, authority_file)
        authority = load_certificate(authority_file)
        hospitals, server = (
            [read_chain(path.read_bytes(), path.parent.name, authority) for path in paths]
            for paths in (files, [folder / AUDIT_FILE])
        )
        return hospitals, server[0]

    def _say(self) -> None:
        kill = self.strikes[-1].kill
        whose = "" if kill.hospital is None else f" of {self._deployment.members[kill.hospital].name}"
        print(f"{len(self.strikes)}: {kill.role}{whose}, {kill.point}", file=sys.stderr, flush=True)


def _child(parent: int, named: str) -> int | None:
    return next((pid for pid, command in children_of(parent).items() if named in command), None)


def _booked_rounds(folder: Path, run_id: str) -> set[int]:
    try:
        entries = export(folder)["entries"]
    except LedgerError as error:
        raise RunError(f"a hospital's ledger must verify after the kills: {error}") from None
    return {int(entry["round_number"]) for entry in entries if entry.get("run_id") == run_id}


def _strike_facts(strike: Strike) -> dict[str, Any]:
    return {
        "role": strike.kill.role,
        "hospital": strike.kill.hospital,
        "point": strike.kill.point,
        "round": strike.round_number,
        "recovered_seconds": None if strike.recovered_seconds is None else round(strike.recovered_seconds, 2),
    }
