"""What decides a hospital's vector is bound: nothing else reaches the function that makes it. Read, not imported."""

import ast
from pathlib import Path

CONTRIBUTION = Path(__file__).parents[2] / "client" / "contribution.py"


def test_a_contribution_is_made_from_bound_things_alone() -> None:
    """The round and cohort are in the masks, the model by its hash in the terms, and the terms by their own."""
    tree = ast.parse(CONTRIBUTION.read_text(encoding="utf-8"))
    contributor = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Contributor")
    made = next(n for n in contributor.body if isinstance(n, ast.FunctionDef) and n.name == "contribute")
    taken = made.args
    positional = [arg.arg for arg in (*taken.posonlyargs, *taken.args)]
    assert positional == ["self", "round_number", "terms", "model"]
    assert [arg.arg for arg in taken.kwonlyargs] == ["cohort"]
    assert (taken.vararg, taken.kwarg) == (None, None)
