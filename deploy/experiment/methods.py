"""The ways to train that studies compare, each round by round.

Every method goes through :class:`client.contribution.Contributor`: the hospitals' agents and the server's run where
hospitals train together, the contributor alone where all records are in one place.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt

from client.contribution import Contributor
from client.data.hospital_data import HospitalData
from client.features import model_inputs
from client.ledger.ledger import Ledger
from client.training import TrainingData, evaluate
from common.config import Config, HospitalConfig, replace
from common.errors import RunError
from common.evaluation import EvaluationShape, Metrics, metrics
from common.models import registry
from common.privacy.mechanism import (
    DistributedNoise,
    LocalNoise,
    Mechanism,
    NoPrivacy,
    SummedMean,
    mean_of_use,
    mechanism_of,
)
from common.run.messages import EpsilonReport
from common.run.round_terms import Purpose
from common.run.strategies import strategy_for
from common.run.terms import describe
from common.settings import CHECKPOINTS_FOLDER
from common.telemetry.events import COMPLETED, Compared, Event, RoundDone, RunFinished
from deploy.datasets.datasets import DataSet
from deploy.demo.dealer import split
from deploy.experiment.consortium import InProcessConsortium, Site
from deploy.experiment.places import InMemory, alone_data, hospital_data, pooled_data
from server.checkpoints import CheckpointStore
from server.initial_model import initial_model
from server.rounds import Asked
from server.run import new_run_id
from server.run_record import measures

_PLACE = "one-place"

_ROOM_FOR_ALL = 1 << 20
"""The most records that one place may have."""

_FEWEST_STATED = 20
"""The least that a policy states."""

_SLACK = 1.01
"""A trial's budget over its ε: a study asks what ε gives, not whether a hospital may spend it."""


class Method(StrEnum):
    """Who trains with whom, and under which privacy."""

    CENTRAL = "central"
    CENTRAL_DP = "central DP"
    ALONE = "alone"
    FEDAVG = "FedAvg"
    LOCAL_DP = "FedAvg, local DP"
    DISTRIBUTED_DP = "distributed DP"

    @property
    def is_private(self) -> bool:
        """Whether an ε bounds what the model reveals of a record."""
        return MECHANISM_OF[self].is_private

    @property
    def is_pooled(self) -> bool:
        """Whether all records are in one place, so that it does not matter how hospitals share them."""
        return self in (Method.CENTRAL, Method.CENTRAL_DP)


MECHANISM_OF: dict[Method, type[Mechanism]] = {
    Method.CENTRAL: NoPrivacy,
    Method.CENTRAL_DP: LocalNoise,
    Method.ALONE: NoPrivacy,
    Method.FEDAVG: NoPrivacy,
    Method.LOCAL_DP: LocalNoise,
    Method.DISTRIBUTED_DP: DistributedNoise,
}
"""Central DP is what a trusted centre would do: mode ``local`` in one place that has everybody's records."""


def train(
    method: Method, config: Config, data: DataSet, cache: Path, hospital: int = 0, *, noisy: bool = False
) -> tuple[RoundDone, ...]:
    """Train once.

    Args:
        method: how.
        config: all of it, also the seed, the split and the ε; the privacy mode is the method's.
        data: the whole data set.
        cache: for frozen features; every training of a study uses the same.
        hospital: from 1, which one trains alone.
        noisy: of hospitals that train together: measure as a deployed run does, by noisy counts alone. Only the last
            model is then measured exactly, at the threshold that those counts gave.

    Returns:
        Each round's model, measured on the whole official test part at the threshold of the validation records.

    Raises:
        RunError: the training ended before its last round.
        DataError: the data can't be split so.
    """
    config = replace(config, privacy={"mode": MECHANISM_OF[method].mode}, evaluation={"exact": not noisy})
    if noisy and (method.is_pooled or method is Method.ALONE):
        raise RunError(f"counts are noisy where hospitals train together, got {method}")
    if method.is_pooled:
        return tuple(_in_one_place(_pooled(config), pooled_data(data), data, cache))
    hands = split(data, config.experiment.num_clients, config.data, config.experiment.seed, config.training.batch_size)
    if method is Method.ALONE:
        return tuple(_in_one_place(config, alone_data(data, hands[hospital - 1]), data, cache))
    with tempfile.TemporaryDirectory(prefix="confide-") as scratch:
        folder, run_id = Path(scratch), new_run_id()
        held = [hospital_data(data, hand) for hand in hands]
        rounds = train_together(config, data, held, cache, folder, run_id)
        if not noisy:
            return rounds
        return (*rounds[:-1], as_released(rounds[-1], config, data, cache, folder, run_id))


def as_released(done: RoundDone, config: Config, data: DataSet, cache: Path, folder: Path, run_id: str) -> RoundDone:
    """Return a run's last round with exact figures of the whole test part, at the threshold that noisy counts gave.

    Args:
        done: the last round.
        config: of the run.
        data: the whole data set.
        cache: for frozen features.
        folder: that the run has left (:func:`train_together`).
        run_id: of the run.
    """
    last = CheckpointStore(folder / CHECKPOINTS_FOLDER).latest(run_id)
    assert last is not None  # noqa: S101 - the run has reached its end
    named, classes, held = config.model, len(data.classes), pooled_data(data)
    validation, test = (
        TrainingData.of(model_inputs(named.architecture, part.images, cache), part.labels, part.patients)
        for part in (held.validation, held.test)
    )
    model = registry.build(named.architecture, classes, data.channels, named.image_size, config.experiment.seed)
    counts = evaluate(
        model, np.array(last.model[:]), validation, test, EvaluationShape(classes, config.evaluation.score_bins)
    )
    return done.model_copy(update=measures(metrics(counts, last.progress.threshold)))


