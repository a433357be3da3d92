"""Whatever a server asks for: what it can unmask are sums over enough hospitals that did the same thing.

The harness is ``tests/support/lying_server.py``. That it would find what it looks for is tested too: each defect below,
put into the product, is found by a stored program, and by random ones.

**Row 1 of the findings** at 30890c7, with four hospitals and this attack (``train=True`` to one hospital of a masked
round, ``False`` to the others, whom everybody then signs for): all 25,842 of 25,842 elements of that hospital's update,
bit by bit, in each of the modes ``none``, ``local`` and ``distributed``.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import client.agent
from client.agent import HospitalAgent
from client.contribution import Contributor
from client.ledger.ledger import Ledger
from client.roster import check_roster
from client.round_state import AnsweredRoundsFile
from common.evaluation.plan import Part, Release, ReleaseKind
from common.privacy.budget import Account, Booking
from common.run.messages import PlainReply
from common.run.round_terms import Purpose, RoundTerms
from common.secagg import consistency_check, full_unmasking, masked_input, unmasking
from common.secagg.binding import request_hash
from common.secagg.errors import SurvivorsError
from common.secagg.parameters import RunParameters
from common.secagg.phases import Phase
from tests.support.defects import Patch, any_share, request_unbound
from tests.support.lying_server import (
    COLLUDERS,
    COMPARING,
    FEATURES,
    KINDS,
    MODES,
    STATISTICS,
    TRUSTED,
    Program,
    PromiseBrokenError,
    honest_round,
    pinned_threshold,
    play,
    quick_hospitals,
    random_program,
)
from tests.support.lying_server_programs import BARE, FOLDER, FOUR, MEASURE, SIX, as_text, described, programs, trusted

FAST, SLOW = 150, 500
"""Random programs; the slow ones come on top."""

FAST_OF_A_KIND, SLOW_OF_A_KIND = 20, 500
"""Likewise, for each of the other kinds of run."""

FOUND_WITHIN = 300

FILES = sorted(FOLDER.glob("*.json"), key=lambda path: path.stem)


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    with quick_hospitals():
        yield


class Tally:
    """How random programs ended."""

    def __init__(self) -> None:
        self.replies: Counter[str] = Counter()
        self.sums = 0

    def play(self, seeds: range, kind: str = "") -> None:
        for seed in seeds:
            try:
                outcome = play(random_program(seed, kind=kind), seed)
            except AssertionError as error:
                raise type(error)(f"program {seed}: {error}") from error
            self.sums += len(outcome.sums)
            for found in outcome.server.replies:
                self.replies.update(found.values())


@pytest.mark.parametrize("mode", MODES)
def test_no_random_server_breaks_the_promise(mode: str) -> None:
    tally = Tally()
    tally.play(range(MODES.index(mode), FAST, len(MODES)))
    # That it means something: rounds reach their sums, and hospitals refuse for many reasons.
    assert tally.sums >= FAST // len(MODES) // 2
    assert tally.replies["unmasked"] >= FAST // len(MODES) // 2
    assert len(tally.replies) >= 15, tally.replies


@pytest.mark.parametrize("kind", KINDS)
def test_no_random_server_breaks_the_promise_in_runs_of_another_kind(kind: str) -> None:
    tally = Tally()
    tally.play(range(FAST_OF_A_KIND), kind)
    assert tally.sums >= FAST_OF_A_KIND // 2
    assert tally.replies["unmasked"] >= FAST_OF_A_KIND // 2
    # A server that keeps to the protocol is refused for few reasons: too few are left, or a measurement is spent.
    assert len(tally.replies) >= (8 if kind == TRUSTED else 12), tally.replies


def test_random_programs_get_statistics_and_noise_alone_where_they_are_spent() -> None:
    counted: Counter[bool] = Counter()
    for seed in range(FAST_OF_A_KIND):
        for vector in play(random_program(seed, kind=STATISTICS), seed).server.vectors:
            if vector.asks_who_is_trained_on:
                counted[vector.units[Part.TRAINING] > 0] += 1
    assert counted[True] >= FAST_OF_A_KIND
    assert counted[False] >= 1


def test_random_programs_compare_and_get_noise_alone_where_a_budget_is_spent() -> None:
    compared: Counter[bool] = Counter()
    spreads: Counter[bool] = Counter()
    for seed in range(2 * FAST_OF_A_KIND):
        for vector in play(random_program(seed, kind=COMPARING), seed).server.vectors:
            if vector.compares:
                compared[vector.units[Part.TEST] > 0] += 1
            if vector.spreads:
                spreads[vector.units[Part.TEST] > 0] += 1
    assert compared[True] >= FAST_OF_A_KIND // 2
    assert compared[False] >= 1
    assert spreads[True] >= FAST_OF_A_KIND // 4


def test_colluders_are_as_many_as_the_threshold_is_made_for() -> None:
    chosen = [random_program(seed, kind=COLLUDERS) for seed in range(FAST_OF_A_KIND)]
    assert {len(each.colluders) for each in chosen} == {1, 2}
    assert all(each.hospitals == 7 for each in chosen)


@pytest.mark.parametrize("mode", MODES)
def test_a_server_that_lies_in_a_semi_honest_run_opens_one_hospitals_vector(mode: str) -> None:
    """Why a hospital takes part in such a run by its own agreement alone (decision 006)."""
    begin = honest_round(SIX, **BARE)[:3]
    lists = {
        (1, 2): {"survivors": [1, 2, 3, 5, 6], "dropped": [4]},  # The masking key of hospital 4 is rebuilt,
        (3, 4): {"survivors": SIX, "dropped": []},  # and the seed of its own mask.
    }
    asked = [{"to": list(to), "run": 0, "round": 1, **told} for to, told in lists.items()]
    trusting = tuple(begin + [{"do": "unmask", **each} for each in asked])
    with pytest.raises(PromiseBrokenError, match=r"a sum over \('hospital-4',\) and 2 colluders"):
        play(Program(6, (5, 6), {"allow_semi_honest": True}, (trusted(mode),), trusting))
    # In a run against an active server the same lies give one sum at most, which is over enough.
    checked = tuple(begin + [{"do": do, **each} for do in ("sign", "unmask") for each in asked])
    assert play(Program(6, (6,), {}, (described(mode),), checked)).sums == []


def test_a_mean_that_is_not_booked_or_is_told_again_and_again_is_found_by_a_random_program() -> None:
    book = Contributor._book_training

    def books_steps_alone(self: Contributor, number: int, plan: Any) -> Any:  # noqa: ANN401 - as the real one
        return self._report() if plan is self._mean else book(self, number, plan)

    for name, defect in (("_book_training", books_steps_alone), ("_check_mean", lambda *_: None)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Contributor, name, defect)
            with pytest.raises(PromiseBrokenError, match=r"training in round|may ask 2 times"):
                Tally().play(range(FOUND_WITHIN), FEATURES)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("tenth", range(10))
@pytest.mark.parametrize("kind", KINDS)
def test_no_random_server_of_thousands_breaks_the_promise_in_runs_of_another_kind(kind: str, tenth: int) -> None:
    tally = Tally()
    first = FAST_OF_A_KIND + tenth * SLOW_OF_A_KIND // 10
    tally.play(range(first, first + SLOW_OF_A_KIND // 10), kind)
    assert tally.sums >= SLOW_OF_A_KIND // 20


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("tenth", range(10))
def test_no_random_server_of_thousands_breaks_the_promise(tenth: int) -> None:
    tally = Tally()
    tally.play(range(FAST + tenth * SLOW // 10, FAST + (tenth + 1) * SLOW // 10))
    assert tally.sums >= SLOW // 20


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_stored_program_gives_what_is_stored_with_it(path: Path) -> None:
    tree = json.loads(path.read_bytes())
    program = Program.from_json(tree["program"])
    assert play(program).stored == tree["expected"]


def test_the_stored_programs_are_those_that_the_script_writes() -> None:
    made = programs()
    assert [path.stem for path in FILES] == sorted(made)
    assert len(made) >= 25
    for path in FILES:
        expected = json.loads(path.read_bytes())["expected"]
        assert as_text({"program": made[path.stem].as_json(), "expected": expected}).encode() == path.read_bytes()


def test_the_stored_programs_hold_failures_of_many_kinds_and_sums() -> None:
    trees = [json.loads(path.read_bytes())["expected"] for path in FILES]
    replies = {reply for tree in trees for step in tree["replies"] for reply in step.values()}
    assert len(replies) >= 25, sorted(replies)
    assert sum(not tree["unmasked"] for tree in trees) >= 25
    assert sum(bool(tree["unmasked"]) for tree in trees) >= 15


def test_the_threshold_of_the_theorem_is_that_of_the_product() -> None:
    for members in range(3, 65):
        roster = {f"hospital-{number}": bytes(32) for number in range(members)}
        run = RunParameters("0" * 32, bytes(32), roster, 3, 16, 1)
        assert [run.threshold(n) for n in range(1, members + 1)] == [
            pinned_threshold(members, n) for n in range(1, members + 1)
        ]


# ---------------------------------------------------------------------------------------------------------------------
# Defects that must be found


def _cohort_unbound(patch: Patch) -> None:
    bound: Callable[..., bytes] = vars(masked_input)["pairwise_seed_info"]

    def unbound(context: bytes, _cohort: bytes, *rest: Any) -> bytes:  # noqa: ANN401 - passed on
        return bound(context, bytes(32), *rest)

    patch.setattr(masked_input, "pairwise_seed_info", unbound)


def _purpose_outside_the_terms(patch: Patch) -> None:
    """Bind everything but the purpose, as when ``train`` was a field of the request."""

    def without_purpose(terms: bytes) -> bytes:
        stated = RoundTerms.decode(terms)
        return request_hash(
            RoundTerms(
                purpose=Purpose.TRAIN,
                model_hash=stated.model_hash,
                fewest_survivors=stated.fewest_survivors,
                question=stated.question,
            ).encode()
        )

    patch.setattr(masked_input, "request_hash", without_purpose)


def _survivors_unchecked(patch: Patch) -> None:
    verify = consistency_check.verify_survivors

    def lenient(*asked: Any) -> None:  # noqa: ANN401 - passed on
        try:
            verify(*asked)
        except SurvivorsError:
            return

    patch.setattr(consistency_check, "verify_survivors", lenient)
    patch.setattr(unmasking, "verify_survivors", lenient)


def _signs_twice(patch: Patch) -> None:
    _answers_again(patch, Phase.CONSISTENCY_CHECK)


def _answers_again(patch: Patch, lax: Phase) -> None:
    for name in ("check", "advance"):
        strict = getattr(AnsweredRoundsFile, name)

        def careless(
            self: AnsweredRoundsFile, run_id: str, number: int, phase: Phase, strict: Callable[..., None] = strict
        ) -> None:
            if phase is not lax:
                strict(self, run_id, number, phase)

        patch.setattr(AnsweredRoundsFile, name, careless)


def _opens_beside_signing(patch: Patch) -> None:
    """Note nothing of an opening, so that it takes no slot."""
    _answers_again(patch, Phase.FULL_UNMASKING)


def _views_unverified(patch: Patch) -> None:
    patch.setattr(full_unmasking, "verify_views", lambda *_: None)


def _statistics_unbooked(patch: Patch) -> None:
    book = Contributor._book_release

    def some(self: Contributor, number: int, release: Release) -> bool:
        return True if release.kind is ReleaseKind.STATISTICS else book(self, number, release)

    patch.setattr(Contributor, "_book_release", some)


def _alone_unbooked(patch: Patch) -> None:
    book = Contributor._book_release

    def careless(self: Contributor, number: int, release: Release) -> bool:
        self._alone_is_booked = True
        return book(self, number, release)

    patch.setattr(Contributor, "_book_release", careless)


def _statistics_anew_in_each_run(patch: Patch) -> None:
    """Judge statistics by the run's own lines, as if its budget were not over all runs."""
    judged = Ledger._judged

    def lenient(self: Ledger, number: int, bookings: Any, accountant: Any) -> Any:  # noqa: ANN401 - passed on
        rich = [
            (booking, dataclasses.replace(policy, budget=1e9) if booking.account is Account.STATISTICS else policy)
            for booking, policy in bookings
        ]
        return judged(self, number, rich, accountant)

    patch.setattr(Ledger, "_judged", lenient)


