"""The pages can be read: each pair of colours has the contrast that WCAG 2 asks of text, in light and in dark."""

import re
from pathlib import Path

import pytest

from deploy.console import pages

STYLE = (Path(pages.__file__).with_name("templates") / "style.css").read_text(encoding="utf-8")
ENOUGH = 4.5
PAIRS = (("ink", "paper"), ("ink", "head"), ("ink", "warm"), ("ink", "good"), ("blue", "paper"), ("blue", "warm"))


def themes() -> list[dict[str, str]]:
    return [dict(re.findall(r"--(\w+): (#[0-9a-f]+)", root)) for root in re.findall(r":root \{([^}]*)\}", STYLE)]


def luminance(colour: str) -> float:
    """Return WCAG's relative luminance of #rgb or #rrggbb."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("theme", themes(), ids=["light", "dark"])
def test_text_stands_out_in_every_theme(theme: dict[str, str]) -> None:
    assert {pair: round(contrast(theme[pair[0]], theme[pair[1]]), 1) for pair in PAIRS if
            contrast(theme[pair[0]], theme[pair[1]]) < ENOUGH} == {}  # fmt: skip


def test_contrast_is_that_of_wcag() -> None:
    assert contrast("#000", "#ffffff") == pytest.approx(21.0)
    assert contrast("#777777", "#fff") == pytest.approx(4.48, abs=0.01)
