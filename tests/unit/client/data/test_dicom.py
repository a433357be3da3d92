"""Real DICOM files that pydicom ships, and made ones whose every value is known."""

import io
import logging
import tracemalloc
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian

from client.data.mistakes import Mistake
from client.data.pixels import UnusableImageError
from client.data.readers.dicom import is_dicom, quiet, read_dicom
from tests.support.hospital_folder import dicom, encoded, packaged

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
        ("examples_rgb_color.dcm", GREY, Mistake.WRONG_COLOUR),
        ("CT_small.dcm", COLOUR, Mistake.WRONG_COLOUR),
        ("reportsi.dcm", GREY, Mistake.NO_PIXELS),
        ("rtplan.dcm", GREY, Mistake.NO_PIXELS),
        ("MR_truncated.dcm", GREY, Mistake.IMAGE_DAMAGED),
        ("JPEG2000-embedded-sequence-delimiter.dcm", GREY, Mistake.IMAGE_TOO_LARGE),
        ("badVR.dcm", GREY, Mistake.IMAGE_DAMAGED),
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


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"WindowCenter": [0, 0], "WindowWidth": [0, 0]}, "WindowWidth 0 is too narrow"),
        ({"WindowCenter": 1, "WindowWidth": 0}, "WindowWidth 0"),
        ({"WindowCenter": 9, "WindowWidth": "0.5"}, "WindowWidth 0.5"),
        ({"WindowCenter": 9, "WindowWidth": -3}, "WindowWidth -3"),
        ({"WindowCenter": 9}, "1 WindowCenter and 0 WindowWidth"),
        ({"RescaleSlope": "", "RescaleIntercept": ""}, "RescaleSlope or RescaleIntercept is empty"),
        ({"RescaleSlope": 2}, "RescaleSlope or RescaleIntercept is empty or missing"),
        ({"RescaleSlope": 0, "RescaleIntercept": 1}, "RescaleSlope is 0"),
        ({"VOILUTSequence": Sequence([pydicom.Dataset()])}, "VOILUTSequence: LUTDescriptor or LUTData is missing"),
        ({"ModalityLUTSequence": Sequence([pydicom.Dataset()])}, "ModalityLUTSequence: LUTDescriptor or LUTData"),
        ({"PixelRepresentation": None}, "PixelRepresentation is empty or missing: taken as 0"),
        ({"BitsStored": None, "HighBit": None}, "BitsStored is empty or missing: taken as 16"),
    ],
    ids=str,
)
def test_a_field_that_makes_no_sense_is_passed_over_and_named(fields: dict[str, object], named: str) -> None:
    with quiet():
        picture = read_dicom(dicom(RAMP_12, 12, **fields), GREY)
    assert len(picture.passed_over) >= 1
    assert named in picture.passed_over[0]
    assert np.array_equal(picture.pixels, read(dicom(RAMP_12, 12)))


def test_an_unknown_function_is_taken_as_linear_and_named() -> None:
    window = {"WindowCenter": 1500, "WindowWidth": 600}
    with quiet():
        picture = read_dicom(dicom(RAMP_12, 12, **window, VOILUTFunction="STANDARD"), GREY)
    assert "VOILUTFunction" in picture.passed_over[0]
    assert np.array_equal(picture.pixels, read(dicom(RAMP_12, 12, **window)))


def test_the_first_usable_window_is_taken() -> None:
    content = dicom(RAMP_12, 12, WindowCenter=[0, 1500], WindowWidth=[0, 600])
    assert np.array_equal(read(content), read(dicom(RAMP_12, 12, WindowCenter=1500, WindowWidth=600)))


def test_an_exact_window_may_be_narrower_than_one() -> None:
    fields = {"RescaleSlope": "0.0001", "RescaleIntercept": 0, "WindowCenter": "0.2", "WindowWidth": "0.2"}
    shown = read(dicom(RAMP_12, 12, **fields, VOILUTFunction="LINEAR_EXACT"))
    expected = np.clip(((RAMP_12 * 1e-4 - 0.2) / 0.2 + 0.5) * 255, 0, 255)
    assert np.abs(shown - expected).max() <= 0.51


