import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from deploy.results.saliency import occlusion


@pytest.mark.parametrize(("sign", "brightest"), [(1.0, True), (-1.0, False)])
def test_what_raises_the_margin_is_positive_and_what_lowers_it_negative(sign: float, brightest: bool) -> None:
    image = np.full((1, 64, 64), 100, np.uint8)
    image[:, 16:24, 40:48] = 250

    def margin(images: NDArray[np.uint8]) -> NDArray[np.float64]:
        return np.asarray(sign * images[:, 0, 16:24, 40:48].mean(axis=(1, 2), dtype=np.float64))

    found = occlusion(margin, image)
    marked = np.zeros((64, 64), bool)
    marked[16:24, 40:48] = True
    grey = round(float(image.mean()))
    assert found[marked] == pytest.approx(sign * (250 - grey))
    assert found[~marked] == pytest.approx(0.0)
    assert bool(found[20, 44] > 0) is brightest


@settings(max_examples=30)
@given(st.integers(8, 70))
def test_every_pixel_is_covered_whatever_the_size(size: int) -> None:
    image = np.zeros((1, size, size), np.uint8)
    painted = np.zeros((size, size), bool)

    def margin(images: NDArray[np.uint8]) -> NDArray[np.float64]:
        painted[(images[:, 0] != image[0]).any(axis=0)] = True
        return np.zeros(len(images))

    image[:] = np.random.default_rng(size).choice(np.array([0, 255], np.uint8), image.shape)
    assert np.isfinite(occlusion(margin, image)).all()
    assert painted.all()


def test_colours_are_painted_over_with_the_mean_of_each_channel() -> None:
    image = np.stack([np.full((16, 16), level, np.uint8) for level in (10, 100, 200)])

    def margin(images: NDArray[np.uint8]) -> NDArray[np.float64]:
        return np.asarray(images.astype(np.float64).sum(axis=(1, 2, 3)))

    assert occlusion(margin, image) == pytest.approx(0.0)


def test_an_image_is_left_as_it_was() -> None:
    image = np.random.default_rng(1).integers(0, 256, (1, 28, 28), np.uint8)
    before = image.copy()
    occlusion(lambda images: images.mean(axis=(1, 2, 3)), image)
    assert (image == before).all()
