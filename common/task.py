"""What a run learns: its classes in words, which of them are positive, and what a hospital's own labels mean.

A task is the section ``task`` of the configuration and part of a run's description, so every hospital agrees to it and
reads its labels alike. A label is kept as one whole number:

=========== ==========================================================================
kind        a record's number
=========== ==========================================================================
binary      0, or 1 for the positive class, which is always the second
multiclass  the place of its class
ordinal     the place of its grade
multilabel  the sum of 2^k over the labels k that it has, so 0 for a record with none;
            where the task leaves labels out, 2^(L+k) more for each label k of the L that
            is not known of it
=========== ==========================================================================
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

MOST_CLASSES = 256
"""The largest number of classes of a task. A model and an evaluation grow with it, so millions would exhaust memory."""

MOST_LABELS = 62
"""The largest number of labels of a multi-label task, whose sum of powers of two must fit a signed 64-bit number."""

MOST_LABELS_LEFT_OUT = MOST_LABELS // 2
"""The same where a label of a record may be unknown, which takes a second power of two for each label."""

UNKNOWN_LABEL = -1
"""What :func:`targets` holds for a label that is not known of a record: it is neither learnt nor counted."""

LONGEST_NAME = 120
MOST_SPELLINGS = 4096

BETWEEN_LABELS, BETWEEN_NAME_AND_VALUE = "|", "="
"""How several labels of one record are written: ``Edema|Effusion``, or ``Edema=1|Effusion=-1|Mass=``."""

_TWO = 2
_FEWEST_SEVERAL = 3
_POINT_ZERO = re.compile(r"(-?\d+)[.,]0+")
_MOST_DIGITS = 9


def _grey_or_colour(channels: int) -> int:
    if channels not in (1, 3):
        raise ValueError("must be 1 (grey) or 3 (colour)")
    return channels


Channels = Annotated[int, AfterValidator(_grey_or_colour)]
"""How many an image has. With another number none could be kept, and a hospital would refuse only where it has one."""


class TaskKind(StrEnum):
    """How labels are to be read."""

    BINARY = "binary"
    MULTICLASS = "multiclass"
    ORDINAL = "ordinal"
    """Classes that are grades, in order."""

    MULTILABEL = "multilabel"
    """Any number of labels for one record."""


ORDINAL_TASKS = frozenset({"retina", "retinamnist"})
"""Presets whose classes are ordered grades: their agreement is weighted by the distance between two grades."""


MULTILABEL_TASKS = frozenset({"chest", "chestmnist"})
"""Presets of which a record can have several labels."""


class Counts(StrEnum):
    """What a label that says nothing certain counts as."""

    REFUSE = "refuse"
    """The data are refused until somebody has decided."""
    NEGATIVE = "negative"
    POSITIVE = "positive"
    LEAVE_OUT = "leave_out"
    """The record is not used; in a multi-label task, this label of it is not."""


class ImageKindName(StrEnum):
    """What the images show, so that others can be recognised as foreign."""

    ANY = "any"
    CHEST_RADIOGRAPH = "chest_radiograph"
    FUNDUS_PHOTOGRAPH = "fundus_photograph"


def _as_words(value: object) -> object:
    """Let YAML's numbers be names: a class called 0 is the class "0"."""
    if isinstance(value, list | tuple):
        return tuple(str(each) if isinstance(each, int | float) and not isinstance(each, bool) else each
                     for each in value)  # fmt: skip
    return value


def _as_map(value: object) -> object:
    if isinstance(value, dict):
        return {_as_word(key): _as_word(each) for key, each in value.items()}
    return value


def _as_word(value: object) -> object:
    if value is None:
        return ""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


ClassName = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]
Spelling = Annotated[str, Field(max_length=LONGEST_NAME)]


