"""``confide privacy plan``: before a run, how much noise an ε needs, and what each adversary gets in both modes.

The plan describes the run as the server would and asks the very functions that hospitals book by, so it says what a
deployed run costs.
"""

import bisect
import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
from pydantic import TypeAdapter

from client.ledger import chain
from client.ledger.ledger import export
from client.ledger.place import ledger_folder
from client.planned_cost import planned_bookings
from common.config import Config, PrivacyUnit, RunDescription, load_config
from common.config import replace as replaced
from common.evaluation.plan import EVALUATED, Part
from common.privacy.accounting import (
    Accountant,
    Epsilon,
    EpsilonAdversary,
    MechanismEvent,
    against_everyone,
    epsilon,
    rounded_up,
)
from common.privacy.budget import Account, Booking, BudgetPolicy
from common.privacy.calibration import require_enough_units
from common.privacy.mechanism import DistributedNoise, LocalNoise, Mechanism, mechanism_of
from common.run.guarantee import relation
from common.run.terms import describe, evaluation_plan_of, release_mechanism
from common.settings import HOSPITAL_SETTINGS_FILE, HospitalSettings
from deploy.command import FILE, command, config_options, json_option

_RUN_ID = 32 * "0"
_HALVINGS = 10
"""How often the range of ε is halved: to a thousandth of the target."""
_BOOKINGS: TypeAdapter[tuple[Booking, ...]] = TypeAdapter(tuple[Booking, ...])


@dataclass(frozen=True)
class ModePlan:
    """One mode's answer.

    Attributes:
        event: what a hospital books for one round.
        steps: of the mechanism in the whole run.
        hospital_noise: what one hospital adds to a step, over the clipping norm.
        claims: for each adversary, once for each accountant.
    """

    event: MechanismEvent
    steps: int
    hospital_noise: float
    claims: tuple[Epsilon, ...]


@dataclass(frozen=True)
class EvaluationCost:
    """What measuring the run's models costs.

    Attributes:
        lines: the plan of releases.
        claims: for each part of the data, for each adversary.
    """

    lines: tuple[str, ...]
    claims: dict[str, tuple[Epsilon, ...]]


@dataclass(frozen=True)
class Plan:
    """Both modes' answers, and what evaluation costs, which is the same in both."""

    run: RunDescription
    stated_units: int
    local: ModePlan
    distributed: ModePlan
    evaluation: EvaluationCost | None


def plan(config: Config, stated_units: int, parameters: int, classes: int = 2) -> Plan:
    """Calibrate both modes to the same target.

    Args:
        config: of the run; ``experiment.num_clients`` hospitals take part in each round.
        stated_units: what a hospital states that it trains on.
        parameters: of the model; they set the rounding of mode ``distributed``.
        classes: of the task.

    Raises:
        PrivacyError: the request means nothing, or no noise reaches its target; names the remedy.
        ConfigError: a value is out of range.
    """
    require_enough_units(stated_units, config.privacy.delta, config.privacy.unit)
    local, distributed = (
        _described(config, mechanism, parameters, classes) for mechanism in (LocalNoise, DistributedNoise)
    )
    return Plan(
        local, stated_units, _local(local, parameters), _distributed(distributed, parameters), _evaluation(local)
    )


def _described(config: Config, mechanism: type[Mechanism], parameters: int, classes: int) -> RunDescription:
    hospitals = [f"hospital-{number + 1}" for number in range(config.experiment.num_clients)]
    asked = replaced(config, privacy={"mode": mechanism.mode}, aggregation={"min_hospitals": len(hospitals)})
    names = tuple(str(number) for number in range(classes))
    return describe(asked, _RUN_ID, names, 1, dict.fromkeys(hospitals, ""), parameters)


