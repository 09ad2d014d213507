"""The journal, read: the runs that it tells of, and what became of a session. Pure: no files and no clock."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple, Optional

from storage_manager.base.quantity import LARGEST_SIZE_BYTES
from storage_manager.base.times import parse_time
from storage_manager.jobs.journal import ADOPTED, DELETED, REPAIRED
from storage_manager.jobs.plan import Deleted

# What became of a session.
UNCERTAIN, STAYED, SWEPT = "uncertain", "stayed", "swept"


class Line(NamedTuple):
    """What a run has told at one moment. The counts are those of the run up to then; times are naive UTC."""

    time: datetime
    run_id: str
    command: str
    storage_dir: str
    what: str
    """DELETED, ADOPTED or REPAIRED."""
    why: str
    session_count: int
    """Sessions that this was done to."""
    size_bytes: int
    oldest: Optional[datetime]
    newest: Optional[datetime]
    swept_count: int
    removed_count: int
    going: str
    """Guids of the sessions whose turn it is, in lower case, as in those below."""
    stayed: Optional[str]
    """Those of earlier lines that it was not done to; None when nothing is said of them yet."""
    swept: str
    exit_code: Optional[int]
    """In the last line of a run."""


class Run(NamedTuple):
    """A run: when its first line was written, and its last one. After a rotation the first may not be there."""

    began_at: datetime
    last: Line

    @property
    def has_ended(self) -> bool:
        return self.last.exit_code is not None


class Fate(NamedTuple):
    """Something that became of a session."""

    what: str
    """DELETED or ADOPTED; STAYED, when it was chosen and that was not done; UNCERTAIN, when the run broke off, or is
    at it; SWEPT, when an entry without a blob was removed."""
    line: Line


_Key = tuple[str, str, str]


def decode(data: bytes, is_this_store: Callable[[str], bool]) -> list[Line]:
    """The lines about a store. What is torn, or none of ours, is passed over."""
    lines = (_line(text) for text in data.split(b"\n") if text.startswith(b"{"))
    is_this_store = cache(is_this_store)
    return [line for line in lines if line is not None and is_this_store(line.storage_dir)]


def runs(lines: Iterable[Line]) -> list[Run]:
    """In the order of their first lines."""
    found: dict[_Key, Run] = {}
    for line in lines:
        key = _key(line)
        run = found.get(key)
        found[key] = Run(line.time, line) if run is None else run._replace(last=line)
    return list(found.values())


def fates(lines: Iterable[Line], guid: str) -> list[Fate]:
    """All that is known of a session, in the order of the lines."""
    guid = guid.lower()
    found: dict[tuple[_Key, str], Fate] = {}
    for line in lines:
        chosen, swept = (_key(line), UNCERTAIN), (_key(line), SWEPT)
        fate = found.get(chosen)
        if fate is not None and fate.what == UNCERTAIN and line.stayed is not None:
            found[chosen] = fate._replace(what=STAYED if guid in line.stayed else line.what)
        if guid in line.going:
            found[chosen] = Fate(UNCERTAIN, line)
        if guid in line.swept:
            found[swept] = Fate(SWEPT, line)
    return list(found.values())


def deleted_by(lines: Iterable[Line]) -> Deleted:
    """What the runs that are told of have deleted. A batch is doubtful when its end is not told, or not its count."""
    certainly: set[str] = set()
    doubtful: set[str] = set()
    before: dict[_Key, Line] = {}
    for line in lines:
        if line.what != DELETED or not (line.going or line.stayed is not None):
            continue
        last = before.get(_key(line))
        before[_key(line)] = line
        if last is None or not last.going:
            continue
        batch = set(last.going.split()).difference((line.stayed or "").split())
        is_told = line.stayed is not None and line.session_count - last.session_count == len(batch)
        (certainly if is_told else doubtful).update(batch)
    doubtful.update(guid for line in before.values() for guid in line.going.split())
    return Deleted(certainly, certainly | doubtful)


def _key(line: Line) -> _Key:
    """A check that adopts and repairs is two runs, and so is a cycle that purges orphans and prunes."""
    return line.run_id, line.what, line.why


def _line(text: bytes) -> Optional[Line]:
    """None for what no run has written."""
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        return None
    try:
        return Line(
            time=_moment(told["time"]),
            run_id=_text(told["run_id"]),
            command=_text(told["command"]),
            storage_dir=_text(told["storage_dir"]),
            what=_what(told["what"]),
            why=_text(told["why"]),
            session_count=_count(told["session_count"]),
            size_bytes=_count(told["size_bytes"]),
            oldest=None if told["oldest"] is None else _moment(told["oldest"]),
            newest=None if told["newest"] is None else _moment(told["newest"]),
            swept_count=_count(told["swept_count"]),
            removed_count=_count(told["removed_count"]),
            going=_text(told.get("going", "")).lower(),
            stayed=_text(told["stayed"]).lower() if "stayed" in told else None,
            swept=_text(told.get("swept", "")).lower(),
            exit_code=_count(told["exit_code"]) if "exit_code" in told else None,
        )
    except (KeyError, ValueError):
        return None


def _moment(value: Any) -> datetime:
    moment = parse_time(value)
    if moment is None:
        raise ValueError("it is no time")
    return moment


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError("it is no text")
    return value


def _what(value: Any) -> str:
    if value not in (DELETED, ADOPTED, REPAIRED):
        raise ValueError("it is nothing that a run does")
    return _text(value)


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= LARGEST_SIZE_BYTES:
        raise ValueError("it is no count")
    return value
