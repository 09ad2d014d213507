"""Time, and the signals that cut it short. Everything that waits or looks at a clock is handed this."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from types import FrameType
from typing import Optional

from storage_manager.base.errors import Interrupted

# poll() refuses absurd time-outs; a longer sleep is taken in slices of this.
LONGEST_SLICE_SECS = 86_400.0


class Clock:
    """The real clock, and the process's SIGINT, SIGTERM and SIGUSR1 once `install()` has been called.

    A stop signal raises Interrupted at once, except inside `deferred()`, where it is only remembered: the
    code there asks `stopping` between steps. Every sleep ends early when a signal arrives, however short
    before the sleep it came (the signal leaves a byte in a pipe that the sleep watches).
    """

    def __init__(self) -> None:
        self.stop_signal: Optional[int] = None
        self.wake_requested = False
        self.listener: Optional[Callable[[], None]] = None
        """Told of every step of what takes long: who watches the loop has to know that it is at work."""
        self._deferred = False
        self._pipe: Optional[tuple[int, int]] = None

    def install(self) -> None:
        """Take over the signals. Only the main thread of a process may call this."""
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        self._pipe = (reader, writer)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        # Whatever was inherited: a loop that a script started in the background, where shells have SIGINT
        # ignored, must end on it like any other.
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, self._on_stop)
        signal.signal(signal.SIGUSR1, self._on_wake)

    def retire(self) -> None:
        """The work is done: a signal from here on changes nothing any more."""
        self._deferred = True
        if self._pipe is not None:
            # For the interpreter's own end, too: it puts handlers back to the default, which kills, but not this.
            for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                signal.signal(signum, signal.SIG_IGN)

    def now(self) -> datetime:
        """Naive UTC, as the store's time stamps are."""
        return datetime.now(timezone.utc).replace(tzinfo=None)

    def monotonic(self) -> float:
        return time.monotonic()

    def progress(self) -> None:
        """Called between the steps of whatever may take long. Costs next to nothing; raises nothing."""
        if self.listener is not None:
            self.listener()

    @property
    def stopping(self) -> bool:
        return self.stop_signal is not None

    def check(self) -> None:
        """Raise Interrupted when a stop signal was deferred."""
        if self.stop_signal is not None:
            raise Interrupted(self.stop_signal)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a stop signal is remembered instead of raised."""
        before, self._deferred = self._deferred, True
        try:
            yield
        finally:
            self._deferred = before

    def sleep(self, secs: float) -> None:
        """Sleep for `secs`, or until a signal arrives."""
        secs = max(0.0, min(secs, LONGEST_SLICE_SECS))
        if self._pipe is None:
            time.sleep(secs)
            return
        watch = select.poll()  # select() would refuse a descriptor above 1023, which may be inherited
        watch.register(self._pipe[0], select.POLLIN)
        try:
            if watch.poll(secs * 1000):
                self._drain()
        except OSError:  # out of memory, for one; nothing may end the loop, and nothing may make it spin
            time.sleep(min(secs, 1.0))

    def wait_for_input(self, fd: int) -> None:
        """Return when `fd` has something to read or has come to its end.

        A plain read would sleep on when a signal arrives right before it. Raises Interrupted.
        """
        watch = select.poll()
        watch.register(fd, select.POLLIN)
        if self._pipe is not None:
            watch.register(self._pipe[0], select.POLLIN)
        while fd not in {ready for ready, _ in watch.poll()}:
            self._drain()
            self.check()

    def _drain(self) -> None:
        with suppress(BlockingIOError):  # another signal's handler emptied it; the wake-up counts all the same
            if self._pipe is not None:
                os.read(self._pipe[0], 4096)

    def pause(self, secs: float) -> None:
        """Sleep for `secs` whatever signals arrive; they are remembered."""
        time.sleep(secs)

    def _on_stop(self, signum: int, frame: Optional[FrameType]) -> None:
        self.stop_signal = signum
        if not self._deferred:
            raise Interrupted(signum)

    def _on_wake(self, signum: int, frame: Optional[FrameType]) -> None:
        self.wake_requested = True


class Patience:
    """How much longer to wait for something: `secs` in all, but only `stopping_secs` once asked to stop."""

    def __init__(self, clock: Clock, secs: float, stopping_secs: float) -> None:
        self._clock = clock
        self._stopping_secs = stopping_secs
        self._deadline = clock.monotonic() + secs
        self._stop_deadline: Optional[float] = None

    def exhausted(self) -> bool:
        now = self._clock.monotonic()
        if self._clock.stopping:
            if self._stop_deadline is None:
                self._stop_deadline = now + self._stopping_secs
            if now >= self._stop_deadline:
                return True
        return now >= self._deadline

    def pause(self, secs: float) -> None:
        self._clock.progress()
        self._clock.pause(secs)
