"""From what a run wants to the noise it needs, and the refusal of parameters that mean nothing.

A run's noise is a function of its description alone: of the public schedule (:mod:`common.privacy.schedule`), the
target ε and δ. So it is the same at every hospital, shows nothing about how much data one has, and ``confide privacy
plan`` and a deployed run get it from the same functions here.
"""

import math
from collections.abc import Sequence

from common.config import PrivacyConfig, PrivacyUnit
from common.errors import PrivacyError
from common.privacy.accounting import (
    PRV_EPSILON_ERROR,
    Accountant,
    MechanismEvent,
    MechanismKind,
    epsilon,
    epsilon_bounds,
    rounded_up,
)
from common.privacy.gaussian import accounted_epsilon, accounted_mu
from common.privacy.schedule import Schedule

EPSILON_TOLERANCE = 0.01
"""A calibrated run spends at least its target less this; Opacus's own default."""

FIRST_NOISE_MULTIPLIER = 20.0
"""Where the search starts. It is Opacus's bisection, so that both name the same multiplier."""

LARGEST_NOISE_MULTIPLIER = 1e6
"""More noise than any run can learn through; a target that needs it is refused."""

_NARROWEST = 2.0**-40
"""Relative width at which the search ends: where ``already`` is most of the target, no multiplier comes close to it."""

FEWEST_UNITS = 20
"""A hospital with fewer units would answer each batch with noise alone."""

_BELOW = 1 - 1e-9
"""So that a share of μ² that went through ε and back is not a rounding error above itself."""

THRESHOLD_SHARE = 0.1
"""The share of what training alone may spend that goes to the threshold of its model."""

THRESHOLD_HALVINGS = 8
"""How often the range of thresholds is halved: to a sixteenth in log-odds around a probability of one half."""

_COARSE_ERROR = 10 * PRV_EPSILON_ERROR
"""Fine enough to settle most of the search at a tenth of the cost; what is returned was judged at full fineness."""


def require_meaningful(units: int, batch_size: int, delta: float, unit: PrivacyUnit = PrivacyUnit.RECORD) -> float:
    """Return the Poisson sample rate of a hospital, or refuse parameters that promise nothing.

    A δ of 1/n or more is met by publishing one unit of the n outright.

    Args:
        units: how many records (or patients) the hospital trains on.
        batch_size: expected units of a Poisson batch.
        delta: the δ of the guarantee.
        unit: what is counted.

    Returns:
        ``batch_size / units``, in (0, 1].

    Raises:
        PrivacyError: too few units, a batch below one or above all units, or δ not below 1 / units; names the remedy.
    """
    require_enough_units(units, delta, unit)
    if not 1 <= batch_size <= units:
        raise PrivacyError(
            f"the expected batch must be from 1 to the hospital's {units} {unit}s, got {batch_size}; "
            f"set training.batch_size to at most {units}"
        )
    return batch_size / units


def require_enough_units(units: int, delta: float, unit: PrivacyUnit = PrivacyUnit.RECORD) -> None:
    """Refuse a number of units too small to hide one in, as the hospital's operator states it; data decide nothing.

    A δ of 1/n or more is met by publishing one unit of the n outright.

    Args:
        units: how many records (or patients) to train on the hospital states, a public number.
        delta: the δ of the guarantee.
        unit: what is counted.

    Raises:
        PrivacyError: too few units, or δ not below 1 / units; names the remedy.
    """
    if units < FEWEST_UNITS:
        raise PrivacyError(
            f"a hospital must state at least {FEWEST_UNITS} training {unit}s, got {units}; "
            "raise hospital.stated_training_units, or stay out of this run"
        )
    if not 0 < delta < 1 / units:
        raise PrivacyError(
            f"δ must be above 0 and below 1 / {units} stated {unit}s = {1 / units:.2g}, got {delta:g}; "
            f"set privacy.delta to {1 / (10 * units):.0e} or less"
        )


