"""Whatever a server sends: nothing but the masked vector depends on a hospital's data.

The harness is ``tests/support/twins.py``. That it would find what it looks for is tested too: each defect below, put
into the agent, is found within a few conversations.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from client.agent import HospitalAgent
from client.contribution import Contributor
from common.errors import ConfigError, DataError, RunError
from common.evaluation.plan import ReleaseKind
from common.models.flat import share_parameters
from common.privacy.mechanism import RoundPlan
from common.run.messages import EpsilonReport, MaskReply
from common.run.vector import Tail
from tests.support import twins
from tests.support.twins import (
    KINDS,
    Difference,
    Tally,
    TwinsDifferError,
    converse,
    overflowing_model,
    quick_accounting,
)

CONVERSATIONS = 108
"""Twelve of each difference; the slow test holds 10,000."""

MEAN_CONVERSATIONS = 27

TASK_CONVERSATIONS = 27
"""Three of each difference."""

STATISTICS_CONVERSATIONS = 27
"""In runs that all ask who is trained on."""

COMPARISON_CONVERSATIONS = 63
"""In runs that all compare their model with each hospital's own; seven of each difference."""

PIECES, IN_A_PIECE = 20, 500
"""The slow test holds 10,000 conversations, in pieces that can be chosen by name and share the machine's cores."""

FOUND_WITHIN = 64
"""Conversations with twins of the difference that it is about, within which a defect must show."""


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    """Share what the accountant says between all conversations of this file."""
    logging.disable(logging.CRITICAL)  # Operators are told much; conversations fill a screen.
    with quick_accounting():
        yield
    logging.disable(logging.NOTSET)


def hold(first: int, count: int) -> Tally:
    tally = Tally()
    for seed in range(first, first + count):
        try:
            converse(seed, tally)
        except AssertionError as error:
            raise AssertionError(f"conversation {seed}: {error}") from error
    return tally


def test_twins_cannot_be_told_apart_by_anything_but_their_vectors() -> None:
    tally = hold(0, CONVERSATIONS)
    print(tally.table())  # noqa: T201 - times are reported, not asserted
    # The conversations went somewhere: vectors were sent, sums were unmasked, and much was refused in many ways.
    assert tally.vectors > CONVERSATIONS
    assert tally.sums > CONVERSATIONS // 2
    assert {"policy", "config", "budget_exceeded", "data", "model_hash", "second_masked_input"} <= set(tally.refusals)


