"""The command line: names every command by who runs it, and imports only what the chosen one needs."""

import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from common.errors import ConfideError
from common.hosts import past_proxies
from deploy.command import SETTINGS, write_example
from deploy.source_tree import ROOT

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130

PROGRAM = "confide"
"""Also what a shell completes."""


@dataclass(frozen=True)
class Entry:
    """A command of the list.

    Attributes:
        words: what chooses it.
        place: the module that holds it, and its name there.
        summary: one line of help, known without an import.
    """

    words: tuple[str, ...]
    place: str
    summary: str


@dataclass(frozen=True)
class Section:
    """Commands that the same people run; those of an unlisted one are shown by the help of their group alone."""

    title: str
    entries: tuple[Entry, ...]
    listed: bool = True


def _entry(words: str, place: str, summary: str) -> Entry:
    return Entry(tuple(words.split()), place if ":" in place else f"{place}:main", summary)


SECTIONS = (
    Section(
        "To try it out",
        (_entry("demo", "deploy.demo.demo", "run the whole system on this machine"),),
    ),
    Section(
        "A hospital",
        (
            _entry("hospital fetch", "deploy.hospital.fetch", "take studies from the hospital's own PACS"),
            _entry("hospital list-images", "deploy.hospital.list_images", "begin a manifest from a PACS export"),
            _entry("hospital check-data", "deploy.hospital.check_data", "check the images before privacy is spent"),
            _entry("hospital join", "deploy.hospital.join", "join a consortium and take part"),
            _entry("hospital runs", "deploy.hospital.runs:runs", "show the runs that are proposed, and what they cost"),
            _entry("hospital approve", "deploy.hospital.runs:approve", "agree to a run that is proposed"),
            _entry("hospital decline", "deploy.hospital.runs:decline", "decline a run that is proposed"),
            _entry("hospital status", "deploy.hospital.status", "show how the hospital stands"),
            _entry("hospital console", "deploy.console.hospital", "show that in a browser, and answer proposals there"),
            _entry("hospital policy", "deploy.hospital.policy", "show or change what the hospital agrees to"),
            _entry("hospital report", "deploy.hospital.report", "show how good the model is on its own records"),
            _entry("hospital model", "deploy.hospital.model", "show the models of finished runs that are kept here"),
            _entry("hospital shadow", "deploy.hospital.shadow", "compare a silent trial's answers with reports"),
            _entry("hospital ledger", "deploy.hospital.ledger", "show or verify what the hospital has spent"),
        ),
    ),
    Section(
        "A consortium",
        (
            _entry("server", "deploy.consortium.server", "run the server that hospitals join"),
            _entry("status", "deploy.consortium.status", "show how the server stands"),
            _entry("console", "deploy.console.consortium", "show that in a browser, and start or stop runs there"),
            _entry("run propose", "deploy.consortium.runs:propose", "propose a run to the hospitals"),
            _entry("run list", "deploy.consortium.runs:list_runs", "show all runs of a server"),
            _entry("run show", "deploy.consortium.runs:show", "show one run, and what hospitals answered"),
            _entry("run start", "deploy.consortium.runs:start", "let a run begin that was held back"),
            _entry("run stop", "deploy.consortium.runs:stop", "end a run after its round"),
            _entry("run resume", "deploy.consortium.runs:resume", "let a stopped or failed run go on"),
            _entry("invite", "deploy.consortium.members:invite", "print an invitation for a hospital"),
            _entry("revoke", "deploy.consortium.members:revoke", "cut a hospital off"),
            _entry("ca", "deploy.consortium.authority", "run the certificate authority on files alone"),
            _entry("certs", "deploy.consortium.certs", "show what lies in certs/, or begin it"),
            _entry("privacy plan", "deploy.consortium.privacy_plan", "say which noise an ε needs before a run"),
        ),
    ),
    Section(
        "A model of your own",
        (
            _entry("model hash", "deploy.models.hash", "print by which hash hospitals accept a package or a file"),
            _entry("model check", "deploy.models.check", "try a model: gradients, memory, seconds and ε of a round"),
            _entry("model initial", "deploy.models.initial", "make the first weights of a package's model"),
        ),
    ),
    Section(
        "Results of a run",
        (
            _entry("report", "deploy.results.report", "write a report and a model card"),
            _entry("dashboard", "deploy.results.dashboard", "follow a run in a browser"),
            _entry("statistics", "deploy.results.statistics", "show who a run trains on, in noisy counts"),
            _entry("predict", "deploy.results.predict", "classify images with a trained model"),
            _entry("export", "deploy.results.export", "write the model as ONNX, or as a MONAI bundle"),
        ),
    ),
    Section(
        "Evidence",
        (
            _entry("evidence", "deploy.audit.evidence", "pack all that an outsider needs to judge a run"),
            _entry("audit verify", "deploy.audit.verify", "check that audit chains and model agree"),
            _entry("audit privacy", "deploy.attacks.privacy", "try to refute the ε that is claimed"),
            _entry("audit inversion", "deploy.attacks.inversion", "try to see images in what a server gets"),
            _entry("experiment accuracy", "deploy.experiment.accuracy", "measure accuracy on real images"),
            _entry("experiment baselines", "deploy.experiment.baselines", "compare every way to train"),
            _entry("experiment privacy", "deploy.experiment.privacy", "measure what privacy costs"),
            _entry("experiment poisoning", "deploy.experiment.poisoning", "measure what flipped labels cost"),
            _entry("chaos", "deploy.resilience.chaos", "kill processes at random and see what survives"),
            _entry("load", "deploy.resilience.load", "measure one server against many hospitals"),
            _entry("soak", "deploy.resilience.soak", "let a deployment run and see whether it grows"),
        ),
    ),
    Section(
        "Development",
        (_entry("test", "deploy.development.checks:test", "run the static checks and the tests"),),
    ),
    Section(
        "Development",
        (
            _entry("dev check", "deploy.development.checks:check", "run the static checks alone"),
            _entry("dev test", "deploy.development.checks:test", "run the static checks and the tests"),
            _entry("dev fuzz", "tests.fuzz.fuzz", "feed every decoder with bad bytes"),
            _entry("dev bench secagg", "tests.benchmarks.bench_secagg", "measure masking against Flower's"),
            _entry("dev bench sums", "tests.benchmarks.bench_sums", "measure a proved sum against its masks"),
            _entry("dev bench cheats", "tests.benchmarks.bench_cheats", "measure what a bound and a cheat cost in AUC"),
            _entry(
                "dev bench alone", "tests.benchmarks.bench_alone", "measure what a run says of joining, and its cost"
            ),
            _entry(
                "dev bench spread", "tests.benchmarks.bench_spread", "measure what quartiles of hospitals are worth"
            ),
            _entry("dev bench published", "tests.benchmarks.bench_published", "train MedMNIST's own baseline here"),
            _entry("dev bench disputes", "tests.benchmarks.bench_disputes", "measure a round with a dispute"),
            _entry("dev bench round", "tests.benchmarks.bench_round", "measure a deployed round with masks"),
            _entry("dev bench wire", "tests.benchmarks.bench_wire", "measure a round between hosts, masked and plain"),
            _entry("dev bench peers", "tests.benchmarks.bench_peers", "measure a round beside Flower's and NVIDIA's"),
            _entry("dev bench dp", "tests.benchmarks.bench_dp", "measure a private training step"),
            _entry("dev bench data", "tests.benchmarks.bench_data", "measure the check of a hospital's images"),
            _entry("dev bench evaluation", "tests.benchmarks.bench_evaluation", "measure noisy evaluation"),
        ),
        listed=False,
    ),
)

