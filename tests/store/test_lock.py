"""The prune lock: never two inside, never anything in the way that is not a lock, and never unlocked."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from stores import blobs, clean_environment, event, leftovers, make_store, read_entries, run_tool

from storage_manager.base.clock import Clock
from storage_manager.base.errors import LockBusy, LockLost, LockUnavailable, StoreError
from storage_manager.base.log import EventLog
from storage_manager.store.directory import Store, open_store
from storage_manager.store.lock import PruneLock, acquire_lock

LOCK = ".prune_size.lock"
COUNT, LIMIT, VICTIMS = 6, "4000B", 2

HOLDER = """
import logging, os, sys
from storage_manager.base.clock import Clock
from storage_manager.store.lock import acquire_lock
from storage_manager.base.log import EventLog
from storage_manager.store.directory import open_store
with open_store(sys.argv[1]) as store:
    with acquire_lock(store, EventLog(logging.Logger("holder")), Clock(), "prune-size", 30.0, 3600.0):
        os.write(1, b"held\\n")
        sys.stdin.read()
"""


@contextmanager
def holder(storage: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process inside the lock, until its standard input is closed."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(storage)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env=clean_environment(),
    ) as process:  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        try:
            assert process.stdout.readline() == b"held\n"
            yield process
        finally:
            process.stdin.close()
            process.wait(20)


class Events(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, Any]]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append((getattr(record, "event", ""), getattr(record, "fields", {})))

    def names(self) -> list[str]:
        return [key for key, _ in self.found]


@pytest.fixture
def heard() -> Events:
    return Events()


@pytest.fixture
def store(storage: Path) -> Iterator[Store]:
    with open_store(str(storage)) as opened:
        yield opened


Acquire = Callable[..., PruneLock]


@pytest.fixture
def acquire(store: Store, heard: Events) -> Acquire:
    logger = logging.Logger("test")
    logger.addHandler(heard)

    def run(timeout_secs: float = 0.0, stale_secs: float = 3600.0, clock: Clock | None = None) -> PruneLock:
        return acquire_lock(store, EventLog(logger), clock or Clock(), "prune-size", timeout_secs, stale_secs)

    return run


def prune(storage: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return run_tool("--storage-dir", storage, "prune-size", "--max-mb", LIMIT, *arguments)


def age(path: Path, secs: float) -> None:
    moment = time.time() - secs
    os.utime(path, (moment, moment))


# --- a live holder -----------------------------------------------------------------------------------------


def test_a_live_holder_is_named_and_nothing_is_deleted(storage: Path) -> None:
    guids = make_store(storage, COUNT)
    with holder(storage) as process:
        done = prune(storage)
    assert done.returncode == 2
    found = event(done.stderr, "storage_manager.prune.lock_busy")
    assert found["@l"] == "Warning"
    assert found["holder_pid"] == process.pid
    assert found["holder_host"] == os.uname().nodename
    assert found["holder_command"] == "prune-size"
    assert found["holder_age_secs"] >= 0
    assert str(process.pid) in found["@m"]
    assert blobs(storage) == set(guids) == set(read_entries(storage))


class Passing(Clock):
    """Sleep only moves the time on."""

    slept_secs = 0.0

    def monotonic(self) -> float:
        return self.slept_secs

    def sleep(self, secs: float) -> None:
        self.slept_secs += secs


@pytest.mark.parametrize(("timeout_secs", "keys"), [(4.0, []), (30.0, ["storage_manager.lock_wait"])])
def test_who_waits_for_long_says_so_once(
    storage: Path, acquire: Acquire, heard: Events, timeout_secs: float, keys: list[str]
) -> None:
    with holder(storage) as process:
        with pytest.raises(LockBusy):
            acquire(timeout_secs, clock=Passing())
        assert heard.names() == keys
        assert all(fields["holder_pid"] == process.pid for _, fields in heard.found)


@pytest.mark.parametrize("arguments", [("purge", "--yes", "--age-days", "0"), ("run-loop", "--once")])
def test_every_command_that_deletes_respects_the_lock(storage: Path, arguments: tuple[str, ...]) -> None:
    guids = make_store(storage, COUNT)
    with holder(storage):
        done = run_tool("--storage-dir", storage, *arguments, env={"GOFR_DIG_MAX_STORAGE_MB": LIMIT})
    assert done.returncode == 2
    assert event(done.stderr, "storage_manager.prune.lock_busy")
    assert blobs(storage) == set(guids)


@pytest.mark.parametrize("arguments", [("list",), ("stats",), ("prune-size", "--max-mb", LIMIT, "--dry-run")])
def test_a_command_that_only_looks_needs_no_lock(storage: Path, arguments: tuple[str, ...]) -> None:
    make_store(storage, COUNT)
    with holder(storage):
        assert run_tool("--storage-dir", storage, *arguments).returncode == 0
        assert (storage / LOCK).exists()


def test_a_live_holder_is_never_robbed_however_old_its_lock_is(storage: Path) -> None:
    guids = make_store(storage, COUNT)
    with holder(storage):
        age(storage / LOCK, 1_000_000)
        done = prune(storage, "--lock-stale-seconds", 30)
    assert done.returncode == 2
    warning = event(done.stderr, "housekeeper.lock_stale")
    assert warning["@l"] == "Warning" and warning["action"] == "left"
    assert warning["holder_age_secs"] > 30
    assert blobs(storage) == set(guids)


def test_a_waiting_prune_goes_on_when_the_holder_leaves(storage: Path) -> None:
    guids = make_store(storage, COUNT)
    with holder(storage) as process:
        waiting = subprocess.Popen(
            [sys.executable, "-m", "storage_manager", "--storage-dir", str(storage), "prune-size", "--max-mb", LIMIT,
             "--lock-timeout", "30"],
            env=clean_environment(), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert waiting.stderr is not None
        assert b"command_start" in waiting.stderr.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(0.4)
        assert process.stdin is not None
        process.stdin.close()
        with waiting.stderr:
            waiting.stderr.read()
        assert waiting.wait(30) == 0
    assert list(read_entries(storage)) == guids[VICTIMS:]
    assert leftovers(storage) == []


def test_a_waiting_prune_gives_up_when_its_time_is_over(storage: Path) -> None:
    make_store(storage, COUNT)
    with holder(storage):
        started = time.monotonic()
        done = prune(storage, "--lock-timeout", "0.5")
    assert done.returncode == 2
    assert time.monotonic() - started >= 0.5


def test_a_killed_holder_frees_the_lock(storage: Path) -> None:
    guids = make_store(storage, COUNT)
    with holder(storage) as process:
        process.kill()
        process.wait(20)
        assert (storage / LOCK).read_bytes()
        done = prune(storage)
        assert done.returncode == 0
        found = event(done.stderr, "housekeeper.lock_stale")
        assert found["holder_pid"] == process.pid and found["action"] == "taken_over"
    assert list(read_entries(storage)) == guids[VICTIMS:]
    assert leftovers(storage) == []


def test_deleting_the_lock_file_lets_nobody_in(storage: Path) -> None:
    guids = make_store(storage, COUNT)
    with holder(storage):
        (storage / LOCK).unlink()
        done = prune(storage)
        assert done.returncode == 2
        assert event(done.stderr, "storage_manager.prune.lock_busy")
    assert blobs(storage) == set(guids)


def test_a_directory_that_cannot_be_locked_leaves_the_lock_file_to_decide(
    storage: Path, acquire: Acquire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS, where only a file open for writing can be locked."""
    without_directory_locks(monkeypatch)
    with holder(storage), pytest.raises(LockBusy):
        acquire()
    with acquire():
        assert json.loads((storage / LOCK).read_text())["pid"] == os.getpid()
    assert not (storage / LOCK).exists()


