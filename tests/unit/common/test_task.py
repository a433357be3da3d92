"""A task says what labels mean, and refuses in one clear line what would mean two things."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from common.config import Config, load_config, replace
from common.errors import ConfigError
from common.task import (
    MOST_LABELS,
    Counts,
    TaskConfig,
    TaskKind,
    Unread,
    counted,
    groups_of,
    held_by,
    strata,
    targets,
    unknown_in,
)

LUNGS: dict[str, Any] = {"kind": "multiclass", "classes": ("normal", "covid", "tb"), "positive": ("covid", "tb")}
SEVERAL: dict[str, Any] = {"kind": "multilabel", "classes": ("Edema", "Mass", "Hernia")}


def task(fields: dict[str, Any], **changes: object) -> TaskConfig:
    return TaskConfig.model_validate({**fields, **changes})


BINARY = task({"kind": "binary", "classes": ("normal", "tb"), "positive": ("tb",)})


@pytest.mark.parametrize(
    ("section", "complaint"),
    [
        ({"kind": "binary", "classes": ["a", "b"], "positive": ["a", "b"]}, "one of its two classes, got a, b"),
        ({"kind": "binary", "classes": ["a", "b"]}, "one of its two classes, got none"),
        ({"kind": "binary", "classes": ["a", "b", "c"], "positive": ["a"]}, "must be 2 names, got 3"),
        ({"kind": "multiclass", "classes": ["a", "b"]}, "must be 3 to 256 names, got 2"),
        ({**LUNGS, "classes": ["tb", "TB", "x"], "positive": []}, "must be different names, got 'tb' twice"),
        ({**LUNGS, "positive": ["flu"]}, "got 'flu'; the classes are normal, covid, tb"),
        ({**LUNGS, "positive": ["normal", "covid", "tb"]}, "must leave one class that is not positive"),
        ({**LUNGS, "labels": {"1.0": "flu"}}, "got '1.0': 'flu'; the classes are normal, covid, tb"),
        ({**LUNGS, "labels": {"2": "tb", "2.0": "covid"}}, "one meaning, got two for '2.0'"),
        ({**LUNGS, "labels": {"TB": "covid"}}, "must leave the names of classes alone, got 'TB': 'covid'"),
        ({**LUNGS, "uncertain": "positive"}, "refuse or leave_out where 2 classes are positive"),
        ({**SEVERAL, "classes": ["a|b"]}, "must hold no '|' and no '='"),
        ({"kind": "multilabel", "classes": [f"l{i}" for i in range(MOST_LABELS + 1)]}, "must be 1 to 62 names, got 63"),
        ({"classes": ["a", "b"]}, "task.kind must be binary, multiclass, ordinal or multilabel"),
        ({"kind": "binry"}, "kind"),
    ],
)
def test_a_task_that_means_two_things_is_refused_in_one_line(section: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError) as refused:
        replace(Config(), task={**TaskConfig().model_dump(), **section})
    assert complaint in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_section_of_config_yaml_is_read_with_numbers_for_names(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("task: {kind: ordinal, classes: [0, 1, 2], labels: {-1: 0, none: 0, other: null}}\n")
    read = load_config(path).task
    assert (read.kind, read.classes) == (TaskKind.ORDINAL, ("0", "1", "2"))
    assert read.labels == {"-1": "0", "none": "0", "other": ""}
    assert (read.reader.read("-1"), read.reader.read("other")) == (0, Unread.LEFT_OUT)


def test_the_positive_class_of_two_is_put_second_and_numbers_in_a_table_keep_their_meaning() -> None:
    breast = task({"kind": "binary", "classes": ("malignant", "benign"), "positive": ("malignant",)}).normal()
    assert breast.classes == ("benign", "malignant")
    assert (breast.reader.read("0"), breast.reader.read("1"), breast.reader.read("Malignant")) == (1, 0, 1)
    assert breast.normal() == breast
    assert breast.sick == (1,)


@pytest.mark.parametrize(
    ("text", "number"),
    [("TB", 1), (" normal ", 0), ("1", 1), ("1.0", 1), ("No Finding", 0), ("Pneumonie", 1), ("covid", Unread.UNKNOWN),
     ("other", Unread.LEFT_OUT), ("", Unread.MISSING), ("-1", Unread.UNCERTAIN), ("-1.0", Unread.UNCERTAIN)],
)  # fmt: skip
def test_a_label_is_read_by_the_map_then_by_name_then_by_place(text: str, number: int | Unread) -> None:
    mapped = task(BINARY.model_dump(), labels={"No Finding": "normal", "Pneumonie": "tb", "other": ""})
    assert mapped.reader.read(text) == number


@pytest.mark.parametrize(("counts", "number"), [("negative", 0), ("positive", 1), ("leave_out", Unread.LEFT_OUT)])
def test_an_uncertain_or_empty_label_counts_as_the_task_says(counts: str, number: int | Unread) -> None:
    assert task(BINARY.model_dump(), uncertain=counts).reader.read("-1") == number
    assert task(BINARY.model_dump(), empty=counts).reader.read("") == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("Edema|Hernia", 0b101),
        ("mass", 0b010),
        ("No Finding", 0),
        ("Edema=1|Mass=0.0|Hernia=1.0", 0b101),
        ("Edema=0", 0),
        ("Edema|Nodule", Unread.UNKNOWN),
        ("Edema=2", Unread.UNKNOWN),
        ("Edema=-1", Unread.UNCERTAIN),
        ("Edema=", Unread.MISSING),
        ("", Unread.MISSING),
        ("1", Unread.UNKNOWN),
    ],
)
def test_several_labels_are_read_from_a_list_or_from_values(text: str, number: int | Unread) -> None:
    assert task(SEVERAL, labels={"No Finding": ""}).reader.read(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [("Pneumonia|Edema", 1), ("Edema|Mass", Unread.LEFT_OUT), ("No Finding", 0), ("Pneumonia=0|Edema=1", 0),
     ("Pneumonia=1.0|Edema=", 1), ("Pneumonia=-1|Edema=", Unread.UNCERTAIN), ("Pneumonia|Nodule", Unread.UNKNOWN),
     ("Pneumonia|No Finding", 1), ("Edema=1|Mass=0", Unread.LEFT_OUT)],
)  # fmt: skip
def test_a_task_of_two_classes_reads_a_table_of_many_findings(text: str, number: int | Unread) -> None:
    labels = {"No Finding": "no pneumonia", "Edema": "", "Mass": ""}
    fields = {"kind": "binary", "classes": ("no pneumonia", "pneumonia"), "positive": ("pneumonia",), "labels": labels}
    assert task(fields).reader.read(text) == number


def test_an_uncertain_finding_among_several_counts_as_the_task_says() -> None:
    text = "Edema=-1|Mass=|Hernia=1"
    assert task(SEVERAL, uncertain="positive", empty="negative").reader.read(text) == 0b101
    assert task(SEVERAL, uncertain="negative", empty="negative").reader.read(text) == 0b100


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("Edema=-1|Mass=|Hernia=1", 0b001_100),
        ("Edema=1|Mass=-1|Hernia=-1", 0b110_001),
        ("Edema=-1|Mass=-1.0|Hernia=-1", Unread.LEFT_OUT),
        ("Edema=-1|oedema=1", 0b001),
        ("oedema=0|Edema=-1", 0b001_000),
        ("Edema=-1|Nodule=1", Unread.UNKNOWN),
        ("Mass", 0b010),
    ],
)
def test_a_label_that_is_left_out_leaves_the_records_other_labels_in(text: str, number: int | Unread) -> None:
    terms = task(SEVERAL, uncertain="leave_out", empty="negative", labels={"oedema": "Edema"})
    assert terms.reader.read(text) == number


def test_which_labels_of_a_record_are_not_known_can_be_told() -> None:
    terms = task(SEVERAL, uncertain="leave_out")
    assert terms.numbers == 1 << 6
    assert (held_by(terms, 0b110_001), unknown_in(terms, 0b110_001)) == ((0,), (1, 2))
    assert terms.named(0b110_001) == "Edema (not known: Mass, Hernia)"
    assert terms.named(0b110_000) == "none of the labels (not known: Mass, Hernia)"
    numbers = np.array([0b110_001, 0b000_011], np.int64)
    assert targets(terms, numbers).tolist() == [[1, -1, -1], [1, 1, 0]]
    assert counted(terms, numbers) == (2, 1, 0)
    assert strata(terms, np.array([0b110_000, 0b000_001], np.int64)).tolist() == [3, 0]


def test_labels_are_left_out_of_no_more_of_them_than_a_number_can_say() -> None:
    classes = tuple(f"label {number}" for number in range(32))
    with pytest.raises(ValidationError, match="where a multilabel task has more than 31 labels, got leave_out and 32"):
        TaskConfig(kind=TaskKind.MULTILABEL, classes=classes, uncertain=Counts.LEAVE_OUT)
    assert TaskConfig(kind=TaskKind.MULTILABEL, classes=classes[:31], empty=Counts.LEAVE_OUT).numbers == 1 << 62


@given(st.integers(min_value=0, max_value=7), st.integers(min_value=0, max_value=6))
@pytest.mark.parametrize("left_out", ["uncertain", "empty", ""])
def test_what_is_written_of_several_labels_is_read_back(left_out: str, number: int, unknown: int) -> None:
    several = task(SEVERAL, **{left_out: "leave_out"}) if left_out else task(SEVERAL)
    whole = number & ~unknown | unknown << 3 if left_out else number
    assert several.reader.read(several.written(whole)) == whole


@given(st.text(max_size=40))
def test_any_text_is_read_without_an_error(text: str) -> None:
    for each in (BINARY, task(LUNGS), task(SEVERAL)):
        read = each.reader.read(text)
        assert isinstance(read, Unread) or 0 <= read < each.numbers


def test_targets_and_counts_of_several_labels_are_by_label() -> None:
    numbers = np.array([0b101, 0b001, 0], np.int64)
    assert targets(task(SEVERAL), numbers).tolist() == [[1, 0, 1], [1, 0, 0], [0, 0, 0]]
    assert counted(task(SEVERAL), numbers) == (2, 0, 1)
    assert counted(BINARY, np.array([1, 1, 0], np.int64)) == (1, 2)


def test_records_are_shared_out_by_the_rarest_label_that_they_have() -> None:
    numbers = np.array([0b101, 0b001, 0, 0b001], np.int64)
    assert strata(task(SEVERAL), numbers).tolist() == [2, 0, 3, 0]
    assert groups_of(task(SEVERAL)) == 4
    assert strata(BINARY, np.array([1, 0], np.int64)).tolist() == [1, 0]


def test_a_task_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        BINARY.empty = Counts.POSITIVE  # type: ignore[misc]
