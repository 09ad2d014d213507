"""What the commands that delete have in common: the question before, and how the outcome is shown."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Optional

from storage_manager.base import quantity
from storage_manager.base.clock import Clock
from storage_manager.base.errors import Interrupted, StorageManagerError
from storage_manager.base.log import standard_error
from storage_manager.base.output import Output
from storage_manager.base.times import utc_text
from storage_manager.commands import Context
from storage_manager.commands.preview import preview
from storage_manager.commands.tables import height
from storage_manager.jobs import prune
from storage_manager.jobs.plan import HELP, Outcome, overrun, sentence
from storage_manager.jobs.progress import Progress, telling
from storage_manager.jobs.prune import Job
from storage_manager.store.snapshot import Session


def confirmed(warning: str, clock: Clock) -> bool:
    """Whether the user says yes. Raises StorageManagerError when there is nobody to answer, and Interrupted."""
    answer = ""
    try:  # a terminal may be closed while it is asked
        try:
            _say(f"{warning}\nAre you sure? (yes/no) ")
            if sys.stdin is not None:
                clock.wait_for_input(sys.stdin.fileno())
                answer = sys.stdin.readline()
        except Interrupted:
            with suppress(OSError):  # it may be the terminal that has gone
                _say("\n")  # what was done is told on a line of its own
            raise
        if not (answer and sys.stdin.isatty()):
            _say("\n")  # nobody has pressed return
    except (OSError, ValueError):
        answer = ""
    if not answer:
        raise StorageManagerError("there is nobody to answer; use --yes to go on without being asked")
    return answer.strip().lower() == "yes"


def _say(text: str) -> None:
    """To standard error, past its buffer: what stays there would fail once more when the interpreter ends."""
    stream = standard_error()
    if stream is not None:
        os.write(stream.fileno(), text.encode("utf-8", "backslashreplace"))


def carry_out(job: Job, args: argparse.Namespace, context: Context) -> int:
    """Do a job, or with `--dry-run` foresee it, and show what came of it. Returns the exit code.

    Raises like prune.run() and prune.dry_run().
    """
    progress = Progress()
    with telling(progress):
        outcome = (prune.dry_run if args.dry_run else prune.run)(job, context.clock, context.log, progress)
        _show(outcome, job, args.json, args.verbose, context.clock.now(), context.out)
    return outcome.exit_code


def _show(outcome: Outcome, job: Job, as_json: bool, verbose: bool, now: datetime, out: Output) -> None:
    """The outcome on standard output: JSON, or one sentence, with a line per decision where asked for.

    Of a dry run the sentence comes first, and more about what would go; else last.
    """
    if as_json:
        out.json(_json(outcome, job, verbose))
        return
    if outcome.dry_run:
        out.line(sentence(outcome))
    unmet = list(_unmet(outcome))
    if outcome.dry_run or verbose:
        lines = _lines(outcome, verbose)
        if outcome.dry_run:
            lines = preview(outcome.plan, lines, now, verbose, _above(unmet, out.terminal_size))
        for line in lines:
            if not out.is_open:
                break
            out.line(line)
    if not outcome.dry_run:
        out.line(sentence(outcome))
    for line in unmet:
        out.line(line)


def _unmet(outcome: Outcome) -> Iterator[str]:
    """Nothing when the target is met."""
    stays = overrun(outcome.plan, outcome.final_bytes)
    if stays:
        yield f"target not met: {stays}"
    lead = "    because of" if stays else "target not met:"
    for cause, size_bytes in outcome.plan.causes.items():
        yield f"{lead} {quantity.size(size_bytes)} {cause.replace('_', ' ')}"
        yield f"    to do: {HELP[cause]}"


def _above(lines: Sequence[str], screen: Optional[os.terminal_size]) -> Optional[os.terminal_size]:
    """What these lines leave of a terminal."""
    if screen is None:
        return None
    return os.terminal_size((screen.columns, screen.lines - height(lines, screen.columns)))


def _lines(outcome: Outcome, verbose: bool) -> Iterator[str]:
    for action, session, reason in _decisions(outcome, verbose):
        created = utc_text(session.created_at.replace(microsecond=0))
        size = quantity.size(session.size_bytes)
        yield f"{action:<6}  {session.guid}  {created}  {size:>9}  {reason}"


def _json(outcome: Outcome, job: Job, verbose: bool) -> dict[str, Any]:
    plan = outcome.plan
    return {
        "command": job.terms.command,
        "dry_run": outcome.dry_run,
        "storage_dir": job.terms.storage_dir,
        "group": job.limits.group,
        "limit_bytes": job.limits.limit_bytes,
        "target_bytes": plan.target_bytes,
        "target_met": plan.target_met,
        "causes": plan.causes,
        "current_bytes": plan.current_bytes,
        "final_bytes": outcome.final_bytes,
        "deleted_count": outcome.counts.deleted_count,
        "freed_bytes": outcome.counts.freed_bytes,
        "swept_count": outcome.counts.swept_count,
        "deferred_count": outcome.counts.deferred_count,
        "failed_count": len(outcome.counts.failed),
        "exit_code": outcome.exit_code,
        "plan": [
            {
                "action": action,
                "guid": session.guid,
                "created_at": utc_text(session.created_at),
                "group": session.group,
                "size_bytes": session.size_bytes,
                "reason": reason,
            }
            for action, session, reason in _decisions(outcome, verbose)
        ],
    }


def _decisions(outcome: Outcome, verbose: bool) -> Iterator[tuple[str, Session, str]]:
    """The plan's decisions, with what failed called so; the sessions that stay only where asked for."""
    for action, session, reason in outcome.plan.decisions():
        if session.blob_name in outcome.counts.failed:
            yield "failed", session, reason
        elif session.blob_name in outcome.counts.changed:
            yield "keep", session, "saved again in the meantime"
        elif verbose or action != "keep":
            yield action, session, reason
