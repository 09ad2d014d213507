"""`purge`: delete sessions by age."""

from __future__ import annotations

import argparse
from datetime import datetime
from typing import TYPE_CHECKING

from storage_manager.commands import Context
from storage_manager.commands._shared import add_lock_arguments, argument, confirmed, execute, show
from storage_manager.errors import EXIT_OK, UsageError
from storage_manager.model import Plan, Snapshot
from storage_manager.policy import plan_orphan_purge, plan_purge
from storage_manager.quantity import parse_number
from storage_manager.text import printable

if TYPE_CHECKING:
    from storage_manager.pruner import Job

NAME = "purge"
HELP = "delete the sessions of an age and older"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--age-days",
        metavar="N",
        type=argument(parse_number),
        default=30.0,
        help="age in days of 24 hours (default: 30); 0 is everything, and asks first",
    )
    parser.add_argument("--group", metavar="G", help="only this group's sessions")
    parser.add_argument(
        "--orphans",
        action="store_true",
        help="orphans instead of sessions, by the time they were last modified (`check --adopt-orphans` keeps them)",
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--dry-run", action="store_true", help="say what would go; delete nothing")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    add_lock_arguments(parser)


def run(args: argparse.Namespace, context: Context) -> int:
    from storage_manager.pruner import Job  # `health` must not wait for it

    if args.orphans and args.group is not None:
        raise UsageError("--orphans and --group exclude each other: an orphan's group is not known")

    def planner(snapshot: Snapshot, now: datetime) -> Plan:
        if args.orphans:
            return plan_orphan_purge(snapshot, args.age_days, now)
        return plan_purge(snapshot, args.age_days, args.group, now)

    job = Job(
        kind="purge",
        command=NAME,
        storage_dir=context.settings.storage_dir,
        planner=planner,
        group=args.group,
        limit_bytes=None,
        target_bytes=None,
        lock_timeout_secs=args.lock_timeout,
        lock_stale_secs=args.lock_stale_seconds,
    )
    needs_answer = args.age_days == 0 and not (args.yes or args.dry_run)
    if needs_answer and not confirmed(_warning(job, args.orphans), context.clock):
        context.log.info("storage_manager.purge.cancelled", "cancelled; nothing was deleted", group=args.group)
        if args.json:
            context.out.json({"command": NAME, "cancelled": True, "exit_code": EXIT_OK})
        else:
            context.out.line("cancelled; nothing was deleted")
        return EXIT_OK
    outcome = execute(job, args.dry_run, context.clock, context.log)
    show(outcome, job, args.json, False, context.out)
    return outcome.exit_code


def _warning(job: Job, orphans: bool) -> str:
    what = "orphan" if orphans else "session"
    whose = f"every {what}" if job.group is None else f"every {what} of group {printable(job.group, 80)}"
    return f"This deletes {whose} in {printable(job.storage_dir)}."