def _evaluation_unbooked(patch: Patch) -> None:
    patch.setattr(Contributor, "_book_release", lambda *_: True)


def _test_part_unbooked(patch: Patch) -> None:
    book = Contributor._book_release

    def some(self: Contributor, number: int, release: Release) -> bool:
        return True if release.part.value == Account.TEST.value else book(self, number, release)

    patch.setattr(Contributor, "_book_release", some)


def _training_unbooked(patch: Patch) -> None:
    patch.setattr(Contributor, "_book_training", lambda self, _number, _plan: self._report())


def _half_the_rate_booked(patch: Patch) -> None:
    record = Ledger.record

    def halved(self: Ledger, run_id: str, number: int, booking: Booking, *rest: Any) -> float:  # noqa: ANN401 - passed on
        if booking.account is Account.TRAINING:
            event = dataclasses.replace(booking.event, sample_rate=booking.event.sample_rate / 2)
            booking = dataclasses.replace(booking, event=event)
        return record(self, run_id, number, booking, *rest)

    patch.setattr(Ledger, "record", halved)


def _asked_again(patch: Patch) -> None:
    patch.setattr(Contributor, "_check_repeats", lambda *_: None)


def _budget_unjudged(patch: Patch) -> None:
    judged = Ledger._judged

    def lenient(self: Ledger, number: int, bookings: Any, accountant: Any) -> Any:  # noqa: ANN401 - passed on
        rich = [(booking, dataclasses.replace(policy, budget=1e9)) for booking, policy in bookings]
        return judged(self, number, rich, accountant)

    patch.setattr(Ledger, "_judged", lenient)


