"""What the loop tells of itself, step by step, on a clock of our own."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from loops import SteppedClock, settings_for
from prometheus import families
from stores import blobs, events, make_store

from storage_manager.base.clock import Clock
from storage_manager.base.log import EventLog, build_logger
from storage_manager.config import Fallback, Settings
from storage_manager.loop import housekeeper, outlets, status
from storage_manager.loop.cycle import Manner
from storage_manager.loop.heartbeat_json import decode
from storage_manager.loop.metrics import Metrics
from storage_manager.loop.notify import STOPPING, WATCHDOG
from storage_manager.store.directory import Store, open_store
from storage_manager.store.lock import acquire_lock
from storage_manager.store.snapshot import Snapshot

Load = Callable[[], "tuple[Settings, list[Fallback]]"]
PREFIX = "storage_manager_"
NAP_SECS = status.LONGEST_NAP_SECS

pytestmark = pytest.mark.usefixtures("sleeps_in_one_go")


class Timed(Clock):
    """Time passes in sleeps, and where a test lets it pass. `at_sleep` is called before each sleep."""

    def __init__(self) -> None:
        super().__init__()
        self.secs = 1e6
        self.begin = datetime(2026, 11, 24, 12, 0, 0)
        self.slept_secs: list[float] = []
        self.at_sleep: Callable[[], object] = self.stop

    def stop(self) -> None:
        self.stop_signal = int(signal.SIGTERM)

    def now(self) -> datetime:
        return self.begin + timedelta(seconds=self.secs - 1e6)

    def monotonic(self) -> float:
        return self.secs

    def sleep(self, secs: float) -> None:
        self.at_sleep()
        self.slept_secs.append(secs)
        self.secs += secs


class Loop:
    """The loop in this process; what it logged, and what it sent to the service manager."""

    def __init__(self, log_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._path = log_path
        self.sent: list[str] = []
        monkeypatch.setattr(outlets, "notify", lambda address, *lines: self.sent.extend(lines))

    def run(self, load: Load, clock: Clock, **options: Any) -> list[dict[str, Any]]:
        with open(self._path, "w") as stream:
            log = EventLog(build_logger(stream, True, 10))
            self.exit_code = housekeeper.run_loop(load, clock, log, Manner(**options))
        return events(self._path.read_text())


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loop:
    return Loop(tmp_path / "events.log", monkeypatch)


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    return tmp_path / "loop.prom"


def failures_of(found: list[dict[str, Any]]) -> list[tuple[str, str | None]]:
    return [(item["file"], item["errno"]) for item in found if item["event"] == "housekeeper.status_failed"]


def values(path: Path) -> dict[str, float]:
    """Metrics without a label of their own."""
    found = families(path.read_bytes()).items()
    return {
        name[len(PREFIX) :]: value
        for name, family in found
        for labels, value in family.samples.items()
        if len(labels) == 1
    }


def anomalies(path: Path) -> dict[str, float]:
    samples = families(path.read_bytes())[f"{PREFIX}anomalies"].samples
    return {dict(labels)["kind"]: value for labels, value in samples.items() if value}


# The heartbeat


def test_the_heartbeat_follows_the_loop(storage: Path, told: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    make_store(storage, 4, size=1000)
    settings, _ = settings_for(storage, MAX_STORAGE_MB="2000B")
    path = Path(settings.heartbeat_file)
    seen = []

    def look() -> None:
        seen.append(decode(path.read_bytes()))

    real = housekeeper.run

    def run(*arguments: Any) -> Any:
        look()
        return real(*arguments)

    monkeypatch.setattr(housekeeper, "run", run)
    clock = Timed()
    clock.at_sleep = lambda: (look(), clock.stop())
    told.run(lambda: (settings, []), clock)
    look()
    assert [beat.state for beat in seen] == ["cycle", "sleeping", "ended"]
    cycle, sleeping, ended = seen
    assert cycle.last_cycle is None and cycle.last_success_at is None
    assert sleeping.next_wake_up == clock.begin + timedelta(hours=1)
    assert sleeping.last_success_at == clock.begin
    last = ended.last_cycle
    assert last is not None
    assert (last.usage_bytes, last.session_count, last.deleted_count, last.freed_bytes) == (2000, 2, 2, 2000)
    assert (last.limit_bytes, last.exit_code) == (2000, 0)
    assert ended.storage_dir == str(storage)
    assert sorted(os.listdir(path.parent)) == [path.name, path.with_suffix(".history").name]


def slow_deletions(monkeypatch: pytest.MonkeyPatch, clock: Timed, secs: float) -> None:
    """Each look at progress takes some time."""
    real = Clock.progress

    def progress(self: Clock, steps: int = 0) -> None:
        clock.secs += secs
        real(self)

    monkeypatch.setattr(Clock, "progress", progress)


def test_a_long_cycle_shows_that_it_is_alive(storage: Path, told: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    make_store(storage, 51, size=10)
    clock = Timed()
    slow_deletions(monkeypatch, clock, 1.0)
    written: list[datetime] = []
    real = outlets.replace_file

    def replace_file(path: str, data: bytes) -> None:
        real(path, data)
        beat = decode(data)
        if beat.state == "cycle":
            written.append(beat.alive_at)

    monkeypatch.setattr(outlets, "replace_file", replace_file)
    told.run(lambda: settings_for(storage, MAX_STORAGE_MB="10B"), clock)
    pauses = [(after - before).total_seconds() for before, after in zip(written, written[1:])]
    assert len(pauses) == 10 and set(pauses) == {5.0}


def test_the_failures_in_a_row_are_in_the_heartbeat(tmp_path: Path, told: Loop) -> None:
    storage = tmp_path / "later"
    settings, _ = settings_for(storage)
    clock = Timed()
    seen: list[int] = []

    def at_sleep() -> None:
        seen.append(decode(Path(settings.heartbeat_file).read_bytes()).failures)
        if len(seen) == 2:
            make_store(storage, 1)
        if len(seen) == 3:
            clock.stop()

    clock.at_sleep = at_sleep
    told.run(lambda: (settings, []), clock)
    assert seen == [1, 2, 0]


# Files that cannot be written


def test_a_heartbeat_and_metrics_that_cannot_be_written_are_told_once_and_the_loop_goes_on(
    storage: Path, told: Loop, tmp_path: Path
) -> None:
    guids = make_store(storage, 3, size=1000)
    heartbeat, metrics = str(tmp_path / "absent" / "heartbeat"), str(tmp_path / "directory")
    os.mkdir(metrics)
    variables = {"HOUSEKEEPER_HEARTBEAT_FILE": heartbeat, "METRICS_FILE": metrics, "MAX_STORAGE_MB": "1000B"}
    found = told.run(lambda: settings_for(storage, **variables), SteppedClock(5))
    assert told.exit_code == 0
    assert "; the loop goes on. Mend it, or name another file: GOFR_DIG_METRICS_FILE" in str(found)
    assert failures_of(found) == [(heartbeat, "ENOENT"), (metrics, None), (metrics, "EEXIST")]
    assert blobs(storage) == {guids[2]}


def test_a_disk_that_fills_up_and_empties_is_told_at_each_change(
    storage: Path, told: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(storage, 1)
    settings, _ = settings_for(storage)
    weather = iter([0, errno.ENOSPC, errno.ENOSPC, errno.EROFS, 0, errno.ENOSPC])
    number = 0
    real = outlets.replace_file

    def replace_file(path: str, data: bytes) -> None:
        if number:
            raise OSError(number, os.strerror(number))
        real(path, data)

    monkeypatch.setattr(outlets, "replace_file", replace_file)

    def load() -> tuple[Settings, list[Fallback]]:
        nonlocal number
        number = next(weather)
        return settings, []

    found = told.run(load, SteppedClock(5))
    assert [name for _, name in failures_of(found)] == ["ENOSPC", "EROFS", "ENOSPC"]
    assert told.exit_code == 0


def test_a_fault_of_ours_in_telling_does_not_end_the_loop(
    storage: Path, told: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(storage, 1)

    def broken(*arguments: object) -> None:
        raise RuntimeError("no words")

    monkeypatch.setattr(outlets, "replace_file", broken)
    monkeypatch.setattr(outlets, "notify", broken)
    settings, _ = settings_for(storage)
    found = told.run(lambda: (settings._replace(notify_socket="/s", watchdog_secs=60.0), []), SteppedClock(500))
    assert told.exit_code == 0
    assert [file for file, _ in failures_of(found)] == ["/s", settings.heartbeat_file]


@pytest.mark.parametrize("name", ["metadata.json", ".metadata.json.prev", "heartbeat"])
def test_no_file_of_the_store_is_ever_replaced(storage: Path, told: Loop, tmp_path: Path, name: str) -> None:
    make_store(storage, 1)
    (tmp_path / "link").symlink_to(storage)
    before = {path.name: path.read_bytes() for path in storage.iterdir()}
    variables = {"HOUSEKEEPER_HEARTBEAT_FILE": str(storage / name), "METRICS_FILE": str(tmp_path / "link" / name)}
    found = told.run(lambda: settings_for(storage, **variables), SteppedClock(2))
    refused = [item["variable"] for item in found if item["event"] == "housekeeper.invalid_env"]
    assert refused == [f"GOFR_DIG_{variable}" for variable in variables] * 2
    assert {path.name: path.read_bytes() for path in storage.iterdir()} == before


@pytest.mark.parametrize("name", ["metadata.json", ".metadata.json.prev", "blob"])
def test_nor_one_of_another_store(storage: Path, told: Loop, tmp_path: Path, name: str) -> None:
    make_store(storage, 1)
    [guid] = make_store(tmp_path / "other", 1)
    file = tmp_path / "other" / (f"{guid}.json" if name == "blob" else name)
    file.touch()
    before = file.read_bytes()
    told.run(lambda: settings_for(storage, HOUSEKEEPER_HEARTBEAT_FILE=str(file), METRICS_FILE=str(file)), Timed())
    assert file.read_bytes() == before
    assert {path.name for path in file.parent.iterdir()} == {"metadata.json", f"{guid}.json", file.name}


@pytest.mark.parametrize(
    ("variables", "refused"),
    [
        ({"HOUSEKEEPER_HEARTBEAT_FILE": "file", "LOG_FILE": "link/file"}, "HOUSEKEEPER_HEARTBEAT_FILE"),
        ({"HOUSEKEEPER_HEARTBEAT_FILE": "file.2", "LOG_FILE": "file"}, "HOUSEKEEPER_HEARTBEAT_FILE"),
        ({"METRICS_FILE": "link/file", "LOG_FILE": "file"}, "METRICS_FILE"),
        ({"METRICS_FILE": "file", "HOUSEKEEPER_HEARTBEAT_FILE": "below/../file"}, "METRICS_FILE"),
    ],
)
def test_of_two_settings_that_name_one_file_one_is_refused(
    storage: Path, told: Loop, tmp_path: Path, variables: dict[str, str], refused: str
) -> None:
    make_store(storage, 1)
    (tmp_path / "below").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "below" / "..")
    named = {name: f"{tmp_path}/{file}" for name, file in variables.items()}
    found = told.run(lambda: settings_for(storage, **named), Timed())
    told_of = [item for item in found if item["event"] == "housekeeper.invalid_env"]
    assert [(item["variable"], item["reason"]) for item in told_of] == [
        (f"GOFR_DIG_{refused}", "another setting names the same file")
    ]
    assert failures_of(found) == []


# Metrics


def test_metrics_tell_how_the_cycle_left_the_store(storage: Path, told: Loop, metrics: Path) -> None:
    make_store(storage, 5, size=1000)
    orphan = storage / "11111111-1111-4111-8111-111111111111.json"
    orphan.write_bytes(b"x" * 500)
    os.utime(orphan, (1, 1))
    clock = Timed()
    told.run(lambda: settings_for(storage, METRICS_FILE=str(metrics), MAX_STORAGE_MB="2500B"), clock)
    found = values(metrics)
    assert (found["usage_bytes"], found["sessions"], found["limit_bytes"]) == (2500, 2, 2500)
    assert (found["deleted_sessions_total"], found["freed_bytes_total"]) == (3, 3000)
    assert anomalies(metrics) == {"orphan": 1}
    assert found["interval_seconds"] == 3600
    assert found["last_success_timestamp_seconds"] == 1795521600  # 2026-11-24 12:00:00 UTC
    assert families(metrics.read_bytes())


def test_dangling_entries_that_were_swept_are_no_longer_counted(storage: Path, told: Loop, metrics: Path) -> None:
    guids = make_store(storage, 6, size=1000)
    (storage / f"{guids[0]}.json").unlink()
    (storage / f"{guids[5]}.json").unlink()
    told.run(lambda: settings_for(storage, METRICS_FILE=str(metrics), MAX_STORAGE_MB="2000B"), Timed())
    assert anomalies(metrics) == {"dangling": 1}
    assert values(metrics)["sessions"] == 2


def test_counters_survive_restarts_and_cycles_of_a_timer(storage: Path, told: Loop, metrics: Path) -> None:
    for number in range(3):
        make_store(storage, 2, size=1000, seed=number)
        told.run(lambda: settings_for(storage, METRICS_FILE=str(metrics), MAX_STORAGE_MB="1000B"), Timed(), once=True)
    found = values(metrics)
    assert (found["cycles_total"], found["deleted_sessions_total"]) == (3, 5)


def test_a_timers_cycle_that_finds_another_one_at_work_is_counted(
    storage: Path, told: Loop, metrics: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one begins, finds the lock held, and ends while the first is in its cycle."""
    make_store(storage, 1)
    other, quiet = Loop(tmp_path / "other.log", monkeypatch), EventLog(build_logger(None, True, 10))
    real = housekeeper.run

    def load() -> tuple[Settings, list[Fallback]]:
        return settings_for(storage, METRICS_FILE=str(metrics))

    def run(*arguments: Any) -> Any:
        monkeypatch.setattr(housekeeper, "run", real)
        with open_store(str(storage)) as store, acquire_lock(store, quiet, Clock(), "run-loop", 0, 3600):
            other.run(load, Timed(), once=True)
        assert other.exit_code == 2
        return real(*arguments)

    monkeypatch.setattr(housekeeper, "run", run)
    told.run(load, Timed(), once=True)
    found = values(metrics)
    assert (found["cycles_total"], found["lock_busy_total"], found["last_exit_code"]) == (2, 1, 0)


