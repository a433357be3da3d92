"""What a report says about a run, gathered from its events, summary and model card."""

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config import AdversaryModel, AggregationMode, Config, PrivacyMode
from common.errors import RunError
from common.events import RoundDone, RunStarted
from common.guarantee import Guarantee, caveats
from common.secagg.parameters import Adversary, RunParameters
from deploy.events import RunHistory
from deploy.results.intervals import Interval, over_runs, over_test_records
from deploy.results.model_file import CARD_FILE, ModelCard, load_model
from deploy.results.outputs import FINAL_METRICS, SUMMARY_FILE, epsilon_by_hospital, time_spent

COMPARED = ("auc", "accuracy", "f1", "recall", "specificity", "epsilon")


@dataclass(frozen=True)
class Knowledge:
    """What one adversary learns from a run, and what it cannot."""

    adversary: str
    learns: str
    cannot: str


@dataclass(frozen=True)
class RunFacts:
    """One run, ready to be told."""

    folder: Path
    history: RunHistory
    summary: dict[str, Any]
    """``summary.json``; empty where the run left none."""
    card: ModelCard | None

    @classmethod
    def read(cls, folder: Path) -> "RunFacts":
        """Gather what lies in a run's folder.

        Raises:
            RunError: there is no run, no round of it is finished, or one of its files is broken.
        """
        history = RunHistory.read(folder)
        if not history.rounds:
            raise RunError(f"{folder} must hold a finished round to report on; this run ended before its first")
        card = load_model(folder)[1] if (folder / CARD_FILE).exists() else None
        return cls(folder, history, _read_summary(folder), card)

    @property
    def started(self) -> RunStarted:
        """The run's description."""
        return self.history.started

    @property
    def config(self) -> Config:
        """The run's configuration."""
        return self.started.config

    @property
    def last(self) -> RoundDone:
        """The last finished round."""
        return self.history.rounds[-1]

    @property
    def guarantee(self) -> Guarantee:
        """What the run's ε means."""
        return Guarantee.of(self.config)

    @property
    def caveats(self) -> tuple[str, ...]:
        """What must be admitted."""
        return caveats(self.config, self.started.data_set)

    @property
    def state(self) -> str:
        """How the run ended."""
        return self.history.finished.reason if self.history.finished else "not finished"

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, numbers where no model card names them."""
        return self.card.classes if self.card else tuple(str(label) for label in range(len(self.last.confusion)))

    @property
    def test_records(self) -> int:
        """Records of the hospitals' pooled test parts."""
        return sum(map(sum, self.last.confusion))

    @property
    def metrics(self) -> dict[str, Interval]:
        """Each metric of the last model with its interval over the test records, where it has one."""
        sure = over_test_records(self.last)
        none = {name: Interval(getattr(self.last, name), math.nan, math.nan) for name in FINAL_METRICS}
        return {name: sure.get(name, none[name]) for name in FINAL_METRICS}

    @property
    def hospitals(self) -> dict[str, dict[str, str | float | None]]:
        """What each hospital has spent."""
        return epsilon_by_hospital(self.history)

    @property
    def seconds(self) -> dict[str, Any]:
        """Where the time went."""
        return time_spent(self.history)

    @property
    def uploaded(self) -> int:
        """Bytes all hospitals sent in the finished rounds."""
        return sum(done.upload_bytes for done in self.history.rounds)

    @property
    def parameters(self) -> int:
        """Numbers in the model; 0 where it was not kept."""
        return sum(math.prod(tensor.shape) for tensor in self.card.tensors) if self.card else 0

    @property
    def versions(self) -> dict[str, str]:
        """Of Confide and its libraries when the run was made; empty where the run did not note them."""
        return {str(name): str(version) for name, version in (self.summary.get("versions") or {}).items()}

    @property
    def machine(self) -> str:
        """Where the run was made."""
        return str(self.summary.get("machine", "not recorded"))

    @property
    def adversaries(self) -> tuple[Knowledge, ...]:
        """The privacy statement for each adversary."""
        return what_each_learns(self.config, len(self.started.hospitals))

    @property
    def command(self) -> str:
        """A command that runs the same again."""
        changed = [f"--set {shlex.quote(f'{key}={value}')}" for key, value in changed_keys(self.config).items()]
        return " ".join(["./confide demo", *changed])


def changed_keys(config: Config) -> dict[str, str]:
    """Return the keys whose values are not the defaults, as ``section.key`` to a YAML value."""
    default, actual = Config().model_dump(mode="json"), config.model_dump(mode="json")
    return {
        f"{section}.{key}": value if isinstance(value, str) else json.dumps(value)
        for section, values in actual.items()
        for key, value in values.items()
        if value != default[section][key]
    }


