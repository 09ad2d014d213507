"""`prune-size`: bring the store below a size, oldest sessions first."""

from __future__ import annotations

import argparse

from storage_manager.base.errors import UsageError
from storage_manager.commands import Context
from storage_manager.commands.outcome import carry_out
from storage_manager.config import limit_text
from storage_manager.jobs import prune
from storage_manager.jobs.evidence import Mandate
from storage_manager.jobs.policy import Limits, plan_prune
from storage_manager.jobs.work import Terms
from storage_manager.loop.history_file import earlier_deletions
from storage_manager.loop.own_files import writable_history_file


def run(args: argparse.Namespace, context: Context) -> int:
    settings = context.settings
    limit_bytes, target_bytes, shown = args.max_mb, args.target_mb, None
    if limit_bytes is None and args.max_sessions is None:
        if not args.dry_run:
            raise UsageError("the limit is missing: --max-mb, --max-sessions, or both")
        limit_bytes = settings.max_storage_bytes
        if limit_bytes is None:
            raise UsageError(f"the limit is missing: --max-mb, for {settings.limit_variable} is `off`")
        shown = limit_text(limit_bytes, settings.limit_source)
    if target_bytes is None:
        target_bytes = limit_bytes
    if target_bytes is not None and (limit_bytes is None or target_bytes > limit_bytes):
        raise UsageError("--target-mb must not be above --max-mb")
    history = None if args.dry_run else writable_history_file(settings, context.log)
    job = prune.Job(
        kind="prune",
        terms=Terms(settings.storage_dir, args.command, args.lock_timeout, args.lock_stale_seconds, history),
        planner=plan_prune,
        limits=Limits(limit_bytes, target_bytes, args.min_age_mins, args.keep_last, args.group, args.max_sessions),
        mandate=Mandate(args.max_delete),
        earlier=lambda: earlier_deletions(settings, context.log),
        explain=args.verbose,
        limit_text=shown,
    )
    if shown is not None and not args.json:
        context.out.line(f"the limit is {shown}, from {settings.limit_variable}; --max-mb tries another")
    return carry_out(job, args, context)
