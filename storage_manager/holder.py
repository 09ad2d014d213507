"""The line in the lock file: who holds the lock, or held it and died. For people; the kernel knows who holds it."""

from __future__ import annotations

import json
import os
import re
import stat
from contextlib import suppress
from typing import Any, NamedTuple, Optional

from storage_manager.clock import Clock
from storage_manager.entry import from_timestamp, parse_time, utc_text
from storage_manager.errors import failing_as
from storage_manager.store import Store
from storage_manager.text import printable

LOCK_NAME = ".prune_size.lock"

LARGEST_LINE = 4096
# What the previous generation writes; its lock is the mere existence of the file.
previous_generation = re.compile(rb"\s*pid=(\d{1,10})\b").match


def write_holder(clock: Clock, fd: int, command: str) -> None:
    holder = {
        "pid": os.getpid(),
        "host": os.uname().nodename,
        "command": command,
        "started_at": utc_text(clock.now().replace(microsecond=0)),
    }
    with suppress(OSError):  # the identity is for people, and a full disk is when we are needed
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps(holder).encode() + b"\n", 0)
        os.utime(fd)


def holder_at_path(store: Store, clock: Clock) -> dict[str, Any]:
    try:
        fd = os.open(LOCK_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=store.dir_fd)
    except OSError:  # the holder is between locking and creating, or between removing and closing
        return {}
    try:
        return holder_in(fd, clock)
    finally:
        os.close(fd)


def holder_in(fd: int, clock: Clock) -> dict[str, Any]:
    try:
        age_secs = age_secs_of(fd, clock)
        holder = parse_holder(os.pread(fd, LARGEST_LINE, 0), clock)
    except OSError:  # who it is, is for people; that it is, the kernel has said
        return {}
    return {**holder, "age_secs": max(age_secs, holder.get("age_secs", 0.0))}


def parse_holder(line: bytes, clock: Clock) -> dict[str, Any]:
    """Whatever of the expected members is there, made safe to show, and how long ago it started."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    holder: dict[str, Any] = {
        key: value if type(value) is int and abs(value) < 1 << 63 else printable(value, 200)
        for key, value in found.items()
        if key in ("pid", "host", "command", "started_at")
    }
    started_at = parse_time(found.get("started_at"))
    if started_at is not None:
        holder["age_secs"] = round((clock.now() - started_at).total_seconds(), 1)
    return holder


class LockState(NamedTuple):
    """What somebody who does not take the lock can tell about it."""

    is_held: bool
    """By a process of this host that lives."""
    is_leftover: bool
    """Nobody can be holding it: the next run removes it or takes it over."""
    text: str
    size_bytes: int


def lock_state(store: Store, clock: Clock, stale_secs: float) -> Optional[LockState]:
    """What the lock file looks like from outside; None without one. Takes no lock. Raises StoreError."""
    with failing_as("examine", store.file(LOCK_NAME)):
        try:
            status = os.stat(LOCK_NAME, dir_fd=store.dir_fd, follow_symlinks=False)
            if not stat.S_ISREG(status.st_mode):
                return LockState(False, False, "it is not a regular file", 0)
            fd = os.open(LOCK_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=store.dir_fd)
        except FileNotFoundError:
            return None
        try:
            line = os.pread(fd, LARGEST_LINE, 0).strip()
            age_secs = age_secs_of(fd, clock)
        finally:
            os.close(fd)
    is_old = abs(age_secs) > stale_secs  # a time far in the future is as good as none
    since = f"last touched {age_secs:.0f} s ago"
    previous = previous_generation(line)
    if previous is not None:
        text = f"the previous housekeeper's, process {previous.group(1).decode()}, {since}"
        return LockState(False, is_old, text, status.st_size)
    holder = parse_holder(line, clock)
    pid, host = holder.get("pid"), holder.get("host")
    who = f"process {pid} on {host} ({holder.get('command')}), {since}"
    if not line:  # its creator is about to write it, or has died before
        return LockState(age_secs < 1.0, age_secs >= 1.0, f"nobody's, {since}", status.st_size)
    if type(pid) is not int:
        return LockState(False, is_old, f"nobody's that can be read, {since}", status.st_size)
    if host != os.uname().nodename:
        return LockState(not is_old, is_old, f"{who}; whether it lives cannot be seen from here", status.st_size)
    if _is_alive(pid):
        return LockState(True, False, who, status.st_size)
    return LockState(False, True, f"{who}, which is gone", status.st_size)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def age_secs_of(fd: int, clock: Clock) -> float:
    return round((clock.now() - from_timestamp(os.fstat(fd).st_mtime)).total_seconds(), 1)