def run_noise_multiplier(schedule: Schedule, privacy: PrivacyConfig, rounds: int) -> float:
    """Return the noise multiplier with which all rounds of a run together cost its target ε.

    In mode ``local`` it is of each step's noise at each hospital, in mode ``distributed`` of a round's sum. What the
    mean of features takes of the budget (``privacy.mean_share``) is left out of it, and so is what hospitals' models of
    their own records take (:func:`alone_privacy`). Where every unit is in every batch (``sample_rate`` 1), all steps
    are one Gaussian mechanism and the multiplier is found in closed form.

    Args:
        schedule: the sampling of one round.
        privacy: the target ε, δ and accountant.
        rounds: of the run.

    Raises:
        PrivacyError: as :func:`noise_multiplier`.
    """
    accountant, steps = Accountant(privacy.accountant), schedule.steps * rounds
    if schedule.sample_rate == 1:
        mu = accounted_mu(privacy.target_epsilon, privacy.delta, accountant)
        if mu:
            return math.sqrt(steps / ((1 - privacy.mean_share) * (1 - privacy.alone_share))) / mu
    beside = [_mean_event(privacy)] if privacy.mean_share else []
    if privacy.alone_share:
        alone = alone_privacy(privacy)
        beside += [threshold_event(privacy), *([_mean_event(alone)] if alone.mean_share else [])]
        beside.append(_event(run_noise_multiplier(schedule, alone, rounds), schedule.sample_rate, steps))
    return noise_multiplier(
        privacy.target_epsilon, privacy.delta, schedule.sample_rate, steps, accountant, already=tuple(beside)
    )


def alone_privacy(privacy: PrivacyConfig) -> PrivacyConfig:
    """Return what keeps the model that each hospital trains alone: its share of the run's μ² as an ε of its own.

    The threshold of such a model takes :data:`THRESHOLD_SHARE` of that share, whether or not the task has one.

    The model's training and the run's, each within its share, are together within the run's target. Where every unit
    is in every batch that is the composition of Gaussian mechanisms, whose μ² add up; elsewhere the run's own noise is
    sought beside what training alone costs.

    Args:
        privacy: of the run, with ``alone_share``, which must be above 0.

    Raises:
        PrivacyError: no noise keeps so small a share.
    """
    accountant = Accountant(privacy.accountant)
    mu = _mu_to_share(privacy, "alone_share", "no noise keeps training alone within")
    share = mu * math.sqrt(privacy.alone_share * (1 - THRESHOLD_SHARE)) * _BELOW
    target = accounted_epsilon(share, privacy.delta, accountant)
    if accounted_mu(target, privacy.delta, accountant) > share / _BELOW:  # So little that the accountant rounds it up.
        raise PrivacyError(
            f"privacy.alone_share must leave training alone an ε that the {accountant.upper()} accountant can tell "
            f"from nothing, got {privacy.alone_share:g} of ε = {privacy.target_epsilon:g}; raise either, or set it to 0"
        )
    return privacy.model_copy(update={"target_epsilon": target, "alone_share": 0.0})


def epsilon_of_share(privacy: PrivacyConfig, share: float) -> float:
    """Return the ε of a share of the run's μ², at its δ and by its accountant."""
    accountant = Accountant(privacy.accountant)
    mu = accounted_mu(privacy.target_epsilon, privacy.delta, accountant)
    return accounted_epsilon(mu * math.sqrt(share), privacy.delta, accountant)


def threshold_event(privacy: PrivacyConfig) -> MechanismEvent:
    """Return what it costs to find the threshold of a model that a hospital trains alone (:mod:`client.own_threshold`).

    All its questions together take :data:`THRESHOLD_SHARE` of what training alone may spend.

    Raises:
        PrivacyError: no noise reaches the target.
    """
    mu = _mu_to_share(privacy, "alone_share", "no noise keeps a threshold within")
    questions = 1 + THRESHOLD_HALVINGS
    return _event(math.sqrt(questions / (privacy.alone_share * THRESHOLD_SHARE)) / (mu * _BELOW), 1.0, questions)


