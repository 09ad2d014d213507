"""An event as text: one line of CLEF (strict JSON), or one line for people."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any, Optional

from storage_manager.base.text import printable

LOGGER_NAME = "storage_manager"

# CLEF's names for the levels.
_CLEF_LEVELS = {logging.DEBUG: "Debug", logging.INFO: "Information", logging.WARNING: "Warning",
                logging.ERROR: "Error", logging.CRITICAL: "Fatal"}  # fmt: skip

_encode = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


class JsonFormatter(logging.Formatter):
    """CLEF: one strict JSON object on one line, whatever the fields hold."""

    _stamp = (-1, "")
    """The last second and its text, in one: threads may share a formatter."""

    def format(self, record: logging.LogRecord) -> str:
        """Made once for each record: several handlers want the same line."""
        line: Optional[str] = getattr(record, "clef", None)
        if line is None:
            line = record.clef = self._line(record)
        return line

    def _line(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        fields = getattr(record, "fields", {})
        try:
            tail = _encode(fields)
            text = _encode(message)
            # An escaped lone surrogate is JSON by its grammar, but strict readers refuse it; and a name with
            # an @ in front is CLEF's own.
            if "\\ud" in tail or "\\ud" in text or '"@' in tail:
                raise ValueError
        except (TypeError, ValueError, RecursionError):
            tail = _encode({_clef_name(name): _strict(value) for name, value in fields.items()})
            text = _encode(_strict(message))
        level = _CLEF_LEVELS.get(record.levelno, "Information")
        event = getattr(record, "event", record.name)
        head = f'{{"@t":"{self._time(record.created)}","@m":{text},"@l":"{level}"'
        if record.exc_info:
            head += f',"@x":{_encode(_strict(self.formatException(record.exc_info)))}'
        comma = "," if len(tail) > 2 else ""
        return f'{head},"event":"{event}"{getattr(record, "constants", "")}{comma}{tail[1:]}'

    def _time(self, created: float) -> str:
        second = int(created)
        known, text = self._stamp
        if second != known:
            try:
                text = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(second))
            except (OverflowError, ValueError, OSError):
                text = "1970-01-01T00:00:00."
            self._stamp = (second, text)
        return f"{text}{int((created - second) * 1e6):06d}Z"


class TextFormatter(logging.Formatter):
    """A line for people: time, level, sentence, and the fields that the sentence may not tell."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        return f"{stamp} {record.levelname:<7} {printable(record.getMessage())}"


def _clef_name(name: str) -> str:
    return "@" + name if name.startswith("@") else name


def _strict(value: Any, depth: int = 4) -> Any:
    """`value` as something that strict JSON can say."""
    if value is None or (isinstance(value, int) and abs(value) < 1 << 64):
        return value
    if isinstance(value, float):
        return value if abs(value) <= sys.float_info.max else str(value)
    if depth and isinstance(value, dict):
        return {_shown(key): _strict(item, depth - 1) for key, item in value.items()}
    if depth and isinstance(value, (list, tuple, set, frozenset)):
        return [_strict(item, depth - 1) for item in value]
    return _shown(value)


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    try:
        return printable(value, 1000)
    except Exception:  # noqa: BLE001  # an object whose text cannot be had; a log line must not fail over it
        return f"<{type(value).__name__}>"
