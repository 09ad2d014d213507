"""What a command is at: one line at the bottom of a terminal, which is gone before anything else is written there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from typing import Optional

from storage_manager.base.quantity import duration

# What takes no longer than this needs no line.
QUIET_SECS = 1.0
REDRAW_SECS = 0.1

# To the end of the line, also where the terminal has become narrower since it was drawn.
_ERASE = b"\r\x1b[K"


class _Task:
    def __init__(self, what: str, total: Optional[int], amount: Callable[[int], str], started: float) -> None:
        self.what = what
        self.total = total
        self.amount = amount
        self.started = started
        self.done = 0


class Meter:
    """Shows the innermost task that is under way, from QUIET_SECS after the outermost one began.

    Nothing is shown between tasks: who writes to the terminal inside one calls erase() before. Never waits for the
    terminal; raises nothing. Not for several threads.
    """

    def __init__(self, fd: int, write: Callable[[bytes], None], monotonic: Callable[[], float]) -> None:
        """`write` writes to the terminal what finds room there, and raises nothing; `fd` is asked about it."""
        self._fd = fd
        self._write = write
        self._monotonic = monotonic
        self._tasks: list[_Task] = []
        self._due = inf
        self._is_shown = False

    @contextmanager
    def task(self, what: str, total: Optional[int], amount: Callable[[int], str]) -> Iterator[None]:
        now = self._monotonic()
        if not self._tasks:
            self._due = now + QUIET_SECS
        self._tasks.append(_Task(what, total, amount, now))
        self._draw_now()
        try:
            yield
        finally:
            self._tasks.pop()
            if self._tasks:
                self._draw_now()
            else:
                self._due = inf
                self.erase()

    def step(self, steps: int) -> None:
        """So much more of the innermost task has been done."""
        if self._tasks:
            self._tasks[-1].done += steps
            now = self._monotonic()
            if now >= self._due:
                self._draw(now)

    def make_way(self, record: object) -> bool:
        """As the filter of a handler: erase the line, and let the record pass."""
        self.erase()
        return True

    def erase(self) -> None:
        if self._is_shown:
            self._write(_ERASE)
            self._is_shown = False

    def _draw_now(self) -> None:
        """Another task: it may be one call that takes long, without a step."""
        if self._is_shown:
            self._draw(self._monotonic())

    def _draw(self, now: float) -> None:
        self._due = now + REDRAW_SECS
        if not self._is_in_foreground():
            return
        self._is_shown = True  # before: a signal may come as soon as it is written
        text = line(self._tasks[-1], now, self._columns() - 1)
        self._write(b"\r" + text.encode("ascii", "replace") + _ERASE[1:])

    def _is_in_foreground(self) -> bool:
        """A job in the background must not write over what is typed."""
        try:
            return os.tcgetpgrp(self._fd) == os.getpgrp()
        except OSError:  # not the terminal that controls this process
            return True

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self._fd).columns or 80
        except OSError:
            return 80


def line(task: _Task, now: float, columns: int) -> str:
    """As much as there is room for: what, how much of how much, per cent, time left, rate."""
    secs = max(0.0, now - task.started)
    parts = list(_parts(task, secs))
    text = task.what[: max(0, columns)]
    for part in parts:
        if len(text) + 2 + len(part) > columns:
            break
        text += f"  {part}"
    return text


def _parts(task: _Task, secs: float) -> Iterator[str]:
    done, total, amount = task.done, task.total, task.amount
    if not done:
        yield f"{secs:.0f} s"
        return
    if total:
        yield f"{amount(done)} of {amount(total)}"
        yield f"{min(100, 100 * done // total)} %"
    else:
        yield amount(done)
    if secs >= QUIET_SECS:
        if total:
            yield f"{duration(max(0, total - done) * secs / done)} left"
        yield f"{amount(round(done / secs))}/s"
