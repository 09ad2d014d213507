"""The heartbeat as JSON, and back: whatever a file holds, it is a heartbeat or a clear error."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from storage_manager.base.process import Process
from storage_manager.base.strict_json import json_text
from storage_manager.base.text import printable
from storage_manager.base.times import parse_time, utc_text
from storage_manager.loop.heartbeat import STATES, CycleResult, Heartbeat

# A heartbeat takes less than 2 KB; the rest is room for long paths.
LARGEST_BYTES = 64 * 1024


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
