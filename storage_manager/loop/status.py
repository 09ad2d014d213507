"""What the loop tells of itself while it runs: heartbeat, metrics, and the service manager's datagrams."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any, Optional

from storage_manager import __version__
from storage_manager.base.clock import Clock
from storage_manager.base.errors import EXIT_OK
from storage_manager.base.log import EventLog
from storage_manager.base.process import ALIVE, condition, this_boot, this_process
from storage_manager.base.text import printable
from storage_manager.config import Fallback, Settings, absolute
from storage_manager.jobs.memory import Memory
from storage_manager.jobs.progress import Progress
from storage_manager.loop import outlets
from storage_manager.loop.cycle import Ending, Manner, elapsed_secs, left_behind, result, summary, wake_up_at
from storage_manager.loop.heartbeat import CYCLE, ENDED, SLEEPING, Heartbeat, present, reset_clock, stuck, trouble
from storage_manager.loop.heartbeat_json import LARGEST_BYTES, decode, encode
from storage_manager.loop.metrics import LARGEST_BYTES as LARGEST_METRICS_BYTES
from storage_manager.loop.metrics import Metrics, earlier_values, other_store
from storage_manager.loop.notify import READY, STOPPING, WATCHDOG, Watchdog, status
from storage_manager.loop.own_files import HEARTBEAT, METRICS
from storage_manager.loop.sighting import sight
from storage_manager.loop.status_file import is_one_place

# A cycle that makes progress says so this often: far below the silence that counts as hanging, far above what
# a write costs.
REFRESH_SECS = 5.0

# A heartbeat that a cleaner of temporary files has removed is written again within a minute.
LONGEST_NAP_SECS = 55.0


class LoopStatus:
    """Told by the loop of each of its steps, and tells them on: raises nothing. Everything but the settings of a cycle
    (interval and limit) is as the first settings had it."""

    def __init__(self, settings: Settings, clock: Clock, log: EventLog, manner: Manner) -> None:
        self._store = absolute(settings.storage_dir)
        self._clock = clock
        self._outlets = outlets.Outlets(settings, log)
        self._watchdog = Watchdog(settings.watchdog_secs, clock)
        self._written_at = clock.monotonic()
        self.memory = Memory()
        """Kept in the heartbeat, as far as it outlives the process."""
        self._metrics: Optional[Metrics] = None
        """None before the first cycle has ended."""
        now = clock.now()
        self._heartbeat = Heartbeat(
            version=__version__,
            process=this_process(),
            storage_dir=printable(self._store),
            interval_secs=settings.interval_secs,
            once=manner.once,
            dry_run=manner.only_plan,
            max_failures=manner.max_failures,
            started_at=now,
            state=CYCLE,
            alive_at=now,
            cycle_started_at=None,
            next_wake_up=None,
            last_cycle=None,
            last_success_at=None,
            failures=0,
            boot=this_boot(),
            monotonic_secs=self._written_at,
        )

    @property
    def failures(self) -> int:
        """Cycles in a row that failed."""
        return self._heartbeat.failures

    @property
    def nap_secs(self) -> float:
        """How long a part of a sleep may last, so that a watchdog is fed and a missing heartbeat is noticed in time."""
        return min(LONGEST_NAP_SECS, self._watchdog.nap_secs)

    # The steps of the loop

    def started(self) -> None:
        """The loop is about to run its first cycle."""
        self._outlets.choose_files()
        self._go_on()
        self._outlets.tell(READY, status("started"))

    def cycle_started(self, settings: Settings) -> list[Fallback]:
        """A cycle begins. Returns what of the settings cannot be used."""
        refused = self._outlets.choose_files()
        now = self._clock.now()
        if settings.limit_variable in settings.from_file:
            self.memory = self.memory._replace(limit_from_file=True)
        self._beat(now, state=CYCLE, cycle_started_at=now, next_wake_up=None, interval_secs=settings.interval_secs)
        self._feed_watchdog()
        return refused

    def progress(self) -> None:
        """A step of a cycle, or of a sleep. Cheap enough to be called for each of many."""
        if self._heartbeat.state == CYCLE and elapsed_secs(self._clock, self._written_at) >= REFRESH_SECS:
            self._beat(self._clock.now())
        elif self._heartbeat.state == SLEEPING and self._outlets.is_missing(HEARTBEAT):
            self._write_heartbeat()
        self._feed_watchdog()

    def cycle_ended(self, settings: Settings, ending: Ending, progress: Progress, duration_secs: float) -> None:
        """Metrics are written; the heartbeat follows with the next step, which every cycle has."""
        now = self._clock.now()
        left = left_behind(progress)
        seen = None if left is None else sight(settings.storage_dir, left.session_count)
        self.memory = progress.memory._replace(store=seen or self.memory.store)
        done = result(settings, ending, progress, left, now, duration_secs)
        metrics = self._metrics = self._counted_so_far()
        if not self._heartbeat.dry_run:
            metrics.add_deleted(done.deleted_count, done.freed_bytes)
            metrics.add_orphans(progress.adopted_count, progress.purged.deleted_count, progress.purged.freed_bytes)
        metrics.configure(settings.max_storage_bytes, settings.interval_secs)
        if left is not None:
            metrics.sight(left, progress.counts.deferred_count)
        if not ending.interrupted:
            metrics.end_cycle(done.exit_code, now.replace(tzinfo=timezone.utc).timestamp(), duration_secs)
            succeeded = done.exit_code == EXIT_OK
            # One failure after cycles that were held is one: what gives up over many must not take those for failures.
            earlier = 0 if self._heartbeat.is_held and not ending.lacks_evidence else self._heartbeat.failures
            self._heartbeat = self._heartbeat._replace(
                last_cycle=done,
                last_success_at=now if succeeded else self._heartbeat.last_success_at,
                failures=0 if succeeded else earlier + 1,
            )
        self._outlets.write(METRICS, metrics.render)
        self._outlets.tell(status(summary(done)))

    def sleeping(self, secs: float) -> None:
        now = self._clock.now()
        self._beat(now, state=SLEEPING, next_wake_up=wake_up_at(now, secs))
        self._feed_watchdog()

    def ended(self) -> None:
        """The loop ends on purpose. The heartbeat stays, and says so: a file that is missing would leave it open."""
        self._beat(self._clock.now(), state=ENDED, next_wake_up=None)
        self._outlets.tell(STOPPING)

    # What is told

    def _counted_so_far(self) -> Metrics:
        """The counters go on where the file leaves them when the first cycle ends: another timer's cycle, which found
        this one at work, may have counted meanwhile. From then on nobody else should write to the file.
        """
        if self._metrics is not None:
            self._outlets.look_for_others(LARGEST_METRICS_BYTES, lambda data: other_store(data, self._store))
            return self._metrics
        return Metrics(
            self._store,
            self._outlets.read(METRICS, LARGEST_METRICS_BYTES, lambda data: earlier_values(data, self._store)),
        )

    def _beat(self, now: datetime, **changes: Any) -> None:
        heartbeat = reset_clock(self._heartbeat, self._present(), now)
        self._written_at = self._clock.monotonic()
        heartbeat = heartbeat._replace(alive_at=now, monotonic_secs=self._written_at, **changes)
        self._heartbeat = heartbeat.with_memory(self.memory)
        self._write_heartbeat()

    def _write_heartbeat(self) -> None:
        self._outlets.write(HEARTBEAT, lambda: encode(self._heartbeat))

    def _feed_watchdog(self) -> None:
        if self._watchdog.is_due() and self._is_healthy():
            self._outlets.tell(WATCHDOG)

    def _is_healthy(self) -> bool:
        """Whether a restart would not help; also of a loop that is too young to have succeeded."""
        asks = trouble if self._heartbeat.last_success_at is None else stuck
        # Counted from the last write by the monotonic clock: a wall clock that is set while the loop sleeps must not
        # get it killed.
        return asks(self._heartbeat, self._present(), ALIVE) is None

    def _present(self) -> datetime:
        """By the wall clock as it was at the last write."""
        return wake_up_at(self._heartbeat.alive_at, elapsed_secs(self._clock, self._written_at))

    def _go_on(self) -> None:
        """A timer's cycle goes on where the one before it ended; beside a loop, one by hand and a dry run tell nothing.

        Each remembers the store that was seen before, and that the settings file has set the limit.
        """
        before = self._outlets.read(HEARTBEAT, LARGEST_BYTES, decode)
        if before is None or not is_one_place(before.storage_dir, self._heartbeat.storage_dir):
            return
        self.memory = before.memory
        if self._heartbeat.once and before.once:
            now = self._clock.now()
            before = reset_clock(before, present(before, now, this_boot(), self._clock.monotonic()), now)
            self._heartbeat = self._heartbeat._replace(
                last_cycle=before.last_cycle, last_success_at=before.last_success_at, failures=before.failures
            )
        elif self._heartbeat.once or self._heartbeat.dry_run and not before.once:
            self._outlets.are_closed = before.state != ENDED and condition(before.process) == ALIVE
