"""Docstrings are whole sentences, and phrases that ``docs/style.md`` asks for no more do not come back."""

import re
from pathlib import Path

from deploy.source_tree import ROOT

PHRASES = re.compile(r"\bcomes to\b|\bcame to\b|\btells of\b|\bso long\b|\bthat is none\b")
DANGLING = re.compile(r'^\s*[rf]?"""Of .*$', re.MULTILINE)

STYLE_GUIDE = "docs/style.md"
"""It quotes the phrases."""


def sources() -> list[Path]:
    folders = ("client", "common", "server", "deploy", "tests")
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")) if path != Path(__file__)]


def pages() -> list[Path]:
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "common").rglob("*.md"), ROOT / "config.yaml"]
    return [path for path in found if path != ROOT / STYLE_GUIDE]


def test_no_docstring_begins_with_a_dangling_of() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {match[0].strip()}"
        for path in sources()
        for match in DANGLING.finditer(path.read_text(encoding="utf-8"))
    ]
    assert found == []
    assert DANGLING.search('LEAST = 3\n"""Of all."""\n') is not None


def test_no_page_and_no_source_uses_a_phrase_that_reads_like_a_translation() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in (*sources(), *pages())
        for match in PHRASES.finditer(path.read_text(encoding="utf-8"))
    ]
    assert found == []
    assert PHRASES.search("what it comes to") is not None
