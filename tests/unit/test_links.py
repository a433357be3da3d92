"""Every link from one page of this repository to another file of it leads somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

FOLDERS = ("certs", "client", "common", "deploy", "docs", "grafana", "server")

PAGES = sorted((*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))))

LINK = re.compile(r"\]\(([^)\s]+)\)")


def targets(text: str) -> list[str]:
    """Return what the links of a page lead to, without those to elsewhere and to a place in the page itself."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return [link.partition("#")[0] for link in LINK.findall(prose) if not re.match(r"[a-z]+:|#", link)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_file_leads_to_one_that_is_there(page: Path) -> None:
    missing = [target for target in targets(page.read_text(encoding="utf-8")) if not (page.parent / target).exists()]
    assert missing == []


def test_a_link_is_told_from_one_to_elsewhere() -> None:
    text = "[a](b.md#c) ![d](e.png) [f](https://example.org) [g](#h)\n```\n[i](j)\n```\n"
    assert targets(text) == ["b.md", "e.png"]
