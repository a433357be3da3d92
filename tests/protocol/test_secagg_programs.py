"""Each stored program of the secure aggregation gives, step by step, the bytes or the named refusal stored with it."""

import json
from pathlib import Path
from typing import Any

import pytest

from common.secagg.errors import SecAggError
from tests.protocol.secagg_programs import FOLDER, Player, as_text, programs, spelt_out

FILES = sorted(FOLDER.glob("*.json"), key=lambda path: path.stem)


def stored(path: Path) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(path.read_bytes())
    return {**tree, "steps": spelt_out(tree["steps"], tree["bytes"])}


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


def test_most_programs_end_in_a_refusal_and_those_are_of_many_kinds() -> None:
    outcomes = [step["expected"] for path in FILES for step in stored(path)["steps"]]
    codes = {outcome["refuses"] for outcome in outcomes if "refuses" in outcome}
    codes.update(code for outcome in outcomes for code in outcome.get("refused", {}).values())
    known = {kind.code for kind in _kinds(SecAggError)}
    assert codes <= known
    assert len(codes) >= 25, sorted(codes)


def _kinds(root: type[SecAggError]) -> set[type[SecAggError]]:
    return {root}.union(*(_kinds(kind) for kind in root.__subclasses__()))


def test_a_byte_that_is_changed_in_a_stored_program_is_found_out() -> None:
    program = stored(next(path for path in FILES if path.stem == "honest-two-exchanges"))
    program["setting"]["randomness"]["hospital-1"] = "00" * 600
    player = Player(program["setting"])
    assert any(player.step(step) != step["expected"] for step in program["steps"][:1])
