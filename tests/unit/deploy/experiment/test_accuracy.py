from pathlib import Path

import pytest

from common.config import load_config
from common.errors import ConfigError
from common.provenance import ROOT
from common.telemetry.events import RoundDone
from deploy.datasets.datasets import obtain
from deploy.experiment.accuracy import FAMILIES, OWN_FILE, Aim, _chosen, own_file, plan
from deploy.experiment.methods import Method
from deploy.experiment.study import Study, Training
from deploy.experiment.tables import accuracy_table
from tests.support.example_run import example_run
from tests.support.tiny import PHANTOM

ROUNDS = tuple(event for event in example_run() if isinstance(event, RoundDone))


@pytest.mark.parametrize("name", list(FAMILIES))
def test_every_family_is_a_configuration_and_a_plan(name: str) -> None:
    family = FAMILIES[name]
    planned = plan(load_config(ROOT / "config.yaml", family.settings), family, (1, 2))
    assert len(planned) == 2 * len(family.aims)
    for training, aim in planned.items():
        assert training.epsilon == aim.epsilon
        assert training.split in ("IID", "not split")


def test_the_xrays_are_asked_for_only_where_they_are_needed() -> None:
    assert _chosen((), None) == ("pneumonia-28", "retina-28")
    assert _chosen((), Path("x.tar")) == tuple(FAMILIES)
    with pytest.raises(ConfigError, match=r"pneumonia-224 needs pneumoniamnist_224\.npz in .*, or --xrays PATH"):
        _chosen(("pneumonia-224",), None)


def test_medmnists_own_file_is_taken_where_it_lies_with_the_data(tmp_path: Path) -> None:
    given, cache = tmp_path / "given", tmp_path / "cache"
    environment = {"CONFIDE_DATA": str(given)}
    assert own_file(environment, cache) is None
    cache.mkdir()
    (cache / OWN_FILE).touch()
    assert own_file(environment, cache) == cache / OWN_FILE
    given.mkdir()
    (given / OWN_FILE).touch()
    assert own_file(environment, cache) == given / OWN_FILE


@pytest.mark.parametrize(("auc", "accuracy", "reached"), [(0.5, 0.5, "yes"), (0.5, 1.1, "no"), (1.1, None, "no")])
def test_the_table_says_honestly_whether_an_aim_is_reached(
    tmp_path: Path, auc: float, accuracy: float | None, reached: str
) -> None:
    study = Study(obtain(PHANTOM.data, "pneumonia", 28), tmp_path)
    outcomes = {Training(Method.FEDAVG, PHANTOM): ROUNDS}
    aim = Aim(Method.FEDAVG, auc=auc, accuracy=accuracy)
    table = accuracy_table(study, outcomes, {(Method.FEDAVG, None): (aim.auc, aim.accuracy)})
    row = next(line for line in table.splitlines() if line.startswith("| FedAvg"))
    assert row.endswith(f"| {reached} |")
    assert f"{ROUNDS[-1].auc:.3f}" in row


def test_a_result_without_an_aim_is_published_as_it_is(tmp_path: Path) -> None:
    study = Study(obtain(PHANTOM.data, "pneumonia", 28), tmp_path)
    table = accuracy_table(study, {Training(Method.DISTRIBUTED_DP, PHANTOM): ROUNDS}, {})
    row = next(line for line in table.splitlines() if line.startswith("| distributed DP | 4 "))
    assert row.endswith("| none |  |")
