"""Uniform and Gaussian numbers from a cryptographic stream: AES-256 in counter mode under a fresh key.

Three things in Confide are only as good as the unpredictability of the numbers behind them, and numpy's and torch's
generators are predictable from their output: which records a Poisson batch holds (amplification by sampling assumes
that the adversary cannot know), the Gaussian noise of DP-SGD, and the coin of stochastic rounding.
"""

from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

SEED_BYTES = 32

_BLOCK = bytes(256 * 1024)
"""Plaintext zeros; large enough to hide the cost of a call, small enough to stay in the second-level cache."""

_GAUSSIANS_SUMMED = 4
"""As ``opacus`` in secure mode: the complexity of guessing the floating-point grid is then 2^159, not 2^53."""

_CHUNK = 1 << 16
"""Gaussians made at a time, so that the temporaries stay in cache and the memory constant."""


class Keystream:
    """Numbers nobody can predict without the seed; each object is one stream and is used up in order.

    Args:
        seed: 32 bytes, fresh from the operating system; the same seed gives the same numbers.

    Raises:
        ValueError: the seed is not 32 bytes.
    """

    def __init__(self, seed: bytes) -> None:
        if len(seed) != SEED_BYTES:
            raise ValueError(f"a keystream seed must be {SEED_BYTES} bytes, got {len(seed)}")
        # The key is used for this one stream, so a constant initial counter never repeats a block.
        self._encryptor: Any = Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor()

    def fill(self, out: NDArray[Any]) -> None:
        """Overwrite a C-contiguous array with uniform bits, whatever its dtype."""
        target = memoryview(out.data).cast("B")
        for start in range(0, len(target), len(_BLOCK)):
            part = target[start : start + len(_BLOCK)]
            self._encryptor.update_into(_BLOCK[: len(part)], part)

    def uniform(self, count: int) -> NDArray[np.float64]:
        """Return ``count`` floats uniform on the 2^53 multiples of 2^-53 in [0, 1)."""
        words = np.empty(count, np.uint64)
        self.fill(words)
        words >>= np.uint64(11)
        return np.multiply(words, 2.0**-53, dtype=np.float64)

    def gaussian(self, count: int) -> NDArray[np.float64]:
        """Return ``count`` independent standard normal float64, shape (count,).

        Box and Muller's transform (1958); each value is half the sum of four, against the attack that reads the
        unnoised value off the grid of floating-point numbers a single sample can take (Holohan and Braghin 2021,
        arXiv:2107.10138, section 5.1; Opacus does the same in its secure mode).
        """
        normals = np.empty(count)
        for start in range(0, count, _CHUNK):
            part = normals[start : start + _CHUNK]
            summed = self._box_muller(len(part))
            for _ in range(_GAUSSIANS_SUMMED - 1):
                summed += self._box_muller(len(part))
            np.multiply(summed, _GAUSSIANS_SUMMED**-0.5, out=part)
        return normals

    def _box_muller(self, count: int) -> NDArray[np.float64]:
        pairs = (count + 1) // 2
        radius = self.uniform(pairs)
        np.subtract(1.0, radius, out=radius)  # (0, 1], so that the logarithm is finite
        np.log(radius, out=radius)
        radius *= -2.0
        np.sqrt(radius, out=radius)
        angle = self.uniform(pairs)
        angle *= 2.0 * np.pi
        both = np.empty(2 * pairs)
        np.multiply(radius, np.cos(angle), out=both[:pairs])
        np.multiply(radius, np.sin(angle), out=both[pairs:])
        return both[:count]
