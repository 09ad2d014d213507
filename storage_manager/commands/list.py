"""`list`: the sessions, oldest first."""

from __future__ import annotations

import argparse
from datetime import datetime
from heapq import merge

from storage_manager import report
from storage_manager.commands import Context
from storage_manager.entry import utc_text
from storage_manager.errors import EXIT_OK
from storage_manager.model import Session
from storage_manager.output import json_text
from storage_manager.text import printable

NAME = "list"
HELP = "list the sessions, oldest first: one guid a line"

_ROW = "{:<36}  {:<19}  {:>12}  {:>10}  {:<9}  {}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--group", metavar="G", help="only this group's sessions")
    parser.add_argument("-v", "--verbose", action="store_true", help="a table: created (UTC), age, size, state, group")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def run(args: argparse.Namespace, context: Context) -> int:
    from storage_manager.survey import take_snapshot  # `health` must not wait for it

    storage_dir = context.settings.storage_dir
    snapshot, _ = take_snapshot(storage_dir, context.clock, context.log)
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
        f"{report.counted(len(snapshot.sessions), 'session')}, {report.size(snapshot.session_bytes)}",
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
        report.age(session.created_at, now),
        report.size(session.size_bytes),
        state,
        "-" if session.group is None else printable(session.group, 60),
    )