class TaskConfig(BaseModel):
    """The section ``task``; with ``kind: preset`` all of it is what ``experiment.task`` names."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    kind: Annotated[TaskKind, Field(strict=False)] | Literal["preset"] = "preset"
    classes: Annotated[tuple[ClassName, ...], BeforeValidator(_as_words), Field(max_length=MOST_CLASSES)] = ()
    positive: Annotated[tuple[ClassName, ...], BeforeValidator(_as_words), Field(max_length=MOST_CLASSES)] = ()
    labels: Annotated[dict[Spelling, Spelling], BeforeValidator(_as_map), Field(max_length=MOST_SPELLINGS)] = {}
    """What stands in a table to the class that it means; to '' for what is nothing of this task."""
    uncertain: Annotated[Counts, Field(strict=False)] = Counts.REFUSE
    empty: Annotated[Counts, Field(strict=False)] = Counts.REFUSE
    channels: Channels = 1
    images: Annotated[ImageKindName, Field(strict=False)] = ImageKindName.ANY

    def __hash__(self) -> int:
        """Hash by content; the label map has no hash of its own."""
        labels = frozenset(self.labels.items())
        said = (self.kind, self.classes, self.positive, labels, self.uncertain, self.empty, self.channels, self.images)
        return hash(said)

    @property
    def is_preset(self) -> bool:
        """Whether the section leaves the task to ``experiment.task``."""
        return self.kind == "preset"

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.is_preset:
            if self.classes or self.positive or self.labels:
                raise ValueError(
                    "task.kind must be binary, multiclass, ordinal or multilabel where task.classes, task.positive or "
                    "task.labels are given, got preset"
                )
            return self
        _check_classes(self)
        _check_positive(self)
        _check_labels(self)
        _check_counts(self)
        return self

    def normal(self) -> Self:
        """Return the same task as runs describe it: the positive class of two is the second.

        What numbers in a table mean stays as written: where the classes change places, the label map says so.

        >>> given = TaskConfig(kind="binary", classes=("malignant", "benign"), positive=("malignant",))
        >>> given.normal().classes, given.normal().labels
        (('benign', 'malignant'), {'0': 'malignant', '1': 'benign'})
        """
        if self.kind is not TaskKind.BINARY or self.classes[1] == self.positive[0]:
            return self
        places = {str(place): name for place, name in enumerate(self.classes)}
        swapped = (self.classes[1], self.classes[0])
        return type(self).model_validate({**self.model_dump(), "classes": swapped, "labels": {**places, **self.labels}})

    @property
    def numbers(self) -> int:
        """Return how many numbers labels can be; each is in [0, numbers)."""
        if self.kind is not TaskKind.MULTILABEL:
            return len(self.classes)
        return 1 << len(self.classes) * (2 if self.leaves_labels_out else 1)

    @property
    def leaves_labels_out(self) -> bool:
        """Return whether single labels of a record may be unknown: those are neither learnt nor counted."""
        return self.kind is TaskKind.MULTILABEL and Counts.LEAVE_OUT in (self.uncertain, self.empty)

    @property
    def sick(self) -> tuple[int, ...]:
        """Return the places of the positive classes, ascending; of a multi-label task those of all labels."""
        if self.kind is TaskKind.MULTILABEL:
            return tuple(range(len(self.classes)))
        return tuple(place for place, name in enumerate(self.classes) if name in self.positive)

    @property
    def reader(self) -> "LabelReader":
        """Return what reads a hospital's labels; keep it where there are many."""
        return LabelReader(self)

    def written(self, number: int) -> str:
        """Return a record's number as a table holds it, so that :class:`LabelReader` reads it back."""
        if self.kind is not TaskKind.MULTILABEL:
            return self.classes[number]
        unknown = "-1" if self.uncertain is Counts.LEAVE_OUT else ""
        said = [self.classes[place] for place in held_by(self, number)]
        said += [f"{self.classes[place]}{BETWEEN_NAME_AND_VALUE}{unknown}" for place in unknown_in(self, number)]
        return BETWEEN_LABELS.join(said) if said else f"{self.classes[0]}{BETWEEN_NAME_AND_VALUE}0"

    def named(self, number: int) -> str:
        """Return a record's number in words."""
        if self.kind is not TaskKind.MULTILABEL:
            return self.written(number)
        own = ", ".join(self.classes[place] for place in held_by(self, number)) or "none of the labels"
        unknown = ", ".join(self.classes[place] for place in unknown_in(self, number))
        return f"{own} (not known: {unknown})" if unknown else own


