"""An experiment's trials: run once each, kept, resumed and summed up."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from common.config import Config, replace
from common.errors import RunError
from deploy.experiment.runner import RESULTS_FILE, TABLE_FILE, TRIALS_FILE, RunGroup, Trial, run_trials


class Trainings:
    """Counts what is trained; fails where it is told to."""

    def __init__(self) -> None:
        self.done: list[tuple[float, int]] = []
        self.fails_at: int | None = None

    def __call__(self, config: Config) -> Mapping[str, float]:
        if len(self.done) == self.fails_at:
            raise RunError("every round of a trial must be trained")
        self.done.append((config.privacy.target_epsilon, config.experiment.seed))
        return {"auc": 0.9 + 0.01 * config.experiment.seed}

    def trials(self, epsilons: tuple[float, ...] = (1.0, 8.0), seeds: int = 3) -> list[Trial]:
        return [
            Trial(
                {"epsilon": epsilon},
                replace(Config(), experiment={"seed": seed}, privacy={"target_epsilon": epsilon}),
                self,
            )
            for seed in range(1, seeds + 1)
            for epsilon in epsilons
        ]


def run(trials: list[Trial], folder: Path) -> tuple[tuple[RunGroup, ...], list[str]]:
    said: list[str] = []
    return run_trials(trials, folder, said.append), said


def test_trials_that_differ_in_the_seed_are_summed_up_together(tmp_path: Path) -> None:
    groups, said = run(Trainings().trials(), tmp_path)
    assert [group.labels for group in groups] == [{"epsilon": 1.0}, {"epsilon": 8.0}]
    auc = groups[0].measures["auc"]
    assert groups[0].trials == 3
    assert auc.value == pytest.approx(0.92)
    assert auc.low < 0.92 < auc.high
    assert len(said) == 6
    assert said[0].startswith("epsilon=1.0 seed=1: auc 0.91; 5 to go")


def test_the_table_and_the_results_hold_every_group_and_every_trial(tmp_path: Path) -> None:
    run(Trainings().trials(), tmp_path)
    with (tmp_path / TABLE_FILE).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["epsilon"], row["trials"], row["auc"]) for row in rows] == [("1.0", "3", "0.92"), ("8.0", "3", "0.92")]
    assert float(rows[0]["auc_low"]) < 0.92 < float(rows[0]["auc_high"])
    results = json.loads((tmp_path / RESULTS_FILE).read_text())
    assert [trial["seed"] for trial in results["trials"]] == [1, 1, 2, 2, 3, 3]
    assert results["trials"][0]["config"]["privacy"]["target_epsilon"] == 1.0


def test_one_trial_has_a_value_and_no_interval(tmp_path: Path) -> None:
    run(Trainings().trials(epsilons=(1.0,), seeds=1), tmp_path)
    (group,) = json.loads((tmp_path / RESULTS_FILE).read_text(), parse_constant=pytest.fail)["groups"]
    assert (group["auc"], group["auc_low"], group["auc_high"]) == (0.91, None, None)


def test_a_broken_off_experiment_goes_on_with_what_is_left(tmp_path: Path) -> None:
    trainings = Trainings()
    trainings.fails_at = 4
    with pytest.raises(RunError):
        run(trainings.trials(), tmp_path)
    trainings.fails_at = None
    groups, said = run(trainings.trials(), tmp_path)
    assert said[0] == "4 of 6 trials were finished before"
    assert sorted(trainings.done) == sorted({(epsilon, seed) for epsilon in (1.0, 8.0) for seed in (1, 2, 3)})
    assert groups[1].trials == 3


def test_a_trial_whose_line_is_torn_is_run_again(tmp_path: Path) -> None:
    trainings = Trainings()
    run(trainings.trials(seeds=1), tmp_path)
    path = tmp_path / TRIALS_FILE
    path.write_text(path.read_text()[:-10])
    run(trainings.trials(seeds=1), tmp_path)
    assert trainings.done == [(1.0, 1), (8.0, 1), (8.0, 1)]


def test_a_trial_with_another_setting_is_another_trial(tmp_path: Path) -> None:
    trainings = Trainings()
    run(trainings.trials(epsilons=(1.0,), seeds=1), tmp_path)
    run(trainings.trials(epsilons=(2.0,), seeds=1), tmp_path)
    assert trainings.done == [(1.0, 1), (2.0, 1)]


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.touch()
    with pytest.raises(RunError, match="must be writable"):
        run(Trainings().trials(), taken)
