"""What the ε of a run means, in words, and what every output of a run must admit."""

import math
from dataclasses import asdict, dataclass

from common.config import AdversaryModel, AggregationMode, Config, PrivacyConfig, PrivacyMode

PHANTOM = "phantom"
"""The name of the procedural data set begins with this word."""


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
        privacy = config.privacy
        private = privacy.mode is not PrivacyMode.NONE
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
            f"ε for each {self.unit}, δ={self.delta:g}, {self.accountant.upper()} accountant, against {self.adversary}"
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


def adversary_of_epsilon(privacy: PrivacyConfig) -> str:
    """Say whom a run's ε holds against (DESIGN §3)."""
    if privacy.mode is PrivacyMode.NONE:
        return "nobody"
    if privacy.mode is PrivacyMode.LOCAL:
        return "everyone outside the hospital, the server included"
    colluders = f" with up to {privacy.colluders} colluding hospitals" if privacy.colluders else ""
    dropouts = f"{privacy.tolerated_dropouts} dropout{'' if privacy.tolerated_dropouts == 1 else 's'}"
    return f"the server{colluders} and whoever gets the model, with up to {dropouts} a round"


def caveats(config: Config, data_set: str) -> tuple[str, ...]:
    """Return what every output of a run must admit, each as one sentence; none for a real, private, masked run.

    >>> caveats(Config(), "PneumoniaMNIST")
    ()
    """
    admitted = []
    if data_set.lower().startswith(PHANTOM):
        admitted.append(f"Data set {data_set}: procedural images, no X-rays; the figures say nothing about medicine.")
    if config.privacy.mode is PrivacyMode.NONE:
        admitted.append("privacy.mode is none: this run has NO differential privacy; a baseline only.")
    if config.aggregation.mode is AggregationMode.PLAIN:
        admitted.append("aggregation.mode is plain: the server saw every hospital's update; a baseline only.")
    return tuple(admitted)


def shown_epsilon(epsilon: float) -> str:
    """Return an ε for a person: two decimals, or ∞ where nothing bounds it."""
    return f"{epsilon:.2f}" if math.isfinite(epsilon) else "∞"


def _aggregation(config: Config) -> str:
    if config.aggregation.mode is AggregationMode.PLAIN:
        return "plain: the server sees every hospital's update"
    if config.aggregation.adversary is AdversaryModel.ACTIVE:
        return "secure against an active adversary: the server sees sums alone"
    return "secure against a semi-honest server: it sees sums alone if it follows the protocol"
