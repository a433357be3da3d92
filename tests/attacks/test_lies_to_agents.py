"""A lying server against the deployed agents: every refusal is a reply that names the error, and costs nothing.

The protocol's own catalogue (the other files here) has every lie; these tests show that the agent applies it,
remembers across a restart what it has answered, and books no privacy for what it refuses.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.run.messages import KeysRequest, PlainRequest, RefusedReply, SharesRequest, UnmaskRequest
from common.secagg import messages as secagg
from common.secagg.phases import Phase
from tests.support.lying_by_hand import ROUND, VICTIM, Array, LyingServer, assert_attack, lying
from tests.support.small_consortium import HOSPITALS, RUN_ID, Dealt


@pytest.fixture
def server(dealt: Dealt, tmp_path: Path) -> LyingServer:
    return lying(dealt, tmp_path)


def test_a_second_masked_input_is_refused_also_after_the_agent_restarts(server: LyingServer) -> None:
    routed = server.routed()
    request = server.mask_request(routed)
    assert server.ask(VICTIM, request, server.model)[1] is not None
    assert_attack(server.refusal(request, server.model), "second_masked_input", Phase.MASKED_INPUT)
    server.consortium.consortium.restart(VICTIM)
    assert server.refusal(request, server.model).code == "run"  # It holds no secret of this run any more.
    server.advertised(VICTIM, ROUND + 1)
    assert_attack(server.refusal(request, server.model), "second_masked_input", Phase.MASKED_INPUT)
    assert len(server.consortium.booked(VICTIM)) == 1


def test_a_second_unmasking_is_refused_also_after_the_agent_restarts(server: LyingServer) -> None:
    request = server.unmask_request()
    assert not isinstance(server.ask(VICTIM, request)[0], RefusedReply)
    assert_attack(server.refusal(request), "second_unmasking", Phase.UNMASKING)
    server.consortium.consortium.restart(VICTIM)
    server.advertised(VICTIM, ROUND + 1)
    assert_attack(server.refusal(request), "second_unmasking", Phase.UNMASKING)


def test_keys_of_one_round_are_not_advertised_twice(server: LyingServer) -> None:
    server.advertised(VICTIM)
    again = KeysRequest(run_description=server.description.canonical_json(), round_number=ROUND)
    assert_attack(server.refusal(again), "already_answered", Phase.ADVERTISE_KEYS)


def test_keys_made_under_another_configuration_are_refused(dealt: Dealt, tmp_path: Path) -> None:
    server = lying(dealt, tmp_path)
    stale = LyingServer(server.consortium, lying(dealt, tmp_path, privacy={"delta": 5e-4}).description)
    stale.description = stale.description.model_copy(
        update={"roster": server.description.roster, "member_list": server.description.member_list}
    )
    keys = [server.advertised(VICTIM), *(stale.advertised(hospital) for hospital in HOSPITALS[1:])]
    directory = secagg.KeyDirectory(RUN_ID, ROUND, server.parameters().threshold(len(keys)), tuple(keys))
    assert_attack(server.refusal(server.share_request(directory)), "config_hash", Phase.SHARE_KEYS)


def test_a_lowered_threshold_is_refused(server: LyingServer) -> None:
    lowered = replace(server.directory(), threshold=2)
    assert_attack(server.refusal(server.share_request(lowered)), "threshold_lowered", Phase.SHARE_KEYS)


def test_a_model_of_its_own_for_one_hospital_is_refused_before_anything_is_booked(server: LyingServer) -> None:
    request = server.mask_request(server.routed())
    assert_attack(server.refusal(request, server.model + 1), "model_hash", Phase.MASKED_INPUT)
    assert server.consortium.booked(VICTIM) == []


@pytest.mark.parametrize(
    "bend",
    [
        lambda _: None,
        lambda model: model[:-1],
        lambda model: model.astype(np.float64),
        lambda model: np.full_like(model, np.nan),
    ],
)
def test_a_model_that_is_none_is_refused_before_anything_is_booked(
    server: LyingServer, bend: Callable[[Array], Array | None]
) -> None:
    request = server.mask_request(server.routed())
    assert_attack(server.refusal(request, bend(server.model)), "unusable_model", Phase.MASKED_INPUT)
    assert server.consortium.booked(VICTIM) == []


def test_a_share_that_does_not_open_is_refused_before_anything_is_booked(server: LyingServer) -> None:
    routed = server.routed()
    inbox = list(routed.inboxes[VICTIM].values())
    inbox[0] = replace(inbox[0], ciphertext=inbox[0].ciphertext[:-1] + bytes([inbox[0].ciphertext[-1] ^ 1]))
    asked = routed.request_for(VICTIM, server.terms().encode())
    request = server.mask_with(replace(asked, inbox=tuple(inbox)))
    assert_attack(server.refusal(request, server.model), "share_decryption", Phase.MASKED_INPUT)
    assert server.consortium.booked(VICTIM) == []


def test_a_cohort_below_the_threshold_is_refused_before_anything_is_booked(server: LyingServer) -> None:
    routed = server.routed()
    two = (VICTIM, "hospital-2")
    inbox = tuple(share for share in routed.inboxes[VICTIM].values() if share.dealer in two)
    asked = routed.request_for(VICTIM, server.terms().encode())
    request = server.mask_with(replace(asked, cohort=two, inbox=inbox))
    assert_attack(server.refusal(request, server.model), "too_few_hospitals", Phase.MASKED_INPUT)
    assert server.consortium.booked(VICTIM) == []


def test_a_hospital_both_dropped_and_alive_is_refused(server: LyingServer) -> None:
    survivors = server.masked().close()
    both = replace(survivors, dropped=("hospital-4",))
    assert_attack(server.refusal(server.check_request(both)), "dropped_and_alive", Phase.CONSISTENCY_CHECK)


def test_shares_asked_for_without_the_consistency_check_are_refused(server: LyingServer) -> None:
    survivors = server.masked().close()
    asked = secagg.UnmaskingRequest(RUN_ID, ROUND, survivors.survivors, survivors.dropped, ())
    request = UnmaskRequest(run_id=RUN_ID, round_number=ROUND, request=secagg.encode(asked))
    assert_attack(server.refusal(request), "unsigned_survivors", Phase.UNMASKING)


def test_bytes_that_are_no_message_are_refused(server: LyingServer) -> None:
    directory = secagg.encode(server.directory())
    request = SharesRequest(run_id=RUN_ID, round_number=ROUND, directory=directory[:-1])
    assert_attack(server.refusal(request), "truncated_message", Phase.SHARE_KEYS)


@pytest.mark.parametrize(
    ("section", "values", "setting"),
    [
        ("aggregation", {"adversary": "semi-honest"}, "allow_semi_honest"),
        ("privacy", {"mode": "none"}, "allow_no_privacy"),
    ],
)
def test_a_run_that_protects_less_than_the_hospital_asks_for_is_refused(
    dealt: Dealt, tmp_path: Path, section: str, values: dict[str, str], setting: str
) -> None:
    server = lying(dealt, tmp_path, **{section: values})
    description = server.description.canonical_json()
    refused = server.refusal(KeysRequest(run_description=description, round_number=ROUND))
    assert (refused.code, refused.is_attack) == ("policy", False)
    assert setting in refused.reason


def test_a_bare_vector_is_not_sent_in_a_run_of_masked_ones(server: LyingServer) -> None:
    request = PlainRequest(
        run_id=RUN_ID,
        run_description=server.description.canonical_json(),
        round_number=ROUND,
        terms=server.terms().encode(),
    )
    assert server.refusal(request, server.model).code == "policy"
    assert server.consortium.booked(VICTIM) == []


def test_a_step_of_a_run_that_was_never_joined_names_round_and_phase(server: LyingServer) -> None:
    request = SharesRequest(run_id="ff" * 16, round_number=7, directory=b"")
    refused = server.refusal(request)
    assert (refused.hospital, refused.code) == (VICTIM, "run")
    assert refused.reason.startswith(f"round 7, share_keys: {VICTIM}")
