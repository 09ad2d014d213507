"""What somebody who does not take the lock can tell about it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from storage_manager.base.clock import Clock
from storage_manager.store.directory import open_store
from storage_manager.store.holder import Holding, LockState, described, lock_state, parse_holder, write_holder
from storage_manager.store.names import LOCK_NAME

HOST = os.uname().nodename
NOBODY = 2**22 + 1  # above every process number
STALE_SECS = 3600.0


def state(storage: Path, line: bytes | dict[str, Any], age_secs: float = 10.0) -> LockState | None:
    path = storage / LOCK_NAME
    path.write_bytes(line if isinstance(line, bytes) else json.dumps(line).encode())
    moment = path.stat().st_mtime - age_secs
    os.utime(path, (moment, moment))
    return looked(storage)


def looked(storage: Path) -> LockState | None:
    with open_store(str(storage)) as store:
        return lock_state(store, Clock(), STALE_SECS)


def test_without_a_lock_there_is_nothing_to_tell(storage: Path) -> None:
    assert looked(storage) is None


@pytest.mark.parametrize(
    ("line", "age_secs", "holding"),
    [
        ({"pid": os.getpid(), "host": HOST}, 10, Holding.HELD),
        ({"pid": os.getpid(), "host": HOST}, 4000, Holding.UNKNOWN),  # stuck, or the number is another process's by now
        ({"pid": NOBODY, "host": HOST}, 10, Holding.LEFT_OVER),
        ({"pid": 0, "host": HOST}, 10, Holding.LEFT_OVER),  # to kill(), our own group
        ({"pid": -1, "host": HOST}, 10, Holding.LEFT_OVER),  # to kill(), everybody
        ({"pid": 10**30, "host": HOST}, 10, Holding.UNKNOWN),
        ({"pid": 1, "host": "elsewhere"}, 10, Holding.HELD),
        ({"pid": 1, "host": "elsewhere"}, 4000, Holding.UNKNOWN),
        (b"pid=77 prune", 10, Holding.UNKNOWN),
        (b"pid=77 prune", 4000, Holding.LEFT_OVER),
        (b"pid=77 prune", -4000, Holding.LEFT_OVER),
        (b"", 0, Holding.HELD),
        (b"", 10, Holding.LEFT_OVER),
        (b"", -10, Holding.LEFT_OVER),
        (b"\xff\x00 what?", 10, Holding.UNKNOWN),
        (b"[" * 5000, 4000, Holding.LEFT_OVER),
    ],
)  # fmt: skip
def test_it_is_held_or_left_over_or_nobody_knows(storage: Path, line: Any, age_secs: float, holding: Holding) -> None:
    found = state(storage, line, age_secs)
    assert found is not None
    assert found.holding is holding, found.text
    assert found.text.isprintable() and found.size_bytes == (storage / LOCK_NAME).stat().st_size


def test_a_special_file_is_told(storage: Path) -> None:
    os.mkfifo(storage / LOCK_NAME)
    assert looked(storage) == LockState(Holding.UNKNOWN, "it is not a regular file", 0)


def test_a_lock_that_cannot_be_read_is_told(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (storage / LOCK_NAME).write_bytes(b"x")

    def denied(path: str, *rest: Any, **options: Any) -> int:
        if path == LOCK_NAME:
            raise PermissionError(13, "Permission denied")
        return real(path, *rest, **options)

    real = os.open
    monkeypatch.setattr(os, "open", denied)
    found = looked(storage)
    assert found is not None and found.holding is Holding.UNKNOWN and "EACCES" in found.text


def test_what_is_written_is_read(storage: Path) -> None:
    clock = Clock()
    fd = os.open(storage / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        with open_store(str(storage)) as store:
            write_holder(clock, store, fd, "prune-size")
        holder = parse_holder(os.pread(fd, 4096, 0), clock)
    finally:
        os.close(fd)
    assert (holder["pid"], holder["host"], holder["command"]) == (os.getpid(), HOST, "prune-size")
    assert holder["age_secs"] < 60
    found = looked(storage)
    assert found is not None and found.holding is Holding.HELD


def test_a_holder_is_told_with_its_start_and_its_state() -> None:
    host = os.uname().nodename
    with subprocess.Popen(["sleep", "60"]) as process:
        holder = {"pid": process.pid, "host": host, "command": "run-loop", "started_at": "2026-01-01T00:00:00Z"}
        known = f"process {process.pid} on {host} (run-loop), since 2026-01-01T00:00:00Z"
        try:
            assert described(holder) == known
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED)
            assert described(holder) == f"{known}; it is stopped: `kill -CONT {process.pid}` lets it go on"
            assert described({**holder, "host": "elsewhere"}) == known.replace(host, "elsewhere")
        finally:
            process.kill()
    assert described(holder) == known
    assert described({}) == "an unknown process"
