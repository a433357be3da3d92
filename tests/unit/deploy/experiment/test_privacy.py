"""The privacy experiment on a few phantom images: every mode by the deployed code, in one process."""

import csv
from pathlib import Path

import pytest

from common.config import Config, PrivacyMode
from common.privacy.mechanism import LocalNoise
from deploy.datasets.datasets import obtain
from deploy.experiment.privacy import GAINS_FILE, MODES, PLOT_FILE, RELEASED, draw, gain, main, plan
from deploy.experiment.runner import TABLE_FILE, RunGroup
from deploy.experiment.training import Laboratory
from deploy.results.intervals import Interval, over_runs
from tests.support.small_consortium import CONFIG


def test_the_modes_differ_in_where_the_noise_is_and_in_nothing_else(tmp_path: Path) -> None:
    laboratory = Laboratory(obtain(CONFIG.data, "pneumonia", 28), tmp_path)
    config = Config.model_validate(
        {**CONFIG.model_dump(), "experiment": {"rounds": 8}, "training": {"sample_rate": 0.25}}
    )
    central, distributed, local = plan(config, laboratory, [1.0], 1)
    assert [trial.labels["mode"] for trial in (central, distributed, local)] == list(MODES)
    assert central.config == distributed.config
    assert local.config.privacy.mode is PrivacyMode.LOCAL
    assert local.config.training.sample_rate == distributed.config.training.sample_rate
    steps_of_a_round = LocalNoise(local.config.privacy).schedule(local.config.training).steps
    assert local.config.experiment.rounds * steps_of_a_round == 8


def test_the_experiment_runs_from_one_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--epsilons", "8", "--seeds", "1", "--out", str(tmp_path), "--set", "data.source=phantom"]
    small = ["data.phantom_records=200", "experiment.rounds=4", "privacy.accountant=rdp", "privacy.delta=1e-3"]
    assert main(["privacy", *asked, *(word for setting in small for word in ("--set", setting))]) == 0
    table = (tmp_path / TABLE_FILE).read_text().splitlines()
    assert [line.split(",")[:3] for line in table[1:]] == [[mode, "8.0", "1"] for mode in MODES]
    of_mode = {row["mode"]: row for row in csv.DictReader(table)}
    assert of_mode["central"]["released_auc"] == ""
    for mode in ("local", "distributed"):
        for name in RELEASED:
            assert 0 <= float(of_mode[mode][name]) <= 1
    assert (tmp_path / PLOT_FILE).stat().st_size > 0
    gains = (tmp_path / GAINS_FILE).read_text().splitlines()
    assert [line.split(",")[:2] for line in gains[1:]] == [["central", "8.0"], ["local", "8.0"]]
    told = capsys.readouterr().out
    for words in (
        "ε for each record (zero-out) at δ=0.001 (RDP)",
        "mean and 95 % interval over 1 seeds",
        "against the server too",
    ):
        assert words in " ".join(told.split())


def test_a_gain_is_of_the_same_seeds() -> None:
    aucs = {"central": (0.95, 0.90), "distributed": (0.96, 0.91)}
    groups = [
        RunGroup({"mode": mode, "epsilon": 1.0}, 2, {"auc": over_runs(both)}, tuple({"auc": auc} for auc in both))
        for mode, both in aucs.items()
    ]
    found = gain(groups, "central", 1.0)
    assert (found.value, found.low, found.high) == pytest.approx((0.01, 0.01, 0.01))


def test_the_plot_has_a_line_with_its_intervals_for_each_mode() -> None:
    groups = [
        RunGroup({"mode": mode, "epsilon": epsilon}, 5, {"auc": Interval(0.9, 0.89, 0.91)})
        for mode in MODES
        for epsilon in (1.0, 8.0)
    ]
    (axes,) = draw(groups, "a data set", "ε for each record").axes
    assert [line.get_label() for line in axes.containers] == list(MODES)
