"""`prune-size`: bring the store below a size, oldest sessions first."""

from __future__ import annotations

import argparse

from storage_manager.commands import Context
from storage_manager.commands._shared import add_lock_arguments, argument, execute, show
from storage_manager.errors import UsageError
from storage_manager.policy import PruneLimits, plan_prune
from storage_manager.quantity import parse_count, parse_number, parse_size_bytes

NAME = "prune-size"
HELP = "delete the oldest sessions until the store is within a size"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    size = argument(parse_size_bytes)
    parser.add_argument(
        "--max-mb", metavar="X", type=size, required=True, help="the limit, in MB or with a unit (512M, 10GB, 1.5GiB)"
    )
    parser.add_argument("--target-mb", metavar="Y", type=size, help="prune down to this once over the limit")
    parser.add_argument(
        "--min-age-mins", metavar="M", type=argument(parse_number), default=0.0, help="keep sessions younger than this"
    )
    parser.add_argument(
        "--keep-last", metavar="N", type=argument(parse_count), default=0, help="keep the newest N sessions"
    )
    parser.add_argument("--group", metavar="G", help="only this group's sessions count, and go")
    parser.add_argument("--dry-run", action="store_true", help="say what would go, and why; delete nothing")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("-v", "--verbose", action="store_true", help="name each session that goes or stays, and why")
    parser.add_argument("--yes", action="store_true", help="changes nothing: prune-size never asks")
    add_lock_arguments(parser)


def run(args: argparse.Namespace, context: Context) -> int:
    from storage_manager.pruner import Job  # `health` must not wait for it

    target_bytes = args.max_mb if args.target_mb is None else args.target_mb
    if target_bytes > args.max_mb:
        raise UsageError("--target-mb must not be above --max-mb")
    limits = PruneLimits(args.max_mb, target_bytes, args.min_age_mins, args.keep_last, args.group)
    job = Job(
        kind="prune",
        command=NAME,
        storage_dir=context.settings.storage_dir,
        planner=lambda snapshot, now: plan_prune(snapshot, limits, now),
        group=args.group,
        limit_bytes=limits.limit_bytes,
        target_bytes=limits.target_bytes,
        lock_timeout_secs=args.lock_timeout,
        lock_stale_secs=args.lock_stale_seconds,
        explain=args.verbose,
    )
    outcome = execute(job, args.dry_run, context.clock, context.log)
    show(outcome, job, args.json, args.verbose, context.out)
    return outcome.exit_code