def implied(name: str, classes: tuple[str, ...]) -> TaskConfig:
    """Return the task of a preset of which the classes alone are known: of two the second is positive.

    >>> implied("pneumonia", ("normal", "pneumonia")).positive
    ('pneumonia',)
    """
    if len(classes) == _TWO:
        return TaskConfig(kind=TaskKind.BINARY, classes=classes, positive=classes[1:])
    if name in MULTILABEL_TASKS:
        return TaskConfig(kind=TaskKind.MULTILABEL, classes=classes)
    kind = TaskKind.ORDINAL if name in ORDINAL_TASKS else TaskKind.MULTICLASS
    return TaskConfig(kind=kind, classes=classes)


def _check_classes(task: TaskConfig) -> None:
    fewest = {TaskKind.BINARY: _TWO, TaskKind.MULTILABEL: 1}.get(TaskKind(task.kind), _FEWEST_SEVERAL)
    most = {TaskKind.BINARY: _TWO, TaskKind.MULTILABEL: MOST_LABELS}.get(TaskKind(task.kind), MOST_CLASSES)
    if not fewest <= len(task.classes) <= most:
        wanted = str(fewest) if fewest == most else f"{fewest} to {most}"
        raise ValueError(f"task.classes of a {task.kind} task must be {wanted} names, got {len(task.classes)}")
    for name in task.classes:
        if name != name.strip() or not name.isprintable():
            raise ValueError(f"task.classes must be printable names without blanks at their ends, got {name!r}")
        if task.kind is TaskKind.MULTILABEL and {BETWEEN_LABELS, BETWEEN_NAME_AND_VALUE} & set(name):
            raise ValueError(f"task.classes of a multilabel task must hold no '|' and no '=', got {name!r}")
    twice = _twice([name.casefold() for name in task.classes])
    if twice:
        raise ValueError(f"task.classes must be different names, got {twice!r} twice")


def _check_positive(task: TaskConfig) -> None:
    unknown = [name for name in task.positive if name not in task.classes]
    if unknown:
        raise ValueError(f"task.positive must be names of task.classes, got {unknown[0]!r}; the classes are "
                         f"{', '.join(task.classes)}")  # fmt: skip
    if task.kind is TaskKind.BINARY and len(task.positive) != 1:
        got = ", ".join(task.positive) or "none"
        raise ValueError(f"task.positive of a binary task must be one of its two classes, got {got}")
    if task.kind is not TaskKind.MULTILABEL and len(set(task.positive)) == len(task.classes):
        raise ValueError("task.positive must leave one class that is not positive, got all of task.classes")


def _check_labels(task: TaskConfig) -> None:
    seen: dict[str, str] = {}
    own = {_plain(name): name for name in task.classes}
    for text, name in task.labels.items():
        if name and name not in task.classes:
            raise ValueError(
                f"task.labels must map to names of task.classes, or to '' for what is nothing of this task, got "
                f"{text!r}: {name!r}; the classes are {', '.join(task.classes)}"
            )
        plain = _plain(text)
        if seen.setdefault(plain, name) != name:
            raise ValueError(f"task.labels must give each spelling one meaning, got two for {text!r}")
        if own.get(plain, name) != name:
            raise ValueError(f"task.labels must leave the names of classes alone, got {text!r}: {name!r}")


def _check_counts(task: TaskConfig) -> None:
    if task.kind is TaskKind.MULTILABEL:
        if task.leaves_labels_out and len(task.classes) > MOST_LABELS_LEFT_OUT:
            raise ValueError(
                f"task.uncertain and task.empty must be refuse, negative or positive where a multilabel task has more "
                f"than {MOST_LABELS_LEFT_OUT} labels, got leave_out and {len(task.classes)} labels"
            )
        return
    sides = {Counts.POSITIVE: len(task.sick), Counts.NEGATIVE: len(task.classes) - len(task.sick)}
    for key in ("uncertain", "empty"):
        counts = getattr(task, key)
        if sides.get(counts, 1) != 1:
            raise ValueError(
                f"task.{key} must be refuse or leave_out where {sides[counts]} classes are {counts.value}, got "
                f"{counts.value}"
            )


