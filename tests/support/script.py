"""A page's code block as the script of a test: chapters, and the lines that a person types, in their order."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

CHAPTER = re.compile(r"^## (?P<title>.+)$")


def chapters_of(page: Path, heading: str) -> dict[str, list[str]]:
    """Return the chapters of the one code block under a heading, each with its lines."""
    text = page.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2]
    block = text.partition("\n```\n")[2].partition("\n```")[0]
    chapters: dict[str, list[str]] = {}
    for line in filter(None, block.splitlines()):
        if (title := CHAPTER.match(line)) is not None:
            chapters[title["title"]] = []
        else:
            chapters[list(chapters)[-1]].append(line.partition("  #")[0].rstrip())
    return chapters


@dataclass
class Script:
    """The lines of one block, taken one after the other."""

    chapters: dict[str, list[str]]
    left: list[str] = field(default_factory=list)
    begun: list[str] = field(default_factory=list)

    def begin(self, words: str) -> None:
        """Begin the next chapter, whose title begins with these words; all of the last one must have been typed."""
        assert self.left == []
        title = list(self.chapters)[len(self.begun)]
        assert title.startswith(words), title
        self.begun.append(title)
        self.left = list(self.chapters[title])

    def line(self, words: str) -> str:
        """Return the next line, which begins with these words."""
        assert self.left, f"the chapter must have a line {words}"
        line = self.left.pop(0)
        assert line.startswith(words), f"the page's next line must be {words}, got {line}"
        return line

    def end(self) -> None:
        """Check that every chapter and every line has been typed."""
        assert self.left == []
        assert self.begun == list(self.chapters)


def filled_in(line: str, places: Mapping[str, str]) -> list[str]:
    """Return the words of a line with what the page leaves to its reader, the longest names first."""
    return [_filled(word, places) for word in shlex.split(line)]


def _filled(word: str, places: Mapping[str, str]) -> str:
    for name in sorted(places, key=len, reverse=True):
        if word == name or word.startswith(f"{name}/"):
            return places[name] + word[len(name) :]
    return word
