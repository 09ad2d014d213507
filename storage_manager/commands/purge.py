"""`purge`: delete sessions by age."""

from __future__ import annotations

import argparse
import os
from typing import Optional

from storage_manager.base import quantity
from storage_manager.base.errors import EXIT_OK, UsageError
from storage_manager.base.text import printable
from storage_manager.base.times import utc_text
from storage_manager.commands import Context
from storage_manager.commands.outcome import carry_out, confirmed
from storage_manager.config import SHORTEST_MAX_AGE_DAYS
from storage_manager.jobs import prune
from storage_manager.jobs.evidence import Mandate
from storage_manager.jobs.plan import Plan
from storage_manager.jobs.policy import Limits, confirmed_of, plan_orphan_purge, plan_purge
from storage_manager.jobs.progress import Progress, telling
from storage_manager.jobs.work import Terms
from storage_manager.loop.history_file import earlier_deletions
from storage_manager.loop.own_files import writable_history_file


def run(args: argparse.Namespace, context: Context) -> int:
    if args.orphans and args.group is not None:
        raise UsageError("--orphans and --group exclude each other: an orphan's group is not known")

    settings = context.settings
    # A younger age keeps at most what was saved while the command was typed.
    means_everything = args.age_days < SHORTEST_MAX_AGE_DAYS
    is_sure = means_everything or args.yes or args.dry_run
    history = None if args.dry_run else writable_history_file(settings, context.log)
    job = prune.Job(
        kind="purge",
        terms=Terms(settings.storage_dir, args.command, args.lock_timeout, args.lock_stale_seconds, history),
        planner=plan_orphan_purge if args.orphans else plan_purge,
        limits=Limits(group=args.group, max_age_days=args.age_days),
        mandate=Mandate(args.max_delete, if_clock_is_right="" if is_sure else "use --yes"),
        earlier=lambda: earlier_deletions(settings, context.log),
        explain=args.verbose,
    )
    needs_answer = means_everything and not (args.yes or args.dry_run)
    meant = _meant(job, context) if needs_answer else None
    if meant is not None:
        guids = frozenset(session.guid for session in (*meant.victims, *meant.swept))
        planner = job.planner
        job = job._replace(planner=lambda *seen: confirmed_of(planner(*seen), guids))
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
    group = job.limits.group
    whose = f"every {plan.noun}" if group is None else f"every {plan.noun} of group {printable(group, 80)}"
    return f"{what}\nThis deletes {whose} in {printable(os.path.abspath(job.terms.storage_dir))}."
