"""The transaction: its order, its events, its exit codes, and what a dry run and a signal do to it."""

from __future__ import annotations

import errno
import logging
import os
import signal
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from client import Client
from stores import blobs, leftovers, make_store, read_entries, write_entries

from storage_manager.base.clock import Clock
from storage_manager.base.errors import (
    EXIT_FAILED,
    EXIT_OK,
    Interrupted,
    LockBusy,
    MetadataCorrupt,
    StorageManagerError,
    StoreError,
    StoreMissing,
)
from storage_manager.base.log import EventLog
from storage_manager.jobs import prune as prune_module
from storage_manager.jobs.evidence import HANDFUL
from storage_manager.jobs.plan import Outcome, Plan
from storage_manager.jobs.policy import Limits, plan_orphan_purge, plan_prune, plan_purge
from storage_manager.jobs.prune import Job, dry_run, run
from storage_manager.jobs.work import Terms
from storage_manager.store import reading, survey
from storage_manager.store.snapshot import Snapshot
from storage_manager.store.survey import take_snapshot

COUNT, LIMIT, VICTIMS = 6, 4000, 2
LOCK = ".prune_size.lock"


class Events(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str, dict[str, Any]]] = []

    def emit(self, record: logging.LogRecord) -> None:
        name = getattr(record, "event", "").replace("storage_manager.", "")
        self.found.append((name, record.levelname, getattr(record, "fields", {})))

    def names(self) -> list[str]:
        return [key for key, _, _ in self.found]

    def fields(self, key: str) -> dict[str, Any]:
        (found,) = [fields for name, _, fields in self.found if name == key]
        return found

    def severity(self, key: str) -> str:
        (found,) = [level for name, level, _ in self.found if name == key]
        return found


@pytest.fixture
def heard() -> Events:
    return Events()


@pytest.fixture
def log(heard: Events) -> EventLog:
    logger = logging.Logger("test")
    logger.addHandler(heard)
    return EventLog(logger)


def prune_job(storage: Path, limit: int = LIMIT, group: str | None = None, **options: Any) -> Job:
    limits = Limits(limit, options.pop("target", limit), group=group, **options)
    return Job("prune", Terms(str(storage), "prune-size", 0.0, 3600.0), plan_prune, limits, explain=True)


def purge_job(storage: Path, age_days: float = 0.0) -> Job:
    return Job("purge", Terms(str(storage), "purge", 0.0, 3600.0), plan_purge, Limits(max_age_days=age_days))


def after_unlink(patch: pytest.MonkeyPatch, name: str, action: Callable[[], object]) -> None:
    real = os.unlink

    def unlink(path: Any, *arguments: Any, **options: Any) -> None:
        real(path, *arguments, **options)
        if path == name:
            action()

    patch.setattr(os, "unlink", unlink)


def test_a_prune_deletes_the_oldest_and_tells_its_story_in_order(storage: Path, log: EventLog, heard: Events) -> None:
    guids = make_store(storage, COUNT, group="g")
    outcome = run(prune_job(storage), Clock(), log)
    assert list(read_entries(storage)) == guids[VICTIMS:]
    assert blobs(storage) == set(guids[VICTIMS:])
    assert leftovers(storage) == []
    assert heard.names() == ["prune.check", "prune.started", "prune.deleted", "prune.deleted", "prune.summary"]
    assert {level for _, level, _ in heard.found} == {"INFO"}
    check = heard.fields("prune.check")
    assert (check["current_bytes"], check["item_count"], check["anomalies"]) == (6000, COUNT, 0)
    assert check["storage_dir"] == str(storage) and check["group"] is None
    assert {"current_mb", "target_mb", "anomaly_mb"} <= set(check)
    summary = heard.fields("prune.summary")
    assert {key: summary[key] for key in check} == check
    assert (summary["deleted_count"], summary["freed_bytes"], summary["final_bytes"]) == (2, 2000, 4000)
    assert (summary["exit_code"], summary["dry_run"]) == (EXIT_OK, False)
    assert {"freed_mb", "final_mb", "duration_ms"} <= set(summary)
    deleted = [fields for key, _, fields in heard.found if key == "prune.deleted"]
    assert [(item["guid"], item["size_bytes"], item["group"]) for item in deleted] == [
        (g, 1000, "g") for g in guids[:2]
    ]
    assert (outcome.counts.deleted_count, outcome.counts.freed_bytes, outcome.final_bytes) == (2, 2000, 4000)
    assert outcome.exit_code == EXIT_OK and not outcome.dry_run


