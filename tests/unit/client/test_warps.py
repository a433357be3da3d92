import numpy as np
import pytest
from numpy.typing import NDArray

from client.warps import copies_of
from common.config import Warp

KINDS = [Warp.CHEST, Warp.XRAY, Warp.MIRROR]


def images(n: int = 4, channels: int = 1, side: int = 28) -> NDArray[np.uint8]:
    """Return smooth pictures without any symmetry."""
    x, y = np.meshgrid(np.linspace(0, 1, side), np.linspace(0, 1, side))
    rows = [120 + 80 * np.sin(3 * x + number) + 50 * y for number in range(n)]
    return np.repeat(np.stack(rows)[:, None], channels, axis=1).astype(np.uint8)


@pytest.mark.parametrize("warp", KINDS)
def test_the_first_copy_is_the_image_and_the_others_are_not(warp: Warp) -> None:
    some = images(channels=3)
    made = copies_of(some, warp, 2).reshape(len(some), 2, *some.shape[1:])
    assert made.dtype == np.uint8
    assert np.array_equal(made[:, 0], some)
    assert all((made[row, 1] != some[row]).any() for row in range(len(some)))


@pytest.mark.parametrize("warp", KINDS)
def test_a_copy_depends_on_its_own_image_alone_whatever_stands_beside_it(warp: Warp) -> None:
    some = images(6)
    together = copies_of(some, warp, 3).reshape(6, 3, 1, 28, 28)
    other = some.copy()
    other[3] = 255 - other[3]
    changed = copies_of(other, warp, 3).reshape(6, 3, 1, 28, 28)
    same = np.arange(6) != 3
    assert np.array_equal(changed[same], together[same])
    assert np.array_equal(copies_of(some[4:5], warp, 3), together[4])


@pytest.mark.parametrize("warp", [Warp.CHEST, Warp.XRAY])
def test_copies_stay_near_the_image_and_differ_from_each_other(warp: Warp) -> None:
    some = images(8)
    made = copies_of(some, warp, 3).reshape(8, 3, -1).astype(float)
    mirrored = some[:, :, :, ::-1].reshape(8, -1).astype(float) if warp is Warp.XRAY else made[:, 0]
    assert np.abs(made[:, 1] - mirrored).mean() < 40
    assert np.abs(made[:, 2] - made[:, 1]).mean() > 2


def test_a_mirror_image_is_the_image_turned_about() -> None:
    some = images(3)
    made = copies_of(some, Warp.MIRROR, 2).reshape(3, 2, 1, 28, 28)
    assert np.abs(made[:, 1].astype(int) - some[:, :, :, ::-1]).max() <= 1


def test_a_chest_is_never_mirrored_because_the_heart_lies_on_the_left() -> None:
    some = images(20)
    made = copies_of(some, Warp.CHEST, 3).reshape(20, 3, 28, 28).astype(float)
    for number in (1, 2):
        as_it_is = np.abs(made[:, number] - made[:, 0]).mean(axis=(1, 2))
        turned = np.abs(made[:, number, :, ::-1] - made[:, 0]).mean(axis=(1, 2))
        assert (as_it_is < turned).mean() > 0.8


def test_one_copy_is_the_images_themselves_and_none_of_no_image_is_none() -> None:
    some = images()
    assert copies_of(some, Warp.NONE, 1) is some
    assert copies_of(some[:0], Warp.CHEST, 3).shape == (0, 1, 28, 28)
