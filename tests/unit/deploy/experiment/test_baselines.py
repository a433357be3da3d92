import csv
import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from common.config import replace
from common.errors import RunError
from common.telemetry.events import RoundDone
from deploy.datasets.datasets import obtain
from deploy.experiment import baselines
from deploy.experiment.baselines import plan, write_baselines
from deploy.experiment.methods import Method
from deploy.experiment.study import Study, Training, run_study
from tests.support.example_run import example_run
from tests.support.tiny import PHANTOM

ROUNDS = tuple(event for event in example_run() if isinstance(event, RoundDone))
TRAINED: list[Training] = []


def _example(method: Method, *_: object) -> tuple[RoundDone, ...]:
    """Return rounds that another, real training gave, AUC lowered for a hospital alone."""
    lower = 0.1 if method is Method.ALONE else 0.0
    return tuple(done.model_copy(update={"auc": done.auc - lower}) for done in ROUNDS)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    TRAINED.clear()

    def note(method: Method, config: object, *rest: object, **_options: object) -> tuple[RoundDone, ...]:
        TRAINED.append(Training(method, config))  # type: ignore[arg-type]
        return _example(method, config, *rest)

    monkeypatch.setattr("deploy.experiment.study.train", note)
    return Study(obtain(PHANTOM.data, "pneumonia", 28), tmp_path / "study")


def test_the_plan_has_every_method_at_every_split_and_the_curve_against_epsilon() -> None:
    planned = plan(PHANTOM, (1, 2))
    assert len(set(planned)) == len(planned)
    for seed in (1, 2):
        of_seed = [training for training in planned if training.config.experiment.seed == seed]
        for split in baselines.SPLITS:
            here = {training.method for training in of_seed if training.split in (split, "not split")}
            assert here == set(Method)
            assert sum(training.method is Method.ALONE and training.split == split for training in of_seed) == 4
        for method in (Method.CENTRAL_DP, Method.LOCAL_DP, Method.DISTRIBUTED_DP):
            curve = {training.epsilon for training in of_seed if training.method is method}
            assert curve == set(baselines.EPSILONS)


def test_a_study_that_was_stopped_trains_only_what_is_missing(study: Study) -> None:
    planned = plan(PHANTOM, (1,))
    run_study(study, planned[:5], lambda _line: None)
    assert len(TRAINED) == 5
    outcomes = run_study(study, planned, lambda _line: None)
    assert len(TRAINED) == len(planned)
    assert list(outcomes) == list(planned)
    assert [done.auc for done in outcomes[planned[0]]] == [done.auc for done in ROUNDS]


def test_a_setting_that_has_changed_is_trained_again(study: Study) -> None:
    run_study(study, plan(PHANTOM, (1,))[:2], lambda _line: None)
    changed = replace(PHANTOM, training={"learning_rate": 0.2})
    run_study(study, plan(changed, (1,))[:1], lambda _line: None)
    assert len(TRAINED) == 3


def test_lost_rounds_are_missed_and_not_made_up(study: Study) -> None:
    planned = plan(PHANTOM, (1,))[:1]
    run_study(study, planned, lambda _line: None)
    for path in (study.folder / "rounds").iterdir():
        path.unlink()
    with pytest.raises(RunError, match="remove the study's folder to start again"):
        study.outcomes(planned)


def test_table_plots_csv_and_json_are_written(study: Study) -> None:
    outcomes = run_study(study, plan(PHANTOM, (1, 2)), lambda _line: None)
    write_baselines(study, outcomes)
    table = (study.folder / "baselines.md").read_text()
    assert table.startswith("# Baselines: phantom-pneumonia, scattering_linear at 28 pixels")
    assert "PHANTOM" in table
    assert "not run" in next(line for line in table.splitlines() if line.startswith("| FedAvg, local DP | 1 "))
    assert f"| FedAvg | – | {ROUNDS[-1].auc:.3f} " in table
    for name in baselines.PLOTS:
        assert np.ptp(imread(study.folder / name)[..., :3]) > 0.5
    rows = list(csv.DictReader((study.folder / "results.csv").read_text().splitlines()))
    assert {row["method"] for row in rows} == set(Method)
    tree = json.loads((study.folder / "results.json").read_text(), parse_constant=pytest.fail)
    assert len(tree["trials"]) == len(outcomes)