def _local(run: RunDescription, parameters: int) -> ModePlan:
    privacy, rounds = run.privacy, run.experiment.rounds
    event = LocalNoise(privacy).plan(run, parameters).event
    everything = [booking.event for booking in planned_bookings(run) if booking.account is Account.TRAINING]
    claims = tuple(
        claim
        for accountant in Accountant
        for claim in against_everyone(
            epsilon(everything, privacy.delta, accountant), privacy.delta, privacy.unit, accountant, privacy.colluders
        )
    )
    return ModePlan(event, event.steps * rounds, event.noise_multiplier, claims)


def _distributed(run: RunDescription, parameters: int) -> ModePlan:
    privacy, rounds, hospitals = run.privacy, run.experiment.rounds, len(run.roster)
    mechanism = DistributedNoise(privacy)
    plan = mechanism.plan(run, parameters)
    before = (mechanism.noise_of_mean(run, parameters),) if privacy.mean_share else ()
    beside = tuple(booking.event for booking in mechanism.bookings_alone(run, parameters))
    claims = tuple(
        claim
        for accountant in Accountant
        for claim in plan.noise.epsilons(
            plan.sample_rate,
            rounds,
            hospitals,
            privacy.delta,
            privacy.unit,
            accountant,
            once_before=before,
            beside=beside,
        )
    )
    share = math.sqrt(plan.noise.share_variance(hospitals)) / plan.noise.norm_bound
    return ModePlan(plan.event, rounds, share, claims)


def _evaluation(run: RunDescription) -> EvaluationCost | None:
    """Return what evaluation costs against each adversary; None where the counts are exact and have no ε."""
    releases = evaluation_plan_of(run)
    if releases is None:
        return None
    privacy, cohort, accountant = run.privacy, len(run.roster), Accountant(run.privacy.accountant)

    def claim(part: Part, adversary: EpsilonAdversary, colluders: int) -> Epsilon:
        events = [
            release_mechanism(run, releases, release).event_against(colluders, cohort, 1.0)
            for release in releases.everything
            if release.part is part
        ]
        known = [event for event in events if event is not None]
        value = epsilon(known, privacy.delta, accountant) if len(known) == len(events) else math.inf
        told = colluders if adversary is EpsilonAdversary.COLLUDING_SERVER else 0
        return Epsilon(value, privacy.delta, privacy.unit, adversary, accountant, told)

    adversaries = [(EpsilonAdversary.OUTSIDER, 0), (EpsilonAdversary.HOSPITAL, 1), (EpsilonAdversary.SERVER, 0)]
    if privacy.colluders:
        adversaries.append((EpsilonAdversary.COLLUDING_SERVER, privacy.colluders))
    claims = {part.value: tuple(claim(part, *adversary) for adversary in adversaries) for part in EVALUATED}
    return EvaluationCost(releases.describe(), claims)


def as_text(answer: Plan) -> str:
    """Return the plan as a person reads it."""
    run, local, distributed = answer.run, answer.local, answer.distributed
    privacy = run.privacy
    exact = ("evaluation: exact counts (evaluation.exact); validation and test records have NO differential privacy",)
    evaluation = exact if answer.evaluation is None else answer.evaluation.lines
    return f"""\
{len(run.roster)} hospitals that state at least {answer.stated_units} training {privacy.unit}s each, \
{run.experiment.rounds} rounds, training.sample_rate {run.training.sample_rate:g}
target: ε ≤ {privacy.target_epsilon:g} at δ = {privacy.delta:g} for each {privacy.unit}, by the \
{privacy.accountant.upper()} accountant
        {relation(privacy.unit.value)}

mode local        noise multiplier {local.event.noise_multiplier:.4f} at each of {local.steps} steps, all in each \
hospital
mode distributed  noise multiplier {distributed.event.noise_multiplier:.4f} at each of {distributed.steps} steps (one \
a round), in the sum;
                  one hospital adds {distributed.hospital_noise:.4f}, enough with {privacy.tolerated_dropouts} dropped \
out and {privacy.colluders} colluding

{_table(answer)}

{chr(10).join(evaluation)}

Another hospital of the run knows its own noise, and learns what a server with one colluder learns."""


