import random
from dataclasses import replace
from fractions import Fraction
from math import comb

import numpy as np
import pytest

from common.secagg.messages import KeyDirectory
from common.secagg.neighbours import Degree, Neighbourhoods, degree, enough_stay, neighbourhoods, private_threshold
from common.secagg.parameters import Adversary, GraphParameters
from tests.support.parties import Consortium

STATED = GraphParameters()
WEAK = GraphParameters(complete_up_to=5, security_bits=3, grinding_bits=0, correctness_bits=3)
"""So weak that its failures show up in a simulation."""


def more_than(population: int, marked: int, drawn: int, most: int) -> Fraction:
    """Return the probability that a draw without replacement has more than ``most`` marked, term by term."""
    return Fraction(
        sum(comb(marked, x) * comb(population - marked, drawn - x) for x in range(most + 1, drawn + 1)),
        comb(population, drawn),
    )


@pytest.mark.parametrize("hospitals", [3, 4, 50, 64])
@pytest.mark.parametrize("adversary", list(Adversary))
def test_up_to_64_hospitals_everybody_masks_with_everybody(hospitals: int, adversary: Adversary) -> None:
    assert degree(hospitals, hospitals, adversary, STATED) is None


@pytest.mark.parametrize("adversary", list(Adversary))
def test_a_graph_that_would_need_everybody_is_complete(adversary: Adversary) -> None:
    assert degree(65, 65, adversary, replace(STATED, colluding=0.45, dropping_out=0.45)) is None


