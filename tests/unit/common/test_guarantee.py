import math

import pytest

from common.config import Config, replace
from common.guarantee import Guarantee, adversary_of_epsilon, caveats, shown_epsilon
from common.metric_names import PRIVACY_INFO


def test_an_epsilon_is_shown_with_delta_unit_accountant_and_adversary() -> None:
    config = replace(Config(), privacy={"unit": "patient", "delta": 1e-5})
    assert Guarantee.of(config).of_epsilon() == (
        "ε for each patient, δ=1e-05, PRV accountant, against everyone outside the hospital, the server included"
    )


def test_distributed_noise_names_the_colluders_and_dropouts_it_was_made_for() -> None:
    config = replace(
        Config(),
        aggregation={"min_hospitals": 4},
        privacy={"mode": "distributed", "colluders": 2, "tolerated_dropouts": 1},
    )
    assert adversary_of_epsilon(config.privacy) == (
        "the server with up to 2 colluding hospitals and whoever gets the model, with up to 1 dropout a round"
    )


def test_without_noise_nothing_is_claimed() -> None:
    guarantee = Guarantee.of(replace(Config(), privacy={"mode": "none"}))
    assert guarantee.of_epsilon() == "no differential privacy: ε is not bounded"
    assert guarantee.epsilon_target is None
    assert guarantee.adversary == "nobody"


@pytest.mark.parametrize(
    ("config", "data_set", "word"),
    [
        (replace(Config(), privacy={"mode": "none"}), "PneumoniaMNIST", "NO differential privacy"),
        (replace(Config(), aggregation={"mode": "plain"}), "PneumoniaMNIST", "saw every hospital's update"),
        (Config(), "phantom-chest", "procedural images"),
    ],
)
def test_each_thing_that_weakens_a_run_is_admitted(config: Config, data_set: str, word: str) -> None:
    (caveat,) = caveats(config, data_set)
    assert word in caveat


def test_a_real_private_masked_run_has_nothing_to_admit() -> None:
    assert caveats(Config(), "PneumoniaMNIST") == ()


@pytest.mark.parametrize("adversary", ["active", "semi-honest"])
def test_what_the_server_sees_is_said_for_each_kind_of_aggregation(adversary: str) -> None:
    shown = Guarantee.of(replace(Config(), aggregation={"adversary": adversary})).aggregation
    assert adversary in shown
    assert "plain" in Guarantee.of(replace(Config(), aggregation={"mode": "plain"})).aggregation


def test_there_is_a_value_for_each_label_of_the_metric() -> None:
    for mode in ("local", "distributed", "none"):
        assert len(Guarantee.of(replace(Config(), privacy={"mode": mode})).as_labels()) == len(PRIVACY_INFO.labels)


def test_an_epsilon_that_nothing_bounds_is_shown_as_infinite() -> None:
    assert [shown_epsilon(value) for value in (1.234, math.nan, math.inf)] == ["1.23", "∞", "∞"]
