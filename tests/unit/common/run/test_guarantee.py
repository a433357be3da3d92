import math

import pytest

from common.config import Config, PrivacyConfig, PrivacyMode, replace
from common.run.guarantee import Guarantee, adversary_of_epsilon, adversary_of_evaluation, caveats, shown_epsilon
from common.telemetry.metric_names import PRIVACY_INFO


def test_an_epsilon_is_shown_with_delta_unit_relation_accountant_and_adversary() -> None:
    config = replace(Config(), privacy={"unit": "patient", "delta": 1e-5})
    assert Guarantee.of(config).of_epsilon() == (
        "ε for each patient (zero-out: a patient against an empty one, the number of patients is public), δ=1e-05, "
        "PRV accountant, against everyone outside the hospital, the server and the other hospitals included"
    )


def distributed(colluders: int) -> PrivacyConfig:
    return PrivacyConfig(mode=PrivacyMode.DISTRIBUTED, colluders=colluders, tolerated_dropouts=1)


def test_distributed_noise_names_the_colluders_and_dropouts_it_was_made_for() -> None:
    assert adversary_of_epsilon(distributed(2)) == (
        "the server with up to 2 colluding hospitals, each of the run's other hospitals and whoever gets the model, "
        "with up to 1 dropout a round"
    )
    assert "1 colluding hospital, each" in adversary_of_epsilon(distributed(1))


def test_without_colluders_the_runs_hospitals_are_not_among_whom_distributed_noise_withstands() -> None:
    assert adversary_of_epsilon(distributed(0)) == (
        "the server and whoever outside the run's hospitals gets the model, with up to 1 dropout a round; not at this "
        "ε against the run's other hospitals, who know their own noise"
    )


def test_the_noise_of_evaluation_is_that_of_sums_in_every_mode() -> None:
    for mode in PrivacyMode:
        privacy = distributed(1).model_copy(update={"mode": mode})
        assert adversary_of_evaluation(privacy) == adversary_of_epsilon(distributed(1))


def test_without_noise_nothing_is_claimed() -> None:
    guarantee = Guarantee.of(replace(Config(), privacy={"mode": "none"}))
    assert guarantee.of_epsilon() == "no differential privacy: ε is not bounded"
    assert guarantee.epsilon_target is None
    assert guarantee.adversary == "nobody"


@pytest.mark.parametrize(
    ("config", "data_set", "word"),
    [
        (replace(Config(), privacy={"mode": "none"}), "PneumoniaMNIST", "NO differential privacy"),
        (
            replace(Config(), aggregation={"mode": "plain"}, evaluation={"exact": True}),
            "PneumoniaMNIST",
            "saw every hospital's update",
        ),
        (replace(Config(), evaluation={"exact": True}), "PneumoniaMNIST", "counts carry no noise"),
        (Config(), "phantom-chest", "procedural images"),
    ],
)
def test_each_thing_that_weakens_a_run_is_admitted(config: Config, data_set: str, word: str) -> None:
    assert [word in caveat for caveat in caveats(config, data_set)].count(True) == 1


def test_a_server_that_could_invent_hospitals_is_admitted() -> None:
    (caveat,) = caveats(Config(), "PneumoniaMNIST", authority_on_server=True)
    assert "holds the authority's key" in caveat


def test_a_real_private_masked_run_has_nothing_to_admit() -> None:
    assert caveats(Config(), "PneumoniaMNIST") == ()


@pytest.mark.parametrize("adversary", ["active", "semi-honest"])
def test_what_the_server_sees_is_said_for_each_kind_of_aggregation(adversary: str) -> None:
    shown = Guarantee.of(replace(Config(), aggregation={"adversary": adversary})).aggregation
    assert adversary in shown
    assert (
        "plain"
        in Guarantee.of(replace(Config(), aggregation={"mode": "plain"}, evaluation={"exact": True})).aggregation
    )


def test_there_is_a_value_for_each_label_of_the_metric() -> None:
    for mode in ("local", "distributed", "none"):
        assert len(Guarantee.of(replace(Config(), privacy={"mode": mode})).as_labels()) == len(PRIVACY_INFO.labels) - 1


def test_an_epsilon_that_nothing_bounds_is_shown_as_infinite() -> None:
    assert [shown_epsilon(value) for value in (1.234, math.nan, math.inf)] == ["1.23", "∞", "∞"]


def test_a_run_with_disputes_admits_that_single_changes_may_have_been_seen() -> None:
    config = replace(Config(), aggregation={"proved_sums": True, "norm_bound": 2.0, "disputes": True})
    (caveat,) = caveats(config, "PneumoniaMNIST")
    assert "each hospital's change of that round, under the noise that its ε is for" in caveat
    assert "single changes under their own noise" in Guarantee.of(config).aggregation
