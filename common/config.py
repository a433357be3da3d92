"""The configuration: ``config.yaml`` read into frozen, strict models, and the run description hospitals agree to."""

import errno
import hashlib
import reprlib
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic.fields import FieldInfo

from common.canonical import canonical_json
from common.errors import ConfigError
from common.models import naming
from common.secagg.parameters import GraphParameters
from common.task import MOST_CLASSES, Channels, TaskConfig, TaskKind, implied
from common.yaml_text import NO_YAML, read_yaml

_SHOWN = reprlib.Repr()
"""Shortens a value in an error: a few aliases in YAML can stand for gigabytes."""
_SHOWN.maxstring = _SHOWN.maxother = _SHOWN.maxlong = 200

SECURE_MINIMUM = 3
"""The smallest number of hospitals: of a sum of two, each could compute what the other sent, and no mask helps."""

PROTOCOL_VERSION = 3
"""The version of everything that travels between server and hospital."""

OLDEST_PROTOCOL_VERSION = 3
"""The oldest version that is spoken besides; ``common/run/versions.py`` says why, and what a run's version is."""


MOST_HOSPITALS = 1024


LONGEST_MEMBER_LIST_BYTES = 2**18
"""1,024 members with names of 63 characters take 140 KiB."""

RunId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
"""The identifier of a run, which also names files."""


Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
"""The name of an entry in a table: a task, model or strategy. Whoever uses the table refuses a name that it lacks."""


Sha256 = Annotated[str, Field(pattern=rf"^{naming.SHA256}$")]


class PrivacyMode(StrEnum):
    """Where the noise is added."""

    LOCAL = "local"
    DISTRIBUTED = "distributed"
    NONE = "none"


class PrivacyUnit(StrEnum):
    """What one unit of protection is: add or remove one image, or all images of one patient."""

    RECORD = "record"
    PATIENT = "patient"


class AggregationMode(StrEnum):
    """Whether updates are masked; ``plain`` exists for baselines alone."""

    SECURE = "secure"
    PLAIN = "plain"


class AdversaryModel(StrEnum):
    """Which server secure aggregation withstands (Bonawitz et al. 2017, sections 6.1 and 6.2)."""

    ACTIVE = "active"
    SEMI_HONEST = "semi-honest"


class RunConsent(StrEnum):
    """Who at a hospital decides whether it takes part in a run that its policy allows."""

    AUTOMATIC = "automatic"
    ASK = "ask"


class Warp(StrEnum):
    """How the copies of a record's image differ from it; ``client/warps.py`` says by how much."""

    NONE = "none"
    CHEST = "chest"
    XRAY = "xray"
    MIRROR = "mirror"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ExperimentConfig(_Section):
    """What is trained, for how long and by how many."""

    task: Name = "pneumonia"
    rounds: Annotated[int, Field(ge=1, le=100_000)] = 10
    num_clients: Annotated[int, Field(ge=SECURE_MINIMUM, le=MOST_HOSPITALS)] = 4
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 1
    min_records_per_class: Annotated[int, Field(ge=0, le=1_000_000)] = 0


class DataConfig(_Section):
    """Where the demo's data comes from and how the dealer splits it."""

    source: Annotated[str, Field(min_length=1, max_length=4096)] = "auto"
    partition: Literal["iid", "dirichlet", "quantity"] = "iid"
    dirichlet_alpha: Annotated[float, Field(ge=0.01, le=1000.0)] = 0.5
    phantom_records: Annotated[int, Field(ge=200, le=1_000_000)] = 3000
    download_timeout_seconds: Annotated[float, Field(gt=0, le=600.0)] = 10.0


