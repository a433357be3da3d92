"""``confide privacy plan``: before a run, how much noise an ε needs, and what each adversary gets in both modes."""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from common.config import Config, PrivacyUnit, load_config
from common.privacy.accounting import (
    Accountant,
    Epsilon,
    MechanismEvent,
    MechanismKind,
    against_everyone,
    epsilon,
    rounded_up,
)
from common.privacy.calibration import noise_multiplier, require_meaningful
from common.privacy.distributed import DistributedMechanism

RING_BITS = 32
"""Of mode ``distributed``; 16 bits are too few for its sums."""

_CONFIG = Path("config.yaml")


@dataclass(frozen=True)
class Request:
    """What is planned. The hospitals are taken to be alike."""

    units: int
    rounds: int
    batch_size: int
    local_epochs: int
    target_epsilon: float
    delta: float
    unit: PrivacyUnit
    accountant: Accountant
    hospitals: int
    colluders: int
    dropouts: int
    parameters: int


@dataclass(frozen=True)
class ModePlan:
    """One mode's answer.

    Attributes:
        steps: optimiser steps of the whole run.
        noise_multiplier: over the clipping norm, in each hospital's gradient sum (local) or in the secure sum.
        hospital_noise: what one hospital adds, over the clipping norm.
        claims: for each adversary, once for each accountant.
    """

    steps: int
    noise_multiplier: float
    hospital_noise: float
    claims: tuple[Epsilon, ...]


@dataclass(frozen=True)
class Plan:
    """Both modes' answers."""

    request: Request
    sample_rate: float
    local: ModePlan
    distributed: ModePlan


def plan(request: Request) -> Plan:
    """Calibrate both modes to the same target.

    Raises:
        PrivacyError: the request means nothing, or no noise reaches its target; names the remedy.
    """
    rate = require_meaningful(request.units, request.batch_size, request.delta, request.unit)
    return Plan(request, rate, _local(request, rate), _distributed(request, rate))


def _local(request: Request, rate: float) -> ModePlan:
    steps = request.rounds * max(1, round(request.local_epochs / rate))
    multiplier = noise_multiplier(request.target_epsilon, request.delta, rate, steps, request.accountant)
    event = MechanismEvent(MechanismKind.POISSON_SUBSAMPLED_GAUSSIAN, multiplier, rate, steps)
    claims = tuple(
        claim
        for accountant in Accountant
        for claim in against_everyone(
            epsilon([event], request.delta, accountant), request.delta, request.unit, accountant, request.colluders
        )
    )
    return ModePlan(steps, multiplier, multiplier, claims)


def _distributed(request: Request, rate: float) -> ModePlan:
    multiplier = noise_multiplier(request.target_epsilon, request.delta, rate, request.rounds, request.accountant)
    mechanism = DistributedMechanism.fit(
        noise_multiplier=multiplier,
        max_grad_norm=1.0,
        dimension=request.parameters,
        hospitals=request.hospitals,
        expected_units=request.hospitals * request.batch_size,
        colluders=request.colluders,
        tolerated_dropouts=request.dropouts,
        modulus_bits=RING_BITS,
    )
    claims = tuple(
        claim
        for accountant in Accountant
        for claim in mechanism.epsilons(
            rate, request.rounds, request.hospitals, request.delta, request.unit, accountant
        )
    )
    share = math.sqrt(mechanism.share_variance(request.hospitals)) / mechanism.norm_bound
    return ModePlan(request.rounds, multiplier, share, claims)


def as_text(answer: Plan) -> str:
    """Return the plan as a person reads it."""
    request, local, distributed = answer.request, answer.local, answer.distributed
    units = f"{request.unit}s"
    return f"""\
{request.hospitals} hospitals of {request.units} training {units}, {request.rounds} rounds, {request.batch_size} \
{units} expected in a batch (sample rate {answer.sample_rate:.4g})
target: ε ≤ {request.target_epsilon:g} at δ = {request.delta:g} for each {request.unit}, by the \
{request.accountant.upper()} accountant

mode local        noise multiplier {local.noise_multiplier:.4f} at each of {local.steps} steps, all in each hospital
mode distributed  noise multiplier {distributed.noise_multiplier:.4f} at each of {distributed.steps} steps (one a \
round), in the sum,
                  with training.sample_rate={answer.sample_rate:.4g};
                  one hospital adds {distributed.hospital_noise:.4f}, enough with {request.dropouts} dropped out and \
{request.colluders} colluding

{_table(local, distributed)}

These hold for what a hospital trains on. Evaluation counts leave it inside the secure sum alone, without noise.
A single curious hospital learns what a server with one colluder learns."""


def _table(local: ModePlan, distributed: ModePlan) -> str:
    heads = [f"{mode} {accountant.upper()}" for mode in ("local", "distributed") for accountant in Accountant]
    lines = [f"{'ε against':<38}" + "".join(f"{head:>17}" for head in heads)]
    adversaries = len(local.claims) // len(Accountant)
    for row in range(adversaries):
        first = local.claims[row]
        who = f"{first.adversary} ({first.colluders})" if first.colluders else str(first.adversary)
        cells = [plan.claims[row + adversaries * column] for plan in (local, distributed) for column in range(2)]
        lines.append(f"{who:<38}" + "".join(f"{rounded_up(cell.value):>17.3f}" for cell in cells))
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Answer ``confide privacy plan``; argv begins with the command's last word."""
    arguments = _parser(load_config(_CONFIG) if _CONFIG.exists() else Config()).parse_args(argv[1:])
    answer = plan(
        Request(
            units=arguments.records,
            rounds=arguments.rounds,
            batch_size=arguments.batch,
            local_epochs=arguments.epochs,
            target_epsilon=arguments.epsilon,
            delta=arguments.delta,
            unit=PrivacyUnit(arguments.unit),
            accountant=Accountant(arguments.accountant),
            hospitals=arguments.hospitals,
            colluders=arguments.colluders,
            dropouts=arguments.dropouts,
            parameters=arguments.parameters,
        )
    )
    print(json.dumps(asdict(answer), indent=2) if arguments.json else as_text(answer))
    return 0


def _parser(config: Config) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="confide privacy plan",
        description="How much noise an ε needs, and what each adversary gets, in both modes. "
        "Defaults are those of config.yaml.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    privacy, training, experiment = config.privacy, config.training, config.experiment
    add = parser.add_argument
    add("--records", type=int, required=True, metavar="N", help="training records (or patients) of one hospital")
    add("--rounds", type=int, default=experiment.rounds, metavar="R", help="rounds of the run")
    add("--batch", type=int, default=training.batch_size, metavar="B", help="expected in a Poisson batch")
    add("--epochs", type=int, default=training.local_epochs, help="local epochs a round, in mode local")
    add("--epsilon", type=float, default=privacy.target_epsilon, metavar="E", help="at the last round")
    add("--delta", type=float, default=privacy.delta, metavar="D", help="below 1/N")
    add("--unit", choices=[unit.value for unit in PrivacyUnit], default=privacy.unit.value, help="of protection")
    add("--accountant", choices=[each.value for each in Accountant], default=privacy.accountant, help="calibrates")
    add("--hospitals", type=int, default=experiment.num_clients, metavar="H", help="in a round")
    add("--colluders", type=int, default=privacy.colluders, metavar="K", help="may collude with the server")
    add("--dropouts", type=int, default=privacy.tolerated_dropouts, metavar="X", help="may vanish in a round")
    add("--parameters", type=int, default=26_000, metavar="P", help="of the model; sets the rounding alone")
    add("--json", action="store_true", help="print JSON")
    return parser
