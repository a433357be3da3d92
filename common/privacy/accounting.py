"""What a sequence of mechanism invocations costs: from immutable events to one ε, composed over all of them.

The guarantee is (ε, δ)-differential privacy in the *zero-out* relation of Kairouz et al. 2021 ("Practical and Private
(Deep) Learning Without Sampling or Shuffling", definition 1.1): two data sets are neighbours when one unit (a record,
or all records of a patient) of one is replaced by an empty one whose gradient is zero. Its arithmetic is that of
add-or-remove with the number of units public, which the sample rate and the weight in the average need. Who compares a
unit with another one in its place, instead of with an empty one, can learn up to twice as much.

Events are composed with the accountants of Opacus: PRV (Gopi, Lee and Wutschitz 2021, "Numerical Composition of
Differential Privacy"), always its upper bound and never its estimate, or RDP (Mironov, Talwar and Zhang 2019, "Rényi
Differential Privacy of the Sampled Gaussian Mechanism"). They bring SciPy, so they are imported on first use.

**Groups.** A patient with k records in a run that protects each record loses more. A step of such a run releases at
most what the mixture P* of N(j, z²) over j from Binomial(k, q) releases beside Q* = N(0, z²): every f-divergence, in
either direction, is at most theirs. RDP composes it; PRV has no part in it.

Proofs: ``docs/proofs/zero-out.md`` (relation, approximation, grid), ``docs/proofs/groups.md``.
"""

import math
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from common.config import PrivacyUnit
from common.errors import PrivacyError
from common.privacy.opacus_parts import accountant_part

if TYPE_CHECKING:
    from opacus.accountants.analysis.prv import Domain

PRV_EPSILON_ERROR = 0.01
"""Added to PRV's estimate, so that what is returned bounds ε from above; Opacus's own default."""

PRV_DELTA_ERROR = 1e-3
"""The share of δ that PRV may spend on truncating and discretising; Opacus's own default."""

PRV_SMALLEST_DELTA = 1e-11
"""The smallest δ for PRV. Below it, rounding in double-precision Fourier transforms is no longer small beside δ."""

PRV_LARGEST_DOMAIN = 2**22
"""Grid points; a larger grid means an ε in the hundreds, where RDP's bound says as much in a thousandth of the time."""

PRV_FURTHEST_LOSS = 500.0
"""Privacy losses beyond overflow a double when exponentiated."""

RDP_ORDERS = (
    *(1 + tenths / 10 for tenths in range(1, 100)),
    *(float(order) for order in (*range(12, 64), 80, 96, 128, 192, 256, 512, 1024)),
)
"""Opacus's orders, and larger ones for an ε below about 0.5, where the best order lies beyond 63."""

GRID_ORDERS = (1.25, 1.5, 1.75, *(float(order) for order in range(2, 64)))
"""Orders for the reach of PRV's grid, where an upper bound suffices: whole orders take a tenth of the others' time."""

LARGEST_GROUP = 1000
"""Units that are protected together; a patient with more records has no budget that would last."""

_GRID_CELLS = 2**23
"""The largest grid of an integral for a group, 64 MiB of float64. A larger one is left out, which raises the bound."""

_GRID_REACH = 40.0
"""Standard deviations beyond which a Gaussian's tail is below what a double can distinguish from 0."""

_SHOWN_DECIMALS = 3


class MechanismKind(StrEnum):
    """What was invoked. Both kinds are bounded by a Poisson-subsampled Gaussian; the second up to ``approximation``."""

    POISSON_SUBSAMPLED_GAUSSIAN = "poisson_subsampled_gaussian"
    DISTRIBUTED_DISCRETE_GAUSSIAN = "distributed_discrete_gaussian"


class Accountant(StrEnum):
    """How events are composed; the names are those of ``privacy.accountant``."""

    PRV = "prv"
    RDP = "rdp"


class EpsilonAdversary(StrEnum):
    """Against whom an ε holds."""

    OUTSIDER = "outsider with the model"
    HOSPITAL = "another hospital of the run"
    SERVER = "server"
    COLLUDING_SERVER = "server with colluding hospitals"


