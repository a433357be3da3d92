"""Pages name files that are there, have one width, and number the decisions once each."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

FOLDERS = ("certs", "client", "common", "deploy", "docs", "grafana", "server", "tests")

PAGES = sorted((*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))))

DECISIONS = sorted((ROOT / "docs" / "decisions").glob("*.md"))

WIDTH = 120


def placed(text: str) -> list[str]:
    """Return what a page quotes as a path of this repository; an authority makes what lies in ``certs``."""
    quotes = re.findall(r"`([^`\s]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    paths = [quote for quote in quotes if re.fullmatch(rf"(?:{'|'.join(FOLDERS)})/[\w./-]*", quote)]
    return [path for path in paths if not path.startswith("certs/")]


def too_wide(text: str) -> list[str]:
    """Return the lines of prose that are wider than the one width; tables, code and lone links may be."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return [
        line for line in prose.splitlines() if len(line) > WIDTH and not line.startswith("|") and " " in line.strip()
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_that_a_page_quotes_is_there(page: Path) -> None:
    assert [path for path in placed(page.read_text(encoding="utf-8")) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_page_has_one_width(page: Path) -> None:
    assert too_wide(page.read_text(encoding="utf-8")) == []


def test_paths_and_wide_lines_are_found() -> None:
    assert placed("`common/x.py` and `./confide` and `certs/ca.key`\n```\n`client/y.py`\n```\n") == ["common/x.py"]
    assert too_wide(f"{'word ' * 30}\n| {'cell ' * 30} |\n```\n{'code ' * 30}\n```\n") == ["word " * 30]


def test_decisions_are_numbered_once_each_without_a_gap() -> None:
    assert [page.name[:4] for page in DECISIONS] == [f"{number:03}-" for number in range(1, len(DECISIONS) + 1)]


@pytest.mark.parametrize("page", DECISIONS, ids=lambda page: page.stem)
def test_a_decision_has_its_number_in_the_title_and_three_parts(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"# {page.name[:3]}: ")
    assert [part for part in ("**Context.**", "**Decision.**", "**Consequence.**") if part not in text] == []
