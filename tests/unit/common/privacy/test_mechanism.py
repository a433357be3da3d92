"""Each privacy mode is decided in one file, and what a plan trains is what it books, encodes and decodes."""

import ast
import dataclasses
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

import common.privacy.mechanism as module
from common.config import Config, PrivacyConfig, PrivacyMode, PrivacyUnit, RunDescription, TrainingConfig, replace
from common.errors import PrivacyError
from common.keystream import Keystream
from common.privacy.accounting import MechanismKind
from common.privacy.distributed import DistributedMechanism
from common.privacy.mechanism import (
    MECHANISMS,
    DistributedNoise,
    LocalNoise,
    Mechanism,
    NoisySteps,
    NoisySum,
    PlainSteps,
    mechanism_for,
    mechanism_of,
)
from common.privacy.schedule import Schedule
from common.run.terms import describe, layout_of
from common.run.vector import Tail
from common.telemetry.events import COMPLETED, RoundDone
from tests.support.sources import sources, tree_of

if TYPE_CHECKING:
    from tests.support.small_consortium import Dealt

ROOT = Path(__file__).parents[4]
MAY_ASK = {"common/config.py", "common/privacy/mechanism.py"}
"""The first defines the modes; the second decides."""

PARAMETERS = 40
HOSPITALS = ("a", "b", "c", "d")
STATED = 100


def questions(source: ast.AST) -> Iterator[int]:
    """Yield the line of every place that asks which privacy mode it is dealing with."""
    for node in ast.walk(source):
        match node:
            case ast.Name(id="PrivacyMode") | ast.Attribute(attr="PrivacyMode") | ast.alias(name="PrivacyMode"):
                yield node.lineno
            case ast.Compare(left=left, comparators=others) if any(_is_mode(each) for each in (left, *others)):
                yield node.lineno
            case ast.Match(subject=subject) if _is_mode(subject):
                yield subject.lineno


def _is_mode(node: ast.expr) -> bool:
    return ast.unparse(node).removesuffix(".value").endswith("privacy.mode")


def test_no_other_file_asks_which_mode_a_run_is_in() -> None:
    files = sources()
    assert len(files) > 200
    asking = {path.relative_to(ROOT).as_posix() for path in files if next(questions(tree_of(path)), None) is not None}
    assert asking == MAY_ASK


def test_no_template_asks_which_mode_a_run_is_in() -> None:
    templates = list((ROOT / "deploy").rglob("*.j2"))
    assert len(templates) > 3
    assert [path.name for path in templates if "privacy.mode" in path.read_text(encoding="utf-8")] == []


@pytest.mark.parametrize(
    "source",
    [
        "from common.config import PrivacyMode",
        "import common.config as c\nprivate = mode is not c.PrivacyMode.NONE",
        "if run.privacy.mode == 'local':\n    pass",
        "if 'none' != privacy.mode.value:\n    pass",
        "match config.privacy.mode:\n    case _:\n        pass",
    ],
)
def test_every_way_to_ask_is_found(source: str) -> None:
    assert list(questions(ast.parse(source)))


def test_what_is_no_question_is_left_alone() -> None:
    assert not list(questions(ast.parse("shown = run.privacy.mode.value\nif run.aggregation.mode is mode:\n    pass")))


def test_every_mode_has_its_mechanism() -> None:
    assert set(MECHANISMS) == set(PrivacyMode)
    for mode in PrivacyMode:
        config = replace(Config(), privacy={"mode": mode})
        for mechanism in (mechanism_of(config), mechanism_for(config.privacy)):
            assert mechanism.mode is mode
            assert mechanism.privacy == config.privacy


def test_the_classes_are_one_deep() -> None:
    assert {each.__bases__ for each in MECHANISMS.values()} == {(Mechanism,)}


def described(mode: PrivacyMode, **privacy: object) -> RunDescription:
    config = replace(
        Config(),
        privacy={"mode": mode, "accountant": "rdp", "max_grad_norm": 0.5, **privacy},
        experiment={"rounds": 3},
        aggregation={"min_hospitals": len(HOSPITALS), "modulus_bits": 32},
    )
    return describe(config, 32 * "0", ("normal", "pneumonia"), 1, dict.fromkeys(HOSPITALS, ""), PARAMETERS)