@dataclass(frozen=True, slots=True)
class MechanismEvent:
    """One invocation of a mechanism, or ``steps`` equal ones; immutable, and all that composition needs to know.

    Args:
        kind: the mechanism.
        noise_multiplier: standard deviation of the (equivalent) Gaussian noise over the L2 sensitivity; above 0.
        sample_rate: probability with which each unit enters a Poisson batch; in (0, 1].
        steps: how many times; an empty batch is a step like any other. At least 1.
        approximation: how far, at most and per step, the logarithm of an output's probability lies from that of the
            equivalent Gaussian mechanism (:mod:`common.privacy.distributed`); 0 when it is that mechanism.
        group: how many units, each with its own coin and its own bounded vector, are protected together; 1 for what a
            mechanism is made for, see :func:`for_a_group`.

    Raises:
        PrivacyError: a value is outside its range; an event that cannot be composed is never made.
    """

    kind: MechanismKind
    noise_multiplier: float
    sample_rate: float
    steps: int
    approximation: float = 0.0
    group: int = 1

    def __post_init__(self) -> None:
        """Refuse what no accountant could bound."""
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier > 0):
            raise PrivacyError(f"the noise multiplier must be above 0 and finite, got {self.noise_multiplier!r}")
        if not 0 < self.sample_rate <= 1:
            raise PrivacyError(f"the sample rate must be above 0 and at most 1, got {self.sample_rate!r}")
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise PrivacyError(f"steps must be a whole number from 1, got {self.steps!r}")
        if not 0 <= self.approximation < 1:
            raise PrivacyError(f"the approximation must be from 0 to below 1, got {self.approximation!r}")
        if isinstance(self.group, bool) or not isinstance(self.group, int) or not 1 <= self.group <= LARGEST_GROUP:
            raise PrivacyError(f"a group must be from 1 to {LARGEST_GROUP} units, got {self.group!r}")


@dataclass(frozen=True, slots=True)
class Epsilon:
    """An ε with everything without which it means nothing: δ, unit, adversary and accountant.

    Args:
        value: an upper bound; infinite when nothing is claimed.
        delta: the probability that the bound may fail by.
        unit: what one unit of protection is.
        adversary: against whom it holds.
        accountant: what composed the events.
        colluders: how many hospitals share what they know with the server; for ``COLLUDING_SERVER``.

    >>> print(Epsilon(2.00001, 1e-4, PrivacyUnit.RECORD, Adversary.SERVER, Accountant.PRV))
    ε = 2.001 at δ = 0.0001 for each record (zero-out), against the server (PRV)
    """

    value: float
    delta: float
    unit: PrivacyUnit
    adversary: EpsilonAdversary
    accountant: Accountant
    colluders: int = 0

    def __str__(self) -> str:
        """Say the whole claim in one line, ε rounded up."""
        with_whom = f" ({self.colluders})" if self.adversary is EpsilonAdversary.COLLUDING_SERVER else ""
        article = "" if self.adversary is EpsilonAdversary.HOSPITAL else "the "
        return (
            f"ε = {rounded_up(self.value):.3f} at δ = {self.delta:g} for each {self.unit} (zero-out), "
            f"against {article}{self.adversary}{with_whom} ({self.accountant.upper()})"
        )


def rounded_up(value: float, decimals: int = _SHOWN_DECIMALS) -> float:
    """Return ``value`` rounded up, never down, to so many decimals: an ε that is shown bounds the one that holds.

    >>> rounded_up(1.0001), rounded_up(2.5)
    (1.001, 2.5)
    """
    if not math.isfinite(value):
        return value
    shown = round(value, decimals)
    return shown if shown >= value else round(shown + 10.0**-decimals, decimals)


def for_a_group(event: MechanismEvent, units: int) -> MechanismEvent:
    """Return what an event that bounds each unit by itself costs a group of ``units``; the module names the proof.

    Where every unit is in every batch, the group is one unit of that many times the norm.

    >>> once = MechanismEvent(MechanismKind.POISSON_SUBSAMPLED_GAUSSIAN, 2.0, 0.5, 3)
    >>> for_a_group(once, 10).group
    10
    >>> for_a_group(replace(once, sample_rate=1.0), 10).noise_multiplier
    0.2
    """
    grouped = replace(event, group=event.group * units)
    if event.sample_rate < 1:
        return grouped
    return replace(grouped, noise_multiplier=event.noise_multiplier / grouped.group, group=1)


