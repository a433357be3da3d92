"""A deployment on loopback for tests: the processes of production, and who was in each round's sum.

Points of a round are seen from outside: the server's events say that an exchange is over, and a hospital's own record
of answered rounds, written before it computes an answer, says that it is in the middle of one. Who is in a sum is read
from the sum itself: the test parts have sizes of which no two subsets give the same number of records.
"""

import itertools
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from common.config import Config, replace
from common.processes import ProcessCommand, python_module
from common.secagg.phases import Phase
from common.telemetry.events import EVENTS_FILE, Event, EventFile, Exchange, RoundDone, RunFinished
from deploy.datasets.datasets import obtain
from deploy.demo.consortium import Member
from deploy.demo.dealer import deal
from deploy.demo.loopback import LoopbackDeployment
from deploy.source_tree import ROOT
from server.run import new_run_id

CONFIG = replace(
    Config(),
    experiment={"rounds": 100_000, "seed": 7},
    data={"source": "phantom", "phantom_records": 600, "partition": "quantity", "dirichlet_alpha": 3.0},
    training={"batch_size": 32},
    privacy={"mode": "none"},
    # Exact counts say which test records, and so which hospitals, are in a sum.
    evaluation={"exact": True},
    hospital={"allow_no_privacy": True, "allow_exact_evaluation": True},
    # A stalled hospital must be given up long before Flower does, after some 66 s.
    transport={"exchange_deadline_seconds": 30.0, "straggler_seconds": 2.0, "straggler_factor": 3.0},
)
DISPUTED = replace(
    CONFIG,
    experiment={"rounds": 300},
    privacy={"mode": "local", "accountant": "rdp"},
    training={"sample_rate": 0.5},
    aggregation={"proved_sums": True, "norm_bound": 2.0, "disputes": True},
    hospital={"allow_disputes": True},
)
"""A run whose hospitals show each other their changes of a sum that somebody has spoilt."""

PATIENCE_SECONDS = 240.0
"""The test's own deadline, on a busy machine; a run that continues takes a few seconds."""

_LAST = {Phase.UNMASKING.value, Phase.FULL_UNMASKING.value}
"""Either is the last exchange of a round."""


