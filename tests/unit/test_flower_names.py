"""How much of Flower's inside we hold: decision 001 counts it truthfully, and the count can only fall."""

import ast
import importlib.util
import re
from functools import cache
from pathlib import Path

from deploy.source_tree import ROOT
from tests.support.sources import sources, text_of, tree_of

MOST = 70
"""Lower it when a name goes; a name that comes needs another to go."""

PUBLIC = ("flwr.app", "flwr.serverapp")
"""What Flower documents for applications."""

HOLDS = re.compile(r"flwr|replace_in|require_used|set_default")
"""A file without any of these knows nothing of Flower's."""

PAGE = ROOT / "docs" / "decisions" / "001-flower-1.39.md"


def _bound(tree: ast.AST) -> dict[str, str]:
    """Return what each name of a file stands for, where that is something of Flower's."""
    bound: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flwr"):
            bound |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            bound |= {alias.asname or alias.name: alias.name for alias in node.names if alias.name.startswith("flwr")}
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            target, given = node.targets[0], next(iter(node.value.args), None)
            if (
                isinstance(target, ast.Name)
                and isinstance(given, ast.Constant)
                and str(given.value).startswith("flwr.")
            ):
                bound[target.id] = str(given.value)
    return bound


def _dotted(node: ast.AST, bound: dict[str, str]) -> str | None:
    """Return ``module.name`` for ``x.name``, ``vars(x)["name"]`` and ``x`` itself, where x is a thing of Flower's."""
    match node:
        case ast.Name(id=name):
            return bound.get(name)
        case ast.Attribute(value=inner, attr=name):
            place = _dotted(inner, bound)
        case ast.Subscript(value=ast.Call(func=ast.Name(id="vars"), args=[inner]), slice=ast.Constant(value=str(name))):
            place = _dotted(inner, bound)
        case _:
            return None
    return None if place is None else f"{place}.{name}"


@cache
def _is_module(dotted: str) -> bool:
    try:
        return importlib.util.find_spec(dotted) is not None
    except ModuleNotFoundError:
        return False


def names(path: Path) -> set[str]:
    """Return what one file knows of Flower's inside: what it imports, takes from modules, replaces, and checks."""
    if not HOLDS.search(text_of(path)):
        return set()
    tree = tree_of(path)
    bound = _bound(tree)
    known = {name for name in bound.values() if not _is_module(name)}
    for node in ast.walk(tree):
        dotted = _dotted(node, bound)
        if dotted is not None:
            parts = dotted.split(".")
            module = next(end for end in range(len(parts), 0, -1) if _is_module(".".join(parts[:end])))
            private = next((end for end in range(module, len(parts)) if parts[end].startswith("_")), module)
            known |= {".".join(parts[: private + 1])} if len(parts) > module else set()
        match node:
            case ast.Call(
                func=ast.Name(id="replace_in" | "require_used"), args=[place, ast.Constant(value=str(name)), *_]
            ):
                known.add(f"{_dotted(place, bound) or ast.unparse(place)}.{name}")
    public = tuple(f"{name}." for name in PUBLIC)
    return {name for name in known if not name.startswith(public)}


@cache
def found() -> dict[str, set[str]]:
    """Return for each file of ours what it knows of Flower's inside, where it knows any."""
    by_file = {str(path.relative_to(ROOT)): names(path) for path in sources()}
    return {name: known for name, known in by_file.items() if known}


def test_decision_001_counts_the_private_names_and_the_count_only_falls() -> None:
    known = found()
    count = len(set().union(*known.values()))
    told = re.search(r"\*\*(\d+) private names\*\* in (\d+) files", PAGE.read_text(encoding="utf-8"))
    assert told is not None
    assert (int(told[1]), int(told[2])) == (count, len(known)), sorted(set().union(*known.values()))
    assert count == MOST


def test_private_names_stand_where_decision_001_says() -> None:
    elsewhere = {name for name in found() if not name.startswith(("client/flower/", "server/flower/"))}
    assert not elsewhere


def test_a_new_private_name_is_counted(tmp_path: Path) -> None:
    file = tmp_path / "flower" / "new.py"
    file.parent.mkdir()
    file.write_text(
        "from flwr.app import Message\n"
        "from flwr.supercore.grpc import generic_create_grpc_server\n"
        "import importlib\n"
        "grid = importlib.import_module('flwr.superlink.grid.http_grid')\n"
        "replace_in(grid, 'push_objects', None, used_by=grid.HttpGrid._try_push_messages)\n"
    )
    assert names(file) == {
        "flwr.supercore.grpc.generic_create_grpc_server",
        "flwr.superlink.grid.http_grid.push_objects",
        "flwr.superlink.grid.http_grid.HttpGrid",
        "flwr.superlink.grid.http_grid.HttpGrid._try_push_messages",
    }
