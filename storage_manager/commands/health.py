"""`health`: whether the loop does its work, from what it tells of itself. For probes: cheap, no lock, no scan."""

from __future__ import annotations

import argparse
from contextlib import suppress
from datetime import datetime
from typing import Optional

from storage_manager.base import quantity
from storage_manager.base.colour import BAD, GOOD
from storage_manager.base.errors import EXIT_FAILED, EXIT_OK, describe_errno
from storage_manager.base.process import condition, this_boot
from storage_manager.base.text import printable
from storage_manager.commands import Context
from storage_manager.config import Settings, absolute, default_files_beside, limit_text
from storage_manager.loop.heartbeat import CYCLE, Heartbeat, ago, present, verdict
from storage_manager.loop.heartbeat_json import LARGEST_BYTES, as_json, decode
from storage_manager.loop.status_file import is_one_place, read_file, refusal


def run(args: argparse.Namespace, context: Context) -> int:
    settings = context.settings
    heartbeat, problem = _examine(settings)
    now = context.clock.now()
    if heartbeat is not None:
        now = present(heartbeat, now, this_boot(), context.clock.monotonic())
        problem = problem or verdict(heartbeat, now, condition(heartbeat.process))
    if heartbeat is not None and heartbeat.last_cycle is not None and heartbeat.last_cycle.suggested_dirs:
        from storage_manager.store.survey import report_suspect  # imports a good deal that a probe does not need

        report_suspect(heartbeat.storage_dir, heartbeat.last_cycle.suggested_dirs, context.log)
    if problem is None and heartbeat is not None:
        word, why, exit_code = "healthy", _facts(heartbeat, now), EXIT_OK
    else:
        word, why, exit_code = "unhealthy", str(problem), EXIT_FAILED
    sentence = f"{word}: {why}"
    if exit_code != EXIT_OK:
        context.log.warning(
            "storage_manager.health.unhealthy",
            sentence,
            storage_dir=settings.storage_dir,
            heartbeat_file=settings.heartbeat_file,
        )
    if args.json:
        context.out.json(
            {
                "healthy": exit_code == EXIT_OK,
                "sentence": sentence,
                "heartbeat_file": settings.heartbeat_file,
                "heartbeat": None if heartbeat is None else as_json(heartbeat),
            }
        )
    else:
        shown = context.out.paint(word, GOOD if exit_code == EXIT_OK else BAD)
        context.out.line(f"{shown}: {printable(why)}")
    return exit_code


def _examine(settings: Settings) -> tuple[Optional[Heartbeat], Optional[str]]:
    """(the heartbeat if there is one, why it cannot be judged)."""
    path = settings.heartbeat_file
    try:
        heartbeat = decode(read_file(path, LARGEST_BYTES))
    except FileNotFoundError:
        other = _under_another_name(settings)
        if other is not None:
            return other, None
        refused = refusal(path, settings.storage_dir)
        if refused is not None:
            return None, f"run-loop does not write the heartbeat file {path}: {refused}"
        whose = f"run-loop writes it: does it run, as this user and for {settings.storage_dir}?"
        return None, f"there is no heartbeat file {path}; {whose}"
    except OSError as error:
        return None, f"cannot read the heartbeat file {path}: {describe_errno(error)}"
    except ValueError as error:
        return None, f"the heartbeat file {path} cannot be used: {error}"
    storage_dir = printable(absolute(settings.storage_dir))
    if not is_one_place(heartbeat.storage_dir, storage_dir):
        return heartbeat, f"the heartbeat file {path} is of a loop on {heartbeat.storage_dir}, not on {storage_dir}"
    return heartbeat, None


def _under_another_name(settings: Settings) -> Optional[Heartbeat]:
    """The heartbeat of a loop on the same directory that knows it by another spelling, through a symbolic link."""
    with suppress(OSError):
        for path in default_files_beside(settings.heartbeat_file, "user", "kind"):
            with suppress(OSError, ValueError):
                heartbeat = decode(read_file(path, LARGEST_BYTES))
                if is_one_place(heartbeat.storage_dir, settings.storage_dir):
                    return heartbeat
    return None


def _facts(heartbeat: Heartbeat, now: datetime) -> str:
    """A healthy loop in one line."""
    facts = []
    last = heartbeat.last_cycle
    if last is not None:
        facts.append(f"last cycle {ago(last.ended_at, now)} ago")
        if last.exit_code != EXIT_OK:
            facts[-1] += f" with exit code {last.exit_code} ({last.sentence})"
        if last.usage_bytes is not None and last.session_count is not None:
            held = f"{quantity.size(last.usage_bytes)} of {limit_text(last.limit_bytes, last.limit_source)}"
            facts.append(f"{held} in {quantity.counted(last.session_count, 'session')}")
        if last.suggested_dirs:
            facts.append(f"did you mean --storage-dir {last.suggested_dirs[0]}?")
    if heartbeat.state == CYCLE and heartbeat.cycle_started_at is not None:
        facts.append(f"in a cycle for {ago(heartbeat.cycle_started_at, now)}")
    elif heartbeat.next_wake_up is not None:
        facts.append(f"next in {ago(now, heartbeat.next_wake_up)}")
    if heartbeat.dry_run:
        facts.append("dry run: nothing is deleted")
    return ", ".join(facts)
