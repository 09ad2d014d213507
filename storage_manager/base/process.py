"""Which process something was written by, and what has become of it."""

from __future__ import annotations

import os
from typing import NamedTuple, Optional

ALIVE = "alive"
STOPPED = "stopped"
GONE = "gone"
ELSEWHERE = "elsewhere"
"""On another host or in another container: nothing can be said of it from here."""


# Fields of /proc/<pid>/stat behind the command's name, which may hold anything, brackets and spaces included.
_STATE = 0
_STOPPED_STATES = ("T", "t")
_STARTED = 19


class Process(NamedTuple):
    """A process, told apart from a later one with the same number."""

    pid: int
    host: str
    pid_namespace: Optional[int]
    """The number is only good within it: each container has one. None where it cannot be seen."""
    started_ticks: Optional[int]
    """When it began, as the kernel counts; None where it cannot be seen."""


def this_process() -> Process:
    pid = os.getpid()
    fields = _fields(pid)
    return Process(pid, _host(), _namespace("pid"), None if fields is None else int(fields[_STARTED]))


def condition(process: Process) -> str:
    """ALIVE, STOPPED (by SIGSTOP or a debugger), GONE or ELSEWHERE. Raises nothing."""
    if (process.host, process.pid_namespace) != (_host(), _namespace("pid")):
        return ELSEWHERE
    fields = _fields(process.pid)
    if fields is None:
        return ALIVE if is_alive(process.pid) else GONE
    if fields[_STATE] in ("Z", "X") or process.started_ticks not in (None, int(fields[_STARTED])):
        return GONE
    return STOPPED if fields[_STATE] in _STOPPED_STATES else ALIVE


def is_alive(pid: int) -> bool:
    """Whether there is a process with this number, whoever it is by now. Raises nothing."""
    if pid <= 0:  # to kill() not one process, but a group
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:  # somebody else's, but there
        return True
    except (OSError, OverflowError):
        return False
    return True


def is_stopped(pid: int) -> bool:
    """Whether a process of this host waits for SIGCONT; False where that cannot be seen. Raises nothing."""
    fields = _fields(pid)
    return fields is not None and fields[_STATE] in _STOPPED_STATES


def _fields(pid: int) -> Optional[list[str]]:
    """None without such a process, and where /proc is not there or hides it."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return fields if len(fields) > _STARTED else None


def this_boot() -> Optional[str]:
    """Between processes that see the same, clock.monotonic() can be compared. None where it cannot be seen."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
    except (OSError, ValueError):
        return None
    # A time namespace may shift the clock. Old kernels have none.
    return f"{boot}/{_namespace('time')}"


def _host() -> str:
    return os.uname().nodename.encode("utf-8", "backslashreplace").decode()


def _namespace(kind: str) -> Optional[int]:
    try:
        return os.stat(f"/proc/self/ns/{kind}").st_ino
    except OSError:
        return None