def against_everyone(
    value: float, delta: float, unit: PrivacyUnit, accountant: Accountant, colluders: int
) -> tuple[Epsilon, ...]:
    """Return the claims of mode ``local``: noise is added inside the hospital, so ε is the same against everyone.

    (Averaging over hospitals hides more from whoever sees only the average; that is not claimed.) The server with
    colluding hospitals is among them where ``colluders`` is above 0.
    """
    alone = (EpsilonAdversary.OUTSIDER, EpsilonAdversary.HOSPITAL, EpsilonAdversary.SERVER)
    claims = tuple(Epsilon(value, delta, unit, adversary, accountant) for adversary in alone)
    if not colluders:
        return claims
    return (*claims, Epsilon(value, delta, unit, EpsilonAdversary.COLLUDING_SERVER, accountant, colluders))


def epsilon(events: Iterable[MechanismEvent], delta: float, accountant: Accountant = Accountant.PRV) -> float:
    """Return the ε that all ``events`` together spend at ``delta``, whatever their order and adaptively chosen or not.

    An event with an ``approximation`` a per step changes the probability of any sequence of outputs by a factor of at
    most exp(±A), A = Σ a·steps, beside a Gaussian mechanism that is (ε, δ)-private; it is (ε + 2A, δ·exp(A))-private.

    Args:
        events: any mixture of mechanisms, noise multipliers and sample rates; none cost 0.
        delta: in (0, 1).
        accountant: PRV, or RDP. Where double precision leaves PRV no answer (δ below 1e-11, or an ε in the
            hundreds) RDP's bound is returned for PRV: as valid, and larger.

    Returns:
        An upper bound on ε, at least 0.

    Raises:
        PrivacyError: δ is outside (0, 1).
    """
    return epsilon_bounds(events, delta, accountant, PRV_EPSILON_ERROR)[1]


def epsilon_bounds(
    events: Iterable[MechanismEvent], delta: float, accountant: Accountant, error: float
) -> tuple[float, float]:
    """Return what ``events`` spend at least and at most, as :func:`epsilon`, to a chosen fineness.

    Args:
        events: as for :func:`epsilon`.
        delta: in (0, 1).
        accountant: for RDP, and where PRV has no answer, the lower bound is 0.
        error: half of what the bounds may lie apart under PRV; ten times coarser is about ten times faster.

    Raises:
        PrivacyError: δ is outside (0, 1).
    """
    if not 0 < delta < 1:
        raise PrivacyError(f"δ must be between 0 and 1, got {delta!r}")
    steps: Counter[tuple[float, float, int]] = Counter()
    approximation, unsampled = 0.0, 0.0
    for event in events:
        approximation += event.approximation * event.steps
        if event.sample_rate == 1 and event.group == 1:
            inverse = 1 / event.noise_multiplier
            unsampled += event.steps * inverse * inverse
        else:
            steps[event.noise_multiplier, event.sample_rate, event.group] += event.steps
    if not steps and not unsampled:
        return 0.0, 0.0
    delta *= math.exp(-approximation)
    is_prv = Accountant(accountant) is Accountant.PRV
    bounds = _gaussian_bounds(unsampled, delta, error) if is_prv and not steps else None
    if bounds is None:
        if unsampled:  # Gaussian releases of every unit are one such release.
            steps[1 / math.sqrt(unsampled), 1.0, 1] += 1
        history = tuple(sorted((*mechanism, count) for mechanism, count in steps.items()))
        bounds = (_prv_bounds(history, delta, error) if is_prv else None) or (0.0, _rdp_epsilon(history, delta))
    lower, upper = bounds
    return lower, upper + 2 * approximation


