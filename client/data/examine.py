"""Examines one image after another: decodes it, checks it by itself, and prepares it for the model."""

import datetime
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from client.data.archives import Archives, UnusableArchiveError
from client.data.catalogue import Catalogue, DataLayout, ListedImage
from client.data.contract import DataContract
from client.data.known_tables import Said
from client.data.mistakes import Finding, Mistake
from client.data.picture_checks import check_picture, thumbnail
from client.data.pixels import Header, Picture, UnusableImageError
from client.data.readers import npz, quiet, read_picture
from client.data.shortcuts import Traces, traces_of
from client.data.traits import traits_of
from client.data.views import FRONTAL, view_written
from common.config import PrivacyUnit
from common.errors import DataError
from common.shards import MAX_FILE_BYTES, SPLITS, fit

_AHEAD = 32
"""The images that are read ahead; bounds memory for any number of images."""

_CLOCK_TOLERANCE = datetime.timedelta(days=1)
"""The tolerance for a study's date: one from a time zone ahead of this machine's may be dated tomorrow."""

_OF_NO_SINGLE_FILE = frozenset({Mistake.PERSONAL_DATA, Mistake.PATIENT_UNKNOWN})
"""What is no finding of a file that is looked at and not kept."""

_In = TypeVar("_In")
_Out = TypeVar("_Out")


@dataclass(frozen=True)
class Usable:
    """An image as the model will see it: uint8 (channels, size, size), its thumbnail, float32 (64,), and its traces.

    ``traits`` are its bins in the tables of statistics, uint8.
    """

    pixels: npt.NDArray[np.uint8] = field(repr=False)
    thumbnail: npt.NDArray[np.float32] = field(repr=False)
    traces: Traces = field(repr=False)
    traits: npt.NDArray[np.uint8] = field(repr=False)


@dataclass(frozen=True)
class Examined:
    """What is known of one image after it was opened.

    Attributes:
        entry: what was claimed of it.
        findings: what is wrong with it.
        header: what its file says beside the pixels.
        content_digest: SHA-256 of the file; empty if it could not be read.
        usable: None if it could not be decoded.
    """

    entry: ListedImage = field(repr=False)
    findings: tuple[Finding, ...] = field(repr=False)
    header: Header = field(default=Header(), repr=False)
    content_digest: bytes = b""
    usable: Usable | None = field(default=None, repr=False)


def examine_all(catalogue: Catalogue, contract: DataContract, today: datetime.date) -> Iterator[Examined]:
    """Examine every entry, in order, on all cores, holding a few images at a time.

    Args:
        catalogue: what there is.
        contract: what the run asks.
        today: studies dated after it (and a day) are found.
    """
    latest = (today + _CLOCK_TOLERANCE).strftime("%Y%m%d")
    with quiet(), ThreadPoolExecutor(os.cpu_count(), "examine") as threads:
        if catalogue.layout is DataLayout.NPZ:
            yield from _examine_npz(catalogue, contract, threads)
        else:
            with Archives(catalogue.root) as archives:
                yield from _in_order(
                    threads, lambda entry: _examine_file(archives, entry, contract, latest), catalogue.entries
                )


def _examine_npz(catalogue: Catalogue, contract: DataContract, threads: ThreadPoolExecutor) -> Iterator[Examined]:
    entries = iter(catalogue.entries)
    try:
        for split in SPLITS:
            for block in npz.image_blocks(catalogue.root, split):
                yield from _in_order(
                    threads, lambda pair: _examine_pixels(*pair, contract), zip(block, entries, strict=False)
                )
    except DataError as error:
        for entry in entries:
            yield Examined(entry, (Finding(Mistake.NPZ_MALFORMED, catalogue.root.name, str(error)),))
            break


def look_at(content: bytes, contract: DataContract, file: str = "") -> tuple[Picture, tuple[Finding, ...]]:
    """Read one file that no hospital listed, and return what a check would find in it alone; for users of a model.

    Enter :func:`client.data.readers.quiet` around it. Whose image it is does not matter here: nothing is kept.

    Args:
        content: the whole file.
        contract: what the model was trained for; counts and privacy do not matter.
        file: what to call it in the findings.

    Raises:
        UnusableImageError: it cannot be read.
    """
    picture = read_picture(content, contract.channels)
    entry = ListedImage(file, 0, "", "", None)
    latest = (datetime.datetime.now(datetime.UTC).date() + _CLOCK_TOLERANCE).strftime("%Y%m%d")
    header = (*_passed_over(entry, picture), *_header_findings(entry, picture.header, contract, latest))
    examined = _examine_picture(entry, picture, b"", header, contract)
    return picture, tuple(finding for finding in examined.findings if finding.mistake not in _OF_NO_SINGLE_FILE)


