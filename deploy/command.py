"""What all commands share: their class, the options that mean the same everywhere, and how help is laid out.

A command is a function under :func:`command`, which makes it a :class:`Command`. Calling that with a list of words runs
it in this process and returns its exit code; the first word is the command's own name.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from common.telemetry.log_format import FORMAT_VARIABLE, LogFormat
from deploy.source_tree import ROOT

WIDTH = 80
"""Columns of help at most."""

SETTINGS: dict[str, Any] = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": WIDTH,
    "show_default": True,
}

CONFIG_FILE = ROOT / "config.yaml"


class Command(click.Command):
    """A command whose help ends with an example.

    Args:
        example: one command line, or several, as a person types them.
        lists: lines before the example that are written as they are, such as names that can be given.
    """

    def __init__(self, *given: Any, example: str, lists: str = "", **settings: Any) -> None:  # noqa: ANN401 - as click
        super().__init__(*given, **{"context_settings": SETTINGS, **settings})
        self.example = example
        self.lists = lists

    def __call__(self, words: Sequence[str]) -> int:
        """Run in this process; ``words`` begins with the command's name. Returns the exit code.

        Raises:
            click.UsageError: the words are not what the command asks for.
            ConfideError: the command cannot do its work.
        """
        return run(self, words)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - as in click
        """Write the lists and the example as they are typed, not filled like prose."""
        if self.lists:
            formatter.write(f"\n{self.lists}\n")
        write_example(self.example, formatter)


class CommandGroup(click.Group):
    """A command with actions, each of which is a :class:`Command`."""

    command_class = Command

    def __init__(self, *given: Any, example: str, **settings: Any) -> None:  # noqa: ANN401 - as click.Group
        super().__init__(*given, **{"context_settings": SETTINGS, **settings})
        self.example = example

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - as in click
        """Return the actions in the order in which they are written."""
        return list(self.commands)

    def __call__(self, words: Sequence[str]) -> int:
        """Run as :meth:`Command.__call__` does."""
        return run(self, words)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - as in click
        """Write the example as it is typed."""
        write_example(self.example, formatter)


def run(chosen: click.Command, words: Sequence[str]) -> int:
    """Run a command without ending this process; returns its exit code."""
    name, *rest = words
    return int(chosen.main(rest, prog_name=name, standalone_mode=False) or 0)


def write_example(example: str, formatter: click.HelpFormatter) -> None:
    """Write a section with command lines."""
    with formatter.section("Example"):
        for line in example.splitlines():
            formatter.write(f"{'':{formatter.current_indent}}{line}\n")


def command(name: str, help: str, example: str, lists: str = "") -> Callable[[Callable[..., int]], Command]:  # noqa: A002 - as click
    """Make a command of a function that returns an exit code."""
    return click.command(name, cls=Command, help=help, example=example, lists=lists)


def group(name: str, help: str, example: str) -> Callable[[Callable[..., object]], CommandGroup]:  # noqa: A002 - as click
    """Make a command with actions of a function that takes the options they share."""
    return click.group(name, cls=CommandGroup, help=help, example=example)


FILE = click.Path(path_type=Path)
"""A file or folder. Whether it is there is for the command to say, in words that help."""


class CommaList(click.ParamType[tuple[object, ...]]):
    """Values between commas, such as 4,8,16.

    >>> CommaList(int).convert("4,8", None, None)
    (4, 8)
    """

    name = "list"

    def __init__(self, kind: Callable[[str], object]) -> None:
        self._kind = kind

    def convert(
        self, value: str | Sequence[object], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[object, ...]:
        """Return the values."""
        if not isinstance(value, str):
            return tuple(value)
        try:
            return tuple(self._kind(part) for part in value.split(","))
        except ValueError:
            return self.fail(f"it must be values between commas, got {value!r}", param, ctx)


_Function = TypeVar("_Function", bound=Callable[..., Any])


def state_option(whose: str, default: Path | None = None) -> Callable[[_Function], _Function]:
    """Return ``--state``: the folder in which a role keeps its keys and what it remembers."""
    needed: dict[str, Any] = {"required": True} if default is None else {"default": default}
    return click.option("--state", type=FILE, metavar="DIR", help=f"The {whose}'s state folder.", **needed)


def config_options(whose: str = "") -> Callable[[_Function], _Function]:
    """Return ``--config`` and ``--set``, which reach the command as ``config_file`` and ``overrides``."""

    def decorate(function: _Function) -> _Function:
        setting = click.option(
            "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Replace one setting; repeatable."
        )
        file = click.option(
            "--config", "config_file", type=FILE, default=CONFIG_FILE, show_default=CONFIG_FILE.name, metavar="FILE",
            help=f"Settings{whose and ' of ' + whose}.",
        )  # fmt: skip
        return file(setting(function))

    return decorate


def json_file_option() -> Callable[[_Function], _Function]:
    """Return ``--json FILE``, which reaches the command as ``json_file``."""
    return click.option("--json", "json_file", type=FILE, metavar="FILE", help="Write the figures here too, as JSON.")


def log_format_option() -> Callable[[_Function], _Function]:
    """Return ``--log-format``, which the processes that a command starts inherit; it reaches the command by no name."""

    def remember(_ctx: click.Context, _option: click.Parameter, value: str | None) -> None:
        if value is not None:
            os.environ[FORMAT_VARIABLE] = value

    return click.option(
        "--log-format", type=click.Choice([each.value for each in LogFormat]), callback=remember, expose_value=False,
        show_default=f"{FORMAT_VARIABLE}, else text", help="Lines for people, or one JSON object a line.",
    )  # fmt: skip


def json_option() -> Callable[[_Function], _Function]:
    """Return ``--json``, for commands whose whole answer is one; it reaches them as ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def out_option(default: Path | None = None, shown: str = "", help: str = "") -> Callable[[_Function], _Function]:  # noqa: A002
    """Return ``--out``: where a command writes."""
    return click.option("--out", type=FILE, default=default, show_default=shown or True, metavar="DIR", help=help)


def chain_option() -> Callable[[_Function], _Function]:
    """Return ``--chain``: the audit chains of a run's hospitals."""
    return click.option(
        "--chain", multiple=True, type=FILE, show_default="those beside the run", metavar="FILE",
        help="A hospital's audit chain, audit.jsonl; repeatable.",
    )  # fmt: skip


def authority_option() -> Callable[[_Function], _Function]:
    """Return ``--authority``: what all trust in a run comes from."""
    return click.option(
        "--authority",
        type=FILE,
        show_default="the one beside the run",
        metavar="FILE",
        help="The consortium's certificate, ca.pem.",
    )
