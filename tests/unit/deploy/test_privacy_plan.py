"""``confide privacy plan``: the noise an ε needs, and what each adversary gets."""

import json
import math
from dataclasses import replace

import pytest

from common.config import PrivacyUnit
from common.errors import PrivacyError
from common.privacy.accounting import Accountant, Adversary
from deploy.privacy_plan import Plan, Request, as_text, main, plan

REQUEST = Request(
    units=1200,
    rounds=10,
    batch_size=120,
    local_epochs=1,
    target_epsilon=8.0,
    delta=1e-4,
    unit=PrivacyUnit.RECORD,
    accountant=Accountant.RDP,
    hospitals=4,
    colluders=1,
    dropouts=1,
    parameters=26_000,
)


@pytest.fixture(scope="module")
def planned() -> Plan:
    return plan(REQUEST)


def test_both_modes_keep_the_target_against_the_server(planned: Plan) -> None:
    for mode in (planned.local, planned.distributed):
        by_rdp = [claim.value for claim in mode.claims if claim.accountant is Accountant.RDP]
        assert max(by_rdp) == pytest.approx(8.0, abs=0.02)
        assert max(by_rdp) <= 8.0


def test_local_takes_passes_over_the_data_and_distributed_one_step_a_round(planned: Plan) -> None:
    assert planned.local.steps == 100
    assert planned.distributed.steps == 10


def test_one_hospital_adds_the_part_of_the_noise_that_the_honest_survivors_need(planned: Plan) -> None:
    remaining = REQUEST.hospitals - REQUEST.colluders - REQUEST.dropouts
    needed = planned.distributed.noise_multiplier / math.sqrt(remaining)
    assert planned.distributed.hospital_noise == pytest.approx(needed, rel=1e-6)


def test_a_server_without_colluders_learns_less(planned: Plan) -> None:
    by_adversary = {claim.adversary: claim.value for claim in planned.distributed.claims}
    assert by_adversary[Adversary.SERVER] < by_adversary[Adversary.COLLUDING_SERVER]
    alike = {claim.value for claim in planned.local.claims if claim.accountant is Accountant.RDP}
    assert len(alike) == 1


def test_the_text_names_unit_delta_accountants_and_every_adversary(planned: Plan) -> None:
    text = as_text(planned)
    for word in ("for each record", "δ = 0.0001", "RDP", "PRV", "training.sample_rate=0.1", *map(str, Adversary)):
        assert word in text


def test_small_data_is_refused_with_the_remedy() -> None:
    with pytest.raises(PrivacyError, match=r"δ must be above 0 and below 1 / 1200 records"):
        plan(replace(REQUEST, delta=1e-3))
    with pytest.raises(PrivacyError, match=r"set training.batch_size to at most 1200"):
        plan(replace(REQUEST, batch_size=1201))


def test_the_command_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--records", "1200", "--rounds", "5", "--accountant", "rdp", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["request"]["units"] == 1200
    assert answer["local"]["noise_multiplier"] > 0
