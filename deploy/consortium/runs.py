"""``confide run …``: the runs of a running server, from their proposal to their end.

Each command asks the server that runs on a state folder, through its socket there; none needs a restart.
"""

import datetime
import math
from pathlib import Path
from typing import Any

import click

from common.config import Config, load_config
from common.errors import ConfigError
from common.models.first_model import FirstModel
from common.settings import SERVER_SETTINGS_FILE, ServerSettings
from common.task import TaskConfig
from deploy.command import FILE, CommaList, command, state_option
from deploy.datasets.tasks import task_of_config, with_task
from deploy.named import check_names
from deploy.terminal import Fact, fact_lines, indented
from server.operator_socket import ChangeRun, Propose, RunView, ShowRuns, ask_server, leave_first_model
from server.run_queue import FOLDER_DIGITS

_DAYS = 30.0
_HEADINGS = ("run", "id", "state", "rounds", "task", "model", "agreed")


@command(
    "propose",
    "Propose a run to the hospitals of a running server. It begins, when its turn comes, once all that it names have "
    "agreed: by their policy, or by hand with ./confide hospital approve. What is proposed is not changed any more; "
    "another configuration is another run.",
    "./confide run propose --state /srv/consortium --set experiment.rounds=20",
)
@state_option("server")
@click.option("--config", "config_file", type=FILE, show_default="the server's", metavar="FILE", help="Settings.")
@click.option(
    "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Replace a setting for this run; repeatable."
)
@click.option(
    "--hospitals", type=CommaList(str), default=(), show_default="all members", metavar="A,B,C", help="Who must agree."
)
@click.option("--days", type=float, default=_DAYS, metavar="D", help="The agreement ends then.")
@click.option("--data-set", metavar="NAME", help="What outputs call the hospitals' data.")
@click.option("--hold", is_flag=True, help="Wait for ./confide run start when all have agreed.")
@click.option(
    "--first-model",
    type=FILE,
    metavar="FILE",
    show_default="made here, with PyTorch",
    help="The model that it begins with, by ./confide model initial.",
)
def propose(
    *,
    state: Path,
    config_file: Path | None,
    overrides: tuple[str, ...],
    hospitals: tuple[str, ...],
    days: float,
    data_set: str | None,
    hold: bool,
    first_model: Path | None,
) -> int:
    """Propose a run; returns 0."""
    propose_run(
        state, config_file, overrides,
        hospitals=hospitals, days=days, data_set=data_set, held=hold, first_model=first_model,
    )  # fmt: skip
    return 0


def propose_run(
    state: Path,
    config_file: Path | None = None,
    overrides: tuple[str, ...] = (),
    *,
    hospitals: tuple[str, ...] = (),
    days: float = _DAYS,
    data_set: str | None = None,
    held: bool = False,
    first_model: Path | None = None,
) -> RunView:
    """Propose a run to the server on ``state``, print it, and return it.

    Args:
        state: the server's state folder.
        config_file: settings; the server's by default.
        overrides: ``SECTION.KEY=VALUE``.
        hospitals: who must agree; all members by default.
        days: until the agreement ends.
        data_set: what outputs call the data.
        held: wait for a person to start it.
        first_model: file of the model that it begins with; by default the model is made here, which takes PyTorch.

    Raises:
        ConfigError: no server runs there, the configuration names what is not there, or PyTorch is needed and missing.
        RunError: the server refuses, or the file is not the run's first model.
    """
    if not math.isfinite(days) or days <= 0:
        raise ConfigError(f"--days must be above 0, got {days:g}")
    asked = load_config(config_file or ServerSettings.read(state / SERVER_SETTINGS_FILE).config, overrides)
    config = with_task(_task_anew(asked, overrides))
    check_names(config)
    task = task_of_config(config)
    first = _first_model(first_model, config, len(task.classes), task.channels)
    (view,) = ask_server(
        state,
        Propose(
            config=config.model_dump(mode="json"),
            data_set=data_set or f"{task.name} (the hospitals' own)",
            classes=task.classes,
            channels=task.channels,
            first_model=leave_first_model(state, first),
            days=days,
            hospitals=hospitals,
            held=held,
        ),
    )
    print("\n".join(fact_lines(told(view))))
    return view


def _task_anew(config: Config, overrides: tuple[str, ...]) -> Config:
    """Let ``--set experiment.task=NAME`` name another preset: the server's own file spells its task out."""
    named = any(setting.startswith("experiment.task=") for setting in overrides)
    spelt = any(setting.startswith("task.") for setting in overrides)
    return config.model_copy(update={"task": TaskConfig()}) if named and not spelt else config


def _first_model(brought: Path | None, config: Config, classes: int, channels: int) -> FirstModel:
    """Read the first model that was brought, or make it."""
    if brought is None:
        from deploy.models.initial import first_model_of  # only where it is needed: it brings PyTorch

        return first_model_of(config, classes, channels)
    first = FirstModel.read(brought)
    model = config.model
    first.require(model.architecture, classes, channels, model.image_size, config.experiment.seed)
    return first