@pytest.fixture
def asking(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Let every run of a conversation ask who is trained on."""
    runs = tuple(run for run in twins.RUNS if run.get("evaluation", {}).get("statistics_epsilon"))
    monkeypatch.setattr(twins, "RUNS", runs)
    twins._described.cache_clear()
    yield monkeypatch
    twins._described.cache_clear()


def test_statistics_tell_twins_apart_by_nothing_but_their_vectors(asking: pytest.MonkeyPatch) -> None:
    counted = []
    real = Contributor._book_release

    def book(self: Contributor, round_number: int, release: Any) -> bool:  # noqa: ANN401
        answered = real(self, round_number, release)
        if release.kind is ReleaseKind.STATISTICS:
            counted.append(answered)
        return answered

    asking.setattr(Contributor, "_book_release", book)
    hold(0, STATISTICS_CONVERSATIONS)
    # Twins answered under noise, and with noise alone when their account was spent.
    assert counted.count(True) >= 2 * 5
    assert counted.count(False) > 0


def test_a_comparison_tells_twins_apart_by_nothing_but_their_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run's model and each twin's own decide differently about their records, and only a noisy vector shows it."""
    compared, spreads = list[bool](), list[bool]()
    real = Contributor._book_release

    def book(self: Contributor, round_number: int, release: Any) -> bool:  # noqa: ANN401
        answered = real(self, round_number, release)
        if release.kind is ReleaseKind.AGAINST_ALONE:
            compared.append(answered)
        if release.kind is ReleaseKind.SPREAD:
            spreads.append(answered)
        return answered

    monkeypatch.setattr(Contributor, "_book_release", book)
    with twins.comparing():
        tally = hold(0, COMPARISON_CONVERSATIONS)
    assert tally.vectors > COMPARISON_CONVERSATIONS
    # Twins were compared, and answered with noise alone where a budget had no room for it.
    assert compared.count(True) >= 2 * 5
    assert compared.count(False) > 0
    assert spreads.count(True) > 0


@pytest.fixture
def on_features() -> Iterator[None]:
    with twins.on_features():
        yield


@pytest.mark.usefixtures("on_features")
def test_a_mean_of_features_tells_twins_apart_by_nothing_but_their_vectors() -> None:
    twins.TOLD_MEANS.clear()
    hold(0, MEAN_CONVERSATIONS)
    # Sums that hold a mean were unmasked, and answers and refusals of it were compared.
    assert len(twins.TOLD_MEANS) >= 5


@pytest.mark.parametrize("kind", twins.TASKS)
def test_a_task_of_several_classes_or_labels_tells_twins_apart_by_nothing_but_their_vectors(kind: str) -> None:
    with twins.of_task(twins.TASKS[kind]):
        tally = hold(0, TASK_CONVERSATIONS)
    assert tally.vectors > TASK_CONVERSATIONS
    assert tally.sums > TASK_CONVERSATIONS // 2


def test_the_harness_finds_statistics_that_are_refused_for_what_the_data_are(asking: pytest.MonkeyPatch) -> None:
    def answer(self: Any, *_arguments: Any) -> Any:  # noqa: ANN401
        raise RunError(f"{len(self.labels)} records cannot be counted")

    asking.setattr("client.contribution._Counted.answer", answer)
    kind = KINDS.index(Difference.ADDED)
    with pytest.raises(TwinsDifferError):  # noqa: PT012 - whichever conversation it is that finds it
        for number in range(FOUND_WITHIN):
            converse(kind + len(KINDS) * number)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("piece", range(1, PIECES + 1))
def test_ten_thousand_conversations_with_twins_find_no_difference(piece: int) -> None:
    first = CONVERSATIONS + IN_A_PIECE * (piece - 1)
    tally = hold(first, IN_A_PIECE)
    print(  # noqa: T201 - reported
        f"conversations {first} to {first + IN_A_PIECE - 1}: {tally.requests} requests, {tally.vectors} vectors, "
        f"{tally.sums} sums, refused: {dict(sorted(tally.refusals.items()))}"
    )
    print(tally.table())  # noqa: T201
    assert tally.conversations == IN_A_PIECE
    assert tally.sums > IN_A_PIECE // 2


# ---------------------------------------------------------------------------------------------------------------------
# The harness finds what it looks for


def refuses_by_number_of_records(patch: pytest.MonkeyPatch) -> None:
    real = Contributor.check

    def check(self: Contributor, terms: Any, cohort: int) -> Any:  # noqa: ANN401
        if not terms.trains:
            raise RunError(f"this hospital's {len(self._train)} records must be trained on")
        return real(self, terms, cohort)

    patch.setattr(Contributor, "check", check)


class _Timed(MaskReply, frozen=True, tag="input_masked"):
    training_seconds: float


def tells_training_seconds(patch: pytest.MonkeyPatch) -> None:
    real = HospitalAgent._mask
    clock = iter(np.linspace(1, 2, 10**6))

    def mask(self: HospitalAgent, *arguments: Any) -> Any:  # noqa: ANN401
        reply, vector = real(self, *arguments)
        return _Timed(**msgspec.structs.asdict(reply), training_seconds=float(next(clock))), vector

    patch.setattr(HospitalAgent, "_mask", mask)


def _is_finite(contributor: Contributor, model: Any, inputs: torch.Tensor) -> bool:  # noqa: ANN401
    share_parameters(contributor._model, torch.from_numpy(model.copy()))
    with torch.inference_mode():
        return bool(torch.isfinite(contributor._model(inputs.to(torch.float32) / 127.5 - 1)).all())


def refuses_scores_that_are_not_finite(patch: pytest.MonkeyPatch) -> None:
    real = Contributor._measured

    def measured(self: Contributor, model: Any) -> Any:  # noqa: ANN401
        for part in (self._validation, self._test):
            if len(part) and not _is_finite(self, model, part.inputs):
                raise RunError("the model must give finite scores")
        return real(self, model)

    patch.setattr(Contributor, "_measured", measured)


def refuses_gradients_that_are_not_finite(patch: pytest.MonkeyPatch) -> None:
    real = Contributor._change

    def change(self: Contributor, plan: Any, model: Any, *rest: Any) -> Any:  # noqa: ANN401
        if len(self._train) and not _is_finite(self, model, self._train.inputs):
            raise RunError("training diverged")
        return real(self, plan, model, *rest)

    patch.setattr(Contributor, "_change", change)


def _after_opening(patch: pytest.MonkeyPatch, judged: Callable[[Contributor, Any, Any], None]) -> None:
    real = Contributor.__init__

    def init(self: Contributor, run: Any, data: Any, *rest: Any) -> None:  # noqa: ANN401
        real(self, run, data, *rest)
        judged(self, run, data)

    patch.setattr(Contributor, "__init__", init)


def judges_max_weight_by_the_data(patch: pytest.MonkeyPatch) -> None:
    def judged(_self: Contributor, run: Any, data: Any) -> None:  # noqa: ANN401
        if len(data.train) > run.aggregation.max_weight:
            raise ConfigError("the run's aggregation.max_weight must fit how much data this hospital has")

    _after_opening(patch, judged)


def judges_delta_by_the_data(patch: pytest.MonkeyPatch) -> None:
    def judged(_self: Contributor, run: Any, data: Any) -> None:  # noqa: ANN401
        if run.privacy.delta * len(data.train) >= 1:
            raise ConfigError("the run's privacy.delta must fit how much data this hospital has")

    _after_opening(patch, judged)


def tells_what_is_wrong_with_its_data(patch: pytest.MonkeyPatch) -> None:
    def judged(_self: Contributor, _run: Any, data: Any) -> None:  # noqa: ANN401
        if len(np.unique(data.train.labels)) < len(_run.classes):
            raise DataError("a class is missing")

    _after_opening(patch, judged)


def refuses_an_empty_part(patch: pytest.MonkeyPatch) -> None:
    def judged(_self: Contributor, _run: Any, data: Any) -> None:  # noqa: ANN401
        if not (len(data.train) and len(data.validation) and len(data.test)):
            raise DataError("a part is empty")

    _after_opening(patch, judged)


def reports_epsilon_of_its_own_sample_rate(patch: pytest.MonkeyPatch) -> None:
    real = Contributor._book_training

    def book(self: Contributor, round_number: int, plan: Any) -> Any:  # noqa: ANN401
        report = real(self, round_number, plan)
        return None if report is None else EpsilonReport(report.spent * 20 / max(1, len(self._train)), report.budget)

    patch.setattr(Contributor, "_book_training", book)


def draws_as_many_bytes_as_there_are_records(patch: pytest.MonkeyPatch) -> None:
    real = Contributor._change

    def change(self: Contributor, *arguments: Any) -> Any:  # noqa: ANN401
        self._random(len(self._train))
        return real(self, *arguments)

    patch.setattr(Contributor, "_change", change)


def weighs_by_its_records(patch: pytest.MonkeyPatch) -> None:
    real = Contributor._tail

    def tail(self: Contributor, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401
        found = real(self, *arguments, **named)
        return Tail(max(1, len(self._train)), found.validation_units, found.test_units, found.entries)

    patch.setattr(Contributor, "_tail", tail)


def counts_the_units_that_are_there(patch: pytest.MonkeyPatch) -> None:
    real = Contributor._tail

    def tail(self: Contributor, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401
        found = real(self, *arguments, **named)
        if found.validation_units:
            return Tail(found.weight, len(self._validation), found.test_units, found.entries)
        return found

    patch.setattr(Contributor, "_tail", tail)


def books_twice_what_is_hard(patch: pytest.MonkeyPatch) -> None:
    real = Contributor._book_training

    def book(self: Contributor, round_number: int, plan: RoundPlan) -> Any:  # noqa: ANN401
        if len(self._train) % 2:
            real(self, round_number, plan)
        return real(self, round_number, plan)

    patch.setattr(Contributor, "_book_training", book)


def tells_in_its_chain_how_many_records_it_has(patch: pytest.MonkeyPatch) -> None:
    real = HospitalAgent._record_contribution

    def record(self: HospitalAgent, run: Any, round_number: int, *rest: Any) -> None:  # noqa: ANN401
        real(self, run, 1000 * round_number + len(run.contributor._train), *rest)

    patch.setattr(HospitalAgent, "_record_contribution", record)


def sends_a_vector_that_shows_its_size(patch: pytest.MonkeyPatch) -> None:
    real = HospitalAgent._mask

    def mask(self: HospitalAgent, run: Any, *rest: Any) -> Any:  # noqa: ANN401
        reply, vector = real(self, run, *rest)
        assert vector is not None
        return reply, np.resize(vector, len(vector) + len(run.contributor._train))

    patch.setattr(HospitalAgent, "_mask", mask)


DEFECTS: dict[Callable[[pytest.MonkeyPatch], None], Difference] = {
    refuses_by_number_of_records: Difference.ADDED,
    tells_training_seconds: Difference.LABEL,
    refuses_scores_that_are_not_finite: Difference.OVERFLOWS,
    refuses_gradients_that_are_not_finite: Difference.OVERFLOWS,
    judges_max_weight_by_the_data: Difference.ADDED,
    judges_delta_by_the_data: Difference.ADDED,
    tells_what_is_wrong_with_its_data: Difference.CLASS_GONE,
    refuses_an_empty_part: Difference.EMPTY_PART,
    reports_epsilon_of_its_own_sample_rate: Difference.ADDED,
    draws_as_many_bytes_as_there_are_records: Difference.ADDED,
    weighs_by_its_records: Difference.ADDED,
    counts_the_units_that_are_there: Difference.ADDED,
    books_twice_what_is_hard: Difference.ADDED,
    tells_in_its_chain_how_many_records_it_has: Difference.ADDED,
    sends_a_vector_that_shows_its_size: Difference.ADDED,
}
"""Each with twins between whom it makes a difference."""


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: str(defect.__name__))
def test_the_harness_finds_an_agent_that(
    defect: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = KINDS.index(DEFECTS[defect])
    defect(monkeypatch)
    with pytest.raises(AssertionError) as found:  # noqa: PT012 - whichever conversation it is that finds it
        for number in range(FOUND_WITHIN):
            converse(kind + len(KINDS) * number)
    if defect not in (weighs_by_its_records, counts_the_units_that_are_there):  # These show in the vector itself.
        assert isinstance(found.value, TwinsDifferError)


def test_a_model_overflows_on_one_image_alone() -> None:
    """Or the harness would never show a hospital such a model; the search asserts the rest."""
    assert np.isfinite(overflowing_model()).all()
