"""Whether this process computes as every other hospital does: in IEEE 754, with numbers below the normal range.

The next model is computed by everyone from the same sum, elementwise, with one rounding for each operation, so that all
get the same bits. One thing a library can do to a whole process breaks that without any sign: to let small numbers
count as zero.

Proof: ``docs/proofs/proved-sums.md``.
"""

import numpy as np

from common.errors import RunError

_SMALLEST = np.float32(2.0**-149)


class FlushToZeroError(RunError):
    """This process lets numbers below the normal range count as zero, so it would compute another model."""


def require_gradual_underflow() -> None:
    """Refuse to go on in a process that flushes small numbers to zero; a hospital calls it when it joins a run.

    Raises:
        FlushToZeroError: it does.
    """
    several = np.full(64, _SMALLEST)
    if not (several * np.float32(1)).all() or not (np.float32(2.0**-126) * np.full(64, np.float32(0.5))).all():
        raise FlushToZeroError(
            "float32 below 2^-126 must not count as zero, or this hospital's model differs from the others'; start it "
            "without the library or setting (such as torch.set_flush_denormal) that switches this on"
        )