def _noise_unrequired(patch: Patch) -> None:
    patch.setattr(client.agent, "_require_noise", lambda *_: None)


def _threshold_one_lower(patch: Patch) -> None:
    rule = RunParameters.threshold
    patch.setattr(RunParameters, "threshold", lambda self, n: max(3, rule(self, n) - 1))


def _part_of_the_consortium(patch: Patch) -> None:
    def allowed(roster: Any, listed: Any, kept: Any, revoked: Any, policy: Any, now: Any) -> Any:  # noqa: ANN401
        willing = policy.model_copy(update={"allow_partial_roster": True})
        found = check_roster(roster, listed, kept, revoked, willing, now)
        return dataclasses.replace(found, consortium=len(roster))

    patch.setattr(client.agent, "check_roster", allowed)


def _bare_vectors(patch: Patch) -> None:
    def bare(self: HospitalAgent, request: Any, array: Any) -> Any:  # noqa: ANN401 - passed on
        run = self._join(request.run_description, request.version)
        terms = RoundTerms.decode(request.terms)
        made = run.contributor.contribute(request.round_number, terms, array, cohort=len(run.description.roster))
        return PlainReply(epsilon=made.epsilon), made.vector

    patch.setattr(HospitalAgent, "_plain", bare)


@dataclasses.dataclass(frozen=True)
class Defect:
    """What is wrong, the stored program that shows it, and words of what the harness then says."""

    put_in: Callable[[Patch], None]
    program: str
    words: str


