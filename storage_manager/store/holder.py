"""The line in the lock file: who holds the lock, or held it and died. For people; the kernel knows who holds it."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from contextlib import suppress
from enum import Enum
from typing import Any, NamedTuple, Optional

from storage_manager.base.clock import Clock
from storage_manager.base.errors import describe_errno, failing_as
from storage_manager.base.process import is_alive, is_stopped
from storage_manager.base.room import Room
from storage_manager.base.text import printable
from storage_manager.base.times import from_timestamp, parse_time, utc_text
from storage_manager.store.directory import Store, close
from storage_manager.store.names import LOCK_NAME, METADATA_NAME

LARGEST_LINE = 4096

# The previous generation creates its file first and writes its line at once. An empty file that is older
# than this is not one of its locks in the making.
LINE_WRITTEN_SECS = 1.0


def write_holder(clock: Clock, store: Store, fd: int, command: str) -> None:
    """The file stays empty where the disk is nearly full: the client may need its last block."""
    if not Room(store.file(METADATA_NAME)).has(fd, LARGEST_LINE):
        return
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
        fd = store.open(LOCK_NAME)
    except OSError:  # the holder is between locking and creating, or between removing and closing
        return {}
    try:
        return holder_in(fd, clock)
    finally:
        close(fd)


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


def described(holder: Mapping[str, Any]) -> str:
    """Who that is, since when, and what to do if it has been stopped."""
    pid, host = holder.get("pid"), holder.get("host")
    text = f"process {pid}" if type(pid) is int else "an unknown process"
    if host is not None:
        text += f" on {host}"
    if "command" in holder:
        text += f" ({holder['command']})"
    if "started_at" in holder:
        text += f", since {holder['started_at']}"
    if type(pid) is int and host == os.uname().nodename and is_stopped(pid):
        text += f"; it is stopped: `kill -CONT {pid}` lets it go on"
    return text


class Holding(Enum):
    """What can be told from outside about whether a lock is held."""

    HELD = "held"
    """By a process that lives, as far as can be seen."""
    LEFT_OVER = "left over"
    """Nobody can be holding it: the next run takes it over."""
    UNKNOWN = "unknown"


class LockState(NamedTuple):
    """What somebody who does not take the lock can tell about it."""

    holding: Holding
    text: str
    size_bytes: int


def lock_state(store: Store, clock: Clock, stale_secs: float) -> Optional[LockState]:
    """What the lock file looks like from outside; None without one. Takes no lock. Raises StoreError."""
    status = store.status(LOCK_NAME)
    if status is None:
        return None
    if not stat.S_ISREG(status.st_mode):
        return LockState(Holding.UNKNOWN, "it is not a regular file", 0)
    try:
        fd = store.open(LOCK_NAME)
    except FileNotFoundError:
        return None
    except OSError as error:  # another user's; that it is there is worth telling all the same
        return LockState(Holding.UNKNOWN, f"it cannot be read: {describe_errno(error)}", status.st_size)
    try:
        with failing_as("read", store.file(LOCK_NAME)):
            line = os.pread(fd, LARGEST_LINE, 0).strip()
            age_secs = age_secs_of(fd, clock)
    finally:
        close(fd)
    holding, who = judge(line, age_secs, stale_secs, clock)
    return LockState(holding, f"{who}, last touched {age_secs:.0f} s ago", status.st_size)


def judge(line: bytes, age_secs: float, stale_secs: float, clock: Clock) -> tuple[Holding, str]:
    """Whether a lock file with this line is held, and whose it is."""
    is_stale = abs(age_secs) > stale_secs  # a time far in the future is as good as none
    if not line:  # its creator is about to write it, has died before, or has no room for it
        holding = Holding.HELD if 0 <= age_secs < LINE_WRITTEN_SECS else Holding.LEFT_OVER
        return holding, "empty: nobody's, or of a run at work where the disk was full"
    once_stale = Holding.LEFT_OVER if is_stale else Holding.UNKNOWN
    previous_pid = previous_generation_pid(line)
    if previous_pid is not None:
        return once_stale, f"the previous housekeeper's, process {previous_pid}"
    holder = parse_holder(line, clock)
    pid, host = holder.get("pid"), holder.get("host")
    if type(pid) is not int:
        return once_stale, "nobody's that can be read"
    who = described(holder)
    # The holder of a lock renews its time: after the stale time, the number may be another process's.
    while_fresh = Holding.UNKNOWN if is_stale else Holding.HELD
    if host != os.uname().nodename:
        return while_fresh, f"{who}; whether it lives cannot be seen from here"
    if not is_alive(pid):
        return Holding.LEFT_OVER, f"{who}, which is gone"
    return while_fresh, f"{who}; it may be stuck, or another process by now" if is_stale else who


def previous_generation_pid(line: bytes) -> Optional[str]:
    """The process number in a line of the previous generation, whose lock is the file's mere existence."""
    match = re.match(rb"\s*pid=(\d{1,10})\b", line)
    return None if match is None else match.group(1).decode()


def age_secs_of(fd: int, clock: Clock) -> float:
    return round((clock.now() - from_timestamp(os.fstat(fd).st_mtime)).total_seconds(), 1)
