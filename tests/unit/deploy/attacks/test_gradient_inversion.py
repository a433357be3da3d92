"""The attack finds what can be found, and its yardsticks measure what they say."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from common.models.flat import flat_parameters
from deploy.attacks.gradient_inversion import invert, likeness, matched

torch.set_num_threads(1)


def images(number: int, seed: int = 0) -> NDArray[np.uint8]:
    coarse = np.random.default_rng(seed).integers(0, 256, (number, 1, 3, 3), np.uint8)
    return coarse.repeat(4, axis=2).repeat(4, axis=3)


def test_an_image_is_found_from_the_gradient_of_a_model_that_pins_it_down() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 20), nn.Tanh(), nn.Linear(20, 2))
    original, label = images(1), torch.tensor([1])
    inputs = torch.from_numpy(original).float().div(127.5).sub(1.0)
    functional.cross_entropy(model(inputs), label).backward()  # type: ignore[no-untyped-call]
    gradient: NDArray[np.float32] = np.concatenate(
        [p.grad.numpy().ravel() for p in model.parameters() if p.grad is not None]
    )
    before = flat_parameters(model)
    found = invert(model, np.float32(0.01) * gradient, label, (1, 12, 12), iterations=300, seed=1)
    assert found.shape == original.shape
    assert likeness(original, found).ssim[0] > 0.8
    elsewhere = np.random.default_rng(1).standard_normal(len(gradient)).astype(np.float32)
    assert likeness(original, invert(model, elsewhere, label, (1, 12, 12), iterations=300, seed=1)).ssim[0] < 0.4
    assert np.array_equal(flat_parameters(model), before)


def test_images_are_paired_with_those_most_like_them_whatever_their_order() -> None:
    originals = images(5)
    shuffled = originals[[3, 0, 4, 1, 2]] // 2
    assert np.array_equal(matched(originals, shuffled), originals // 2)


def test_of_more_images_than_originals_the_most_alike_are_taken() -> None:
    everything = images(9)
    assert np.array_equal(matched(everything[4:6], everything), everything[4:6])


def test_equal_images_are_as_alike_as_can_be_and_others_less() -> None:
    one, other = images(1), images(1, seed=1)
    assert likeness(one, one).ssim[0] == 1.0
    # A difference of 16 everywhere: 20 log10(255 / 16) dB.
    grey = np.full((1, 1, 12, 12), 100, np.uint8)
    assert abs(likeness(grey, grey + np.uint8(16)).psnr[0] - 24.05) < 0.01
    assert likeness(one, other).ssim[0] < 0.5
