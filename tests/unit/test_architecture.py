"""The calls that the page on architecture lists are in the files that it names."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def trips() -> list[tuple[str, str]]:
    """Return each call of the two trips with its file."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\|[^|]*\| `([a-z_/]+\.py)` \| ([^|]+) \|$", page, flags=re.MULTILINE)
    return [(file, call) for file, calls in rows for call in re.findall(r"`([A-Za-z_.]+)`", calls)]


def defined(file: str) -> set[str]:
    """Return the functions, classes and methods of a file, methods after their class."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    names = set[str]()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return names


@pytest.mark.parametrize(("file", "call"), [trip for trip in trips() if trip[1] != "distributed"])
def test_each_call_of_the_trips_is_in_the_file_that_the_page_names(file: str, call: str) -> None:
    assert call in defined(file)


def test_the_trips_are_read() -> None:
    assert len(trips()) > 30