def test_extra_members_of_an_entry_are_never_logged(storage: Path, log: EventLog, heard: Events) -> None:
    make_store(storage, COUNT, url="https://example.org/?token=SECRET", aliases=["SECRET"])
    run(prune_job(storage), Clock(), log)
    assert "SECRET" not in str(heard.found)


def test_a_store_within_its_limit_is_left_byte_for_byte(storage: Path, log: EventLog, heard: Events) -> None:
    make_store(storage, COUNT)
    before = (storage / "metadata.json").read_bytes(), os.stat(storage / "metadata.json").st_ino
    outcome = run(prune_job(storage, 6000), Clock(), log)
    assert ((storage / "metadata.json").read_bytes(), os.stat(storage / "metadata.json").st_ino) == before
    assert outcome.exit_code == EXIT_OK and outcome.counts.deleted_count == 0
    assert heard.names() == ["prune.check", "prune.noop", "prune.summary"]
    assert leftovers(storage) == []


def test_an_empty_directory_is_an_empty_store_in_which_nothing_is_made(
    storage: Path, log: EventLog, heard: Events
) -> None:
    assert run(prune_job(storage), Clock(), log).exit_code == EXIT_OK
    assert "prune.empty_storage" in heard.names()
    assert os.listdir(storage) == []


def test_blobs_without_any_metadata_are_reported_and_stay(storage: Path, log: EventLog, heard: Events) -> None:
    guids = make_store(storage, COUNT)
    (storage / "metadata.json").unlink()
    outcome = run(prune_job(storage), Clock(), log)
    assert outcome.exit_code == EXIT_FAILED
    assert heard.fields("anomaly")["count"] == COUNT
    assert heard.severity("prune.target_unmet") == "WARNING"
    assert blobs(storage) == set(guids)
    assert not (storage / "metadata.json").exists()


def test_a_store_right_below_an_empty_one_is_pointed_out(storage: Path, log: EventLog, heard: Events) -> None:
    make_store(storage / "sessions", 1)
    run(prune_job(storage), Clock(), log)
    assert heard.fields("storage_suspect")["suggested_dirs"] == [str(storage / "sessions")]
    assert heard.severity("storage_suspect") == "WARNING"


def test_what_may_not_be_deleted_does_not_empty_the_store_for_nothing(
    storage: Path, log: EventLog, heard: Events
) -> None:
    guids = make_store(storage, COUNT)
    orphan = storage / "11111111-2222-4333-8444-555555555555.json"
    orphan.write_bytes(b"o" * 5000)
    os.utime(orphan, (1_000_000_000, 1_000_000_000))
    outcome = run(prune_job(storage), Clock(), log)
    assert outcome.exit_code == EXIT_FAILED
    assert list(read_entries(storage)) == guids[-2:]  # half of 4,000 bytes
    unmet = heard.fields("prune.target_unmet")
    assert unmet["causes"] == {"orphan": 5000} and unmet["final_bytes"] == 7000
    assert orphan.exists()


def test_dangling_entries_older_than_the_last_victim_are_swept(storage: Path, log: EventLog, heard: Events) -> None:
    guids = make_store(storage, 8)
    for guid in (guids[0], guids[2], guids[7]):
        (storage / f"{guid}.json").unlink()
    outcome = run(prune_job(storage, 3000), Clock(), log)
    assert outcome.counts.deleted_count == 2 and outcome.counts.swept_count == 2
    assert list(read_entries(storage)) == guids[4:]
    assert heard.fields("prune.summary")["swept_count"] == 2


def test_a_group_is_pruned_without_the_others(storage: Path, log: EventLog) -> None:
    ours = make_store(storage, 4, seed=1, group="a")
    others = make_store(storage, 4, seed=2, group="b")
    outcome = run(prune_job(storage, 2000, group="a"), Clock(), log)
    assert outcome.counts.deleted_count == 2
    assert blobs(storage) == {*ours[2:], *others}
    assert set(read_entries(storage)) == {*ours[2:], *others}