def test_two_loops_on_one_metrics_file_are_told_once(storage: Path, told: Loop, metrics: Path) -> None:
    make_store(storage, 1)
    other = Metrics("/srv/other").render()
    clock = Timed()

    def at_sleep() -> None:
        metrics.write_bytes(other)
        if len(clock.slept_secs) > 2 * 3600 / NAP_SECS:
            clock.stop()

    clock.at_sleep = at_sleep
    metrics.write_bytes(other)  # that one may have moved here: nobody knows yet
    found = told.run(lambda: settings_for(storage, METRICS_FILE=str(metrics)), clock)
    assert sum(item["event"] == "housekeeper.cycle_ok" for item in found) >= 3
    [shared] = [item for item in found if item["event"] == "housekeeper.metrics_shared"]
    assert (shared["@l"], shared["file"], shared["other_dir"]) == ("Warning", str(metrics), "/srv/other")


def test_a_metrics_file_that_is_none_is_begun_anew(storage: Path, told: Loop, metrics: Path) -> None:
    make_store(storage, 1)
    metrics.write_text("what is this?\n")
    found = told.run(lambda: settings_for(storage, METRICS_FILE=str(metrics)), Timed())
    assert failures_of(found) == [(str(metrics), None)]
    assert values(metrics)["cycles_total"] == 1


