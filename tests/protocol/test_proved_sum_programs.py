"""Each stored program of proved sums gives, step by step, the hashes or the named refusal stored with it."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.protocol.proved_sum_programs import FOLDER, Player, as_text, programs

FILES = sorted(FOLDER.glob("*.json"), key=lambda path: path.stem)


def stored(path: Path) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(path.read_bytes())
    return tree


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_program_gives_what_is_stored_with_it(path: Path) -> None:
    program = stored(path)
    player = Player(program["setting"])
    for number, step in enumerate(program["steps"]):
        assert player.step(step) == step["expected"], f"step {number}: {step['do']}"


def test_the_stored_programs_are_those_that_the_script_writes() -> None:
    made = programs()
    assert [path.stem for path in FILES] == sorted(made)
    for path in FILES:
        assert as_text(made[path.stem]).encode() == path.read_bytes()


def test_every_program_but_the_honest_ones_ends_in_a_refusal_and_those_are_of_many_kinds() -> None:
    last = {path.stem: stored(path)["steps"][-1]["expected"] for path in FILES}
    honest = {name for name, outcome in last.items() if "refuses" not in outcome}
    assert honest == {name for name in last if name.startswith("honest-")} | {"sealed-opens"}
    assert len({outcome["refuses"] for outcome in last.values() if "refuses" in outcome}) >= 7


def test_a_randomness_that_is_changed_in_a_stored_program_is_found_out() -> None:
    program = stored(FOLDER / "honest-3-hospitals-16-bits.json")
    program["steps"][0]["randomness"] = "00" * 32
    assert Player(program["setting"]).step(program["steps"][0]) != program["steps"][0]["expected"]
