"""What can be wrong with a hospital's images taken together, and what a run needs to know of them."""

import hashlib
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from client.data.catalogue import ListedImage
from client.data.contract import DataContract
from client.data.examine import Examined, Usable
from client.data.mistakes import Finding, Mistake
from client.data.picture_checks import THUMBNAIL_SIDE
from client.data.shortcuts import NAMES, Shortcut, Traces, find_shortcuts
from common.shards import SPLITS, Split, combine_digests, record_digest
from common.task import TaskKind, counted, targets

_CHOSEN_SHARES: tuple[tuple[int, Split], ...] = ((80, "train"), (90, "val"), (100, "test"))
"""Out of a hundred patients whose split is left open, how many go to each part, cumulated."""

REENCODED_LIKENESS = 0.998
"""Correlation of two 8 x 8 thumbnails from which two images are one picture. Among 5,856 chest X-rays all 34 pairs
above 0.995 are identical, and saving one as JPEG, at another size or through a window leaves 0.9998."""

_TELLING_SIZE = 64
"""Below this many pixels two photographs of one retina cannot be distinguished from one saved twice:
RetinaMNIST at 28 has 37 such pairs. Grey radiographs can, at any size."""

_KEPT_AS = np.float16
"""The type that a thumbnail's numbers are kept in; its rounding changes a correlation by less than 0.0002."""

_ROUNDING = 1e-3
"""How far the rounding to float16 can move a row along an axis."""

_MANY_OF_ONE = 10
"""Images of one patient id from which half of all is taken for many persons with one id, and not for one person."""

_COMPARED_TOGETHER = 256
_RECORD_DIGEST_BYTES = 32
_PIXEL_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class _Seen:
    """What is remembered of one image: little, because there may be a million."""

    entry: ListedImage = field(repr=False)
    label: int
    split: Split
    patient: str = field(repr=False)
    modality: str
    source: str
    view: str