GROUPS = {
    ("hospital",): "What a hospital does.",
    ("run",): "The runs of a running server, from a proposal to their end.",
    ("privacy",): "What privacy costs, before a run.",
    ("model",): "Models from outside: a package that hospitals install, or a backbone's file.",
    ("audit",): "Whether a run did what it claims.",
    ("experiment",): "What convinces: measurements on real images.",
    ("dev",): "What only developers of Confide need: checks, fuzzing, benchmarks.",
    ("dev", "bench"): "What masks, privacy and checks cost, as ratios to named baselines.",
}

COMMANDS = tuple(entry for section in SECTIONS for entry in section.entries)


class LazyGroup(click.Group):
    """Commands by name; the module of one is imported when it is run, and for nothing else.

    Args:
        words: what chooses this group; empty for the root.
    """

    def __init__(self, words: tuple[str, ...] = ()) -> None:
        super().__init__(
            words[-1] if words else PROGRAM,
            help=GROUPS.get(words, _WHAT),
            context_settings=SETTINGS,
            subcommand_metavar="COMMAND [ARGS]...",
            params=[] if words else [_version_option()],
        )
        self._words = words

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - as in click
        """Return the next word of each command of this group, in the order of the list."""
        depth = len(self._words)
        return list(dict.fromkeys(entry.words[depth] for entry in self._inside()))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - as in click
        """Return a group, or import a command."""
        words = (*self._words, cmd_name)
        if words in GROUPS:
            return LazyGroup(words)
        for entry in COMMANDS:
            if entry.words == words:
                module, _, name = entry.place.partition(":")
                chosen = getattr(importlib.import_module(module), name)
                if not isinstance(chosen, click.Command):
                    raise TypeError(f"{entry.place} must be a command of click")
                return chosen
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that a word names; of an unknown one, say where a command of that name is."""
        if args[0] not in self.list_commands(ctx) and not args[0].startswith("-") and not ctx.resilient_parsing:
            raise click.UsageError(_unknown((*self._words, args[0])), ctx)
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list["CompletionItem"]:
        """Complete a command's name from the list, importing no command."""
        from click.shell_completion import CompletionItem

        words = [CompletionItem(name) for name in self.list_commands(ctx) if name.startswith(incomplete)]
        return [*words, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - as in click
        """Write the list by who runs what, importing no command."""
        for section in SECTIONS:
            rows = [
                (" ".join(entry.words[len(self._words) :]), entry.summary)
                for entry in section.entries
                if entry in self._inside() and (section.listed or self._words)
            ]
            if not self._words and section.entries[0].words == ("test",):
                rows.append(("dev", "more for developers: checks, fuzzing, benchmarks"))
            if rows:
                with formatter.section(section.title):
                    formatter.write_dl(rows)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - as in click
        """Write how to go on."""
        if not self._words:
            write_example("./confide demo\n./confide hospital join --help", formatter)

    def _inside(self) -> tuple[Entry, ...]:
        return tuple(entry for entry in COMMANDS if entry.words[: len(self._words)] == self._words)


_WHAT = (
    "Hospitals train one medical-image classifier together; no image, no gradient and no single hospital's model "
    "leaves a hospital."
)


def main(argv: Sequence[str]) -> int:
    """Run one command; returns its exit code.

    What a person can cause (a wrong key, a missing file, a full disk) is one line on standard error and code 2.
    """
    os.environ.update(past_proxies(os.environ))
    try:
        return int(LazyGroup().main(list(argv) or ["--help"], prog_name=PROGRAM, standalone_mode=False) or 0)
    except ConfideError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
    except click.ClickException as error:
        print(f"{PROGRAM}: {_one_line(error)}", file=sys.stderr)
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    return EXIT_ERROR


def _one_line(error: click.ClickException) -> str:
    """Return what is wrong with the words given, and where their help is."""
    message = " ".join(error.format_message().split()).rstrip(".")
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is None:
        return message
    return f"{message}{'' if message.endswith('?') else ';'} see ./{context.command_path} --help"


def _unknown(words: tuple[str, ...]) -> str:
    """Return what to say of a command that there is none of."""
    elsewhere = [
        entry.words[: place + 1] for entry in COMMANDS for place, word in enumerate(entry.words) if word == words[-1]
    ]
    also = "".join(f", there is ./{PROGRAM} {' '.join(found)}" for found in dict.fromkeys(elsewhere))
    return f"unknown command {' '.join(words)!r}{also}"


def _version_option() -> click.Option:
    return click.Option(
        ("--version",), is_flag=True, is_eager=True, expose_value=False, callback=_say_version,
        help="Print the version of Confide.",
    )  # fmt: skip


def _say_version(ctx: click.Context, _option: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        import tomllib

        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        click.echo(f"{PROGRAM} {project['version']}")
        ctx.exit()


if __name__ == "__main__":
    # Run as a program this module would be there twice, as itself and as what every command imports.
    sys.exit(f"{PROGRAM}: this module is no program; call ./{PROGRAM}, or python -m deploy")
