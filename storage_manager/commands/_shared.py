"""What purge and prune-size have in common: the lock's flags, and how an outcome is shown."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from storage_manager import report
from storage_manager.clock import Clock
from storage_manager.config import DEFAULT_LOCK_STALE_SECS
from storage_manager.entry import utc_text
from storage_manager.errors import StorageManagerError
from storage_manager.logs import EventLog
from storage_manager.model import Outcome, Session
from storage_manager.output import Output
from storage_manager.quantity import parse_number
from storage_manager.text import printable

if TYPE_CHECKING:
    from storage_manager.pruner import Job

Value = TypeVar("Value")


def argument(parse: Callable[[str], Value]) -> Callable[[str], Value]:
    """A parser of ours as argparse's `type`: what is wrong with a value is told together with the value."""

    def convert(text: str) -> Value:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{printable(text, 80)!r}: {error}") from None

    return convert


def add_lock_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--lock-timeout",
        metavar="SECS",
        type=argument(parse_number),
        default=0.0,
        help="wait this long for another prune to finish (default: 0, do not wait)",
    )
    parser.add_argument(
        "--lock-stale-seconds",
        metavar="SECS",
        type=argument(parse_number),
        default=DEFAULT_LOCK_STALE_SECS,
        help="age from which a lock file of the previous housekeeper counts as left behind (default: 3600)",
    )


def confirmed(warning: str, clock: Clock) -> bool:
    """Whether the user says yes. Raises StorageManagerError when there is nobody to answer, and Interrupted."""
    if sys.stderr is not None:
        print(warning, file=sys.stderr)
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
        raise StorageManagerError("there is nobody to answer; use --yes to go on without being asked")
    return answer.strip().lower() in ("yes", "y")


def execute(job: Job, only_plan: bool, clock: Clock, log: EventLog) -> Outcome:
    from storage_manager.pruner import dry_run, run  # `health` must not wait for it

    return (dry_run if only_plan else run)(job, clock, log)


def show(outcome: Outcome, job: Job, as_json: bool, verbose: bool, out: Output) -> None:
    """The outcome on standard output: JSON, or a line per decision where asked for, and one sentence."""
    if as_json:
        out.json(_json(outcome, job, verbose))
        return
    if outcome.dry_run or verbose:
        for action, session, reason in _decisions(outcome, verbose):
            if not out.is_open:
                break
            out.line(
                f"{action:<6}  {session.guid}  {utc_text(session.created_at)[:19]}  "
                f"{report.size(session.size_bytes):>10}  {reason}"
            )
    out.line(report.sentence(outcome))
    if not outcome.plan.target_met:
        for cause, size_bytes in outcome.plan.causes.items():
            out.line(f"target not met: {report.size(size_bytes)} {cause.replace('_', ' ')}")


def _json(outcome: Outcome, job: Job, verbose: bool) -> dict[str, Any]:
    plan = outcome.plan
    return {
        "command": job.command,
        "dry_run": outcome.dry_run,
        "storage_dir": job.storage_dir,
        "group": job.group,
        "limit_bytes": job.limit_bytes,
        "target_bytes": plan.target_bytes,
        "target_met": plan.target_met,
        "causes": plan.causes,
        "current_bytes": plan.current_bytes,
        "final_bytes": outcome.final_bytes,
        "deleted_count": outcome.deleted_count,
        "freed_bytes": outcome.freed_bytes,
        "swept_count": outcome.swept_count,
        "failed_count": len(outcome.failed),
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
        if session.blob_name in outcome.failed:
            yield "failed", session, reason
        elif verbose or action != "keep":
            yield action, session, reason
