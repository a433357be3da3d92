"""``confide model check``: whether a model can be trained with privacy, and what a round of it costs here.

Everything is tried on made-up records, in a process of its own whose memory is measured; no image is read and no
privacy spent.
"""

import dataclasses
import json
import math
import resource
import shutil
import subprocess
import sys
import textwrap
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import nn

from client.device import choose
from client.own_models import RECORDS, GradientMethod, gradient_method, layers_of
from client.per_record_gradients import ByRecord
from client.training import TrainingData, noisy_gradient_sum, train_locally
from common.config import Config, PrivacyUnit, RunDescription, load_config
from common.errors import ConfideError, ConfigError
from common.models import registry
from common.models.flat import flat_parameters
from common.models.package import package_hash
from common.privacy.accounting import Accountant, epsilon, rounded_up
from common.privacy.mechanism import NoisySteps, NoisySum, PlainSteps, RoundPlan, mechanism_of
from common.processes import EXIT_REFUSED
from common.run.terms import describe
from deploy.command import command, config_options, json_option
from deploy.models.sizes import classes_and_channels, size_options

_RUN_ID = 32 * "0"
_LONGEST_SECONDS = 3600.0

_MOST_SHOWN = 8
"""Replaced layers that are named on the screen; a deep network has over a hundred."""


@dataclass(frozen=True)
class Tried:
    """What a trial of a model found.

    Attributes:
        name: of the model.
        gradients: how every record's gradient is formed; empty where the run has no privacy.
        layers: each layer with parameters: its place, kind, number of parameters, and whether it is a known one.
        replaced: each layer that another stands in for, in words.
        parameters: that are trained.
        vector_bytes: what a hospital sends in a round.
        device: where gradients are computed.
        units: in an expected batch of a step.
        steps: in a round.
        seconds: of one round's training, by the one step that was measured.
        peak_bytes: of memory, of the whole process.
        epsilon_first: after one round; None where the run has no privacy.
        epsilon_run: after all rounds.
        rounds: of the run.
    """

    name: str
    gradients: str
    layers: tuple[tuple[str, str, int, bool], ...]
    replaced: tuple[str, ...]
    parameters: int
    vector_bytes: int
    device: str
    units: float
    steps: int
    seconds: float
    peak_bytes: int
    epsilon_first: float | None
    epsilon_run: float | None
    rounds: int


@command(
    "check",
    "Say, before a run, whether a model can be trained with privacy, and what a round of it costs on this machine.\n\n"
    "NAME is a model of the registry or package:function; without it, the configured model is tried. The hospital's "
    "statement of training units, the run's sampling, noise and rounds are those of the configuration.",
    "./confide model check densenet121 --set model.image_size=224",
)
@click.argument("name", required=False)
@config_options("the run")
@size_options
@json_option()
def main(
    name: str | None,
    config_file: Path,
    overrides: tuple[str, ...],
    classes: int | None,
    channels: int | None,
    as_json: bool,
) -> int:
    """Try the model in a process of its own, and print what was found."""
    config = load_config(config_file, (*_naming(name, overrides), *overrides))
    classes, channels = classes_and_channels(config, classes, channels)
    asked = json.dumps({"config": config.model_dump(mode="json"), "classes": classes, "channels": channels})
    finished = subprocess.run(
        (sys.executable, "-m", "deploy.models.check"),
        input=asked, capture_output=True, text=True, check=False, timeout=_LONGEST_SECONDS,
    )  # fmt: skip
    if finished.returncode:
        words = finished.stderr.strip().splitlines()
        raise ConfigError(words[-1].removeprefix("confide: ") if words else "the trial of the model ended early")
    if as_json:
        print(finished.stdout.strip())
    else:
        _print(json.loads(finished.stdout))
    return 0


def _naming(name: str | None, overrides: tuple[str, ...]) -> tuple[str, ...]:
    """Return the settings that name the model; the hash of a package that is installed here is its own."""
    if name is None:
        return ()
    if ":" not in name or any(override.startswith("model.sha256=") for override in overrides):
        return (f"model.name={name}",)
    return (f"model.name={name}", f"model.sha256={package_hash(name.partition(':')[0].partition('.')[0])}")


def try_model(config: Config, classes: int, channels: int) -> Tried:
    """Train one step on made-up records, in this process.

    Raises:
        ConfigError: the model cannot be made, or not be trained with privacy; names the layer or the rule.
    """
    architecture, size = config.model.architecture, config.model.image_size
    model, replaced = registry.build_with_replaced(architecture, classes, channels, size, config.experiment.seed)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    names = tuple(f"class {number}" for number in range(classes))
    roster = {f"hospital-{number}": "" for number in range(config.experiment.num_clients)}
    run = describe(config, _RUN_ID, names, channels, roster, parameters)
    mechanism = mechanism_of(run)
    plan = mechanism.plan(run, parameters)
    shape = registry.input_shape(architecture, RECORDS, channels, size)
    layers = layers_of(model)
    method = None
    if mechanism.is_private:
        method = gradient_method(model, shape, classes, config.model.name)
        model = ByRecord(model) if method is GradientMethod.FUNCTORCH else model
    stated = config.hospital.stated_training_units
    device = choose(config.hospital.device)
    seconds = _one_step(model, run, plan, stated, (stated, *shape[1:]), device)
    steps = plan.schedule.steps if isinstance(plan, NoisySteps) else 1
    if isinstance(plan, PlainSteps):
        steps = plan.local_epochs * math.ceil(stated / plan.batch_size)
    first, whole = _epsilons(run, plan)
    return Tried(
        name=config.model.name,
        gradients=method or "",
        layers=tuple((layer.place, layer.kind, layer.parameters, layer.is_known) for layer in layers),
        replaced=tuple(f"{each.place}: {each.before} became {each.after}" for each in replaced),
        parameters=parameters,
        vector_bytes=run.vector_length * run.aggregation.modulus_bits // 8,
        device=str(device),
        units=plan.expected_batch(stated),
        steps=steps,
        seconds=steps * seconds,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        epsilon_first=first,
        epsilon_run=whole,
        rounds=run.experiment.rounds,
    )


