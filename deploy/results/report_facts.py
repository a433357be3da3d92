"""What a report says about a run, gathered from its events, summary and model card."""

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config import AdversaryModel, AggregationMode, Config
from common.errors import RunError
from common.evaluation import METRICS
from common.evaluation.metrics import SUMMARISED
from common.privacy.mechanism import mechanism_of
from common.run.guarantee import Guarantee, shown_epsilon
from common.run.terms import evaluation_claim, evaluation_plan_for
from common.run.words import EXACT_COUNTS, admitted, evaluation_cost
from common.secagg.parameters import Adversary, RunParameters
from common.task import implied
from common.telemetry.events import Evaluated, RoundDone, RunStarted, printable
from deploy.results.by_class import ByClass, by_class, shown_metrics
from deploy.results.calibration import Calibration, OperatingPoint
from deploy.results.history import RunHistory
from deploy.results.intervals import Interval, of_round, of_test, over_runs
from deploy.results.model_file import CARD_FILE, ModelCard, load_model
from deploy.results.outputs import SUMMARY_FILE, epsilon_by_hospital, time_spent
from deploy.results.reader_questions import ReaderAnswer, answers, epsilon_in_words
from deploy.results.run_folder import DATA_NOTES_FILE
from deploy.results.statistics import explained, shown

COMPARED = (*(name for name in SUMMARISED if name != "kappa"), "epsilon")


_TWO_CLASSES = 2


@dataclass(frozen=True)
class Knowledge:
    """What one adversary learns from a run, and what it cannot."""

    adversary: str
    learns: str
    cannot: str