DEFECTS: dict[str, Defect] = {
    "the request is left out of the masks": Defect(request_unbound, "row-1-none", "different things"),
    "the cohort is left out of the masks": Defect(_cohort_unbound, "another-cohort-for-one", "different things"),
    "the purpose stands outside the terms": Defect(_purpose_outside_the_terms, "row-1-local", "different things"),
    "survivors are not held against the cohort": Defect(
        _survivors_unchecked, "survivor-outside-the-cohort", "must be in it"
    ),
    "a second list is signed": Defect(_signs_twice, "second-signature", "signed views"),
    "a sum is opened by who has signed": Defect(
        _opens_beside_signing, "signed-then-opened", "signed survivors of round"
    ),
    "views are not verified": Defect(_views_unverified, "opened-row-1", "opened a sum over everybody"),
    "evaluation is not booked": Defect(_evaluation_unbooked, "honest-none", "validation in round"),
    "test records are not booked": Defect(_test_part_unbooked, "honest-distributed", "test in round"),
    "statistics are not booked": Defect(_statistics_unbooked, "statistics-distributed", "statistics in round"),
    "statistics are asked again and again": Defect(_asked_again, "statistics-again-none", "may ask 2 times"),
    "no budget of statistics is judged": Defect(
        _statistics_anew_in_each_run, "statistics-of-two-runs-local", "statistics records costs more"
    ),
    "a hospital's own model is not booked": Defect(
        _alone_unbooked, "comparison-once-local", "no line for its model alone"
    ),
    "a comparison is not booked": Defect(_evaluation_unbooked, "comparison-at-once-none", "test in round"),
    "a comparison is asked again and again": Defect(_asked_again, "comparison-again-local", "may ask 2 times"),
    "survivors are not held against the cohort by two colluders": Defect(
        _survivors_unchecked, "two-colluders-outside-the-cohort-local", "must be in it"
    ),
    "the request is left out of the masks where two collude": Defect(
        request_unbound, "two-colluders-row-1-distributed", "different things"
    ),
    "training is not booked": Defect(_training_unbooked, "honest-local", "training in round"),
    "half the sample rate is booked": Defect(_half_the_rate_booked, "honest-distributed", "training in round"),
    "evaluation is answered again and again": Defect(_asked_again, "evaluation-again-local", "may ask 2 times"),
    "no budget is judged": Defect(_budget_unjudged, "evaluation-budget-none", "more than its budget"),
    "the noise of a sum is not asked for": Defect(_noise_unrequired, "too-little-noise-none", "the noise of"),
    "the noise of a step is not asked for": Defect(_noise_unrequired, "too-little-noise-distributed", "the noise of"),
    "the threshold is one lower": Defect(_threshold_one_lower, "two-of-five-dropped", "must be in it"),
    "a part of the consortium will do": Defect(
        _part_of_the_consortium, "row-6-part-of-the-consortium-none", "part of the consortium"
    ),
    "bare vectors are sent": Defect(_bare_vectors, "bare-vector", "without masks"),
    "both kinds of share are revealed": Defect(any_share, "declared-dropped", "must be in it"),
}