def compare(runs: Sequence[RunFacts]) -> list[tuple[str, int, dict[str, Interval]]]:
    """Gather runs that differ in their seed alone, and give each figure's mean with its interval over them.

    Returns:
        For each kind of run: what it was, how many there are, and the figures of :data:`COMPARED`.
    """
    kinds: dict[str, list[RunFacts]] = {}
    for run in runs:
        kinds.setdefault(_kind(run), []).append(run)
    return [
        (kind, len(alike), {name: over_runs([getattr(run.last, name) for run in alike]) for name in COMPARED})
        for kind, alike in kinds.items()
    ]


def what_each_learns(config: Config, hospitals: int) -> tuple[Knowledge, ...]:
    """Return the privacy statement for each adversary of the threat model, for this configuration."""
    return (
        Knowledge("the network", "who sends how much to whom, and when", "read or change a message (TLS 1.3)"),
        _curious_server(config, hospitals),
        _active_server(config, hospitals),
        _colluding_server(config, hospitals),
        Knowledge(
            "another hospital of the run",
            "the model of every round, and sums of all less its own part if it works with the server",
            _limit(config),
        ),
        Knowledge(
            "whoever holds the model",
            "what the model itself tells of its training data",
            _limit(config),
        ),
    )


def _curious_server(config: Config, hospitals: int) -> Knowledge:
    if config.aggregation.mode is AggregationMode.PLAIN:
        learns = "every hospital's own update, record count and evaluation counts: nothing was masked"
        return Knowledge("a curious server", learns, _limit(config))
    fewest = _threshold(config, hospitals)
    learns = f"sums over at least {fewest} of {hospitals} hospitals: of updates, of record counts, of evaluation counts"
    return Knowledge("a curious server", learns, "see one hospital's update, metrics or size")


def _active_server(config: Config, hospitals: int) -> Knowledge:
    who = "a server that swaps keys, invents hospitals, splits views or replays"
    if config.aggregation.mode is AggregationMode.PLAIN:
        return Knowledge(who, "as the curious one: every hospital's own update", "run code at a hospital; exceed its ε")
    if config.aggregation.adversary is AdversaryModel.SEMI_HONEST:
        learns = (
            "possibly a single hospital's update: masks of this setting hold only if the server keeps to the protocol"
        )
        return Knowledge(who, learns, "run code at a hospital; exceed its ε")
    fewest = _threshold(config, hospitals)
    learns = f"a sum over at least {fewest} hospitals, less those that work with it"
    return Knowledge(who, learns, "get two sums that differ in one hospital; run code at a hospital; exceed its ε")


def _colluding_server(config: Config, hospitals: int) -> Knowledge:
    if config.aggregation.mode is AggregationMode.PLAIN:
        return Knowledge(
            "the server with hospitals on its side", "nothing more than it sees anyway", "exceed a hospital's ε"
        )
    most = hospitals - _threshold(config, hospitals)
    learns = "sums over the honest hospitals alone"
    cannot = f"with up to {most} of {hospitals}: single out one of two or more honest hospitals"
    if config.privacy.mode is PrivacyMode.DISTRIBUTED:
        cannot += f"; with up to {config.privacy.colluders}: take away enough noise to exceed the stated ε"
    return Knowledge("the server with hospitals on its side", learns, cannot)


def _limit(config: Config) -> str:
    """Say what stays out of reach of somebody who sees the model."""
    privacy = config.privacy
    if privacy.mode is PrivacyMode.NONE:
        return (
            f"nothing is out of reach by proof: no differential privacy limits what is told of a {privacy.unit.value}"
        )
    return f"learn more about a {privacy.unit.value} than ε and δ={privacy.delta:g} allow"


def _threshold(config: Config, hospitals: int) -> int:
    aggregation = config.aggregation
    active = aggregation.adversary is AdversaryModel.ACTIVE
    adversary = Adversary.ACTIVE if active else Adversary.SEMI_HONEST
    roster = {f"hospital-{number}": bytes(32) for number in range(hospitals)}
    parameters = RunParameters(
        "0" * 32, bytes(32), roster, aggregation.min_hospitals, aggregation.modulus_bits, 1, adversary
    )
    return parameters.threshold(hospitals)


def _kind(run: RunFacts) -> str:
    changed = {key: value for key, value in changed_keys(run.config).items() if key != "experiment.seed"}
    settings = ", ".join(f"{key}={value}" for key, value in changed.items()) or "the defaults"
    return f"{run.started.task} on {run.started.data_set}: {settings}"


def _read_summary(folder: Path) -> dict[str, Any]:
    try:
        tree = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, RecursionError, ValueError) as error:
        raise RunError(f"{folder / SUMMARY_FILE} must be readable JSON: {error}") from None
    return tree if isinstance(tree, dict) else {}