def test_a_dry_run_counts_nothing_as_deleted(storage: Path, told: Loop, metrics: Path) -> None:
    make_store(storage, 5, size=1000)
    told.run(lambda: settings_for(storage, METRICS_FILE=str(metrics), MAX_STORAGE_MB="2000B"), Timed(), only_plan=True)
    found = values(metrics)
    assert (found["deleted_sessions_total"], found["usage_bytes"], found["cycles_total"]) == (0, 5000, 1)


def test_what_a_failed_or_interrupted_cycle_deleted_is_counted(
    storage: Path, told: Loop, metrics: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(storage, 5, size=1000)
    clock = Timed()
    real = Store.unlink

    def unlink(self: Store, name: str) -> bool:
        if name.endswith(".json"):  # a signal during the first deletion: the second is not begun
            clock.stop()
        return real(self, name)

    monkeypatch.setattr(Store, "unlink", unlink)
    told.run(lambda: settings_for(storage, METRICS_FILE=str(metrics), MAX_STORAGE_MB="1000B"), clock)
    found = values(metrics)
    assert (found["deleted_sessions_total"], found["usage_bytes"], found["sessions"]) == (1, 4000, 4)
    assert (found["cycles_total"], found["failed_cycles_total"]) == (0, 0)

    def broken(snapshot: Snapshot, *_: object) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(housekeeper, "plan_prune", broken)
    told.run(lambda: settings_for(storage, METRICS_FILE=str(metrics)), Timed())
    found = values(metrics)
    assert (found["deleted_sessions_total"], found["cycles_total"], found["failed_cycles_total"]) == (1, 1, 1)
    assert found["last_exit_code"] == 1


# The watchdog


def watched(storage: Path, **variables: str) -> tuple[Settings, list[Fallback]]:
    settings, fallbacks = settings_for(storage, **variables)
    return settings._replace(notify_socket="/run/notify", watchdog_secs=60.0), fallbacks


def test_the_watchdog_is_fed_every_quarter_of_its_time_while_the_loop_sleeps(storage: Path, told: Loop) -> None:
    make_store(storage, 1)
    clock = Timed()
    clock.at_sleep = lambda: clock.stop() if len(clock.slept_secs) == 20 else None
    told.run(lambda: watched(storage), clock)
    assert set(clock.slept_secs) == {15.0}
    assert told.sent.count(WATCHDOG) == 21
    assert told.sent[-1] == STOPPING


class Napping:
    """A loop that sleeps an hour, with the naps that it really takes."""

    def __init__(self, storage: Path, told: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(status, "LONGEST_NAP_SECS", NAP_SECS)
        make_store(storage, 1)
        self.clock = Timed()
        self.written_at: list[float] = []
        self._storage = storage
        self._told = told
        real = outlets.replace_file

        def replace_file(path: str, *content: Any) -> None:
            self.written_at.append(self.clock.secs)
            real(path, *content)

        monkeypatch.setattr(outlets, "replace_file", replace_file)

    def run(self, at_nap: Callable[[int], object], **variables: str) -> list[dict[str, Any]]:
        """`at_nap` is called before each nap, with its number."""

        def at_sleep() -> None:
            at_nap(len(self.clock.slept_secs))
            if sum(self.clock.slept_secs) > 3600 - 60:
                self.clock.stop()

        self.clock.at_sleep = at_sleep
        return self._told.run(lambda: settings_for(self._storage, **variables), self.clock)


def test_a_loop_that_sleeps_wakes_up_hardly_more_than_once_a_minute_and_writes_nothing(
    storage: Path, told: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    napping = Napping(storage, told, monkeypatch)
    fell_asleep: list[int] = []
    napping.run(lambda number: fell_asleep.append(len(napping.written_at)))
    assert set(napping.clock.slept_secs[:-1]) == {NAP_SECS} and 50 < NAP_SECS < 60
    assert set(fell_asleep) == {fell_asleep[0]}


@pytest.mark.parametrize("directory", [False, True], ids=["the file", "its directory, for some minutes"])
def test_a_heartbeat_that_somebody_removes_is_back_within_a_minute(
    storage: Path, told: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, directory: bool
) -> None:
    napping = Napping(storage, told, monkeypatch)
    heartbeat = tmp_path / "run" / "heartbeat"
    heartbeat.parent.mkdir()
    seen: list[bytes] = []

    def at_nap(number: int) -> None:
        if number in (10, 11):
            seen.append(heartbeat.read_bytes())
        if number in (10, 20):
            heartbeat.unlink()
        if number in (20, 25) and directory:
            heartbeat.parent.rmdir() if number == 20 else heartbeat.parent.mkdir()
        if number == 26:
            seen.append(heartbeat.read_bytes())

    found = napping.run(at_nap, HOUSEKEEPER_HEARTBEAT_FILE=str(heartbeat))
    assert len(seen) == 3 and len(set(seen)) == 1, "another heartbeat than the one that was removed"
    assert len(failures_of(found)) == directory


def test_the_watchdog_is_fed_during_a_long_prune(storage: Path, told: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    make_store(storage, 91, size=10)
    clock = Timed()
    slow_deletions(monkeypatch, clock, 1.0)
    clock.at_sleep = clock.stop
    told.run(lambda: watched(storage, MAX_STORAGE_MB="10B"), clock)
    before_the_outcome = told.sent[: next(n for n, line in enumerate(told.sent) if "deleted 90" in line)]
    assert before_the_outcome.count(WATCHDOG) == 90 // 15


def test_a_loop_that_fails_all_the_time_is_not_fed_any_more(tmp_path: Path, told: Loop) -> None:
    clock = Timed()
    fed: list[int] = []

    def at_sleep() -> None:
        if len(clock.slept_secs) % 40 == 0:  # the first slice of ten minutes
            fed.append(told.sent.count(WATCHDOG))
        if len(fed) == 6:
            clock.stop()

    clock.at_sleep = at_sleep
    told.run(lambda: watched(tmp_path / "absent", HOUSEKEEPING_INTERVAL_MINS="10"), clock)
    first, second, third, *later = fed
    assert second - first == 40 and third - second >= 39
    assert set(later) == {third}


def test_a_wall_clock_that_is_set_does_not_starve_the_watchdog(storage: Path, told: Loop) -> None:
    make_store(storage, 1)
    clock = Timed()

    def at_sleep() -> None:
        if len(clock.slept_secs) == 5:
            clock.begin -= timedelta(days=2)
        if len(clock.slept_secs) == 10:
            clock.begin += timedelta(days=20)
        if len(clock.slept_secs) == 20:
            clock.stop()

    clock.at_sleep = at_sleep
    told.run(lambda: watched(storage), clock)
    assert told.sent.count(WATCHDOG) == 21


def test_an_absurdly_short_watchdog_does_not_make_the_loop_spin(storage: Path, told: Loop) -> None:
    make_store(storage, 1)
    clock = Timed()
    settings, _ = watched(storage)
    told.run(lambda: (settings._replace(watchdog_secs=1e-6), []), clock)
    assert clock.slept_secs == [0.1]


def test_json_of_a_heartbeat_is_strict(storage: Path, told: Loop) -> None:
    storage = storage / os.fsdecode(b"not\xffutf8\n")
    make_store(storage, 1)
    settings, _ = settings_for(storage)
    told.run(lambda: (settings, []), Timed())
    facts = json.loads(Path(settings.heartbeat_file).read_bytes().decode("ascii"))
    json.dumps(facts, ensure_ascii=False).encode("utf-8", "strict")
    assert facts["storage_dir"].endswith("not\\xffutf8\\x0a")