# That t hospitals must sign is not among them: with 2t > n + n_C no two lists find the shares that both need, signed or
# not, so nothing that this harness looks at depends on it; tests/attacks/test_lies_about_survivors.py does.


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_found_by_a_stored_program(name: str) -> None:
    defect = DEFECTS[name]
    program = programs()[defect.program]
    play(program)
    with pytest.MonkeyPatch.context() as patch:
        defect.put_in(patch)
        with pytest.raises(PromiseBrokenError, match=defect.words):
            play(program)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_found_by_a_random_program(name: str) -> None:
    kinds = {"statistics": STATISTICS, "two collu": COLLUDERS, "own model": COMPARING, "comparison": COMPARING}
    kind = next((kind for words, kind in kinds.items() if words in name), "")
    with pytest.MonkeyPatch.context() as patch:
        DEFECTS[name].put_in(patch)
        with pytest.raises(PromiseBrokenError):
            Tally().play(range(3000), kind)


# ---------------------------------------------------------------------------------------------------------------------
# Rows of the findings


@pytest.mark.parametrize("colluding", ["", "-with-a-colluder"])
@pytest.mark.parametrize("mode", MODES)
def test_row_1_one_hospitals_update_stays_masked_when_it_alone_is_asked_to_train(mode: str, colluding: str) -> None:
    program = programs()[f"row-1-{mode}{colluding}"]
    outcome = play(program)
    vectors = {vector.hospital: vector for vector in outcome.server.vectors}
    assert {name: vector.terms.purpose for name, vector in vectors.items()} == {
        name: Purpose.TRAIN if name == "hospital-1" else Purpose.EVALUATE for name in outcome.server.sites
    }
    # Everybody who evaluates sends a change of zeros, so that the sum would be the victim's.
    assert not any(vector.plain[1].any() for name, vector in vectors.items() if name != "hospital-1")
    assert vectors["hospital-1"].plain[1].any()
    assert outcome.server.revealed  # The server got what it asked for from the others,
    assert outcome.sums == []  # and it is of no use.


