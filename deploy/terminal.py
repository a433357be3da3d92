"""What commands say to a person, in lines of 80 columns: sentences, and facts in two columns.

A pipe gets the same lines as a terminal, because mail and logs are read in windows of that width too. A word that is
longer, such as a path, is never broken: it must stay whole to be copied.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from textwrap import wrap

from deploy.command import WIDTH

LABEL_COLUMNS = 16
"""The columns of a fact's name."""


@dataclass(frozen=True)
class Fact:
    """A name and what is so; a fact without a name goes on with the one before it."""

    label: str
    words: str


def filled(words: str, indent: str = "") -> str:
    """Return a sentence in lines of 80 columns; those after the first begin with ``indent``.

    >>> print(filled("run: " + 12 * "word " + "/a/path/of/some/length", "  "))
    run: word word word word word word word word word word word word
      /a/path/of/some/length
    """
    return "\n".join(_wrapped(words, "", indent)) or words


def indented(words: str) -> str:
    """Return a sentence that belongs under the line before it."""
    return "\n".join(_wrapped(words, "     ", "     "))


def fact_lines(facts: Iterable[Fact], *, whole_words: bool = True) -> Iterator[str]:
    """Return facts as lines, the words wrapped under their own column.

    Args:
        facts: in their order.
        whole_words: False breaks a word that fits no line: where others chose the words, none may pass the margin.

    >>> list(fact_lines([Fact("server", "confide.example.org: hospitals can connect")]))
    ['server          confide.example.org: hospitals can connect']
    """
    for fact in facts:
        label = f"{fact.label:<{LABEL_COLUMNS - 1}} "
        yield from _wrapped(fact.words, label, " " * LABEL_COLUMNS, breaks=not whole_words) or [label.rstrip()]


def _wrapped(words: str, first: str, later: str, *, breaks: bool = False) -> list[str]:
    return wrap(
        words,
        WIDTH,
        initial_indent=first,
        subsequent_indent=later,
        break_long_words=breaks,
        break_on_hyphens=False,
    )
