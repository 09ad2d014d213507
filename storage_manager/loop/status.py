"""What the loop tells of itself while it runs: heartbeat, metrics, and the service manager's datagrams.

Guarantees: nothing in here raises or ends the loop, and a file that cannot be written is told once, not at each
turn. Not guaranteed: speed on a file system that hangs; keep the files on a local one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import timezone
from typing import Optional, TypeVar

from storage_manager import __version__
from storage_manager.base.clock import Clock
from storage_manager.base.errors import EXIT_OK, describe_errno, errno_name
from storage_manager.base.log import EventLog, log_files
from storage_manager.base.process import ALIVE, condition, this_process
from storage_manager.base.text import printable
from storage_manager.config import Fallback, Settings, absolute
from storage_manager.jobs.progress import Progress
from storage_manager.loop.cycle import SHORTEST_SLEEP_SECS, Ending, result, sighting, summary, wake_up_at
from storage_manager.loop.heartbeat import CYCLE, ENDED, SLEEPING, Heartbeat, trouble, verdict
from storage_manager.loop.heartbeat_json import LARGEST_BYTES, decode, encode
from storage_manager.loop.metrics import LARGEST_BYTES as LARGEST_METRICS_BYTES
from storage_manager.loop.metrics import Metrics, earlier_values
from storage_manager.loop.notify import READY, STOPPING, WATCHDOG, notify, status
from storage_manager.loop.status_file import read_file, refusal, replace_file

# A cycle that makes progress says so this often: far below the silence that counts as hanging, far above what
# a write costs.
REFRESH_SECS = 5.0

# systemd wants half of WatchdogSec= at most; half of that again leaves room for a slow step.
WATCHDOG_FRACTION = 4
Content = TypeVar("Content")


class LoopStatus:
    """Told by the loop of each of its steps, and tells them on. Everything but the settings of a cycle (interval
    and limit) is as the first settings had it."""

    def __init__(
        self, settings: Settings, clock: Clock, log: EventLog, once: bool, only_plan: bool, max_failures: Optional[int]
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._log = log
        self._problems: dict[str, str] = {}
        """file -> what was wrong with it the last time."""
        self._is_silent = False
        """True for a cycle run by hand beside a loop, which is the one to tell."""
        self._heartbeat_file: Optional[str] = None
        self._metrics_file: Optional[str] = None
        self._written_at = self._pinged_at = clock.monotonic()
        storage_dir = printable(absolute(settings.storage_dir))
        self._metrics = Metrics(absolute(settings.storage_dir))
        now = clock.now()
        self._heartbeat = Heartbeat(
            version=__version__,
            process=this_process(),
            storage_dir=storage_dir,
            interval_secs=settings.interval_secs,
            once=once,
            dry_run=only_plan,
            max_failures=max_failures,
            started_at=now,
            state=CYCLE,
            alive_at=now,
            cycle_started_at=None,
            next_wake_up=None,
            last_cycle=None,
            last_success_at=None,
            failures=0,
        )

    @property
    def failures(self) -> int:
        """Cycles in a row that failed."""
        return self._heartbeat.failures

    @property
    def nap_secs(self) -> Optional[float]:
        """How long a part of a sleep may last, so that a watchdog is fed in time; None: as long as it likes."""
        secs = self._settings.watchdog_secs
        return None if secs is None else max(SHORTEST_SLEEP_SECS, secs / WATCHDOG_FRACTION)

    # The steps of the loop

    def started(self) -> None:
        """The loop is about to run its first cycle."""
        self._choose_files(self._settings)
        if self._heartbeat.once:
            self._go_on()
        self._load_metrics()
        self._tell(READY, status("started"))

    def cycle_started(self, settings: Settings) -> list[Fallback]:
        """A cycle begins. Returns what of the settings cannot be used."""
        refused = self._choose_files(settings)
        now = self._clock.now()
        self._heartbeat = self._heartbeat._replace(
            state=CYCLE, alive_at=now, cycle_started_at=now, next_wake_up=None, interval_secs=settings.interval_secs
        )
        self._beat()
        self._feed_watchdog()
        return refused

    def progress(self) -> None:
        """A step of a cycle, or of a sleep. Cheap enough to be called for each of many."""
        if self._heartbeat.state == CYCLE and self._elapsed(self._written_at) >= REFRESH_SECS:
            self._heartbeat = self._heartbeat._replace(alive_at=self._clock.now())
            self._beat()
        self._feed_watchdog()

    def cycle_ended(self, settings: Settings, ending: Ending, progress: Progress, duration_secs: float) -> None:
        """Metrics are written; the heartbeat follows with the next step, which every cycle has."""
        now = self._clock.now()
        seen = sighting(progress)
        if not self._heartbeat.dry_run:
            self._metrics.add_deleted(progress.deleted_count, progress.freed_bytes)
        self._metrics.configure(settings.max_storage_bytes, settings.interval_secs)
        if seen is not None:
            self._metrics.sight(seen)
        if not ending.interrupted:
            self._metrics.end_cycle(ending.exit_code, now.replace(tzinfo=timezone.utc).timestamp(), duration_secs)
            succeeded = ending.exit_code == EXIT_OK
            self._heartbeat = self._heartbeat._replace(
                last_cycle=result(settings, ending, progress, seen, now, duration_secs),
                last_success_at=now if succeeded else self._heartbeat.last_success_at,
                failures=0 if succeeded else self._heartbeat.failures + 1,
            )
        path = self._metrics_file
        if path is not None:
            self._attempt("replace", path, lambda: replace_file(path, self._metrics.render()))
        self._tell(status(summary(settings, ending, seen)))

    def sleeping(self, secs: float) -> None:
        now = self._clock.now()
        self._heartbeat = self._heartbeat._replace(state=SLEEPING, alive_at=now, next_wake_up=wake_up_at(now, secs))
        self._beat()
        self._feed_watchdog()

    def ended(self) -> None:
        """The loop ends on purpose. The heartbeat stays, and says so: a file that is missing would leave it open."""
        self._heartbeat = self._heartbeat._replace(state=ENDED, alive_at=self._clock.now(), next_wake_up=None)
        self._beat()
        self._tell(STOPPING)

    # What is told

    def _beat(self) -> None:
        self._written_at = self._clock.monotonic()
        path = self._heartbeat_file
        if path is not None:
            self._attempt("replace", path, lambda: replace_file(path, encode(self._heartbeat)))

    def _feed_watchdog(self) -> None:
        secs = self._settings.watchdog_secs
        if secs is None or self._elapsed(self._pinged_at) < secs / WATCHDOG_FRACTION:
            return
        self._pinged_at = self._clock.monotonic()
        if self._is_healthy():
            self._tell(WATCHDOG)

    def _is_healthy(self) -> bool:
        """The verdict of `health`, but for a loop that is too young to have succeeded."""
        asks = trouble if self._heartbeat.last_success_at is None else verdict
        # Counted from the last write by the monotonic clock: a wall clock that is set while the loop sleeps must not
        # get it killed.
        now = wake_up_at(self._heartbeat.alive_at, self._elapsed(self._written_at))
        return asks(self._heartbeat, now, ALIVE) is None

    def _tell(self, *lines: str) -> None:
        address = self._settings.notify_socket
        if address is not None:
            self._attempt("notify", address, lambda: notify(address, *lines))

    def _elapsed(self, since: float) -> float:
        """By the monotonic clock; one that goes back makes things due rather than never."""
        return abs(self._clock.monotonic() - since)

    # Files

    def _choose_files(self, settings: Settings) -> list[Fallback]:
        """The files named by the first settings, but none that could be a part of the store, or of another one."""
        first, refused = self._settings, []
        self._heartbeat_file, self._metrics_file = first.heartbeat_file, first.metrics_file
        # The log goes first: a file that is replaced would take all its lines with it.
        taken = [] if first.log_file is None else log_files(first.log_file)
        reason = refusal(first.heartbeat_file, settings.storage_dir, taken)
        if reason is not None:
            self._heartbeat_file = None
            refused.append(_fallback(first, "HOUSEKEEPER_HEARTBEAT_FILE", first.heartbeat_file, "no heartbeat", reason))
        if first.metrics_file is not None:
            reason = refusal(first.metrics_file, settings.storage_dir, [*taken, first.heartbeat_file])
            if reason is not None:
                self._metrics_file = None
                refused.append(_fallback(first, "METRICS_FILE", first.metrics_file, "no metrics", reason))
        if self._is_silent:
            self._heartbeat_file = self._metrics_file = None
        return refused

    def _go_on(self) -> None:
        """A timer's cycle goes on where the one before it ended; one run by hand beside a loop tells nothing."""
        path = self._heartbeat_file
        before = None if path is None else self._read(path, LARGEST_BYTES, decode)
        if before is None or before.storage_dir != self._heartbeat.storage_dir:
            return
        if before.once:
            self._heartbeat = self._heartbeat._replace(
                last_cycle=before.last_cycle, last_success_at=before.last_success_at, failures=before.failures
            )
        elif before.state != ENDED and condition(before.process) == ALIVE:
            self._is_silent = True
            self._choose_files(self._settings)

    def _load_metrics(self) -> None:
        """Counters go on where the file leaves them."""
        path, store = self._metrics_file, absolute(self._settings.storage_dir)
        if path is not None:
            values = self._read(path, LARGEST_METRICS_BYTES, lambda data: earlier_values(data, store))
            self._metrics = Metrics(store, values)

    def _read(self, path: str, most_bytes: int, parse: Callable[[bytes], Content]) -> Optional[Content]:
        """None for a file that is not there, or cannot be used; then there was an event."""
        found: list[Content] = []

        def read() -> None:
            with suppress(FileNotFoundError):
                found.append(parse(read_file(path, most_bytes)))

        self._attempt("read", path, read)
        return found[0] if found else None

    def _attempt(self, verb: str, file: str, action: Callable[[], None]) -> None:
        """Do what may fail; an event when it fails in another way than the last time."""
        number = None
        try:
            action()
        except OSError as error:
            problem, number = describe_errno(error), errno_name(error.errno)
        except Exception as error:  # noqa: BLE001  # telling of the loop must never end it
            problem = str(error) or type(error).__name__
        else:
            self._problems.pop(file, None)
            return
        if self._problems.get(file) != problem:
            self._problems[file] = problem
            self._log.warning(
                "housekeeper.status_failed",
                f"cannot {verb} {file}: {problem}; the loop goes on",
                file=file,
                errno=number,
            )


def _fallback(settings: Settings, name: str, path: str, instead: str, reason: str) -> Fallback:
    return Fallback(f"{settings.prefix}_{name}", printable(path, 80), instead, reason)
