"""The lock between processes: whoever is killed, stopped or robbed of its file, never two are inside."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import math
import mmap
import os
import random
import select
import signal
import struct
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest
from stores import blobs, clean_environment, command, event, leftovers, make_store, read_entries, run_tool

from storage_manager.base.clock import Clock
from storage_manager.base.errors import LockBusy, LockLost
from storage_manager.base.log import EventLog
from storage_manager.store import lock as lock_module
from storage_manager.store.directory import open_store
from storage_manager.store.lock import LOCK_NAME, PruneLock, acquire_lock

# Far more than anything here takes; who is not done by then is killed, and the test fails instead of hanging.
PATIENCE_SECS = 60

STALE_SECS = 3600.0

BUSY, LOST = 2, 3
"""Exit codes of forked processes; 0 is done, 1 a failure, and a negative one a signal."""

PF_EXITING = 0x4


def is_running(pid: int) -> bool:
    """Whether a process can still do anything. One that is exiting may have let go of its locks already."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return fields[0] not in "ZX" and not int(fields[6]) & PF_EXITING


class Shared:
    """A number that forked processes share. Adding is not atomic, and is not meant to be."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 8)

    @property
    def value(self) -> int:
        return int.from_bytes(self._memory[:8], "little")

    @value.setter
    def value(self, value: int) -> None:
        self._memory[:8] = value.to_bytes(8, "little")


class Section:
    """The critical section, watched without the lock: a marker that only one can make, and a counter."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._marker = directory / "inside"
        self._count = Shared()

    @property
    def count(self) -> int:
        """How often somebody came out again, if there were never two inside."""
        return self._count.value

    @contextmanager
    def entered(self) -> Iterator[None]:
        # A link is made together with what it says: whoever is killed leaves a marker with its name on it.
        me = str(os.getpid())
        while True:
            try:
                os.symlink(me, self._marker)
                break
            except FileExistsError:
                owner = os.readlink(self._marker)
                assert not is_running(int(owner)), f"{owner} is inside, and so is {me}"
                os.unlink(self._marker)
        before = self._count.value
        try:
            yield
        finally:
            self._count.value = before + 1
            assert os.readlink(self._marker) == me
            os.unlink(self._marker)


