"""Four hospitals with a few phantom images each, in one process: the deployed code on data that trains in no time."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from client.ledger.ledger import LEDGER_FOLDER, export
from common.config import Config, HospitalConfig, replace
from common.run.messages import Request, phase_of
from common.telemetry.events import Event, RoundDone
from deploy.datasets.datasets import DataSet, obtain
from deploy.demo.dealer import deal
from deploy.experiment.consortium import InProcessConsortium, Loss, Site
from server.run import Run

HOSPITALS = ("hospital-1", "hospital-2", "hospital-3", "hospital-4")
RUN_ID = "c0" * 16

CONFIG = replace(
    Config(),
    experiment={"rounds": 2},
    data={"source": "phantom", "phantom_records": 260},
    training={"sample_rate": 0.5},
    privacy={"accountant": "rdp", "delta": 1e-3, "target_epsilon": 4.0},
    transport={"start_deadline_seconds": 1.0, "roster_stable_seconds": 0.0},
    evaluation={"score_bins": 16},
)


POLICY = HospitalConfig(delta=1e-3, stated_training_units=40, stated_validation_units=5, stated_test_units=9)
"""What each hospital agrees to and states; every shard of :class:`Dealt` holds as much."""


def willing(**changes: Any) -> HospitalConfig:  # noqa: ANN401 - fields of HospitalConfig
    """Return the policy of a hospital that agrees to more, or to less, than the others."""
    return HospitalConfig.model_validate({**POLICY.model_dump(), **changes})


def everybody(**changes: Any) -> dict[str, HospitalConfig]:  # noqa: ANN401 - fields of HospitalConfig
    """Return such a policy for each hospital."""
    return {name.replace("-", "_"): willing(**changes) for name in HOSPITALS}


@dataclass(frozen=True)
class Dealt:
    """Shards that tests share, since nobody writes to them; ledgers and answered rounds are each test's own."""

    data: DataSet
    folder: Path

    @classmethod
    def into(cls, folder: Path) -> "Dealt":
        """Deal the phantom to the hospitals."""
        data = obtain(CONFIG.data, CONFIG.experiment.task, CONFIG.model.image_size)
        deal(data, [folder / name / "shard" for name in HOSPITALS], CONFIG.data, CONFIG.experiment.seed, 1)
        return cls(data, folder)

    def sites(self, state: Path, **policies: HospitalConfig) -> dict[str, Site]:
        """Return each hospital's folders; ``hospital_2=…`` is the policy of hospital-2."""
        named = {name.replace("_", "-"): policy for name, policy in policies.items()}
        return {
            name: Site(
                data=self.folder / name / "shard",
                state=state / name,
                cache=self.folder / name / "cache",
                policy=named.get(name, POLICY),
            )
            for name in HOSPITALS
        }


@dataclass
class Small:
    """A consortium, and everything its server has reported."""

    dealt: Dealt
    folder: Path
    config: Config
    consortium: InProcessConsortium
    events: list[Event] = field(default_factory=list)

    def run(self) -> Run:
        """Return the server's run, from its last checkpoint on."""
        return self.consortium.server(RUN_ID, self.dealt.data, self.folder / "checkpoints", self.events.append)

    def of(self, kind: type[Any]) -> list[Any]:
        """Return the events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def hospitals(self) -> list[int]:
        """Return how many hospitals took part in each finished step."""
        return [done.hospitals for done in self.of(RoundDone)]

    def booked(self, hospital: str) -> list[dict[str, Any]]:
        """Return what the hospital's ledger says was spent on training, a round on each line."""
        return [entry for entry in self.spent(hospital) if entry["booking"]["account"] == "training"]

    def spent(self, hospital: str) -> list[dict[str, Any]]:
        """Return the lines of the hospital's ledger that say what was spent, on whatever account."""
        if not (self.folder / hospital / LEDGER_FOLDER).exists():
            return []
        entries = export(self.folder / hospital / LEDGER_FOLDER)["entries"]
        return [entry for entry in entries if entry["kind"] == "spent"]


def small(
    dealt: Dealt, folder: Path, *, policies: dict[str, HospitalConfig] | None = None, **changes: dict[str, Any]
) -> Small:
    """Return a consortium with state of its own; ``changes`` are keys of sections of the configuration."""
    config = replace(CONFIG, **changes)
    return Small(dealt, folder, config, InProcessConsortium(config, dealt.sites(folder, **(policies or {}))))


@dataclass
class Vanishing:
    """A line on which one hospital's messages are lost in one exchange of one round."""

    hospital: str
    round_number: int
    phase: str
    loss: Loss

    def __call__(self, hospital: str, request: Request) -> Loss | None:
        """See :data:`deploy.experiment.consortium.Line`."""
        here = (hospital, request.round_number, phase_of(request))
        return self.loss if here == (self.hospital, self.round_number, self.phase) else None
