"""What follows from a run description, derived by the server and by every hospital alike."""

from collections.abc import Callable, Mapping

from common.config import (
    PROTOCOL_VERSION,
    AggregationConfig,
    Config,
    EvaluationConfig,
    ExperimentConfig,
    ModelConfig,
    PrivacyConfig,
    RunDescription,
    Warp,
    task_of,
)
from common.errors import ConfigError
from common.evaluation import EvaluationShape
from common.evaluation.exact import TWO_CLASSES
from common.evaluation.plan import EvaluationPlan, Release
from common.models import registry
from common.privacy.accounting import Accountant, Epsilon, rounded_up
from common.privacy.distributed import DistributedMechanism
from common.privacy.mechanism import mechanism_of, survivors_for_noise
from common.proved_sums.parameters import MOST_ENTRIES_OF_A_SMALL_VECTOR
from common.run.vector import VectorLayout
from common.secagg.parameters import Adversary, RunParameters
from common.task import TaskConfig, TaskKind


def describe(
    config: Config,
    run_id: str,
    classes: tuple[str, ...],
    channels: int,
    roster: dict[str, str],
    parameters: int | None = None,
    member_list: str = "",
    protocol_version: int = PROTOCOL_VERSION,
) -> RunDescription:
    """Return the description of a run that a consortium's configuration asks for.

    Args:
        config: the consortium's.
        run_id: 32 hexadecimal digits.
        classes: of the task.
        channels: of an image.
        roster: hospital name to PEM identity certificate.
        parameters: of the model; by default it is made to count them, which takes PyTorch.
        member_list: of the consortium, as its authority signed it; hospitals refuse a run without one.
        protocol_version: of the run, see ``common/run/versions.py``.

    Raises:
        ConfigError: there is no such model, the ring is too small for so many hospitals, or sections contradict each
            other.
        PrivacyError: no noise reaches the target ε of mode ``distributed``.
    """
    config = _without_what_images_lack(config)
    mechanism = mechanism_of(config)
    agreed = config.model_copy(update={"aggregation": mechanism.aggregation(config.aggregation)})
    task = task_of(config, classes)
    kind = TaskKind(task.kind)
    plan = evaluation_plan_for(config.experiment, config.evaluation, config.privacy, task)
    layout = layout_for(
        agreed.model,
        agreed.aggregation,
        evaluation_shape(config.evaluation, plan, kind, len(classes)),
        classes=len(classes),
        channels=channels,
        hospitals=len(roster),
        parameters=parameters,
    )
    return RunDescription.of(
        agreed,
        run_id=run_id,
        classes=classes,
        channels=channels,
        vector_length=layout.length,
        roster=roster,
        member_list=member_list,
        noise_multiplier=mechanism.agreed_noise(config.training, config.experiment.rounds),
        protocol_version=protocol_version,
    )


def _without_what_images_lack(config: Config) -> Config:
    """Return a configuration whose model on images has neither copies nor a mean, which are of frozen features."""
    if registry.is_on_features(config.model.architecture):
        return config
    return config.model_copy(
        update={
            "training": config.training.model_copy(update={"copies": 1, "warp": Warp.NONE}),
            "privacy": config.privacy.model_copy(update={"mean_share": 0.0}),
        }
    )


def evaluation_plan_of(run: RunDescription) -> EvaluationPlan | None:
    """Return how the run's models are measured under noise; None where counts are exact."""
    return evaluation_plan_for(run.experiment, run.evaluation, run.privacy, run.task)


def evaluation_plan_for(
    experiment: ExperimentConfig, evaluation: EvaluationConfig, privacy: PrivacyConfig, task: TaskConfig
) -> EvaluationPlan | None:
    """Do as :func:`evaluation_plan_of` for a run that is still to be described."""
    if evaluation.exact:
        return None
    return EvaluationPlan.of(
        rounds=experiment.rounds,
        classes=len(task.classes),
        kind=TaskKind(task.kind),
        epsilon=evaluation.target_epsilon,
        delta=privacy.delta,
        accountant=Accountant(privacy.accountant),
        interim_releases=evaluation.interim_releases,
        repeats=evaluation.repeats,
        statistics_epsilon=evaluation.statistics_epsilon,
        against_alone=bool(privacy.alone_share),
        spread_share=evaluation.spread_share,
        labels_left_out=task.leaves_labels_out,
    )


def layout_for(
    model: ModelConfig,
    aggregation: AggregationConfig,
    evaluation: EvaluationShape | int,
    *,
    classes: int,
    channels: int,
    hospitals: int,
    parameters: int | None = None,
) -> VectorLayout:
    """Return the layout of the vectors of a run that is still to be described.

    ``parameters`` are the model's; by default it is made to count them, which takes PyTorch.

    Raises:
        ConfigError: there is no such model, or the ring is too small for so many hospitals.
    """
    if parameters is None:
        parameters = registry.parameter_count(model.architecture, classes, channels, model.image_size)
    return VectorLayout.for_run(aggregation, evaluation, parameters=parameters, hospitals=hospitals)


def evaluation_shape(
    evaluation: EvaluationConfig, plan: EvaluationPlan | None, kind: TaskKind, classes: int
) -> EvaluationShape | int:
    """Return what a vector holds of evaluation: exact counts, or the longest release of the plan."""
    if plan is not None:
        return plan.length
    if kind is TaskKind.MULTILABEL:
        return EvaluationShape(TWO_CLASSES, evaluation.score_bins, classes)
    return EvaluationShape(classes, evaluation.score_bins)