def without_directory_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.flock

    def flock(fd: int, operation: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)


# --- what a lock file says that nobody holds ---------------------------------------------------------------


def test_the_identity_of_a_holder_that_died_is_reported_and_the_run_goes_on(storage: Path) -> None:
    guids = make_store(storage, COUNT)
    (storage / LOCK).write_text(
        '{"pid": 4242, "host": "far\\u001b[31m", "command": "run-loop", "started_at": "2020-01-01T00:00:00Z"}\n'
    )
    done = prune(storage)
    assert done.returncode == 0
    found = event(done.stderr, "housekeeper.lock_stale")
    assert found["@l"] == "Warning"
    assert (found["holder_pid"], found["holder_command"]) == (4242, "run-loop")
    assert "\x1b" not in found["holder_host"]
    assert list(read_entries(storage)) == guids[VICTIMS:]
    assert leftovers(storage) == []


@pytest.mark.parametrize("line", ["pid=1 started_at=1767000000\n", "pid=1 started_at=1767000000", "  pid=99999\n"])
def test_a_lock_of_the_previous_generation_is_respected_until_it_is_stale(storage: Path, line: str) -> None:
    guids = make_store(storage, COUNT)
    (storage / LOCK).write_text(line)
    done = prune(storage, "--lock-stale-seconds", 100)
    assert done.returncode == 2
    assert event(done.stderr, "storage_manager.prune.lock_busy")["holder_generation"] == "previous"
    assert (storage / LOCK).read_text() == line
    assert blobs(storage) == set(guids)

    age(storage / LOCK, 200)
    done = prune(storage, "--lock-stale-seconds", 100)
    assert done.returncode == 0
    assert event(done.stderr, "housekeeper.lock_stale")["action"] == "taken_over"
    assert list(read_entries(storage)) == guids[VICTIMS:]
    assert leftovers(storage) == []