class ModelConfig(_Section):
    """Which model, for which images; ``common/models/naming.py`` says in which three ways it can be named."""

    name: Annotated[str, AfterValidator(naming.checked_name)] = "cnn"
    image_size: Annotated[int, Field(ge=28, le=512)] = 28
    sha256: Annotated[str, Field(pattern=rf"^(?:{naming.SHA256})?$")] = ""
    """The SHA-256 of a package's source or of a backbone's file; empty for a model of the registry."""
    backbone: Annotated[str, Field(pattern=rf"^(?:{naming.REGISTERED})?$")] = ""
    features: Annotated[int, Field(ge=0, le=naming.MOST_FEATURES)] = 0
    pixels: naming.Pixels = "imagenet"

    @model_validator(mode="after")
    def _is_named_whole(self) -> Self:
        on_backbone = self.name in naming.BACKBONES
        if (":" in self.name or on_backbone) != bool(self.sha256):
            raise ValueError(
                "must give sha256 for a package:function and for a backbone, and for no other model (./confide model "
                "hash prints it)"
            )
        if on_backbone != bool(self.backbone) or on_backbone != bool(self.features):
            raise ValueError(
                f"must give backbone and features for {' and '.join(naming.BACKBONES)}, and for no other model"
            )
        return self

    @property
    def architecture(self) -> str:
        """The string that says everything that decides the model but classes, channels and size of images."""
        return naming.architecture(self.name, self.sha256, self.backbone, self.pixels, self.features)


class TrainingConfig(_Section):
    """One hospital's optimiser; in mode ``distributed`` learning rate and momentum act on the server.

    ``sample_rate`` is public and the same at every hospital, so neither noise nor ε shows how much data one has.
    ``batch_size`` counts in mode ``none`` alone. ``copies`` and ``warp`` count for models on frozen features alone.
    """

    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 128
    sample_rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    local_epochs: Annotated[int, Field(ge=1, le=1000)] = 1
    learning_rate: Annotated[float, Field(gt=0, le=1000.0)] = 1.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    proximal_mu: Annotated[float, Field(ge=0, le=1000.0)] = 0.0
    copies: Annotated[int, Field(ge=1, le=16)] = 1
    warp: Annotated[Warp, Field(strict=False)] = Warp.NONE

    @model_validator(mode="after")
    def _copies_differ(self) -> Self:
        if (self.copies > 1) != (self.warp is not Warp.NONE):
            raise ValueError(
                "training.copies must be above 1 where training.warp names a kind of warp, and 1 where it is none"
            )
        return self


_MOST_VOID_ROUNDS_WITHOUT_PROOFS = 3
"""What a description says of a run without proved sums, where it has no meaning: as before, so its bytes stay."""


def _number_or_auto(value: object) -> object:
    """Complain of what is neither in one line, as a union of types would not."""
    is_number = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_HOSPITALS
    if not is_number and value != "auto":
        raise ValueError(f"must be auto or a whole number from 0 to {MOST_HOSPITALS}")
    return value