class Trainer:
    """Gives what it was made with, and notes which plan asked for which kind of work."""

    def __init__(self, gradient: NDArray[np.float32]) -> None:
        self.gradient = gradient
        self.asked: list[tuple[str, object]] = []

    def steps(self, plan: PlainSteps | NoisySteps) -> NDArray[np.float32]:
        self.asked.append(("steps", plan))
        return -self.gradient

    def gradient_sum(self, plan: NoisySum) -> NDArray[np.int64]:
        self.asked.append(("gradient_sum", plan))
        noise = plan.noise
        total: NDArray[np.int64] = np.rint(self.gradient * (noise.norm_bound / noise.max_grad_norm)).astype(np.int64)
        return total

    def feature_mean(self, plan: PlainSteps | NoisySteps) -> NDArray[np.float32]:
        raise AssertionError(f"a plan of training asks for a mean: {plan}")

    def feature_sum(self, plan: NoisySum) -> NDArray[np.int64]:
        raise AssertionError(f"a plan of training asks for a mean: {plan}")


@pytest.mark.parametrize(
    ("mode", "work"),
    [(PrivacyMode.NONE, "steps"), (PrivacyMode.LOCAL, "steps"), (PrivacyMode.DISTRIBUTED, "gradient_sum")],
)
def test_what_a_plan_encodes_its_mechanism_decodes(mode: PrivacyMode, work: str) -> None:
    run = described(mode)
    mechanism, layout = mechanism_of(run), layout_of(run)
    plan = mechanism.plan(run, PARAMETERS)
    random = np.random.default_rng(1)
    gradients = random.uniform(-0.02, 0.02, (len(HOSPITALS), PARAMETERS)).astype(np.float32)
    total: NDArray[Any] = np.zeros(layout.length, layout.dtype)
    for gradient in gradients:
        trainer = Trainer(gradient)
        length = layout.counts_length - 3
        tail = Tail(STATED, 0, 0, np.zeros(length, np.int64))
        total += plan.encode(layout, plan.change(trainer), tail, random.bytes)
        assert trainer.asked == [(work, plan)]
    change = mechanism.decoder(run, PARAMETERS)(layout.decode(total, len(HOSPITALS)))
    expected = -gradients.mean(axis=0)
    if mechanism.noise_in_sum:
        expected = -gradients.sum(axis=0) / (len(HOSPITALS) * STATED * run.training.sample_rate)
    whole = change(slice(None))
    assert np.abs(whole - expected).max() < 1e-5
    assert np.array_equal(change(slice(3, 9)), whole[3:9])


@pytest.mark.parametrize("mode", PrivacyMode)
def test_a_round_without_training_adds_nothing_to_the_model(mode: PrivacyMode) -> None:
    run = described(mode)
    mechanism, layout = mechanism_of(run), layout_of(run)
    plan = mechanism.plan(run, PARAMETERS)
    tail = Tail(STATED, 0, 0, np.zeros(layout.counts_length - 3, np.int64))
    vector = plan.encode(layout, plan.no_change(PARAMETERS), tail, Keystream(bytes(32)).draw)
    assert not mechanism.decoder(run, PARAMETERS)(layout.decode(vector, 1))(slice(None)).any()


def test_only_what_is_private_is_booked_and_each_says_whom_it_withstands() -> None:
    assert mechanism_of(described(PrivacyMode.NONE)).plan(described(PrivacyMode.NONE), PARAMETERS).booking(1e-4) is None
    for mode, colluders, kind in (
        (PrivacyMode.LOCAL, None, MechanismKind.POISSON_SUBSAMPLED_GAUSSIAN),
        (PrivacyMode.DISTRIBUTED, 2, MechanismKind.DISTRIBUTED_DISCRETE_GAUSSIAN),
    ):
        run = described(mode, colluders=2, unit="patient")
        plan = mechanism_of(run).plan(run, PARAMETERS)
        booking = plan.booking(run.privacy.delta)
        assert booking is not None
        assert booking.event == plan.event
        assert (booking.colluders, booking.event.kind, booking.unit) == (colluders, kind, PrivacyUnit.PATIENT)


