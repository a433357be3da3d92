"""How every role writes its log: lines for a person, or one JSON object a line for a collector.

``--log-format`` of ``confide server`` and ``confide hospital join`` chooses, or the variable CONFIDE_LOG_FORMAT, which
the processes of a role inherit.
"""

import datetime
import json
import logging
import os
import sys
from collections.abc import Mapping

from common.telemetry.log_format import FORMAT_VARIABLE, LogFormat

_FACTS = "facts"
_TEXT = "%(asctime)s %(levelname)s %(message)s"


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and the facts that a message was told with."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, object] = {
            "time": datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        facts = getattr(record, _FACTS, None)
        if isinstance(facts, Mapping):
            line.update({key: value for key, value in facts.items() if key not in line})
        if record.exc_info is not None:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def with_facts(**facts: object) -> dict[str, Mapping[str, object]]:
    """Return what a logger takes as ``extra``, so that a collector need not read a sentence for its figures."""
    return {_FACTS: facts}


def begin_logging(environment: Mapping[str, str] = os.environ) -> None:
    """Let this process log on standard error as its role was told to; an unknown format is that for people."""
    handler = logging.StreamHandler(sys.stderr)
    is_json = environment.get(FORMAT_VARIABLE) == LogFormat.JSON
    handler.setFormatter(JsonLines() if is_json else logging.Formatter(_TEXT))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
