import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy import stats

from common.keystream import Keystream

SEED = bytes(range(32))


def test_the_stream_is_aes_256_in_counter_mode() -> None:
    out = np.empty(700_000, np.uint8)
    Keystream(SEED).fill(out)
    encryptor = Cipher(algorithms.AES(SEED), modes.CTR(bytes(16))).encryptor()
    assert out.tobytes() == encryptor.update(bytes(700_000))


def test_two_draws_continue_one_stream() -> None:
    whole, first, second = np.empty(64, np.uint8), np.empty(24, np.uint8), np.empty(40, np.uint8)
    Keystream(SEED).fill(whole)
    stream = Keystream(SEED)
    stream.fill(first)
    stream.fill(second)
    assert np.array_equal(whole, np.concatenate([first, second]))


def test_a_short_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes, got 31"):
        Keystream(bytes(31))


def test_uniform_numbers_are_uniform_in_the_half_open_interval() -> None:
    numbers = Keystream(SEED).uniform(200_000)
    assert numbers.min() >= 0.0
    assert numbers.max() < 1.0
    assert stats.kstest(numbers, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("count", [1, 2, 65_536, 65_537, 200_001])
def test_gaussian_numbers_are_standard_normal_and_as_many_as_asked(count: int) -> None:
    numbers = Keystream(SEED).gaussian(count)
    assert numbers.shape == (count,)
    assert np.isfinite(numbers).all()
    if count > 1000:
        assert stats.kstest(numbers, "norm").pvalue > 1e-3


def test_gaussian_numbers_are_not_correlated_with_their_neighbours() -> None:
    numbers = Keystream(SEED).gaussian(200_000)
    for lag in (1, 2, 32_767, 32_768, 65_536):
        correlation = float(np.corrcoef(numbers[:-lag], numbers[lag:])[0, 1])
        assert abs(correlation) < 5 / np.sqrt(len(numbers) - lag)
