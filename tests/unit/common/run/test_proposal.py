"""A proposal and its answers have one encoding, and an answer is its hospital's to that proposal alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from common.config import replace
from common.errors import IdentityError, RunError
from common.run.proposal import LONGEST_ANSWER_BYTES, Proposal, RunAnswer, terms_hash
from tests.support.proposed_run import CONFIG, Members

MEMBERS = Members.made()
PROPOSAL = MEMBERS.proposal()


def answer(**changes: object) -> RunAnswer:
    made = RunAnswer(
        run_id=PROPOSAL.run_id, proposal=PROPOSAL.hash(), hospital="st-mary", agreed=True, by="policy"
    ).signed(MEMBERS.identities["st-mary"].key)
    return made.model_copy(update=changes)


def test_a_proposal_comes_back_as_it_was_with_the_same_hash() -> None:
    read = Proposal.decode(PROPOSAL.encode())
    assert read == PROPOSAL
    assert read.hash() == PROPOSAL.hash()


def test_an_answer_comes_back_and_is_its_hospital_s() -> None:
    read = RunAnswer.decode(answer().encode())
    read.verify(MEMBERS.identities["st-mary"].key.public_key())
    with pytest.raises(IdentityError, match="must be signed by st-mary's identity key"):
        read.verify(MEMBERS.identities["st-john"].key.public_key())


@pytest.mark.parametrize(
    "change",
    [{"agreed": False}, {"run_id": "f" * 32}, {"proposal": "0" * 64}, {"hospital": "st-john"}, {"by": "operator"},
     {"reason": "no"}, {"code": "policy"}, {"signature": ""}, {"signature": "00" * 64}],
)  # fmt: skip
def test_an_answer_that_was_changed_is_nobody_s(change: dict[str, object]) -> None:
    with pytest.raises(IdentityError):
        answer(**change).verify(MEMBERS.identities["st-mary"].key.public_key())


@given(st.binary(max_size=200))
def test_bytes_that_are_no_answer_are_refused(content: bytes) -> None:
    with pytest.raises(RunError, match="an answer to a proposal must be"):
        RunAnswer.decode(content)


def test_another_encoding_and_a_long_one_are_refused() -> None:
    with pytest.raises(RunError, match="canonical form"):
        RunAnswer.decode(b" " + answer().encode())
    with pytest.raises(RunError, match="at most"):
        RunAnswer.decode(b" " * (LONGEST_ANSWER_BYTES + 1))
    with pytest.raises(RunError, match="version"):
        Proposal.decode(PROPOSAL.encode().replace(b'"version":1', b'"version":2'))


def test_terms_change_with_every_section_and_not_with_the_members() -> None:
    before = terms_hash(PROPOSAL.description)
    others = Members.made((*MEMBERS.identities, "st-luke"))
    assert terms_hash(others.description()) == before
    for section, change in (
        ("experiment", {"rounds": 5}), ("training", {"learning_rate": 0.5}), ("privacy", {"target_epsilon": 2.0}),
        ("evaluation", {"interim_releases": 2}), ("aggregation", {"update_bound": 0.5}), ("model", {"image_size": 32}),
    ):  # fmt: skip
        assert terms_hash(MEMBERS.description(replace(CONFIG, **{section: change}))) != before, section
    assert terms_hash(MEMBERS.description(run_id="f" * 32)) != before
    before_task = PROPOSAL.description.task
    for text in ("0", "normal lungs"):  # What a label means decides which records are used, and as what.
        task = before_task.model_copy(update={"labels": {**before_task.labels, text: before_task.classes[1]}})
        assert terms_hash(PROPOSAL.description.model_copy(update={"task": task})) != before, text


def test_a_proposal_names_members_each_once_and_enough_of_them() -> None:
    facts = PROPOSAL.model_dump()
    for hospitals in (("st-anne", "st-john"), ("st-anne", "st-john", "st-luke"), ("st-mary", "st-john", "st-anne")):
        with pytest.raises(ValidationError):
            Proposal.model_validate({**facts, "hospitals": hospitals})