class AggregationConfig(_Section):
    """How updates become a sum, and the sum a model.

    ``most_void_rounds`` may be the rule ``auto``, also in a run's description, whose roster may change while the run
    goes on; :attr:`RunDescription.most_void_rounds` is the number.
    """

    mode: Annotated[AggregationMode, Field(strict=False)] = AggregationMode.SECURE
    adversary: Annotated[AdversaryModel, Field(strict=False)] = AdversaryModel.ACTIVE
    min_hospitals: Annotated[int, Field(ge=SECURE_MINIMUM, le=MOST_HOSPITALS)] = 3
    modulus_bits: Literal[16, 32] = 16
    update_bound: Annotated[float, Field(gt=0, le=1000.0)] = 0.25
    max_weight: Annotated[int, Field(ge=1, le=2**24)] = 4096
    strategy: Name = "fedavg"
    server_learning_rate: Annotated[float, Field(gt=0, le=1000.0)] = 1.0
    server_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    proved_sums: bool = False
    most_void_rounds: Annotated[int | Literal["auto"], BeforeValidator(_number_or_auto)] = "auto"
    norm_bound: Annotated[float, Field(ge=0, le=1000.0)] = 0.0
    disputes: bool = False

    @model_serializer(mode="wrap")
    def _as_before(self, write: SerializerFunctionWrapHandler, how: SerializationInfo) -> dict[str, Any]:
        """Leave disputes out where a run has none, so that the descriptions of other runs keep their bytes and hash."""
        written: dict[str, Any] = write(self)
        if how.mode == "json" and not self.disputes:
            written.pop("disputes", None)
        return written

    def as_described(self) -> Self:
        """Return this section as a run's description holds it."""
        if self.proved_sums or self.most_void_rounds != "auto":
            return self
        return self.model_copy(update={"most_void_rounds": _MOST_VOID_ROUNDS_WITHOUT_PROOFS})

    @model_validator(mode="after")
    def _sums_that_are_proved_are_masked(self) -> Self:
        masked = self.mode is AggregationMode.SECURE and self.adversary is AdversaryModel.ACTIVE
        if self.proved_sums and not masked:
            raise ValueError(
                "aggregation.proved_sums must be false unless aggregation.mode is secure and aggregation.adversary is "
                "active: what proves a sum travels with the masks and signatures of such a run"
            )
        if self.norm_bound and not self.proved_sums:
            raise ValueError(
                f"aggregation.norm_bound must be 0 without aggregation.proved_sums, got {self.norm_bound:g}: it is "
                "checked of a sum that is proved"
            )
        if self.disputes and not self.norm_bound:  # A bound is of private changes, each with all its noise: mode local.
            raise ValueError(
                "aggregation.disputes must be false without aggregation.proved_sums and aggregation.norm_bound in "
                "privacy.mode local: a dispute shows changes that are private by themselves, and judges their length"
            )
        return self


_GRAPH = GraphParameters()


class GraphConfig(_Section):
    """What a round of many hospitals assumes and guarantees; the ranges are what any hospital insists on.

    The fields are those of :class:`common.secagg.parameters.GraphParameters`.
    """

    complete_up_to: Annotated[int, Field(ge=64, le=4096)] = _GRAPH.complete_up_to
    colluding: Annotated[float, Field(ge=0.1, lt=0.34)] = _GRAPH.colluding
    dropping_out: Annotated[float, Field(ge=0.0, le=0.5)] = _GRAPH.dropping_out
    security_bits: Annotated[int, Field(ge=40, le=256)] = _GRAPH.security_bits
    grinding_bits: Annotated[int, Field(ge=64, le=256)] = _GRAPH.grinding_bits
    correctness_bits: Annotated[int, Field(ge=1, le=256)] = _GRAPH.correctness_bits

    def parameters(self) -> GraphParameters:
        """Return them as the protocol takes them."""
        return GraphParameters(**self.model_dump())


class PrivacyConfig(_Section):
    """The (ε, δ) a run is calibrated for; every hospital checks it against its own budget."""

    mode: Annotated[PrivacyMode, Field(strict=False)] = PrivacyMode.LOCAL
    target_epsilon: Annotated[float, Field(gt=0, le=1000.0)] = 8.0
    delta: Annotated[float, Field(gt=0, lt=0.1)] = 1e-4
    max_grad_norm: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    accountant: Literal["prv", "rdp"] = "prv"
    unit: Annotated[PrivacyUnit, Field(strict=False)] = PrivacyUnit.RECORD
    colluders: Annotated[int, Field(ge=0, le=1023)] = 0
    tolerated_dropouts: Annotated[int, Field(ge=0, le=1023)] = 1
    mean_share: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    alone_share: Annotated[float, Field(ge=0, le=0.9)] = 0.0