def _gaussian_bounds(squares: float, delta: float, error: float) -> tuple[float, float] | None:
    """Return what releases without sampling spend, in closed form; None where rounding is not small beside δ.

    PRV's error is in the upper bound, although nothing is estimated here: so a figure says the same, to within a
    twentieth of that error, whichever way it was found. Opacus takes seconds to import, and this takes none of it.

    Args:
        squares: the sum of 1 / z² over the releases.
        delta: in (0, 1).
        error: that PRV is asked for.
    """
    from common.privacy.gaussian import gaussian_epsilon  # That module knows this one's accountants.

    if delta < PRV_SMALLEST_DELTA or squares > PRV_FURTHEST_LOSS:  # ε is above μ² / 2 there.
        return None
    exact = gaussian_epsilon(math.sqrt(squares), delta * (1 - PRV_DELTA_ERROR))
    return (exact, exact + error) if exact + 3 <= PRV_FURTHEST_LOSS else None


History = tuple[tuple[float, float, int, int], ...]
"""(noise multiplier, sample rate, group, steps) of each distinct mechanism, sorted: equal sums meet in the cache."""


@lru_cache(maxsize=4096)
def _rdp_epsilon(history: History, delta: float) -> float:
    """Convert at the best of :data:`RDP_ORDERS`; an order that cannot be the best is not computed.

    Rényi divergence never falls as its order grows (van Erven and Harremoës 2014, theorem 3). So what a smaller order
    costs bounds a larger one from below. Fractional orders take ten times as long as whole ones, and come last.
    """
    whole_first = sorted(range(len(RDP_ORDERS)), key=lambda place: (not RDP_ORDERS[place].is_integer(), place))
    less, more = _conversion(RDP_ORDERS, delta)
    found = np.full(len(RDP_ORDERS), np.inf)
    best = math.inf
    for place in whole_first:
        smaller = found[:place][np.isfinite(found[:place])]
        at_least = smaller[-1] if len(smaller) else 0.0
        if at_least - less[place] + more[place] >= best:
            continue
        order = RDP_ORDERS[place]
        found[place] = sum(steps * _rdp_at(noise, rate, order, group) for noise, rate, group, steps in history)
        best = min(best, float(found[place] - less[place] + more[place]))
    return max(0.0, best)


@lru_cache(maxsize=4096)
def _prv_bounds(history: History, delta: float, error: float) -> tuple[float, float] | None:
    """Compose with Opacus's parts; only the grid is laid out here, with RDP curves that are computed once."""
    opacus_prv = accountant_part("prv")
    from scipy.integrate import IntegrationWarning

    domain = _prv_domain(history, delta, error)
    if domain is None:
        return None
    try:
        # A sample rate of 1 takes the logarithm of 0 for the lower end of the support, which then is rightly -inf.
        with np.errstate(divide="ignore"), warnings.catch_warnings():
            warnings.simplefilter("error", IntegrationWarning)
            discrete = [
                opacus_prv.discretize(
                    opacus_prv.TruncatedPrivacyRandomVariable(
                        opacus_prv.PoissonSubsampledGaussianPRV(rate, noise), domain.t_min, domain.t_max
                    ),
                    domain,
                )
                for noise, rate, _, _ in history
            ]
            composed = opacus_prv.compose_heterogeneous(discrete, [steps for _, _, _, steps in history])
            lower, _, upper = composed.compute_epsilon(delta, PRV_DELTA_ERROR * delta, error)
    except (RuntimeError, ValueError, IntegrationWarning):
        # Opacus's own checks (the grid is too coarse for the mechanism, or rounding would be large beside δ), and an
        # integral that scipy does not vouch for: a bound is claimed only where every part of it was computed.
        return None
    return (max(0.0, float(lower)), max(0.0, float(upper))) if math.isfinite(upper) else None