@pytest.mark.parametrize("limits", [(4000, None), (4000, 4095), (4095, 4000)])
@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_does_not_count_in_the_percentiles(limits: tuple[int, int | None], kind: str) -> None:
    inside = np.arange(1000, 3500, dtype=np.uint16).reshape(50, 50)
    framed = np.full((60, 60), 4000, np.uint16)
    framed[5:-5, 5:-5] = inside
    padding: dict[str, object] = {"PixelPaddingValue": limits[0]}
    if limits[1] is not None:
        padding["PixelPaddingRangeLimit"] = limits[1]
    shown = read(dicom(framed, 12, PhotometricInterpretation=kind, **padding))
    assert np.array_equal(shown[5:-5, 5:-5], read(dicom(inside, 12, PhotometricInterpretation=kind)))
    shown[5:-5, 5:-5] = 0
    assert not shown.any()


def test_padding_of_signed_values_may_be_written_without_its_sign() -> None:
    inside = np.arange(-1250, 1250, dtype=np.int16).reshape(50, 50)
    framed = np.pad(inside, 4, constant_values=-2000).astype(np.int16)
    content = dicom(framed.view(np.uint16), 16, PixelRepresentation=1)
    padded = pydicom.dcmread(io.BytesIO(content))
    padded.add_new("PixelPaddingValue", "US", 65536 - 2000)
    assert np.array_equal(
        read(encoded(padded))[4:-4, 4:-4], read(dicom(inside.view(np.uint16), 16, PixelRepresentation=1))
    )


def test_an_image_that_is_padding_alone_is_black() -> None:
    assert not read(dicom(np.full((40, 40), 7, np.uint16), 12, PixelPaddingValue=7)).any()
    assert not read(dicom(np.full((40, 40), 7, np.uint16), 12)).any()