@pytest.mark.parametrize("mode", MODES)
def test_row_6_a_run_of_a_part_of_the_consortium_gets_no_keys_and_costs_nothing(mode: str) -> None:
    outcome = play(programs()[f"row-6-part-of-the-consortium-{mode}"])
    assert outcome.server.replies[0] == {"hospital-4": "policy", "hospital-5": "policy"}
    assert outcome.server.vectors == []
    assert all(not booked for booked in outcome.stored["booked"].values())


@pytest.mark.parametrize("weaker", ["unit", "adversary"])
@pytest.mark.parametrize("mode", MODES)
def test_row_9_a_run_of_a_weaker_unit_or_adversary_is_refused_after_one_of_the_stronger(mode: str, weaker: str) -> None:
    outcome = play(programs()[f"row-9-{weaker}-{mode}"])
    assert [each.hospitals for each in outcome.sums] == [tuple(outcome.server.names)] * 2  # One sum, of two segments.
    assert set(outcome.server.replies[5].values()) == {"policy"}
    assert {vector.key[0] for vector in outcome.server.vectors} == {1 if weaker == "unit" else 0}


@pytest.mark.parametrize("mode", MODES)
def test_row_9_a_run_that_names_a_large_delta_fills_no_budget_that_is_judged_at_the_hospitals_own(mode: str) -> None:
    large = described(mode, privacy={"delta": 0.049, "target_epsilon": 4.0}, evaluation={"target_epsilon": 4.0})
    policy = {"epsilon_budget": 1000.0, "evaluation_epsilon_budget": 4.0}
    steps = [*honest_round(FOUR, purpose="train", release=0), *honest_round(FOUR, number=2, **MEASURE)]
    steps += honest_round(FOUR, number=3, purpose="train", release=1)
    outcome = play(Program(4, (), policy, (large,), tuple(steps)))
    tested = [vector for vector in outcome.server.vectors if vector.key[1] == 2]
    assert len(tested) == 4
    assert not any(any(vector.units.values()) for vector in tested)  # Noise, and nothing of a record.
    assert all("test" not in booked for booked in outcome.stored["booked"].values())
    if mode != "none":  # The planned end is judged at the hospital's own δ, before the first round.
        refused = play(Program(4, (), {**policy, "epsilon_budget": 4.0}, (large,), tuple(steps)))
        assert set(refused.server.replies[0].values()) == {"budget_exceeded"}
        assert refused.server.vectors == []
        assert not any(refused.stored["booked"].values())
