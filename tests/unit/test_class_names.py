"""No class name has two meanings."""

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]


def public_classes(root: Path) -> dict[str, list[str]]:
    """Return, by name, the modules that define a public class of that name."""
    found = defaultdict(list)
    for package in ("common", "client", "server", "deploy"):
        for path in sorted((root / package).rglob("*.py")):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    found[node.name].append(str(path.relative_to(root)))
    return found


def test_no_two_public_classes_have_the_same_name() -> None:
    classes = public_classes(ROOT)
    assert len(classes) > 200
    assert {name: modules for name, modules in classes.items() if len(modules) > 1} == {}


def test_a_name_with_two_meanings_is_found(tmp_path: Path) -> None:
    for package in ("common", "server"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "a.py").write_text("class Entry: ...\nclass _Line: ...\n")
    assert public_classes(tmp_path) == {"Entry": ["common/a.py", "server/a.py"]}
