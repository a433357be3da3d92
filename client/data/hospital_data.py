"""The way from a hospital's folder to the arrays it trains on: list, examine, survey, keep."""

import datetime
import hashlib
import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from client.data.cache import CACHE_VERSION, LIMIT_BYTES, NoRoomError, Prepared, PreparedCache, PreparedWriter
from client.data.catalogue import Catalogue, DataLayout, read_catalogue
from client.data.contract import DataContract
from client.data.examine import Examined, examine_all
from client.data.mistakes import DEPENDS_ON_TERMS, Finding, Weight
from client.data.survey import Survey, check_counts
from client.data.watch import NO_STAMP, Origin, Watch, stamp_of
from common.errors import DataError
from common.evaluation.statistics import unknown_traits
from common.shards import SPLITS, Split
from common.task import counted

_LOG = logging.getLogger("confide.hospital")


@dataclass(frozen=True, eq=False)
class HospitalRecords:
    """One part of a hospital's data, ready to train on.

    Attributes:
        all_images: uint8, shape (N, c, h, w), mapped from disk: take a batch at a time. Beside the n records' they hold
            those that the run leaves out, so that what is computed of each image does not show how many records are.
        labels: int64, shape (n,): what :mod:`common.task` makes of a label, such as the index of the class.
        patients: int64, shape (n,): equal numbers mean one patient; the numbers themselves mean nothing.
        traits: uint8, shape (n, tables): bins of :mod:`client.data.traits`; None where they are not known.
        rows: int64, shape (n,): which of the images are the records'; None where all are.
    """

    all_images: npt.NDArray[np.uint8] = field(repr=False)
    labels: npt.NDArray[np.int64] = field(repr=False)
    patients: npt.NDArray[np.int64] = field(repr=False)
    traits: npt.NDArray[np.uint8] | None = field(default=None, repr=False)
    rows: npt.NDArray[np.int64] | None = field(default=None, repr=False)

    @property
    def images(self) -> npt.NDArray[np.uint8]:
        """Return the records' images, shape (n, c, h, w); a copy in memory where the run leaves some out."""
        whole = self.rows is None or len(self.rows) == len(self.all_images)
        return self.all_images if whole else self.all_images[self.rows]

    def traits_or_unknown(self) -> npt.NDArray[np.uint8]:
        """Return the traits, each record's as not known where they are."""
        return unknown_traits(len(self)) if self.traits is None else self.traits

    def emptied(self) -> Self:
        """Return a part of the same shape without any record."""
        traits = None if self.traits is None else self.traits[:0]
        rows = None if self.rows is None else self.rows[:0]
        return replace(
            self,
            all_images=self.all_images[:0],
            labels=self.labels[:0],
            patients=self.patients[:0],
            traits=traits,
            rows=rows,
        )

    def __len__(self) -> int:
        """Return the number of records, n."""
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class HospitalData:
    """All of a hospital's data that a run uses, checked against the contract.

    Attributes:
        train: what gradients are computed on.
        validation: what a decision threshold is chosen on.
        test: what the global model is measured on.
        fingerprint: 32 bytes that name this data; the privacy ledger is bound to it.
        images: 16 bytes for each hash of an image, by which the ledger knows it again; they never leave this machine.
        watch: sees to whether the files are still as they were read; None where there are no files.
        key: by which :func:`open_data` finds this very data again, '' where there is none.
    """

    train: HospitalRecords
    validation: HospitalRecords
    test: HospitalRecords
    fingerprint: bytes
    images: bytes = field(default=b"", repr=False)
    watch: Watch | None = field(default=None, repr=False)
    key: str = ""


@dataclass(frozen=True)
class Report:
    """What a check found; shown to the hospital's own staff only.

    Attributes:
        layout: how the data lies.
        findings: everything that is wrong, the worst first.
        images: how many were listed under a label that the task names.
        patients: how many known ones there are.
        counts: usable images of each part and class.
    """

    layout: DataLayout
    findings: tuple[Finding, ...] = field(repr=False)
    images: int = field(repr=False)
    patients: int = field(repr=False)
    counts: dict[Split, tuple[int, ...]] = field(repr=False)

    @property
    def is_usable(self) -> bool:
        """Whether the data meets the run's contract."""
        return not any(finding.blocks for finding in self.findings)

    @property
    def can_be_opened(self) -> bool:
        """Whether every image does; a run's terms do not decide it (:data:`~client.data.mistakes.DEPENDS_ON_TERMS`)."""
        return not any(map(_refuses, self.findings))


