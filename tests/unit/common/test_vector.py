import os
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.config import AggregationConfig, EvaluationConfig
from common.errors import ConfigError, RunError
from common.evaluation import EvaluationCounts, EvaluationShape
from common.keystream import Keystream
from common.vector import VectorLayout, WeightRangeError

SHAPE = EvaluationShape(classes=2, bins=16)


def layout(hospitals: int = 4, bits: int = 16, parameters: int = 50, max_weight: int = 4096) -> VectorLayout:
    return VectorLayout(parameters, hospitals, bits, 0.25, max_weight, SHAPE)


def random_counts(rng: np.random.Generator) -> EvaluationCounts:
    return EvaluationCounts.from_flat(rng.integers(0, 1 << SHAPE.bits()), SHAPE)


def no_counts() -> EvaluationCounts:
    return EvaluationCounts.zero(SHAPE)


def random_delta(rng: np.random.Generator, size: int, spread: float = 0.1) -> NDArray[np.float32]:
    return (rng.standard_normal(size) * spread).astype(np.float32)


@settings(max_examples=60, deadline=None)
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
    summed = np.zeros(lay.length, lay.dtype)
    for delta, weight, count in zip(deltas, weights, counts, strict=True):
        summed += lay.encode(delta, weight, count, rng.bytes)
    decoded = lay.decode(summed, hospitals)
    assert decoded.total_weight == sum(weights)
    assert np.array_equal(decoded.counts.flat(), np.sum([count.flat() for count in counts], axis=0))
    exact = sum(w * np.clip(d.astype(np.float64), -0.25, 0.25) for d, w in zip(deltas, weights, strict=True))
    # Each hospital is off by less than one unit of rounding, plus float32 in the scaling.
    tolerance = hospitals * lay.step / sum(weights) + 1e-6
    assert np.abs(decoded.mean_delta - exact / sum(weights)).max() <= tolerance


@settings(max_examples=80, deadline=None)
@given(hospitals=st.integers(1, 2000), bits=st.sampled_from([16, 32]), sign=st.sampled_from([-1.0, 1.0]))
def test_no_sum_of_as_many_hospitals_as_declared_overflows(hospitals: int, bits: int, sign: float) -> None:
    lay = layout(hospitals, bits, parameters=3)
    largest = EvaluationCounts.from_flat((1 << SHAPE.bits()) - 1, SHAPE)
    one = lay.encode(np.full(3, sign * 0.25, np.float32), 4096, largest, os.urandom)
    # All hospitals sending the extreme: the modular sum, taken as one product in the ring.
    summed = (one.astype(np.int64) * hospitals).astype(lay.dtype)
    decoded = lay.decode(summed, hospitals)
    assert np.allclose(decoded.mean_delta, sign * 0.25, rtol=1e-6)
    assert decoded.total_weight == 4096 * hospitals
    assert np.array_equal(decoded.counts.flat(), hospitals * ((1 << SHAPE.bits()) - 1))


@pytest.mark.parametrize("bits", [16, 32])
def test_one_hospital_more_than_declared_would_overflow_so_the_scale_wastes_nothing(bits: int) -> None:
    lay = layout(hospitals=5, bits=bits)
    half = 1 << (bits - 1)
    assert 5 * lay.element_bound < half
    assert 5 * (lay.element_bound + (1 if bits == 16 else 1 << 6)) >= half
    assert 5 * ((1 << lay.limb_bits) - 1) < 1 << bits
    assert 5 * ((1 << (lay.limb_bits + 1)) - 1) >= 1 << bits


def test_saturation_clips_to_the_bound_and_never_wraps() -> None:
    lay = layout(parameters=4)
    delta = np.array([1e30, -1e30, 0.2500001, -0.3], np.float32)
    decoded = lay.decode(lay.encode(delta, 4096, no_counts(), os.urandom), 1)
    assert np.allclose(decoded.mean_delta, [0.25, -0.25, 0.25, -0.25], rtol=1e-6)


@settings(max_examples=40, deadline=None)
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
    elements = lay.encode(delta, weight, no_counts(), lambda _: seed.to_bytes(32))[:200]
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
    elements = lay.encode(np.array([0.25, -0.25], np.float32), 4096, no_counts(), os.urandom)[:2]
    assert elements.view(np.int16 if bits == 16 else np.int32).tolist() == [lay.element_bound, -lay.element_bound]


def test_rounding_is_unbiased() -> None:
    lay = layout(hospitals=1000, parameters=20_000)
    value = np.float32(0.2 * lay.step / 4096 + 3 * lay.step / 4096)
    encoded = lay.encode(np.full(20_000, value, np.float32), 4096, no_counts(), os.urandom)[:20_000]
    assert set(encoded.tolist()) == {3, 4}
    assert abs(encoded.mean() - 3.2) < 5 * 0.4 / np.sqrt(20_000)


