"""``confide privacy plan``: the noise an ε needs, what each adversary gets, and that deployment books the same."""

import json
import math

import pytest

from common.config import Config, PrivacyMode, replace
from common.errors import ConfigError, PrivacyError
from common.evaluation.plan import EVALUATED
from common.privacy.accounting import Accountant, EpsilonAdversary, epsilon
from common.privacy.mechanism import DistributedNoise, LocalNoise, mechanism_of
from common.run.terms import describe, evaluation_plan_of, release_mechanism
from deploy.consortium.privacy_plan import Plan, as_text, main, plan

PARAMETERS = 26_000
STATED = 1200
CONFIG = replace(
    Config(),
    training={"sample_rate": 0.15},
    aggregation={"min_hospitals": 4},
    privacy={"accountant": "rdp", "colluders": 1, "tolerated_dropouts": 1},
)


@pytest.fixture(scope="module")
def planned() -> Plan:
    return plan(CONFIG, STATED, PARAMETERS)


@pytest.mark.long
def test_both_modes_keep_the_target_against_the_server(planned: Plan) -> None:
    for mode in (planned.local, planned.distributed):
        by_rdp = [claim.value for claim in mode.claims if claim.accountant is Accountant.RDP]
        assert max(by_rdp) == pytest.approx(8.0, abs=0.02)
        assert max(by_rdp) <= 8.0


@pytest.mark.long
def test_the_steps_are_those_of_the_deployed_schedule(planned: Plan) -> None:
    """Counting them in another way planned 8 for what was 8.43 to 12.39 when deployed."""
    rounds = CONFIG.experiment.rounds
    assert planned.local.steps == rounds * math.ceil(1 / 0.15) == rounds * 7
    assert planned.distributed.steps == rounds
    for mechanism, answer in ((LocalNoise, planned.local), (DistributedNoise, planned.distributed)):
        schedule = mechanism(CONFIG.privacy).schedule(CONFIG.training)
        assert (answer.event.sample_rate, answer.event.steps) == (schedule.sample_rate, schedule.steps)


@pytest.mark.long
@pytest.mark.parametrize("mode", [PrivacyMode.LOCAL, PrivacyMode.DISTRIBUTED])
def test_the_plan_is_what_a_hospital_of_the_deployed_run_books(planned: Plan, mode: PrivacyMode) -> None:
    """Event for event, and the ε of all rounds: by what the server describes and hospitals derive from that."""
    config = replace(CONFIG, privacy={"mode": mode})
    roster = dict.fromkeys(("a", "b", "c", "d"), "a certificate")
    run = describe(config, "ab" * 16, ("normal", "pneumonia"), 1, roster, PARAMETERS)
    answer = planned.local if mode is PrivacyMode.LOCAL else planned.distributed
    booked = mechanism_of(run).plan(run, PARAMETERS).event
    assert booked is not None
    assert answer.event == booked
    most = max(claim.value for claim in answer.claims if claim.accountant is Accountant.RDP)
    spent = epsilon([booked] * run.experiment.rounds, run.privacy.delta, Accountant.RDP)
    assert most == pytest.approx(spent, rel=1e-6)

    releases = evaluation_plan_of(run)
    assert releases is not None
    assert planned.evaluation is not None
    assert planned.evaluation.lines == releases.describe()
    for part in EVALUATED:
        events = [release_mechanism(run, releases, each).event(1.0) for each in releases.releases if each.part is part]
        claimed = max(claim.value for claim in planned.evaluation.claims[part])
        assert claimed == pytest.approx(epsilon(events, run.privacy.delta, Accountant.RDP), rel=1e-6)
        assert claimed <= run.evaluation.target_epsilon


@pytest.mark.long
def test_one_hospital_adds_the_part_of_the_noise_that_the_honest_survivors_need(planned: Plan) -> None:
    remaining = CONFIG.experiment.num_clients - CONFIG.privacy.colluders - CONFIG.privacy.tolerated_dropouts
    needed = planned.distributed.event.noise_multiplier / math.sqrt(remaining)
    assert planned.distributed.hospital_noise == pytest.approx(needed, rel=1e-5)


@pytest.mark.long
def test_a_server_without_colluders_learns_less(planned: Plan) -> None:
    by_adversary = {claim.adversary: claim.value for claim in planned.distributed.claims}
    assert by_adversary[EpsilonAdversary.SERVER] < by_adversary[EpsilonAdversary.COLLUDING_SERVER]
    alike = {claim.value for claim in planned.local.claims if claim.accountant is Accountant.RDP}
    assert len(alike) == 1


@pytest.mark.long
def test_without_colluders_another_hospital_is_told_apart_from_whoever_gets_the_model() -> None:
    alone = plan(replace(CONFIG, privacy={"colluders": 0}), STATED, PARAMETERS)
    assert alone.evaluation is not None
    for claims in (alone.distributed.claims[:3], alone.evaluation.claims["test"]):
        outsider, hospital, server = claims
        assert outsider.value == server.value < hospital.value
        assert hospital.adversary is EpsilonAdversary.HOSPITAL


@pytest.mark.long
def test_the_text_names_unit_relation_delta_accountants_and_every_adversary(planned: Plan) -> None:
    text = as_text(planned)
    for word in ("for each record", "zero-out: a record against an empty one", "δ = 0.0001", "RDP", "PRV",
                 "training.sample_rate 0.15", "evaluation: ε =", *map(str, EpsilonAdversary)):  # fmt: skip
        assert word in text


@pytest.mark.long
def test_exact_counts_are_said_to_have_no_privacy() -> None:
    answer = plan(replace(CONFIG, evaluation={"exact": True}), STATED, PARAMETERS)
    assert answer.evaluation is None
    assert "NO differential privacy" in as_text(answer)


@pytest.mark.long
def test_small_data_is_refused_with_the_remedy() -> None:
    with pytest.raises(PrivacyError, match=r"δ must be above 0 and below 1 / 1200 stated records"):
        plan(replace(CONFIG, privacy={"delta": 1e-3}), STATED, PARAMETERS)
    with pytest.raises(PrivacyError, match=r"must state at least 20 training records, got 19"):
        plan(CONFIG, 19, PARAMETERS)


@pytest.mark.long
def test_noise_that_could_be_missing_from_a_sum_is_refused() -> None:
    with pytest.raises((ConfigError, PrivacyError)):
        plan(replace(CONFIG, privacy={"colluders": 3}), STATED, PARAMETERS)


@pytest.mark.long
def test_the_command_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    asked = [
        "--records",
        "1200",
        "--rounds",
        "5",
        "--accountant",
        "rdp",
        "--hospitals",
        "3",
        "--dropouts",
        "2",
        "--json",
    ]
    assert main(["plan", *asked]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["stated_units"] == 1200
    assert answer["run"]["experiment"]["rounds"] == 5
    assert answer["local"]["event"]["noise_multiplier"] > 0
    # One hospital's noise is all that is sure to remain, and it knows its own: nothing is claimed against it.
    assert answer["distributed"]["claims"][1] | {"value": None} == answer["distributed"]["claims"][1]
