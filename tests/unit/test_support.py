"""What tests share lies in ``tests/support``, or belongs to a tool that has a folder of its own."""

import functools
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]

TOOLS = ("tests.support", "tests.fuzz", "tests.mutation", "tests.benchmarks")


IMPORT = re.compile(r"^\s*(?:from|import) (tests\b[\w.]*)(?: import (.+))?$", re.MULTILINE)


def imported(path: Path) -> set[str]:
    """Return the modules below ``tests`` that a file may import: a name that is imported may be one too."""
    modules = set[str]()
    for module, names in IMPORT.findall(path.read_text(encoding="utf-8")):
        modules |= {module, *(f"{module}.{name.strip()}" for name in names.split(",") if name)}
    return modules


@functools.cache
def importers(root: Path) -> dict[str, list[str]]:
    """Return, for each module below ``tests`` that others import, the files that import it."""
    found = defaultdict(list)
    for path in sorted((root / "tests").rglob("*.py")):
        for module in imported(path):
            if (root / Path(*module.split("."))).with_suffix(".py").exists():
                found[module].append(str(path.relative_to(root)))
    return found


def test_no_test_imports_another_test_file() -> None:
    found = importers(ROOT)
    assert len(found) > 30
    assert not {module: files for module, files in found.items() if module.rpartition(".")[2].startswith("test_")}


def test_what_several_test_files_share_lies_in_one_folder() -> None:
    shared = {module: files for module, files in importers(ROOT).items() if len(files) > 1}
    assert not {module: files for module, files in shared.items() if not module.startswith(TOOLS)}


def test_an_import_is_found_in_each_form(tmp_path: Path) -> None:
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "helper.py").write_text("")
    (folder / "test_a.py").write_text("from tests import helper\n")
    (folder / "test_b.py").write_text("import tests.helper\n")
    (folder / "test_c.py").write_text("def test() -> None:\n    from tests.helper import word\n")
    assert importers(tmp_path) == {"tests.helper": ["tests/test_a.py", "tests/test_b.py", "tests/test_c.py"]}
