import os
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.config import AggregationConfig
from common.errors import ConfigError, RunError
from common.evaluation import EvaluationCounts, EvaluationShape
from common.keystream import Keystream
from common.run.vector import PUBLIC_ENTRIES, Tail, VectorLayout, WeightRangeError
from common.secagg.parameters import RunParameters

SHAPE = EvaluationShape(classes=2, bins=16)


def layout(hospitals: int = 4, bits: int = 16, parameters: int = 50, max_weight: int = 4096) -> VectorLayout:
    return VectorLayout(parameters, hospitals, bits, 0.25, max_weight, SHAPE)


def random_counts(rng: np.random.Generator) -> EvaluationCounts:
    return EvaluationCounts.from_flat(rng.integers(0, 1 << SHAPE.bits()), SHAPE)


def tail(weight: int, counts: EvaluationCounts | None = None) -> Tail:
    return Tail(weight, 7, 9, (counts or EvaluationCounts.zero(SHAPE)).flat())


def head(lay: VectorLayout) -> int:
    """Return how many elements of the ring stand before the change."""
    return lay.length - lay.parameters


def added(lay: VectorLayout, *vectors: NDArray[Any]) -> NDArray[Any]:
    """Return the sum of vectors, each segment in its own ring, as the server adds them."""
    roster = {f"hospital-{number}": bytes(32) for number in range(3)}
    run = RunParameters("0" * 32, bytes(32), roster, 3, lay.modulus_bits, lay.length, counts_length=lay.counts_length)
    total = np.zeros(lay.length, lay.dtype)
    for vector in vectors:
        run.add(total, vector)
    return total


def random_delta(rng: np.random.Generator, size: int, spread: float = 0.1) -> NDArray[np.float32]:
    return (rng.standard_normal(size) * spread).astype(np.float32)


