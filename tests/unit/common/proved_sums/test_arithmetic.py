"""A process that computes otherwise than the others is refused, and strategies compute the same on every machine."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.proved_sums.arithmetic import require_gradual_underflow

ROOT = Path(__file__).parents[4]

FLUSHING = """
import torch
from common.proved_sums.arithmetic import FlushToZeroError, require_gradual_underflow
require_gradual_underflow()
assert torch.set_flush_denormal(True)
try:
    require_gradual_underflow()
except FlushToZeroError as error:
    print(error)
"""

FEATURES = """
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__
print([name for name in __cpu_dispatch__ if __cpu_features__.get(name)])
"""

STEPS = """
import hashlib
import numpy as np
from server.strategies import STRATEGIES, StrategyTerms
source = np.random.default_rng(7)
# Sizes that no vector width divides, and values down to the subnormal ones.
size = 10_007
deltas = [
    (source.normal(size=size) * 10.0 ** source.integers(-44, 3, size)).astype(np.float32) for _ in range(10)
]
for name, strategy in sorted(STRATEGIES.items()):
    made = strategy.make(StrategyTerms(size, learning_rate=0.37, server_momentum=0.9, momentum=0.0))
    model = source.normal(size=size).astype(np.float32)
    for delta in deltas:
        model = made.step(model, delta)
    digest = hashlib.sha256(model.tobytes())
    for key, state in sorted(made.state().items()):
        digest.update(key.encode() + state.tobytes())
    print(name, digest.hexdigest())
"""


def said(program: str, **environment: str) -> str:
    run = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return run.stdout


def test_this_process_keeps_small_numbers() -> None:
    require_gradual_underflow()


@pytest.mark.long
def test_a_process_that_flushes_small_numbers_to_zero_is_refused() -> None:
    assert "float32 below 2^-126 must not count as zero" in said(FLUSHING)


@pytest.mark.long
def test_ten_steps_of_each_strategy_are_the_same_bits_without_the_widest_instructions() -> None:
    features = _switchable()
    if not features:
        pytest.skip("this processor has no instructions that numpy could do without")
    everything, baseline = said(STEPS), said(STEPS, NPY_DISABLE_CPU_FEATURES=" ".join(features))
    assert len(everything.splitlines()) >= 3
    assert baseline == everything


def _switchable() -> list[str]:
    """Return what numpy dispatches on and this processor has: AVX2, FMA3 and AVX512 among them."""
    return ast.literal_eval(said(FEATURES))  # type: ignore[no-any-return]
