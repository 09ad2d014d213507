"""Events: one JSON object (CLEF) or one line of text each, to standard error and a rotated file.

Guarantees: logging never raises, and never blocks for long on a reader that has stopped reading (lines are
dropped and counted instead); JSON lines are strict JSON; nothing raw from a file name reaches a terminal.
Not guaranteed: that a line is on disk when the process is killed.
"""

from __future__ import annotations

import logging
import os
import select
import stat
import sys
import time
from collections.abc import Collection
from contextlib import nullcontext, suppress
from typing import Optional, TextIO

from storage_manager import __version__
from storage_manager.base.clef import LOGGER_NAME, Event, JsonFormatter, TextFormatter
from storage_manager.base.errors import described
from storage_manager.base.log_file import LineHandler, LogFile
from storage_manager.base.room import Room
from storage_manager.base.strict_json import compact, sayable

LEVELS = {"DEBUG": logging.DEBUG, "INFO": logging.INFO, "WARNING": logging.WARNING, "ERROR": logging.ERROR,
          "CRITICAL": logging.CRITICAL}  # fmt: skip

# A housekeeper must not fill the disk: three files of ten megabytes.
LOG_FILE_BYTES = 10 * 1024 * 1024
LOG_FILE_BACKUPS = 2

# How long all the lines of one run together may wait for a reader that has stopped reading.
STALL_SECS = 2.0

# poll() promises room for this much in a pipe.
_PIPE_CHUNK_BYTES = 4096


class EventLog:
    """What the rest of the program logs with: events, with a stable key, a sentence and fields."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self.run_id = ""
        self._constants = ""
        self.begin_run()

    def begin_run(self) -> None:
        """Give the events from here on an identity of their own: one per command, and per cycle of the loop."""
        self.run_id = os.urandom(8).hex()
        constants = {
            "logger": LOGGER_NAME,
            "run_id": self.run_id,
            "host": sayable(os.uname().nodename),
            "pid": os.getpid(),
            "version": __version__,
        }
        self._constants = "," + compact(constants)[1:-1]  # encoded once, not for each of 50,000 deletions
        for handler in self._logger.handlers:
            if isinstance(handler, StderrHandler):
                handler.begin_run()

    def reopen(self) -> None:
        """Write the next event to the log file that its name leads to by then."""
        for handler in self._logger.handlers:
            if isinstance(handler, LogFile):
                handler.look_now()

    def info(self, event: str, message: str, **fields: object) -> None:
        self._emit(logging.INFO, event, message, fields)

    def warning(self, event: str, message: str, **fields: object) -> None:
        self._emit(logging.WARNING, event, message, fields)

    def error(self, event: str, message: str, **fields: object) -> None:
        self._emit(logging.ERROR, event, message, fields)

    def exception(self, event: str, message: str, fault: BaseException, **fields: object) -> None:
        """An error event with the traceback of `fault`."""
        self._emit(logging.ERROR, event, message, fields, fault)

    def _emit(
        self, level: int, event: str, message: str, fields: dict[str, object], error: Optional[BaseException] = None
    ) -> None:
        # Straight to the handlers: what lies between, finding the loggers above, serves nobody here.
        if not self._logger.isEnabledFor(level):
            return
        record = Event(level, event, message, fields, self._constants, error)
        for handler in self._logger.handlers:
            if level >= handler.level:
                handler.handle(record)


class StderrHandler(LineHandler):
    """Lines to a stream that may be a file, a terminal, or a pipe whose reader has stopped or gone."""

    why_dropped = "nobody read them"

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.fd = self._fd = fd
        self._patience_secs = STALL_SECS
        try:
            mode = os.fstat(fd).st_mode
            self._may_block = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(fd)
        except OSError:
            self._may_block = True
        if self._may_block:
            # Opened anew it can be made non-blocking without changing what other processes share with us. Not
            # everything can (a socket): then poll() alone must tell.
            with suppress(OSError):
                self._fd = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLOUT)

    @property
    def is_for_people(self) -> bool:
        """Whether it writes text to a terminal."""
        return os.isatty(self.fd) and isinstance(self.formatter, TextFormatter)

    def begin_run(self) -> None:
        self._patience_secs = STALL_SECS

    def show(self, text: bytes) -> None:
        """Write what is no event, if there is room for it now. Raises nothing."""
        with self.lock or nullcontext(), suppress(OSError):
            if self._has_room():
                os.write(self._fd, text)

    def _write(self, line: bytes) -> int:
        left = line
        while left:
            if self._may_block and not self._ready(self._patience_secs):
                break
            written = os.write(self._fd, left[:_PIPE_CHUNK_BYTES] if self._may_block else left)
            self._written += written
            left = left[written:]
        return len(left)

    def _has_room(self) -> bool:
        return self._ready(0.0)

    def _ready(self, secs: float) -> bool:
        if self._poll.poll(0):
            return True
        if secs <= 0:
            return False
        start = time.monotonic()
        found = bool(self._poll.poll(secs * 1000))
        self._patience_secs = max(0.0, self._patience_secs - (time.monotonic() - start))
        return found


class HeldBack:
    """Keeps events of some names back from a handler until they are told, each once: by request, or before an error."""

    def __init__(self, handler: logging.Handler, events: Collection[str]) -> None:
        self._handler = handler
        self._events = events
        self._records: dict[str, logging.LogRecord] = {}
        handler.addFilter(self._passes)

    def tell(self) -> None:
        """Show what was kept back, and from here on everything."""
        self._events = ()
        records, self._records = self._records, {}
        for record in records.values():
            self._handler.handle(record)

    def _passes(self, record: logging.LogRecord) -> bool:
        if getattr(record, "event", None) in self._events:
            self._records[record.getMessage()] = record
            return False
        if record.levelno >= logging.ERROR:
            self.tell()
        return True


def build_logger(stream: Optional[TextIO], as_json: bool, level: int, has_colour: bool = False) -> logging.Logger:
    """A logger that writes events of `level` and above to `stream`; None when standard error is closed."""
    logging.raiseExceptions = False
    logger = logging.Logger(LOGGER_NAME, level)
    if stream is not None:
        handler = StderrHandler(stream.fileno())
        handler.setLevel(level)
        handler.setFormatter(JsonFormatter() if as_json else TextFormatter(has_colour))
        logger.addHandler(handler)
    return logger


def add_log_file(logger: logging.Logger, path: str, spared: Optional[str] = None) -> Optional[str]:
    """Send every event to a rotated file as JSON, too. What is wrong with the path, or None.

    Losing the file later (a full disk, a removed directory) loses lines, not the run; they are counted. So are those
    that would take the room of `spared`, a file that somebody else writes.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            return "it is not a regular file"
        handler = LogFile(path, LOG_FILE_BYTES, LOG_FILE_BACKUPS, None if spared is None else Room(spared))
    except (OSError, ValueError) as error:
        return described(error)
    handler.setLevel(logging.DEBUG)
    handler.setFormatter(JsonFormatter())
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    return None


def log_files(path: str) -> list[str]:
    """The log file and those that it is rotated to."""
    return [path, *(f"{path}.{number}" for number in range(1, LOG_FILE_BACKUPS + 1))]


def close_logger(logger: logging.Logger) -> None:
    """The last handler first: what one has to tell at its end goes to those before it."""
    for handler in reversed(list(logger.handlers)):
        logger.removeHandler(handler)
        try:
            handler.close()
        except OSError:  # a full disk; the lines are lost, the command's result is not
            pass


def standard_error() -> Optional[TextIO]:
    """sys.stderr if it can be written to by descriptor, else None."""
    try:
        sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):
        return None
    return sys.stderr