class EvaluationConfig(_Section):
    """How the global model is measured through secure sums.

    Counts carry discrete Gaussian noise that is complete in the secure sum alone, and have an ε of their own, for each
    validation and each test record. ``exact`` counts carry none; a hospital refuses them unless it agrees.
    """

    target_epsilon: Annotated[float, Field(gt=0, le=1000.0)] = 1.0
    interim_releases: Annotated[int, Field(ge=1, le=1000)] = 9
    repeats: Annotated[int, Field(ge=0, le=100)] = 1
    exact: bool = False
    score_bins: Annotated[int, Field(ge=16, le=65_536)] = 256
    statistics_epsilon: Annotated[float, Field(ge=0, le=1000.0)] = 0.0
    spread_share: Annotated[float, Field(ge=0, le=0.5)] = 0.0

    @model_validator(mode="after")
    def _statistics_have_noise(self) -> Self:
        if self.exact and self.statistics_epsilon:
            raise ValueError(
                "evaluation.statistics_epsilon must be 0 where evaluation.exact leaves counts without noise"
            )
        return self


class TransportConfig(_Section):
    """Waits and deadlines, in seconds."""

    exchange_deadline_seconds: Annotated[float, Field(ge=0.1, le=86_400.0)] = 60.0
    straggler_factor: Annotated[float, Field(ge=1.0, le=1000.0)] = 5.0
    straggler_seconds: Annotated[float, Field(ge=0.1, le=86_400.0)] = 5.0
    start_deadline_seconds: Annotated[float, Field(ge=1.0, le=86_400.0)] = 300.0
    roster_stable_seconds: Annotated[float, Field(ge=0.0, le=3600.0)] = 2.0
    poll_seconds: Annotated[float, Field(ge=0.001, le=60.0)] = 0.05
    first_backoff_seconds: Annotated[float, Field(ge=0.001, le=60.0)] = 0.02


class MonitoringConfig(_Section):
    """TCP ports of the Prometheus exporters; 0 chooses a free one."""

    server_metrics_port: Annotated[int, Field(ge=0, le=65_535)] = 9400
    hospital_metrics_port: Annotated[int, Field(ge=0, le=65_535)] = 9401


class EnrolmentConfig(_Section):
    """How hospitals join, and for how many hours what the authority signs holds."""

    invitation_hours: Annotated[float, Field(gt=0, le=8760.0)] = 72.0
    hospital_certificate_hours: Annotated[float, Field(gt=0, le=87_600.0)] = 720.0
    server_certificate_hours: Annotated[float, Field(gt=0, le=87_600.0)] = 720.0
    revocations_hours: Annotated[float, Field(gt=0, le=8760.0)] = 24.0
    standing_seconds: Annotated[float, Field(ge=0.1, le=3600.0)] = 10.0
    refusals_per_minute: Annotated[int, Field(ge=1, le=100_000)] = 30


