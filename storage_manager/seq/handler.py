"""Shipping events to a Seq server, from a thread of its own.

Guarantees: whatever the server does, an event costs its caller no more than its formatting; memory stays bounded; the
exit is delayed by CLOSE_SECS at most, and by nothing when nothing waits; nothing is lost in silence; the order is
kept. Not guaranteed: that an event arrives (the server is down for long), or that it arrives once (an answer got
lost).
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Optional

from storage_manager.base import quantity
from storage_manager.base.clef import JsonFormatter
from storage_manager.base.errors import Interrupted
from storage_manager.base.log import EventLog
from storage_manager.seq.backlog import Backlog
from storage_manager.seq.delivery import Answer, Verdict, deliver
from storage_manager.seq.events import SeqEvents
from storage_manager.seq.server import SeqServer

if TYPE_CHECKING:
    from storage_manager.seq.ingest import Ingest

# Events are gathered for this long, as Seq's own clients do: not a request for each.
GATHER_SECS = 2.0

# Seq refuses larger ones, by default.
EVENT_BYTES = 256 * 1024

# How long one request may take.
REQUEST_SECS = 10.0

# Between attempts, the first and the longest pause; the latter, too, when only a person can help.
BACKOFF_SECS = 5.0
LONGEST_BACKOFF_SECS = 60.0
SHORTEST_BACKOFF_SECS = 1.0

# At the end: for all that waits, or for one more attempt at a server that is known to be down; and the moment that
# the thread has to tell what came of it. Docker gives a container ten seconds, and a prune may need some of them.
FLUSH_SECS = 3.5
LAST_TRY_SECS = 1.0
GRACE_SECS = 0.5
CLOSE_SECS = FLUSH_SECS + GRACE_SECS
# A signal that comes right before a wait begins is seen when that is over.
SLICE_SECS = 0.1

# A server that limits its clients does so now and then; from so many times in a row on it is worth telling.
LIMITED_IN_A_ROW = 3

# The server says which level it wants only in answer to events: after this long it gets some, to be asked again.
LEVEL_SECS = 120.0

# Drops while the server works, because it is too slow, are told this often at most.
DROPS_EVERY_SECS = 60.0

# After a thread could not be started: it costs little to try again, but not for each of 50,000 events.
START_AGAIN_SECS = 10.0

_LEVELS = {"Verbose": logging.DEBUG, "Debug": logging.DEBUG, "Information": logging.INFO,
           "Warning": logging.WARNING, "Error": logging.ERROR, "Fatal": logging.CRITICAL}  # fmt: skip


class SeqHandler(logging.Handler):
    """Takes every event; a thread, started at the first one, ships them."""

    def __init__(self, server: SeqServer, events: SeqEvents, backlog: Optional[Backlog] = None) -> None:
        super().__init__(logging.DEBUG)
        self._server = server
        self._events = events
        self._clef = JsonFormatter()
        # A lock that its holder may take again: a signal can raise between taking and releasing it, and the main
        # thread must not be stuck then.
        self._changed = threading.Condition(threading.RLock())
        # Shared with the thread, under the lock.
        self._backlog = Backlog() if backlog is None else backlog
        self._in_flight_count = 0
        self._failures = 0
        self._closing = False
        self._finished = False
        self._flush_until = 0.0
        # The main thread's own.
        self._thread: Optional[threading.Thread] = None
        self._start_again_at = 0.0
        # The shipping thread's own.
        self._ingest: Optional[Ingest] = None
        self._told: set[Verdict] = set()
        self._down_since = 0.0
        self._retry_at = 0.0
        self._level_until: Optional[float] = None
        self._drops_told_at = float("-inf")

    # --- Taking events

    def handle(self, record: logging.LogRecord) -> bool:
        """Without the lock of logging.Handler: emit() has one of its own, and holds it for a shorter time."""
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(Exception):  # no memory, for one; the other handlers have the event, and a prune must go on
            self._take(self._clef.format(record).encode("utf-8", "backslashreplace"))

    def _take(self, line: bytes) -> None:
        if len(line) > EVENT_BYTES:
            self._events.rejected([line], f"it is larger than {quantity.size(EVENT_BYTES)}")
            return
        with self._changed:
            if self._closing:
                return
            filled = self._backlog.fills_a_batch
            self._backlog.add(line)
            if self._thread is None:
                self._start()
            elif len(self._backlog) == 1 or self._backlog.fills_a_batch is not filled:
                self._changed.notify()

    def _start(self) -> None:
        now = time.monotonic()
        if now < self._start_again_at:
            return
        self._thread = threading.Thread(target=self._run, name="seq", daemon=True)
        try:
            self._thread.start()
        except (RuntimeError, MemoryError):  # too many threads; the events wait
            self._thread = None
            self._start_again_at = now + START_AGAIN_SECS

    # --- The end

    def close(self) -> None:
        """Ship what waits, for CLOSE_SECS at most, then tell how much could not be. A signal ends the wait.

        Called while a signal that came after the command's end unwinds the stack, it does not wait at all.
        """
        try:
            with self._changed:
                if self._closing:  # logging closes all handlers once more when the interpreter ends
                    return
                self._flush()
        except Interrupted:  # asked again; the command itself is done
            self._closing = True  # where the end had not begun, the interpreter's own end would begin it once more
        with self._changed:
            left_count = len(self._backlog) + self._in_flight_count
        self._events.dropped(self._take_drops())
        self._events.left_behind(left_count)
        super().close()

    def _flush(self) -> None:
        secs = LAST_TRY_SECS if self._failures else FLUSH_SECS
        self._flush_until = time.monotonic() + secs
        self._closing = True
        self._changed.notify()
        hurried = isinstance(sys.exc_info()[1], Interrupted)
        while self._thread is not None and not (self._finished or hurried):  # with nothing to ship, for a moment
            left = self._flush_until + GRACE_SECS - time.monotonic()
            if left <= 0:
                return
            self._changed.wait(min(left, SLICE_SECS))

    # --- The thread

    def _run(self) -> None:
        # Signals shall interrupt the main thread's system calls, not this one's.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        going_on = True
        while going_on:
            try:
                going_on = self._turn()
            except Exception as error:  # noqa: BLE001  # a fault of ours must neither show up raw nor end the shipping
                with suppress(Exception):
                    self._fail(Answer(Verdict.UNAVAILABLE, f"internal error: {type(error).__name__}"))
                going_on = not self._closing
        with self._changed:
            self._finished = True
            self._changed.notify_all()

    def _turn(self) -> bool:
        """Wait for a batch and ship it. False: that was the last one."""
        with self._changed:
            self._wait_for_batch()
            is_last_try = self._closing  # an attempt that the end found under way was not the one that the end has
            lines = self._backlog.take()
            self._in_flight_count = len(lines)
        if not lines:
            return False
        left = lines
        try:
            delivery = deliver(lines, self._post)
            left = delivery.left
        finally:
            with self._changed:
                self._backlog.give_back(left)
                self._in_flight_count = 0
        if delivery.accepted is not None:
            self._want_level(delivery.accepted.minimum_level)
            self._recover()
        self._events.rejected(delivery.rejected, delivery.rejected_reason)
        if left:
            self._fail(delivery.answer)
        return not (left and is_last_try)

    def _wait_for_batch(self) -> None:
        """Return when there is something to ship and its time has come, or when closing, with whatever there is."""
        gathered_at: Optional[float] = None
        while not self._closing:
            now = time.monotonic()
            if self._level_until is not None and now >= self._level_until:
                self._want_level(None)
            until = self._level_until
            if self._backlog:
                gathered_at = now + GATHER_SECS if gathered_at is None else gathered_at
                until = max(self._retry_at, now if self._backlog.fills_a_batch else gathered_at)
                if now >= until:
                    return
            self._changed.wait(None if until is None else until - now)

    def _post(self, lines: list[bytes]) -> Answer:
        secs = min(REQUEST_SECS, self._flush_until - time.monotonic()) if self._closing else REQUEST_SECS
        if secs <= 0:
            return Answer(Verdict.UNAVAILABLE, "there was no time left")
        if self._ingest is None:
            from storage_manager.seq.ingest import Ingest  # takes longer to import than all the rest

            self._ingest = Ingest(self._server)
        return self._ingest.post(b"\n".join(lines) + b"\n", secs)

    def _recover(self) -> None:
        if self._told:
            self._events.recovered(time.monotonic() - self._down_since, self._take_drops())
        elif time.monotonic() >= self._drops_told_at + DROPS_EVERY_SECS:
            self._events.dropped(self._take_drops())
        self._told.clear()
        self._failures = 0
        self._retry_at = 0.0

    def _fail(self, answer: Answer) -> None:
        """Put the next attempt off, and tell why: each kind of failure once until the server takes events again."""
        now = time.monotonic()
        if not self._failures:
            self._down_since = now
        self._failures += 1
        self._retry_at = now + _pause_secs(answer, self._failures)
        passing = answer.status == 429 and self._failures < LIMITED_IN_A_ROW and not self._closing
        if answer.verdict not in self._told and not passing:
            self._told.add(answer.verdict)
            self._events.failed(answer)

    def _take_drops(self) -> int:
        """How many had to go that nobody has told of; whoever asks tells."""
        with self._changed:
            dropped_count, self._backlog.dropped_count = self._backlog.dropped_count, 0
        if dropped_count:
            self._drops_told_at = time.monotonic()
        return dropped_count

    def _want_level(self, name: Optional[str]) -> None:
        """Take events from the level of this name on, for a time; all if the server does not say."""
        level = _LEVELS.get(name or "", logging.DEBUG)
        self._level_until = time.monotonic() + LEVEL_SECS if level > logging.DEBUG else None
        self.setLevel(level)


def _pause_secs(answer: Answer, failures: int) -> float:
    if answer.retry_after_secs is not None:
        return max(SHORTEST_BACKOFF_SECS, answer.retry_after_secs)
    if answer.verdict is not Verdict.UNAVAILABLE:
        return LONGEST_BACKOFF_SECS
    longest = min(BACKOFF_SECS * 2.0 ** min(failures - 1, 10), LONGEST_BACKOFF_SECS)
    # A little less, by chance: the tools of many hosts shall not all come back at once.
    return longest * (1.0 - 0.2 * os.urandom(1)[0] / 255)


def ship(logger: logging.Logger, log: EventLog, server: SeqServer, prefix: str) -> None:
    """Send every event to a Seq server, too, whatever the other handlers show."""
    logger.addHandler(SeqHandler(server, SeqEvents(log, server, prefix)))
    logger.setLevel(logging.DEBUG)
