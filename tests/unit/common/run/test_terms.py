"""What server and hospitals derive from a run description is what the description says."""

import json
from typing import Any

import pytest

from common.config import Config, RunDescription, replace
from common.errors import ConfigError
from common.models import registry
from common.privacy.accounting import EpsilonAdversary as Learner
from common.privacy.mechanism import DistributedNoise, mechanism_of
from common.run.terms import claims_of, describe, layout_of, protocol_parameters, verified_layout_of
from common.secagg.parameters import Adversary

ROSTER = {f"hospital-{number}": "a certificate" for number in range(1, 5)}


def described(**changes: dict[str, Any]) -> RunDescription:
    config = replace(Config(), privacy={"accountant": "rdp"}, experiment={"rounds": 20})
    return describe(replace(config, **changes), "c0" * 16, ("normal", "pneumonia"), 1, ROSTER)


@pytest.mark.long
def test_mode_distributed_describes_its_noise_and_the_wide_ring() -> None:
    run = described(privacy={"mode": "distributed", "accountant": "rdp", "tolerated_dropouts": 1})
    mechanism = mechanism_of(run)
    assert run.aggregation.modulus_bits == 32
    assert isinstance(mechanism, DistributedNoise)
    assert mechanism.noise(run, layout_of(run).parameters).noise_multiplier == run.noise_multiplier
    assert mechanism.fewest_survivors(4) == 3


def test_the_other_modes_have_no_noise_in_the_sum() -> None:
    run = described()
    assert run.aggregation.modulus_bits == 16
    assert run.noise_multiplier is None
    assert mechanism_of(run).fewest_survivors(4) == 0


@pytest.mark.long
def test_every_adversary_is_claimed_for_and_colluders_learn_most() -> None:
    claims = claims_of(described(privacy={"mode": "distributed", "accountant": "rdp", "colluders": 1}))
    assert {claim.adversary for claim in claims} == set(Learner)
    learnt = {claim.adversary: claim.value for claim in claims}
    assert learnt[Learner.OUTSIDER] == learnt[Learner.SERVER] < learnt[Learner.COLLUDING_SERVER]
    assert learnt[Learner.HOSPITAL] == pytest.approx(learnt[Learner.COLLUDING_SERVER])
    assert 7.9 < learnt[Learner.COLLUDING_SERVER] <= 8.0


def test_another_hospital_of_a_run_learns_more_than_the_target_where_no_collusion_is_declared() -> None:
    """Finding: it knows its own share of the noise, and may be among those that a dropout leaves too little of."""
    claims = claims_of(described(privacy={"mode": "distributed", "accountant": "rdp"}))
    learnt = {claim.adversary: claim.value for claim in claims}
    assert learnt[Learner.SERVER] <= 8.0 < learnt[Learner.HOSPITAL]
    assert Learner.COLLUDING_SERVER not in learnt


def test_the_claims_of_mode_local_are_its_target_and_mode_none_has_none() -> None:
    assert {claim.value for claim in claims_of(described())} == {8.0}
    assert claims_of(described(privacy={"mode": "none"})) == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"aggregation": {"mode": "plain"}}, "aggregation.mode must be secure"),
        ({"privacy": {"mode": "local"}, "aggregation": {"mode": "plain"}}, "evaluation.exact must be true"),
        ({"privacy": {"mode": "local", "tolerated_dropouts": 3}}, "aggregation.min_hospitals must be above"),
        ({"privacy": {"mode": "distributed", "colluders": 2}}, "aggregation.min_hospitals must be above"),
    ],
)
def test_noise_that_would_not_hide_an_update_is_refused_before_a_run(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        replace(replace(Config(), privacy={"mode": "distributed"}), **changes)


@pytest.mark.parametrize(("mode", "noise"), [("local", 1.0), ("distributed", None), ("distributed", float("inf"))])
def test_a_description_has_noise_in_the_sum_exactly_in_mode_distributed(mode: str, noise: float | None) -> None:
    tree = described(privacy={"mode": "distributed", "accountant": "rdp"}).model_dump(mode="json")
    tree["privacy"]["mode"], tree["noise_multiplier"] = mode, noise
    with pytest.raises(ValueError, match="noise_multiplier"):
        RunDescription.model_validate_json(json.dumps(tree))


def test_the_protocol_gets_ring_adversary_and_graph_from_the_description() -> None:
    config = replace(
        Config(), aggregation={"adversary": "semi-honest", "modulus_bits": 32}, graph={"dropping_out": 0.2}
    )
    run = RunDescription.of(
        config,
        run_id="ab" * 16,
        classes=("normal", "pneumonia"),
        channels=1,
        vector_length=100,
        roster={f"hospital-{number}": "a certificate" for number in range(1, 5)},
    )
    keys = {f"hospital-{number}": bytes([number]) * 32 for number in range(1, 5)}
    parameters = protocol_parameters(run, keys, 4)
    assert (parameters.adversary, parameters.modulus_bits) == (Adversary.SEMI_HONEST, 32)
    assert parameters.graph.dropping_out == 0.2
    assert parameters.config_hash == run.hash()
    assert (dict(parameters.roster), parameters.min_hospitals) == (keys, 4)
    assert parameters.counts_length == layout_of(run).counts_length
    assert protocol_parameters(run, keys, 4, consortium=12).threshold(4) == 4


def test_a_descriptions_length_tells_how_many_parameters_its_model_has() -> None:
    run = described()
    assert layout_of(run) == verified_layout_of(run)
    assert layout_of(run).parameters == registry.parameter_count("cnn", 2, 1, 28)


def test_a_hospital_refuses_a_description_whose_length_is_another_models() -> None:
    run = described()
    longer = run.model_copy(update={"vector_length": run.vector_length + 1})
    assert layout_of(longer).parameters == layout_of(run).parameters + 1
    with pytest.raises(ConfigError, match="the run's vector must have"):
        verified_layout_of(longer)


def test_a_length_without_room_for_a_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1 parameter"):
        layout_of(described().model_copy(update={"vector_length": 3}))