@pytest.mark.parametrize("hospitals", [65, 100, 256, 1024, 4096])
@pytest.mark.parametrize("adversary", list(Adversary))
def test_the_degree_gives_the_stated_probabilities(hospitals: int, adversary: Adversary) -> None:
    sparse = degree(hospitals, hospitals, adversary, STATED)
    assert sparse is not None
    k, t = sparse.neighbours, sparse.share_threshold
    colluders, dropped = hospitals // 10, hospitals // 10
    bits = 40 + (64 if adversary is Adversary.ACTIVE else 0)
    assert hospitals * more_than(hospitals, colluders, k, t - 1) <= Fraction(1, 2**bits)
    assert hospitals * more_than(hospitals - 1, dropped, k, k - t) <= Fraction(1, 2**30)
    if adversary is Adversary.ACTIVE:
        assert hospitals * more_than(hospitals, colluders, k // 2, t - k // 2 - 2) <= Fraction(1, 2**bits)
    else:
        gap = more_than(hospitals, colluders + dropped, k // 2, k // 2 - 1)
        assert hospitals * (gap + more_than(hospitals, colluders, k, t - 1)) <= Fraction(1, 2**bits)
        assert t > k // 2


@pytest.mark.parametrize(
    ("hospitals", "colluding", "dropping_out", "adversary", "expected"),
    [
        (1000, 0.33, 0.33, Adversary.SEMI_HONEST, Degree(286, 150)),
        (1000, 0.33, 0.05, Adversary.SEMI_HONEST, Degree(78, 60)),
        (1000, 0.05, 0.33, Adversary.SEMI_HONEST, Degree(72, 24)),
        (1000, 0.05, 0.33, Adversary.ACTIVE, Degree(398, 223)),
        (1000, 0.33, 0.05, Adversary.ACTIVE, Degree(132, 109)),
    ],
)
def test_the_degree_is_that_of_the_papers_authors_or_stricter(
    hospitals: int, colluding: float, dropping_out: float, adversary: Adversary, expected: Degree
) -> None:
    """Expected values of ``graph_parameter_finder_test.cc`` in google/federated-compute: 40 and 20 bits.

    They are equal where the threshold decides; we are stricter about gaps in the circle, and in the active setting,
    where that code withstands a server that is honest until everyone has keys.
    """
    stated = GraphParameters(colluding=colluding, dropping_out=dropping_out, grinding_bits=0, correctness_bits=20)
    found = degree(hospitals, hospitals, adversary, stated)
    assert found is not None
    assert found.neighbours >= expected.neighbours
    assert found.share_threshold >= expected.share_threshold
    if adversary is Adversary.SEMI_HONEST and colluding > 0.3:
        assert found == expected


@pytest.mark.parametrize("adversary", list(Adversary))
def test_no_smaller_degree_would_do(adversary: Adversary) -> None:
    sparse = degree(1024, 1024, adversary, STATED)
    assert sparse is not None
    for smaller in range(2, sparse.neighbours, 2):
        threshold = private_threshold(1024, 102, smaller, adversary, STATED)
        assert threshold is None or not enough_stay(1024, smaller, threshold, STATED)


def test_without_colluders_a_majority_of_neighbours_suffices() -> None:
    assert private_threshold(1024, 0, 40, Adversary.SEMI_HONEST, STATED) == 21
    assert private_threshold(1024, 0, 40, Adversary.ACTIVE, STATED) == 22


def test_the_degree_grows_with_the_logarithm_of_the_number_of_hospitals() -> None:
    degrees = [degree(hospitals, hospitals, Adversary.SEMI_HONEST, STATED) for hospitals in (256, 1024, 4096)]
    assert degrees == [Degree(40, 21), Degree(52, 28), Degree(58, 31)]


@pytest.mark.parametrize("adversary", list(Adversary))
@pytest.mark.parametrize("stricter", ["security_bits", "correctness_bits"])
def test_more_security_never_needs_fewer_neighbours(adversary: Adversary, stricter: str) -> None:
    more = degree(1024, 1024, adversary, replace(STATED, **{stricter: 50}))
    less = degree(1024, 1024, adversary, STATED)
    assert more is not None
    assert less is not None
    assert more.neighbours >= less.neighbours


@pytest.mark.parametrize("adversary", list(Adversary))
def test_a_round_of_part_of_the_roster_may_hold_all_of_its_colluders(adversary: Adversary) -> None:
    whole, part = degree(300, 300, adversary, STATED), degree(300, 600, adversary, STATED)
    assert whole is not None
    assert part is not None
    assert part.neighbours > whole.neighbours
    assert degree(100, 2000, adversary, STATED) is None, "everyone could collude but for a few; nothing sparse will do"


@pytest.fixture(scope="module")
def sparse_round() -> tuple[KeyDirectory, Neighbourhoods]:
    consortium = Consortium(40, graph=WEAK, adversary=Adversary.SEMI_HONEST)
    directory = consortium.directory()
    return directory, neighbourhoods(consortium.run, directory)


def test_the_graph_is_regular_and_symmetric(sparse_round: tuple[KeyDirectory, Neighbourhoods]) -> None:
    _, graph = sparse_round
    sparse = degree(40, 40, Adversary.SEMI_HONEST, WEAK)
    assert sparse is not None
    assert graph.share_threshold == sparse.share_threshold
    for hospital, near in graph.by_hospital.items():
        assert len(near) == len(set(near)) == sparse.neighbours < 39
        assert list(near) == sorted(near)
        assert hospital not in near
        assert all(hospital in graph.by_hospital[other] for other in near)
    assert sorted(graph.points.values()) == list(range(1, 41))


def test_the_circle_is_another_with_other_keys(sparse_round: tuple[KeyDirectory, Neighbourhoods]) -> None:
    directory, graph = sparse_round
    consortium = Consortium(40, graph=WEAK, adversary=Adversary.SEMI_HONEST)
    assert neighbourhoods(consortium.run, directory) == graph
    other = consortium.directory(round_number=2)
    assert neighbourhoods(consortium.run, other).by_hospital != graph.by_hospital


def test_a_complete_graph_has_the_directorys_threshold() -> None:
    consortium = Consortium(5)
    directory = consortium.directory()
    graph = neighbourhoods(consortium.run, directory)
    assert graph.share_threshold == directory.threshold == 4
    assert graph.by_hospital["hospital-3"] == ("hospital-1", "hospital-2", "hospital-4", "hospital-5")


@pytest.mark.long
@pytest.mark.parametrize("adversary", list(Adversary))
def test_failures_are_no_more_frequent_than_stated(adversary: Adversary) -> None:
    """Put colluders and dropped at random on the circle, often, and see how often the conditions break."""
    hospitals, trials = 60, 1000
    graph = replace(WEAK, colluding=0.15, dropping_out=0.15)
    sparse = degree(hospitals, hospitals, adversary, graph)
    assert sparse is not None
    source = np.random.default_rng(1)
    colluders, dropped = graph.colluders(hospitals), graph.dropouts(hospitals)
    opened = stuck = 0
    for _ in range(trials):
        circle = np.zeros(hospitals, np.int64)
        circle[:colluders], circle[colluders : colluders + dropped] = 1, 2
        source.shuffle(circle)
        opened += _server_wins(circle, sparse, adversary)
        alive = _neighbours_sum(circle != 2, sparse.neighbours)
        stuck += bool((alive < sparse.share_threshold).any())
    assert opened / trials <= 2.0**-graph.security_bits
    assert stuck / trials <= 2.0**-graph.correctness_bits


def test_an_active_server_that_chooses_the_dropped_opens_no_part() -> None:
    """Whatever arc of the circle it cuts out, the hospital at the end keeps its mask."""
    hospitals, graph = 128, STATED
    sparse = degree(hospitals, hospitals, Adversary.ACTIVE, graph)
    assert sparse is not None
    k, t = sparse.neighbours, sparse.share_threshold
    source = random.Random(2)  # noqa: S311 - repeatable
    for _ in range(300):
        colluding = set(source.sample(range(hospitals), graph.colluders(hospitals)))
        first, length = source.randrange(hospitals), source.randrange(1, hospitals - k)
        arc = {(first + step) % hospitals for step in range(length)} - colluding
        if not arc:
            continue
        end = max(arc, key=lambda place: (place - first) % hospitals)
        near = {(end + step) % hospitals for step in range(-(k // 2), k // 2 + 1)}
        # Those of its neighbours that would reveal their shares: the rest of the arc, itself, and colluders.
        assert len(near & (arc | colluding)) < t


def _neighbours_sum(marks: np.ndarray, k: int) -> np.ndarray:
    return np.asarray(sum(np.roll(marks, step).astype(int) for step in range(-(k // 2), k // 2 + 1) if step != 0))


def _server_wins(circle: np.ndarray, sparse: Degree, adversary: Adversary) -> bool:
    honest = circle != 1
    colluding_near = _neighbours_sum(~honest, sparse.neighbours)
    if (colluding_near[honest] >= sparse.share_threshold).any():
        return True
    reach = sparse.neighbours // 2
    after = sum(np.roll(~honest, -step).astype(int) for step in range(1, reach + 1))
    if adversary is Adversary.ACTIVE:
        return bool((reach + 1 + after >= sparse.share_threshold).any())
    lost = sum(np.roll(circle != 0, -step).astype(int) for step in range(1, reach + 1))
    return bool((np.asarray(lost) == reach).any())
