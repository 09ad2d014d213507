"""`list`: the sessions, oldest first or in another order, all of them or some."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Sequence
from datetime import datetime, timedelta
from heapq import merge
from typing import Any

from storage_manager.base import quantity
from storage_manager.base.errors import EXIT_OK
from storage_manager.base.output import Output
from storage_manager.base.strict_json import json_text
from storage_manager.base.text import printable
from storage_manager.base.times import second_text, utc_text
from storage_manager.commands import Context
from storage_manager.store.snapshot import Session, Snapshot
from storage_manager.store.survey import report_unknown_group, take_snapshot

_ROW = "{:<36}  {:<19}  {:>12}  {:>10}  {:<9}  {}"
# On a terminal that is not wide enough for that, with the start of the group's name: what says most.
_WIDE_COLUMNS = 110
_NARROW_ROW = "{:<36}  {:<16}  {:>8}  {}"
_NARROW_COLUMNS = 66

# Among equals, the oldest comes first.
_KEYS: dict[str, Callable[[Session], Any]] = {
    "size": lambda session: session.size_bytes,
    "group": lambda session: (session.group is None, session.group or ""),
    "name": lambda session: session.guid,
}


def run(args: argparse.Namespace, context: Context) -> int:
    storage_dir = context.settings.storage_dir
    snapshot, _ = take_snapshot(storage_dir, context.clock, context.log)
    report_unknown_group(snapshot, args.group, storage_dir, context.log)
    now = context.clock.now()
    snapshot = _matching(snapshot.scoped(args.group), args, now)
    sessions = _sorted(snapshot, args)
    dangling = {session.guid for session in snapshot.dangling}
    _print(sessions[: args.limit], dangling, args, now, context.out)
    if args.limit is not None and args.verbose and not args.json and context.out.columns is not None:
        _print_rest(sessions[args.limit :], context.out)
    context.log.info(
        "storage_manager.list.summary",
        f"{quantity.counted(len(snapshot.sessions), 'session')}, {quantity.size(snapshot.session_bytes)}",
        storage_dir=storage_dir,
        group=args.group,
        item_count=len(snapshot.sessions),
        dangling_count=len(snapshot.dangling),
        total_bytes=snapshot.session_bytes,
    )
    return EXIT_OK


def _matching(snapshot: Snapshot, args: argparse.Namespace, now: datetime) -> Snapshot:
    """The sessions and dangling entries of the age and size that were asked for."""
    if args.older_than is None and args.larger_than is None:
        return snapshot
    created_by = datetime.max if args.older_than is None else now - timedelta(seconds=args.older_than)
    least_bytes = args.larger_than or 0

    def match(sessions: Sequence[Session]) -> list[Session]:
        return [
            session for session in sessions if session.created_at <= created_by and session.size_bytes >= least_bytes
        ]

    return snapshot._replace(sessions=match(snapshot.sessions), dangling=match(snapshot.dangling))


def _sorted(snapshot: Snapshot, args: argparse.Namespace) -> list[Session]:
    sessions = list(merge(snapshot.sessions, snapshot.dangling))
    if args.sort in _KEYS:
        sessions.sort(key=_KEYS[args.sort], reverse=args.reverse)
    elif args.reverse:
        sessions.reverse()
    return sessions


def _print(
    sessions: Sequence[Session], dangling: Collection[str], args: argparse.Namespace, now: datetime, out: Output
) -> None:
    columns = out.columns or _WIDE_COLUMNS
    if args.verbose and not args.json:
        header = ("GUID", "CREATED (UTC)", "AGE", "SIZE", "STATE", "GROUP")
        out.line(_fitting(header, columns))
    for session in sessions:
        if not out.is_open:
            break
        state = "dangling" if session.guid in dangling else "ok"
        if args.json:
            out.line(_json(session, state))
        elif args.verbose:
            out.line(_row(session, state, now, columns))
        else:
            out.line(session.guid)


def _print_rest(sessions: Sequence[Session], out: Output) -> None:
    """For a person: a program that reads the table counts on one session a line."""
    if sessions:
        size = quantity.size(sum(session.size_bytes for session in sessions))
        out.line(f"{len(sessions):,} more, {size}, are not shown (--limit)")


def _json(session: Session, state: str) -> str:
    return json_text(
        {
            "guid": session.guid,
            "format": session.format,
            "created_at": utc_text(session.created_at),
            "group": session.group,
            "size_bytes": session.size_bytes,
            "declared_bytes": session.declared_bytes,
            "state": state,
        }
    )


def _row(session: Session, state: str, now: datetime, columns: int) -> str:
    row = (
        session.guid,
        second_text(session.created_at),
        quantity.age(session.created_at, now),
        quantity.size(session.size_bytes),
        state,
        "-" if session.group is None else printable(session.group, 60),
    )
    return _fitting(row, columns)


def _fitting(row: tuple[str, str, str, str, str, str], columns: int) -> str:
    """As much of a row as so many columns have room for."""
    if columns >= _WIDE_COLUMNS:
        return _ROW.format(*row)
    guid, created, _, size, state, group = row
    size = state if state == "dangling" else size
    return _NARROW_ROW.format(guid, created[:16], size, printable(group, max(5, columns - _NARROW_COLUMNS)))