def _table(answer: Plan) -> str:
    """Return ε against each adversary: of training in both modes by both accountants, of evaluation by the run's."""
    modes = (("local", answer.local), ("distributed", answer.distributed))
    heads = [f"{mode} {accountant.upper()}" for mode, _ in modes for accountant in Accountant]
    parts = {} if answer.evaluation is None else answer.evaluation.claims
    lines = [f"{'ε against':<38}" + "".join(f"{head:>17}" for head in (*heads, *parts))]
    adversaries = len(answer.local.claims) // len(Accountant)
    for row in range(adversaries):
        first = answer.local.claims[row]
        who = f"{first.adversary} ({first.colluders})" if first.colluders else str(first.adversary)
        cells = [each.claims[row + adversaries * column] for _, each in modes for column in range(len(Accountant))]
        cells += [claims[row] for claims in parts.values()]
        lines.append(f"{who:<38}" + "".join(f"{rounded_up(cell.value):>17.3f}" for cell in cells))
    return "\n".join(lines)


def _as_json(answer: Plan) -> str:
    facts = {
        "run": answer.run.model_dump(mode="json"),
        "stated_units": answer.stated_units,
        "local": asdict(answer.local),
        "distributed": asdict(answer.distributed),
        "evaluation": None if answer.evaluation is None else asdict(answer.evaluation),
    }
    return json.dumps(_without_infinity(facts), indent=2, allow_nan=False)