@dataclass(frozen=True)
class RunFacts:
    """One run, ready to be reported."""

    folder: Path
    history: RunHistory
    summary: dict[str, Any]
    """``summary.json``; empty where the run left none."""
    card: ModelCard | None
    prevalence: float | None = None
    """The prevalence of the disease where the reader would use the model; None takes that of the test parts."""

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
    def not_told(self) -> str:
        """What the model has had beyond the figures; empty where that is nothing."""
        ended = self.history.finished
        if ended is None or ended.rounds_done <= self.last.step:
            return ""
        spent = None if self.card is None else self.card.privacy.get("epsilon")
        cost = f", with which its ε is {shown_epsilon(spent)} at most" if isinstance(spent, float) else ""
        return (
            f"the model has had a step after these figures{cost}: a run that is stopped measures its last step when it "
            "goes on"
        )

    @property
    def guarantee(self) -> Guarantee:
        """What the run's ε means."""
        return Guarantee.of(self.config)

    @property
    def caveats(self) -> tuple[str, ...]:
        """What must be admitted."""
        return admitted(self.started)

    @property
    def what_a_seed_repeats(self) -> str:
        """How far another run with the same seed is the same."""
        return mechanism_of(self.config).what_a_seed_repeats()

    @property
    def state(self) -> str:
        """How the run ended."""
        return self.history.finished.reason if self.history.finished else "not finished"

    @property
    def tested(self) -> Evaluated | None:
        """The last model's figures on the test parts; None where there are none."""
        return self.history.tested

    @property
    def is_exact(self) -> bool:
        """Whether evaluation counts carry no noise."""
        return self.config.evaluation.exact

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, numbers where no model card names them."""
        if not self.started.terms.is_preset:
            return self.started.terms.classes
        if self.card:
            return self.card.classes
        return tuple(str(label) for label in range(len(self.tested.confusion) if self.tested else 0))

    @property
    def test_units(self) -> str:
        """How many records or patients the test parts count, in words."""
        return f"{self.tested.records if self.tested else 0} {self.config.privacy.unit.value}s"

    @property
    def data_notes(self) -> tuple[str, ...]:
        """What was left out of the data, or divided anew, before it was dealt; empty where nobody told."""
        return _read_notes(self.folder)

    @property
    def not_measured(self) -> str:
        """Why there are no figures of the test parts; empty where there are."""
        return f"not measured: {self.history.why_not_tested}" if self.tested is None else ""

    @property
    def metrics(self) -> dict[str, Interval]:
        """Each metric of the last model on the test parts with its interval, where it has one."""
        if self.tested is None:
            return dict.fromkeys(METRICS, Interval(math.nan))
        shown = shown_metrics(self.started.terms)
        return {name: sure for name, sure in of_test(self.tested).items() if name in shown}

    @property
    def by_class(self) -> ByClass | None:
        """The last model's figures of each class of several, or of each label; None where there are none."""
        return by_class(self.history)

    @property
    def calibration(self) -> Calibration | None:
        """What the last model's probabilities are worth; None where the run has not told it."""
        return Calibration.of(self.history, self.card.temperature if self.card else 1.0)

    @property
    def prevalence_used(self) -> float:
        """The prevalence that predictive values are given for."""
        told = self.calibration
        return self.prevalence if self.prevalence is not None else told.spread.prevalence() if told else math.nan

    @property
    def operating_points(self) -> tuple[OperatingPoint, ...]:
        """Thresholds that another use may choose."""
        return self.calibration.points(self.prevalence) if self.calibration else ()

    @property
    def answers(self) -> tuple[ReaderAnswer, ...]:
        """What a reader asks first."""
        return answers(self.history, self.calibration)

    @property
    def epsilon_in_words(self) -> str:
        """What ε allows somebody to learn."""
        return epsilon_in_words(self.history)

    @property
    def noise(self) -> dict[str, str]:
        """How far privacy noise alone may move a metric, at 95 %, where it has any."""
        return {name: f"±{sure.noise:.3f}" for name, sure in self.metrics.items() if not math.isnan(sure.noise)}

    @property
    def curve(self) -> list[tuple[RoundDone, dict[str, Interval]]]:
        """The rounds whose model was measured, with their metrics."""
        return [(done, of_round(done)) for done in self.history.measured]

    @property
    def evaluation_claims(self) -> tuple[str, ...]:
        """What measuring has cost: on validation records, and on test records."""
        if self.is_exact:
            claim = evaluation_claim(self.config, self.history.test_epsilon) if self.tested else EXACT_COUNTS
            return (claim,)
        curve = self.history.measured
        told = [evaluation_cost(self.started, curve[-1]).removeprefix("evaluation: ")] if curve else []
        of_test = [f"test parts: {evaluation_claim(self.config, self.history.test_epsilon)}"] if self.tested else []
        return (*told, *of_test)

    @property
    def evaluation_plan(self) -> tuple[str, ...]:
        """How the ε of evaluation is shared, by the run's terms; empty where counts are exact."""
        config, terms = self.config, self.started.terms
        if terms.is_preset:  # As an earlier version wrote it, whose classes only the model's file names.
            if len(self.classes) < _TWO_CLASSES:
                return ()
            terms = implied(self.started.task, self.classes)
        plan = evaluation_plan_for(config.experiment, config.evaluation, config.privacy, terms)
        return () if plan is None else plan.describe()

    @property
    def trained_on(self) -> dict[str, dict[str, str]]:
        """Who was trained on, by table and bin, in words; empty where nobody asked."""
        counted = self.history.counted
        if counted is None:
            return {}
        return {
            name: {each: shown(count, counted) for each, count in bins.items()} for name, bins in counted.tables.items()
        }

    @property
    def trained_on_explained(self) -> str:
        """What these counts are and cost, or why there are none."""
        if self.history.counted is not None:
            return explained(self.history.counted, self.config)
        if self.config.evaluation.statistics_epsilon:
            return "Not known: no round that asked for statistics gave a sum."
        return "Not known: the run asked for no statistics of its training records (evaluation.statistics_epsilon)."

    @property
    def hospitals(self) -> dict[str, dict[str, str | float | None]]:
        """What each hospital has spent."""
        return epsilon_by_hospital(self.history)

    @property
    def seconds(self) -> dict[str, Any]:
        """Return where the time went."""
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
        """Return the versions of Confide and its libraries that made the run; empty where it did not record them."""
        return {str(name): str(version) for name, version in (self.summary.get("versions") or {}).items()}

    @property
    def machine(self) -> str:
        """Return the machine that the run was made on."""
        return str(self.summary.get("machine", "not recorded"))

    @property
    def adversaries(self) -> tuple[Knowledge, ...]:
        """The privacy statement for each adversary."""
        return what_each_learns(self.config, len(self.started.hospitals), self.started.authority_on_server)

    @property
    def command(self) -> str:
        """A command that runs the same again."""
        changed = [f"--set {shlex.quote(f'{key}={value}')}" for key, value in changed_keys(self.config).items()]
        return printable(" ".join(["./confide demo", *changed]))  # One line, whatever a data source is called.


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
        (kind, len(alike), {name: over_runs([_figure(run, name) for run in alike]) for name in COMPARED})
        for kind, alike in kinds.items()
    ]


def _figure(run: RunFacts, name: str) -> float:
    return run.history.training_epsilon if name == "epsilon" else run.metrics[name].value


