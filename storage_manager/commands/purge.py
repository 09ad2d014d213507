"""`purge`: delete sessions by age."""

from __future__ import annotations

import argparse
from datetime import datetime

from storage_manager.base.errors import EXIT_OK, UsageError
from storage_manager.base.text import printable
from storage_manager.commands import Context
from storage_manager.commands.outcome import confirmed, show
from storage_manager.jobs import prune
from storage_manager.jobs.plan import Plan
from storage_manager.jobs.policy import plan_orphan_purge, plan_purge
from storage_manager.store.snapshot import Snapshot

NAME = "purge"

# A younger age than a minute keeps at most what was saved while the command was typed: it means everything.
NO_AGE_DAYS = 1 / (24 * 60)


def run(args: argparse.Namespace, context: Context) -> int:
    if args.orphans and args.group is not None:
        raise UsageError("--orphans and --group exclude each other: an orphan's group is not known")

    def planner(snapshot: Snapshot, now: datetime) -> Plan:
        if args.orphans:
            return plan_orphan_purge(snapshot, args.age_days, now)
        return plan_purge(snapshot, args.age_days, args.group, now)

    job = prune.Job(
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
    needs_answer = args.age_days < NO_AGE_DAYS and not (args.yes or args.dry_run)
    if needs_answer and not confirmed(_warning(job, args.orphans), context.clock):
        context.log.info("storage_manager.purge.cancelled", "cancelled; nothing was deleted", group=args.group)
        if args.json:
            context.out.json({"command": NAME, "cancelled": True, "exit_code": EXIT_OK})
        else:
            context.out.line("cancelled; nothing was deleted")
        return EXIT_OK
    outcome = (prune.dry_run if args.dry_run else prune.run)(job, context.clock, context.log)
    show(outcome, job, args.json, False, context.out)
    return outcome.exit_code


def _warning(job: prune.Job, orphans: bool) -> str:
    what = "orphan" if orphans else "session"
    whose = f"every {what}" if job.group is None else f"every {what} of group {printable(job.group, 80)}"
    return f"This deletes {whose} in {printable(job.storage_dir)}."