def train_together(
    config: Config,
    data: DataSet,
    held: Sequence[HospitalData],
    cache: Path,
    folder: Path,
    run_id: str | None = None,
    *,
    may_end_early: bool = False,
    compared: Callable[[Compared], None] = lambda _: None,
) -> tuple[RoundDone, ...]:
    """Train with all hospitals: their agents, the protocol, the server's run.

    Args:
        config: all of it, its privacy mode included.
        data: the whole data set, for its name, classes and channels.
        held: what each hospital holds.
        cache: for frozen features.
        folder: empty; each hospital's state is left in it, under ``hospital-1`` and so on, and the run's checkpoints.
        run_id: of the run; a new one unless given.
        may_end_early: return the rounds that there were where the training ended before its last.
        compared: called with how the model did against hospitals' own, where the run asks.

    Raises:
        RunError: the training ended before its last round.
    """
    events: list[Event] = []
    sites = {
        f"hospital-{number}": Site(
            data=folder,
            state=folder / f"hospital-{number}",
            cache=cache,
            policy=_policy(config, each),
            open_data=InMemory(each),
        )
        for number, each in enumerate(held, start=1)
    }
    consortium = InProcessConsortium(config, sites)
    consortium.server(run_id or new_run_id(), data, folder / CHECKPOINTS_FOLDER, events.append).train()
    (finished,) = (event for event in events if isinstance(event, RunFinished))
    if finished.reason != COMPLETED and not may_end_early:
        raise RunError(f"a training must reach its last round, this one ended after {finished.rounds_done}: "
                       f"{finished.reason}")  # fmt: skip
    for event in events:
        if isinstance(event, Compared):
            compared(event)
    return tuple(event for event in events if isinstance(event, RoundDone))


def _in_one_place(config: Config, held: HospitalData, data: DataSet, cache: Path) -> Iterator[RoundDone]:
    """Train on one place's records: a contributor without a server, without masks and without others."""
    config = replace(config, aggregation={"max_weight": _ROOM_FOR_ALL, "modulus_bits": 32})
    description = describe(config, new_run_id(), data.classes, data.channels, {_PLACE: ""})
    with tempfile.TemporaryDirectory(prefix="confide-") as scratch:
        ledger = Ledger.open(Path(scratch), held.fingerprint) if mechanism_of(config).is_private else None
        contributor = Contributor(description, held, ledger, _policy(config, held), os.urandom, cache)
        layout = contributor.layout
        strategy = strategy_for(config.aggregation, config.training, config.privacy, layout.parameters)
        weights = initial_model(description)
        spent: EpsilonReport | None = None
        if description.privacy.mean_share:
            weights = weights + _mean_of_features(contributor, weights)
        for number in range(1, config.experiment.rounds + 2):
            is_training = number <= config.experiment.rounds
            asked = Asked(Purpose.TRAIN if is_training else Purpose.EVALUATE)
            contribution = contributor.contribute(number, asked.terms(description, weights, 1), weights, cohort=1)
            decoded = layout.decode(contribution.vector, 1)
            if number > 1:
                yield _done(number - 1, metrics(layout.exact_counts(decoded.tail)), spent)
            if is_training:
                weights, spent = strategy.step(weights, decoded.mean_delta), contribution.epsilon


def _mean_of_features(contributor: Contributor, weights: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the mean of one place's features, in the centre's place, where its noise leaves it of use."""
    run, layout = contributor.run, contributor.layout
    mechanism = mechanism_of(run)
    told = contributor.contribute(0, Asked(Purpose.MEAN).terms(run, weights, 1), weights, cohort=1)
    decoded = layout.decode(told.vector, 1)
    change = mechanism.mean_decoder(run, layout.parameters)(decoded)(slice(None))
    deviation = mechanism.deviation_of_mean(run, layout.parameters, SummedMean(1, 1, decoded.tail.weight))
    return mean_of_use(change, deviation)


def _done(step: int, measured: Metrics, spent: EpsilonReport | None) -> RoundDone:
    epsilon = float("nan") if spent is None else spent.spent
    return RoundDone(
        time=time.time(), round=step, step=step, **measures(measured), epsilon=epsilon, hospitals=1, seconds=0.0,
        upload_bytes=0,
    )  # fmt: skip


def _pooled(config: Config) -> Config:
    """Let the one place do as many steps, each on as many records, as all hospitals together do."""
    training, experiment = config.training, config.experiment
    if not mechanism_of(config).is_private:
        return replace(config, training={"batch_size": training.batch_size * experiment.num_clients})
    rounds = max(1, round(experiment.rounds * training.sample_rate))  # of 1 / sample_rate steps
    return replace(config, experiment={"rounds": rounds})


def _policy(config: Config, held: HospitalData) -> HospitalConfig:
    """Return what a hospital of a study agrees to and states: its exact numbers, because these data are public."""
    return HospitalConfig(
        epsilon_budget=config.privacy.target_epsilon * _SLACK,
        delta=config.privacy.delta,
        stated_training_units=max(_FEWEST_STATED, len(held.train)),
        stated_validation_units=max(1, len(held.validation)),
        stated_test_units=max(1, len(held.test)),
        allow_no_privacy=True,
        allow_exact_evaluation=True,
        allow_disputes=config.aggregation.disputes,
    )
