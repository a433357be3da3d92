"""No class name has two meanings."""

import ast
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from deploy.source_tree import ROOT
from tests.support.sources import sources, tree_of


def public_classes(root: Path, files: Iterable[Path]) -> dict[str, list[str]]:
    """Return, by name, the modules that define a public class of that name."""
    found = defaultdict(list)
    for path in files:
        for node in tree_of(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(str(path.relative_to(root)))
    return found


def test_no_two_public_classes_have_the_same_name() -> None:
    classes = public_classes(ROOT, sources())
    assert len(classes) > 200
    assert {name: modules for name, modules in classes.items() if len(modules) > 1} == {}


def test_a_name_with_two_meanings_is_found(tmp_path: Path) -> None:
    for package in ("common", "server"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "a.py").write_text("class Entry: ...\nclass _Line: ...\n")
    assert public_classes(tmp_path, sorted(tmp_path.rglob("*.py"))) == {"Entry": ["common/a.py", "server/a.py"]}
