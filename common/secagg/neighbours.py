"""Who masks for whom: everybody for everybody, or in a large round a random k-regular graph (Bell et al. 2020).

Up to ``GraphParameters.complete_up_to`` hospitals the graph is complete and the protocol is Bonawitz et al. 2017 to the
letter. Above, the hospitals stand on a circle in an order that the hash of everyone's fresh keys decides, and each is a
neighbour of the k/2 next on either side (a Harary graph). It deals its shares to these alone and masks with these
alone, so its cost grows with k, which grows with the logarithm of the number of hospitals.

:func:`degree` computes k and the threshold t of the shares, in exact integer arithmetic, so that every party gets the
same. It demands the following of a round of n hospitals, of which C collude with the server. C counts the colluders on
the whole roster, because the server chooses who of it is in the round; they are fixed before the order is known.

Against a semi-honest server (Bell et al. 2020, section 3, the good graphs), with half of the probability each:

1. nobody has t colluding neighbours, who could open it by themselves (and t > k/2, as in a complete round);
2. the honest survivors are connected: to cut the circle takes k/2 colluding or dropped hospitals in a row, at two
   places; we do not allow even one.

Against an active server, who chooses whom to declare dropped with the graph before its eyes, 2 cannot be had. Instead,
let c be the most colluders in any k/2 places in a row, and t ≥ k/2 + c + 2. Then no part of the honest survivors has a
sum that the server can unmask (``docs/proofs/sparse-graph.md``), and t exceeds the 2c colluders that any hospital can
have as neighbours, which is 1.

Both hold but with probability 2^-security_bits. An active server can also try many sets of keys and hospitals and keep
the order it likes best; ``grinding_bits`` bounds the logarithm of its tries, and is added to ``security_bits``.

A round goes through when all have t neighbours left, which fails with probability 2^-correctness_bits while at most the
stated part of the hospitals drops out, in places that have nothing to do with the order.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from math import comb

from common.secagg.binding import bound_hash, directory_hash
from common.secagg.messages import KeyDirectory
from common.secagg.parameters import Adversary, GraphParameters, RunParameters


@dataclass(frozen=True)
class Degree:
    """How many neighbours each hospital has, and how many of their shares rebuild a secret."""

    neighbours: int
    """k, even."""
    share_threshold: int
    """t"""


@dataclass(frozen=True)
class Neighbourhoods:
    """The graph of a round: an edge for each pair that shares a mask and holds each other's shares."""

    share_threshold: int
    """How many shares of one hospital's secret rebuild it."""
    by_hospital: Mapping[str, tuple[str, ...]] = field(repr=False)
    """The neighbours of each hospital, sorted, without itself."""
    points: Mapping[str, int] = field(repr=False)
    """Where the shares meant for a hospital lie on every dealer's polynomial."""


def neighbourhoods(run: RunParameters, directory: KeyDirectory) -> Neighbourhoods:
    """Return the graph of the round that ``directory`` opens; every party computes the same."""
    hospitals = tuple(keys.hospital for keys in directory.keys)
    sparse = degree(len(hospitals), run.members, run.adversary, run.graph)
    if sparse is None:
        return _complete(hospitals, directory.threshold)
    return _circle(hospitals, sparse, directory_hash(directory))


@lru_cache(maxsize=4)
def _complete(hospitals: tuple[str, ...], threshold: int) -> Neighbourhoods:
    near = {hospital: tuple(other for other in hospitals if other != hospital) for hospital in hospitals}
    return Neighbourhoods(threshold, near, _points(hospitals))


@lru_cache(maxsize=4)
def _circle(hospitals: tuple[str, ...], sparse: Degree, seed: bytes) -> Neighbourhoods:
    """Put the hospitals on a circle in the order that ``seed`` decides, and join each to the nearest k."""
    order = sorted(hospitals, key=lambda hospital: bound_hash("circle", seed, hospital.encode()))
    reach = sparse.neighbours // 2
    steps = [step for step in range(-reach, reach + 1) if step != 0]
    near = {
        hospital: tuple(sorted(order[(place + step) % len(order)] for step in steps))
        for place, hospital in enumerate(order)
    }
    return Neighbourhoods(sparse.share_threshold, near, _points(hospitals))


def _points(hospitals: tuple[str, ...]) -> dict[str, int]:
    return {hospital: point for point, hospital in enumerate(hospitals, start=1)}


@cache
def degree(hospitals: int, roster: int, adversary: Adversary, graph: GraphParameters) -> Degree | None:
    """Return the smallest k, and the t that goes with it, that give what this module's docstring demands.

    Args:
        hospitals: n, how many advertised keys.
        roster: how many members could have.
        adversary: which server is to be withstood.
        graph: the stated security and dropout parameters.

    Returns:
        None when everyone is to be everyone's neighbour: in a small round, or when no k below n - 1 will do.

    >>> degree(64, 64, Adversary.ACTIVE, GraphParameters()) is None
    True
    >>> degree(1024, 1024, Adversary.SEMI_HONEST, GraphParameters())
    Degree(neighbours=52, share_threshold=28)
    """
    if hospitals <= graph.complete_up_to:
        return None
    colluders = min(hospitals, graph.colluders(roster))
    for neighbours in range(2, hospitals - 1, 2):
        threshold = private_threshold(hospitals, colluders, neighbours, adversary, graph)
        if threshold is not None and enough_stay(hospitals, neighbours, threshold, graph):
            return Degree(neighbours, threshold)
    return None


def private_threshold(
    hospitals: int, colluders: int, neighbours: int, adversary: Adversary, graph: GraphParameters
) -> int | None:
    """Return the smallest t that makes a graph of this degree private, or None when none does."""
    reach = neighbours // 2
    if adversary is Adversary.ACTIVE:
        bits = graph.security_bits + graph.grinding_bits
        in_a_row = _fewest_exceeded_rarely(hospitals, colluders, reach, bits)
        threshold = reach + in_a_row + 2
        return threshold if threshold <= neighbours else None
    bits = graph.security_bits + 1  # Two things can go wrong; together they do with probability 2^-security_bits.
    lost = min(hospitals, colluders + graph.dropouts(hospitals))
    gap = hospitals * comb(lost, reach)
    if gap << bits > comb(hospitals, reach):
        return None
    most = _fewest_exceeded_rarely(hospitals, colluders, neighbours, bits)
    return max(most, reach) + 1


def enough_stay(hospitals: int, neighbours: int, threshold: int, graph: GraphParameters) -> bool:
    """Return whether all but 2^-correctness_bits of rounds leave everyone ``threshold`` neighbours."""
    others, dropped = hospitals - 1, graph.dropouts(hospitals)
    too_many = sum(
        comb(dropped, gone) * comb(others - dropped, neighbours - gone)
        for gone in range(neighbours - threshold + 1, neighbours + 1)
    )
    return hospitals * too_many << graph.correctness_bits <= comb(others, neighbours)


def _fewest_exceeded_rarely(population: int, marked: int, drawn: int, bits: int) -> int:
    """Return the smallest x that all of ``population`` draws of ``drawn`` exceed in marks but once in 2^bits.

    The tail of the hypergeometric distribution, exactly, times a union bound over the draws.
    """
    allowed = comb(population, drawn)
    tail = 0
    for count in range(min(marked, drawn), 0, -1):
        tail += comb(marked, count) * comb(population - marked, drawn - count)
        if population * tail << bits > allowed:
            return count
    return 0
