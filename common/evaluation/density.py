"""A smooth density of scores for each of two groups, from the few noisy counts of a tree.

A normal is fitted to the halves of all nodes; it decides nothing, but is worth ``PRIOR_UNITS`` units at every node and
shapes the density within a leaf. Then the tree is walked down, and each node's units are split by the mean of what its
noisy half and the fit leave probable (a beta prior with a Gaussian likelihood). So counts are never negative, leaves
add up to their nodes, and the ROC curve is monotone, without any step that makes them so.

All functions work on many draws at once, for a parametric bootstrap repeats them. Shapes: B draws, K = 2^D - 1 nodes
level by level from the root, L = 2^D leaves.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.evaluation.layout import edge_of

Floats = NDArray[np.float64]

PRIOR_UNITS = 10
MISFIT = 0.01
"""The misfit that is expected of a normal, as a share of the group's units, in addition to the noise of a half."""

FITTED_MEAN, FITTED_LOG = 2.0, 0.4
"""How far a fit may lie from the one before it: a mean in its deviations, and the logarithm of a deviation."""

FIRST_MEAN, FIRST_LOG = 8.0, 0.7
"""How far the first fit of a run may lie, the mean on the scale of log-odds."""

WIDEST_LOG = 1.2
"""The largest change of a fit's deviation, in the logarithm."""

_STEPS = 10
_POINTS = 121
_REACH = 6.0
"""Points at which a split is integrated, and within how many deviations of the count."""

_CELLS = 160
_WIDTH = 5.0
"""Cells of the density, and over how many deviations of the fits on either side."""

_LEAST_SHARE = 0.002
_FLOOR = 1e-9
_ROOT_TWO_PI = math.sqrt(2 * math.pi)


@dataclass(frozen=True)
class Group:
    """The scores of one group of units, in B draws: fitted normals and units in each leaf.

    Attributes:
        means: (B,) of the normals.
        deviations: (B,) of them.
        leaves: (B, L) units.
    """

    means: Floats
    deviations: Floats
    leaves: Floats


@dataclass(frozen=True)
class Prior:
    """The normal from which a fit starts, and how far it may go."""

    mean: float
    deviation: float
    mean_reach: float
    log_reach: float


def decode_group(halves: Floats, noise: Floats, units: Floats, edges: Floats, prior: Prior) -> Group:
    """Return the density of one group.

    Args:
        halves: (B, K) at each node, half of the units right of its edge less those left of it, with noise.
        noise: (K,) standard deviation of the noise in ``halves``.
        units: (B,) in the group, above 0.
        edges: (K,) ascending.
        prior: from the release before.
    """
    noise, units = np.maximum(noise, _FLOOR**0.5), np.maximum(units, _FLOOR)
    means, deviations = _fit(halves, noise, units, edges, prior)
    return Group(means, deviations, _leaves(halves, noise, units, edges, means, deviations))


def halves_of(leaves: Floats) -> Floats:
    """Return the halves, (B, K), that leaves (B, L) have without noise."""
    depth = int(leaves.shape[1]).bit_length() - 1
    parts = []
    for level in range(depth):
        split = leaves.reshape(len(leaves), 2**level, 2, -1).sum(axis=3)
        parts.append((split[:, :, 1] - split[:, :, 0]) / 2)
    return np.concatenate(parts, axis=1)


def boundaries(edges: Floats, others: Group, own: Group) -> Floats:
    """Return ascending ends of cells that hold both groups' first draw; every edge is one of them."""
    low = min(float(group.means[0] - _WIDTH * group.deviations[0]) for group in (others, own))
    high = max(float(group.means[0] + _WIDTH * group.deviations[0]) for group in (others, own))
    low, high = min(low, float(edges[0]) - 1), max(high, float(edges[-1]) + 1)
    return np.unique(np.concatenate([np.linspace(low, high, _CELLS + 1), edges]))


def cells_of(group: Group, edges: Floats, ends: Floats) -> Floats:
    """Return units in each cell, (B, cells): the fitted normal, scaled within each leaf to the leaf's units."""
    inner = _normal((ends[None, 1:-1] - group.means[:, None]) / group.deviations[:, None])
    mass = np.diff(inner, axis=1, prepend=0.0, append=1.0) + _FLOOR
    starts = np.concatenate([[0], np.searchsorted(ends, edges)])
    of_leaf = np.add.reduceat(mass, starts, axis=1)
    sizes = np.diff(np.concatenate([starts, [mass.shape[1]]]))
    return mass * np.repeat(group.leaves / of_leaf, sizes, axis=1)


def auc_of(others: Floats, own: Floats) -> Floats:
    """Return the area under the ROC curve of cells, (B,): a pair within a cell counts one half."""
    below = np.cumsum(others, axis=1) - others / 2
    area: Floats = (own * below).sum(axis=1) / (own.sum(axis=1) * others.sum(axis=1))
    return area


def mixture_quantiles(levels: Floats, others: tuple[float, float], own: tuple[float, float]) -> Floats:
    """Return quantiles of the half-and-half mixture of two normals, by bisection."""
    reach = 12.0
    low = np.full(len(levels), min(mean - reach * deviation for mean, deviation in (others, own)))
    high = np.full(len(levels), max(mean + reach * deviation for mean, deviation in (others, own)))
    for _ in range(80):
        middle = (low + high) / 2
        beyond = mixture_share(middle, others, own) > levels
        low, high = np.where(beyond, low, middle), np.where(beyond, middle, high)
    quantiles: Floats = (low + high) / 2
    return quantiles