class HospitalConfig(_Section):
    """What a hospital agrees to, whatever the server asks; read from the hospital's own copy only."""

    runs: Annotated[RunConsent, Field(strict=False)] = RunConsent.AUTOMATIC
    automatic_epsilon: Annotated[float, Field(ge=0, le=1000.0)] = 0.0
    epsilon_budget: Annotated[float, Field(gt=0, le=1000.0)] = 10.0
    evaluation_epsilon_budget: Annotated[float, Field(gt=0, le=1000.0)] = 4.0
    delta: Annotated[float, Field(gt=0, lt=0.1)] = 1e-4
    unit: Annotated[PrivacyUnit, Field(strict=False)] = PrivacyUnit.RECORD
    most_records_per_patient: Annotated[int, Field(ge=0, le=1000)] = 0
    stated_training_units: Annotated[int, Field(ge=20, le=2**24)] = 512
    stated_validation_units: Annotated[int, Field(ge=1, le=2**24)] = 64
    stated_test_units: Annotated[int, Field(ge=1, le=2**24)] = 64
    stated_units_per_class: Annotated[int, Field(ge=0, le=2**24)] = 0
    min_hospitals: Annotated[int, Field(ge=SECURE_MINIMUM, le=MOST_HOSPITALS)] = 3
    min_colluders: Annotated[int, Field(ge=0, le=1023)] = 0
    max_local_epochs: Annotated[int, Field(ge=1, le=1000)] = 20
    longest_vector: Annotated[int, Field(ge=1, le=2**30)] = 100_000_000
    answer_seconds: Annotated[float, Field(ge=0, le=3600.0)] = 0.0
    device: Annotated[str, Field(pattern=r"^(?:auto|cpu|cuda(?::[0-9]{1,2})?)$")] = "auto"
    allow_partial_roster: bool = False
    allow_plain: bool = False
    allow_semi_honest: bool = False
    require_proved_sums: bool = False
    most_norm_bound: Annotated[float, Field(ge=0, le=1000.0)] = 0.0
    allow_disputes: bool = False
    allow_no_privacy: bool = False
    allow_exact_evaluation: bool = False
    allow_statistics_epsilon: Annotated[float, Field(ge=0, le=1000.0)] = 0.0
    accepted_models: Annotated[tuple[Sha256, ...], Field(strict=False, max_length=1000)] = ()
    """The SHA-256 of each package and each backbone's file that this hospital agrees to train with."""

    def consent_to(self, epsilon: float) -> RunConsent:
        """Return who decides on a run by which the ε of training grows so much.

        >>> str(HospitalConfig(automatic_epsilon=2.0).consent_to(3.0))
        'ask'
        """
        return RunConsent.ASK if 0 < self.automatic_epsilon < epsilon else self.runs


