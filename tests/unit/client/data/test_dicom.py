"""Real DICOM files that pydicom ships, and made ones whose every value is known."""

import logging
import tracemalloc

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.sequence import Sequence

from client.data.dicom import quiet, read_dicom
from client.data.mistakes import Mistake
from client.data.pixels import UnusableImageError
from tests.unit.client.data.hospital_folder import dicom, encoded, packaged

GREY, COLOUR = 1, 3

RAMP_12 = np.arange(4096, dtype=np.uint16).reshape(64, 64)
RAMP_8 = np.arange(4096, dtype=np.uint16).reshape(64, 64).astype(np.uint8)


def read(content: bytes, channels: int = GREY) -> npt.NDArray[np.uint8]:
    with quiet():
        return read_dicom(content, channels).pixels


def refused(content: bytes, channels: int = GREY) -> Mistake:
    with quiet(), pytest.raises(UnusableImageError) as caught:
        read_dicom(content, channels)
    return caught.value.mistake


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("CT_small.dcm", (128, 128)),  # 16 bits, signed, no compression
        ("693_J2KI.dcm", (512, 512)),  # JPEG 2000, 14 bits
        ("J2K_pixelrep_mismatch.dcm", (512, 512)),  # JPEG 2000 lossless, 13 bits
        ("JPEG2000.dcm", (1024, 256)),
        ("JPGExtended.dcm", (1024, 256)),  # JPEG with 12 bits
        ("JPEGLSNearLossless_08.dcm", (45, 10)),
        ("JPEGLSNearLossless_16.dcm", (50, 10)),
        ("examples_overlay.dcm", (300, 484)),  # 12 of 16 bits
    ],
)
def test_packaged_grey_files_are_decoded_over_the_whole_range(name: str, shape: tuple[int, int]) -> None:
    pixels = read(packaged(name).read_bytes())
    assert pixels.shape == shape
    assert (pixels.min(), pixels.max()) == (0, 255)


@pytest.mark.parametrize(
    "name",
    [
        "MR_small_implicit.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_padded.dcm",
        "MR_small_RLE.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
    ],
)
def test_every_lossless_transfer_syntax_gives_the_very_same_pixels(name: str) -> None:
    assert np.array_equal(read(packaged(name).read_bytes()), read(packaged("MR_small.dcm").read_bytes()))


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("SC_rgb_small_odd.dcm", 0),
        ("SC_rgb_small_odd_big_endian.dcm", 0),
        ("SC_rgb_small_odd_jpeg.dcm", 4),  # YBR, lossy
    ],
)
def test_three_small_files_show_the_same_nine_colours(name: str, tolerance: int) -> None:
    shown = read(packaged(name).read_bytes(), COLOUR).astype(int)
    expected = read(packaged("SC_rgb_small_odd.dcm").read_bytes(), COLOUR).astype(int)
    assert np.abs(shown - expected).max() <= tolerance


@pytest.mark.parametrize(
    "name",
    [
        "SC_rgb_dcmtk_+eb+cr.dcm",  # JPEG baseline, RGB
        "SC_rgb_dcmtk_+eb+cy+n1.dcm",  # YBR_FULL
        "SC_rgb_dcmtk_+eb+cy+s2.dcm",  # YBR_FULL_422
        "SC_rgb_jpeg_gdcm.dcm",  # JPEG lossless
        "SC_rgb_gdcm_KY.dcm",  # JPEG 2000
        "SC_rgb_jls_lossy_line.dcm",
        "SC_rgb_rle.dcm",
        "SC_ybr_full_422_uncompressed.dcm",
    ],
)
def test_every_colour_space_and_compression_shows_the_same_colour_bars(name: str) -> None:
    shown = read(packaged(name).read_bytes(), COLOUR)
    assert shown.shape == (100, 100, 3)
    bars = [shown[row, 50] for row in (5, 15, 25)]
    for bar, colour in zip(bars, ((255, 0, 0), (255, 128, 128), (0, 255, 0)), strict=True):
        assert np.abs(bar.astype(int) - colour).max() <= 8