def test_a_lock_of_the_previous_generation_from_the_far_future_is_stale(storage: Path) -> None:
    guids = make_store(storage, COUNT)
    (storage / LOCK).write_text("pid=1 started_at=1767000000\n")
    age(storage / LOCK, -200)
    assert prune(storage, "--lock-stale-seconds", 300).returncode == 2
    assert prune(storage, "--lock-stale-seconds", 100).returncode == 0
    assert list(read_entries(storage)) == guids[VICTIMS:]


@pytest.mark.parametrize(
    "text", [b"\x00\xff\xfe", b"[" * 3000, b"nonsense", b"[1]", b'{"pid": {}, "started_at": 7}', b"{" + b"9" * 8000]
)
def test_a_lock_file_with_nonsense_in_it_is_taken_over(storage: Path, text: bytes) -> None:
    guids = make_store(storage, COUNT)
    (storage / LOCK).write_bytes(text)
    done = prune(storage)
    assert done.returncode == 0
    assert event(done.stderr, "housekeeper.lock_stale")
    assert "@x" not in done.stderr
    assert list(read_entries(storage)) == guids[VICTIMS:]
    assert leftovers(storage) == []


def test_an_empty_young_lock_file_is_given_a_moment_to_be_written(storage: Path, acquire: Acquire) -> None:
    (storage / LOCK).touch()

    class PreviousGeneration(Clock):
        """Writes its line while we wait for it."""

        def pause(self, secs: float) -> None:
            (storage / LOCK).write_text("pid=77 started_at=1767000000\n")

    with pytest.raises(LockBusy) as caught:
        acquire(clock=PreviousGeneration())
    assert caught.value.holder["pid"] == 77
    assert (storage / LOCK).read_text() == "pid=77 started_at=1767000000\n"


def test_an_empty_lock_file_in_which_nobody_writes_is_taken(storage: Path, acquire: Acquire, heard: Events) -> None:
    (storage / LOCK).touch()
    age(storage / LOCK, 0.7)
    with acquire():
        assert json.loads((storage / LOCK).read_text())["pid"] == os.getpid()
    assert heard.names() == []
    assert not (storage / LOCK).exists()


def test_the_holder_writes_who_it_is(storage: Path, acquire: Acquire) -> None:
    with acquire():
        text = (storage / LOCK).read_text()
        assert text.endswith("\n") and text.count("\n") == 1
        said = json.loads(text)
        assert {"pid", "host", "command", "started_at"} <= set(said)
        assert (said["pid"], said["command"]) == (os.getpid(), "prune-size")
    assert leftovers(storage) == []


# --- what is in the way and is no lock file ----------------------------------------------------------------


def in_the_way(storage: Path, tmp_path: Path, kind: str) -> Path:
    """Put something in the lock's place; returns a file that must stay as it is."""
    target = tmp_path / "precious"
    target.write_text("precious")
    lock = storage / LOCK
    if kind == "symlink":
        lock.symlink_to(target)
    elif kind == "broken symlink":
        lock.symlink_to(tmp_path / "absent")
    elif kind == "directory":
        lock.mkdir()
    elif kind == "fifo":
        os.mkfifo(lock)
    else:
        os.link(target, lock)
    return target


@pytest.mark.parametrize("kind", ["symlink", "broken symlink", "directory", "fifo", "hard link"])
def test_what_is_not_a_lock_file_is_refused_and_left_alone(storage: Path, tmp_path: Path, kind: str) -> None:
    guids = make_store(storage, COUNT)
    target = in_the_way(storage, tmp_path, kind)
    before = os.lstat(storage / LOCK)
    done = prune(storage)
    assert done.returncode == 1
    assert LOCK in event(done.stderr, "storage_manager.prune.failed")["@m"]
    assert "Traceback" not in done.stderr and "@x" not in done.stderr
    assert target.read_text() == "precious"
    assert not (tmp_path / "absent").exists()
    after = os.lstat(storage / LOCK)
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert blobs(storage) == set(guids)


