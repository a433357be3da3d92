"""Where the demo's and the experiments' images come from: MedMNIST, a path, or the phantom.

MedMNIST: Yang et al., Scientific Data 10:41 (2023), CC BY 4.0.
Chest X-rays: Kermany, Zhang, Goldbaum, Mendeley Data 10.17632/rscbjbr9sj; Kermany et al., Cell 172 (2018), CC BY 4.0.
"""

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from client.data.catalogue import label_texts
from client.data.contract import DataContract
from client.data.readers import npz
from common.config import DataConfig
from common.errors import DataError
from common.shards import SPLITS, Records, Split, fit, to_image
from common.task import TaskConfig, TaskKind, groups_of, implied, strata
from deploy.datasets import own_data, phantom
from deploy.datasets.download import NoAnswerError, PublishedFile, check_md5, download
from deploy.datasets.image_tree import TreePicture, is_split_tree, read_tree
from deploy.datasets.partition import partition
from deploy.datasets.tasks import TASK_DATA_SETS, Task, medmnist, task_named

MEDMNIST_PAGE = "https://zenodo.org/records/10519652"
"""Where MedMNIST's files are published."""

DATA_VARIABLE = "CONFIDE_DATA"
"""Environment variable: a folder with data files that were put there beforehand."""

SMALLEST_VALIDATION_SHARE = 0.02
"""The smallest official validation part that is used, as a share of training and validation images. The 16 official
validation X-rays of 5,232 cannot choose a threshold."""

VALIDATION_SHARE = 0.1
"""The size of a validation part that is taken from the training images instead, as MedMNIST did."""

PHANTOM_SHARES = (0.75, 0.1, 0.15)
"""The shares of the phantom's patients for training, validation and test."""

_CARVING_SEED = 2023
"""The seed of carving. A data set is the same for every run, so it does not follow ``experiment.seed``."""


@dataclass(frozen=True)
class DataSet:
    """A whole data set with its three splits.

    Attributes:
        name: shown by every output, such as ``PneumoniaMNIST``.
        source: where it came from: a file's name, ``download`` or ``phantom``.
        parts: the records of ``train``, ``val`` and ``test``; no known patient and no image is in two of them.
        notes: what a reader of results must know, such as records left out.
        banner: what a person must see before a run, or None.
    """

    name: str
    source: str
    task: str
    classes: tuple[str, ...]
    channels: int
    image_size: int
    parts: Mapping[Split, Records]
    notes: tuple[str, ...] = ()
    banner: str | None = None
    given: TaskConfig | None = None
    """What the labels are; None where the task's name and the classes say it."""

    @property
    def terms(self) -> TaskConfig:
        """What the labels are."""
        return implied(self.task, self.classes) if self.given is None else self.given

    @property
    def is_phantom(self) -> bool:
        """Whether the images are procedural, so that no result says anything about a disease."""
        return self.source == "phantom"


def obtain(
    config: DataConfig,
    task: str,
    image_size: int,
    cache: Path | None = None,
    environment: Mapping[str, str] = os.environ,
    terms: TaskConfig | None = None,
) -> DataSet:
    """Get the data set that ``data.source`` names: ``auto``, ``phantom`` or a path.

    ``auto`` takes the task's MedMNIST file from the folder in ``$CONFIDE_DATA``, else from the cache, else downloads it
    to the cache; where nothing answers it makes the phantom and says so in ``banner``. A path is an npz file in
    MedMNIST's layout, a folder or tar of ``train|val|test/CLASS/image`` or, where ``terms`` are given, in any layout
    that a hospital's data may have.

    Args:
        config: the ``data`` section.
        task: ``pneumonia``, ``retina``, the name of a MedMNIST 2D data set or, with ``terms``, any name.
        image_size: pixels on a side of what is returned; the next larger published size is taken.
        cache: where downloads stay; :func:`default_cache` unless given.
        environment: of this process unless given.
        terms: what is learnt, for data at a path; the preset's unless given.

    Raises:
        DataError: the task is unknown, the path is missing, or a file is corrupt or not in a known layout.
    """
    wanted = _task(task, config.source, terms)
    if config.source == "phantom":
        return _phantom(wanted, image_size, config.phantom_records, "the built-in phantom was asked for")
    if config.source != "auto":
        return _from_path(Path(config.source).expanduser(), wanted, image_size, any_layout=terms is not None)
    published = published_file(wanted, image_size)
    try:
        found = _find_or_download(published, cache or default_cache(environment), environment, config)
    except NoAnswerError as error:
        return _phantom(wanted, image_size, config.phantom_records, str(error))
    return _from_npz(found, wanted, image_size, wanted.title)


def _task(name: str, source: str, terms: TaskConfig | None) -> Task:
    """Return a preset, or for data at a path the task that is given."""
    if terms is None:
        return task_named(name)
    if source in ("auto", "phantom"):
        found = task_named(name)
        if found.classes != terms.classes:
            raise DataError(
                f"data.source must be a path where the section task says what is learnt, got {source}: "
                f"{found.title} has the classes {', '.join(found.classes)}"
            )
        return found
    return Task(name, "", name, terms)


