import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB
from hypothesis import given, settings
from hypothesis import strategies as st

from common.secagg.masks import BUFFER_BYTES, Mask, apply_masks, stream

VECTORS = Path(__file__).parents[3] / "vectors" / "rfc"
CTR_VECTORS = json.loads((VECTORS / "aes_256_ctr.json").read_text())["vectors"]
ZERO_BLOCK_VECTORS = json.loads((VECTORS / "aes_256_zero_block.json").read_text())["vectors"]
SEEDS = [bytes([number]) * 32 for number in range(5)]

dtypes = st.sampled_from(["<u2", "<u4"])


def keystream_by_definition(seed: bytes, length: int) -> bytes:
    """AES in counter mode from the block cipher itself: block i is the encryption of i."""
    blocks = -(-length // 16)
    counters = b"".join(index.to_bytes(16, "big") for index in range(blocks))
    return Cipher(AES(seed), ECB()).encryptor().update(counters)[:length]  # noqa: S305 - the definition of CTR


@pytest.mark.parametrize("vector", CTR_VECTORS)
def test_the_stream_is_that_of_rfc_3686(vector: dict[str, str]) -> None:
    cipher = stream(bytes.fromhex(vector["key"]), int(vector["iv"], 16))
    assert cipher.update(bytes.fromhex(vector["plaintext"])).hex() == vector["ciphertext"]


@pytest.mark.parametrize("vector", ZERO_BLOCK_VECTORS)
def test_a_mask_starts_with_the_published_encryption_of_zero(vector: dict[str, str]) -> None:
    vector_of_zeros = np.zeros(8, "<u2")
    apply_masks(vector_of_zeros, [Mask(bytes.fromhex(vector["key"]))])
    assert vector_of_zeros.tobytes().hex() == vector["ciphertext"]


@given(dtypes, st.integers(1, 5000))
@settings(max_examples=30)
def test_a_mask_is_the_counter_mode_stream_in_little_endian_elements(dtype: str, length: int) -> None:
    vector = np.zeros(length, dtype)
    apply_masks(vector, [Mask(SEEDS[1])])
    assert vector.tobytes() == keystream_by_definition(SEEDS[1], vector.nbytes)


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
@pytest.mark.parametrize("elements_over", [-1, 0, 1])
@pytest.mark.parametrize("cut_at_buffers", [0, 1, 2])
def test_stretches_and_buffers_leave_no_seam(dtype: str, elements_over: int, cut_at_buffers: int) -> None:
    buffer = BUFFER_BYTES // np.dtype(dtype).itemsize
    vector = np.zeros(3 * buffer + elements_over, dtype)
    cut = cut_at_buffers * buffer
    apply_masks(vector[cut:], [Mask(SEEDS[1])], cut)
    apply_masks(vector[:cut], [Mask(SEEDS[1])])
    assert vector.tobytes() == keystream_by_definition(SEEDS[1], vector.nbytes)


@given(dtypes, st.integers(1, 300), st.lists(st.tuples(st.sampled_from(SEEDS), st.booleans()), max_size=5))
def test_masks_cancel(dtype: str, length: int, chosen: list[tuple[bytes, bool]]) -> None:
    original = np.arange(length, dtype=dtype) * np.array(12_345, dtype)
    vector = original.copy()
    apply_masks(vector, [Mask(seed, subtract) for seed, subtract in chosen])
    apply_masks(vector, [Mask(seed, not subtract) for seed, subtract in reversed(chosen)])
    assert np.array_equal(vector, original)


def test_no_masks_change_nothing() -> None:
    vector = np.arange(10, dtype="<u2")
    apply_masks(vector, [])
    assert np.array_equal(vector, np.arange(10))


def test_the_memory_beyond_the_vector_does_not_grow_with_it() -> None:
    peaks = []
    for length in (1_000_000, 4_000_000):
        vector = np.zeros(length, "<u2")
        tracemalloc.start()
        apply_masks(vector, [Mask(seed) for seed in SEEDS])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < 3 * BUFFER_BYTES


def test_a_seed_is_not_in_a_masks_repr() -> None:
    assert "seed" not in repr(Mask(SEEDS[0]))
