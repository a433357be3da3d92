"""Pseudorandom masks, added in place: PRG of Bonawitz et al. 2017, section 3.3, as AES-256-CTR from a zero counter.

A seed is used as key once, for one vector, so the counter may start at zero. The stream is read as little-endian
elements of the ring, which makes a mask exactly uniform for an ideal cipher: R is a power of two, nothing is rejected.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from common.secagg.parameters import Vector

BUFFER_BYTES = 256 * 1024
"""Of keystream at a time: large enough to amortise a call, small enough to be added while still in the cache."""

_AES_BLOCK_BYTES = 16


@dataclass(frozen=True)
class Mask:
    """One stream to add to a vector, or to take from it."""

    seed: bytes = field(repr=False)
    """32 bytes, used for nothing else."""
    subtract: bool = False


def apply_masks(vector: Vector, masks: Sequence[Mask], threads: int = 1) -> None:
    """Add every mask to ``vector`` in place, modulo R.

    Memory: one buffer of :data:`BUFFER_BYTES` for each thread, whatever the vector's length and the number of masks.

    Args:
        vector: shape (d,), little-endian uint16 or uint32, changed in place.
        masks: any number.
        threads: the vector is cut into that many ranges; each thread runs every stream over its own. While
            ``cryptography`` holds Python's global lock as it encrypts (until its pull request 15359), more than one
            only makes this slower.
    """
    step = BUFFER_BYTES // vector.itemsize
    buffers = -(-len(vector) // step)
    per_range = max(1, -(-buffers // threads)) * step
    starts = range(0, len(vector), per_range)
    if len(starts) == 1:
        _apply_to_range(vector, masks, 0, len(vector))
        return
    with ThreadPoolExecutor(threads) as pool:
        for done in [
            pool.submit(_apply_to_range, vector, masks, start, min(start + per_range, len(vector))) for start in starts
        ]:
            done.result()


def stream(seed: bytes, first_block: int) -> CipherContext:
    """Return AES-256-CTR under ``seed`` from block ``first_block`` on; encrypting zeros gives the keystream."""
    return Cipher(AES(seed), CTR(first_block.to_bytes(_AES_BLOCK_BYTES, "big"))).encryptor()


def _apply_to_range(vector: Vector, masks: Sequence[Mask], start: int, end: int) -> None:
    """Apply all masks buffer by buffer, so that a stretch of the vector stays in the cache for all of them."""
    step = min(BUFFER_BYTES // vector.itemsize, end - start)
    first_block = start * vector.itemsize // _AES_BLOCK_BYTES
    streams = [(stream(mask.seed, first_block), np.subtract if mask.subtract else np.add) for mask in masks]
    zeros = memoryview(bytes(step * vector.itemsize))
    # ``update_into`` asks for a block of room beyond the data.
    keystream = np.empty(step + _AES_BLOCK_BYTES // vector.itemsize, vector.dtype)
    keystream_bytes = keystream.data.cast("B")
    for position in range(start, end, step):
        stretch = vector[position : min(position + step, end)]
        needed = stretch.nbytes
        for encryptor, combine in streams:
            encryptor.update_into(zeros[:needed], keystream_bytes)
            combine(stretch, keystream[: len(stretch)], out=stretch)