def _prv_domain(history: History, delta: float, error: float) -> "Domain | None":
    """Lay out the grid as Opacus does (Gopi et al. 2021, remark 5.6), or return None where it would be of no use.

    It is a little wider, so that its length has small prime factors: a Fourier transform is then up to 10 times faster.
    """
    from scipy.fft import next_fast_len

    if delta < PRV_SMALLEST_DELTA or any(group > 1 for _, _, group, _ in history):
        return None
    delta_error = PRV_DELTA_ERROR * delta
    compositions = sum(steps for _, _, _, steps in history)
    curves = [_rdp_curve(noise, rate, GRID_ORDERS) for noise, rate, _, _ in history]
    total = sum((steps * curve for (_, _, _, steps), curve in zip(history, curves, strict=True)), np.zeros(1))
    reach = max(
        error,
        _from_rdp(total, GRID_ORDERS, delta_error / 4),
        *(_from_rdp(curve, GRID_ORDERS, delta_error / (8 * compositions)) for curve in curves),
    )
    mesh = error / math.sqrt(compositions * math.log(12 / delta_error) / 2)
    if not reach + 3 <= PRV_FURTHEST_LOSS or 2 * (reach + 3) / mesh > PRV_LARGEST_DOMAIN:
        return None
    half = next_fast_len(math.ceil((reach + 3) / mesh) + 1, real=True)
    # As Domain.create_aligned: 0 is a grid point, and the even number of points leaves one more above it than below.
    domain: Domain = accountant_part("prv").Domain(t_min=-(half - 1) * mesh, t_max=half * mesh, size=2 * half)
    return domain


@lru_cache(maxsize=1024)
def _rdp_curve(
    noise_multiplier: float, sample_rate: float, orders: tuple[float, ...], group: int = 1
) -> npt.NDArray[np.float64]:
    """Return the Rényi divergence of one step at each order, infinite where it can't be computed."""
    curve = np.array([_rdp_at(noise_multiplier, sample_rate, order, group) for order in orders])
    curve.flags.writeable = False
    return curve


@lru_cache(maxsize=2**16)
def _rdp_at(noise_multiplier: float, sample_rate: float, order: float, group: int) -> float:
    if group > 1:
        return _group_divergence(noise_multiplier, sample_rate, group, order)
    try:
        divergence = accountant_part("rdp").compute_rdp(
            q=sample_rate, noise_multiplier=noise_multiplier, steps=1, orders=order
        )
    except (ValueError, OverflowError):
        # The alternating series of a fractional order cancels below what a double can hold: leave the order out.
        return math.inf
    return float(divergence)


def _group_divergence(noise_multiplier: float, sample_rate: float, group: int, order: float) -> float:
    """Return the larger of the Rényi divergences between P* and Q* of the module's head, infinite where it is too much.

    The trapezoid rule on a line is exact up to rounding for a Gaussian times a function without poles nearby.
    """
    furthest = order * group + _GRID_REACH * noise_multiplier
    points = 2 * math.ceil(furthest / (min(noise_multiplier, noise_multiplier**2) / 8)) + 1
    if points * (group + 1) > _GRID_CELLS:
        return math.inf
    x, step = np.linspace(-furthest, furthest, points, retstep=True)
    shifts = np.arange(group + 1.0)
    weights = np.array([_log_binomial(group, sample_rate, chosen) for chosen in range(group + 1)])
    exponents = (2 * np.multiply.outer(shifts, x) - shifts[:, None] ** 2) / (2 * noise_multiplier**2)
    ratio = np.logaddexp.reduce(weights[:, None] + exponents, axis=0)
    density = -0.5 * (x / noise_multiplier) ** 2 - math.log(noise_multiplier * math.sqrt(2 * math.pi)) + math.log(step)
    removed, added = (np.logaddexp.reduce(density + power * ratio) for power in (order, 1 - order))
    return max(0.0, float(removed), float(added)) / (order - 1)


def _log_binomial(trials: int, rate: float, chosen: int) -> float:
    """Return the logarithm of the probability that ``chosen`` of the trials succeed; the rate is below 1."""
    ways = math.lgamma(trials + 1) - math.lgamma(chosen + 1) - math.lgamma(trials - chosen + 1)
    return ways + chosen * math.log(rate) + (trials - chosen) * math.log1p(-rate)


def _from_rdp(curve: npt.NDArray[np.float64], orders: tuple[float, ...], delta: float) -> float:
    """Convert to ε at the best order."""
    less, more = _conversion(orders, delta)
    return max(0.0, float(np.nanmin(curve - less + more)))


def _conversion(orders: tuple[float, ...], delta: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return, for each order, what is taken from its divergence and what is added, to have an ε.

    Canonne, Kamath and Steinke 2020, proposition 12; Balle et al. 2020.
    """
    alphas = np.asarray(orders)
    return (math.log(delta) + np.log(alphas)) / (alphas - 1), np.log1p(-1 / alphas)
