"""The heartbeat: what the loop tells of itself, as JSON, and the verdict whether that is healthy.

Pure: no files and no clock. Times are wall-clock, because another process compares them with its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple, Optional

from storage_manager import report
from storage_manager.entry import parse_time, utc_text
from storage_manager.output import json_text
from storage_manager.process import GONE, STOPPED, Process
from storage_manager.text import printable

STARTING = "starting"
CYCLE = "cycle"
SLEEPING = "sleeping"
ENDED = "ended"
STATES = (STARTING, CYCLE, SLEEPING, ENDED)

# A heartbeat takes less than 2 KB; the rest is room for long paths.
LARGEST_BYTES = 64 * 1024

# One cycle may fail and the next one make up for it; the grace is for a cycle that takes its time.
RECENT_INTERVALS = 2
GRACE = timedelta(minutes=5)
# The longest wait inside a cycle is a minute (a busy client); what stays silent for longer hangs.
LONGEST_SILENCE = timedelta(minutes=5)
# A sleep ends to the second; a starved machine gets this much.
OVERSLEPT = timedelta(minutes=1)
# Clocks of hosts that share a file differ by less; more means that the clock was set back.
AHEAD = timedelta(minutes=1)
# This many failed cycles in a row are no accident.
FAILURES = 3


class CycleResult(NamedTuple):
    """What came of one cycle."""

    ended_at: datetime
    exit_code: int
    sentence: str
    duration_secs: float
    usage_bytes: Optional[int]
    """None, as below, when the cycle could not look at the store."""
    limit_bytes: int
    session_count: Optional[int]
    deleted_count: int
    freed_bytes: int
    anomalies: Mapping[str, int]
    """kind -> count, for the kinds that occur."""
    suggested_dirs: tuple[str, ...]
    """Where the store probably is instead."""


class Heartbeat(NamedTuple):
    """The state of a loop at one moment. Times are naive UTC."""

    version: str
    process: Process
    storage_dir: str
    interval_secs: float
    once: bool
    """One cycle for a timer: nobody expects the process to live."""
    dry_run: bool
    max_failures: Optional[int]
    started_at: datetime
    state: str
    alive_at: datetime
    """The last sign of progress; while it sleeps, when it fell asleep."""
    cycle_started_at: Optional[datetime]
    next_wake_up: Optional[datetime]
    last_cycle: Optional[CycleResult]
    last_success_at: Optional[datetime]
    failures: int
    """Cycles in a row, up to the last one, that ended with another code than 0."""


# The verdict


def verdict(heartbeat: Heartbeat, now: datetime, process_condition: str) -> Optional[str]:
    """Why the loop is unhealthy, in a sentence; None when it is not. `process_condition` is process.condition()'s."""
    return trouble(heartbeat, now, process_condition) or _not_recent(heartbeat, now)


def trouble(heartbeat: Heartbeat, now: datetime, process_condition: str) -> Optional[str]:
    """The verdict upon a loop that may be too young to have succeeded yet."""
    ahead = heartbeat.alive_at - now
    if ahead > AHEAD:
        secs = ahead.total_seconds()
        return f"the heartbeat is {report.duration(secs)} ahead of this clock, which has been set back since"
    if not heartbeat.once:
        found = _not_alive(heartbeat, now, process_condition)
        if found is not None:
            return found
    if heartbeat.failures >= (heartbeat.max_failures or FAILURES):
        return f"{_failed(heartbeat)}{_last_words(heartbeat)}"
    return None


def _not_alive(heartbeat: Heartbeat, now: datetime, process_condition: str) -> Optional[str]:
    if heartbeat.state == ENDED:
        return f"the loop ended {ago(heartbeat.alive_at, now)} ago{_last_words(heartbeat)}"
    pid = heartbeat.process.pid
    if process_condition == GONE:
        return f"the loop's process {pid} is gone without having said so; its last sign of life is from " + _moment(
            heartbeat.alive_at
        )
    if process_condition == STOPPED:
        return f"the loop's process {pid} is stopped (SIGSTOP); `kill -CONT {pid}` lets it go on"
    if heartbeat.state == SLEEPING and heartbeat.next_wake_up is not None:
        if now - heartbeat.next_wake_up > OVERSLEPT:
            return f"the loop should have woken up {ago(heartbeat.next_wake_up, now)} ago"
    elif now - heartbeat.alive_at > LONGEST_SILENCE:
        return f"a cycle has shown no progress for {ago(heartbeat.alive_at, now)}: it hangs"
    return None