@command(
    "list",
    "Show all runs of a server, in the order of the queue; the reason of one that has ended stands under it.",
    "./confide run list --state /srv/consortium",
)
@state_option("server")
def list_runs(state: Path) -> int:
    """Print one line a run; returns 0."""
    views = ask_server(state, ShowRuns())
    rows = [_HEADINGS, *map(_row, views)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    for row, view in zip(rows, (None, *views), strict=True):
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
        if view is not None and view.reason and view.reason != view.state:
            print(indented(view.reason))
    return 0


@command(
    "show",
    "Show one run: what was proposed, and what each hospital answered.\n\nRUN is its number, or the beginning of its "
    "identifier.",
    "./confide run show 2 --state /srv/consortium",
)
@click.argument("run")
@state_option("server")
def show(run: str, state: Path) -> int:
    """Print what is known of a run; returns 0."""
    (view,) = ask_server(state, ShowRuns(run))
    print("\n".join(fact_lines(told(view))))
    return 0


@command(
    "start",
    "Let a run begin that was proposed with --hold. All that it names must have agreed.\n\nRUN is its number, or the "
    "beginning of its identifier.",
    "./confide run start 2 --state /srv/consortium",
)
@click.argument("run")
@state_option("server")
def start(run: str, state: Path) -> int:
    """Let a run begin; returns 0."""
    return _change(run, state, "start")


@command(
    "stop",
    "End a run after its round, or take one that has not begun from the queue. It can go on with ./confide run resume.",
    "./confide run stop 2 --state /srv/consortium",
)
@click.argument("run")
@state_option("server")
def stop(run: str, state: Path) -> int:
    """End a run; returns 0."""
    return _change(run, state, "stop")


@command(
    "resume",
    "Let a run go on that was stopped or has failed. It keeps its configuration, its rounds and what they have cost.",
    "./confide run resume 2 --state /srv/consortium",
)
@click.argument("run")
@state_option("server")
def resume(run: str, state: Path) -> int:
    """Let a run go on; returns 0."""
    return _change(run, state, "resume")


def _change(run: str, state: Path, change: str) -> int:
    (view,) = ask_server(state, ChangeRun(run, change))
    print(f"run {view.number} ({view.run_id[:FOLDER_DIGITS]}) {standing(view)}")
    return 0


def _row(view: RunView) -> tuple[str, ...]:
    return (
        str(view.number), view.run_id[:FOLDER_DIGITS], view.state, f"{view.done} of {view.rounds}", view.task,
        view.model, agreed(view),
    )  # fmt: skip


def agreed(view: RunView) -> str:
    """Say how many of those that a run names have agreed."""
    return f"{sum(view.answers.get(name, {}).get('agreed', False) for name in view.hospitals)} of {len(view.hospitals)}"


def standing(view: RunView) -> str:
    """Say where a run stands, and why."""
    words = {
        "proposed": "waits for the hospitals' answers",
        "agreed": "waits for ./confide run start" if view.held else "begins when its turn comes",
        "running": "ends after its round" if view.stopping else "is going on",
        "finished": "is finished",
    }
    because = f": {view.reason}" if view.reason and view.reason != view.state else ""
    return words.get(view.state, f"is {view.state}") + because


def told(view: RunView) -> tuple[Fact, ...]:
    """Return a run in words and figures."""
    cost = f", ε {view.epsilon:g} for all rounds; measuring costs ε {view.evaluation_epsilon:g} (zero-out)"
    private = cost if view.claims else ""
    facts = [
        Fact("run", f"{view.number} ({view.run_id}), proposed {_time(view.proposed)}; it {standing(view)}"),
        Fact("trains", f"{view.model} for the task {view.task}, {view.done} of {view.rounds} rounds done"),
        Fact("privacy", f"mode {view.mode}{private}"),
        *(Fact("", claim) for claim in view.claims),
    ]
    if view.until is not None:
        facts.append(Fact("must be there", f"{', '.join(view.hospitals)}; until {_time(view.until)}"))
    return (
        *facts,
        *(Fact(name, _answered(view.answers.get(name))) for name in sorted({*view.hospitals, *view.answers})),
    )


def _answered(answer: dict[str, Any] | None) -> str:
    if answer is None:
        return "has not answered"
    if not answer["agreed"]:
        return f"declines, by its {answer['by']}: {answer['reason']}"
    left = [
        f"{account} ε {cost['after']:.3f} of {cost['budget']:g} after the run (zero-out, at its own δ)"
        for account, cost in sorted(answer["epsilon"].items())
    ]
    return f"agrees, by its {answer['by']}" + (f": {'; '.join(left)}" if left else "")


def _time(seconds: float) -> str:
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d %H:%M} UTC"
