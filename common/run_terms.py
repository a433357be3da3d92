"""What follows from a run description, derived by the server and by every hospital alike."""

from collections.abc import Mapping

from common.config import AggregationConfig, EvaluationConfig, ModelConfig, PrivacyConfig, PrivacyMode, RunDescription
from common.errors import ConfigError
from common.models import registry
from common.secagg.parameters import Adversary, RunParameters
from common.vector import VectorLayout


def require_supported(privacy: PrivacyConfig) -> None:
    """Raise :class:`ConfigError` for a privacy mode that runs cannot use yet."""
    if privacy.mode is PrivacyMode.DISTRIBUTED:
        raise ConfigError("privacy.mode must be local or none, got distributed, which runs cannot use yet")


def layout_for(
    model: ModelConfig,
    aggregation: AggregationConfig,
    evaluation: EvaluationConfig,
    *,
    classes: int,
    channels: int,
    hospitals: int,
) -> VectorLayout:
    """Return the layout of the vectors of a run that is still to be described.

    Raises:
        ConfigError: there is no such model, or the ring is too small for so many hospitals.
    """
    return VectorLayout.for_run(
        aggregation,
        evaluation,
        parameters=registry.parameter_count(model.name, classes, channels, model.image_size),
        classes=classes,
        hospitals=hospitals,
    )


def layout_of(run: RunDescription) -> VectorLayout:
    """Return the layout of a run's vectors.

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