@pytest.mark.parametrize(
    ("name", "channels", "mistake"),
    [
        ("SC_rgb_rle_2frame.dcm", COLOUR, Mistake.MULTI_FRAME),
        ("rtdose.dcm", GREY, Mistake.MULTI_FRAME),
        ("examples_ybr_color.dcm", COLOUR, Mistake.MULTI_FRAME),
        ("SC_rgb_rle_16bit.dcm", COLOUR, Mistake.WRONG_DEPTH),
        ("SC_rgb_rle_32bit.dcm", COLOUR, Mistake.WRONG_DEPTH),
        ("rtdose_1frame.dcm", GREY, Mistake.WRONG_DEPTH),
        ("liver_1frame.dcm", GREY, Mistake.WRONG_DEPTH),
        ("examples_palette.dcm", COLOUR, Mistake.WRONG_PHOTOMETRIC),
        ("examples_rgb_color.dcm", GREY, Mistake.WRONG_COLOUR),
        ("CT_small.dcm", COLOUR, Mistake.WRONG_COLOUR),
        ("reportsi.dcm", GREY, Mistake.NO_PIXELS),
        ("rtplan.dcm", GREY, Mistake.NO_PIXELS),
        ("MR_truncated.dcm", GREY, Mistake.IMAGE_DAMAGED),
        ("JPEG2000-embedded-sequence-delimiter.dcm", GREY, Mistake.IMAGE_TOO_LARGE),
        ("badVR.dcm", GREY, Mistake.IMAGE_DAMAGED),
        ("image_dfl.dcm", GREY, Mistake.COMPRESSION_UNKNOWN),
    ],
)
def test_packaged_files_of_other_kinds_are_refused_by_their_mistake(name: str, channels: int, mistake: Mistake) -> None:
    assert refused(packaged(name).read_bytes(), channels) is mistake


@pytest.mark.parametrize(
    ("pixels", "bits"),
    [(RAMP_8, 8), (np.arange(1024, dtype=np.uint16).reshape(32, 32), 10), (RAMP_12, 12), (RAMP_12 * np.uint16(16), 16)],
)
def test_8_to_16_bits_fill_the_range_with_more_brighter(pixels: npt.NDArray[np.uint16], bits: int) -> None:
    shown = read(dicom(pixels, bits)).ravel()
    order = np.argsort(pixels.ravel(), kind="stable")
    assert np.all(np.diff(shown[order].astype(int)) >= 0)
    assert (shown.min(), shown.max()) == (0, 255)


def test_monochrome1_is_the_negative_of_monochrome2() -> None:
    upright = read(dicom(RAMP_12, 12))
    turned = read(dicom(RAMP_12, 12, PhotometricInterpretation="MONOCHROME1"))
    assert np.abs(upright.astype(int) + turned - 255).max() <= 1


def test_a_window_is_applied_as_the_standard_says() -> None:
    """PS3.3 C.11.2.1.2.1: y = ((x - (c - 0.5)) / (w - 1) + 0.5) (ymax - ymin) + ymin, cut at the ends."""
    center, width = 1500.0, 600.0
    shown = read(dicom(RAMP_12, 12, WindowCenter=center, WindowWidth=width))
    expected = np.clip(((RAMP_12 - (center - 0.5)) / (width - 1) + 0.5) * 255, 0, 255)
    assert np.abs(shown - expected).max() <= 0.51


def test_the_first_of_several_windows_is_applied() -> None:
    one = read(dicom(RAMP_12, 12, WindowCenter=1500, WindowWidth=600))
    several = read(dicom(RAMP_12, 12, WindowCenter=[1500, 40], WindowWidth=[600, 80]))
    assert np.array_equal(one, several)


def test_a_window_speaks_of_rescaled_values() -> None:
    plain = read(dicom(RAMP_12, 12, WindowCenter=1500, WindowWidth=600))
    rescaled = dicom(
        RAMP_12, 12, RescaleSlope=2, RescaleIntercept=-1024, WindowCenter=2 * 1500 - 1024, WindowWidth=1199
    )
    assert np.abs(read(rescaled).astype(int) - plain).max() <= 1