def test_a_file_system_without_flock_is_never_pruned(
    storage: Path, acquire: Acquire, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(LockUnavailable, match="ENOLCK") as caught:
        acquire()
    assert caught.value.exit_code == 1


def test_a_file_system_without_flock_is_left_without_a_lock_file(
    storage: Path, acquire: Acquire, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.raises(LockUnavailable):
        acquire()
    assert leftovers(storage) == []


def test_a_file_system_without_flock_ends_a_prune_with_code_1(storage: Path) -> None:
    guids = make_store(storage, COUNT)
    code = """
import errno, fcntl, sys
from storage_manager import cli
def flock(fd, operation):
    raise OSError(errno.ENOLCK, "No locks available")
fcntl.flock = flock
sys.exit(cli.main(sys.argv[1:]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, "--storage-dir", str(storage), "--log-format", "json", "prune-size", "--max-mb",
         LIMIT],
        env=clean_environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "ENOLCK" in event(done.stderr, "storage_manager.prune.failed")["@m"]
    assert blobs(storage) == set(guids)


def refuse(monkeypatch: pytest.MonkeyPatch, call: str, code: int) -> list[str]:
    """Let a system call on the lock file fail, and no other."""
    real = getattr(os, call)
    calls: list[str] = []

    def failing(subject: Any, *arguments: Any, **options: Any) -> Any:
        name = subject if isinstance(subject, str) else os.path.basename(os.readlink(f"/proc/self/fd/{subject}"))
        if name == LOCK:
            calls.append(call)
            raise OSError(code, os.strerror(code))
        return real(subject, *arguments, **options)

    monkeypatch.setattr(os, call, failing)
    return calls


@pytest.mark.parametrize(
    ("call", "code"),
    [("open", errno.EACCES), ("open", errno.EIO), ("open", errno.EROFS), ("fstat", errno.EIO)],
)  # fmt: skip
def test_a_failing_call_on_the_lock_file_names_it_and_its_errno(
    storage: Path, acquire: Acquire, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    calls = refuse(monkeypatch, call, code)
    with pytest.raises(StoreError) as caught:
        acquire()
    assert calls
    assert caught.value.exit_code == 1
    assert caught.value.fields == {"file": str(storage / LOCK), "errno": errno.errorcode[code]}
    monkeypatch.undo()
    with acquire():
        pass


def test_a_lock_file_that_cannot_be_read_is_reported(
    storage: Path, acquire: Acquire, monkeypatch: pytest.MonkeyPatch
) -> None:
    (storage / LOCK).write_text("{}")
    refuse(monkeypatch, "pread", errno.EIO)
    with pytest.raises(StoreError) as caught:
        acquire()
    assert caught.value.fields["errno"] == "EIO"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_too_full_for_a_lock_file_is_locked_by_its_directory(
    storage: Path, acquire: Acquire, heard: Events, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    assert refuse(monkeypatch, "open", code) == []
    with acquire() as lock:
        assert heard.names() == ["storage_manager.lock_file"]
        lock.refresh()
        assert prune(storage).returncode == 2
    monkeypatch.undo()
    with acquire():
        pass


@pytest.mark.parametrize("call", ["pwrite", "ftruncate", "utime"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_holders_line_that_cannot_be_written_does_not_keep_the_lock_from_holding(
    storage: Path, acquire: Acquire, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    calls = refuse(monkeypatch, call, code)
    with acquire():
        assert calls
        with pytest.raises(LockBusy):
            acquire()
    assert leftovers(storage) == []


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM])
def test_a_lock_file_of_another_user_is_named(
    storage: Path, acquire: Acquire, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    refuse(monkeypatch, "open", code)
    for is_there in (False, True):
        if is_there:
            os.mknod(storage / LOCK)
        with pytest.raises((LockUnavailable, StoreError), match=LOCK) as caught:
            acquire()
        assert caught.value.exit_code == 1
        assert ("another user may have left it" in str(caught.value)) == is_there
        assert "as the store's owner" in str(caught.value)


def test_a_disk_too_full_and_without_directory_locks_is_not_pruned_unlocked(
    storage: Path, acquire: Acquire, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_directory_locks(monkeypatch)
    refuse(monkeypatch, "open", errno.ENOSPC)
    with pytest.raises(StoreError):
        acquire()


# --- while it is held --------------------------------------------------------------------------------------


def test_a_lock_file_deleted_while_held_is_written_anew(storage: Path, acquire: Acquire, heard: Events) -> None:
    with acquire() as lock:
        line = (storage / LOCK).read_text()
        (storage / LOCK).unlink()
        lock.refresh()
        assert heard.names() == ["storage_manager.lock_file"]
        assert (storage / LOCK).read_text() == line
        lock.refresh()
        assert len(heard.found) == 1
        assert prune(storage).returncode == 2
    assert leftovers(storage) == []


def test_a_lock_file_replaced_while_held_is_a_lost_lock(storage: Path, acquire: Acquire) -> None:
    with acquire() as lock:
        (storage / LOCK).unlink()
        (storage / LOCK).write_text("pid=1 started_at=1\n")
        with pytest.raises(LockLost, match=LOCK):
            lock.refresh()
    assert (storage / LOCK).read_text() == "pid=1 started_at=1\n", "only its own file may be removed"


def test_a_lock_file_deleted_where_directories_cannot_be_locked_is_a_lost_lock(
    storage: Path, acquire: Acquire, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_directory_locks(monkeypatch)
    with acquire() as lock:
        (storage / LOCK).unlink()
        with pytest.raises(LockLost):
            lock.refresh()


def test_a_prune_that_loses_its_lock_commits_what_it_deleted_and_fails(storage: Path) -> None:
    guids = make_store(storage, COUNT)
    code = """
import os, sys
from storage_manager import cli
from storage_manager.jobs import prune
prune.COMMIT_EVERY_SECS = 0.0
lock = os.path.join(sys.argv[2], ".prune_size.lock")
real = os.unlink
def unlink(name, **options):
    real(name, **options)
    if name == sys.argv[1]:
        os.rename(lock, lock + ".away")
        with open(lock, "w") as file:
            file.write("pid=1 started_at=1\\n")
os.unlink = unlink
sys.exit(cli.main(["--storage-dir", sys.argv[2], "--log-format", "json", "prune-size", "--max-mb", "2000B"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, f"{guids[1]}.json", str(storage)],
        env=clean_environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    found = event(done.stderr, "storage_manager.prune.failed")
    assert LOCK in found["@m"] and found["deleted_count"] == 2
    assert blobs(storage) == set(guids[2:]) == set(read_entries(storage))
    assert (storage / LOCK).read_text() == "pid=1 started_at=1\n"


def test_refreshing_renews_the_age_that_the_previous_generation_judges_by(storage: Path, acquire: Acquire) -> None:
    with acquire() as lock:
        age(storage / LOCK, 5000)
        lock.refresh()
        assert abs(time.time() - (storage / LOCK).stat().st_mtime) < 1000


def test_a_lock_file_that_cannot_be_removed_is_reported_and_does_no_harm(
    storage: Path, acquire: Acquire, heard: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = acquire()
    refuse(monkeypatch, "unlink", errno.EIO)
    lock.release()
    assert heard.names() == ["storage_manager.lock_file"]
    monkeypatch.undo()
    with acquire():
        pass
    assert leftovers(storage) == []


def test_a_lock_removed_between_opening_and_locking_is_not_mistaken_for_the_new_one(
    storage: Path, acquire: Acquire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its holder releases at that moment: what was opened has no name any more, and locking it excludes nobody."""
    real = fcntl.flock
    removed: list[int] = []

    def flock(fd: int, operation: int) -> None:
        if not removed and os.path.basename(os.readlink(f"/proc/self/fd/{fd}")) == LOCK:
            removed.append(fd)
            (storage / LOCK).unlink()
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with acquire():
        assert removed
        assert (storage / LOCK).exists()


def test_no_descriptor_is_left_open_by_a_failed_or_a_released_lock(storage: Path, acquire: Acquire) -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = count()
    for _ in range(3):
        with acquire():
            with pytest.raises(LockBusy):
                acquire()
        (storage / LOCK).write_text("pid=1 started_at=1\n")
        with pytest.raises(LockBusy):
            acquire()
        (storage / LOCK).unlink()
    assert count() == before


@pytest.mark.parametrize("call", ["pwrite", "ftruncate"])
def test_a_holder_that_cannot_leave_its_name_holds_the_lock_all_the_same(
    storage: Path, acquire: Acquire, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    calls = refuse(monkeypatch, call, errno.EIO)
    with acquire():
        assert calls
        with pytest.raises(LockBusy):
            acquire()


def test_a_prune_that_is_waiting_for_the_lock_stops_at_once_when_asked(storage: Path) -> None:
    make_store(storage, COUNT)
    with holder(storage):
        with subprocess.Popen(
            [sys.executable, "-m", "storage_manager", "--storage-dir", str(storage), "--log-format", "json",
             "prune-size", "--max-mb", LIMIT, "--lock-timeout", "60"],
            env=clean_environment(), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
        ) as waiting:  # fmt: skip
            assert waiting.stderr is not None
            assert b"command_start" in waiting.stderr.readline()
            waiting.send_signal(signal.SIGTERM)
            waiting.stderr.read()
            assert waiting.wait(20) == 128 + signal.SIGTERM
        assert (storage / LOCK).exists()