class Config(_Section):
    """The whole of ``config.yaml``."""

    experiment: ExperimentConfig = ExperimentConfig()
    task: TaskConfig = TaskConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    aggregation: AggregationConfig = AggregationConfig()
    graph: GraphConfig = GraphConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    transport: TransportConfig = TransportConfig()
    monitoring: MonitoringConfig = MonitoringConfig()
    enrolment: EnrolmentConfig = EnrolmentConfig()
    hospital: HospitalConfig = HospitalConfig()

    def as_yaml(self) -> bytes:
        """Return the YAML that :func:`load_config` reads back to an equal configuration."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False).encode()

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        if self.aggregation.min_hospitals > self.experiment.num_clients:
            raise ValueError(
                f"aggregation.min_hospitals ({self.aggregation.min_hospitals}) must be at most "
                f"experiment.num_clients ({self.experiment.num_clients})"
            )
        _require_hidden_shares(self.privacy, self.aggregation, self.evaluation)
        _require_noise_for_a_bound(self.privacy, self.aggregation)
        _require_everyone_masks(self.aggregation, self.graph, self.experiment.num_clients)
        _require_something_to_compare(self.privacy, self.evaluation, self.task.kind, self.experiment.task)
        return self


class RunDescription(_Section):
    """Everything server and hospitals must agree on before a run; its hash is bound into every key and signature."""

    protocol_version: Annotated[int, Field(ge=OLDEST_PROTOCOL_VERSION, le=PROTOCOL_VERSION)] = PROTOCOL_VERSION
    run_id: RunId
    classes: Annotated[tuple[str, ...], Field(max_length=MOST_CLASSES)]
    channels: Channels
    vector_length: Annotated[int, Field(ge=1, le=2**31)]
    roster: Annotated[dict[str, str], Field(max_length=MOST_HOSPITALS)]
    """Hospital name to its PEM identity certificate."""
    member_list: Annotated[str, Field(max_length=LONGEST_MEMBER_LIST_BYTES)]
    """Who the members of the consortium are, signed by its authority (``common.identity.members``); hospitals refuse a
    run whose roster is not all of them. Empty where no hospital takes part, as in a central baseline."""
    experiment: ExperimentConfig
    task: TaskConfig
    """What is learnt, and what labels mean; complete, and normal (:meth:`common.task.TaskConfig.normal`)."""
    model: ModelConfig
    training: TrainingConfig
    aggregation: AggregationConfig
    graph: GraphConfig
    privacy: PrivacyConfig
    evaluation: EvaluationConfig
    noise_multiplier: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Mode ``distributed``: z of ``common/privacy/distributed.py``, in a round's sum; None in the other modes."""

    @model_validator(mode="after")
    def _noise_is_agreed(self) -> Self:
        if (self.noise_multiplier is not None) != _is_noise_in_sum(self.privacy):
            raise ValueError("noise_multiplier must be given in privacy.mode distributed, and in no other")
        if self.task.is_preset or self.task.classes != self.classes or self.task.normal() != self.task:
            raise ValueError("task must say everything of the run's classes, and name the positive one of two second")
        _require_hidden_shares(self.privacy, self.aggregation, self.evaluation)
        _require_noise_for_a_bound(self.privacy, self.aggregation)
        _require_everyone_masks(self.aggregation, self.graph, len(self.roster))
        _require_something_to_compare(self.privacy, self.evaluation, self.task.kind, self.experiment.task)
        return self

    @classmethod
    def of(
        cls,
        config: "Config",
        *,
        run_id: str,
        classes: tuple[str, ...],
        channels: int,
        vector_length: int,
        roster: dict[str, str],
        member_list: str = "",
        noise_multiplier: float | None = None,
        protocol_version: int = PROTOCOL_VERSION,
    ) -> Self:
        """Return the description whose sections are those of a configuration.

        Raises:
            ConfigError: they contradict each other, as what a preset's classes imply can.
        """
        try:
            return cls(
                protocol_version=protocol_version,
                run_id=run_id,
                classes=classes,
                channels=channels,
                vector_length=vector_length,
                roster=roster,
                member_list=member_list,
                experiment=config.experiment,
                task=task_of(config, classes),
                model=config.model,
                training=config.training,
                aggregation=config.aggregation.as_described(),
                graph=config.graph,
                privacy=config.privacy,
                evaluation=config.evaluation,
                noise_multiplier=noise_multiplier,
            )
        except ValidationError as error:
            raise ConfigError(_first_complaint(error)) from None

    @property
    def most_void_rounds(self) -> int:
        """How many sums that it helped to open a hospital may be given no proof of.

        By the rule ``auto`` one less than the roster: one cheat spoils at most as many sums as there are hospitals, and
        each honest one is left out of one of them (``server/suspects.py``).
        """
        most = self.aggregation.most_void_rounds
        return max(len(self.roster) - 1, 0) if most == "auto" else most

    def canonical_json(self) -> bytes:
        """Return the one encoding of this description that is hashed and sent: sorted keys, no spaces, UTF-8."""
        return canonical_json(self.model_dump(mode="json"))

    def hash(self) -> bytes:
        """Return the SHA-256 of :meth:`canonical_json`, 32 bytes."""
        return hashlib.sha256(self.canonical_json()).digest()

    @classmethod
    def from_json(cls, encoded: bytes) -> Self:
        """Read a description that came over the network.

        Raises:
            ConfigError: it is not one, has an unknown or missing key, or a value out of range.
        """
        try:
            return cls.model_validate_json(encoded)
        except ValidationError as error:
            raise ConfigError(_first_complaint(error)) from None


def task_of(config: Config, classes: tuple[str, ...]) -> TaskConfig:
    """Return a run's task; where the configuration leaves it to a preset, what its name and classes imply."""
    return implied(config.experiment.task, classes) if config.task.is_preset else config.task.normal()


def _is_noise_in_sum(privacy: PrivacyConfig) -> bool:
    from common.privacy.mechanism import MECHANISMS  # the one place that knows the modes; it imports this module

    return MECHANISMS[privacy.mode].noise_in_sum


