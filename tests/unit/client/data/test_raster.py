"""PNG and JPEG files: a PNG may have 16 bits, and is shown as a viewer shows it."""

import numpy as np
import numpy.typing as npt
import pytest

from client.data.readers import clean_copy, read_picture
from client.data.readers.reader import Pseudonyms
from tests.support.hospital_folder import chest_images, dicom, png


def ramp() -> npt.NDArray[np.uint16]:
    """Return every value that 16 bits can have."""
    return np.arange(2**16, dtype=np.uint16).reshape(256, 256)


def test_16_bits_span_the_range_from_black_to_white() -> None:
    picture = read_picture(png(ramp()), 1)
    assert picture.pixels.dtype == np.uint8
    assert np.array_equal(picture.pixels, np.rint(ramp() / 257).astype(np.uint8))


def test_a_png_of_16_bits_is_shown_as_the_same_dicom_with_a_window_over_all_of_its_range() -> None:
    film = dicom(ramp(), 16, WindowCenter=32768, WindowWidth=65536)
    apart = read_picture(film, 1).pixels.astype(int) - read_picture(png(ramp()), 1).pixels
    assert np.abs(apart).max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_saved_with_16_bits_is_the_image_saved_with_8(channels: int) -> None:
    grey = chest_images()[0]
    deep = read_picture(png(grey.astype(np.uint16) * 257), channels)
    assert np.array_equal(deep.pixels, read_picture(png(grey), channels).pixels)


def test_a_clean_copy_of_16_bits_shows_the_same() -> None:
    copy = clean_copy(png(ramp()), "p1", Pseudonyms())
    assert np.array_equal(read_picture(copy.content, 1).pixels, read_picture(png(ramp()), 1).pixels)