def test_the_same_coins_give_the_same_vector_and_other_coins_another() -> None:
    lay = layout(parameters=1000)
    delta = random_delta(np.random.default_rng(1), 1000)
    one, same, other = (lay.encode(delta, 7, no_counts(), bytes([coin]).__mul__) for coin in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_a_hospital_reveals_its_delta_only_with_its_weight_as_a_factor() -> None:
    lay = layout(bits=32, parameters=1)
    delta = np.array([0.125], np.float32)
    light, heavy = (int(lay.encode(delta, weight, no_counts(), os.urandom)[0]) for weight in (1000, 4000))
    assert abs(heavy - 4 * light) <= 4


@pytest.mark.parametrize("bits", [16, 32])
def test_integers_travel_as_residues(bits: int) -> None:
    lay = layout(bits=bits, parameters=3)
    half = 1 << (bits - 1)
    first = lay.encode_integers(np.array([half - 1, -5, -half]), 10, no_counts())
    second = lay.encode_integers(np.array([-half + 1, 7, 0]), 20, no_counts())
    decoded = lay.decode_integers(first + second, 2)
    assert decoded.total_of(slice(None)).tolist() == [0, 2, -half]
    assert decoded.total_weight == 30


@pytest.mark.parametrize("weight", [0, -1, 4097])
def test_a_weight_out_of_range_is_refused(weight: int) -> None:
    with pytest.raises(WeightRangeError, match=rf"1 to 4096, got {weight}"):
        layout().encode(np.zeros(50, np.float32), weight, no_counts(), os.urandom)
    with pytest.raises(WeightRangeError, match=rf"1 to 4096, got {weight}"):
        layout().encode_integers(np.zeros(50, np.int64), weight, no_counts())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_change_that_is_not_finite_is_refused(value: float) -> None:
    delta = np.zeros(50, np.float32)
    delta[49] = value
    with pytest.raises(RunError, match="finite"):
        layout().encode(delta, 5, no_counts(), os.urandom)


def test_a_change_of_another_length_is_refused() -> None:
    with pytest.raises(RunError, match="50 parameters"):
        layout().encode(np.zeros(49, np.float32), 5, no_counts(), os.urandom)


@pytest.mark.parametrize("value", [-1, 1 << 24])
def test_a_count_that_does_not_fit_is_refused(value: int) -> None:
    flat = np.zeros(SHAPE.length, np.int64)
    flat[3] = value
    with pytest.raises(RunError, match="count"):
        layout().encode(np.zeros(50, np.float32), 5, EvaluationCounts.from_flat(flat, SHAPE), os.urandom)


def test_counts_of_another_shape_are_refused() -> None:
    other = EvaluationCounts.zero(EvaluationShape(classes=2, bins=32))
    with pytest.raises(RunError, match="counts"):
        layout().encode(np.zeros(50, np.float32), 5, other, os.urandom)


def test_a_ring_too_small_for_the_roster_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"modulus_bits must be 32 to add 40000 hospitals"):
        layout(hospitals=40_000)
    assert layout(hospitals=40_000, bits=32).element_bound > 1


@pytest.mark.parametrize(("field", "value"), [("modulus_bits", 8), ("hospitals", 0), ("parameters", 0)])
def test_a_layout_without_meaning_is_refused(field: str, value: int) -> None:
    with pytest.raises(ConfigError):
        replace(layout(), **{field: value})  # type: ignore[arg-type]


def test_a_sum_of_wrong_length_or_ring_or_of_too_many_is_refused() -> None:
    lay = layout()
    vector = lay.encode(np.zeros(50, np.float32), 5, no_counts(), os.urandom)
    with pytest.raises(RunError, match="elements"):
        lay.decode(vector[:-1], 1)
    with pytest.raises(RunError, match="elements"):
        lay.decode(vector.astype(np.uint32), 1)
    with pytest.raises(RunError, match="1 to 4 hospitals, got 5"):
        lay.decode(vector, 5)
    with pytest.raises(WeightRangeError, match="total weight"):
        lay.decode(np.zeros_like(vector), 1)


def test_the_upload_is_at_most_55_hundredths_of_float32_up_to_16_hospitals() -> None:
    lay = VectorLayout.for_run(AggregationConfig(), EvaluationConfig(), parameters=11_200_000, classes=2, hospitals=16)
    assert lay.length * lay.dtype.itemsize <= 0.55 * 4 * 11_200_000


def test_encoding_holds_nothing_that_grows_but_the_vector() -> None:
    lay = layout(parameters=2_000_000)
    delta = np.zeros(2_000_000, np.float32)
    tracemalloc.start()
    vector = lay.encode(delta, 5, no_counts(), os.urandom)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < vector.nbytes + 2**21