def _twice(names: Sequence[str]) -> str:
    return next((name for place, name in enumerate(names) if name in names[:place]), "")


def _plain(text: str) -> str:
    """Return a label as it is compared: without blanks around it, without case, and a whole number without ``.0``."""
    word = text.strip().casefold()
    number = _POINT_ZERO.fullmatch(word)
    return number[1] if number else word


class Unread(StrEnum):
    """Why a label gives no number."""

    MISSING = "missing"
    """It is empty, and the task does not say what that counts as."""
    UNKNOWN = "unknown"
    """It is no class of the task, and its label map does not name it."""
    UNCERTAIN = "uncertain"
    """It is uncertain, and the task does not say what that counts as."""
    LEFT_OUT = "left out"
    """The task leaves such records out; in a multi-label task, those of which it leaves every label out."""


@dataclass(frozen=True)
class LabelReader:
    """Reads labels as a task says; the label map comes first, then names of classes, then their places."""

    task: TaskConfig
    _meanings: Mapping[str, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Gather what every spelling means."""
        places = {str(place): name for place, name in enumerate(self.task.classes)}
        names = {_plain(name): name for name in self.task.classes}
        if self.task.kind is TaskKind.MULTILABEL:
            places = {}  # A number is a value there, such as 1 or -1, and never a label.
        mapped = {_plain(text): name for text, name in self.task.labels.items()}
        object.__setattr__(self, "_meanings", {**places, **names, **mapped})

    def read(self, text: str) -> int | Unread:
        """Return a record's number, or why there is none.

        >>> read = TaskConfig(kind="binary", classes=("normal", "tb"), positive=("tb",)).reader.read
        >>> read("Normal"), read("1.0"), read("covid").name
        (0, 1, 'UNKNOWN')
        """
        return self._several(text) if self.task.kind is TaskKind.MULTILABEL else self._one(text)

    def _one(self, text: str) -> int | Unread:
        plain = _plain(text)
        if plain in self._meanings:
            name = self._meanings[plain]
            return self.task.classes.index(name) if name else Unread.LEFT_OUT
        if BETWEEN_LABELS in text or BETWEEN_NAME_AND_VALUE in text:
            return self._one_of(text.split(BETWEEN_LABELS))
        if plain in ("", "-1"):
            counts = self.task.uncertain if plain else self.task.empty
            if counts in (Counts.NEGATIVE, Counts.POSITIVE):
                wanted = counts is Counts.POSITIVE
                return next(place for place in range(len(self.task.classes)) if (place in self.task.sick) == wanted)
            return _not_counted(counts, plain)
        return Unread.UNKNOWN

    def _one_of(self, items: Sequence[str]) -> int | Unread:
        """Return the class of a record with several findings: the positive one where they are of two classes."""
        found: set[str] = set()
        valued = False
        for item in items:
            name, has_value, value = item.partition(BETWEEN_NAME_AND_VALUE)
            if _plain(name) not in self._meanings:
                return Unread.UNKNOWN
            meaning = self._meanings[_plain(name)]
            valued = valued or bool(has_value and meaning)
            if not meaning or (has_value and _plain(value) in ("0", "")):
                continue
            present = self._present(_plain(value)) if has_value else True
            if isinstance(present, Unread):
                return present
            found |= {meaning} if present else set()
        positive, negative = found & set(self.task.positive), set(self.task.classes) - set(self.task.positive)
        chosen = positive if len(positive) == 1 else found
        if not found and valued and len(negative) == 1:
            chosen = negative  # Every finding that is of this task is said to be absent.
        if len(chosen) > 1:
            return Unread.UNKNOWN
        return self.task.classes.index(next(iter(chosen))) if chosen else Unread.LEFT_OUT

    def _several(self, text: str) -> int | Unread:
        present_of: dict[str, bool] = {}
        unknown: set[str] = set()
        for item in text.split(BETWEEN_LABELS):
            name, valued, value = item.partition(BETWEEN_NAME_AND_VALUE)
            plain = _plain(name)
            if plain and plain not in self._meanings:
                return Unread.UNKNOWN
            meaning = self._meanings.get(plain, "")
            if plain and not meaning:
                continue  # A finding that is nothing of this task.
            present = self._present(_plain(value)) if valued else self._present("1" if plain else "")
            if present is Unread.LEFT_OUT and meaning:
                unknown.add(meaning)
            elif isinstance(present, Unread):
                return present
            elif meaning:
                present_of[meaning] = present or present_of.get(meaning, False)
        return self._number({name for name, present in present_of.items() if present}, unknown)

    def _number(self, present: set[str], unknown: set[str]) -> int | Unread:
        """Return the number of a record; one spelling that says a label is there outweighs one that is not certain."""
        number, labels = 0, len(self.task.classes)
        for place, name in enumerate(self.task.classes):
            if name in present:
                number |= 1 << place
            elif name in unknown:
                number |= 1 << labels + place
        return Unread.LEFT_OUT if len(unknown - present) == labels else number

    def _present(self, value: str) -> bool | Unread:
        if value in ("0", "1"):
            return value == "1"
        if value not in ("", "-1"):
            return Unread.UNKNOWN
        counts = self.task.uncertain if value else self.task.empty
        if counts in (Counts.NEGATIVE, Counts.POSITIVE):
            return counts is Counts.POSITIVE
        return _not_counted(counts, value)


def _not_counted(counts: Counts, value: str) -> Unread:
    if counts is Counts.LEAVE_OUT:
        return Unread.LEFT_OUT
    return Unread.UNCERTAIN if value else Unread.MISSING


def targets(task: TaskConfig, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return what a model is trained towards and measured against.

    Args:
        task: whose labels they are.
        numbers: (n,) of records.

    Returns:
        (n,) places of classes; of a multi-label task (n, labels) of 0 and 1, and UNKNOWN_LABEL where it is not known.
    """
    if task.kind is not TaskKind.MULTILABEL:
        return numbers
    labels = len(task.classes)
    places = np.arange(labels, dtype=np.int64)
    there: npt.NDArray[np.int64] = numbers[:, None] >> places & 1
    if not task.leaves_labels_out:
        return there
    return np.where(numbers[:, None] >> (labels + places) & 1 == 1, UNKNOWN_LABEL, there)


def counted(task: TaskConfig, numbers: npt.NDArray[np.int64]) -> tuple[int, ...]:
    """Return how many of the records have each class, or each label."""
    return present(targets(task, numbers), len(task.classes))


def present(labels: npt.NDArray[np.int64], classes: int) -> tuple[int, ...]:
    """Do as :func:`counted` for what :func:`targets` returns."""
    if labels.ndim == 1:
        return tuple(int(count) for count in np.bincount(labels, minlength=classes))
    return tuple(int(count) for count in (labels == 1).sum(axis=0))


def held_by(task: TaskConfig, number: int) -> tuple[int, ...]:
    """Return the places of the classes, or labels, that a record's number stands for."""
    if task.kind is not TaskKind.MULTILABEL:
        return (number,)
    return tuple(place for place in range(len(task.classes)) if number >> place & 1)


def unknown_in(task: TaskConfig, number: int) -> tuple[int, ...]:
    """Return the places of the labels that are not known of a record; none but in a task that leaves labels out."""
    if not task.leaves_labels_out:
        return ()
    labels = len(task.classes)
    return tuple(place for place in range(labels) if number >> (labels + place) & 1)


def strata(task: TaskConfig, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return for each record the group by which records are shared out, in [0, groups).

    That is its class; of a multi-label task the rarest label that it has, and a group more for records with none. So
    every part gets its share of the rare labels, which decide whether a label can be learnt and measured there.
    """
    if task.kind is not TaskKind.MULTILABEL:
        return numbers
    present = targets(task, numbers) == 1
    frequency = np.where(present, present.sum(axis=0)[None, :], len(numbers) + 1)
    rarest: npt.NDArray[np.int64] = frequency.argmin(axis=1)
    return np.where(present.any(axis=1), rarest, len(task.classes))


def groups_of(task: TaskConfig) -> int:
    """Return how many groups :func:`strata` makes."""
    return len(task.classes) + (task.kind is TaskKind.MULTILABEL)
