"""Masks a vector with several threads, erases the seeds and searches the process' memory for them.

``python -m tests.unit.common.erased_seeds`` prints as JSON how many pieces of seeds were there before and after.
"""

import json
import os

import numpy as np

from common.mask_workers import LEAST_BYTES, STRETCH_BYTES, MaskWorkers
from common.secagg.erasing import erase
from common.secagg.masks import Mask
from tests.support.memory_scan import Remembered

SEEDS = 20
WORKERS = 2


def main() -> None:
    """Search, and print what is found."""
    with MaskWorkers(WORKERS) as workers:
        remembered = Remembered()
        masks = [Mask(os.urandom(32)) for _ in range(SEEDS)]
        for mask in masks:
            remembered.remember("seeds", mask.seed)
        workers(np.arange((LEAST_BYTES + 5 * STRETCH_BYTES) // 2, dtype="<u2"), masks)
        before = remembered.find()["seeds"]
        erase(*(mask.seed for mask in masks))
        after = remembered.find().total()
    print(json.dumps({"before": before, "after": after}))  # noqa: T201 - the test reads it


if __name__ == "__main__":
    main()
