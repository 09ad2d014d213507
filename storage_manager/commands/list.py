"""`list`: the sessions, oldest first."""

from __future__ import annotations

import argparse
from datetime import datetime
from heapq import merge

from storage_manager.base import quantity
from storage_manager.base.errors import EXIT_OK
from storage_manager.base.strict_json import json_text
from storage_manager.base.text import printable
from storage_manager.base.times import utc_text
from storage_manager.commands import Context
from storage_manager.store.snapshot import Session
from storage_manager.store.survey import report_unknown_group, take_snapshot

_ROW = "{:<36}  {:<19}  {:>12}  {:>10}  {:<9}  {}"


def run(args: argparse.Namespace, context: Context) -> int:
    storage_dir = context.settings.storage_dir
    snapshot, _ = take_snapshot(storage_dir, context.clock, context.log)
    report_unknown_group(snapshot, args.group, storage_dir, context.log)
    snapshot = snapshot.scoped(args.group)
    now = context.clock.now()
    dangling = {session.guid for session in snapshot.dangling}
    if args.verbose and not args.json:
        context.out.line(_ROW.format("GUID", "CREATED (UTC)", "AGE", "SIZE", "STATE", "GROUP"))
    for session in merge(snapshot.sessions, snapshot.dangling):
        if not context.out.is_open:
            break
        state = "dangling" if session.guid in dangling else "ok"
        if args.json:
            context.out.line(_json(session, state))
        elif args.verbose:
            context.out.line(_row(session, state, now))
        else:
            context.out.line(session.guid)
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


def _row(session: Session, state: str, now: datetime) -> str:
    created = f"{session.created_at:%H:%M:%S}"  # strftime does not pad years before 1000
    return _ROW.format(
        session.guid,
        f"{session.created_at.date().isoformat()} {created}",
        quantity.age(session.created_at, now),
        quantity.size(session.size_bytes),
        state,
        "-" if session.group is None else printable(session.group, 60),
    )
