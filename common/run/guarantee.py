"""What the ε of a run means, in words, and what every output of a run must admit.

It names who is covered, and who is not: a hospital that takes part knows its own share of distributed noise, so
unless the noise is made for colluding hospitals, ε against another hospital of the run is larger than against an
outsider (:meth:`common.privacy.distributed.DistributedMechanism.epsilons` says by how much).
"""

import math
from dataclasses import asdict, dataclass

from common.config import AdversaryModel, AggregationMode, Config, PrivacyConfig
from common.privacy.mechanism import adversary_in_sums, mechanism_for, mechanism_of

PHANTOM = "phantom"
"""The beginning of the name of the procedural data set."""


@dataclass(frozen=True)
class Guarantee:
    """Everything an ε must be shown with."""

    mode: str
    epsilon_target: float | None
    delta: float | None
    unit: str
    adversary: str
    accountant: str
    aggregation: str

    @classmethod
    def of(cls, config: Config) -> "Guarantee":
        """Put the guarantee of a run with this configuration into words."""
        privacy, private = config.privacy, mechanism_of(config).is_private
        return cls(
            mode=privacy.mode.value,
            epsilon_target=privacy.target_epsilon if private else None,
            delta=privacy.delta if private else None,
            unit=privacy.unit.value,
            adversary=adversary_of_epsilon(privacy),
            accountant=privacy.accountant,
            aggregation=_aggregation(config),
        )

    def of_epsilon(self) -> str:
        """Return what to print beside an ε, on one line."""
        if self.delta is None:
            return "no differential privacy: ε is not bounded"
        return (
            f"ε for each {self.unit} ({relation(self.unit)}), δ={self.delta:g}, {self.accountant.upper()} accountant, "
            f"against {self.adversary}"
        )

    def as_labels(self) -> tuple[str, ...]:
        """Return the values of the labels of ``confide_privacy_info``, in their order; an absent number is ``none``."""
        target, delta = self.epsilon_target, self.delta
        return (
            self.mode,
            "none" if target is None else f"{target:g}",
            "none" if delta is None else f"{delta:g}",
            self.unit,
            self.adversary,
            self.accountant,
            self.aggregation,
        )

    def as_dict(self) -> dict[str, str | float | None]:
        """Return the fields by name, for JSON."""
        return asdict(self)


def relation(unit: str) -> str:
    """Say which data sets an ε compares, to be named wherever an ε is.

    >>> relation("patient")
    'zero-out: a patient against an empty one, the number of patients is public'
    """
    return f"zero-out: a {unit} against an empty one, the number of {unit}s is public"


def adversary_of_epsilon(privacy: PrivacyConfig) -> str:
    """Say against whom a run's ε holds, and against whom it does not where one might think so."""
    return mechanism_for(privacy).adversary()


def adversary_of_evaluation(privacy: PrivacyConfig) -> str:
    """Say against whom the ε of a run's evaluation holds, in every mode: its noise is complete in the sum alone."""
    return adversary_in_sums(privacy)


def caveats(config: Config, data_set: str, *, authority_on_server: bool = False) -> tuple[str, ...]:
    """Return what every output of a run must admit, each as one sentence; none for a real, private, masked run.

    Args:
        config: the run's.
        data_set: its name.
        authority_on_server: the server holds the key that admits hospitals.

    >>> caveats(Config(), "PneumoniaMNIST")
    ()
    """
    admitted = []
    if data_set.lower().startswith(PHANTOM):
        admitted.append(f"Data set {data_set}: procedural images, no X-rays; the figures say nothing about medicine.")
    admitted.extend(mechanism_of(config).caveats())
    if config.aggregation.mode is AggregationMode.PLAIN:
        admitted.append("aggregation.mode is plain: the server saw every hospital's update; a baseline only.")
    if config.aggregation.disputes:
        admitted.append(
            "aggregation.disputes is true: after a sum that a hospital has spoilt, server and hospitals saw each "
            "hospital's change of that round, under the noise that its ε is for, and the training units it states."
        )
    if config.evaluation.exact:
        admitted.append(
            "evaluation.exact is true: validation and test counts carry no noise, so validation and test records have "
            "NO differential privacy."
        )
    if authority_on_server:
        admitted.append(
            "The server holds the authority's key: it can admit hospitals of its own and so learn a single hospital's "
            "update."
        )
    return tuple(admitted)


def shown_epsilon(epsilon: float) -> str:
    """Return an ε for a person: two decimals, or ∞ where nothing bounds it."""
    return f"{epsilon:.2f}" if math.isfinite(epsilon) else "∞"


def _aggregation(config: Config) -> str:
    if config.aggregation.mode is AggregationMode.PLAIN:
        return "plain: the server sees every hospital's update"
    if config.aggregation.disputes:
        return (
            "secure against an active adversary: the server sees sums alone, and single changes under their own noise "
            "of a round that a hospital has spoilt"
        )
    if config.aggregation.adversary is AdversaryModel.ACTIVE:
        return "secure against an active adversary: the server sees sums alone"
    return "secure against a semi-honest server: it sees sums alone if it follows the protocol"
