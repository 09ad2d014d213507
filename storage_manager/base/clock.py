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
from typing import TYPE_CHECKING, Optional

from storage_manager.base.errors import Interrupted

if TYPE_CHECKING:
    from storage_manager.base.meter import Meter  # for terminals alone

# End a command, also where they were inherited as ignored: shells start what is in the background of a script so.
STOPPING = (signal.SIGINT, signal.SIGTERM)
WAKING = signal.SIGUSR1
HANDLED = (*STOPPING, WAKING, signal.SIGHUP)

# poll() refuses absurd time-outs; a longer sleep is taken in slices of this.
LONGEST_SLICE_SECS = 86_400.0

# Who waits for somebody else for longer than this says so: it looks as if nothing happened.
SILENCE_SECS = 5.0


class Clock:
    """The real clock, and the process's signals once `install()` and `accept_hangups()` have been called.

    A stop signal raises Interrupted at once, except inside `deferred()`, where it is only remembered: the
    code there asks `stopping` between steps. Every sleep ends early when a signal arrives, however short
    before the sleep it came (the signal leaves a byte in a pipe that the sleep watches).
    """

    meter: Optional[Meter] = None
    """Shows what takes long to a person at a terminal."""

    def __init__(self) -> None:
        self.stop_signal: Optional[int] = None
        self.wake_requested = False
        self.hung_up = False
        """SIGHUP came, and does not stop this command."""
        self.listener: Optional[Callable[[], None]] = None
        """Told of every step of what takes long: who watches the loop has to know that it is at work."""
        self._deferred = False
        self._pipe: Optional[tuple[int, int]] = None

    def install(self) -> None:
        """Take over SIGINT, SIGTERM and SIGUSR1. Only the main thread of a process may call this.

        A SIGHUP waits for accept_hangups(): until the command is known, nobody knows what it means.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        self._pipe = (reader, writer)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for signum in STOPPING:
            signal.signal(signum, self._on_stop)
        signal.signal(WAKING, self._on_wake)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*STOPPING, WAKING})

    def accept_hangups(self, to_stop: bool) -> None:
        """From here on SIGHUP stops the command, unless it was started with nohup; or else it sets `hung_up`.

        Raises Interrupted for one that has waited.
        """
        if self._pipe is None:
            return
        if not to_stop:
            signal.signal(signal.SIGHUP, self._on_hangup)
        elif signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._on_stop)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})

    def retire(self) -> None:
        """The work is done: a signal from here on changes nothing any more."""
        self._deferred = True
        if self._pipe is not None:
            # For the interpreter's own end, too: it puts handlers back to the default, which kills, but not this.
            for signum in HANDLED:
                signal.signal(signum, signal.SIG_IGN)

    def now(self) -> datetime:
        """Naive UTC, as the store's time stamps are."""
        return datetime.now(timezone.utc).replace(tzinfo=None)

    def monotonic(self) -> float:
        return time.monotonic()

    def progress(self, steps: int = 0) -> None:
        """Called between the steps of whatever may take long, when so many are done. Costs little; raises nothing."""
        if self.listener is not None:
            self.listener()
        if self.meter is not None:
            self.meter.step(steps)

    @contextmanager
    def doing(
        self, what: str, total: Optional[int] = None, amount: Callable[[int], str] = "{:,}".format
    ) -> Iterator[None]:
        """Inside, a person at a terminal is shown `what` is done, how much of a `total`, if it takes long.

        progress() counts the steps, `amount` shows their number. Within another, it stands for that one meanwhile.
        """
        if self.meter is None:
            yield
            return
        with self.meter.task(what, total, amount):
            yield

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

    def _on_hangup(self, signum: int, frame: Optional[FrameType]) -> None:
        self.hung_up = True


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

    @property
    def left_secs(self) -> float:
        """Without a stop signal."""
        return max(0.0, self._deadline - self._clock.monotonic())

    def pause(self, secs: float) -> None:
        self._clock.progress()
        self._clock.pause(secs)