@dataclass
class Survey:
    """Takes in one examined image after another; :meth:`findings` is what they say together.

    What a run's terms leave out is passed over. Its hashes are kept, and its patient and part, so that by which images
    a ledger knows the data, and what refuses a run, do not depend on the terms.
    """

    contract: DataContract
    _seen: list[_Seen] = field(default_factory=list, repr=False)
    _record_digests: bytearray = field(default_factory=bytearray, repr=False)
    _pixel_digests: bytearray = field(default_factory=bytearray, repr=False)
    _content_digests: bytearray = field(default_factory=bytearray, repr=False)
    _passed_over: bytearray = field(default_factory=bytearray, repr=False)
    _thumbnails: bytearray = field(default_factory=bytearray, repr=False)
    _other_thumbnails: bytearray = field(default_factory=bytearray, repr=False)
    _traces: bytearray = field(default_factory=bytearray, repr=False)
    _patient_numbers: dict[str, int] = field(default_factory=dict, repr=False)
    _images: int = 0
    _images_of: Counter[str] = field(default_factory=Counter, repr=False)
    _first_of: dict[str, tuple[Split, str]] = field(default_factory=dict, repr=False)
    _moved: list[tuple[str, Finding]] = field(default_factory=list, repr=False)

    def add(self, examined: Examined, usable: Usable) -> tuple[Split, int]:
        """Remember one image.

        Args:
            examined: what is known of it.
            usable: as the model will see it.

        Returns:
            Its split, chosen by patient where the hospital left it open, and its patient's number, which means
            nothing but that equal numbers are one patient.
        """
        row, entry = len(self._seen), examined.entry
        if entry.label is None:
            raise ValueError("an image without a label is passed over, not added")
        patient, split = self._place(examined)
        said = (examined.header.modality, usable.traces.source, usable.traces.view)
        self._seen.append(_Seen(entry, entry.label, split, patient, *map(sys.intern, said)))
        self._traces += usable.traces.numbers.tobytes()
        self._record_digests += record_digest(examined.content_digest, entry.label_text, patient, split)
        self._pixel_digests += _digest_of(usable)
        self._content_digests += examined.content_digest[:_PIXEL_DIGEST_BYTES]
        self._thumbnails += usable.thumbnail.astype(_KEPT_AS).tobytes()
        return split, self._patient_numbers.setdefault(patient, row) if patient else row

    def pass_over(self, examined: Examined) -> Split:
        """Remember which image it is that the run does not use; returns its split."""
        _, split = self._place(examined)
        self._passed_over += examined.content_digest[:_PIXEL_DIGEST_BYTES]
        if examined.usable is not None:
            self._passed_over += _digest_of(examined.usable)
            self._other_thumbnails += examined.usable.thumbnail.astype(_KEPT_AS).tobytes()
        return split

    def _place(self, examined: Examined) -> tuple[str, Split]:
        """Return an image's patient, or '', and part, and note a patient that is in another part already."""
        entry = examined.entry
        patient = entry.patient or examined.header.patient
        split = entry.split or choose_split(patient.encode() or examined.content_digest)
        self._images += 1
        if patient:
            self._images_of[patient] += 1
            first_split, first_file = self._first_of.setdefault(patient, (split, entry.file))
            if split != first_split:
                detail = f"{split}; {first_split} has {first_file}"
                self._moved.append((patient, Finding(Mistake.PATIENT_ON_BOTH_SIDES, entry.file, detail)))
        return patient, split

    @property
    def fingerprint(self) -> bytes:
        """32 bytes that name this data; see :func:`common.shards.fingerprint`."""
        return combine_digests(_pieces(self._record_digests, _RECORD_DIGEST_BYTES))

    @property
    def images(self) -> bytes:
        """The hash of each image's file and of its pixels, 16 bytes each: by these a ledger knows images again."""
        return bytes(self._content_digests + self._pixel_digests + self._passed_over)

    @property
    def patients(self) -> int:
        """How many known patients there are."""
        return len(self._patient_numbers)

    def counts(self) -> dict[Split, tuple[int, ...]]:
        """Return how many images each part has of each class; for the hospital's own eyes."""
        labels: dict[Split, list[int]] = {split: [] for split in SPLITS}
        for seen in self._seen:
            labels[seen.split].append(seen.label)
        task = self.contract.meaning
        return {split: counted(task, np.array(labels[split], np.int64)) for split in SPLITS}

    def findings(self) -> Iterator[Finding]:
        """Yield what is wrong with the images taken together."""
        yield from check_counts(self.counts(), self.contract)
        yield from self._patient_findings()
        yield from self._modality_findings()
        yield from self._shortcut_findings()
        yield from self._duplicate_findings()

    def _shared_patient(self) -> str:
        """Return the patient id that stands for many persons, or ''."""
        patient, times = max(self._images_of.items(), key=lambda pair: pair[1], default=("", 0))
        return patient if times >= max(_MANY_OF_ONE, self._images / 2) else ""

    def _patient_findings(self) -> Iterator[Finding]:
        shared = self._shared_patient()
        if shared:
            yield Finding(Mistake.ONE_PATIENT_FOR_MANY, "", f"{self._images_of[shared]} of {self._images} images")
        # Of the shared one it is said once, and what follows from it is no mistake of its own.
        yield from (finding for patient, finding in self._moved if patient != shared)
        for seen in self._seen:
            if seen.patient in ("", shared):
                continue
            first = self._seen[self._patient_numbers[seen.patient]]
            if seen.label != first.label and self.contract.meaning.kind is not TaskKind.MULTILABEL:
                detail = f"{self._name(seen)}; {first.entry.file} is {self._name(first)}"
                yield Finding(Mistake.PATIENT_CONTRADICTING_LABELS, seen.entry.file, detail)

    def _modality_findings(self) -> Iterator[Finding]:
        """Find odd ones out where the task does not say which modalities belong together."""
        modalities = Counter(seen.modality for seen in self._seen if seen.modality)
        if self.contract.kind.modalities or len(modalities) < 2:  # noqa: PLR2004 - one is not mixed
            return
        usual = modalities.most_common(1)[0][0]
        for seen in self._seen:
            if seen.modality not in ("", usual):
                yield Finding(Mistake.MIXED_MODALITIES, seen.entry.file, f"{seen.modality} among {usual}")

    def _shortcut_findings(self) -> Iterator[Finding]:
        """Test one image of each patient: the first, or every one where the patient is unknown or stands for many."""
        shared = self._shared_patient()
        numbers = np.frombuffer(self._traces, np.float32).reshape(-1, len(NAMES))
        alone = [
            row
            for row, seen in enumerate(self._seen)
            if seen.patient in ("", shared) or self._patient_numbers[seen.patient] == row
        ]
        traces = [Traces(numbers[row], self._seen[row].source, self._seen[row].view) for row in alone]
        labels = np.array([self._seen[row].label for row in alone], np.int64)
        for shortcut in self._shortcuts(traces, labels):
            detail = (
                f"{shortcut.trace} predicts {shortcut.name} with an AUC of {shortcut.auc:.2f} "
                f"over {len(alone)} images; by chance at most 1 in {1 / max(shortcut.chance, 1e-12):.0e}"
            )
            yield Finding(Mistake.SHORTCUT, "", detail)

    def _shortcuts(self, traces: Sequence[Traces], labels: npt.NDArray[np.int64]) -> Iterator[Shortcut]:
        task = self.contract.meaning
        if task.kind is not TaskKind.MULTILABEL:
            yield from find_shortcuts(traces, labels, task.classes)
            return
        for name, present in zip(task.classes, targets(task, labels).T, strict=True):
            known: list[int] = np.flatnonzero(present >= 0).tolist()
            own = [traces[row] for row in known]
            yield from find_shortcuts(own, 1 - present[known], (name, f"no {name}"), tasks=len(task.classes))

    def _duplicate_findings(self) -> Iterator[Finding]:
        digests = np.frombuffer(self._pixel_digests, f"V{_PIXEL_DIGEST_BYTES}")
        _, first, group = np.unique(digests, return_index=True, return_inverse=True)
        same = first[group]
        for row in np.flatnonzero(same != np.arange(len(same))).tolist():
            yield self._duplicate(Mistake.DUPLICATE_IMAGE, int(same[row]), row)
        # Those that the run leaves out are compared as well, which takes the same time however many are records.
        compared = bytes(self._thumbnails + self._other_thumbnails)
        thumbnails = np.frombuffer(compared, _KEPT_AS).reshape(-1, THUMBNAIL_SIDE**2)
        if self.contract.channels == 1 or self.contract.image_size >= _TELLING_SIZE:
            for original, row in alike(thumbnails, REENCODED_LIKENESS):
                if row < len(same) and same[row] == row and same[original] == original:
                    yield self._duplicate(Mistake.DUPLICATE_REENCODED, original, row)

    def _duplicate(self, mistake: Mistake, original: int, row: int) -> Finding:
        first, second = self._seen[original], self._seen[row]
        only_counts_twice = first.split == second.split == "test" and first.label == second.label
        detail = f"same as {first.entry.file} ({first.split}, {self._name(first)})"
        return Finding(Mistake.DUPLICATE_IN_TEST if only_counts_twice else mistake, second.entry.file, detail)

    def _name(self, seen: _Seen) -> str:
        return self.contract.meaning.named(seen.label)


