from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config import SECURE_MINIMUM as CONFIGURED_MINIMUM
from common.config import AdversaryModel
from common.secagg.errors import ParameterError
from common.secagg.parameters import SECURE_MINIMUM, Adversary, RunParameters
from tests.support.parties import Consortium

RUN = Consortium(6).run


def run_of(roster: int, **changes: Any) -> RunParameters:  # noqa: ANN401 - fields of RunParameters
    return replace(RUN, roster={f"hospital-{number}": bytes(32) for number in range(roster)}, **changes)


@given(st.integers(3, 300), st.data())
def test_the_active_threshold_withstands_a_third_of_the_roster_whoever_is_left_out(
    roster: int, data: st.DataObject
) -> None:
    """Bonawitz et al. 2017, active server: 2t > n + n_C, also when the server leaves honest hospitals out."""
    hospitals = data.draw(st.integers(3, roster))
    colluders = data.draw(st.integers(0, (roster - 1) // 3))
    assert 3 * colluders < roster
    threshold = run_of(roster).threshold(hospitals)
    assert 2 * threshold > hospitals + colluders
    assert 3 * threshold > 2 * hospitals


@given(st.integers(3, 300))
def test_with_everyone_present_the_active_threshold_is_the_smallest_above_two_thirds(hospitals: int) -> None:
    threshold = run_of(hospitals).threshold(hospitals)
    assert 3 * threshold > 2 * hospitals
    assert threshold == 3 or 3 * (threshold - 1) <= 2 * hospitals


def test_a_server_that_leaves_honest_hospitals_out_meets_a_higher_threshold() -> None:
    """With 3 colluders and 4 honest hospitals of 12, t = 5 is above two thirds, and still short of 2t > n + n_C."""
    assert run_of(7).threshold(7) == 5
    assert run_of(12).threshold(7) == 6


@given(st.integers(3, 4096))
def test_the_semi_honest_threshold_is_a_majority(hospitals: int) -> None:
    threshold = replace(RUN, adversary=Adversary.SEMI_HONEST).threshold(hospitals)
    assert 2 * threshold > hospitals
    assert threshold == 3 or 2 * (threshold - 1) <= hospitals


def test_the_threshold_is_never_below_the_minimum() -> None:
    assert replace(RUN, min_hospitals=5).threshold(5) == 5
    assert replace(RUN, min_hospitals=5).threshold(4) == 5


@pytest.mark.parametrize(("bits", "dtype"), [(16, np.uint16), (32, np.uint32)])
def test_the_rings_element_is_a_machine_integer(bits: int, dtype: type[np.unsignedinteger[Any]]) -> None:
    run = replace(RUN, modulus_bits=bits)
    assert run.dtype == np.dtype(dtype).newbyteorder("<")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"run_id": "0" * 31}, "run_id"),
        ({"run_id": "G" * 32}, "run_id"),
        ({"config_hash": bytes(31)}, "config_hash"),
        ({"modulus_bits": 8}, "modulus_bits"),
        ({"vector_length": 0}, "vector_length"),
        ({"min_hospitals": 2}, "min_hospitals"),
        ({"min_hospitals": 7}, "roster"),
        ({"roster": {}}, "roster"),
        ({"roster": {**RUN.roster, "Hospital": bytes(32)}}, "name"),
        ({"roster": {**RUN.roster, "../etc": bytes(32)}}, "name"),
        ({"roster": {**RUN.roster, "hospital-7": bytes(31)}}, "hospital-7"),
        ({"roster": {f"hospital-{number}": bytes(32) for number in range(4097)}}, "4097"),
    ],
)
def test_parameters_that_do_not_fit_are_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ParameterError, match=named):
        replace(RUN, **changes)


def test_the_roster_is_sorted_and_read_only() -> None:
    run = replace(RUN, roster=dict(sorted(RUN.roster.items(), reverse=True)))
    assert list(run.roster) == sorted(RUN.roster)
    with pytest.raises(TypeError):
        run.roster["ghost"] = bytes(32)  # type: ignore[index]


def test_the_protocol_and_the_configuration_agree() -> None:
    assert SECURE_MINIMUM == CONFIGURED_MINIMUM
    assert {adversary.value for adversary in Adversary} == {adversary.value for adversary in AdversaryModel}


def test_a_run_is_a_value() -> None:
    assert RunParameters(**{name: getattr(RUN, name) for name in RUN.__dataclass_fields__}) == RUN