class Crew:
    """Forked processes that begin together. None outlives its test."""

    def __init__(self, errors: Path) -> None:
        self._errors = errors
        self._errors.touch()
        self._living: list[int] = []
        self._news = os.pipe()
        self._gate = os.pipe()
        self._closed = False

    def add(self, work: Callable[[], object]) -> int:
        """Fork a process that works once `go()` was called; its pid."""
        pid = os.fork()
        if pid == 0:
            self._work(work)
        self._living.append(pid)
        return pid

    def _work(self, work: Callable[[], object]) -> NoReturn:
        code = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(PATIENCE_SECS)
            if not self._closed:
                os.close(self._gate[1])
            os.read(self._gate[0], 1)
            work()
            code = 0
        except LockBusy:
            code = BUSY
        except LockLost:
            code = LOST
        except BaseException:  # noqa: BLE001  # nothing may get back into pytest
            with open(self._errors, "a") as file:
                file.write(f"process {os.getpid()}: {traceback.format_exc()}")
            self.say()
        finally:
            os._exit(code)

    def go(self) -> None:
        os.close(self._gate[1])
        self._closed = True

    def say(self) -> None:
        """In a forked process: something has happened."""
        os.write(self._news[1], struct.pack("i", os.getpid()))

    def hear(self) -> int:
        """The pid of the next process that says something."""
        watch = select.poll()
        watch.register(self._news[0], select.POLLIN)
        assert watch.poll(PATIENCE_SECS * 1000), "no process has anything to say"
        (pid,) = struct.unpack("i", os.read(self._news[0], 4))
        assert self._errors.read_text() == ""
        return int(pid)

    def stop(self, pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        os.waitpid(pid, os.WUNTRACED)

    def end(self, *pids: int) -> list[int]:
        """Wait for these processes, or for all; their exit codes. None of them may have failed."""
        codes = []
        for pid in pids or list(self._living):
            codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            self._living.remove(pid)
        assert self._errors.read_text() == ""
        return codes

    def close(self) -> None:
        for pid in self._living:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for fd in (*self._news, self._gate[0]):
            os.close(fd)
        if not self._closed:
            os.close(self._gate[1])


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[Crew]:
    crew = Crew(tmp_path / "errors")
    try:
        yield crew
    finally:
        crew.close()


@pytest.fixture
def section(tmp_path: Path) -> Section:
    return Section(tmp_path / "outside")


class HastyClock(Clock):
    """Has the patience it was given, and looks more often."""

    def pause(self, secs: float) -> None:
        super().pause(min(secs, 0.001))


@contextmanager
def locked(storage: Path, timeout_secs: float = PATIENCE_SECS) -> Iterator[PruneLock]:
    with open_store(str(storage)) as store:
        log = EventLog(logging.Logger("contender"))
        with acquire_lock(store, log, HastyClock(), "prune-size", timeout_secs, STALE_SECS) as lock:
            yield lock


def contend(storage: Path, section: Section, rounds: int, inside: Callable[[PruneLock], object] = id) -> None:
    for _ in range(rounds):
        with suppress(LockLost), locked(storage) as lock, section.entered():
            inside(lock)


def assert_free(storage: Path) -> None:
    with locked(storage, 0.0):
        pass
    assert leftovers(storage) == []


def age(path: Path, secs: float) -> None:
    moment = time.time() - secs
    os.utime(path, (moment, moment))


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contenders look again so soon that they meet."""
    monkeypatch.setattr(lock_module, "RETRY_SECS", 0.01)


@pytest.fixture(params=["directory and file", "file alone"])
def locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What can be locked. On NFS it is only what is open for writing."""
    if request.param == "file alone":
        real = fcntl.flock

        def flock(fd: int, operation: int) -> None:
            if os.path.isdir(f"/proc/self/fd/{fd}"):
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            real(fd, operation)

        monkeypatch.setattr(fcntl, "flock", flock)
    return str(request.param)


@pytest.fixture
def no_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nobody whose line is worth waiting for: a new file that somebody else locked first stays empty."""
    monkeypatch.setattr(lock_module, "LINE_WRITTEN_SECS", 0.01)


# --- those who behave, and those who die -------------------------------------------------------------------


def test_of_fifty_contenders_never_two_are_inside(
    storage: Path, crew: Crew, section: Section, locks: str, no_lines: None
) -> None:
    for _ in range(50):
        crew.add(lambda: contend(storage, section, 5, lambda lock: os.sched_yield()))
    crew.go()
    assert crew.end() == [0] * 50
    assert section.count == 250
    assert leftovers(storage) == []


def test_a_contender_that_is_killed_inside_or_waiting_lets_the_next_one_in(
    storage: Path, crew: Crew, section: Section, locks: str, no_lines: None
) -> None:
    def linger(lock: PruneLock) -> None:
        crew.say()
        for _ in range(os.getpid() % 20):
            os.sched_yield()

    pids = [crew.add(lambda: contend(storage, section, 5, linger)) for _ in range(30)]
    crew.go()
    rng = random.Random(1)
    doomed: list[int] = []
    heard = 0
    while len(doomed) < 15:
        heard += 1
        pid = crew.hear()
        if heard % 3 == 0 and pid not in doomed:
            # The one that is inside, if it has not just left, or any other.
            pid = pid if rng.random() < 0.7 else rng.choice([other for other in pids if other not in doomed])
            os.kill(pid, signal.SIGKILL)
            doomed.append(pid)
    codes = dict(zip(pids, crew.end()))
    assert {code for pid, code in codes.items() if pid not in doomed} == {0}
    assert {code for pid, code in codes.items() if pid in doomed} <= {0, -signal.SIGKILL}
    assert 5 * 15 <= section.count <= 5 * 30
    assert_free(storage)


# --- those who meddle with the file ------------------------------------------------------------------------


def meddle(storage: Path, rng: random.Random, turns: Shared) -> None:
    """All that can be done to a lock file without asking, for ever."""
    path, other = storage / LOCK_NAME, storage.parent / "other"
    texts = [b"", b"garbage\n", b'{"pid": 4711}\n', b"pid=4711 started_at=1767000000\n", bytes(range(256)), b"{" * 9999]

    def replace() -> None:
        other.write_bytes(rng.choice(texts))
        os.rename(other, path)

    def create_anew() -> None:
        path.unlink()
        path.write_bytes(rng.choice(texts))

    def overwrite() -> None:
        with open(path, "r+b") as file:
            file.write(rng.choice(texts))

    actions: list[Callable[[], object]] = [
        path.unlink, replace, create_anew, overwrite, lambda: os.truncate(path, 0),
        lambda: age(path, rng.choice([0, 10 * STALE_SECS, -10 * STALE_SECS])),
    ]  # fmt: skip
    while True:
        with suppress(FileNotFoundError):
            rng.choice(actions)()
        turns.value += 1
        os.sched_yield()


def test_whatever_is_done_to_the_lock_file_never_two_of_ours_are_inside(
    storage: Path, crew: Crew, section: Section, no_lines: None, seeds: Callable[[int], range]
) -> None:
    turns = Shared()

    def endure(lock: PruneLock) -> None:
        for _ in range(3):
            before = turns.value
            while turns.value == before:
                os.sched_yield()
            lock.refresh()

    crew.go()
    for seed in seeds(2):
        before = section.count
        meddler = crew.add(partial(meddle, storage, random.Random(seed), turns))
        contenders = [crew.add(lambda: contend(storage, section, 10, endure)) for _ in range(12)]
        assert crew.end(*contenders) == [0] * 12, f"seed {seed}"
        assert section.count - before == 120, f"seed {seed}"
        os.kill(meddler, signal.SIGKILL)
        crew.end(meddler)
    if (storage / LOCK_NAME).exists():
        age(storage / LOCK_NAME, 10 * STALE_SECS)
    assert_free(storage)


# --- the previous generation -------------------------------------------------------------------------------


class PreviousBusy(Exception):
    pass


@contextmanager
def previous_generation(storage: Path, stale_secs: float = math.inf) -> Iterator[None]:
    """How the previous housekeeper locks: the file's existence. It deletes one that is older than its stale time."""
    path = storage / LOCK_NAME
    with suppress(FileNotFoundError):
        if time.time() - path.stat().st_mtime > stale_secs:
            path.unlink()
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        raise PreviousBusy from None
    os.sched_yield()
    os.write(fd, f"pid={os.getpid()} started_at={time.time():.0f}\n".encode())
    os.close(fd)
    try:
        yield
    finally:
        path.unlink()


def test_of_both_generations_never_two_are_inside(
    storage: Path, crew: Crew, section: Section, locks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One of the previous generation may lose the processor between making its file and writing its line.
    monkeypatch.setattr(lock_module, "LINE_WRITTEN_SECS", float(PATIENCE_SECS))

    monkeypatch.setattr(lock_module, "RETRY_SECS", 0.001)
    previous_count, over = Shared(), Shared()

    def previous() -> None:
        while not over.value:
            with suppress(PreviousBusy), previous_generation(storage), section.entered():
                previous_count.value += 1
                os.sched_yield()
            time.sleep(0.002)  # it knows no other way to wait

    # Where the file alone is locked, two of ours that meet at a new file wait for each other's line.
    count, rounds = (8, 10) if locks == "directory and file" else (1, 80)
    ours = [crew.add(lambda: contend(storage, section, rounds, lambda lock: os.sched_yield())) for _ in range(count)]
    theirs = [crew.add(previous) for _ in range(4)]
    crew.go()
    assert crew.end(*ours) == [0] * count
    over.value = 1
    assert crew.end(*theirs) == [0] * 4
    assert previous_count.value > 0
    assert section.count == 80 + previous_count.value
    assert leftovers(storage) == []


def test_what_a_dead_one_of_the_previous_generation_left_keeps_all_out_until_it_is_stale(
    storage: Path, crew: Crew, section: Section, locks: str, no_lines: None
) -> None:
    def die() -> None:
        with previous_generation(storage), section.entered():
            os.kill(os.getpid(), signal.SIGKILL)

    def try_once() -> None:
        with locked(storage, 0.0), section.entered():
            pass

    dead = crew.add(die)
    crew.go()
    assert crew.end(dead) == [-signal.SIGKILL]
    age(storage / LOCK_NAME, STALE_SECS - 100)
    assert crew.end(*[crew.add(try_once) for _ in range(8)]) == [BUSY] * 8
    age(storage / LOCK_NAME, STALE_SECS + 100)
    assert crew.end(*[crew.add(lambda: contend(storage, section, 3)) for _ in range(8)]) == [0] * 8
    assert section.count == 24
    assert leftovers(storage) == []


class Holder:
    """A forked process inside the lock, which refreshes it and leaves when it is told to."""

    def __init__(self, storage: Path, crew: Crew, section: Section) -> None:
        self._crew = crew
        reader, writer = self._orders = os.pipe()

        def hold() -> None:
            with locked(storage) as lock, section.entered():
                crew.say()
                while os.read(reader, 1) == b"r":
                    lock.refresh()
                    crew.say()

        self.pid = crew.add(hold)
        crew.go()
        assert crew.hear() == self.pid

    def refresh(self) -> None:
        os.write(self._orders[1], b"r")
        assert self._crew.hear() == self.pid

    def leave(self) -> int:
        """Refresh once more and leave; the exit code."""
        os.write(self._orders[1], b"rq")
        (code,) = self._crew.end(self.pid)
        for fd in self._orders:
            os.close(fd)
        return code


def test_the_previous_generation_breaks_no_lock_that_is_refreshed(
    storage: Path, crew: Crew, section: Section, locks: str
) -> None:
    holder = Holder(storage, crew, section)
    for _ in range(3):
        age(storage / LOCK_NAME, 1000)
        holder.refresh()
        with pytest.raises(PreviousBusy), previous_generation(storage, stale_secs=500):
            pass
    assert holder.leave() == 0
    assert leftovers(storage) == []


def test_a_lock_that_the_previous_generation_has_broken_is_lost_and_its_own_stays(
    storage: Path, crew: Crew, section: Section, locks: str
) -> None:
    holder = Holder(storage, crew, section)
    age(storage / LOCK_NAME, 1000)
    with previous_generation(storage, stale_secs=500):
        assert holder.leave() == LOST
        assert (storage / LOCK_NAME).read_bytes().startswith(b"pid=")
        with pytest.raises(LockBusy), locked(storage, 0.0):
            pass
    assert_free(storage)


# --- a holder that is stopped ------------------------------------------------------------------------------


def replaced(path: Path) -> None:
    path.unlink()
    path.write_text('{"pid": 4711}\n')


FATES: dict[str, tuple[Callable[[Path], object], int]] = {
    "untouched": (lambda path: None, 0),
    "old": (lambda path: age(path, 100 * STALE_SECS), 0),
    "deleted": (lambda path: path.unlink(), 0),
    "emptied": (lambda path: os.truncate(path, 0), 0),
    "overwritten": (lambda path: path.write_text("pid=1 started_at=1767000000\n"), 0),
    "replaced": (replaced, LOST),
}


@pytest.mark.parametrize("fate", FATES)
def test_nobody_gets_past_a_holder_that_is_stopped_whatever_becomes_of_its_file(
    storage: Path, crew: Crew, section: Section, fate: str
) -> None:
    guids = make_store(storage, 6)
    happen, exit_code = FATES[fate]
    holder = Holder(storage, crew, section)
    crew.stop(holder.pid)
    happen(storage / LOCK_NAME)

    def try_once() -> None:
        with locked(storage, 0.0), section.entered():
            pass

    assert crew.end(*[crew.add(try_once) for _ in range(8)]) == [BUSY] * 8
    done = run_tool("--storage-dir", storage, "prune-size", "--max-mb", "2000B")
    assert done.returncode == BUSY
    assert event(done.stderr, "storage_manager.prune.lock_busy")
    assert blobs(storage) == set(guids)
    assert section.count == 0
    os.kill(holder.pid, signal.SIGCONT)
    if exit_code == 0:
        holder.refresh()
        with pytest.raises(PreviousBusy), previous_generation(storage, stale_secs=STALE_SECS):
            pass
    assert holder.leave() == exit_code
    assert section.count == 1
    assert_free(storage)


# --- the tool itself ---------------------------------------------------------------------------------------


class Prunes:
    """Several prunes at once, whose events are read as they come."""

    def __init__(self, storage: Path, count: int, limit: str) -> None:
        arguments = command("--storage-dir", storage, "prune-size", "--max-mb", limit, "--lock-timeout", PATIENCE_SECS)
        self.processes = [
            subprocess.Popen(
                arguments, env=clean_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            for _ in range(count)
        ]  # fmt: skip
        self._watch = select.poll()
        self._buffers: dict[int, bytes] = {}
        self._by_fd: dict[int, subprocess.Popen[bytes]] = {}
        for process in self.processes:
            assert process.stderr is not None
            fd = process.stderr.fileno()
            self._watch.register(fd, select.POLLIN)
            self._buffers[fd], self._by_fd[fd] = b"", process

    def events(self) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, Any]]]:
        """The events of all, until all have ended. The last line of one that was killed may be half a line."""
        while self._buffers:
            ready = self._watch.poll(PATIENCE_SECS * 1000)
            assert ready, "a prune hangs"
            for fd, _ in ready:
                data = os.read(fd, 65536)
                if not data:
                    self._watch.unregister(fd)
                    del self._buffers[fd]
                    continue
                *lines, self._buffers[fd] = (self._buffers[fd] + data).split(b"\n")
                for line in lines:
                    yield self._by_fd[fd], json.loads(line)

    def __enter__(self) -> Prunes:
        return self

    def __exit__(self, *exc: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
            assert process.stderr is not None
            process.stderr.close()


@pytest.mark.parametrize("kills", [0, 4])
def test_ten_prunes_at_once_delete_each_session_once(storage: Path, kills: int) -> None:
    """Also when those that delete are killed at it, and one that waits for the lock."""
    guids = make_store(storage, 1000, size=100)
    stay = guids[500:]
    deleted: list[str] = []
    doomed: list[subprocess.Popen[bytes]] = []
    with Prunes(storage, 10, "50000B") as prunes:
        for process, found in prunes.events():
            if found["event"] == "storage_manager.prune.deleted":
                deleted.append(found["guid"])
                wanted = len(doomed) < kills and process not in doomed
            else:
                wanted = kills > 0 and process is prunes.processes[-1] and process not in doomed
            if wanted:
                process.kill()
                doomed.append(process)
        codes = {process: process.wait(PATIENCE_SECS) for process in prunes.processes}
    assert len(doomed) >= kills
    assert {codes[process] for process in codes if process not in doomed} == {0}
    assert len(deleted) == len(set(deleted))
    assert set(deleted) <= set(guids[:500])
    assert blobs(storage) == set(stay)
    assert [guid for guid in read_entries(storage) if guid in blobs(storage)] == stay
    if not kills:
        assert set(deleted) == set(guids[:500])
        assert list(read_entries(storage)) == stay
        assert leftovers(storage) == []
    done = run_tool("--storage-dir", storage, "prune-size", "--max-mb", "49900B")
    assert done.returncode == 0
    assert list(read_entries(storage)) == stay[1:]
    assert blobs(storage) == set(stay[1:])
    assert leftovers(storage) == []


def test_a_prune_that_is_stopped_halfway_and_loses_its_file_keeps_others_out_and_finishes(storage: Path) -> None:
    guids = make_store(storage, 1000, size=100)
    with Prunes(storage, 1, "10000B") as prunes:
        (process,) = prunes.processes
        following = prunes.events()
        # The pipe has no room for 900 events, so the prune cannot be over before they are read.
        while next(following)[1]["event"] != "storage_manager.prune.deleted":
            pass
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        (storage / LOCK_NAME).unlink()
        before = blobs(storage)
        assert 100 < len(before) < 1000
        done = run_tool("--storage-dir", storage, "prune-size", "--max-mb", "1000B", "--lock-stale-seconds", "30")
        assert done.returncode == BUSY
        assert blobs(storage) == before
        process.send_signal(signal.SIGCONT)
        assert [found["exit_code"] for _, found in following if found["event"] == "storage_manager.command_end"] == [0]
        assert process.wait(PATIENCE_SECS) == 0
    assert list(read_entries(storage)) == guids[900:]
    assert blobs(storage) == set(guids[900:])
    assert leftovers(storage) == []
