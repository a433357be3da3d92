"""Pictures equal those of dcmtk, an independent implementation: ``dcm2pnm``, ``dcmj2pnm`` and ``dcml2pnm`` of Debian.

dcmtk cuts grey levels off where Confide rounds, so half a level between them is expected; one level is allowed.
"""

import io
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from PIL import Image
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from client.data.readers.dicom import quiet, read_dicom
from tests.support.hospital_folder import dicom, encoded, packaged

pytestmark = pytest.mark.skipif(
    shutil.which("dcmj2pnm") is None, reason="dcmtk is not installed (Debian: apt-get install dcmtk)"
)

LEVEL = 1.0

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)
SIGNED = RAMP.astype(np.int16) - np.int16(2048)
BYTES = (RAMP // 16).astype(np.uint8)

WINDOW: dict[str, Any] = {"WindowCenter": 2000, "WindowWidth": 1000}
FIRST_WINDOW, FIRST_TABLE, WHOLE_RANGE = ("+Wi", "1"), ("+Wl", "1"), ()


def table(
    entries: npt.NDArray[np.generic], bits: int, first: int = 0, *, count: int | None = None, kinds: str = "US OW"
) -> Items:
    """Return a look-up table sequence as some archive writes it; ``kinds`` are the types of descriptor and data."""
    item = pydicom.Dataset()
    descriptor, data = kinds.split()
    item.add_new("LUTDescriptor", descriptor, [(len(entries) if count is None else count) % 65536, first, bits])
    item.add_new("LUTData", data, entries.tobytes() if data in ("OW", "OB") else entries.tolist())
    return Items([item])


def confide(content: bytes, channels: int = 1) -> npt.NDArray[np.uint8]:
    with quiet():
        return read_dicom(content, channels).pixels


def dcmtk(content: bytes, folder: Path, options: Sequence[str], program: str = "dcmj2pnm") -> npt.NDArray[np.uint8]:
    source, target = folder / "image.dcm", folder / "image.pnm"
    source.write_bytes(content)
    environment = {**os.environ, "LC_ALL": "C"}
    subprocess.run([program, *options, "+op", source, target], check=True, capture_output=True, env=environment)
    with Image.open(target) as image:
        return np.asarray(image)


def difference(content: bytes, folder: Path, options: Sequence[str], channels: int = 1) -> float:
    shown, expected = confide(content, channels), dcmtk(content, folder, options)
    assert shown.shape == expected.shape
    return float(np.abs(shown.astype(float) - expected).mean())


def grey(pixels: npt.NDArray[np.generic] = RAMP, bits: int = 12, **fields: object) -> bytes:
    """Return a file of grey pixels; signed ones say so."""
    sign = 1 if pixels.dtype.kind == "i" else 0
    unsigned = pixels.view(f"u{pixels.dtype.itemsize}")
    with quiet():
        return dicom(unsigned, bits, **{"PixelRepresentation": sign, **fields})


RISING, FALLING = np.arange(4096).astype("<u2"), np.arange(4096)[::-1].astype("<u2")
CURVE = (4095 * np.sqrt(np.arange(4096) / 4095)).astype("<u2")

WINDOWS: dict[str, Callable[[], bytes]] = {
    "linear": lambda: grey(**WINDOW),
    "one value wide": lambda: grey(WindowCenter=2000, WindowWidth=1),
    "several": lambda: grey(WindowCenter=[2000, 5], WindowWidth=[1000, 9]),
    "sigmoid": lambda: grey(**WINDOW, VOILUTFunction="SIGMOID"),
    "function unknown": lambda: grey(**WINDOW, VOILUTFunction="STANDARD"),
    "function in small letters": lambda: grey(**WINDOW, VOILUTFunction="linear"),
    "monochrome1": lambda: grey(**WINDOW, PhotometricInterpretation="MONOCHROME1"),
    "signed": lambda: grey(SIGNED, WindowCenter=0, WindowWidth=1000),
    "signed, upper bits not filled": lambda: grey(SIGNED & np.int16(0xFFF), WindowCenter=0, WindowWidth=1000),
    "16 bits": lambda: grey(RAMP * np.uint16(16), 16, WindowCenter=30000, WindowWidth=40000),
    "signed 16 bits": lambda: grey(SIGNED * np.int16(16), 16, WindowCenter=-3000, WindowWidth=40000),
    "8 bits": lambda: grey(BYTES, 8, WindowCenter=100, WindowWidth=80),
    "10 bits": lambda: grey(RAMP // np.uint16(4), 10, WindowCenter=600, WindowWidth=300),
    "rescaled": lambda: grey(RescaleSlope=2, RescaleIntercept=-1024, WindowCenter=1000, WindowWidth=2000),
    "rescaled by a fraction": lambda: grey(RescaleSlope="0.5", RescaleIntercept=3, WindowCenter=1000, WindowWidth=900),
    "rescaled downwards": lambda: grey(RescaleSlope=-1, RescaleIntercept=4095, **WINDOW),
    "slope zero": lambda: grey(RescaleSlope=0, RescaleIntercept=5, **WINDOW),
    "slope empty": lambda: grey(RescaleSlope="", RescaleIntercept="", **WINDOW),
    "slope without intercept": lambda: grey(RescaleSlope=2, **WINDOW),
    "modality table of 12 bits": lambda: grey(ModalityLUTSequence=table(FALLING, 12), **WINDOW),
    "modality table of 16 bits": lambda: grey(ModalityLUTSequence=table(CURVE, 16), **WINDOW),
    "modality table and slope": lambda: grey(
        ModalityLUTSequence=table(FALLING, 12), RescaleSlope=2, RescaleIntercept=0, **WINDOW
    ),
    "modality table of signed values": lambda: grey(
        SIGNED, ModalityLUTSequence=table(CURVE, 12, -2048, kinds="SS OW"), **WINDOW
    ),
    "high bit at the top": lambda: grey(RAMP * np.uint16(16), 12, HighBit=15, **WINDOW),
    "overlay in the unused bits": lambda: grey(RAMP | np.uint16(0xF000), 12, **WINDOW),
    "padding inside the window": lambda: grey(PixelPaddingValue=0, **WINDOW),
}
TABLES: dict[str, Callable[[], bytes]] = {
    "rising": lambda: grey(VOILUTSequence=table(RISING, 12)),
    "falling": lambda: grey(VOILUTSequence=table(FALLING, 12)),
    "curve": lambda: grey(VOILUTSequence=table(CURVE, 12)),
    "falling, monochrome1": lambda: grey(VOILUTSequence=table(FALLING, 12), PhotometricInterpretation="MONOCHROME1"),
    "narrower than its 16 bits": lambda: grey(VOILUTSequence=table(CURVE, 16)),
    "8 bits, two a word": lambda: grey(VOILUTSequence=table((CURVE // 16).astype("u1"), 8)),
    "8 bits, one a word": lambda: grey(VOILUTSequence=table((CURVE // 16).astype("<u2"), 8)),
    "8 bits, listed": lambda: grey(VOILUTSequence=table(CURVE // 16, 8, kinds="US US")),
    "listed": lambda: grey(VOILUTSequence=table(CURVE, 12, kinds="US US")),
    "fewer entries than values": lambda: grey(VOILUTSequence=table(CURVE[::4].copy(), 12, 1000)),
    "fewer entries than it says": lambda: grey(VOILUTSequence=table(CURVE[:1000], 12, count=4096)),
    "signed": lambda: grey(SIGNED, VOILUTSequence=table(CURVE, 12, -2048, kinds="SS OW")),
    "signed, descriptor unsigned": lambda: grey(SIGNED, VOILUTSequence=table(CURVE, 12, 65536 - 2048)),
    "made negative by rescaling": lambda: grey(
        RescaleSlope=1, RescaleIntercept=-1000, VOILUTSequence=table(CURVE, 12, -1000, kinds="SS OW")
    ),
    "65,536 entries": lambda: grey(
        RAMP * np.uint16(16), 16, VOILUTSequence=table(np.arange(65536)[::-1].astype("<u2"), 16)
    ),
    "after a modality table": lambda: grey(
        ModalityLUTSequence=table(FALLING, 12), VOILUTSequence=table(CURVE, 12), **WINDOW
    ),
}


@pytest.mark.parametrize("case", WINDOWS)
def test_a_window_shows_what_dcmtk_shows(case: str, tmp_path: Path) -> None:
    assert difference(WINDOWS[case](), tmp_path, FIRST_WINDOW) < LEVEL


@pytest.mark.parametrize("case", TABLES)
def test_a_table_shows_what_dcmtk_shows(case: str, tmp_path: Path) -> None:
    assert difference(TABLES[case](), tmp_path, FIRST_TABLE) < LEVEL


@pytest.mark.parametrize(
    "fields",
    [
        {"WindowCenter": 0, "WindowWidth": 0},
        {"WindowCenter": [0, 0], "WindowWidth": [0, 0]},
        {"WindowCenter": 1, "WindowWidth": 0},
        {"WindowCenter": 2000, "WindowWidth": "0.5"},
        {"WindowCenter": 2000, "WindowWidth": -5},
        {"WindowCenter": "", "WindowWidth": ""},
        {"WindowCenter": 2000},
    ],
    ids=str,
)
def test_an_unusable_window_is_none_for_both(fields: dict[str, Any], tmp_path: Path) -> None:
    assert np.array_equal(confide(grey(**fields)), confide(grey()))
    (tmp_path / "image.dcm").write_bytes(grey(**fields))
    asked = subprocess.run(
        ["dcm2pnm", *FIRST_WINDOW, "+op", tmp_path / "image.dcm", tmp_path / "image.pnm"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert "cannot select VOI window" in asked.stderr


def test_without_a_window_the_picture_is_near_that_of_dcmtks_histogram(tmp_path: Path) -> None:
    """Its histogram counts in bins, ours by value, so two levels are allowed."""
    assert difference(grey(), tmp_path, ("+Wh", "1")) < 2 * LEVEL


@pytest.mark.parametrize("value", [4095, 0, 77])
def test_beside_the_padding_a_window_shows_what_dcmtk_shows_and_the_padding_is_black(
    value: int, tmp_path: Path
) -> None:
    framed = RAMP.copy()
    framed[:4] = framed[-4:] = value
    content = grey(framed, PixelPaddingValue=value, **WINDOW)
    shown, expected = confide(content), dcmtk(content, tmp_path, FIRST_WINDOW)
    inside = framed != value
    assert np.abs(shown[inside].astype(float) - expected[inside]).mean() < LEVEL
    assert not shown[~inside].any()


@pytest.mark.parametrize(
    "name",
    [
        "CT_small.dcm",
        "MR_small.dcm",
        "MR_small_implicit.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_padded.dcm",
        "MR_small_RLE.dcm",
        "JPGExtended.dcm",
        "examples_overlay.dcm",
    ],
)
def test_packaged_grey_files_show_what_dcmtk_shows_through_a_window(name: str, tmp_path: Path) -> None:
    dataset = pydicom.dcmread(packaged(name))
    with quiet():
        stored = dataset.pixel_array
    dataset.WindowCenter = int(stored.mean())
    dataset.WindowWidth = max(4, int(4 * stored.std()))
    dataset.VOILUTFunction = "LINEAR"
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
    assert difference(encoded(dataset), tmp_path, ("-O", *FIRST_WINDOW)) < LEVEL


@pytest.mark.parametrize(
    "name", ["MR_small_jpeg_ls_lossless.dcm", "JPEGLSNearLossless_08.dcm", "JPEGLSNearLossless_16.dcm"]
)
def test_packaged_jpeg_ls_files_show_what_dcmtk_shows(name: str, tmp_path: Path) -> None:
    dataset = pydicom.dcmread(packaged(name))
    with quiet():
        stored = dataset.pixel_array
    dataset.WindowCenter, dataset.WindowWidth = int(stored.mean()), max(4, int(4 * stored.std()))
    content = encoded(dataset)
    expected = dcmtk(content, tmp_path, ("-O", *FIRST_WINDOW), "dcml2pnm")
    assert np.abs(confide(content).astype(float) - expected).mean() < LEVEL


@pytest.mark.parametrize(
    "syntax",
    [ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless, JPEG2000Lossless, DeflatedExplicitVRLittleEndian],
)
@pytest.mark.parametrize("pixels", [RAMP, SIGNED, BYTES], ids=["unsigned", "signed", "8 bits"])
def test_a_file_shows_the_same_in_every_transfer_syntax(
    syntax: pydicom.uid.UID, pixels: npt.NDArray[np.generic], tmp_path: Path
) -> None:
    """Dcmtk reads no JPEG 2000; there the picture must be that of the uncompressed file."""
    bits = 8 if pixels.dtype == np.uint8 else 12
    plain = grey(pixels, bits, WindowCenter=int(pixels.mean()), WindowWidth=int(np.ptp(pixels)) // 2)
    dataset = pydicom.dcmread(io.BytesIO(plain))
    with quiet():
        if syntax.is_compressed:
            dataset.compress(syntax, generate_instance_uid=False)
        else:
            if syntax == ExplicitVRBigEndian and pixels.dtype.itemsize == 2:
                dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
            dataset.file_meta.TransferSyntaxUID = syntax
        content = io.BytesIO()
        little = (
            {}
            if syntax.is_compressed
            else {"little_endian": syntax.is_little_endian, "implicit_vr": syntax.is_implicit_VR}
        )
        pydicom.dcmwrite(content, dataset, **little)
    assert np.array_equal(confide(content.getvalue()), confide(plain))
    if syntax != JPEG2000Lossless:
        assert difference(content.getvalue(), tmp_path, FIRST_WINDOW) < LEVEL


@pytest.mark.parametrize(
    "name",
    [
        "examples_palette.dcm",
        "examples_rgb_color.dcm",
        "SC_rgb_small_odd.dcm",
        "SC_rgb_small_odd_big_endian.dcm",
        "SC_rgb_small_odd_jpeg.dcm",
        "SC_rgb_dcmtk_+eb+cr.dcm",
        "SC_rgb_dcmtk_+eb+cy+n1.dcm",
        "SC_rgb_dcmtk_+eb+cy+s2.dcm",
        "SC_rgb_jpeg_gdcm.dcm",
        "SC_rgb_rle.dcm",
    ],
)
def test_packaged_colour_files_show_what_dcmtk_shows(name: str, tmp_path: Path) -> None:
    assert difference(packaged(name).read_bytes(), tmp_path, ("-O",), channels=3) < LEVEL


def test_a_grey_picture_stored_as_rgb_shows_what_dcmtk_shows(tmp_path: Path) -> None:
    content = dicom(np.stack([BYTES] * 3, axis=2))
    expected = dcmtk(content, tmp_path, ())
    assert np.array_equal(confide(content), expected)


KINDS_OF_PIXELS: dict[str, Callable[[], bytes]] = {
    "8 bits": lambda: grey(BYTES, 8, WindowCenter=100, WindowWidth=80),
    "10 bits": lambda: grey(RAMP // np.uint16(4), 10, WindowCenter=600, WindowWidth=300),
    "12 bits": lambda: grey(**WINDOW),
    "12 bits, monochrome1": lambda: grey(**WINDOW, PhotometricInterpretation="MONOCHROME1"),
    "12 bits, signed": lambda: grey(SIGNED, WindowCenter=0, WindowWidth=1000),
    "16 bits": lambda: grey(RAMP * np.uint16(16), 16, WindowCenter=30000, WindowWidth=40000),
    "16 bits, signed": lambda: grey(SIGNED * np.int16(16), 16, WindowCenter=-3000, WindowWidth=40000),
    "8 bits in words of 16": lambda: grey(BYTES.astype(np.uint16), 8, WindowCenter=100, WindowWidth=80),
}
ENCODERS: dict[str, tuple[str, ...]] = {
    "JPEG baseline": ("dcmcjpeg", "+eb"),
    "JPEG extended": ("dcmcjpeg", "+ee"),
    "JPEG lossless": ("dcmcjpeg", "+el"),
    "JPEG lossless, first order": ("dcmcjpeg", "+e1"),
    "JPEG-LS": ("dcmcjpls", "+el"),
    "JPEG-LS near lossless": ("dcmcjpls", "+en", "+md", "2"),
    "RLE": ("dcmcrle",),
    "deflated": ("dcmconv", "+td"),
    "big endian": ("dcmconv", "+tb"),
    "implicit": ("dcmconv", "+ti"),
}
LOSSY_OF_8_BITS, LOSSY_OF_12_BITS = frozenset({"JPEG baseline"}), frozenset({"JPEG extended"})


def can_encode(encoder: str, pixels: str) -> bool:
    """Tell whether an encoder takes such pixels: JPEG has room for so many bits, dcmtk's JPEG-LS loses none signed."""
    bits = int(pixels.split(maxsplit=1)[0])
    if encoder in LOSSY_OF_8_BITS:
        return bits <= 8
    if encoder == "JPEG-LS near lossless":
        return "signed" not in pixels
    return bits <= 12 or encoder not in LOSSY_OF_12_BITS


@pytest.mark.long
@pytest.mark.parametrize(
    ("encoder", "pixels"),
    [(encoder, pixels) for encoder in ENCODERS for pixels in KINDS_OF_PIXELS if can_encode(encoder, pixels)],
)
def test_what_dcmtk_encodes_shows_what_dcmtk_shows(encoder: str, pixels: str, tmp_path: Path) -> None:
    plain, packed = tmp_path / "plain.dcm", tmp_path / "packed.dcm"
    plain.write_bytes(KINDS_OF_PIXELS[pixels]())
    program, *options = ENCODERS[encoder]
    environment = {**os.environ, "LC_ALL": "C"}
    subprocess.run([program, *options, plain, packed], check=True, capture_output=True, env=environment)
    shower = "dcml2pnm" if program == "dcmcjpls" else "dcmj2pnm"
    content = packed.read_bytes()
    assert pydicom.dcmread(packed).file_meta.TransferSyntaxUID != pydicom.dcmread(plain).file_meta.TransferSyntaxUID
    expected = dcmtk(content, tmp_path, FIRST_WINDOW, shower)
    assert np.abs(confide(content).astype(float) - expected).mean() < LEVEL


COLOURS = np.stack([BYTES, BYTES[::-1], BYTES.T], axis=2)


def palette(bits: int, entries: int) -> bytes:
    """Return a picture of 256 colours, whose tables have entries of 8 or 16 bits."""
    values = np.linspace(0, 2**bits - 1, entries).astype(f"<u{bits // 8}")
    tables: dict[str, Any] = {
        f"{name}PaletteColorLookupTable{part}": value
        for name, data in (("Red", values), ("Green", values[::-1]), ("Blue", np.roll(values, 40)))
        for part, value in (("Descriptor", [entries % 65536, 0, bits]), ("Data", data.tobytes()))
    }
    return dicom(BYTES, PhotometricInterpretation="PALETTE COLOR", **tables)


COLOURED: dict[str, Callable[[], bytes]] = {
    "RGB": lambda: dicom(COLOURS),
    "RGB, plane after plane": lambda: dicom(np.moveaxis(COLOURS, 2, 0).reshape(64, 64, 3), PlanarConfiguration=1),
    "YBR, full": lambda: dicom(COLOURS, PhotometricInterpretation="YBR_FULL"),
    "palette of 16 bits": lambda: palette(16, 256),
}


@pytest.mark.parametrize("case", COLOURED)
def test_colours_show_what_dcmtk_shows(case: str, tmp_path: Path) -> None:
    assert difference(COLOURED[case](), tmp_path, (), channels=3) < LEVEL


@pytest.mark.parametrize("encoder", ["JPEG baseline", "JPEG lossless, first order", "RLE", "deflated", "big endian"])
def test_colours_that_dcmtk_encodes_show_what_dcmtk_shows(encoder: str, tmp_path: Path) -> None:
    plain, packed = tmp_path / "plain.dcm", tmp_path / "packed.dcm"
    smooth = np.stack([np.sort(BYTES, axis=None).reshape(64, 64)] * 3, axis=2) // np.array([1, 2, 3], np.uint8)
    plain.write_bytes(dicom(smooth))
    program, *options = ENCODERS[encoder]
    environment = {**os.environ, "LC_ALL": "C"}
    subprocess.run([program, *options, plain, packed], check=True, capture_output=True, env=environment)
    assert difference(packed.read_bytes(), tmp_path, (), channels=3) < LEVEL