def _digest_of(usable: Usable) -> bytes:
    return hashlib.blake2b(usable.pixels.tobytes(), digest_size=_PIXEL_DIGEST_BYTES).digest()


def choose_split(key: bytes) -> Split:
    """Choose a part for a patient (or, where unknown, an image), the same one every time and on every machine.

    A hash of the key decides, so that adding images later moves nobody.
    """
    place = int.from_bytes(hashlib.sha256(b"confide split 1" + key).digest()[:8], "big") % 100
    return next(split for bound, split in _CHOSEN_SHARES if place < bound)


def check_counts(counts: Mapping[Split, Sequence[int]], contract: DataContract) -> Iterator[Finding]:
    """Yield what the contract finds wrong with the numbers of images, given for each part and class."""
    train = counts["train"]
    total = sum(train)
    for split in SPLITS:
        if not sum(counts[split]):
            yield Finding(Mistake.PART_EMPTY, "", split)
    several = contract.meaning.kind is TaskKind.MULTILABEL  # Where a record counts under any number of labels.
    if total and max(train) == total and not several:
        yield Finding(Mistake.SINGLE_CLASS, "", f"all {total} are {contract.classes[train.index(total)]}")
    if several and not total and any(sum(of_part) for of_part in counts.values()):
        yield Finding(Mistake.SINGLE_CLASS, "", "no training image has any of the labels")
    for name, count in zip(contract.classes, train, strict=True):
        if count < contract.min_records_per_class:
            yield Finding(Mistake.TOO_FEW_IN_CLASS, "", f"{name}: {count} of {contract.min_records_per_class}")
    if 0 < total < contract.batch_size:
        yield Finding(Mistake.TOO_FEW_FOR_BATCH, "", f"{total} of {contract.batch_size}")
    if contract.delta * total >= 1:
        yield Finding(Mistake.DELTA_TOO_LARGE, "", f"{contract.delta:g} for {total} training images")