@settings(max_examples=60)
@given(
    hospitals=st.integers(1, 40),
    bits=st.sampled_from([16, 32]),
    max_weight=st.integers(1, 2**24),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_decoded_sum_is_the_weighted_mean_and_the_exact_counts(
    hospitals: int, bits: int, max_weight: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    lay = layout(hospitals, bits, max_weight=max_weight)
    deltas = [random_delta(rng, 50) for _ in range(hospitals)]
    weights = [int(rng.integers(1, max_weight + 1)) for _ in range(hospitals)]
    counts = [random_counts(rng) for _ in range(hospitals)]
    encoded = [
        lay.encode(delta, tail(weight, count), rng.bytes)
        for delta, weight, count in zip(deltas, weights, counts, strict=True)
    ]
    decoded = lay.decode(added(lay, *encoded), hospitals)
    assert decoded.tail.weight == sum(weights)
    assert (decoded.tail.validation_units, decoded.tail.test_units) == (7 * hospitals, 9 * hospitals)
    exact_counts = lay.exact_counts(decoded.tail).flat()
    assert np.array_equal(exact_counts, np.sum([count.flat() for count in counts], axis=0))
    exact = sum(w * np.clip(d.astype(np.float64), -0.25, 0.25) for d, w in zip(deltas, weights, strict=True))
    # Each hospital is off by less than one unit of rounding, plus float32 in the scaling.
    tolerance = hospitals * lay.step / sum(weights) + 1e-6
    assert np.abs(decoded.mean_delta - exact / sum(weights)).max() <= tolerance


@settings(max_examples=80)
@given(hospitals=st.integers(1, 2000), bits=st.sampled_from([16, 32]), sign=st.sampled_from([-1.0, 1.0]))
def test_no_sum_of_as_many_hospitals_as_declared_overflows(hospitals: int, bits: int, sign: float) -> None:
    lay = layout(hospitals, bits, parameters=3)
    largest = EvaluationCounts.from_flat((1 << SHAPE.bits()) - 1, SHAPE)
    one = lay.encode(np.full(3, sign * 0.25, np.float32), tail(4096, largest), os.urandom)
    # All hospitals sending the extreme: the modular sum, taken as one product in each ring.
    summed, counts = np.empty_like(one), one[: head(lay)].view(np.uint32)
    summed[: head(lay)].view(np.uint32)[:] = (counts.astype(np.int64) * hospitals).astype(np.uint32)
    summed[head(lay) :] = (one[head(lay) :].astype(np.int64) * hospitals).astype(lay.dtype)
    decoded = lay.decode(summed, hospitals)
    assert np.allclose(decoded.mean_delta, sign * 0.25, rtol=1e-6)
    assert decoded.tail.weight == 4096 * hospitals
    assert np.array_equal(lay.exact_counts(decoded.tail).flat(), hospitals * ((1 << SHAPE.bits()) - 1))


@pytest.mark.parametrize("bits", [16, 32])
def test_one_hospital_more_than_declared_would_overflow_so_the_scale_wastes_nothing(bits: int) -> None:
    lay = layout(hospitals=5, bits=bits)
    half = 1 << (bits - 1)
    assert 5 * lay.element_bound < half
    assert 5 * (lay.element_bound + (1 if bits == 16 else 1 << 6)) >= half
    assert 5 * ((1 << lay.limb_bits) - 1) < 1 << 32
    assert 5 * ((1 << (lay.limb_bits + 1)) - 1) >= 1 << 32


def test_saturation_clips_to_the_bound_and_never_wraps() -> None:
    lay = layout(parameters=4)
    delta = np.array([1e30, -1e30, 0.2500001, -0.3], np.float32)
    decoded = lay.decode(lay.encode(delta, tail(4096), os.urandom), 1)
    assert np.allclose(decoded.mean_delta, [0.25, -0.25, 0.25, -0.25], rtol=1e-6)


@settings(max_examples=40)
@given(
    hospitals=st.integers(1, 300),
    bits=st.sampled_from([16, 32]),
    weight=st.integers(1, 4096),
    seed=st.integers(0, 2**32 - 1),
)
def test_an_element_is_the_scaled_change_rounded_up_with_the_probability_of_its_fraction(
    hospitals: int, bits: int, weight: int, seed: int
) -> None:
    lay = layout(hospitals, bits, parameters=200)
    delta = random_delta(np.random.default_rng(seed), 200, spread=0.2)
    coins = np.empty(200, lay.dtype)
    Keystream(seed.to_bytes(32)).fill(coins)
    elements = lay.encode(delta, tail(weight), lambda _: seed.to_bytes(32))[-200:]
    signed = elements.view(np.int16 if bits == 16 else np.int32)
    clipped = np.clip(delta.astype(np.float64), -0.25, 0.25)
    exact = clipped * weight / lay.step
    # floor(x + u) for u = coin / R, but for the float32 of the product and the places beyond 1/R.
    slack = np.abs(exact) * 2.0**-22 + 2.0**-bits
    assert np.all(signed <= np.floor(exact + coins / 2.0**bits + slack))
    assert np.all(signed >= np.floor(exact + coins / 2.0**bits - slack))
    assert np.abs(signed.astype(np.int64)).max() <= lay.element_bound


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("coin", [0, 255])
def test_no_coin_carries_a_change_beyond_the_bound(bits: int, coin: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Keystream, "fill", lambda _, out: out.view(np.uint8).fill(coin))
    lay = layout(hospitals=1, bits=bits, parameters=2)
    elements = lay.encode(np.array([0.25, -0.25], np.float32), tail(4096), os.urandom)[-2:]
    assert elements.view(np.int16 if bits == 16 else np.int32).tolist() == [lay.element_bound, -lay.element_bound]


def test_rounding_is_unbiased() -> None:
    lay = layout(hospitals=1000, parameters=20_000)
    value = np.float32(0.2 * lay.step / 4096 + 3 * lay.step / 4096)
    encoded = lay.encode(np.full(20_000, value, np.float32), tail(4096), os.urandom)[-20_000:]
    assert set(encoded.tolist()) == {3, 4}
    assert abs(encoded.mean() - 3.2) < 5 * 0.4 / np.sqrt(20_000)


def test_the_same_coins_give_the_same_vector_and_other_coins_another() -> None:
    lay = layout(parameters=1000)
    delta = random_delta(np.random.default_rng(1), 1000)
    one, same, other = (lay.encode(delta, tail(7), bytes([coin]).__mul__) for coin in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_a_hospital_reveals_its_delta_only_with_its_weight_as_a_factor() -> None:
    lay = layout(bits=32, parameters=1)
    delta = np.array([0.125], np.float32)
    light, heavy = (int(lay.encode(delta, tail(weight), os.urandom)[-1]) for weight in (1000, 4000))
    assert abs(heavy - 4 * light) <= 4


@pytest.mark.parametrize("bits", [16, 32])
def test_integers_travel_as_residues(bits: int) -> None:
    lay = layout(bits=bits, parameters=3)
    half = 1 << (bits - 1)
    first = lay.encode_integers(np.array([half - 1, -5, -half]), tail(10))
    second = lay.encode_integers(np.array([-half + 1, 7, 0]), tail(20))
    decoded = lay.decode(added(lay, first, second), 2)
    assert decoded.total_of(slice(None)).tolist() == [0, 2, -half]
    assert decoded.tail.weight == 30


@pytest.mark.parametrize("weight", [0, -1, 4097])
def test_a_weight_out_of_range_is_refused(weight: int) -> None:
    with pytest.raises(WeightRangeError, match=rf"1 to 4096, got {weight}"):
        layout().encode(np.zeros(50, np.float32), tail(weight), os.urandom)
    with pytest.raises(WeightRangeError, match=rf"1 to 4096, got {weight}"):
        layout().encode_integers(np.zeros(50, np.int64), tail(weight))


def test_a_change_that_is_not_finite_is_clipped_or_zero_and_never_refused() -> None:
    """A refusal would tell the server that a model of its making has overflowed on some record."""
    delta = np.zeros(50, np.float32)
    delta[:4] = (np.nan, np.inf, -np.inf, 0.1)
    decoded = layout().decode(layout().encode(delta, tail(4096), os.urandom), 1)
    np.testing.assert_allclose(decoded.mean_delta[:4], [0.0, 0.25, -0.25, 0.1], atol=1e-4)


def test_entries_under_noise_are_whole_signed_and_added_modulo_2_to_the_32() -> None:
    lay = VectorLayout(3, 4, 16, 0.25, 4096, 4)
    first, second = np.array([70_000, -70_000, 2**31 - 5, 0]), np.array([70_000, 1, 4, -1])
    vectors = [lay.encode(np.zeros(3, np.float32), Tail(5, 1, 2, each), os.urandom) for each in (first, second)]
    assert lay.counts_length == PUBLIC_ENTRIES + 4
    assert lay.decode(added(lay, *vectors), 2).tail.entries.tolist() == [140_000, -69_999, 2**31 - 1, -1]


def test_units_whose_noisy_sum_could_leave_the_ring_are_refused() -> None:
    lay = layout()
    lay.check_units(2_000_000, 1000, 1e6)
    with pytest.raises(WeightRangeError, match="must be below 2147483, got 2140000"):
        lay.check_units(2_140_000, 1000, 1e6)


def test_a_change_of_another_length_is_refused() -> None:
    with pytest.raises(RunError, match="50 parameters"):
        layout().encode(np.zeros(49, np.float32), tail(5), os.urandom)


@pytest.mark.parametrize("value", [-1, 1 << 24])
def test_a_count_that_does_not_fit_is_refused(value: int) -> None:
    flat = np.zeros(SHAPE.length, np.int64)
    flat[3] = value
    with pytest.raises(RunError, match="count"):
        layout().encode(np.zeros(50, np.float32), tail(5, EvaluationCounts.from_flat(flat, SHAPE)), os.urandom)


def test_counts_of_another_shape_are_refused() -> None:
    other = EvaluationCounts.zero(EvaluationShape(classes=2, bins=32))
    with pytest.raises(RunError, match="counts"):
        layout().encode(np.zeros(50, np.float32), tail(5, other), os.urandom)


def test_a_ring_too_small_for_the_roster_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"modulus_bits must be 32 to add 40000 hospitals"):
        layout(hospitals=40_000)
    assert layout(hospitals=40_000, bits=32).element_bound > 1


@pytest.mark.parametrize(("field", "value"), [("modulus_bits", 8), ("hospitals", 0), ("parameters", 0)])
def test_a_layout_without_meaning_is_refused(field: str, value: Any) -> None:  # noqa: ANN401 - of any field
    with pytest.raises(ConfigError):
        replace(layout(), **{field: value})


def test_a_sum_of_wrong_length_or_ring_or_of_too_many_is_refused() -> None:
    lay = layout()
    vector = lay.encode(np.zeros(50, np.float32), tail(5), os.urandom)
    with pytest.raises(RunError, match="elements"):
        lay.decode(vector[:-1], 1)
    with pytest.raises(RunError, match="elements"):
        lay.decode(vector.astype(np.uint32), 1)
    with pytest.raises(RunError, match="1 to 4 hospitals, got 5"):
        lay.decode(vector, 5)
    with pytest.raises(WeightRangeError, match="total weight"):
        lay.decode(np.zeros_like(vector), 1)


def test_the_upload_is_at_most_55_hundredths_of_float32_up_to_16_hospitals() -> None:
    lay = VectorLayout.for_run(AggregationConfig(), 15, parameters=11_200_000, hospitals=16)
    assert lay.length * lay.dtype.itemsize <= 0.55 * 4 * 11_200_000


def test_encoding_holds_nothing_that_grows_but_the_vector() -> None:
    lay = layout(parameters=2_000_000)
    delta = np.zeros(2_000_000, np.float32)
    tracemalloc.start()
    vector = lay.encode(delta, tail(5), os.urandom)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < vector.nbytes + 2**21
