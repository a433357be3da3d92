"""The same promise in a sparse round, where each hospital masks with, and deals to, its neighbours alone.

The graph is that of ``common/secagg/neighbours.py``, a circle on which everybody is joined to the nearest k. Its real
degrees begin above 64 hospitals, too many to try every set of vectors. Here 11 hospitals stand on the circle with k = 8
and one colludes, so that t = 7 is the smallest threshold that the proof allows: t ≥ k/2 + c + 2 with c = 1
(``docs/proofs/sparse-graph.md``). The one attack that needs more hospitals than that stands in
``test_lies_about_full_cohorts.py``, with 96.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from common.secagg import neighbours
from common.secagg.neighbours import Degree
from tests.support.defects import any_share, request_unbound
from tests.support.lying_server import Program, PromiseBrokenError, honest_round, play, quick_hospitals, random_program
from tests.support.lying_server_programs import MEASURE, TEST, described

HOSPITALS = 11
EVERYONE = tuple(range(1, HOSPITALS + 1))
SOUND = Degree(neighbours=8, share_threshold=7)
FAST, SLOW = 8, 600


@contextmanager
def sparse(degree: Degree = SOUND) -> Iterator[None]:
    """Put rounds of more than k + 1 hospitals on a circle of this degree."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "degree", lambda present, *_: degree if present > degree.neighbours + 1 else None)
        yield


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    with quick_hospitals(), sparse():
        yield


def _play_all(seeds: range) -> tuple[int, Counter[str]]:
    sums, replies = 0, Counter[str]()
    for seed in seeds:
        try:
            outcome = play(random_program(seed, HOSPITALS), seed)
        except AssertionError as error:
            raise type(error)(f"program {seed}: {error}") from error
        sums += len(outcome.sums)
        for found in outcome.server.replies:
            replies.update(found.values())
    return sums, replies


def test_no_random_server_breaks_the_promise() -> None:
    sums, replies = _play_all(range(FAST))
    assert sums >= FAST // 4
    assert replies["unmasked"] >= FAST // 2
    assert len(replies) >= 8, replies


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_random_server_of_hundreds_breaks_the_promise() -> None:
    sums, _ = _play_all(range(FAST, FAST + SLOW))
    assert sums >= SLOW // 2


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("colluders", [(), (HOSPITALS,)])
def test_an_honest_round_gives_one_sum_over_everybody_who_is_honest(
    colluders: tuple[int, ...], *, at_once: bool
) -> None:
    steps = honest_round(EVERYONE, purpose="train", at_once=at_once)
    outcome = play(Program(HOSPITALS, colluders, {}, (described("local"),), tuple(steps)))
    honest = tuple(sorted(outcome.server.sites))
    # Each vector carries two masks for each segment's neighbour at most: the graph is not complete.
    assert all(len(masks) == SOUND.neighbours + 1 for vector in outcome.server.vectors for masks in vector.masks)
    assert {each.hospitals for each in outcome.sums} == {honest}


def _train_alone() -> Program:
    """Ask one hospital to train and the others to evaluate, and have everybody sign for all."""
    advertise, share, mask, sign, unmask = honest_round(EVERYONE, purpose="train", release=TEST)
    rest = {**mask, "to": list(EVERYONE[1:]), "terms": MEASURE}
    steps = (advertise, share, {**mask, "to": [1]}, rest, sign, unmask)
    return Program(HOSPITALS, (), {}, (described("local"),), steps)


def _declared_dropped() -> Program:
    """Say of a hospital that has sent its vector that it has dropped out."""
    steps = honest_round(EVERYONE, purpose="train")
    others = list(EVERYONE[1:])
    lists = {"survivors": others, "dropped": [1]}
    return Program(
        HOSPITALS,
        (),
        {},
        (described("local"),),
        (*steps[:3], *({**step, "to": others, **lists} for step in steps[3:])),
    )


@dataclass(frozen=True)
class Defect:
    """What is wrong, the program that shows it, and words of what the harness then says."""

    put_in: Callable[[pytest.MonkeyPatch], None]
    program: Callable[[], Program]
    words: str


DEFECTS = {
    "the request is left out of the masks": Defect(request_unbound, _train_alone, "different things"),
    "both kinds of share are revealed": Defect(any_share, _declared_dropped, "must be in it"),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_found(name: str) -> None:
    defect = DEFECTS[name]
    play(defect.program())
    with pytest.MonkeyPatch.context() as patch:
        defect.put_in(patch)
        with pytest.raises(PromiseBrokenError, match=defect.words):
            play(defect.program())
