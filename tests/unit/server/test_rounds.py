"""Whole rounds in memory: real hospitals, a real server, and messages that are lost at every exchange."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from client.contribution import Contribution, Contributor
from common.evaluation.plan import Part
from common.run.messages import Request
from common.run.round_terms import Purpose
from common.run.terms import describe, protocol_parameters
from common.secagg import full_unmasking, masked_input
from common.secagg.errors import TooFewHospitalsError, TooFewSharesError, TooFewSignaturesError
from common.secagg.masks import apply_masks
from common.secagg.messages import MaskedInput
from common.secagg.parameters import RunParameters
from common.telemetry.events import AttackRefused, Dropout, Exchange, Refusal
from deploy.experiment.consortium import Loss
from server.conversation import Conversation
from server.initial_model import initial_model
from server.rounds import Aggregation, Asked, PlainAggregation, RoundSum, SecureAggregation
from tests.support.small_consortium import HOSPITALS, POLICY, RUN_ID, Dealt, Small, Vanishing, everybody, small, willing

VANISHING = "hospital-2"
OTHERS = tuple(name for name in HOSPITALS if name != VANISHING)

TRUSTING = everybody(allow_semi_honest=True)

TRAIN = Asked(Purpose.TRAIN)

EXCHANGES = ("advertise_keys", "share_keys", "masked_input", "full_unmasking", "consistency_check", "unmasking")
OF_THREE = ("consistency_check", "unmasking")
"""Exchanges of a round in which somebody is missing. Four hospitals tolerate nobody else to vanish in such a round."""


class Rounds:
    """Round after round with the model of the start, each with the vectors that the hospitals really made."""

    def __init__(self, made: Small, patch: pytest.MonkeyPatch) -> None:
        self.made = made
        config = made.config
        self.description = describe(
            config,
            RUN_ID,
            made.dealt.data.classes,
            made.dealt.data.channels,
            made.consortium.roster,
            member_list=made.consortium.member_list,
        )
        least = config.aggregation.min_hospitals
        parameters = protocol_parameters(self.description, made.consortium.roster_keys, least)
        self.parameters = parameters
        self.conversation = Conversation(made.consortium.transport, config.transport, made.events.append)
        self.aggregation: Aggregation = (
            PlainAggregation(self.description, parameters, self.conversation)
            if config.aggregation.mode == "plain"
            else SecureAggregation(self.description, parameters, self.conversation, apply_masks)
        )
        self.model = initial_model(self.description)
        self.vectors: dict[tuple[int, str], npt.NDArray[Any]] = {}
        self._listen(patch)

    def _listen(self, patch: pytest.MonkeyPatch) -> None:
        contribute = Contributor.contribute

        def heard(contributor: Contributor, *asked: Any, **how: Any) -> Contribution:  # noqa: ANN401 - passed on
            made = contribute(contributor, *asked, **how)
            (name,) = (
                name
                for name, agent in self.made.consortium.agents.items()
                if agent._run is not None and agent._run.contributor is contributor
            )
            self.vectors[asked[0], name] = made.vector.copy()
            return made

        patch.setattr(Contributor, "contribute", heard)

    def round(self, number: int, asked: Asked = TRAIN, hospitals: Collection[str] = HOSPITALS) -> RoundSum:
        self.conversation.begin_round()
        return self.aggregation.aggregate(number, hospitals, self.model, asked, next_round=number + 1)

    def plain_sum(self, number: int, survivors: Collection[str]) -> npt.NDArray[Any]:
        first, *rest = (self.vectors[number, name] for name in survivors)
        total = first.copy()
        for vector in rest:
            self.parameters.add(total, vector)
        return total


@pytest.fixture
def rounds(dealt: Dealt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rounds:
    return Rounds(small(dealt, tmp_path), monkeypatch)


def never_at_once(patch: pytest.MonkeyPatch) -> None:
    """Make the server let survivors sign although everybody is there, which hospitals allow."""
    patch.setattr(full_unmasking, "is_full", lambda _: False)


def test_the_sum_is_bit_for_bit_that_of_the_vectors_and_the_next_rounds_keys_ride_along(rounds: Rounds) -> None:
    for number in (1, 2):
        summed = rounds.round(number)
        assert summed.survivors == HOSPITALS
        np.testing.assert_array_equal(summed.total, rounds.plain_sum(number, HOSPITALS))
        assert set(summed.epsilon) == set(HOSPITALS)
    phases = [event.phase for event in rounds.made.of(Exchange) if event.round == 2]
    assert phases == ["masked_input", "full_unmasking"]


def test_a_round_in_which_somebody_is_missing_takes_three_exchanges_and_the_next_two_again(rounds: Rounds) -> None:
    rounds.made.consortium.transport.line = Vanishing(VANISHING, 2, "masked_input", Loss.OF_REQUEST)
    summed = {number: rounds.round(number) for number in range(1, 5)}
    phases = {number: [event.phase for event in rounds.made.of(Exchange) if event.round == number] for number in summed}
    assert phases[2] == ["masked_input", "consistency_check", "unmasking"]
    assert phases[3] == phases[4] == ["masked_input", "full_unmasking"]
    assert [(len(each.views), len(each.signatures)) for each in summed.values()] == [(4, 0), (0, 3), (3, 0), (4, 0)]


def test_either_way_a_sum_is_opened_gives_the_same_bits(
    dealt: Dealt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = Rounds(small(dealt, tmp_path), monkeypatch)
    at_once = rounds.round(1)
    never_at_once(monkeypatch)
    signed = rounds.round(2)
    for number, summed in ((1, at_once), (2, signed)):
        np.testing.assert_array_equal(summed.total, rounds.plain_sum(number, HOSPITALS))
    assert (set(at_once.views), set(at_once.signatures)) == (set(HOSPITALS), set())
    assert (set(signed.views), set(signed.signatures)) == (set(), set(HOSPITALS))


def test_a_hospital_whose_view_is_not_signed_is_left_out_and_named(
    rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign = masked_input.signed_part

    def another(run: RunParameters, message: MaskedInput) -> bytes:
        part = sign(run, message)
        # The hospital itself signs before there is a signature; whoever verifies has it in the message.
        return part + b"else" if message.hospital == VANISHING and not message.signature else part

    monkeypatch.setattr(masked_input, "signed_part", another)
    assert rounds.round(1).survivors == OTHERS
    assert [(event.hospital, event.code) for event in rounds.made.of(AttackRefused)] == [(VANISHING, "view_signature")]


def test_a_semi_honest_round_has_two_exchanges(dealt: Dealt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trusting = small(dealt, tmp_path, policies=TRUSTING, aggregation={"adversary": "semi-honest"})
    rounds = Rounds(trusting, monkeypatch)
    for number in (1, 2):
        summed = rounds.round(number)
        np.testing.assert_array_equal(summed.total, rounds.plain_sum(number, HOSPITALS))
    assert [event.phase for event in rounds.made.of(Exchange) if event.round == 2] == ["masked_input", "unmasking"]


@pytest.mark.parametrize("loss", Loss)
@pytest.mark.parametrize("phase", EXCHANGES)
def test_a_hospital_that_vanishes_costs_its_own_part_and_comes_back(
    rounds: Rounds, monkeypatch: pytest.MonkeyPatch, phase: str, loss: Loss
) -> None:
    if phase in OF_THREE:
        never_at_once(monkeypatch)
    # Round 1 alone has exchanges of its own for keys; later ones ride along.
    number = 1 if phase in {"advertise_keys", "share_keys"} else 2
    rounds.made.consortium.transport.line = Vanishing(VANISHING, number, phase, loss)
    seen = {}
    for each in range(1, number + 3):
        summed = rounds.round(each)
        np.testing.assert_array_equal(summed.total, rounds.plain_sum(each, summed.survivors))
        seen[each] = summed.survivors
    answered_in_time = phase in {"full_unmasking", *OF_THREE}
    assert seen[number] == (HOSPITALS if answered_in_time else OTHERS)
    assert seen[number + 2] == HOSPITALS
    assert [(event.round, event.hospital, event.phase) for event in rounds.made.of(Dropout)] == [
        (number, VANISHING, phase)
    ]


def test_a_hospital_that_is_restarted_catches_up(rounds: Rounds) -> None:
    rounds.round(1)
    rounds.made.consortium.restart(VANISHING)
    assert rounds.round(2).survivors == OTHERS
    rounds.round(3)
    summed = rounds.round(4)
    assert summed.survivors == HOSPITALS
    np.testing.assert_array_equal(summed.total, rounds.plain_sum(4, HOSPITALS))


def test_a_hospital_may_join_late(rounds: Rounds) -> None:
    rounds.made.consortium.transport.offline.add(VANISHING)
    assert rounds.round(1).survivors == OTHERS
    rounds.made.consortium.transport.offline.clear()
    assert rounds.round(2).survivors == OTHERS
    assert rounds.round(3).survivors == HOSPITALS


@pytest.mark.parametrize(
    ("phase", "error"),
    [
        ("masked_input", TooFewHospitalsError),
        ("consistency_check", TooFewSignaturesError),
        ("unmasking", TooFewSharesError),
        ("full_unmasking", TooFewSharesError),
    ],
)
def test_below_the_threshold_there_is_no_sum_and_the_next_round_starts_afresh(
    rounds: Rounds, monkeypatch: pytest.MonkeyPatch, phase: str, error: type[Exception]
) -> None:
    if phase in OF_THREE:
        never_at_once(monkeypatch)

    def line(hospital: str, request: Request) -> Loss | None:
        vanishing = [Vanishing(name, 1, phase, Loss.OF_REQUEST) for name in ("hospital-1", "hospital-2")]
        return next((lost for each in vanishing if (lost := each(hospital, request)) is not None), None)

    rounds.made.consortium.transport.line = line
    with pytest.raises(error):
        rounds.round(1)
    # Keys for round 2 rode along with what failed, and are never given twice.
    summed = rounds.round(3)
    assert summed.survivors == HOSPITALS
    np.testing.assert_array_equal(summed.total, rounds.plain_sum(3, HOSPITALS))


def test_an_evaluation_computes_no_gradient_and_costs_only_the_part_it_measures(rounds: Rounds) -> None:
    run = rounds.made.run()
    question = run._measurements.of_last_model(Part.TEST)
    summed = rounds.round(1, Asked(Purpose.EVALUATE, question))
    decoded = run._layout.decode(summed.total, len(summed.survivors))
    assert not decoded.mean_delta.any()
    assert (decoded.tail.validation_units, decoded.tail.test_units) == (0, 4 * POLICY.stated_test_units)
    assert all(report.spent == 0.0 for report in summed.epsilon.values())
    assert [entry["booking"]["account"] for entry in rounds.made.spent(VANISHING)] == ["test"]


def test_a_sum_that_measures_needs_its_noise_in_every_mode(rounds: Rounds) -> None:
    asked = Asked(Purpose.TRAIN, rounds.made.run()._measurements.while_training(0))
    for hospital in ("hospital-1", "hospital-2"):
        rounds.made.consortium.transport.line = Vanishing(hospital, 1, "masked_input", Loss.OF_REPLY)
    summed = rounds.round(1, asked)
    assert (summed.cohort, summed.terms.fewest_survivors, len(summed.survivors)) == (4, 3, 3)


PLAIN: dict[str, dict[str, Any]] = {"aggregation": {"mode": "plain"}, "evaluation": {"exact": True}}
DISTRIBUTED = {"mode": "distributed", "target_epsilon": 2.0}


@pytest.fixture
def distributed(dealt: Dealt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rounds:
    return Rounds(small(dealt, tmp_path, privacy=DISTRIBUTED, training={"sample_rate": 0.5}), monkeypatch)


@pytest.mark.parametrize("phase", ["masked_input", "full_unmasking"])
def test_in_mode_distributed_a_tolerated_dropout_leaves_noise_enough(distributed: Rounds, phase: str) -> None:
    distributed.made.consortium.transport.line = Vanishing(VANISHING, 1, phase, Loss.OF_REPLY)
    summed = distributed.round(1)
    assert len(summed.survivors) >= 3
    np.testing.assert_array_equal(summed.total, distributed.plain_sum(1, summed.survivors))
    assert summed.total.dtype == np.uint32


def test_in_mode_distributed_more_dropouts_than_tolerated_end_the_round_before_anything_is_revealed(
    dealt: Dealt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = small(dealt, tmp_path, privacy={**DISTRIBUTED, "tolerated_dropouts": 0}, training={"sample_rate": 0.5})
    rounds = Rounds(strict, monkeypatch)
    strict.consortium.transport.line = Vanishing(VANISHING, 1, "masked_input", Loss.OF_REPLY)
    with pytest.raises(TooFewHospitalsError, match="at least 4 hospitals must submit a vector, got 3"):
        rounds.round(1)
    assert {event.phase for event in strict.of(Exchange)} == {"advertise_keys", "share_keys", "masked_input"}


@pytest.mark.parametrize("adversary", ["active", "semi-honest"])
def test_in_mode_distributed_hospitals_themselves_refuse_a_sum_with_too_little_noise(
    dealt: Dealt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adversary: str
) -> None:
    strict = small(
        dealt,
        tmp_path,
        policies=TRUSTING,
        privacy={**DISTRIBUTED, "tolerated_dropouts": 0},
        training={"sample_rate": 0.5},
        aggregation={"adversary": adversary},
    )
    rounds = Rounds(strict, monkeypatch)
    monkeypatch.setattr("server.rounds._fewest", lambda routed, _terms: routed.directory.threshold)
    strict.consortium.transport.line = Vanishing(VANISHING, 1, "masked_input", Loss.OF_REPLY)
    with pytest.raises((TooFewSignaturesError, TooFewSharesError)):
        rounds.round(1)
    assert {(event.hospital, event.code) for event in strict.of(Refusal)} == {
        (name, "missing_noise") for name in OTHERS
    }


def test_plain_mode_sums_bare_vectors(dealt: Dealt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = everybody(allow_plain=True, allow_exact_evaluation=True)
    policies = {**bare, "hospital_2": willing(allow_exact_evaluation=True)}
    rounds = Rounds(small(dealt, tmp_path, policies=policies, **PLAIN), monkeypatch)
    summed = rounds.round(1)
    assert summed.survivors == OTHERS
    np.testing.assert_array_equal(summed.total, rounds.plain_sum(1, OTHERS))
    (refusal,) = rounds.made.of(Refusal)
    assert (refusal.hospital, refusal.code) == (VANISHING, "policy")


def test_plain_mode_also_refuses_a_sum_of_too_few(
    dealt: Dealt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreed = willing(allow_plain=True, allow_exact_evaluation=True)
    policies = {"hospital_1": agreed, "hospital_3": agreed}
    rounds = Rounds(small(dealt, tmp_path, policies=policies, **PLAIN), monkeypatch)
    with pytest.raises(TooFewHospitalsError, match="at least 3 hospitals must submit a vector, got 2"):
        rounds.round(1)
