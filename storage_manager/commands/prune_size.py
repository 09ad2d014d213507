"""`prune-size`: bring the store below a size, oldest sessions first."""

from __future__ import annotations

import argparse

from storage_manager.base.errors import UsageError
from storage_manager.commands import Context
from storage_manager.commands.outcome import carry_out
from storage_manager.jobs import prune
from storage_manager.jobs.policy import PruneLimits, plan_prune
from storage_manager.loop.history_file import writable_history_file

NAME = "prune-size"


def run(args: argparse.Namespace, context: Context) -> int:
    target_bytes = args.max_mb if args.target_mb is None else args.target_mb
    if target_bytes > args.max_mb:
        raise UsageError("--target-mb must not be above --max-mb")
    limits = PruneLimits(args.max_mb, target_bytes, args.min_age_mins, args.keep_last, args.group)
    job = prune.Job(
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
        history=None if args.dry_run else writable_history_file(context.settings, context.log),
    )
    return carry_out(job, args, context)
