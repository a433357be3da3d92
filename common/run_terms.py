"""What follows from a run description, derived by the server and by every hospital alike."""

from collections.abc import Mapping

from common.config import (
    AggregationConfig,
    Config,
    EvaluationConfig,
    ModelConfig,
    PrivacyMode,
    RunDescription,
)
from common.errors import ConfigError
from common.privacy.accounting import Accountant, Epsilon, against_everyone
from common.privacy.distributed import DistributedMechanism
from common.secagg.parameters import Adversary, RunParameters
from common.vector import VectorLayout

DISTRIBUTED_BITS = 32
"""The ring of mode ``distributed``: in 16 bits a sum of gradients leaves no digits for one unit's."""


def aggregation_of(config: Config) -> AggregationConfig:
    """Return the section ``aggregation`` as a run describes it: in mode ``distributed`` its ring is the wide one."""
    if config.privacy.mode is not PrivacyMode.DISTRIBUTED:
        return config.aggregation
    return config.aggregation.model_copy(update={"modulus_bits": DISTRIBUTED_BITS})


def layout_for(
    model: ModelConfig,
    aggregation: AggregationConfig,
    evaluation: EvaluationConfig,
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
        from common.models import registry  # Imported here, for a server does without.

        parameters = registry.parameter_count(model.name, classes, channels, model.image_size)
    return VectorLayout.for_run(
        aggregation,
        evaluation,
        parameters=parameters,
        classes=classes,
        hospitals=hospitals,
    )


def layout_of(run: RunDescription) -> VectorLayout:
    """Return the layout of a run's vectors, of whose model the description's own length tells the parameters.

    Raises:
        ConfigError: the length has no room for a model, or the ring is too small for so many hospitals.
    """

    def laid_out(parameters: int) -> VectorLayout:
        return VectorLayout.for_run(
            run.aggregation,
            run.evaluation,
            parameters=parameters,
            classes=len(run.classes),
            hospitals=len(run.roster),
        )

    return laid_out(run.vector_length - laid_out(1).length + 1)


def verified_layout_of(run: RunDescription) -> VectorLayout:
    """As :func:`layout_of` for a hospital, which counts the parameters of the model that the description names.

    Raises:
        ConfigError: the description names another length, or contradicts itself.
    """
    layout = layout_for(
        run.model,
        run.aggregation,
        run.evaluation,
        classes=len(run.classes),
        channels=run.channels,
        hospitals=len(run.roster),
    )
    if layout.length != run.vector_length:
        raise ConfigError(
            f"the run's vector must have {layout.length} elements, its description says {run.vector_length}"
        )
    return layout


def mechanism_of(run: RunDescription) -> DistributedMechanism | None:
    """Return how the hospitals of a run in mode ``distributed`` clip and add noise, None in the other modes.

    The ring is laid out for hospitals with the largest weight that the run allows, that is, with the largest batch.

    Raises:
        PrivacyError: the ring is too small, or a value is out of range.
    """
    if run.noise_multiplier is None:
        return None
    return DistributedMechanism.fit(
        noise_multiplier=run.noise_multiplier,
        max_grad_norm=run.privacy.max_grad_norm,
        dimension=layout_of(run).parameters,
        hospitals=len(run.roster),
        expected_units=float(len(run.roster) * run.aggregation.max_weight),
        colluders=run.privacy.colluders,
        tolerated_dropouts=run.privacy.tolerated_dropouts,
        modulus_bits=run.aggregation.modulus_bits,
    )


def claims_of(run: RunDescription) -> tuple[Epsilon, ...]:
    """Return what each adversary learns at most from a run of all its rounds; none where it is without privacy.

    A server that colludes with hospitals is among them where the run declares such.
    In mode ``local`` each hospital's noise is sized for its own data, and the claim is the target that all keep.
    """
    privacy = run.privacy
    if privacy.mode is PrivacyMode.NONE:
        return ()
    accountant, mechanism = Accountant(privacy.accountant), mechanism_of(run)
    if mechanism is None:
        claims = against_everyone(privacy.target_epsilon, privacy.delta, privacy.unit, accountant, privacy.colluders)
    else:
        rate, rounds = run.training.sample_rate, run.experiment.rounds
        claims = mechanism.epsilons(rate, rounds, len(run.roster), privacy.delta, privacy.unit, accountant)
    return claims if privacy.colluders else claims[:2]


def protocol_parameters(run: RunDescription, roster_keys: Mapping[str, bytes], min_hospitals: int) -> RunParameters:
    """Return the run as the protocol of ``common.secagg`` sees it.

    Args:
        run: the agreed description.
        roster_keys: hospital to raw Ed25519 public key, already verified against the authority.
        min_hospitals: the run's, or a hospital's own where that is larger.
    """
    return RunParameters(
        run_id=run.run_id,
        config_hash=run.hash(),
        roster=roster_keys,
        min_hospitals=min_hospitals,
        modulus_bits=run.aggregation.modulus_bits,
        vector_length=run.vector_length,
        adversary=Adversary(run.aggregation.adversary.value),
        graph=run.graph.parameters(),
    )
