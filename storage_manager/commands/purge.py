"""`purge`: delete sessions by age."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from storage_manager.clock import Clock
from storage_manager.commands import Context
from storage_manager.commands._shared import add_lock_arguments, argument, execute, show
from storage_manager.errors import EXIT_OK, StorageManagerError
from storage_manager.policy import plan_purge
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
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--dry-run", action="store_true", help="say what would go; delete nothing")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    add_lock_arguments(parser)


def run(args: argparse.Namespace, context: Context) -> int:
    from storage_manager.pruner import Job  # `health` must not wait for it

    job = Job(
        kind="purge",
        command=NAME,
        storage_dir=context.settings.storage_dir,
        planner=lambda snapshot, now: plan_purge(snapshot, args.age_days, args.group, now),
        group=args.group,
        limit_bytes=None,
        target_bytes=None,
        lock_timeout_secs=args.lock_timeout,
        lock_stale_secs=args.lock_stale_seconds,
    )
    if args.age_days == 0 and not (args.yes or args.dry_run) and not _confirmed(job, context.clock):
        context.log.info("storage_manager.purge.cancelled", "cancelled; nothing was deleted", group=args.group)
        if args.json:
            context.out.json({"command": NAME, "cancelled": True, "exit_code": EXIT_OK})
        else:
            context.out.line("cancelled; nothing was deleted")
        return EXIT_OK
    outcome = execute(job, args.dry_run, context.clock, context.log)
    show(outcome, job, args.json, False, context.out)
    return outcome.exit_code


def _confirmed(job: Job, clock: Clock) -> bool:
    whose = "every session" if job.group is None else f"every session of group {printable(job.group, 80)}"
    if sys.stderr is not None:
        print(f"This deletes {whose} in {printable(job.storage_dir)}.", file=sys.stderr)
        print("Are you sure? (yes/no) ", end="", file=sys.stderr, flush=True)
    try:
        answer = ""
        if sys.stdin is not None:
            clock.wait_for_input(sys.stdin.fileno())
            answer = sys.stdin.readline()
    except (OSError, ValueError):
        answer = ""
    if sys.stderr is not None and not (answer and sys.stdin.isatty()):
        print(file=sys.stderr)  # nobody has pressed return
    if not answer:
        raise StorageManagerError("there is nobody to answer; use --yes to delete everything without being asked")
    return answer.strip().lower() in ("yes", "y")