def _without_infinity(value: object) -> object:
    """Return the same with null for an ε that is not bounded, for which JSON has no number."""
    if isinstance(value, dict):
        return {key: _without_infinity(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinity(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def fitting(config: Config, state: Path, parameters: int, classes: int) -> str:
    """Return what a run would leave of a hospital's budget for training, and what would fit.

    Args:
        config: of the run.
        state: the hospital's state folder, with its ledger and policy.
        parameters: of the model.
        classes: of the task.

    Raises:
        LedgerError: the ledger is not whole.
    """
    policy = BudgetPolicy.of(
        load_config(HospitalSettings.read(state / HOSPITAL_SETTINGS_FILE).config).hospital, Account.TRAINING
    )
    ledger, accountant = ledger_folder(state), Accountant(config.privacy.accountant)
    booked = _BOOKINGS.validate_python(export(ledger)["bookings"]) if chain.exists(ledger) else ()
    booked = tuple(booking for booking in booked if booking.account is Account.TRAINING)

    def end(target: float, rounds: int) -> float:
        """Return ε after so many rounds of a run that is calibrated to a target over all its rounds."""
        asked = replaced(config, privacy={"target_epsilon": target})
        run = _described(asked, type(mechanism_of(asked)), parameters, classes)
        if not mechanism_of(run).is_private:
            return 0.0
        steps, *once = (each for each in planned_bookings(run) if each.account is Account.TRAINING)
        a_round = steps.event.steps // run.experiment.rounds
        planned = (replace(steps, event=replace(steps.event, steps=a_round * rounds)), *once) if rounds else ()
        return epsilon(policy.events_of((*booked, *planned)), policy.delta, accountant)

    rounds, target = config.experiment.rounds, config.privacy.target_epsilon
    spent, reached = end(target, 0), end(target, rounds)
    told = (
        f"this hospital's training data has spent ε = {rounded_up(spent):.3f} of {policy.budget:g} at δ = "
        f"{policy.delta:g}; after this run {rounded_up(reached):.3f}"
    )
    if reached <= policy.budget:
        return f"{told}: it fits"
    fit = bisect.bisect_right(range(rounds), policy.budget, key=lambda after: end(target, after)) - 1
    low, high = 0.0, target
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if end(middle, rounds) <= policy.budget else (low, middle)
    smaller = f"a run with privacy.target_epsilon {low:.2f} would" if low else "no run of so many rounds would"
    return (
        f"{told}: it does not fit, and is refused before its first round; {max(fit, 0)} rounds would fit, or {smaller}"
    )


def _given(**values: object) -> dict[str, object]:
    """Return what the command line says; the configuration says the rest."""
    return {name: value for name, value in values.items() if value is not None}


@command(
    "plan",
    "Say how much noise an ε needs, and what each adversary gets, in both modes. Nothing is run. What is left out is "
    "as the configuration has it.",
    "./confide privacy plan --records 1200 --rounds 20 --epsilon 3",
)
@click.option(
    "--records",
    type=int,
    show_default="hospital.stated_training_units",
    metavar="N",
    help="Training records, or patients, that a hospital states.",
)
@click.option("--rounds", type=int, show_default="experiment.rounds", metavar="R", help="Rounds of the run.")
@click.option(
    "--sample-rate",
    type=float,
    show_default="training.sample_rate",
    metavar="Q",
    help="How likely each record is in a step's batch.",
)
@click.option(
    "--epochs", type=int, show_default="training.local_epochs", metavar="E", help="Local epochs a round, in mode local."
)
@click.option(
    "--epsilon", type=float, show_default="privacy.target_epsilon", metavar="E", help="What the last round may reach."
)
@click.option("--delta", type=float, show_default="privacy.delta", metavar="D", help="Below 1/N.")
@click.option(
    "--unit",
    type=click.Choice([unit.value for unit in PrivacyUnit]),
    show_default="privacy.unit",
    help="What is protected.",
)
@click.option(
    "--accountant",
    type=click.Choice([each.value for each in Accountant]),
    show_default="privacy.accountant",
    help="Which one calibrates.",
)
@click.option("--hospitals", type=int, show_default="experiment.num_clients", metavar="H", help="In a round.")
@click.option(
    "--colluders", type=int, show_default="privacy.colluders", metavar="K", help="May collude with the server."
)
@click.option(
    "--dropouts", type=int, show_default="privacy.tolerated_dropouts", metavar="X", help="May vanish in a round."
)
@click.option("--classes", type=int, default=2, metavar="C", help="Of the task; they set what an evaluation counts.")
@click.option("--parameters", type=int, default=26_000, metavar="P", help="Of the model; they set the rounding alone.")
@click.option(
    "--state", type=FILE, metavar="DIR", help="A hospital's state folder: say also what fits its budget for training."
)
@config_options("the consortium")
@json_option()
def main(
    *,
    records: int | None,
    rounds: int | None,
    sample_rate: float | None,
    epochs: int | None,
    epsilon: float | None,
    delta: float | None,
    unit: str | None,
    accountant: str | None,
    hospitals: int | None,
    colluders: int | None,
    dropouts: int | None,
    classes: int,
    parameters: int,
    state: Path | None,
    config_file: Path,
    overrides: tuple[str, ...],
    as_json: bool,
) -> int:
    """Plan a run, and print the plan."""
    config = load_config(config_file, overrides)
    asked = replaced(
        config,
        experiment=_given(rounds=rounds, num_clients=hospitals),
        training=_given(sample_rate=sample_rate, local_epochs=epochs),
        aggregation={"min_hospitals": config.experiment.num_clients if hospitals is None else hospitals},
        privacy=_given(
            target_epsilon=epsilon,
            delta=delta,
            unit=None if unit is None else PrivacyUnit(unit),
            accountant=accountant,
            colluders=colluders,
            tolerated_dropouts=dropouts,
        ),
    )
    stated = config.hospital.stated_training_units if records is None else records
    answer = plan(asked, stated, parameters, classes)
    print(_as_json(answer) if as_json else as_text(answer))
    if state is not None and not as_json:
        print("\n" + fitting(asked, state, parameters, classes))
    return 0
