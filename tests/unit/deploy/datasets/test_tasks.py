"""Presets name the class that is looked for, and a consortium's own task needs no preset."""

import numpy as np
import pytest

from common.config import Config, replace
from common.errors import DataError
from common.task import Counts, ImageKindName, TaskConfig, TaskKind
from deploy.datasets.datasets import obtain
from deploy.datasets.tasks import medmnist, task_named, task_of_config, with_task


def named(terms: TaskConfig, text: str) -> str:
    read = terms.reader.read(text)
    assert isinstance(read, int)
    return terms.classes[read]


def test_the_positive_class_of_breastmnist_is_malignant_and_its_numbers_keep_their_meaning() -> None:
    breast = task_named("breastmnist").terms
    assert breast.positive == ("malignant",)
    assert breast.classes[1] == "malignant"
    label_of = medmnist()["breastmnist"]["label"]
    assert {number: named(breast, number) for number in label_of} == label_of


def test_the_list_of_data_sets_is_medmnists_own() -> None:
    from medmnist.info import INFO  # imports PyTorch, which the list itself does not need

    assert medmnist() == INFO


@pytest.mark.parametrize("name", [name for name in medmnist() if not name.endswith("3d")])
def test_every_preset_reads_medmnists_numbers_as_medmnists_classes(name: str) -> None:
    terms, entry = task_named(name).terms, medmnist()[name]
    assert not terms.is_preset
    if terms.kind is TaskKind.MULTILABEL:
        assert terms.classes == tuple(entry["label"].values())
        return
    if name != "retinamnist":
        assert {number: named(terms, number) for number in entry["label"]} == entry["label"]


def test_retina_has_the_scales_grades_in_order() -> None:
    terms = task_named("retina").terms
    assert (terms.kind, terms.classes[0], terms.classes[4]) == (TaskKind.ORDINAL, "no retinopathy", "proliferative")
    assert terms.reader.read("3") == 3
    assert terms.sick == (2, 3, 4)


def test_a_configuration_says_everything_of_its_preset_and_keeps_what_it_says_of_uncertain_labels() -> None:
    config = with_task(replace(Config(), task={"empty": "leave_out"}))
    assert (config.task.kind, config.task.classes) == (TaskKind.BINARY, ("normal", "pneumonia"))
    assert (config.task.empty, config.task.images) == (Counts.LEAVE_OUT, ImageKindName.CHEST_RADIOGRAPH)


def test_a_task_of_ones_own_needs_no_preset_and_no_published_data_set() -> None:
    own = {"kind": "multiclass", "classes": ("a", "b", "c")}
    config = replace(Config(), experiment={"task": "lungs"}, task=own)
    assert task_of_config(config).classes == ("a", "b", "c")
    with pytest.raises(DataError, match=r"experiment\.task must be one of"):
        obtain(config.data, "lungs", 28, terms=config.task)
    with pytest.raises(DataError, match=r"data\.source must be a path where the section task says"):
        obtain(config.data, "pneumonia", 28, terms=config.task)


def test_a_file_of_chestmnist_is_read_by_label(tmp_path: object) -> None:
    terms = task_named("chestmnist").terms
    assert (terms.kind, len(terms.classes)) == (TaskKind.MULTILABEL, 14)
    images, labels = np.arange(4 * 784, dtype=np.uint8).reshape(4, 28, 28), np.zeros((4, 14), np.uint8)
    labels[0, [0, 13]] = 1
    path = f"{tmp_path}/chest.npz"
    np.savez(
        path, train_images=images, val_images=images + 1, test_images=images + 2,
        train_labels=labels, val_labels=labels, test_labels=labels,
    )  # fmt: skip
    data = obtain(replace(Config(), data={"source": path}).data, "chestmnist", 28, terms=terms)
    assert data.parts["test"].labels.tolist() == [1 | 1 << 13, 0, 0, 0]
