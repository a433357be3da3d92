"""The command line: its list, its help, its completion, and what it says to words that mean nothing."""

import subprocess
import sys
from collections.abc import Iterator

import click
import pytest
from click.shell_completion import ShellComplete

from deploy import cli
from deploy.command import WIDTH, CommaList, Command, CommandGroup
from deploy.source_tree import ROOT


def _walk(
    command: click.Command, context: click.Context, words: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command, click.Context]]:
    yield words, command, context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            inside = click.Context(inner, parent=context, info_name=name, **inner.context_settings)
            yield from _walk(inner, inside, (*words, name))


@pytest.fixture(scope="module")
def commands() -> list[tuple[tuple[str, ...], click.Command, click.Context]]:
    root = cli.LazyGroup()
    return list(_walk(root, click.Context(root, info_name=cli.PROGRAM, **root.context_settings)))


def test_the_list_is_of_commands_that_exist(
    commands: list[tuple[tuple[str, ...], click.Command, click.Context]],
) -> None:
    found = {words: command for words, command, _ in commands}
    for entry in cli.COMMANDS:
        assert isinstance(found[entry.words], Command | CommandGroup)
        assert found[entry.words].name == entry.words[-1]


def test_every_help_fits_80_columns_and_holds_no_markup(
    commands: list[tuple[tuple[str, ...], click.Command, click.Context]],
) -> None:
    for words, command, context in commands:
        for line in command.get_help(context).splitlines():
            assert len(line) <= WIDTH, (words, line)
            assert "`" not in line, (words, line)


def test_every_command_shows_an_example_that_runs_it_and_explains_every_option(
    commands: list[tuple[tuple[str, ...], click.Command, click.Context]],
) -> None:
    for words, command, context in commands:
        if isinstance(command, cli.LazyGroup):
            continue
        assert isinstance(command, Command | CommandGroup)
        if words != ("dev", "test"):  # The same as ./confide test, which people read in the README.
            assert command.example.startswith(f"./confide {words[0]}"), words
        assert words[-1] in command.example, words
        assert command.example.splitlines()[0] in command.get_help(context)
        for option in command.params:
            assert not isinstance(option, click.Option) or option.help, (words, option.name)


def test_a_default_is_shown_without_a_path_of_this_machine(
    commands: list[tuple[tuple[str, ...], click.Command, click.Context]],
) -> None:
    helps = {words: command.get_help(context) for words, command, context in commands}
    assert "[default: 9092]" in helps["server",]
    for words, text in helps.items():
        assert str(ROOT) not in text.replace("\n", ""), words


def test_commands_stand_under_who_runs_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    shown = capsys.readouterr().out
    titles = ["A hospital:", "A consortium:", "Results of a run:", "Evidence:", "Development:"]
    assert sorted(titles, key=shown.index) == titles
    assert shown.index("A hospital:") < shown.index("hospital join") < shown.index("A consortium:")
    assert "bench" not in shown.partition("Development:")[0]


def test_help_of_a_group_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["dev", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "bench secagg" in shown
    assert "hospital join" not in shown


def test_a_group_without_a_command_shows_its_help_as_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["hospital"]) == cli.EXIT_ERROR
    told = capsys.readouterr()
    assert told.out == ""
    assert "check-data" in told.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["bogus"], "unknown command 'bogus'; see ./confide --help"),
        (["bench", "secagg"], "unknown command 'bench', there is ./confide dev bench; see"),
        (["hospital", "leave"], "unknown command 'hospital leave'; see ./confide hospital --help"),
        (["server"], "Missing option '--state'; see ./confide server --help"),
        (["hospital", "status", "--bogus"], "No such option '--bogus'"),
        (["load", "--hospitals", "4,many"], "it must be values between commas, got '4,many'"),
        (["load", "--rounds", "many"], "'many' is not a valid integer"),
    ],
)
def test_words_that_mean_nothing_are_one_line_and_an_error(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == cli.EXIT_ERROR
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("confide: ")
    assert said in told.err
    assert told.err.count("\n") == 1


def test_what_a_command_refuses_is_one_line_and_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["audit", "verify", "/nowhere"]) == cli.EXIT_ERROR
    told = capsys.readouterr().err
    assert told.startswith("confide: ")
    assert told.count("\n") == 1


def test_the_version_is_the_projects(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    version = capsys.readouterr().out.removeprefix("confide ").strip()
    assert f'version = "{version}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_a_shell_completes_commands_and_options() -> None:
    class Silent(ShellComplete):
        name = "silent"

    complete = Silent(cli.LazyGroup(), {}, cli.PROGRAM, "_CONFIDE_COMPLETE").get_completions
    assert [item.value for item in complete([], "hos")] == ["hospital"]
    assert "ledger" in [item.value for item in complete(["hospital"], "")]
    assert [item.value for item in complete(["server"], "--addr")] == ["--address"]


_WITHOUT_HEAVY_IMPORTS = """
import sys
from deploy import cli
assert cli.main({words}) == 0
heavy = {{"torch", "flwr", "numpy", "cryptography", "pydantic", "rich"}} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.mark.parametrize("words", [["--help"], ["hospital", "--help"], ["--version"]])
def test_help_imports_no_command(words: list[str]) -> None:
    code = _WITHOUT_HEAVY_IMPORTS.format(words=words)
    done = subprocess.run((sys.executable, "-c", code), cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_list_of_commands_is_no_program_and_says_which_is() -> None:
    command = (sys.executable, "-m", "deploy.cli", "demo")
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stdout == ""
    assert done.stderr == "confide: this module is no program; call ./confide, or python -m deploy\n"


def test_a_list_takes_values_between_commas() -> None:
    assert CommaList(float).convert("1,3,8", None, None) == (1.0, 3.0, 8.0)
    with pytest.raises(click.BadParameter, match="between commas"):
        CommaList(int).convert("1;3", None, None)
