"""`stats`: how much there is, in whose group, what is odd, and how full the store is."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, Optional

from storage_manager.base import quantity
from storage_manager.base.clock import Clock
from storage_manager.base.colour import BAD
from storage_manager.base.errors import EXIT_OK
from storage_manager.base.output import Output
from storage_manager.base.text import printable
from storage_manager.base.times import utc_text
from storage_manager.commands import Context, tables
from storage_manager.config import Settings, limit_text
from storage_manager.jobs.forecast import Growth, growth
from storage_manager.jobs.history import runs
from storage_manager.jobs.journal import DELETED
from storage_manager.loop.history_file import history_file, read_history
from storage_manager.store.directory import open_store
from storage_manager.store.holder import Holding, lock_state
from storage_manager.store.snapshot import Session, Snapshot
from storage_manager.store.survey import allocation, report_unknown_group, take_snapshot

# Blocks are larger than small blobs; what differs by less than this, and by less than a factor, says nothing.
_MUCH_BYTES = 1024 * 1024
_MUCH_FACTOR = 2

# So many of the sessions that go next are named.
_NEXT = 3
# A table of hundreds of groups would not fit on a screen; --json has them all. Besides those named, there are a blank
# line, a header, a row for the others, and the prompt behind all.
_GROUPS, _FEWEST_GROUPS = 8, 3
_GROUP_LINES = 4
_BAR_WIDTH = 20
# How far back it is told what was deleted.
_WEEK_DAYS, _MONTH_DAYS = 7, 30
# The time from the oldest to the newest is shown in so many equal parts: a month in days, on one line of 80 columns.
_SLICES = 30


def run(args: argparse.Namespace, context: Context) -> int:
    settings = context.settings
    snapshot, findings = take_snapshot(settings.storage_dir, context.clock, context.log)
    report_unknown_group(snapshot, args.group, settings.storage_dir, context.log)
    scope, now = snapshot.scoped(args.group), context.clock.now()
    facts = _facts(scope, settings, args.group, context.clock)
    facts["suggested_dirs"] = findings.suggested_dirs
    facts["lock"] = _lock(settings, context.clock)
    if args.json:
        context.out.json(facts)
    else:
        _print(facts, scope, now, context.out)
    context.log.info(
        "storage_manager.stats.summary",
        f"{quantity.counted(facts['session_count'], 'session')}, {quantity.size(facts['usage_bytes'])} "
        f"of {limit_text(facts['limit_bytes'], facts['limit_source'])}",
        **{
            name: value
            for name, value in facts.items()
            if name not in ("ages", "groups", "growth", "deleted", "next", "lock")
        },
    )
    return EXIT_OK


def _facts(snapshot: Snapshot, settings: Settings, group: Optional[str], clock: Clock) -> dict[str, Any]:
    limit_bytes = settings.max_storage_bytes
    groups: dict[Optional[str], list[int]] = {}
    declared = 0
    for session in snapshot.sessions:
        row = groups.setdefault(session.group, [0, 0])
        row[0] += 1
        row[1] += session.size_bytes
        declared += session.declared_bytes or 0
    usage = snapshot.usage_bytes
    names = [session.blob_name for session in snapshot.sessions] + [anomaly.name for anomaly in snapshot.anomalies]
    taken = allocation(settings.storage_dir, names, clock)
    session_bytes = snapshot.session_bytes
    return {
        "storage_dir": settings.storage_dir,
        "group": group,
        "session_count": len(snapshot.sessions),
        "session_bytes": session_bytes,
        "declared_bytes": declared,
        "drift_bytes": session_bytes - declared,
        "usage_bytes": usage,
        "allocated_bytes": taken.allocated_bytes,
        "linked_count": taken.linked_count,
        "usage_mb": quantity.megabytes(usage),
        "limit_bytes": limit_bytes,
        "limit_mb": None if limit_bytes is None else quantity.megabytes(limit_bytes),
        "limit_source": settings.limit_source,
        "used_percent": None if limit_bytes is None else round(100 * usage / limit_bytes, 1),
        "oldest_created_at": utc_text(snapshot.sessions[0].created_at) if snapshot.sessions else None,
        "newest_created_at": utc_text(snapshot.sessions[-1].created_at) if snapshot.sessions else None,
        "ages": _ages(snapshot.sessions),
        "groups": [
            {"group": name, "session_count": count, "session_bytes": size}
            for name, (count, size) in sorted(groups.items(), key=lambda item: (-item[1][1], item[0] or ""))
        ],
        "anomalies": {
            kind: {"count": count, "size_bytes": size} for kind, (count, size) in snapshot.anomaly_totals().items()
        },
        "growth": _growth_facts(growth(snapshot, clock.now()), usage, limit_bytes if group is None else None),
        "deleted": _deleted_facts(settings, clock.now()) if group is None else None,
        "next": [
            {
                "guid": session.guid,
                "created_at": utc_text(session.created_at),
                "group": session.group,
                "size_bytes": session.size_bytes,
            }
            for session in _next(snapshot, settings)
        ],
    }


def _ages(sessions: Sequence[Session]) -> Optional[dict[str, Any]]:
    """How many sessions there are of each part of the time from the oldest to the newest; None where they are of one
    second."""
    if not sessions:
        return None
    oldest = sessions[0].created_at
    slice_secs = (sessions[-1].created_at - oldest).total_seconds() / _SLICES
    if slice_secs * _SLICES < 1:
        return None
    counts = [0] * _SLICES
    for session in sessions:
        counts[min(_SLICES - 1, int((session.created_at - oldest).total_seconds() / slice_secs))] += 1
    return {"slice_secs": round(slice_secs, 3), "session_counts": counts}


def _deleted_facts(settings: Settings, now: datetime) -> Optional[list[dict[str, Any]]]:
    """What the history tells of the last week and month; None without one. Why it cannot be read, `history` says."""
    file = history_file(settings)
    try:
        lines = read_history(file) if file is not None else None
    except (OSError, ValueError):
        lines = None
    if lines is None:
        return None
    ends = [run.last for run in runs(lines) if run.last.what == DELETED]
    found = []
    for days in (_WEEK_DAYS, _MONTH_DAYS):
        late = [line for line in ends if now - line.time <= timedelta(days=days)]
        count, size = sum(line.session_count for line in late), sum(line.size_bytes for line in late)
        found.append({"days": days, "session_count": count, "size_bytes": size})
    return found


def _lock(settings: Settings, clock: Clock) -> Optional[str]:
    """Who holds the lock; None when nobody does, as far as can be seen from outside. Raises StoreError."""
    with open_store(settings.storage_dir) as store:
        found = lock_state(store, clock, settings.lock_stale_secs)
    return found.text if found is not None and found.holding is not Holding.LEFT_OVER else None


def _growth_facts(grown: Optional[Growth], usage: int, limit: Optional[int]) -> Optional[dict[str, Any]]:
    """What is known of the rate; and of the limit, if there is one: when it is reached, and how long it keeps what."""
    if grown is None:
        return None
    full_in = keeps = None
    if limit is not None:
        full_in, keeps = grown.days_for(limit - usage), grown.days_for(limit)
    return {
        "days": round(grown.days, 3),
        "session_count": grown.session_count,
        "size_bytes": grown.size_bytes,
        "full_in_days": None if full_in is None else round(full_in, 1),
        "keeps_days": None if keeps is None else round(keeps, 1),
    }


def _next(snapshot: Snapshot, settings: Settings) -> list[Session]:
    """What a prune deletes first; nothing where deletion is switched off."""
    return [] if settings.max_storage_bytes is None else list(snapshot.sessions[:_NEXT])


def _print(facts: dict[str, Any], snapshot: Snapshot, now: datetime, out: Output) -> None:
    head = list(_head(facts, snapshot, now, out))
    odd = []
    if facts["anomalies"]:
        rows = [
            (kind.replace("_", " "), f"{found['count']:,}", quantity.size(found["size_bytes"]))
            for kind, found in facts["anomalies"].items()
        ]
        odd = ["", *tables.table(("ANOMALY", "COUNT>", "SIZE>"), rows)]
    groups = []
    if facts["groups"] and facts["group"] is None:
        screen = out.terminal_size
        room = _GROUPS
        if screen is not None:
            room = max(_FEWEST_GROUPS, screen.lines - tables.height([*head, *odd], screen.columns) - _GROUP_LINES)
        columns = ("GROUP", "SESSIONS>", "SIZE>", "SHARE>", "")
        groups = ["", *tables.table(columns, _group_rows(facts, room, out), out.columns)]
    for line in (*head, *groups, *odd):
        out.line(line)


def _head(facts: dict[str, Any], snapshot: Snapshot, now: datetime, out: Output) -> Iterator[str]:
    usage, limit = facts["usage_bytes"], facts["limit_bytes"]
    yield f"Store      {printable(os.path.abspath(facts['storage_dir']))}"
    for suggested in facts["suggested_dirs"]:
        yield f"           empty; did you mean --storage-dir {printable(suggested)}?"
    if facts["lock"] is not None:
        yield f"Lock       {printable(facts['lock'])}"
    if facts["group"] is not None:
        yield f"Group      {printable(facts['group'], 200)}"
    if limit is None:
        yield f"Usage      {quantity.size(usage)}; no limit: deletion is switched off"
    else:
        shown = limit_text(limit, facts["limit_source"])
        over = f"{facts['used_percent']} %"
        if usage > limit:
            over = out.paint(f"{quantity.size(usage - limit)} over", BAD)
        yield f"Usage      {quantity.size(usage)} of {shown}, {over}"
        bar = tables.bar(usage, limit, out.encoding)
        yield f"           {out.paint(bar, BAD if usage > limit else None)}"
    yield f"Sessions   {facts['session_count']:,}, {quantity.size(facts['session_bytes'])}"
    if facts["drift_bytes"]:
        direction = "more" if facts["drift_bytes"] > 0 else "less"
        drift = quantity.size(abs(facts["drift_bytes"]))
        yield f"Declared   {quantity.size(facts['declared_bytes'])}; on disk there is {drift} {direction}"
    for line in _on_disk(usage, facts["allocated_bytes"], facts["linked_count"]):
        yield f"On disk    {line}"
    if facts["growth"] is not None:
        for number, line in enumerate(_growth_lines(facts["growth"])):
            yield f"{'' if number else 'Growth':<11}{line}"
    for number, line in enumerate(_deletion_lines(facts["deleted"] or ())):
        yield f"{'' if number else 'Deleted':<11}{line}"
    if snapshot.sessions:
        for name, session in (("Oldest", snapshot.sessions[0]), ("Newest", snapshot.sessions[-1])):
            moment = utc_text(session.created_at.replace(microsecond=0))
            yield f"{name}     {moment}  {quantity.age(session.created_at, now)}"
    if facts["ages"] is not None:
        columns = tables.columns_of(facts["ages"]["session_counts"], out.encoding)
        yield f"By age     {columns}  oldest first, {quantity.duration(facts['ages']['slice_secs'])} each"
    for number, row in enumerate(facts["next"]):
        group = "-" if row["group"] is None else printable(row["group"], 20)
        yield f"{'' if number else 'Goes next':<11}{row['guid']}  {quantity.size(row['size_bytes'])}  {group}"


def _growth_lines(facts: dict[str, Any]) -> Iterator[str]:
    days, full_in, keeps = facts["days"], facts["full_in_days"], facts["keeps_days"]
    yield f"{quantity.size(round(facts['size_bytes'] / days))} a day over the last {days:.0f} days"
    if keeps is not None:
        keeps = f"the limit keeps {quantity.duration(86_400 * keeps)} of sessions"
        yield f"at this rate {f'full in {quantity.duration(86_400 * full_in)}; ' if full_in else ''}{keeps}"


def _deletion_lines(periods: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What there is to say of each that the one before has not said."""
    told = 0
    for facts in periods:
        count = facts["session_count"]
        if count > told:
            told = count
            size = quantity.size(facts["size_bytes"])
            yield f"{quantity.counted(count, 'session')}, {size} over the last {facts['days']} days"