def layout_of(run: RunDescription) -> VectorLayout:
    """Return the layout of a run's vectors; the length in the description gives the model's parameters.

    Raises:
        ConfigError: the length has no room for a model, or the ring is too small for so many hospitals.
    """
    shape = evaluation_shape(run.evaluation, evaluation_plan_of(run), TaskKind(run.task.kind), len(run.classes))

    def laid_out(parameters: int) -> VectorLayout:
        return VectorLayout.for_run(run.aggregation, shape, parameters=parameters, hospitals=len(run.roster))

    if not run.aggregation.proved_sums:
        return laid_out(run.vector_length - laid_out(1).length + 1)
    return _proved_layout(run.vector_length, laid_out)


def _proved_layout(length: int, laid_out: Callable[[int], VectorLayout]) -> VectorLayout:
    """Return the layout of a vector of this length, whose ρ is of one length for small models and one for large."""
    for probe in (1, MOST_ENTRIES_OF_A_SMALL_VECTOR):
        parameters = length - (laid_out(probe).length - probe)
        if parameters >= 1:
            layout = laid_out(parameters)
            if layout.length == length:
                return layout
    raise ConfigError(f"vector_length must be that of a model whose sums are proved, got {length}")


def verified_layout_of(run: RunDescription) -> VectorLayout:
    """Do as :func:`layout_of` for a hospital, which counts the parameters of the model that the description names.

    Raises:
        ConfigError: the description names another length, or contradicts itself.
    """
    layout = layout_for(
        run.model,
        run.aggregation,
        evaluation_shape(run.evaluation, evaluation_plan_of(run), TaskKind(run.task.kind), len(run.classes)),
        classes=len(run.classes),
        channels=run.channels,
        hospitals=len(run.roster),
    )
    if layout.length != run.vector_length:
        raise ConfigError(
            f"the run's vector must have {layout.length} elements, its description says {run.vector_length}"
        )
    if (run.privacy.mean_share or run.training.copies > 1) and not registry.is_on_features(run.model.architecture):
        raise ConfigError(
            f"privacy.mean_share must be 0 and training.copies 1 for a model on images, the run names "
            f"{run.privacy.mean_share:g} and {run.training.copies} for {run.model.name}"
        )
    return layout


def release_mechanism(run: RunDescription, plan: EvaluationPlan, release: Release) -> DistributedMechanism:
    """Return how the hospitals of a run add noise to one release of its evaluation plan.

    The noise withstands ``privacy.colluders`` and ``privacy.tolerated_dropouts`` in every mode.

    Raises:
        PrivacyError: a value is out of range.
    """
    privacy = run.privacy
    return plan.mechanism(release, colluders=privacy.colluders, tolerated_dropouts=privacy.tolerated_dropouts)


def fewest_survivors(run: RunDescription, cohort: int, *, trains: bool, measures: bool) -> int:
    """Return how many vectors a round's sum must hold for its noise to be enough; 0 where it carries none.

    Args:
        run: the description.
        cohort: hospitals in the round.
        trains: the round reads training records; the run's mechanism says whether its noise lies in the sum alone.
        measures: a release of the evaluation plan is asked for.
    """
    training = mechanism_of(run).fewest_survivors(cohort) if trains else 0
    return max(training, survivors_for_noise(run.privacy, cohort) if measures else 0)


def claims_of(run: RunDescription) -> tuple[Epsilon, ...]:
    """Return what each adversary learns at most from a run of all its rounds; empty where it is without privacy.

    Another hospital of the run is among them, and a server that colludes with hospitals where the run declares such.
    """
    return mechanism_of(run).claims(run, layout_of(run).parameters)


def evaluation_claim(run: RunDescription | Config, spent: float) -> str:
    """Say what an ε of evaluation means; for exact counts, that they have no ε."""
    if run.evaluation.exact:
        return "exact counts: not differentially private; nobody sees one hospital's, but sums over hospitals are exact"
    privacy = run.privacy
    whom = f"the server with up to {privacy.colluders} colluding hospitals" if privacy.colluders else "the server"
    return (
        f"ε = {rounded_up(spent):.3f} at δ = {privacy.delta:g} for each {privacy.unit} of the part that was measured "
        f"(zero-out: against an empty one, their number being stated), against {whom}, with up to "
        f"{privacy.tolerated_dropouts} {'dropout' if privacy.tolerated_dropouts == 1 else 'dropouts'} a round"
    )


def statistics_claim(run: RunDescription | Config, spent: float) -> str:
    """Say what an ε of statistics means."""
    privacy = run.privacy
    whom = f"the server with up to {privacy.colluders} colluding hospitals" if privacy.colluders else "the server"
    return (
        f"ε = {rounded_up(spent):.3f} at δ = {privacy.delta:g} for each training {privacy.unit}, beside what training "
        f"costs it (zero-out: against an empty one), against {whom}, with up to {privacy.tolerated_dropouts} dropouts"
    )


def protocol_parameters(
    run: RunDescription, roster_keys: Mapping[str, bytes], min_hospitals: int, consortium: int | None = None
) -> RunParameters:
    """Return the run as the protocol of ``common.secagg`` sees it.

    Args:
        run: the agreed description.
        roster_keys: hospital to raw Ed25519 public key, already verified against the authority.
        min_hospitals: the run's, or a hospital's own where that is larger.
        consortium: how many members the authority's list names; None where the roster names them all.
    """
    return RunParameters(
        run_id=run.run_id,
        config_hash=run.hash(),
        roster=roster_keys,
        min_hospitals=min_hospitals,
        modulus_bits=run.aggregation.modulus_bits,
        vector_length=run.vector_length,
        counts_length=layout_of(run).counts_length,
        consortium=consortium,
        adversary=Adversary(run.aggregation.adversary.value),
        graph=run.graph.parameters(),
        proves_sums=run.aggregation.proved_sums,
        disputes=run.aggregation.disputes,
    )