def _in_order(threads: ThreadPoolExecutor, function: Callable[[_In], _Out], items: Iterable[_In]) -> Iterator[_Out]:
    """Map in parallel, like the executor's own ``map``, but only ``_AHEAD`` items ahead of the consumer."""
    waiting: deque[Future[_Out]] = deque()
    for item in items:
        waiting.append(threads.submit(function, item))
        if len(waiting) > _AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _examine_file(archives: Archives, entry: ListedImage, contract: DataContract, latest: str) -> Examined:
    digest = b""
    try:
        content = read_file(archives, entry.file)
        digest = hashlib.sha256(content).digest()
        picture = read_picture(content, contract.channels)
    except UnusableImageError as problem:
        return Examined(entry, (Finding(problem.mistake, entry.file, problem.detail),), content_digest=digest)
    if entry.said is not None:
        picture = replace(picture, header=_told(picture.header, entry.said))
    header = (*_passed_over(entry, picture), *_header_findings(entry, picture.header, contract, latest))
    return _examine_picture(entry, picture, digest, header, contract)


def _examine_pixels(pixels: npt.NDArray[np.uint8], entry: ListedImage, contract: DataContract) -> Examined:
    """Examine one image of an npz file, uint8 of shape (c, h, w)."""
    picture = Picture(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, 2), Header())
    return _examine_picture(entry, picture, hashlib.sha256(pixels.tobytes()).digest(), (), contract)


def _examine_picture(
    entry: ListedImage, picture: Picture, digest: bytes, header: tuple[Finding, ...], contract: DataContract
) -> Examined:
    image = Image.fromarray(picture.pixels).convert("L" if contract.channels == 1 else "RGB")
    pixels = fit(image, contract.image_size)
    small = thumbnail(pixels)
    mistakes = check_picture(picture.pixels, small, contract)
    found = [*header, *(Finding(mistake, entry.file, detail) for mistake, detail in mistakes)]
    if contract.unit is PrivacyUnit.PATIENT and not (entry.patient or picture.header.patient):
        found.append(Finding(Mistake.PATIENT_UNKNOWN, entry.file))
    return Examined(
        entry, tuple(found), picture.header, digest, Usable(pixels, small, traces_of(picture), traits_of(picture))
    )


def read_file(archives: Archives, file: str) -> bytes:
    """Return the content of a listed file, which may lie in an archive.

    Raises:
        UnusableImageError: it has vanished, cannot be read, or is larger than any image.
    """
    try:
        content = archives.content(file, MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise UnusableImageError(Mistake.VANISHED) from None
    except OSError:
        raise UnusableImageError(Mistake.UNREADABLE) from None
    except UnusableArchiveError as refused:
        raise UnusableImageError(Mistake.IMAGE_DAMAGED, f"its archive: {refused}") from None
    if len(content) > MAX_FILE_BYTES:
        raise UnusableImageError(Mistake.IMAGE_TOO_LARGE, f"more than {MAX_FILE_BYTES} bytes")
    return content


def _told(header: Header, said: Said) -> Header:
    """Return a header with what a table says of the image where the file itself says nothing."""
    return replace(
        header,
        position=header.position or said.position,
        # A known table has words of its own for a position, and its lateral views are not listed.
        view=header.view or view_written(said.position) or (FRONTAL if said.position else ""),
        sex=header.sex or said.sex,
        age=header.age or said.age,
    )


def _passed_over(entry: ListedImage, picture: Picture) -> Iterator[Finding]:
    if picture.passed_over:
        yield Finding(Mistake.HEADER_FIELD_IGNORED, entry.file, "; ".join(picture.passed_over))


def _header_findings(entry: ListedImage, header: Header, contract: DataContract, latest: str) -> Iterator[Finding]:
    if header.personal:
        yield Finding(Mistake.PERSONAL_DATA, entry.file, ", ".join(header.personal))
    if header.burned_in:
        yield Finding(Mistake.BURNED_IN_TEXT, entry.file)
    if header.study_date.isdigit() and header.study_date > latest:
        yield Finding(Mistake.FUTURE_STUDY, entry.file)
    if header.modality and contract.kind.modalities and header.modality not in contract.kind.modalities:
        yield Finding(Mistake.WRONG_MODALITY, entry.file, f"{header.modality} for a {contract.kind.name}")
    if not _is_of_kind(header.body_part, contract.kind.body_parts):
        yield Finding(Mistake.WRONG_BODY_PART, entry.file, f"{header.body_part} for a {contract.kind.name}")
    if contract.kind.frontal and header.view not in ("", FRONTAL):
        yield Finding(Mistake.WRONG_VIEW, entry.file, header.view)


def _is_of_kind(body_part: str, words: frozenset[str]) -> bool:
    """Return whether a body part is unknown, or holds one of the words, as ``CHEST PA`` and ``RX TORAX`` do."""
    return not body_part or not words or any(word in body_part.upper() for word in words)
