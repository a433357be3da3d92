"""A log is for people, or one JSON object a line with the figures beside the words."""

import json
import logging

from common.telemetry.logs import JsonLines, with_facts


def record(message: str, *arguments: object, **facts: object) -> logging.LogRecord:
    made = logging.getLogger("confide.server").makeRecord(
        "confide.server", logging.INFO, "file", 1, message, arguments, None, extra=with_facts(**facts)
    )
    made.created = 0.0
    return made


def test_a_line_is_one_object_with_its_facts() -> None:
    line = JsonLines().format(record("run %s, round %d", "ab", 3, run="ab", round=3, epsilon=1.5))
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "1970-01-01T00:00:00.000+00:00", "level": "INFO", "logger": "confide.server",
        "message": "run ab, round 3", "run": "ab", "round": 3, "epsilon": 1.5,
    }  # fmt: skip


def test_words_from_elsewhere_cannot_begin_another_line_or_replace_a_fact() -> None:
    line = JsonLines().format(record("refused: %s", 'no\n{"level": "x"}', level="forged"))
    assert line.count("\n") == 0
    assert json.loads(line)["level"] == "INFO"


def test_an_exception_is_part_of_its_line() -> None:
    made = record("answering failed")
    try:
        int("bad")
    except ValueError as error:
        made.exc_info = (ValueError, error, error.__traceback__)
    assert "ValueError: invalid literal" in json.loads(JsonLines().format(made))["exception"]