def mixture_share(x: Floats, others: tuple[float, float], own: tuple[float, float]) -> Floats:
    """Return how much of the half-and-half mixture of two normals lies below ``x``."""
    share: Floats = sum((_normal((x - mean) / deviation) for mean, deviation in (others, own)), np.zeros_like(x)) / 2
    return share


def _nodes(edges: Floats) -> tuple[Floats, Floats, Floats]:
    """Return for each node the lower end of its range, its edge and the upper end, each (K,)."""
    depth = (len(edges) + 1).bit_length() - 1
    padded = np.concatenate([[-np.inf], edges, [np.inf]])
    rows = [
        (padded[place << (depth - level)], edges[edge_of(depth, level, place)], padded[(place + 1) << (depth - level)])
        for level in range(depth)
        for place in range(2**level)
    ]
    low, middle, high = np.array(rows).T
    return low, middle, high


def _normal(x: Floats) -> Floats:
    """Return Φ; scipy is imported by the first use, because hospitals never need it."""
    from scipy.special import ndtr

    below: Floats = ndtr(x)
    return below


def _fit(halves: Floats, noise: Floats, units: Floats, edges: Floats, prior: Prior) -> tuple[Floats, Floats]:
    """Fit a normal to each draw's halves by damped Gauss-Newton steps; returns means and deviations, each (B,)."""
    ends = np.stack(_nodes(edges))
    signs = np.array([0.5, -1.0, 0.5])[:, None]
    weight = 1 / (noise[None] ** 2 + (MISFIT * units[:, None]) ** 2)
    means = np.full(len(halves), prior.mean)
    logs = np.zeros(len(halves))
    for _ in range(_STEPS):
        deviations = prior.deviation * np.exp(logs)
        z = (ends[None] - means[:, None, None]) / deviations[:, None, None]
        peak = np.exp(-np.minimum(z**2, 1e3) / 2) / _ROOT_TWO_PI
        slope = np.where(np.isfinite(z), np.clip(z, -1e3, 1e3), 0.0) * peak
        expected = (signs * _normal(z)).sum(axis=1)
        by_mean = -units[:, None] * (signs * peak).sum(axis=1) / deviations[:, None]
        by_log = -units[:, None] * (signs * slope).sum(axis=1)
        missing = halves - units[:, None] * expected
        # Normal equations of two unknowns, the priors among them.
        mean_weight, log_weight = prior.mean_reach**-2, prior.log_reach**-2
        a = (weight * by_mean**2).sum(axis=1) + mean_weight
        b = (weight * by_mean * by_log).sum(axis=1)
        c = (weight * by_log**2).sum(axis=1) + log_weight
        right_mean = (weight * by_mean * missing).sum(axis=1) - (means - prior.mean) * mean_weight
        right_log = (weight * by_log * missing).sum(axis=1) - logs * log_weight
        determinant = a * c - b**2
        means = means + np.clip((c * right_mean - b * right_log) / determinant, -prior.deviation, prior.deviation)
        logs = np.clip(
            logs + np.clip((a * right_log - b * right_mean) / determinant, -0.3, 0.3), -WIDEST_LOG, WIDEST_LOG
        )
    return means, prior.deviation * np.exp(logs)


def _leaves(halves: Floats, noise: Floats, units: Floats, edges: Floats, means: Floats, deviations: Floats) -> Floats:
    """Walk the tree down and return units in each leaf, (B, L)."""
    low, middle, high = (_normal((ends[None] - means[:, None]) / deviations[:, None]) for ends in _nodes(edges))
    share = np.clip((high - middle) / np.maximum(high - low, _FLOOR), _LEAST_SHARE, 1 - _LEAST_SHARE)
    counts = units[:, None]
    depth = (len(edges) + 1).bit_length() - 1
    for level in range(depth):
        nodes = slice(2**level - 1, 2 ** (level + 1) - 1)
        right = _split(halves[:, nodes], noise[nodes], counts, share[:, nodes]) * counts
        counts = np.stack([counts - right, right], axis=2).reshape(len(halves), -1)
    return counts


def _split(halves: Floats, noise: Floats, counts: Floats, share: Floats) -> Floats:
    """Return the expected right-hand share of each node: beta prior around the fit, Gaussian likelihood of the half."""
    counts = np.maximum(counts, _FLOOR)
    centre = halves / counts + 0.5
    reach = _REACH * noise / counts
    low, high = np.clip(centre - reach, 0, 1), np.clip(centre + reach, 0, 1)
    nowhere = high - low < _FLOOR
    low, high = np.where(nowhere, 0.0, low), np.where(nowhere, 1.0, high)
    steps = (np.arange(_POINTS) + 0.5) / _POINTS
    p = low[..., None] + (high - low)[..., None] * steps
    log = (
        (PRIOR_UNITS * share - 1)[..., None] * np.log(p)
        + (PRIOR_UNITS * (1 - share) - 1)[..., None] * np.log1p(-p)
        - ((halves[..., None] - counts[..., None] * (p - 0.5)) / noise[:, None]) ** 2 / 2
    )
    density = np.exp(log - log.max(axis=2, keepdims=True))
    mean: Floats = (density * p).sum(axis=2) / density.sum(axis=2)
    return mean
