"""The threshold of a hospital's own model: where both classes err equally, and what one unit can change of it."""

import math
from collections.abc import Iterator
from functools import partial
from itertools import cycle

import numpy as np
import pytest

import client.own_threshold as module
from client.own_threshold import SCALE, noise_of, threshold_of
from common.keystream import SEED_BYTES, Keystream
from common.privacy.calibration import THRESHOLD_HALVINGS


def _two_classes(seed: int, count: int, share: float = 0.6) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = (generator.random(count) < share).astype(np.int64)
    return generator.normal(np.where(labels, 2.5, -0.5), 1.5), labels


def _errors(scores: np.ndarray, labels: np.ndarray, threshold: float) -> tuple[float, float]:
    called = scores >= threshold
    return float((~called)[labels == 1].mean()), float(called[labels == 0].mean())


def _drawn(stream: Keystream, multiplier: float) -> int:
    return int(noise_of(multiplier).noise_share(1, stream)[0])


@pytest.mark.parametrize("share", [0.2, 0.6, 0.9])
def test_without_noise_both_classes_err_equally_often(share: float) -> None:
    scores, labels = _two_classes(1, 20_000, share)
    missed, alarmed = _errors(scores, labels, threshold_of(scores, labels, np.arange(20_000), 20_000, lambda: 0))
    assert missed == pytest.approx(alarmed, abs=0.01)


def test_the_noise_of_the_product_moves_it_little_where_there_are_a_thousand_records() -> None:
    scores, labels = _two_classes(2, 1200)
    found = []
    for seed in range(30):
        noise = partial(_drawn, Keystream(seed.to_bytes(SEED_BYTES, "big")), 7.0)
        threshold = threshold_of(scores, labels, np.arange(1200), 1200, noise)
        found.append(np.subtract(*_errors(scores, labels, threshold)))
    assert np.abs(found).max() < 0.12
    assert np.std(found) > 0


def test_an_answers_noise_has_the_deviation_that_is_booked() -> None:
    stream = Keystream(bytes(SEED_BYTES))
    drawn = [_drawn(stream, 3.0) for _ in range(4000)]
    assert np.std(drawn) == pytest.approx(3.0 * SCALE, rel=0.05)
    assert np.mean(drawn) == pytest.approx(0.0, abs=4 * 3.0 * SCALE / math.sqrt(4000))


@pytest.mark.parametrize("per_unit", [1, 2, 5])
@pytest.mark.parametrize("path", [(1,), (-1,), (1, -1), (-1, -1, 1)])
def test_one_unit_changes_each_answer_by_at_most_what_its_noise_hides(
    monkeypatch: pytest.MonkeyPatch, per_unit: int, path: tuple[int, ...]
) -> None:
    """Noise so large that it alone decides which way the search goes, so that both searches ask the same questions."""
    scores, labels = _two_classes(3, 60)
    labels[7] = 9  # No class; it counts nowhere.
    units = np.arange(60) // per_unit

    def answers(kept: np.ndarray) -> list[int]:
        heard: list[int] = []
        real = _total

        def listened(values: np.ndarray, of: np.ndarray) -> int:
            heard.append(real(values, of))
            return heard[-1]

        monkeypatch.setattr(module, "_total", listened)
        signs: Iterator[int] = cycle(path)
        threshold_of(scores[kept], labels[kept], units[kept], 60, lambda: next(signs) * 10**12)
        return heard

    everything = answers(np.ones(60, np.bool_))
    assert len(everything) == 1 + THRESHOLD_HALVINGS
    changed = 0
    for unit in np.unique(units):
        apart = np.abs(np.subtract(everything, answers(units != unit)))
        assert apart.max() <= SCALE
        changed += int(apart.any())
    assert changed > 0


_total = module._total


def test_no_records_and_one_class_give_a_threshold_too() -> None:
    nothing = np.zeros(0)
    assert math.isfinite(threshold_of(nothing, nothing.astype(np.int64), nothing.astype(np.int64), 40, lambda: 0))
    scores = np.linspace(-1, 1, 40)
    for label in (0, 1):
        labels = np.full(40, label)
        assert math.isfinite(threshold_of(scores, labels, np.arange(40), 40, lambda: 0))