def _require_noise_for_a_bound(privacy: PrivacyConfig, aggregation: AggregationConfig) -> None:
    """Refuse a bound on changes where their noise is not each hospital's own, and so has no public length."""
    from common.privacy.mechanism import MECHANISMS  # as above

    mechanism = MECHANISMS[privacy.mode]
    if aggregation.norm_bound and (mechanism.noise_in_sum or not mechanism.is_private):
        raise ValueError(
            f"aggregation.norm_bound must be 0 in privacy.mode {privacy.mode.value}, got {aggregation.norm_bound:g}: "
            "it is a multiple of the noise that each hospital adds to its own change"
        )


def _require_everyone_masks(aggregation: AggregationConfig, graph: GraphConfig, hospitals: int) -> None:
    """Refuse disputes among so many hospitals that not everyone masks with everyone."""
    if aggregation.disputes and hospitals > graph.complete_up_to:
        raise ValueError(
            f"aggregation.disputes must be false among more than graph.complete_up_to = {graph.complete_up_to} "
            f"hospitals, got {hospitals}"
        )


def _require_something_to_compare(
    privacy: PrivacyConfig, evaluation: EvaluationConfig, kind: str | None, task: str
) -> None:
    """Refuse to ask how single hospitals, or their models, do where nothing can tell it without showing one."""
    if privacy.alone_share and evaluation.exact:
        raise ValueError(
            "privacy.alone_share must be 0 where evaluation.exact leaves counts without noise: they would show how "
            "models of single hospitals do"
        )
    if privacy.alone_share and kind == TaskKind.MULTILABEL:
        raise ValueError(
            f"privacy.alone_share must be 0 in a multilabel task, {task}: models of single hospitals are compared by "
            "the class that they decide for"
        )
    if evaluation.spread_share and evaluation.exact:
        raise ValueError(
            "evaluation.spread_share must be 0 where evaluation.exact leaves counts without noise: they would show how "
            "well the model does at single hospitals"
        )
    if evaluation.spread_share and kind in (TaskKind.MULTICLASS, TaskKind.ORDINAL, TaskKind.MULTILABEL):
        raise ValueError(
            f"evaluation.spread_share must be 0 in a {kind} task, {task}: what is told is the AUC of two classes at "
            "each hospital"
        )


def _require_hidden_shares(
    privacy: PrivacyConfig, aggregation: AggregationConfig, evaluation: EvaluationConfig
) -> None:
    """Refuse noise that is complete in sums alone where nothing is summed, or where too few shares would remain."""
    noise_in_sum = _is_noise_in_sum(privacy)
    if evaluation.exact and not noise_in_sum:
        return
    if aggregation.mode is AggregationMode.PLAIN:
        raise ValueError(
            "aggregation.mode must be secure in privacy.mode distributed: its noise is enough in sums alone"
            if noise_in_sum
            else "evaluation.exact must be true in aggregation.mode plain: evaluation's noise is enough in sums alone"
        )
    missing = privacy.tolerated_dropouts + privacy.colluders
    if missing >= aggregation.min_hospitals:
        raise ValueError(
            f"aggregation.min_hospitals must be above privacy.tolerated_dropouts + privacy.colluders = {missing}, for "
            f"noise must remain in every sum, got {aggregation.min_hospitals}"
        )


def load_config(path: Path, overrides: tuple[str, ...] = ()) -> Config:
    """Read ``config.yaml``, with ``section.key=value`` overrides applied last.

    Args:
        path: the YAML file; every section and key may be left out and then has its documented default.
        overrides: as given to ``--set``; a value is read as YAML, so ``true`` and ``3`` have their usual types.

    Raises:
        ConfigError: the file is missing or not YAML, a key is unknown, or a value is out of range; the message
            names the key, the allowed range and what was got.
    """
    try:
        tree = read_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        hint = "; a container's user can read what everybody can (chmod a+r)" if error.errno == errno.EACCES else ""
        raise ConfigError(f"the configuration must be a readable file; {path}: {error.strerror}{hint}") from None
    except RecursionError:
        raise ConfigError(f"{path} must hold sections of plain values; it is nested too deeply to be read") from None
    except NO_YAML as error:
        raise ConfigError(f"{path} must be YAML in UTF-8: {' '.join(str(error).split())}") from None
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold sections such as 'experiment:', got {type(tree).__name__}")
    for override in overrides:
        _apply_override(tree, override)
    try:
        return Config.model_validate(_ints_as_floats(tree))
    except ValidationError as error:
        raise ConfigError(_first_complaint(error)) from None