Progress = Callable[[int, int], None]
"""A function that is called with the number of images done and of all images."""


UNUSABLE_DATA = (
    "the hospital's data cannot be used for this run; its operator finds the reason in the hospital's log, "
    "and each place with 'confide hospital check-data'"
)
"""All that a server learns about data that cannot be opened, for any reason."""

_WITHOUT = "none-"
"""Before the key of data whose records did not fit the cache, and are left out."""

_TRIES = 3
"""How often data that changes while it is read is read again before the operator is asked."""


def open_data(folder: Path, contract: DataContract, cache_dir: Path, began_with: str = "") -> HospitalData:
    """Read a hospital's data, check it against the contract, and return it ready to train on.

    The first time, and after any change, every image is opened and checked, and kept as the model will see it; later
    the kept images are mapped. What happens to a file once this has returned is seen by :class:`Watch`.

    A run that has begun goes on with the data it began with, whatever the folder holds by now: whether the hospital
    takes part in it must no longer depend on the data.

    Args:
        folder: the hospital's data, in any layout of :mod:`client.data.catalogue`.
        contract: what the run asks.
        cache_dir: the hospital's own folder for prepared images, on its own disk.
        began_with: :attr:`HospitalData.key` of what the run began with, '' where it begins now.

    Raises:
        DataError: the data cannot be used. The message may travel to the server, so it is always ``UNUSABLE_DATA``;
            kinds, numbers and remedies go to the operator's log, and places to neither.
    """
    try:
        return _kept(contract, cache_dir, began_with) or _open(folder, contract, cache_dir)
    except DataError as error:
        _LOG.error("the data: %s", error)
        raise DataError(UNUSABLE_DATA) from None


def _kept(contract: DataContract, cache_dir: Path, key: str) -> HospitalData | None:
    """Return the data with this key, if it was prepared for this contract and is still there."""
    if not key.endswith(_wanted(contract)):
        return None
    prepared = PreparedCache(cache_dir).find(key)
    return None if prepared is None else _as_data(prepared, contract)


def _open(folder: Path, contract: DataContract, cache_dir: Path) -> HospitalData:
    cache = PreparedCache(cache_dir)
    for _ in range(_TRIES):
        catalogue = read_catalogue(folder, contract.meaning)
        _tell_or_refuse(catalogue.findings)
        key = _cache_key(catalogue, contract)
        prepared = cache.find(key)
        if prepared is not None:
            return _as_data(prepared, contract)
        try:
            _tell_or_refuse(check_data(folder, contract, cache_dir).findings)
        except NoRoomError as error:
            _LOG.error("the data: %s; no record counts in this run, and the server learns nothing of this", error)
            _tell_or_refuse(check_data(folder, contract, cache_dir, keep=False).findings)
            prepared = cache.find(_WITHOUT + key)
            if prepared is not None:
                return _as_data(prepared, contract)
    raise DataError("it changed while it was read; start again when nobody writes to it")


def _as_data(prepared: Prepared, contract: DataContract) -> HospitalData:
    _tell_or_refuse(tuple(check_counts(_counts(prepared, contract), contract)))
    parts = (prepared.parts[split] for split in SPLITS)
    train, validation, test = (
        HospitalRecords(part.images, part.labels, part.patients, part.traits, part.rows) for part in parts
    )
    return HospitalData(
        train,
        validation,
        test,
        prepared.fingerprint,
        prepared.images,
        Watch(prepared.root, {split: part.origins for split, part in prepared.parts.items()}),
        prepared.key,
    )


def check_data(
    folder: Path,
    contract: DataContract,
    cache_dir: Path,
    progress: Progress = lambda _done, _all: None,
    today: datetime.date | None = None,
    cache_limit_bytes: int = LIMIT_BYTES,
    *,
    keep: bool = True,
) -> Report:
    """Open and check every image, and keep the prepared images if each is usable.

    Args:
        folder: the hospital's data.
        contract: what a run asks.
        cache_dir: where prepared images are kept.
        progress: called after each image.
        today: the date that no study may lie beyond; by default this machine's.
        cache_limit_bytes: of all prepared images together.
        keep: False to prepare data without any record, which takes no room.

    Raises:
        DataError: there is no such folder, or the cache cannot be written.
    """
    catalogue = read_catalogue(folder, contract.meaning)
    shape = (contract.channels, contract.image_size, contract.image_size)
    cache = PreparedCache(cache_dir, cache_limit_bytes)
    key = _cache_key(catalogue, contract)
    number = len(catalogue.entries) if keep else 0
    with cache.build(key if keep else _WITHOUT + key, number, shape) as writer:
        date = today or datetime.datetime.now(datetime.UTC).date()
        survey, found = _examine(catalogue, contract, writer if keep else None, progress, date)
        report = _report(catalogue, survey, found)
        if report.can_be_opened:
            writer.commit(survey.fingerprint, catalogue.root, survey.images)
    return report