def mean_noise_multiplier(privacy: PrivacyConfig) -> float:
    """Return the noise multiplier of the one release of the mean of features: its share of the run's μ².

    With σ₁ that of a single release that spends the whole target, it is σ₁ / √``mean_share``; where hospitals train
    alone as well, ``mean_share`` is of what that leaves.

    Args:
        privacy: the target ε, δ, accountant, and ``mean_share``, which must be above 0.

    Raises:
        PrivacyError: no noise reaches the target.
    """
    mu = _mu_to_share(privacy, "mean_share", "no noise keeps a mean of features within")
    return 1 / (mu * math.sqrt(privacy.mean_share * (1 - privacy.alone_share)))


def _mu_to_share(privacy: PrivacyConfig, key: str, refusal: str) -> float:
    """Return the μ of the whole target, of which ``privacy.KEY`` is a share; or refuse, beginning with ``refusal``.

    Raises:
        PrivacyError: nothing of it does, or no noise reaches the target.
    """
    share = getattr(privacy, key)
    mu = accounted_mu(privacy.target_epsilon, privacy.delta, Accountant(privacy.accountant))
    if not mu or not share:
        raise PrivacyError(
            f"{refusal} {share:g} of ε = {privacy.target_epsilon:g} at δ = {privacy.delta:g}; raise "
            f"privacy.target_epsilon, or set privacy.{key} to 0"
        )
    return mu


def _mean_event(privacy: PrivacyConfig) -> MechanismEvent:
    return _event(mean_noise_multiplier(privacy), 1.0, 1)


def _event(multiplier: float, sample_rate: float, steps: int) -> MechanismEvent:
    return MechanismEvent(MechanismKind.POISSON_SUBSAMPLED_GAUSSIAN, multiplier, sample_rate, steps)


def noise_multiplier(
    target_epsilon: float,
    delta: float,
    sample_rate: float,
    steps: int,
    accountant: Accountant = Accountant.PRV,
    already: Sequence[MechanismEvent] = (),
) -> float:
    """Return the smallest noise multiplier found with which ``steps`` Poisson-subsampled steps stay within a target.

    Args:
        target_epsilon: ε at the last step; above 0.
        delta: in (0, 1).
        sample_rate: in (0, 1].
        steps: of the whole run, at least 1.
        accountant: composes the steps.
        already: events spent before this run that the target must cover too.

    Returns:
        A multiplier whose ε is at most ``target_epsilon`` and, where the target can be met exactly, at least
        ``target_epsilon - EPSILON_TOLERANCE``.

    Raises:
        PrivacyError: a parameter is out of range, or no noise reaches the target (what was spent before leaves
            nothing, or δ or ε is too small).
    """
    if not target_epsilon > 0:
        raise PrivacyError(f"the target ε must be above 0, got {target_epsilon!r}; set privacy.target_epsilon")

    before = epsilon(already, delta, accountant)
    if before > target_epsilon:
        raise PrivacyError(
            f"what is spent already must be within the target of {target_epsilon:g}, got ε = {rounded_up(before):.3f}; "
            f"raise privacy.target_epsilon or stay out of this run"
        )

    def spent(multiplier: float, error: float = PRV_EPSILON_ERROR) -> tuple[float, float]:
        return epsilon_bounds((*already, _event(multiplier, sample_rate, steps)), delta, accountant, error)

    too_little, enough = 0.0, FIRST_NOISE_MULTIPLIER
    while (reached := spent(enough)[1]) > target_epsilon:
        too_little, enough = enough, 2 * enough
        if enough > LARGEST_NOISE_MULTIPLIER:
            raise PrivacyError(
                f"no noise keeps {steps} steps at sample rate {sample_rate:.3g} within ε = {target_epsilon:g} at "
                f"δ = {delta:g}; raise privacy.target_epsilon, or lower experiment.rounds or training.sample_rate"
            )
    while target_epsilon - reached > EPSILON_TOLERANCE and enough - too_little > enough * _NARROWEST:
        middle = (too_little + enough) / 2
        at_least, at_most = spent(middle, _COARSE_ERROR)
        if at_least <= target_epsilon < at_most + EPSILON_TOLERANCE:
            at_least, at_most = spent(middle)
        if at_least > target_epsilon or at_most > target_epsilon:
            too_little = middle
        else:
            enough, reached = middle, at_most
    return enough