def test_the_event_follows_whatever_the_plan_is_changed_to() -> None:
    """So no plan can be trained by and another one booked."""
    steps = NoisySteps(PrivacyUnit.RECORD, Schedule(0.1, 20), 1.0, 1.5)
    assert (steps.event.sample_rate, steps.event.steps, steps.event.noise_multiplier) == (0.1, 20, 1.5)
    slower = dataclasses.replace(steps, schedule=Schedule(0.3, 4))
    assert (slower.event.sample_rate, slower.event.steps) == (0.3, 4)
    assert dataclasses.replace(steps, noise_multiplier=0.7).event.noise_multiplier == 0.7
    summed = NoisySum(PrivacyUnit.RECORD, 0.1, DistributedMechanism(1.0, 0.5, 2**12, 14, 0, 1))
    louder = dataclasses.replace(summed.noise, noise_multiplier=2.0)
    assert dataclasses.replace(summed, sample_rate=0.4).event.sample_rate == 0.4
    assert dataclasses.replace(summed, noise=louder).event.noise_multiplier == 2.0
    for plan, name in ((steps, "noise_multiplier"), (summed, "sample_rate"), (PlainSteps(4, 1), "batch_size")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(plan, name, 0.5)


def test_noise_that_does_not_keep_the_target_is_refused() -> None:
    run = described(PrivacyMode.DISTRIBUTED)
    assert run.noise_multiplier is not None
    quieter = run.model_copy(update={"noise_multiplier": run.noise_multiplier / 2})
    with pytest.raises(PrivacyError, match="must keep its target ε = 8"):
        mechanism_of(quieter).plan(quieter, PARAMETERS)


def test_a_sum_must_hold_all_but_the_tolerated_dropouts_where_its_noise_is_in_the_sum() -> None:
    privacy = PrivacyConfig(tolerated_dropouts=2)
    for mode in PrivacyMode:
        mechanism = MECHANISMS[mode](privacy)
        assert mechanism.fewest_survivors(7) == (5 if mechanism.noise_in_sum else 0)
        assert mechanism.fewest_survivors(1) == 0


def test_a_hospital_needs_a_whole_batch_only_where_nothing_is_sampled() -> None:
    needed = {
        mode: MECHANISMS[mode](PrivacyConfig()).fewest_records(TrainingConfig(batch_size=32)) for mode in MECHANISMS
    }
    assert needed == {PrivacyMode.NONE: 32, PrivacyMode.LOCAL: 1, PrivacyMode.DISTRIBUTED: 1}


def test_the_noise_that_both_sides_agree_on_is_that_of_sums_alone() -> None:
    training, privacy = TrainingConfig(), PrivacyConfig(accountant="rdp")
    assert mechanism_for(PrivacyConfig(mode=PrivacyMode.NONE)).agreed_noise(training, 2) is None
    assert LocalNoise(privacy).agreed_noise(training, 2) is None
    assert DistributedNoise(privacy).agreed_noise(training, 2) > 0


def documented() -> str:
    """Return the class of the example in ``docs/extending*.md``."""
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("extending*.md")]
    (block,) = (
        textwrap.dedent(block)
        for text in texts
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        if "class FullBatchNoise" in block
    )
    return block


def test_the_documented_example_trains_and_is_booked_as_it_runs(
    dealt: "Dealt", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.support.small_consortium import small  # imports torch, which the tests above do without

    # The example's own name for the mode is not in the enumeration, so the class stands in for mode local.
    names = {**vars(module), "PrivacyMode": SimpleNamespace(FULL_BATCH=PrivacyMode.LOCAL)}
    exec(documented(), names)  # noqa: S102 - the documentation of this repository
    monkeypatch.setattr(module, "MECHANISMS", {**MECHANISMS, PrivacyMode.LOCAL: names["FullBatchNoise"]})
    made = small(dealt, tmp_path, training={"sample_rate": 0.5, "local_epochs": 3})
    assert made.run().train() == COMPLETED
    booked = [entry["booking"]["event"] for entry in made.booked("hospital-1")]
    assert [(event["sample_rate"], event["steps"]) for event in booked] == [(1.0, 3)] * 2
    assert 3.98 < made.of(RoundDone)[-1].epsilon <= 4.0