def alike(thumbnails: npt.NDArray[np.floating], likeness: float) -> Iterator[tuple[int, int]]:
    """Yield the pairs of rows whose correlation is at least ``likeness``, each once, the smaller row first.

    Rows are sorted along their first principal axis, on which two that are alike can't lie further apart than
    √(2 - 2 likeness), so most pairs are never compared.

    Args:
        thumbnails: float16 or float32 of shape (n, k), rows centred and of length 1.
        likeness: between 0 and 1.
    """
    if len(thumbnails) < 2:  # noqa: PLR2004 - one has no pair
        return
    place = _along_principal_axis(thumbnails)
    order = np.argsort(place, kind="stable")
    place = place[order]
    reach = float(np.sqrt(2.0 - 2.0 * likeness)) + _ROUNDING
    for start, block in _blocks(thumbnails, order, 0, len(order)):
        end = int(np.searchsorted(place, place[start + len(block) - 1] + reach, side="right"))
        for begin, others in _blocks(thumbnails, order, start, end):
            for first, second in np.argwhere(block @ others.T >= likeness):
                one, other = order[start + first], order[begin + second]
                if start + first < begin + second:
                    yield int(min(one, other)), int(max(one, other))


def _along_principal_axis(rows: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """Return how far each row lies along the first principal axis of all, shape (n,), a block of rows at a time."""
    width = rows.shape[1]
    total, products = np.zeros(width), np.zeros((width, width))
    everything = np.arange(len(rows))
    for _, block in _blocks(rows, everything, 0, len(rows)):
        total += block.sum(axis=0)
        products += block.T @ block
    covariance = products / len(rows) - np.outer(total, total) / len(rows) ** 2
    axis = np.linalg.eigh(covariance)[1][:, -1].astype(np.float32)
    return np.concatenate([block @ axis for _, block in _blocks(rows, everything, 0, len(rows))])


def _blocks(
    rows: npt.NDArray[np.floating], order: npt.NDArray[np.int64], start: int, end: int
) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """Yield ``rows[order[start:end]]`` as float32, a block at a time with the place where it starts."""
    for begin in range(start, end, _COMPARED_TOGETHER):
        yield begin, rows[order[begin : min(begin + _COMPARED_TOGETHER, end)]].astype(np.float32)


def _pieces(joined: bytearray, length: int) -> Iterator[bytes]:
    for start in range(0, len(joined), length):
        yield bytes(joined[start : start + length])
