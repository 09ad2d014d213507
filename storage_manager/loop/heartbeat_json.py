"""The heartbeat as JSON, and back: whatever a file holds, it is a heartbeat or a clear error."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, get_args, get_type_hints

from storage_manager.base.process import Process
from storage_manager.base.strict_json import json_text
from storage_manager.base.text import printable
from storage_manager.base.times import parse_time, utc_text
from storage_manager.jobs.memory import Sighting
from storage_manager.loop.heartbeat import CycleResult, Heartbeat, State

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
    if heartbeat.store is not None:
        facts["store"] = heartbeat.store._asdict()
    return _shown(facts)


def _shown(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: utc_text(value) if isinstance(value, datetime) else value for name, value in facts.items()}


def decode(data: bytes) -> Heartbeat:
    """Raises ValueError with what is wrong, whatever the bytes are. Members that are not known are passed over."""
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    heartbeat: Heartbeat = _read(Heartbeat, value)
    return heartbeat


def _refuse(text: str) -> None:
    raise ValueError(text)


def _read(shape: Any, value: object) -> Any:
    """A named tuple of this shape from a JSON object: what is good for a member follows from its type."""
    if type(value) is not dict:
        raise ValueError("it is not a heartbeat")
    found = {}
    for name, kind in get_type_hints(shape).items():
        if kind is Process:  # its members stand among the heartbeat's own
            found[name] = _read(Process, value)
            continue
        member = value.get(name)
        may_be_none = type(None) in get_args(kind)
        try:
            if member is None and may_be_none:
                found[name] = None
            else:
                found[name] = _READERS[get_args(kind)[0] if may_be_none else kind](member)
        except (ValueError, OverflowError):
            raise ValueError(f"it is not a heartbeat: {name} is missing or not usable") from None
    return shape(**found)


def _valid(is_valid: bool, value: Any) -> Any:
    if not is_valid:
        raise ValueError
    return value


def _text(value: Any) -> str:
    return printable(_valid(type(value) is str, value))


def _whole(value: Any) -> Any:
    return _valid(type(value) is int and 0 <= value < 1 << 63, value)


def _secs(value: Any) -> float:
    return float(_valid(type(value) in (int, float) and math.isfinite(value) and value >= 0, value))


def _time(value: Any) -> Any:
    moment = parse_time(value)
    return _valid(moment is not None, moment)


_READERS: dict[Any, Callable[[Any], Any]] = {
    str: _text,
    bool: lambda value: _valid(type(value) is bool, value),
    int: _whole,
    float: _secs,
    datetime: _time,
    State: lambda value: _valid(value in get_args(State), value),
    Mapping[str, int]: lambda value: {
        _text(kind): _whole(count) for kind, count in _valid(type(value) is dict, value).items()
    },
    tuple[str, ...]: lambda value: tuple(map(_text, _valid(type(value) is list, value))),
    CycleResult: lambda value: _read(CycleResult, value),
    Sighting: lambda value: _read(Sighting, value),
}