@dataclass
class Deployed:
    """A running deployment, and what its server has reported so far."""

    deployment: LoopbackDeployment
    sizes: dict[str, int]
    """Hospital to the records of its test part."""
    log: EventFile
    events: list[Event] = field(default_factory=list)

    @property
    def members(self) -> dict[str, Member]:
        return {member.name: member for member in self.deployment.members}

    def wait(self, condition: Callable[[], object], what: str, pause: float = 0.01) -> None:
        give_up = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < give_up, f"{what} must happen within {PATIENCE_SECONDS:g} s; {self.last()}"
            time.sleep(pause)
            self.events += self.log.read_new()
            finished = [event for event in self.events if isinstance(event, RunFinished)]
            assert not finished, finished

    def last(self) -> str:
        return "\n".join(event.to_line().strip()[:300] for event in self.events[-12:])

    def exchanges(self, phase: Phase) -> dict[int, Exchange]:
        return {
            event.round: event for event in self.events if isinstance(event, Exchange) and event.phase == phase.value
        }

    def sums(self) -> dict[int, frozenset[str]]:
        """Return for each round whose metrics are out the hospitals in its sum, as the sum itself shows."""
        subsets = {
            sum(self.sizes[name] for name in chosen): frozenset(chosen)
            for number in range(1, len(self.sizes) + 1)
            for chosen in itertools.combinations(sorted(self.sizes), number)
        }
        found = {}
        for before, event in itertools.pairwise(
            event
            for event in self.events
            if isinstance(event, RoundDone) or (isinstance(event, Exchange) and event.phase in _LAST)
        ):
            # The counts of a round's sum measure the model of the step before, and are reported with it.
            if isinstance(event, RoundDone):
                assert isinstance(before, Exchange)
                found[before.round] = subsets[sum(map(sum, event.confusion))]
        return found

    def latest_sum(self) -> int:
        return max(self.sums(), default=0)

    def answering(self, hospital: str, phase: Phase) -> int:
        """Return the last round in which the hospital has begun to answer a phase, by its own record."""
        record = self.members[hospital].state / "answered-rounds.json"
        rows = json.loads(record.read_text())["answered"] if record.exists() else []
        # The two share a slot, which has the name of one of them.
        slot = Phase.CONSISTENCY_CHECK if phase is Phase.FULL_UNMASKING else phase
        return max((number for _, name, number in rows if name == slot.value), default=0)

    def reach(self, hospital: str, phase: Phase, moment: str) -> int:
        """Wait for a point of a round; returns the round."""
        if moment == "during":
            before = self.answering(hospital, phase)
            self.wait(lambda: self.answering(hospital, phase) > before, f"{hospital} must answer {phase}", 0.002)
            return self.answering(hospital, phase)
        last = max(self.exchanges(phase), default=0)
        self.wait(lambda: max(self.exchanges(phase), default=0) > last, f"{phase} must end", 0.002)
        return max(self.exchanges(phase))

    def everyone_takes_part(self) -> None:
        """Wait for a new round with all hospitals."""
        seen = self.latest_sum()
        self.wait(
            lambda: any(number > seen and hospitals == set(self.sizes) for number, hospitals in self.sums().items()),
            "every hospital must take part in a round",
        )

    def pid(self, hospital: str) -> int:
        pid = self.deployment.supervisor.pid(hospital)
        assert pid is not None
        return pid

    def kill(self, hospital: str) -> None:
        """Kill everything of a hospital at once: the kernel kills its agent and SuperNode with their supervisor."""
        os.kill(self.pid(hospital), signal.SIGKILL)

    def revive(self) -> None:
        """Start what has died, as Docker's restart policy does, and wait until it takes part again."""
        while self.deployment.supervisor.ended():
            self.deployment.supervisor.revive()
            time.sleep(0.1)
        self.everyone_takes_part()


@contextmanager
def deployed_in(
    folder: Path, config: Config = CONFIG, modules: Mapping[str, str] | None = None, server: str = "server"
) -> Iterator[Deployed]:
    """Start a server and its hospitals, and stop them in the end.

    Args:
        folder: a new one for everything they write.
        config: of the consortium.
        modules: hospital to the module that is run in the place of ``client``.
        server: the module that is run as the server.
    """
    data = obtain(config.data, config.experiment.task, config.model.image_size)
    deployment = LoopbackDeployment(config, folder, new_run_id())
    deployment.set_up(data)
    shards = [member.data for member in deployment.members]
    summaries = deal(data, shards, config.data, config.experiment.seed, config.training.batch_size)
    sizes = {
        member.name: sum(summary.records["test"]) for member, summary in zip(deployment.members, summaries, strict=True)
    }
    subsets = [sum(chosen) for number in range(5) for chosen in itertools.combinations(sizes.values(), number)]
    assert len(set(subsets)) == len(subsets), "no two subsets may have as many records"
    try:
        deployment.start_server(module=server)
        deployment.await_server()
        deployment.start_hospitals()
        for name, module in (modules or {}).items():
            start_anew(deployment, name, module)
        yield Deployed(deployment, sizes, EventFile(folder / EVENTS_FILE))
    finally:
        deployment.supervisor.stop()


def start_anew(
    deployment: LoopbackDeployment, hospital: str, module: str = "client", environment: Mapping[str, str] | None = None
) -> None:
    """Start a hospital anew, with another module than ``client`` or in another environment."""
    (state,) = (member.state for member in deployment.members if member.name == hospital)
    deployment.supervisor.stop([hospital])
    command = python_module(module, "--state", str(state))
    log = deployment.folder / "logs" / f"{hospital}.log"
    deployment.supervisor.start(ProcessCommand(hospital, command, log, environment or {"PYTHONPATH": str(ROOT)}))