def test_a_dry_run_plans_the_same_and_touches_nothing(storage: Path, log: EventLog, heard: Events) -> None:
    guids = make_store(storage, COUNT)
    (storage / f"{guids[0]}.json").unlink()
    job = prune_job(storage)
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in storage.iterdir()}
    os.chmod(storage, 0o555)
    planned = dry_run(job, Clock(), log)
    os.chmod(storage, 0o755)
    assert {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in storage.iterdir()} == before
    assert planned.dry_run and heard.fields("prune.summary")["dry_run"]
    assert "prune.deleted" not in heard.names()
    done = run(job, Clock(), log)
    assert done.plan == planned.plan
    assert vars(done.counts) == vars(planned.counts)
    assert done._replace(dry_run=True, counts=planned.counts) == planned


def test_a_dry_run_ignores_the_lock(storage: Path, log: EventLog) -> None:
    make_store(storage, COUNT)
    (storage / LOCK).write_text("pid=1 started_at=1\n")
    assert dry_run(prune_job(storage), Clock(), log).counts.deleted_count == VICTIMS
    with pytest.raises(LockBusy):
        run(prune_job(storage), Clock(), log)


def test_a_busy_lock_is_told_once(storage: Path, log: EventLog, heard: Events) -> None:
    make_store(storage, COUNT)
    (storage / LOCK).write_text("pid=1 started_at=1\n")
    with pytest.raises(LockBusy) as caught:
        run(prune_job(storage), Clock(), log)
    assert caught.value.reported and caught.value.exit_code == 2
    assert heard.names() == ["prune.lock_busy"]


def test_a_purge_has_its_own_events_and_no_target(storage: Path, log: EventLog, heard: Events) -> None:
    make_store(storage, 2)
    outcome = run(purge_job(storage), Clock(), log)
    assert outcome.counts.deleted_count == 2 and outcome.exit_code == EXIT_OK
    assert read_entries(storage) == {} and blobs(storage) == set()
    assert heard.names() == ["purge.started", "purge.deleted", "purge.deleted", "purge.summary"]


def test_a_missing_store_is_an_error_and_is_not_created(tmp_path: Path, log: EventLog) -> None:
    with pytest.raises(StoreMissing) as caught:
        run(prune_job(tmp_path / "absent"), Clock(), log)
    assert caught.value.exit_code == EXIT_FAILED
    assert not (tmp_path / "absent").exists()


def test_corrupt_metadata_is_reported_and_the_lock_released(
    storage: Path, log: EventLog, heard: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "READ_PATIENCE_SECS", 0.05)
    monkeypatch.setattr(survey, "READ_PATIENCE_SECS", 0.05)
    guids = make_store(storage, COUNT)
    (storage / "metadata.json").write_text("{")
    with pytest.raises(MetadataCorrupt) as caught:
        run(prune_job(storage), Clock(), log)
    assert caught.value.reported
    assert heard.severity("metadata_corrupt") == "ERROR"
    assert blobs(storage) == set(guids) and leftovers(storage) == []


def test_a_torn_file_is_waited_for(storage: Path, log: EventLog) -> None:
    guids = make_store(storage, COUNT)
    text = (storage / "metadata.json").read_text()
    (storage / "metadata.json").write_text(text[:200])
    timer = threading.Timer(0.2, lambda: (storage / "metadata.json").write_text(text))
    timer.start()
    outcome = run(prune_job(storage), Clock(), log)
    timer.join()
    assert outcome.exit_code == EXIT_OK
    assert list(read_entries(storage)) == guids[VICTIMS:]