def what_each_learns(config: Config, hospitals: int, authority_on_server: bool = False) -> tuple[Knowledge, ...]:
    """Return the privacy statement for each adversary of the threat model, for this configuration."""
    return (
        Knowledge("the network", "who sends how much to whom, and when", "read or change a message (TLS 1.3)"),
        _curious_server(config, hospitals),
        _active_server(config, hospitals, authority_on_server),
        _colluding_server(config, hospitals),
        Knowledge(
            "another hospital of the run",
            f"the model of every round, and sums of all less its own part if it works with the server"
            f"{_in_disputes(config)}",
            _limit(config),
        ),
        Knowledge(
            "whoever holds the model",
            "what the model itself reveals of its training data",
            _limit(config),
        ),
    )


def _curious_server(config: Config, hospitals: int) -> Knowledge:
    if config.aggregation.mode is AggregationMode.PLAIN:
        learns = "every hospital's own update, record count and evaluation counts: nothing was masked"
        return Knowledge("a curious server", learns, _limit(config))
    fewest = _threshold(config, hospitals)
    counts = "exact evaluation counts" if config.evaluation.exact else "evaluation counts under noise"
    learns = (
        f"sums over at least {fewest} of {hospitals} hospitals: of updates, and of {counts}; and how many units each "
        f"hospital states to have{_in_disputes(config)}"
    )
    return Knowledge("a curious server", learns, f"see one hospital's update or metrics; {_between_sums(config)}")


def _in_disputes(config: Config) -> str:
    """Say what is seen besides where who spoils a sum is found out."""
    if not config.aggregation.disputes:
        return ""
    return "; of a round that a hospital has spoilt, each hospital's change under its own noise"


def _between_sums(config: Config) -> str:
    """Say what holds against somebody who compares sums of several rounds, where masks do not help."""
    covered = [
        *(["training records"] if mechanism_of(config).is_private else []),
        *([] if config.evaluation.exact else ["validation and test records"]),
    ]
    if not covered:
        return "what differs between two rounds' sums, nothing covers"
    return f"from the difference of two rounds' sums, learn more of {' and of '.join(covered)} than their ε allow"


def _active_server(config: Config, hospitals: int, authority_on_server: bool) -> Knowledge:
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
    if authority_on_server:
        learns += "; it holds the authority's key, so hospitals that it invents count among them"
    return Knowledge(
        who, learns, "get two sums of one round that differ in one hospital; run code at a hospital; exceed its ε"
    )


def _colluding_server(config: Config, hospitals: int) -> Knowledge:
    if config.aggregation.mode is AggregationMode.PLAIN:
        return Knowledge(
            "the server with hospitals on its side", "nothing more than it sees anyway", "exceed a hospital's ε"
        )
    most = hospitals - _threshold(config, hospitals)
    learns = "sums over the honest hospitals alone"
    cannot = f"with up to {most} of {hospitals}: single out one of two or more honest hospitals"
    cannot += mechanism_of(config).limit_of_colluders()
    return Knowledge("the server with hospitals on its side", learns, cannot)


def _limit(config: Config) -> str:
    """Say what stays out of reach of somebody who sees the model."""
    return mechanism_of(config).limit()


def _threshold(config: Config, hospitals: int) -> int:
    aggregation = config.aggregation
    active = aggregation.adversary is AdversaryModel.ACTIVE
    adversary = Adversary.ACTIVE if active else Adversary.SEMI_HONEST
    roster = {f"hospital-{number}": bytes(32) for number in range(hospitals)}
    parameters = RunParameters(
        "0" * 32, bytes(32), roster, aggregation.min_hospitals, aggregation.modulus_bits, 1, adversary=adversary
    )
    return parameters.threshold(hospitals)


def _kind(run: RunFacts) -> str:
    changed = {key: value for key, value in changed_keys(run.config).items() if key != "experiment.seed"}
    settings = ", ".join(f"{key}={value}" for key, value in changed.items()) or "the defaults"
    return f"{run.started.task} on {run.started.data_set}: {settings}"


def _read_notes(folder: Path) -> tuple[str, ...]:
    try:
        notes = json.loads((folder / DATA_NOTES_FILE).read_bytes())
    except FileNotFoundError:
        return ()
    except (OSError, RecursionError, ValueError) as error:
        raise RunError(f"{folder / DATA_NOTES_FILE} must be readable JSON: {error}") from None
    return tuple(map(str, notes)) if isinstance(notes, list) else ()


def _read_summary(folder: Path) -> dict[str, Any]:
    try:
        tree = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, RecursionError, ValueError) as error:
        raise RunError(f"{folder / SUMMARY_FILE} must be readable JSON: {error}") from None
    return tree if isinstance(tree, dict) else {}
