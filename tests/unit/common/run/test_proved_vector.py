"""The vectors of runs that prove their sums: the proved weight, ρ, and the length that a description names."""

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config import Config, ModelConfig, RunDescription, replace
from common.errors import ConfigError, RunError
from common.proved_sums.commitment import add, from_bytes, open_sum
from common.proved_sums.parameters import MOST_ENTRIES_OF_A_SMALL_VECTOR
from common.run.basis import Basis, read_evidence, sum_in, words_for, words_of
from common.run.terms import describe, layout_of
from common.run.vector import Tail, VectorLayout, WeightRangeError
from common.secagg.errors import SERVER, Place, UnusableModelError
from common.secagg.phases import Phase

PLACE = Place(SERVER, 1, Phase.MASKED_INPUT)
KEY = bytes(32)


def layout(hospitals: int, bits: int, max_weight: int = 4096) -> VectorLayout:
    return VectorLayout(40, hospitals, bits, 0.25, max_weight, 2, proves_sums=True)


def tail(weight: int) -> Tail:
    return Tail(weight, 1, 1, np.zeros(2, np.int64))


@given(st.integers(3, 64), st.sampled_from((16, 32)), st.data())
def test_a_proved_weight_is_the_sum_of_what_hospitals_state(hospitals: int, bits: int, data: st.DataObject) -> None:
    most = data.draw(st.integers(1, 2**24))
    run = layout(hospitals, bits, most)
    weights = data.draw(st.lists(st.integers(1, most), min_size=1, max_size=hospitals))
    total = np.zeros(run.length, run.dtype)
    for weight in weights:
        total += run.encode(np.zeros(40, np.float32), tail(weight), os.urandom)
    total[: 2 * 32 // bits] = 0  # What a server says of the weight outside the proof.
    assert run.decode(total, len(weights)).tail.weight == sum(weights)
    proved = run.proved_part(total)[: run.proof.entries].view(run.signed)
    assert run.decode_proved(proved, len(weights)).tail.weight == sum(weights)


@pytest.mark.parametrize("bits", [16, 32])
def test_commitments_to_vectors_add_up_to_that_of_their_sum(bits: int) -> None:
    run, source = layout(4, bits), np.random.default_rng(1)
    total, values = np.zeros(run.length, run.dtype), []
    for weight in (1, 4096, 77, 1000):
        vector = run.encode(source.normal(0, 1, 40).astype(np.float32), tail(weight), os.urandom)
        values.append(from_bytes(run.proof, run.commit(vector, KEY, os.urandom), PLACE, "hospital-1"))
        total += vector
    proved = run.proved_part(total).view(run.signed)
    assert open_sum(KEY, run.proof, proved) == add(run.proof, values)
    assert np.abs(proved.astype(np.int64)).max() <= run.proof.bound


def test_a_total_weight_that_no_hospitals_have_is_refused() -> None:
    run = layout(4, 16)
    with pytest.raises(WeightRangeError, match="must have a total weight of 3 to"):
        run.decode_proved(np.zeros(run.proof.entries, run.signed), 3)


@pytest.mark.parametrize(
    "parameters", [1, 25_842, MOST_ENTRIES_OF_A_SMALL_VECTOR - 1, MOST_ENTRIES_OF_A_SMALL_VECTOR, 200_000]
)
@pytest.mark.parametrize("mode", ["none", "distributed"])
def test_a_descriptions_length_gives_the_models_parameters(parameters: int, mode: str) -> None:
    run = described(parameters, mode)
    assert layout_of(run).parameters == parameters
    assert layout_of(run).length == run.vector_length


def described(parameters: int, mode: str = "none") -> RunDescription:
    config = replace(Config(), aggregation={"proved_sums": True}, privacy={"mode": mode})
    roster = {f"hospital-{number}": "a certificate" for number in range(4)}
    return describe(config, "0" * 32, ("normal", "pneumonia"), 1, roster, parameters)


def test_a_length_that_no_model_has_is_refused() -> None:
    run = described(200_000)
    # Between the longest vector with a short ρ and the shortest with a long one.
    longest = described(MOST_ENTRIES_OF_A_SMALL_VECTOR - 1).vector_length
    with pytest.raises(ConfigError, match="must be that of a model whose sums are proved"):
        layout_of(run.model_copy(update={"vector_length": longest + 1}))


@pytest.mark.parametrize(("mode", "adversary"), [("plain", "active"), ("secure", "semi-honest")])
def test_sums_of_bare_vectors_and_of_trusting_runs_are_not_proved(mode: str, adversary: str) -> None:
    with pytest.raises(ConfigError, match=r"aggregation\.proved_sums must be false unless"):
        replace(
            Config(),
            aggregation={"proved_sums": True, "mode": mode, "adversary": adversary},
            evaluation={"exact": True},
        )


@given(st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=9))
def test_a_sum_travels_bit_for_bit_and_nothing_behind_it(entries: list[int]) -> None:
    total = np.array(entries, np.uint16)
    words = words_of(total)
    assert len(words) == words_for(len(total), total.dtype)
    np.testing.assert_array_equal(sum_in(words, len(total), total.dtype, PLACE), total)
    if len(total) % 2:
        behind = words.copy()
        behind.view(np.uint16)[-1] = 1
        with pytest.raises(UnusableModelError, match="must be filled up with zeros"):
            sum_in(behind, len(total), total.dtype, PLACE)
    with pytest.raises(UnusableModelError, match="a sum must come as"):
        sum_in(words, len(total) + 2, total.dtype, PLACE)


@given(st.binary(max_size=64))
def test_bytes_that_are_no_basis_are_refused(encoded: bytes) -> None:
    for read in (Basis.decode, read_evidence):
        try:
            read(encoded)
        except RunError:
            continue
        assert encoded[:1] in (b"\x91", b"\x97", b"\x96")


def test_the_default_model_is_one_of_small_vectors() -> None:
    assert layout_of(described(25_842)).proof.upload_bytes <= 12 * 1024
    assert ModelConfig().name == "cnn"
