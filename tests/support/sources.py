"""The product's source, read and parsed once for all tests that look at it."""

import ast
from functools import cache
from pathlib import Path

from deploy.source_tree import ROOT

PACKAGES = ("client", "common", "deploy", "server")


@cache
def sources() -> tuple[Path, ...]:
    """Return every Python file of the product."""
    return tuple(path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))


@cache
def text_of(path: Path) -> str:
    """Return a file's text."""
    return path.read_text(encoding="utf-8")


@cache
def tree_of(path: Path) -> ast.Module:
    """Return a file's syntax tree; whoever asks must not change it."""
    return ast.parse(text_of(path))