def test_a_grey_picture_stored_in_colour_is_grey_and_a_coloured_one_is_refused() -> None:
    assert np.array_equal(read(dicom(np.stack([RAMP_8] * 3, axis=2)))[..., 0], RAMP_8)
    assert refused(dicom(np.stack([RAMP_8, RAMP_8 // 2, RAMP_8 // 3], axis=2))) is Mistake.WRONG_COLOUR


def as_palette(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Return a grey picture stored as a palette whose three tables are the same ramp."""
    ramp = (np.arange(256, dtype=np.uint16) * 257).astype("<u2").tobytes()
    tables: dict[str, Any] = {}
    for colour in ("Red", "Green", "Blue"):
        tables[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tables[f"{colour}PaletteColorLookupTableData"] = ramp
    return dicom(pixels, 8, PhotometricInterpretation="PALETTE COLOR", **tables)


@pytest.mark.parametrize(
    "content",
    [
        dicom(np.stack([RAMP_8, np.full_like(RAMP_8, 128), np.full_like(RAMP_8, 128)], axis=2), 8,
              PhotometricInterpretation="YBR_FULL"),
        dicom(np.stack([RAMP_8] * 3, axis=2), 8, PlanarConfiguration=1,
              PixelData=np.stack([RAMP_8] * 3).tobytes()),
        as_palette(RAMP_8),
    ],
    ids=["YBR without colour", "plane after plane", "a palette of greys"],
)  # fmt: skip
def test_a_grey_picture_is_grey_however_its_colours_are_stored(content: bytes) -> None:
    shown = read(content)
    assert np.abs(shown.astype(int) - RAMP_8[..., None]).max() <= 1


@pytest.mark.parametrize(
    "name",
    ["ExplVR_LitEndNoMeta.dcm", "ExplVR_BigEndNoMeta.dcm", "no_meta_group_length.dcm", "meta_missing_tsyntax.dcm"],
)
def test_packaged_files_without_preamble_or_meta_information_are_recognised(name: str) -> None:
    assert is_dicom(packaged(name).read_bytes()[:132])


@pytest.mark.parametrize("start", [128, 132])
@pytest.mark.parametrize("syntax", ["MR_small.dcm", "MR_small_implicit.dcm", "MR_small_RLE.dcm"])
def test_a_file_that_lost_its_preamble_shows_the_same(syntax: str, start: int) -> None:
    content = packaged(syntax).read_bytes()
    assert is_dicom(content[start:][:132])
    assert np.array_equal(read(content[start:]), read(content))


@pytest.mark.parametrize("name", ["MR_small_implicit.dcm", "MR_small.dcm", "MR_small_bigendian.dcm"])
def test_a_data_set_without_meta_information_shows_the_same(name: str) -> None:
    dataset = pydicom.dcmread(packaged(name))
    alone = io.BytesIO()
    is_implicit, is_little = dataset.original_encoding
    dataset.preamble, dataset.file_meta = None, FileMetaDataset()
    dataset.save_as(alone, implicit_vr=is_implicit, little_endian=is_little, enforce_file_format=False)
    bare = alone.getvalue()
    assert is_dicom(bare[:132])
    assert np.array_equal(read(bare), read(packaged(name).read_bytes()))


@pytest.mark.parametrize(
    "content",
    [b"", b"\x08\x00", b"PK\x03\x04" + bytes(200), b"II*\x00" + bytes(200), b"MZ" + bytes(200), bytes(300), b"{}" * 99],
)
def test_other_files_are_no_dicom(content: bytes) -> None:
    assert not is_dicom(content)


def test_a_file_cut_short_says_how_many_bytes_it_lacks() -> None:
    with quiet(), pytest.raises(UnusableImageError) as caught:
        read_dicom(dicom(RAMP_8, Rows=80), GREY)
    assert (caught.value.mistake, caught.value.detail) == (Mistake.IMAGE_DAMAGED, "PixelData has 4096 of 5120 bytes")


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


def deflated(content: bytes, body: bytes | None = None) -> bytes:
    """Return a file in the deflated transfer syntax; ``body`` replaces its deflated data set."""
    dataset = pydicom.dcmread(io.BytesIO(content))
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    whole = encoded(dataset)
    length = 144 + int.from_bytes(whole[140:144], "little")
    return whole if body is None else whole[:length] + body


@pytest.mark.parametrize("pixels", [RAMP_8, RAMP_12], ids=["8 bits", "12 bits"])
def test_a_deflated_file_shows_the_same_as_the_plain_one(pixels: npt.NDArray[np.uint16]) -> None:
    content = dicom(pixels, 8 if pixels.dtype == np.uint8 else 12)
    assert np.array_equal(read(deflated(content)), read(content))


def test_a_packaged_deflated_file_is_read() -> None:
    content = packaged("image_dfl.dcm").read_bytes()
    with quiet():
        stored = pydicom.dcmread(io.BytesIO(content)).pixel_array
    assert read(content).shape == stored.shape == (512, 512)


@pytest.mark.parametrize("start", [128, 132])
def test_a_deflated_file_that_lost_its_preamble_is_read(start: int) -> None:
    content = dicom(RAMP_8)
    assert np.array_equal(read(deflated(content)[start:]), read(content))


def test_a_file_that_only_mentions_the_deflated_syntax_is_read() -> None:
    content = dicom(RAMP_8, AvailableTransferSyntaxUID=DeflatedExplicitVRLittleEndian)
    assert np.array_equal(read(content), read(dicom(RAMP_8)))


@pytest.mark.parametrize(
    ("body", "mistake"),
    [
        (b"\xff" * 50, Mistake.IMAGE_DAMAGED),
        (b"", Mistake.IMAGE_DAMAGED),
        (zlib.compress(bytes(2**24), wbits=-15), Mistake.IMAGE_TOO_LARGE),
        (zlib.compress(bytes(2**24), wbits=-15)[:-20], Mistake.IMAGE_TOO_LARGE),
        (zlib.compress(bytes(2**18), wbits=-15)[:-20], Mistake.IMAGE_DAMAGED),
    ],
    ids=["no stream", "nothing", "a bomb", "a bomb cut short", "cut short"],
)
def test_a_deflated_part_that_is_damaged_or_a_bomb_is_refused_in_little_memory(body: bytes, mistake: Mistake) -> None:
    content = deflated(dicom(RAMP_8), body)
    tracemalloc.start()
    assert refused(content) is mistake
    assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    tracemalloc.stop()


def test_nothing_of_a_header_is_logged_or_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    broken = dicom(RAMP_8, PatientBirthDate="19640812").replace(b"19640812", b"Carla ca")
    with caplog.at_level(logging.DEBUG, "pydicom"):
        read(broken)
        read(packaged("JPGExtended.dcm").read_bytes())
    assert not caplog.records


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
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