def _examine(
    catalogue: Catalogue,
    contract: DataContract,
    writer: PreparedWriter | None,
    progress: Progress,
    today: datetime.date,
) -> tuple[Survey, list[Finding]]:
    survey, found = Survey(contract), list(catalogue.findings)
    for done, examined in enumerate(examine_all(catalogue, contract, today), start=1):
        label, own = examined.entry.label, [_judged(finding, catalogue) for finding in examined.findings]
        if label is None:  # Its file must be sound all the same, or who refuses would tell that there is such an image.
            own = [finding for finding in own if _refuses(finding)]
        found += own
        if writer is None or label is None or examined.usable is None or any(finding.blocks for finding in own):
            split = survey.pass_over(examined)
            if writer is not None:
                writer.pass_over(split, None if examined.usable is None else examined.usable.pixels)
        else:
            split, patient = survey.add(examined, examined.usable)
            origin = _origin(catalogue, examined)
            writer.add(split, examined.usable.pixels, label, patient, examined.usable.traits, origin)
        progress(done, len(catalogue.entries))
    return survey, found


def _origin(catalogue: Catalogue, examined: Examined) -> Origin:
    """Return where a record came from.

    A file that is replaced between its reading and this gets the newer stamp. It changes the catalogue as well, so the
    data is read again before a run may use it.
    """
    file = examined.entry.file
    try:
        stamp = stamp_of(catalogue.root, file)
    except OSError:
        stamp = NO_STAMP
    return Origin(file, examined.content_digest, stamp)


def _report(catalogue: Catalogue, survey: Survey, found: list[Finding]) -> Report:
    weights = list(Weight)
    everything = [_judged(finding, catalogue) for finding in (*found, *survey.findings())]
    everything.sort(key=lambda finding: (not finding.blocks, weights.index(finding.advice.weight)))
    return Report(catalogue.layout, tuple(everything), len(catalogue.labelled), survey.patients, survey.counts())


def _judged(finding: Finding, catalogue: Catalogue) -> Finding:
    """Return a finding with whether the data manager accepts it."""
    is_listed = (finding.where, finding.mistake.value) in catalogue.accepted
    return replace(finding, accepted=is_listed and finding.advice.weight is Weight.ACCEPTABLE)


def _refuses(finding: Finding) -> bool:
    return finding.blocks and finding.mistake not in DEPENDS_ON_TERMS


def _tell_or_refuse(findings: tuple[Finding, ...]) -> None:
    """Tell the operator which kinds were found how often and what to do, but never where, and refuse if one refuses.

    Raises:
        DataError: a finding refuses the data.
    """
    by_kind = sorted(findings, key=lambda finding: finding.mistake)
    for mistake, group in itertools.groupby(by_kind, key=lambda finding: finding.mistake):
        found = [finding for finding in group if not finding.accepted]
        if found:
            advice = found[0].advice
            _LOG.warning("the data: %s in %d places: %s: %s", mistake.value, len(found), advice.reason, advice.remedy)
    kinds = sorted({finding.mistake for finding in findings if _refuses(finding)})
    if kinds:
        raise DataError(f"it breaks the run's contract ({', '.join(kinds)})")


def _cache_key(catalogue: Catalogue, contract: DataContract) -> str:
    """Name prepared images by the data as listed and by how the contract wants them prepared and checked."""
    return f"{catalogue.digest.hex()[:32]}-{_wanted(contract)}"


def _wanted(contract: DataContract) -> str:
    wanted = (contract.task, contract.meaning, contract.channels, contract.image_size, contract.unit.value)
    return hashlib.sha256(repr((CACHE_VERSION, wanted)).encode()).hexdigest()[:32]


def _counts(prepared: Prepared, contract: DataContract) -> dict[Split, tuple[int, ...]]:
    return {split: counted(contract.meaning, part.labels) for split, part in prepared.parts.items()}
