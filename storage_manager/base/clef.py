"""An event as text: one line of CLEF (strict JSON), or one line for people."""

from __future__ import annotations

import logging
import time
import traceback
from typing import Any, Optional

from storage_manager.base import quantity
from storage_manager.base.colour import BAD, DOUBTFUL, painted
from storage_manager.base.strict_json import compact, may_have_surrogates, sayable
from storage_manager.base.text import printable
from storage_manager.base.times import from_timestamp, parse_time

LOGGER_NAME = "storage_manager"

# The levels as text logs name them, and as CLEF does.
_NAMES = {level: logging.getLevelName(level) for level in (10, 20, 30, 40, 50)}
_CLEF_LEVELS = {logging.DEBUG: "Debug", logging.INFO: "Information", logging.WARNING: "Warning",
                logging.ERROR: "Error", logging.CRITICAL: "Fatal"}  # fmt: skip


class Event(logging.LogRecord):
    """A record with the fields of an event, made without what no event shows: the caller, the thread, the process.

    Finding those costs as much as the line itself, fifty thousand times in a large prune.
    """

    def __init__(
        self,
        level: int,
        event: str,
        message: str,
        fields: dict[str, object],
        constants: str = "",
        fault: Optional[BaseException] = None,
    ) -> None:
        """`constants`: fields that are the same in each event of a run, encoded already."""
        self.name = LOGGER_NAME
        self.levelno = level
        self.levelname = _NAMES[level]
        self.created = time.time()
        self.msg = message
        self.exc_info = None if fault is None else (type(fault), fault, fault.__traceback__)
        self.event = event
        self.fields = fields
        self.constants = constants
        self.clef: Optional[str] = None
        """The line, once it has been made: several handlers want the same one."""

    def getMessage(self) -> str:
        return str(self.msg)


class JsonFormatter(logging.Formatter):
    """CLEF: one strict JSON object on one line, whatever the fields hold."""

    _stamp = (-1, "")
    """The last second and its text, in one: threads may share a formatter."""

    def format(self, record: logging.LogRecord) -> str:
        assert isinstance(record, Event)
        line = record.clef
        if line is None:
            line = record.clef = self._line(record)
        return line

    def formatException(self, ei: Any) -> str:
        """The traceback; without its source lines where those cannot be read any more."""
        try:
            return super().formatException(ei)
        except Exception:  # noqa: BLE001  # an archive that was truncated while it runs: EOFError, UnicodeDecodeError
            places = (f"{frame.f_code.co_filename}:{line}" for frame, line in traceback.walk_tb(ei[2]))
            return "\n".join([*places, *traceback.format_exception_only(ei[0], ei[1])]).rstrip()

    def _line(self, record: Event) -> str:
        message, fields = record.msg, record.fields
        try:
            tail = compact(fields)
            text = compact(message)
            # A name with an @ in front is CLEF's own.
            if may_have_surrogates(tail) or may_have_surrogates(text) or '"@' in tail:
                raise ValueError
        except (TypeError, ValueError, RecursionError):
            tail = compact({_clef_name(name): sayable(value) for name, value in fields.items()})
            text = compact(sayable(message))
        head = f'{{"@t":"{self._time(record.created)}","@m":{text},"@l":"{_CLEF_LEVELS[record.levelno]}"'
        if record.exc_info:
            head += f',"@x":{compact(sayable(self.formatException(record.exc_info)))}'
        comma = "," if len(tail) > 2 else ""
        return f'{head},"event":"{record.event}"{record.constants}{comma}{tail[1:]}'

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
    """A line for people: time, level, sentence; of a session, size, age and group as well."""

    def __init__(self, has_colour: bool = False) -> None:
        super().__init__()
        self._has_colour = has_colour

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(record.created))
        level = f"{record.levelname:<7}"
        if self._has_colour and record.levelno >= logging.WARNING:
            level = painted(level, BAD if record.levelno >= logging.ERROR else DOUBTFUL)
        return f"{stamp} {level} {printable(record.getMessage())}{_session(record)}"


def _session(record: logging.LogRecord) -> str:
    """What an event about one session tells besides its sentence."""
    fields = getattr(record, "fields", {})
    created_at = parse_time(fields.get("created_at"))
    if created_at is None or "size_bytes" not in fields:
        return ""
    age = quantity.age(created_at, from_timestamp(record.created))
    told = [quantity.size(fields["size_bytes"]), age if created_at > from_timestamp(record.created) else f"{age} old"]
    group = fields.get("group")
    return f" ({', '.join(told + ([] if group is None else [f'group {printable(group, 40)}']))})"


def _clef_name(name: str) -> str:
    return "@" + name if name.startswith("@") else name