def test_the_directory_is_listed_after_the_metadata_was_read(
    storage: Path, log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A save that ends between the two must look in flight; listed before, its entry would look dangling."""
    make_store(storage, COUNT)
    saved: list[str] = []
    real = os.scandir

    def scandir(where: Any) -> Any:
        if not saved:
            saved.append(Client(storage).save())
        return real(where)

    monkeypatch.setattr(os, "scandir", scandir)
    snapshot, _ = take_snapshot(str(storage), Clock(), log)
    assert snapshot.dangling == []
    assert len(snapshot.sessions) + len(snapshot.anomalies) == COUNT + 1


class Stopping(Clock):
    """A clock with a stop signal in it, as the handler leaves one while signals are deferred."""

    def stop(self) -> None:
        self.stop_signal = signal.SIGTERM


def test_a_stop_signal_ends_the_prune_after_the_current_blob_and_a_commit(
    storage: Path, log: EventLog, heard: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    guids = make_store(storage, COUNT)
    clock = Stopping()
    after_unlink(monkeypatch, f"{guids[0]}.json", clock.stop)
    with pytest.raises(Interrupted) as caught:
        run(prune_job(storage), clock, log)
    assert caught.value.exit_code == 143
    assert list(read_entries(storage)) == guids[1:]
    assert blobs(storage) == set(guids[1:])
    assert leftovers(storage) == []
    assert heard.fields("prune.summary")["exit_code"] == 143
    assert heard.fields("prune.summary")["deleted_count"] == 1


def test_a_stop_signal_before_the_first_deletion_deletes_nothing(
    storage: Path, log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    guids = make_store(storage, COUNT)
    clock = Stopping()
    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda where: (clock.stop(), real(where))[1])
    with pytest.raises(Interrupted):
        run(prune_job(storage), clock, log)
    assert blobs(storage) == set(guids) == set(read_entries(storage))
    assert leftovers(storage) == []


def test_a_stop_signal_while_metadata_is_torn_stops_at_once(storage: Path, log: EventLog) -> None:
    guids = make_store(storage, COUNT)
    (storage / "metadata.json").write_text("{")

    class Impatient(Stopping):
        def pause(self, secs: float) -> None:
            self.stop()

    with pytest.raises(Interrupted):
        run(prune_job(storage), Impatient(), log)
    assert blobs(storage) == set(guids) and leftovers(storage) == []


def test_a_long_prune_commits_on_the_way_and_renews_its_lock(
    storage: Path, log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    guids = make_store(storage, 10)
    later = [0.0]
    real_monotonic = Clock.monotonic
    monkeypatch.setattr(Clock, "monotonic", lambda clock: real_monotonic(clock) + later[0])
    seen: list[int] = []
    real = os.unlink

    def unlink(path: Any, *arguments: Any, **options: Any) -> None:
        if path in {f"{guid}.json" for guid in guids}:
            seen.append(len(read_entries(storage)))
            later[0] += 2.0  # as if each deletion took that long
            os.utime(storage / LOCK, (1, 1))
        real(path, *arguments, **options)

    monkeypatch.setattr(os, "unlink", unlink)
    run(prune_job(storage, 1000), Clock(), log)
    assert seen == [10, 10, 10, 7, 7, 7, 4, 4, 4]
    assert list(read_entries(storage)) == guids[9:]


def test_a_blob_that_cannot_be_deleted_fails_the_run_and_keeps_its_entry(
    storage: Path, log: EventLog, heard: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    guids = make_store(storage, COUNT)
    real = os.unlink

    def unlink(path: Any, *arguments: Any, **options: Any) -> None:
        if path == f"{guids[0]}.json":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", unlink)
        outcome = run(prune_job(storage), Clock(), log)
    assert outcome.exit_code == EXIT_FAILED
    assert (outcome.counts.deleted_count, outcome.final_bytes) == (1, 5000)
    failed = heard.fields("prune.delete_failed")
    assert (failed["guid"], failed["errno"], failed["file"]) == (guids[0], "EIO", str(storage / f"{guids[0]}.json"))
    assert heard.severity("prune.delete_failed") == "ERROR"
    assert set(read_entries(storage)) == blobs(storage) == {guids[0], *guids[2:]}


def test_a_failed_commit_tells_what_was_deleted_before_it(
    storage: Path, log: EventLog, heard: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    guids = make_store(storage, COUNT)
    real = os.rename

    def rename(source: Any, *arguments: Any, **options: Any) -> None:
        if source == ".metadata.json.tmp":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(source, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", rename)
        with pytest.raises(StoreError) as caught:
            run(prune_job(storage), Clock(), log)
    assert caught.value.reported
    failed = heard.fields("prune.failed")
    assert (failed["deleted_count"], failed["freed_bytes"], failed["exit_code"]) == (2, 2000, EXIT_FAILED)
    assert set(read_entries(storage)) == set(guids) and blobs(storage) == set(guids[VICTIMS:])
    assert leftovers(storage) == []


def test_a_fault_in_the_plan_releases_everything(storage: Path, log: EventLog) -> None:
    make_store(storage, COUNT)

    def planner(snapshot: Snapshot, limits: Limits, now: datetime) -> Plan:
        raise StorageManagerError("no plan")

    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(StorageManagerError, match="no plan"):
        run(prune_job(storage)._replace(planner=planner), Clock(), log)
    assert len(os.listdir("/proc/self/fd")) == before
    assert leftovers(storage) == []


def test_no_descriptor_is_left_open(storage: Path, log: EventLog) -> None:
    def prune() -> Outcome:
        make_store(storage, COUNT)
        return run(prune_job(storage, 1000), Clock(), log)

    prune()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        assert prune().exit_code == EXIT_OK
    assert len(os.listdir("/proc/self/fd")) == before


def test_each_kind_of_anomaly_is_told_once_with_a_few_examples(storage: Path, log: EventLog, heard: Events) -> None:
    guids = make_store(storage, 30)
    write_entries(storage, {guid: entry for guid, entry in read_entries(storage).items() if guid in guids[20:]})
    for guid in guids[:20]:
        os.utime(storage / f"{guid}.json", (1_000_000_000, 1_000_000_000))
    take_snapshot(str(storage), Clock(), log)
    found = heard.fields("anomaly")
    assert (found["kind"], found["count"], found["size_bytes"]) == ("orphan", 20, 20_000)
    assert 0 < len(found["examples"]) <= 10
    assert heard.severity("anomaly") == "WARNING"


# --- victims that changed


def rewrite(blob: Path) -> None:
    """The same inode and size."""
    blob.write_bytes(b"y" * blob.stat().st_size)


def resize(blob: Path) -> None:
    """The same inode and time."""
    status = blob.stat()
    blob.write_bytes(b"y" * (status.st_size + 1))
    os.utime(blob, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace(blob: Path) -> None:
    """The same size and time."""
    status = blob.stat()
    other = blob.with_name("other")
    other.write_bytes(b"y" * status.st_size)
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.rename(blob)


@pytest.mark.parametrize("change", [rewrite, resize, replace])
@pytest.mark.parametrize("kind", ["prune", "purge", "orphans"])
def test_a_victim_that_changed_is_none(
    storage: Path,
    log: EventLog,
    heard: Events,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], None],
    kind: str,
) -> None:
    guids = make_store(storage, COUNT)
    for number, guid in enumerate(guids):
        os.utime(storage / f"{guid}.json", (1000 + number, 1000 + number))
    job, victims = prune_job(storage), guids[:VICTIMS]
    if kind != "prune":
        job, victims = purge_job(storage), guids
    if kind == "orphans":
        write_entries(storage, {})
        job = job._replace(planner=plan_orphan_purge)
    changed = storage / f"{guids[1]}.json"
    after_unlink(monkeypatch, f"{guids[0]}.json", lambda: change(changed))
    outcome = run(job, Clock(), log)
    assert (outcome.exit_code, outcome.counts.deleted_count, outcome.counts.changed) == (
        EXIT_OK,
        len(victims) - 1,
        {changed.name},
    )
    stay = {guid for guid in guids if guid not in victims} | {guids[1]}
    assert blobs(storage) == stay and changed.read_bytes().startswith(b"y")
    assert set(read_entries(storage)) == (set() if kind == "orphans" else stay)
    assert heard.fields(f"{job.kind}.changed")["guid"] == guids[1]
    assert outcome.final_bytes == sum(path.stat().st_size for path in storage.glob("*-*.json")) - (change is resize)


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_a_victim_that_cannot_be_examined_stays(
    storage: Path, log: EventLog, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    guids = make_store(storage, COUNT)
    real = os.stat

    def stat(name: Any, *arguments: Any, **options: Any) -> os.stat_result:
        if name == f"{guids[1]}.json":
            raise OSError(code, os.strerror(code))
        return real(name, *arguments, **options)

    monkeypatch.setattr(os, "stat", stat)
    outcome = run(prune_job(storage), Clock(), log)
    monkeypatch.undo()
    assert (outcome.exit_code, outcome.counts.failed) == (EXIT_FAILED, {f"{guids[1]}.json"})
    assert set(read_entries(storage)) == {guids[1], *guids[VICTIMS:]} == blobs(storage)


@pytest.mark.parametrize("victims", [1, HANDFUL, HANDFUL + 1])
def test_a_run_whose_victims_have_all_changed_fails_where_that_is_no_chance(
    storage: Path, log: EventLog, monkeypatch: pytest.MonkeyPatch, victims: int
) -> None:
    """As on a file system whose inode numbers do not last."""
    guids = make_store(storage, 10)
    monkeypatch.setattr(prune_module, "mark", lambda name, status: 0)
    outcome = run(prune_job(storage, (10 - victims) * 1000), Clock(), log)
    assert len(outcome.counts.changed) == victims and blobs(storage) == set(guids)
    assert outcome.exit_code == (EXIT_FAILED if victims > HANDFUL else EXIT_OK)
