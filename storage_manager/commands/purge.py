"""`purge`: delete sessions by age."""

from __future__ import annotations

import argparse
import os
from datetime import datetime
from typing import Optional

from storage_manager.base import quantity
from storage_manager.base.errors import EXIT_OK, UsageError
from storage_manager.base.text import printable
from storage_manager.base.times import utc_text
from storage_manager.commands import Context
from storage_manager.commands.outcome import carry_out, confirmed
from storage_manager.config import SHORTEST_MAX_AGE_DAYS
from storage_manager.jobs import prune
from storage_manager.jobs.plan import Plan
from storage_manager.jobs.policy import confirmed_of, plan_orphan_purge, plan_purge
from storage_manager.jobs.progress import Progress, telling
from storage_manager.jobs.store_time import StoreTime
from storage_manager.loop.history_file import earlier_deletions
from storage_manager.loop.own_files import writable_history_file
from storage_manager.store.snapshot import Snapshot


def run(args: argparse.Namespace, context: Context) -> int:
    if args.orphans and args.group is not None:
        raise UsageError("--orphans and --group exclude each other: an orphan's group is not known")

    settings = context.settings
    store_time = StoreTime(context.clock)
    # A younger age keeps at most what was saved while the command was typed.
    means_everything = args.age_days < SHORTEST_MAX_AGE_DAYS

    def planner(snapshot: Snapshot, now: datetime) -> Plan:
        if args.orphans:
            plan = plan_orphan_purge(snapshot, args.age_days, now)
        else:
            plan = plan_purge(snapshot, args.age_days, args.group, now)
        if not means_everything and not (args.yes or args.dry_run):
            store_time.require_clock(plan, args.age_days, snapshot, settings.storage_dir, now, "use --yes")
        return plan

    job = prune.Job(
        kind="purge",
        command=args.command,
        storage_dir=settings.storage_dir,
        planner=planner,
        group=args.group,
        limit_bytes=None,
        target_bytes=None,
        lock_timeout_secs=args.lock_timeout,
        lock_stale_secs=args.lock_stale_seconds,
        max_delete=args.max_delete,
        explain=args.verbose,
        history=None if args.dry_run else writable_history_file(settings, context.log),
        earlier=lambda: earlier_deletions(settings, context.log),
    )
    needs_answer = means_everything and not (args.yes or args.dry_run)
    meant = _meant(job, context) if needs_answer else None
    if meant is not None:
        guids = frozenset(session.guid for session in (*meant.victims, *meant.swept))
        job = job._replace(planner=lambda snapshot, now: confirmed_of(planner(snapshot, now), guids))
    elif needs_answer:
        context.log.info("storage_manager.purge.cancelled", "cancelled; nothing was deleted", group=args.group)
        if args.json:
            context.out.json({"command": args.command, "cancelled": True, "exit_code": EXIT_OK})
        else:
            context.out.line("cancelled; nothing was deleted")
        return EXIT_OK
    return carry_out(job, args, context)


def _meant(job: prune.Job, context: Context) -> Optional[Plan]:
    """What somebody has been asked about, and wants; None: it is not wanted. Raises like preview() and confirmed()."""
    with telling(Progress()):
        plan = prune.preview(job, context.clock, context.log)
        return plan if confirmed(_warning(job, plan), context.clock) else None


def _warning(job: prune.Job, plan: Plan) -> str:
    victims = plan.victims
    what = f"{quantity.counted(len(victims), plan.noun)}, {quantity.size(plan.freed_bytes)}"
    if victims:
        first, last = (utc_text(session.created_at)[:19] for session in (victims[0], victims[-1]))
        what += f", from {first} to {last} UTC"
    group_count = len({session.group for session in victims})
    if group_count > 1:
        what += f", of {group_count:,} groups"
    whose = f"every {plan.noun}" if job.group is None else f"every {plan.noun} of group {printable(job.group, 80)}"
    return f"{what}\nThis deletes {whose} in {printable(os.path.abspath(job.storage_dir))}."
