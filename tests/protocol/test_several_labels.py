"""Whole runs of a task with several labels, in one process: the deployed code, on images whose labels can be seen."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.shards import Records, Split
from common.task import Counts, TaskConfig, TaskKind, counted
from common.telemetry.events import Evaluated, RunFinished, RunStarted
from deploy.datasets.datasets import DataSet
from deploy.demo.dealer import deal
from tests.support.small_consortium import CONFIG, HOSPITALS, Dealt, everybody, small

LABELS = ("left", "right", "rare")
TERMS = TaskConfig(kind=TaskKind.MULTILABEL, classes=LABELS)
CHANGES: dict[str, dict[str, Any]] = {"experiment": {"task": "marks", "rounds": 2}, "task": TERMS.model_dump()}
SIZES: dict[Split, int] = {"train": 240, "val": 60, "test": 80}


def marked(records: int, seed: int) -> Records:
    """Return images with a bright half for each of the first two labels; the third shows nowhere."""
    random = np.random.default_rng(seed)
    present = random.random((records, 3)) < (0.5, 0.4, 0.05)
    images = random.integers(0, 60, (records, 1, 28, 28)).astype(np.uint8)
    images[present[:, 0], :, :, :14] += 120
    images[present[:, 1], :, :, 14:] += 120
    numbers = (present * (1, 2, 4)).sum(axis=1).astype(np.int64)
    return Records(images, numbers, tuple(f"{seed}-{number}" for number in range(records)))


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Dealt:
    folder = tmp_path_factory.mktemp("several")
    parts = {split: marked(size, seed) for seed, (split, size) in enumerate(SIZES.items())}
    data = DataSet("marks", "made", "marks", LABELS, 1, 28, parts, given=TERMS)
    deal(data, [folder / name / "shard" for name in HOSPITALS], CONFIG.data, CONFIG.experiment.seed, 1)
    return Dealt(data, folder)


def test_a_private_run_measures_each_label_within_the_secure_sum(several: Dealt, tmp_path: Path) -> None:
    everyone = everybody(evaluation_epsilon_budget=500.0, stated_validation_units=15, stated_test_units=20)
    made = small(several, tmp_path, **CHANGES, evaluation={"target_epsilon": 40.0}, policies=everyone)
    made.run().train()
    (started,), (finished,), (tested,) = made.of(RunStarted), made.of(RunFinished), made.of(Evaluated)
    assert finished.reason == "completed"
    assert started.terms == TERMS
    assert tuple(tested.each) == LABELS
    truth = counted(TERMS, several.data.parts["test"].labels)
    for place, name in enumerate(LABELS):
        figures = tested.each[name]
        assert figures.noise["support"] > 0
        assert abs(figures.support - truth[place]) <= 4 * figures.noise["support"] + 2
        assert 0 <= figures.threshold <= 1
    assert finished.rounds_done == 2
    assert len(made.run()._checkpoint.progress.thresholds) == len(LABELS)


def test_exact_counts_are_the_records_of_each_label(several: Dealt, tmp_path: Path) -> None:
    everyone = everybody(allow_no_privacy=True, allow_exact_evaluation=True)
    made = small(several, tmp_path, **{**CHANGES, "experiment": {"task": "marks", "rounds": 6}},
                 privacy={"mode": "none"}, evaluation={"exact": True, "score_bins": 256},
                 training={"batch_size": 16, "learning_rate": 0.1, "local_epochs": 2}, policies=everyone)  # fmt: skip
    made.run().train()
    (tested,) = made.of(Evaluated)
    truth = counted(TERMS, several.data.parts["test"].labels)
    assert tuple(figures.support for figures in tested.each.values()) == truth
    assert tested.records == SIZES["test"]
    assert tested.each["left"].auc > 0.95  # It can be seen in the image.
    assert tested.each["right"].auc > 0.95


def test_labels_that_the_run_does_not_name_leave_out_their_records_and_refuse_nothing(
    several: Dealt, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A server chooses the map: a refusal would tell it whether a hospital has a record with one rare label."""
    narrower = TaskConfig(kind=TaskKind.MULTILABEL, classes=("left", "right"))
    data = dataclasses.replace(several.data, classes=narrower.classes, given=narrower)
    made = small(Dealt(data, several.folder), tmp_path, **{**CHANGES, "task": narrower.model_dump()})
    made.run().train()
    (finished,), (tested,) = made.of(RunFinished), made.of(Evaluated)
    assert finished.reason == "completed"
    assert made.hospitals == [len(HOSPITALS)] * 2
    assert [len(made.booked(hospital)) for hospital in HOSPITALS] == [2] * len(HOSPITALS)
    assert tuple(tested.each) == narrower.classes
    assert "label_unknown" in caplog.text  # The operator hears of it.


def test_labels_that_are_not_known_are_left_out_of_the_counts_with_copies_of_images_too(tmp_path: Path) -> None:
    """Run a model on features, whose validation records come with copies; half of the second label is not known."""
    terms = TERMS.model_copy(update={"uncertain": Counts.LEAVE_OUT})
    parts = {split: marked(size, seed) for seed, (split, size) in enumerate(SIZES.items())}
    for records in parts.values():
        records.labels[::2] &= ~2
        records.labels[::2] |= 2 << len(LABELS)
    data = DataSet("marks", "made", "marks", LABELS, 1, 28, parts, given=terms)
    deal(data, [tmp_path / name / "shard" for name in HOSPITALS], CONFIG.data, CONFIG.experiment.seed, 1)
    made = small(
        Dealt(data, tmp_path), tmp_path / "state",
        experiment={"task": "marks", "rounds": 8}, task=terms.model_dump(), evaluation={"exact": True},
        model={"name": "scattering_linear"}, privacy={"mode": "none"},
        training={"copies": 2, "warp": "chest", "batch_size": 16, "learning_rate": 0.5, "local_epochs": 4},
        policies=everybody(allow_no_privacy=True, allow_exact_evaluation=True),
    )  # fmt: skip
    made.run().train()
    (tested,) = made.of(Evaluated)
    test = parts["test"].labels
    assert [figures.records for figures in tested.each.values()] == [len(test), len(test) / 2, len(test)]
    assert tuple(figures.support for figures in tested.each.values()) == counted(terms, test)
    assert tested.each["left"].auc > 0.75
    assert tested.each["left"].recall > 0.6  # At the threshold that validation records, with their copies, chose.