def _not_recent(heartbeat: Heartbeat, now: datetime) -> Optional[str]:
    if heartbeat.last_success_at is None:
        if heartbeat.failures:
            return f"no cycle has succeeded yet, {_failed(heartbeat)}{_last_words(heartbeat)}"
        return "no cycle has ended yet"
    # A long cycle that makes progress is at work: it is asked whether it began in time.
    at_work = heartbeat.state == CYCLE and not heartbeat.once
    until = heartbeat.cycle_started_at if at_work and heartbeat.cycle_started_at is not None else now
    allowed = RECENT_INTERVALS * heartbeat.interval_secs + GRACE.total_seconds()
    if (until - heartbeat.last_success_at).total_seconds() <= allowed:
        return None
    since = ago(heartbeat.last_success_at, now)
    return f"the last successful cycle was {since} ago, {_failed(heartbeat)}{_last_words(heartbeat)}"


def _failed(heartbeat: Heartbeat) -> str:
    if heartbeat.failures == 1:
        return "the last cycle failed"
    return f"the last {heartbeat.failures} cycles failed" if heartbeat.failures else "and none has ended since"


def _last_words(heartbeat: Heartbeat) -> str:
    last = heartbeat.last_cycle
    return f", with exit code {last.exit_code}: {last.sentence}" if last and last.exit_code else ""


def ago(moment: datetime, now: datetime) -> str:
    """How long ago; clocks that differ a little make nothing negative."""
    return report.duration(max(0.0, (now - moment).total_seconds()))


def _moment(moment: datetime) -> str:
    return utc_text(moment.replace(microsecond=0))


# JSON


def encode(heartbeat: Heartbeat) -> bytes:
    return (json_text(as_json(heartbeat)) + "\n").encode("ascii", "backslashreplace")


def as_json(heartbeat: Heartbeat) -> dict[str, Any]:
    """The heartbeat as something that JSON can say."""
    facts = heartbeat._asdict()
    process = facts.pop("process")
    facts.update(process._asdict())
    if heartbeat.last_cycle is not None:
        facts["last_cycle"] = _shown(heartbeat.last_cycle._asdict())
    return _shown(facts)


def _shown(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: utc_text(value) if isinstance(value, datetime) else value for name, value in facts.items()}


def decode(data: bytes) -> Heartbeat:
    """Raises ValueError with what is wrong, whatever the bytes are. Members that are not known are passed over."""
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    facts = _members(value, _HEARTBEAT)
    process = Process(*(facts.pop(name) for name in Process._fields))
    return Heartbeat(process=process, **facts)


def _members(value: object, shape: Mapping[str, Callable[[Any], Any]]) -> dict[str, Any]:
    if type(value) is not dict:
        raise ValueError("it is not a heartbeat")
    found = {}
    for name, read in shape.items():
        try:
            found[name] = read(value.get(name))
        except (ValueError, OverflowError):
            raise ValueError(f"it is not a heartbeat: {name} is missing or not usable") from None
    return found


def _refuse(text: str) -> None:
    raise ValueError(text)


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError
    return printable(value)


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError
    return value


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError
    return value


def _secs(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value) or value < 0:
        raise ValueError
    return float(value)


def _time(value: Any) -> datetime:
    moment = parse_time(value)
    if moment is None:
        raise ValueError
    return moment


def _state(value: Any) -> str:
    if value not in STATES:
        raise ValueError
    return str(value)


def _counts(value: Any) -> dict[str, int]:
    if type(value) is not dict:
        raise ValueError
    return {_text(kind): _whole(count) for kind, count in value.items()}


def _texts(value: Any) -> tuple[str, ...]:
    if type(value) is not list:
        raise ValueError
    return tuple(_text(item) for item in value)


def _or_none(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else read(value)


_CYCLE: dict[str, Callable[[Any], Any]] = {
    "ended_at": _time,
    "exit_code": _whole,
    "sentence": _text,
    "duration_secs": _secs,
    "usage_bytes": _or_none(_whole),
    "limit_bytes": _whole,
    "session_count": _or_none(_whole),
    "deleted_count": _whole,
    "freed_bytes": _whole,
    "anomalies": _counts,
    "suggested_dirs": _texts,
}
_HEARTBEAT: dict[str, Callable[[Any], Any]] = {
    "version": _text,
    "pid": _whole,
    "host": _text,
    "pid_namespace": _or_none(_whole),
    "started_ticks": _or_none(_whole),
    "storage_dir": _text,
    "interval_secs": _secs,
    "once": _flag,
    "dry_run": _flag,
    "max_failures": _or_none(_whole),
    "started_at": _time,
    "state": _state,
    "alive_at": _time,
    "cycle_started_at": _or_none(_time),
    "next_wake_up": _or_none(_time),
    "last_cycle": _or_none(lambda value: CycleResult(**_members(value, _CYCLE))),
    "last_success_at": _or_none(_time),
    "failures": _whole,
}