def replace(config: Config, **sections: dict[str, Any]) -> Config:
    """Return ``config`` with some keys of some sections replaced, checked like the file itself.

    >>> replace(Config(), experiment={"rounds": 3}).experiment.rounds
    3
    """
    tree = config.model_dump()
    for section, values in sections.items():
        tree[section].update(values)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_first_complaint(error)) from None


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    section, dot, name = key.partition(".")
    if not (equals and dot and section and name):
        raise ConfigError(f"--set takes section.key=value, got {override!r}")
    if section not in Config.model_fields:
        raise ConfigError(f"unknown key {section!r}; the sections are {', '.join(Config.model_fields)}")
    try:
        value = read_yaml(text)
    except NO_YAML:
        value = text
    values = tree.get(section)
    tree[section] = {**(values if isinstance(values, dict) else {}), name: value}


def _ints_as_floats(tree: dict[str, Any]) -> dict[str, Any]:
    """Let ``learning_rate: 1`` and ``delta: 1e-4`` (a string to YAML 1.1) mean the float they say."""
    read: dict[str, Any] = {}
    for section, values in tree.items():
        fields = _fields(str(section))
        read[section] = (
            {name: _as_float(value) if _is_float(fields, str(name)) else value for name, value in values.items()}
            if isinstance(values, dict)
            else values
        )
    return read


def _fields(section: str) -> dict[str, FieldInfo]:
    """Return the keys of one section, none if there is no such section."""
    field = Config.model_fields.get(section)
    model = None if field is None else field.annotation
    return model.model_fields if isinstance(model, type) and issubclass(model, BaseModel) else {}


def _is_float(fields: dict[str, FieldInfo], name: str) -> bool:
    return name in fields and fields[name].annotation is float


def _as_float(value: object) -> object:
    if isinstance(value, bool):
        return value
    if isinstance(value, int | str):
        try:
            return float(value)
        except (ValueError, OverflowError):
            return value
    return value


def _first_complaint(error: ValidationError) -> str:
    """Turn pydantic's first finding into one line: key, allowed range, what was got."""
    finding = error.errors(include_url=False)[0]
    # pydantic adds the kind of a value, such as str-enum[TaskKind], which is no part of the key.
    key = ".".join(part for part in map(str, finding["loc"]) if "[" not in part)
    if finding["type"] == "extra_forbidden":
        return f"unknown key {key!r}{_known_keys(finding['loc'])}"
    message = finding["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if not key or message.startswith(f"{key}."):
        return message
    if isinstance(finding["input"], dict):
        return f"{key} {message}"  # A section, of which the message says what is wrong.
    return f"{key} {message}{_allowed_range(finding['loc'])}, got {_SHOWN.repr(finding['input'])}"


def _known_keys(location: tuple[int | str, ...]) -> str:
    known = list(_fields(str(location[0]))) if len(location) > 1 else list(Config.model_fields)
    return f"; known here: {', '.join(known)}" if known else ""


def _allowed_range(location: tuple[int | str, ...]) -> str:
    field = _fields(str(location[0])).get(str(location[-1]))
    if field is None:
        return ""
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    bounds = [
        f"{sign} {getattr(bound, name)}"
        for bound in field.metadata
        for name, sign in signs.items()
        if getattr(bound, name, None) is not None
    ]
    return f" (allowed: {' and '.join(bounds)})" if bounds else ""
