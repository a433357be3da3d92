"""In which form a role writes its log; see ``logs.py``. Apart from that, so that help need not import ``logging``."""

from enum import StrEnum

FORMAT_VARIABLE = "CONFIDE_LOG_FORMAT"


class LogFormat(StrEnum):
    """What a line of a log is."""

    TEXT = "text"
    JSON = "json"