def _group_rows(facts: dict[str, Any], most: int, out: Output) -> Iterator[tuple[str, ...]]:
    """The groups that take most, and the others in one row."""

    def row(name: str, count: int, size: int) -> tuple[str, ...]:
        share = 100 * size / (facts["session_bytes"] or 1)
        bar = tables.bar(size, facts["session_bytes"], out.encoding, _BAR_WIDTH)
        return name, f"{count:,}", quantity.size(size), f"{share:.1f} %", bar

    groups = facts["groups"]
    shown = groups if len(groups) <= most + 1 else groups[:most]
    for group in shown:
        name = "-" if group["group"] is None else group["group"]
        yield row(name, group["session_count"], group["session_bytes"])
    rest = groups[len(shown) :]
    if rest:
        count, size = (sum(group[name] for group in rest) for name in ("session_count", "session_bytes"))
        yield row(f"({len(rest):,} more; --json names them)", count, size)


def _on_disk(usage: int, allocated: int, linked_count: int) -> Iterator[str]:
    """What deleting the blobs would free, where their sizes do not say it."""
    low, high = sorted((usage, allocated))
    if high - low >= _MUCH_BYTES and high >= _MUCH_FACTOR * low:
        why = "blobs are sparse or compressed" if allocated < usage else "small blobs fill whole blocks"
        yield f"{quantity.size(allocated)}: {why}; the limit counts sizes"
    if linked_count:
        yield f"{quantity.counted(linked_count, 'blob')} with another hard link: deleting them frees no space"
