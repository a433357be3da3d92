"""Pseudorandom masks, added in place: PRG of Bonawitz et al. 2017, section 3.3, as AES-256-CTR from a zero counter.

A seed is a key once, for one vector, so the counter may start at zero. The stream is read as little-endian
elements of the ring, which makes a mask exactly uniform for an ideal cipher: R is a power of two, nothing is rejected.

Proof: ``docs/proofs/rings.md``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from common.secagg.parameters import Vector

BUFFER_BYTES = 256 * 1024
"""Bytes of keystream made at a time: enough to amortise a call, and few enough to be added while still in the cache."""

_AES_BLOCK_BYTES = 16


@dataclass(frozen=True)
class Mask:
    """One stream to add to a vector, or to take from it."""

    seed: bytes = field(repr=False)
    """32 bytes, used for nothing else."""
    subtract: bool = False


def apply_masks(vector: Vector, masks: Sequence[Mask], first_element: int = 0) -> None:
    """Add every mask to ``vector`` in place, modulo R, on one core.

    Memory: one buffer of :data:`BUFFER_BYTES`, whatever the vector's length and the number of masks.

    Args:
        vector: shape (d,), little-endian uint16 or uint32, changed in place.
        masks: any number; a stretch of the vector stays in the cache for all of them.
        first_element: where in its mask ``vector`` begins, when it is a stretch of a longer one; a multiple of the
            elements in a block of AES.
    """
    step = BUFFER_BYTES // vector.itemsize
    longest = min(step, len(vector))
    first_block = first_element * vector.itemsize // _AES_BLOCK_BYTES
    streams = [(stream(mask.seed, first_block), np.subtract if mask.subtract else np.add) for mask in masks]
    zeros = memoryview(bytes(longest * vector.itemsize))
    # ``update_into`` asks for a block of room beyond the data.
    keystream = np.empty(longest + _AES_BLOCK_BYTES // vector.itemsize, vector.dtype)
    keystream_bytes = keystream.data.cast("B")
    for position in range(0, len(vector), step):
        stretch = vector[position : position + step]
        for encryptor, combine in streams:
            encryptor.update_into(zeros[: stretch.nbytes], keystream_bytes)
            combine(stretch, keystream[: len(stretch)], out=stretch)


MaskApplier = Callable[[Vector, Sequence[Mask]], None]
"""What :func:`apply_masks` does, perhaps on more cores: ``common/mask_workers.py``."""


def stream(seed: bytes, first_block: int) -> CipherContext:
    """Return AES-256-CTR under ``seed`` from block ``first_block`` on; encrypting zeros gives the keystream."""
    return Cipher(AES(seed), CTR(first_block.to_bytes(_AES_BLOCK_BYTES, "big"))).encryptor()