def published_file(task: Task, image_size: int) -> PublishedFile:
    """Return the published npz of the smallest size that is at least ``image_size``, else the largest."""
    entry = medmnist()[task.data_set]
    endings = {28: "", **{size: f"_{size}" for size in (64, 128, 224) if f"url_{size}" in entry}}
    ending = endings[min((size for size in endings if size >= image_size), default=max(endings))]
    return PublishedFile(f"{task.data_set}{ending}.npz", entry[f"url{ending}"], entry[f"MD5{ending}"])


def default_cache(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the user's cache folder for downloads (XDG Base Directory Specification 0.8).

    A user without a home, or with one that cannot be written, has it in the folder for temporary files.
    """
    base = Path(environment.get("XDG_CACHE_HOME", ""))
    if base.is_absolute():
        return base / "confide"
    try:
        cache = Path.home() / ".cache"
    except RuntimeError:  # neither $HOME nor an entry among the system's users
        cache = Path("/dev/null")
    there = next(folder for folder in (cache, *cache.parents) if folder.exists())
    if there.is_dir() and os.access(there, os.W_OK):
        return cache / "confide"
    return Path(tempfile.gettempdir()) / f"confide-{os.getuid()}"


def kermany_patient(file_name: str) -> str:
    """Return the patient whose number an X-ray of Kermany et al. carries in its name, or '' where it has no number.

    ``personN`` is numbered for each pathogen separately: of 170 numbers that occur in both the training and the test
    folder, not one has the same pathogen in both, and half of all numbers would otherwise have had both kinds of
    pneumonia. So the pathogen is part of the patient.

    >>> kermany_patient("person12_virus_46.jpeg"), kermany_patient("NORMAL2-IM-0381-0001.jpeg")
    ('person12-virus', 'NORMAL2-IM-0381')
    """
    if pneumonia := re.match(r"(person\d+)_(bacteria|virus)_", file_name):
        return f"{pneumonia[1]}-{pneumonia[2]}"
    normal = re.match(r"(?:NORMAL2-)?IM-\d+", file_name)
    return normal[0] if normal else ""


def _find_or_download(
    published: PublishedFile, cache: Path, environment: Mapping[str, str], config: DataConfig
) -> Path:
    folders = [cache]
    if given := environment.get(DATA_VARIABLE):
        if not Path(given).is_dir():
            raise DataError(f"${DATA_VARIABLE} must name a folder that exists; unset it or correct it")
        folders.insert(0, Path(given))
    for folder in folders:
        candidate = folder / published.name
        if candidate.exists():
            check_md5(candidate, published)
            return candidate
    return download(published, cache, config.download_timeout_seconds)


def _from_path(path: Path, task: Task, image_size: int, *, any_layout: bool) -> DataSet:
    if not path.exists():
        raise DataError(f"--data must be auto, phantom or a path that exists; there is no {path}")
    if path.suffix == ".npz":
        return _from_npz(path, task, image_size, path.stem)
    if any_layout and not is_split_tree(path, task.classes):
        contract = DataContract(task.name, task.classes, task.channels, image_size, 1, 0.0, terms=task.terms)
        parts, notes = own_data.read(path, contract)
        found = _data_set(task, path.name.partition(".")[0], path.name, image_size, parts)
        return replace(found, notes=(*notes, *found.notes))
    return _from_tree(path, task, image_size)


def _from_npz(path: Path, task: Task, image_size: int, name: str) -> DataSet:
    parts: dict[Split, Records] = {}
    reader = task.terms.reader
    for split in SPLITS:
        read = [reader.read(text) for text in label_texts(npz.label_rows(path, split), task.terms)]
        labels = np.array([label for label in read if isinstance(label, int)], np.int64)
        if len(labels) < len(read):
            raise DataError(f"{path.name}: {task.name} has the labels {_allowed(task)}; {split} has others")
        images = _resized(npz.image_blocks(path, split), len(labels), task.channels, image_size, path)
        parts[split] = Records(images, labels, ("",) * len(labels))
    return _data_set(task, name, path.name, image_size, parts)


def _allowed(task: Task) -> str:
    several = task.terms.kind is TaskKind.MULTILABEL
    return f"0 and 1 for each of {len(task.classes)}" if several else f"0 … {len(task.classes) - 1}"


def _resized(
    blocks: Iterator[npt.NDArray[np.uint8]], records: int, channels: int, image_size: int, path: Path
) -> npt.NDArray[np.uint8]:
    images = np.empty((records, channels, image_size, image_size), np.uint8)
    done = 0
    for block in blocks:
        if block.shape[1] != channels or done + len(block) > records:
            raise DataError(
                f"{path.name} must have {channels} channels and as many images as labels; "
                f"got {block.shape[1]} channels and more than {done} images"
            )
        for pixels in block:
            same_size = pixels.shape[1:] == (image_size, image_size)
            images[done] = pixels if same_size else fit(to_image(pixels), image_size)
            done += 1
    if done != records:
        raise DataError(f"{path.name} must have as many images as labels, got {done} and {records}")
    return images


def _from_tree(path: Path, task: Task, image_size: int) -> DataSet:
    pictures: dict[Split, list[TreePicture]] = {split: [] for split in SPLITS}
    for picture in read_tree(path, task.classes, image_size, task.channels):
        pictures[picture.split].append(picture)
    for split in ("train", "test"):
        if not pictures[split]:
            expected = f"{split}/{task.classes[0]}/image.png"
            raise DataError(f"{path.name} must hold images as in {expected}; there are none in {split}")
    parts = {split: _stack(pictures[split], task.channels, image_size) for split in SPLITS}
    return _data_set(task, path.name.partition(".")[0], path.name, image_size, parts)


def _stack(pictures: Sequence[TreePicture], channels: int, image_size: int) -> Records:
    ordered = sorted(pictures, key=lambda picture: (picture.label, picture.name))
    images = np.empty((len(ordered), channels, image_size, image_size), np.uint8)
    for position, picture in enumerate(ordered):
        images[position] = picture.pixels
    labels = np.array([picture.label for picture in ordered], np.int64)
    return Records(images, labels, tuple(kermany_patient(picture.name) for picture in ordered))


def _data_set(task: Task, name: str, source: str, image_size: int, parts: Mapping[Split, Records]) -> DataSet:
    """Make the last two promises true: a validation part that is large enough, and no patient in two splits."""
    plain = DataSet(name, source, task.name, task.classes, task.channels, image_size, parts, given=task.terms)
    return _keep_apart(_enlarge_validation(plain))


def _enlarge_validation(data: DataSet) -> DataSet:
    train, validation = data.parts["train"], data.parts["val"]
    together = len(train) + len(validation)
    if len(validation) >= SMALLEST_VALIDATION_SHARE * together:
        return data
    pooled = _concatenate(train, validation)
    shares = np.repeat([[1.0 - VALIDATION_SHARE], [VALIDATION_SHARE]], groups_of(data.terms), axis=1)
    rows = partition(strata(data.terms, pooled.labels), pooled.patients, shares, np.random.default_rng(_CARVING_SEED))
    note = f"the {len(validation)} validation images were too few: {len(rows[1])} of {together} were taken by patient"
    parts = {**data.parts, "train": pooled.select(rows[0]), "val": pooled.select(rows[1])}
    return replace(data, parts=parts, notes=(*data.notes, note))


def _keep_apart(data: DataSet) -> DataSet:
    """Remove from training and validation the images that occur twice, and the patients of a later split.

    An image that occurs twice would be one person counted twice, which a hospital refuses. The test part stays the
    official one.
    """
    parts, notes = dict(data.parts), data.notes
    taken = set(_names_of(parts["test"]))
    patients_taken = set(parts["test"].patients) - {""}
    for split in ("val", "train"):
        records = parts[split]
        kept = []
        for row, (name, patient) in enumerate(zip(_names_of(records), records.patients, strict=True)):
            if name not in taken and patient not in patients_taken:
                taken.add(name)
                kept.append(row)
        if len(kept) < len(records):
            why = "the same image is there already, or the patient is in a later split"
            notes = (*notes, f"{len(records) - len(kept)} of {len(records)} records of {split} left out: {why}")
            parts[split] = records.select(np.array(kept, np.int64))
        patients_taken |= set(records.patients) - {""}
    return replace(data, parts=parts, notes=notes)


def _names_of(records: Records) -> list[bytes]:
    """Return a name for each image's content: equal for equal pixels, and for no others."""
    return [hashlib.sha256(pixels.tobytes()).digest() for pixels in records.images]


def _concatenate(first: Records, second: Records) -> Records:
    return Records(
        np.concatenate([first.images, second.images]),
        np.concatenate([first.labels, second.labels]),
        first.patients + second.patients,
    )


def _phantom(task: Task, image_size: int, records: int, why: str) -> DataSet:
    makers = {"pneumonia": phantom.chest, "retina": phantom.retina}
    maker = makers.get({flag: name for name, flag in TASK_DATA_SETS.items()}.get(task.data_set, ""))
    if maker is None:
        raise DataError(
            f"there is no phantom for {task.name} ({why}); give --data PATH or put it into ${DATA_VARIABLE}"
        )
    made = maker(records, image_size, _CARVING_SEED)
    shares = np.repeat(np.array(PHANTOM_SHARES)[:, None], len(task.classes), axis=1)
    rows = partition(made.labels, made.patients, shares, np.random.default_rng(_CARVING_SEED))
    parts = {split: made.select(chosen) for split, chosen in zip(SPLITS, rows, strict=True)}
    banner = (
        f"PHANTOM DATA: procedural images, not patients, because {why}. No result says anything about a disease.\n"
        f"For real images, get {published_file(task, image_size).name} ({MEDMNIST_PAGE}) on a machine with a network, "
        f"and name its folder in ${DATA_VARIABLE}, or the file with --data."
    )
    name = f"phantom-{task.name}"
    return DataSet(
        name, "phantom", task.name, task.classes, task.channels, image_size, parts, (banner,), banner, task.terms
    )
