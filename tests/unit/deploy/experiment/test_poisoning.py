from pathlib import Path

import numpy as np
import pytest
import torch

from common.config import replace
from common.errors import ConfigError
from deploy.datasets.datasets import DataSet, obtain
from deploy.demo.dealer import split
from deploy.experiment import poisoning
from deploy.experiment.methods import Method
from deploy.experiment.places import hospital_data
from deploy.experiment.poisoning import FLIPPED, METHODS, Poisoner, flipped, plan, table
from deploy.experiment.runner import run_trials
from tests.support.tiny import PHANTOM

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data() -> DataSet:
    return obtain(PHANTOM.data, "pneumonia", 28)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_a_share_of_the_labels_is_flipped_and_nothing_else_changes(data: DataSet, share: float) -> None:
    held = hospital_data(data, split(data, 4, PHANTOM.data, 1, 16)[0])
    changed = flipped(held, share, 1)
    for before, after in ((held.train, changed.train), (held.validation, changed.validation)):
        assert (before.labels != after.labels).sum() == round(share * len(before))
        assert before.images is after.images
    assert np.array_equal(held.test.labels, changed.test.labels)
    assert np.array_equal(flipped(held, share, 1).train.labels, changed.train.labels)


def test_a_hospital_whose_labels_are_all_wrong_costs_the_others(tmp_path: Path) -> None:
    training = {"learning_rate": 0.02, "momentum": 0.9}
    config = replace(PHANTOM, data={"phantom_records": 600}, experiment={"rounds": 6}, training=training)
    whole = obtain(config.data, "pneumonia", 28)
    honest, poisoned = (Poisoner(whole, tmp_path, Method.FEDAVG, share)(config) for share in (0.0, 1.0))
    assert poisoned["auc"] < honest["auc"]
    assert set(honest) == {"auc", "accuracy", "own_auc", "own_accuracy", "flipper_own_accuracy"}


def test_every_share_is_tried_with_every_method_and_stands_in_the_table(data: DataSet, tmp_path: Path) -> None:
    trials = plan(data, tmp_path / "cache", PHANTOM, (1, 2))
    assert len(trials) == 2 * len(METHODS) * len(FLIPPED)
    measured = dict.fromkeys(("auc", "accuracy", "own_auc", "own_accuracy", "flipper_own_accuracy"), 0.5)
    stand_ins = [type(trial)(trial.labels, trial.config, lambda _config: measured) for trial in trials]
    written = table(run_trials(stand_ins, tmp_path, lambda _line: None))
    assert written.count("\n") == 2 + len(METHODS) * len(FLIPPED)
    assert "| distributed DP, ε = 8 | 100% | 0.500 ± 0.000 |" in written


def test_labels_of_several_classes_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(poisoning, "obtained", lambda *_: type("Many", (), {"classes": ("a", "b", "c")})())
    with pytest.raises(ConfigError, match="two classes"):
        poisoning.main(["poisoning", "--out", str(tmp_path)])
