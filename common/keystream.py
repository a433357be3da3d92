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
"""Zeros to encrypt: enough to hide the cost of a call, and few enough to stay in the second-level cache."""

_CHUNK = 1 << 16
"""How many Gaussians are made at a time, so that the temporaries stay in cache and the memory constant."""


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

    def draw(self, count: int) -> bytes:
        """Return the next ``count`` bytes: in the place of ``os.urandom`` where a run must be repeatable."""
        out = np.empty(count, np.uint8)
        self.fill(out)
        return out.tobytes()

    def uniform(self, count: int) -> NDArray[np.float64]:
        """Return ``count`` floats uniform on the 2^53 multiples of 2^-53 in [0, 1)."""
        words = np.empty(count, np.uint64)
        self.fill(words)
        words >>= np.uint64(11)
        return np.multiply(words, 2.0**-53, dtype=np.float64)

    def gaussian(self, count: int) -> NDArray[np.float64]:
        """Return ``count`` independent standard normal float64, shape (count,).

        Box and Muller's transform (1958) of 53-bit uniforms; none is larger than 8.58 in size, which a true normal is
        with probability 1e-17. A released sum of data and such noise must be rounded to a coarse grid: the last digits
        of a float64 betray which sums are possible at all (Mironov 2012; Jin et al. 2022, arXiv:2112.05307).
        """
        normals = np.empty(count)
        for start in range(0, count, _CHUNK):
            part = normals[start : start + _CHUNK]
            part[:] = self._box_muller(len(part))
        return normals

    def _box_muller(self, count: int) -> NDArray[np.float64]:
        import torch  # Its cosine is three times as fast as numpy's; callers that want bits alone need no torch.

        pairs = (count + 1) // 2
        radius = self.uniform(pairs)
        np.subtract(1.0, radius, out=radius)  # (0, 1], so that the logarithm is finite
        np.log(radius, out=radius)
        radius *= -2.0
        np.sqrt(radius, out=radius)
        angle = torch.from_numpy(self.uniform(pairs)).mul_(2.0 * np.pi)
        both = np.empty(2 * pairs)
        np.multiply(radius, angle.cos().numpy(), out=both[:pairs])
        np.multiply(radius, angle.sin_().numpy(), out=both[pairs:])
        return both[:count]
