"""Masks a vector with several processes, erases the seeds and searches every process' memory for them.

``python -m tests.unit.common.erased_seeds`` prints as JSON how many pieces of seeds were in the caller's memory before
and after it erased them, and how many were in each worker's.
"""

import json
import os

import numpy as np

from common.mask_workers import LEAST_BYTES, SLOT_BYTES, MaskWorkers
from common.secagg.erasing import erase
from common.secagg.masks import Mask
from tests.support.memory_scan import Remembered

SEEDS = 20
WORKERS = 2
START_SECONDS = 60.0


def main() -> None:
    """Search, and print what is found."""
    with MaskWorkers(WORKERS) as workers:
        if workers.await_all(START_SECONDS) != WORKERS:
            raise SystemExit("the workers must start")
        remembered = Remembered()
        masks = [Mask(os.urandom(32)) for _ in range(SEEDS)]
        for mask in masks:
            remembered.remember("seeds", mask.seed)
        workers(np.arange((LEAST_BYTES + 5 * SLOT_BYTES) // 2, dtype="<u2"), masks)
        before = remembered.find()["seeds"]
        erase(*(mask.seed for mask in masks))
        after = remembered.find().total()
        found = [remembered.find(worker._process.pid).total() for worker in workers._workers]
    print(json.dumps({"before": before, "after": after, "workers": found}))  # noqa: T201 - the test reads it


if __name__ == "__main__":
    main()