def _one_step(
    model: nn.Module,
    run: RunDescription,
    plan: RoundPlan,
    stated: int,
    shape: tuple[int, ...],
    device: torch.device,
) -> float:
    """Return the seconds of one step on made-up records."""
    random = np.random.default_rng(1)
    is_image = registry.frozen_features(run.model.architecture) is None
    inputs = random.integers(0, 256, shape, np.uint8) if is_image else random.standard_normal(shape, np.float32)
    data = TrainingData.of(inputs, random.integers(0, len(run.classes), stated), np.arange(stated))
    start, expected = flat_parameters(model), plan.expected_batch(stated)
    began = time.perf_counter()
    match plan:
        case NoisySum():
            noisy_gradient_sum(model, start, data, plan, len(run.roster), random.bytes, device)
        case NoisySteps():
            one = dataclasses.replace(plan, schedule=dataclasses.replace(plan.schedule, steps=1))
            train_locally(model, start, data, run.training, one, random.bytes, expected_units=expected, device=device)
        case PlainSteps():
            batch = data.limited(plan.batch_size, PrivacyUnit.RECORD, b"one batch")
            train_locally(model, start, batch, run.training, plan, random.bytes, expected_units=expected, device=device)
            return (time.perf_counter() - began) / plan.local_epochs
    return time.perf_counter() - began


def _epsilons(run: RunDescription, plan: RoundPlan) -> tuple[float | None, float | None]:
    """Return ε after the first round and after the last one, as a hospital would book them."""
    event = plan.event
    if event is None:
        return None, None
    accountant, delta = Accountant(run.privacy.accountant), run.privacy.delta
    whole = dataclasses.replace(event, steps=event.steps * run.experiment.rounds)
    first, last = (rounded_up(epsilon([each], delta, accountant)) for each in (event, whole))
    return first, last


_METHODS = {
    "layers": "every layer is known: all records' gradients in one backward pass",
    "functorch": "by torch.func, each record by itself, which is slower: not every layer is known",
    "": "not needed: the run has no differential privacy",
}


def _print(found: dict[str, Any]) -> None:
    _say(f"{found['name']}: {found['parameters']:,} parameters, {found['vector_bytes'] / 1e6:.2f} MB a vector")
    _say(f"gradients of each record: {_METHODS[found['gradients']]}")
    unknown = [f"{place} ({kind})" for place, kind, _, is_known in found["layers"] if not is_known]
    if unknown:
        _say(f"  layers that are not known: {', '.join(unknown)}")
    _say(f"layers replaced: {len(found['replaced'])}")
    for line in found["replaced"][:_MOST_SHOWN]:
        _say(f"  {line}")
    if len(found["replaced"]) > _MOST_SHOWN:
        _say(f"  and {len(found['replaced']) - _MOST_SHOWN} more; --json names all")
    steps = f"{found['steps']} step{'s' if found['steps'] > 1 else ''} of about {found['units']:.0f} units"
    _say(
        f"a round here, on {found['device']}: {found['seconds']:.1f} s of training ({steps}; one was measured), "
        f"{found['peak_bytes'] / 2**20:,.0f} MiB of memory"
    )
    if found["epsilon_first"] is not None:
        _say(
            f"ε for each unit (zero-out): {found['epsilon_first']:g} after the first round, {found['epsilon_run']:g} "
            f"after all {found['rounds']}"
        )


def _say(line: str) -> None:
    """Print a line in the terminal's width, or 80 columns; what follows its first is indented."""
    indent = len(line) - len(line.lstrip()) + 2
    print(textwrap.fill(line, shutil.get_terminal_size().columns, subsequent_indent=" " * indent,
                        break_long_words=False, break_on_hyphens=False))  # fmt: skip


def _try_here() -> int:
    """Read what to try on standard input, and write what was found on standard output."""
    asked = json.loads(sys.stdin.read())
    try:
        found = try_model(Config.model_validate(asked["config"]), asked["classes"], asked["channels"])
    except ConfideError as error:
        print(f"confide: {error}", file=sys.stderr)
        return EXIT_REFUSED
    print(json.dumps(asdict(found)))
    return 0


if __name__ == "__main__":
    sys.exit(_try_here())
