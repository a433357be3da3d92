"""Each text that the troubleshooting page quotes is one that the program says."""

import ast
import re
from collections.abc import Iterator
from functools import cache

import pytest

from deploy.source_tree import ROOT
from tests.support.sources import sources, tree_of

PAGE = ROOT / "docs" / "troubleshooting.md"

ANYTHING = "…"
"""Stands for what an f-string fills in, and for what the page leaves out."""


def quoted() -> list[str]:
    """Return the first cell of each row of the page's tables."""
    rows = re.findall(r"^\| `([^`]+)` \|", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return list(rows)


@cache
def said() -> tuple[str, ...]:
    """Return every string of the source but its documentation, with :data:`ANYTHING` where something is filled in."""
    texts = [(ROOT / "confide").read_text(encoding="utf-8")]
    for path in sources():
        texts += _strings(tree_of(path))
    return tuple(" ".join(text.split()) for text in texts)


def _strings(tree: ast.AST) -> Iterator[str]:
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if id(node) in documentation:
            continue
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else ANYTHING for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r"%[.\d]*[a-z]", ANYTHING, node.value)


def is_said(words: str, texts: tuple[str, ...]) -> bool:
    return any(words in text for text in texts)


@pytest.mark.parametrize("words", quoted())
def test_every_quoted_error_is_one_that_the_program_says(words: str) -> None:
    assert is_said(words, said())


def test_the_page_quotes_errors_and_words_that_nobody_says_are_found() -> None:
    assert len(quoted()) > 40
    assert not is_said("the disk must be … round", said())
