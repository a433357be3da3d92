from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from common.secagg.binding import bind, bound_hash, cohort_hash, directory_hash, round_context, survivors_hash
from tests.support.parties import Consortium

parts = st.lists(st.binary(max_size=5), max_size=4)


@given(st.text(max_size=5), parts, st.text(max_size=5), parts)
def test_different_things_are_never_bound_alike(
    purpose: str, first: list[bytes], other_purpose: str, second: list[bytes]
) -> None:
    same = (purpose, first) == (other_purpose, second)
    assert (bind(purpose, *first) == bind(other_purpose, *second)) is same
    assert (bound_hash(purpose, *first) == bound_hash(other_purpose, *second)) is same


def test_a_round_is_bound_to_run_configuration_and_number() -> None:
    run = Consortium(3).run
    contexts = {
        round_context(run, 1),
        round_context(run, 2),
        round_context(replace(run, run_id="f" * 32), 1),
        round_context(replace(run, config_hash=bytes(32)), 1),
    }
    assert len(contexts) == 4


def test_a_cohort_is_bound_to_its_keys_and_members() -> None:
    hashes = {
        cohort_hash(bytes(32), ("a", "b")),
        cohort_hash(bytes(32), ("a", "c")),
        cohort_hash(bytes([1]) * 32, ("a", "b")),
        survivors_hash(("a", "b")),
        survivors_hash(("ab",)),
    }
    assert len(hashes) == 5


def test_a_directory_is_bound_to_its_threshold_and_every_key() -> None:
    directory = Consortium(3).directory()
    assert directory_hash(directory) != directory_hash(replace(directory, threshold=2))
    assert directory_hash(directory) != directory_hash(replace(directory, keys=directory.keys[:2]))