def test_a_table_of_the_header_is_applied() -> None:
    table = pydicom.Dataset()
    table.LUTDescriptor = [4096, 0, 16]
    table.LUTData = ((np.arange(4096) >= 2048) * 65_535).astype("<u2").tobytes()
    shown = read(dicom(RAMP_12, 12, VOILUTSequence=Sequence([table])))
    assert np.array_equal(shown, (RAMP_12 >= 2048) * 255)


def test_a_few_hot_pixels_do_not_darken_the_rest() -> None:
    pixels = np.tile(np.arange(100, dtype=np.uint16), (100, 1)) + np.uint16(1000)
    hot = pixels.copy()
    hot[0, :10] = 4095
    ordinary = read(dicom(pixels, 12))
    assert np.abs(read(dicom(hot, 12))[1:].astype(int) - ordinary[1:]).max() <= 8


def test_a_window_without_width_shows_black_and_is_found_constant_later() -> None:
    assert read(dicom(RAMP_12, 12, WindowCenter=0, WindowWidth=0)).max() == 255  # no window: the percentiles
    assert read(dicom(np.full((40, 40), 7, np.uint16), 12)).max() == 0


def test_the_header_gives_what_the_checks_need_and_names_personal_fields_without_their_values() -> None:
    content = dicom(
        RAMP_8,
        PatientID=" KH-1 ",
        PatientName="Canary^Carla",
        StudyDate="20260102",
        BurnedInAnnotation="YES",
        InstitutionName="Canary Clinic",
    )
    with quiet():
        header = read_dicom(content, GREY).header
    assert (header.patient, header.study_date, header.burned_in, header.modality) == ("KH-1", "20260102", True, "DX")
    assert header.personal == ("InstitutionName", "PatientName")
    assert "KH-1" not in repr(header)
    assert "20260102" not in repr(header)


def test_a_header_that_says_the_identity_was_removed_is_believed() -> None:
    with quiet():
        header = read_dicom(dicom(RAMP_8, PatientName="anon", PatientIdentityRemoved="YES"), GREY).header
    assert header.personal == ()


def test_a_header_that_claims_more_than_there_is_costs_no_memory() -> None:
    content = dicom(RAMP_8, Rows=8000, Columns=8000)
    tracemalloc.start()
    assert refused(content) is Mistake.IMAGE_DAMAGED
    assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "marker", "places", "width"),
    [
        ("MR_small_jpeg_ls_lossless.dcm", b"\xff\xf7", (5, 7), 2),
        ("JPGExtended.dcm", b"\xff\xc1", (5, 7), 2),
        ("MR_small_jp2klossless.dcm", b"\xff\x51", (6, 10), 4),
    ],
)
@pytest.mark.parametrize(("claimed", "mistake"), [(40_000, Mistake.IMAGE_TOO_LARGE), (4_000, Mistake.IMAGE_DAMAGED)])
def test_a_codestream_that_claims_more_pixels_than_its_header_is_refused_before_it_is_decoded(
    name: str, marker: bytes, places: tuple[int, int], width: int, claimed: int, mistake: Mistake
) -> None:
    dataset = pydicom.dcmread(packaged(name))
    pixels = bytearray(dataset.PixelData)
    start = pixels.find(marker)
    for place in places:
        pixels[start + place : start + place + width] = claimed.to_bytes(width, "big")
    dataset.PixelData = bytes(pixels)
    tracemalloc.start()
    assert refused(encoded(dataset)) is mistake
    assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    tracemalloc.stop()


def test_nothing_of_a_header_is_logged_or_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    broken = dicom(RAMP_8, PatientBirthDate="19640812").replace(b"19640812", b"Carla ca")
    with caplog.at_level(logging.DEBUG, "pydicom"):
        read(broken)
        read(packaged("JPGExtended.dcm").read_bytes())
    assert not caplog.records


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from(
        ["MR_small.dcm", "MR_small_RLE.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_jp2klossless.dcm"]
    ),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=6),
    kept=st.floats(0.02, 1),
)
def test_a_damaged_file_gives_pixels_or_a_mistake_and_never_another_error(
    name: str, changes: list[tuple[float, int]], kept: float
) -> None:
    content = bytearray(packaged(name).read_bytes())
    for place, bits in changes:
        content[int(place * len(content))] ^= bits
    try:
        read(bytes(content[: int(kept * len(content))]))
    except UnusableImageError:
        return
