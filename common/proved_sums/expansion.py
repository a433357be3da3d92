"""A, expanded from what is public about a run: integers modulo q from AES-256 in counter mode, and nothing to choose.

The key is a hash of version, run and sizes. The stream is read as little-endian words of 4 or 8 bytes; words of q or
more are skipped, one in 43 million where q is 2^32 - 99.

Proof: ``docs/proofs/proved-sums.md``.
"""

from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import CipherContext
from numpy.typing import NDArray

from common.proved_sums.parameters import ProofParameters
from common.secagg.binding import bound_hash
from common.secagg.masks import stream
from common.secagg.parameters import RunParameters

Words = NDArray[np.unsignedinteger[Any]]

_AES_BLOCK_BYTES = 16
_ZEROS = bytes(256 * 1024)


def matrix_key(run: RunParameters, parameters: ProofParameters) -> bytes:
    """Return the key of A's stream, 32 bytes: the same for all rounds and parties of a run, different for any other."""
    lattice = parameters.lattice
    sizes = (lattice.degree, lattice.rank, lattice.modulus, parameters.entries, parameters.randomness)
    return bound_hash(
        "commitment matrix",
        bytes.fromhex(run.run_id),
        run.config_hash,
        *(size.to_bytes(8, "big") for size in sizes),
    )


class UniformStream:
    """Uniform integers modulo q, in order; each object is one stream.

    Args:
        key: 32 bytes of :func:`matrix_key`.
        modulus: q, a little below 2^32 or 2^64.
        most: how many integers are taken at a time at most; memory for them is held.
    """

    def __init__(self, key: bytes, modulus: int, most: int) -> None:
        self._dtype = np.dtype("<u4" if modulus < 1 << 32 else "<u8")
        self._limit = self._dtype.type(modulus)
        self._encryptor: CipherContext = stream(key, 0)
        # ``update_into`` asks for a block of room beyond the data.
        self._buffer = np.empty(most + _AES_BLOCK_BYTES // self._dtype.itemsize, self._dtype)

    def take(self, count: int) -> Words:
        """Return the next ``count`` integers; a view that the next call may overwrite."""
        words = self._words(self._buffer, count)
        if (words < self._limit).all():
            return words
        taken = words[words < self._limit]
        while len(taken) < count:
            more = self._words(np.empty_like(self._buffer), count - len(taken))
            taken = np.concatenate([taken, more[more < self._limit]])
        return taken

    def _words(self, buffer: Words, count: int) -> Words:
        target = buffer.data.cast("B")
        size = count * self._dtype.itemsize
        for start in range(0, size, len(_ZEROS)):
            length = min(len(_ZEROS), size - start)
            self._encryptor.update_into(_ZEROS[:length], target[start:])
        return buffer[:count]
