import math
from pathlib import Path

import pytest
import torch

from common.config import replace
from common.errors import RunError
from deploy.datasets.datasets import DataSet, obtain
from deploy.experiment.methods import Method, train
from tests.support.tiny import PHANTOM

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data() -> DataSet:
    return obtain(PHANTOM.data, "pneumonia", 28)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("method", list(Method))
def test_every_method_measures_each_round_on_the_whole_test_part(method: Method, data: DataSet, cache: Path) -> None:
    rounds = train(method, PHANTOM, data, cache, hospital=1)
    assert [done.step for done in rounds] == list(range(1, len(rounds) + 1))
    assert len(rounds) == (1 if method is Method.CENTRAL_DP else 2)  # a pass over all records is two steps
    assert all(sum(map(sum, done.confusion)) == len(data.parts["test"]) for done in rounds)
    if method.is_private:
        assert 0 < rounds[-1].epsilon <= PHANTOM.privacy.target_epsilon
    else:
        assert math.isnan(rounds[-1].epsilon)


def test_hospitals_that_train_together_learn_what_one_place_would(tmp_path: Path) -> None:
    training = {"learning_rate": 0.02, "momentum": 0.9}
    config = replace(PHANTOM, data={"phantom_records": 600}, experiment={"rounds": 8}, training=training)
    data = obtain(config.data, "pneumonia", 28)
    for method in (Method.CENTRAL, Method.FEDAVG):
        assert train(method, config, data, tmp_path)[-1].auc > 0.75


def test_the_seed_decides_a_training_without_noise(data: DataSet, cache: Path) -> None:
    first, again = (train(Method.FEDAVG, PHANTOM, data, cache)[-1] for _ in range(2))
    other = train(Method.FEDAVG, replace(PHANTOM, experiment={"seed": 2}), data, cache)[-1]
    assert first.roc == again.roc
    assert first.loss == again.loss
    assert first.loss != other.loss


def test_noisy_counts_choose_the_threshold_and_exact_ones_say_what_it_is_worth(data: DataSet, cache: Path) -> None:
    rounds = train(Method.DISTRIBUTED_DP, PHANTOM, data, cache, noisy=True)
    assert [done.step for done in rounds] == [1, 2]
    # A whole number of records, which noisy counts are only by chance.
    assert sum(map(sum, rounds[-1].confusion)) == len(data.parts["test"])
    assert 0 < rounds[-1].auc < 1
    with pytest.raises(RunError, match="hospitals train together"):
        train(Method.CENTRAL, PHANTOM, data, cache, noisy=True)
