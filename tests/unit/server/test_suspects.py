"""Who is left out after sums that somebody has spoilt: one cheat costs few rounds, whatever it does."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.suspects import Suspects


def names(number: int) -> frozenset[str]:
    return frozenset(f"hospital-{each}" for each in range(1, number + 1))


def two_thirds(of: int) -> int:
    return 2 * of // 3 + 1


def spoilt_rounds(hospitals: frozenset[str], cheats: frozenset[str], willing: list[bool], suspects: Suspects) -> int:
    """Play rounds in which the cheats spoil a sum they are in when they feel like it; return how many are spoilt."""
    spoilt = 0
    for spoils in willing:
        group = hospitals - suspects.left_out(hospitals, lambda number: number >= two_thirds(len(hospitals)))
        if spoils and group & cheats:
            suspects.spoilt(group)
            spoilt += 1
    return spoilt


def test_nobody_is_left_out_while_no_sum_is_spoilt() -> None:
    assert not Suspects().left_out(names(4), lambda _: True)


@given(
    number=st.integers(4, 12),
    willing=st.lists(st.booleans(), min_size=1, max_size=60),
    cheat=st.integers(1, 12),
    seed=st.randoms(use_true_random=False),
)
def test_one_cheat_spoils_at_most_as_many_sums_as_there_are_hospitals(
    number: int, willing: list[bool], cheat: int, seed: st.DataObject
) -> None:
    hospitals, cheats = names(number), frozenset([f"hospital-{1 + cheat % number}"])
    suspects = Suspects(seed.shuffle)  # type: ignore[attr-defined]
    assert spoilt_rounds(hospitals, cheats, willing, suspects) <= number


@pytest.mark.parametrize("pair", list(itertools.combinations(sorted(names(8)), 2))[::5])
def test_two_cheats_are_found_among_eight(pair: tuple[str, str]) -> None:
    hospitals, cheats = names(8), frozenset(pair)
    suspects = Suspects()
    spoilt_rounds(hospitals, cheats, [True] * 50, suspects)
    assert suspects.left_out(hospitals, lambda number: number >= two_thirds(8)) == cheats


def test_a_cheat_that_is_found_stays_out_and_who_was_left_out_wrongly_comes_back() -> None:
    hospitals, cheat = names(4), frozenset(["hospital-3"])
    suspects = Suspects(lambda order: order.sort())
    left_out = []
    for _ in range(4):
        out = suspects.left_out(hospitals, lambda number: number >= 3)
        left_out.append(sorted(out))
        if cheat & (hospitals - out):
            suspects.spoilt(hospitals - out)
    assert left_out == [[], ["hospital-1"], ["hospital-2"], ["hospital-3"]]


def test_nobody_is_left_out_where_too_few_would_remain() -> None:
    suspects = Suspects()
    suspects.spoilt(names(3))
    assert not suspects.left_out(names(3), lambda number: number >= 3)


def test_who_is_tried_first_is_nothing_that_a_hospital_knows() -> None:
    first: set[str] = set()
    for _ in range(60):
        suspects = Suspects()
        suspects.spoilt(names(4))
        first |= suspects.left_out(names(4), lambda number: number >= 3)
    assert first == names(4)
