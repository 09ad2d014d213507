"""`check`: everything odd about a store, and the repairs that somebody asks for."""

from __future__ import annotations

import argparse
from typing import Any, Optional

from storage_manager.base import quantity
from storage_manager.base.errors import EXIT_FAILED, EXIT_OK, UsageError
from storage_manager.base.output import Output
from storage_manager.base.text import printable
from storage_manager.commands import Context, tables
from storage_manager.commands.outcome import confirmed
from storage_manager.jobs.checkup import LEFTOVER, Checkup, check_up, summary
from storage_manager.jobs.repair import Adoption, Repair, Terms, adopt, repair
from storage_manager.loop.history_file import writable_history_file
from storage_manager.store.snapshot import DANGLING, ORPHAN


def run(args: argparse.Namespace, context: Context) -> int:
    group = _group(args.adopt_orphans)
    checkup = _look(args, context)
    terms = Terms(context.settings.storage_dir, args.command, args.lock_timeout, args.lock_stale_seconds)
    must_adopt = group is not None and checkup.count(ORPHAN) > 0
    must_repair = args.repair and checkup.is_repairable
    # Asked before anything is done: where nobody can answer, nothing shall have been done.
    is_cancelled = must_repair and not (args.yes or confirmed(_warning(checkup, terms.storage_dir), context.clock))
    if is_cancelled:
        context.log.info("storage_manager.repair.cancelled", "cancelled; nothing was removed")
        must_repair = False
    history = writable_history_file(context.settings, context.log) if must_adopt or must_repair else None
    adoption = None if group is None else Adoption((), 0)
    if group is not None and must_adopt:
        adoption = adopt(terms, group, context.clock, context.log, history)
    repaired = Repair(0, (), ()) if args.repair and not is_cancelled else None
    if must_repair:
        repaired = repair(terms, context.clock, context.log, history)
    if must_adopt or must_repair:
        checkup = _look(args, context)
    if args.json:
        context.out.json(_json(checkup, terms.storage_dir, adoption, repaired))
    else:
        if is_cancelled:
            context.out.line("cancelled; nothing was removed")
        _print(checkup, adoption, repaired, context.out)
    _report(checkup, terms.storage_dir, context)
    return _exit_code(checkup)


def _group(text: Optional[str]) -> Optional[str]:
    """The group for adopted orphans. Raises UsageError."""
    if text is not None and (not text.strip() or printable(text, len(text)) != text):
        raise UsageError("--adopt-orphans needs the name of a group, without control characters")
    return text


def _exit_code(checkup: Checkup) -> int:
    return EXIT_OK if checkup.is_clean else EXIT_FAILED


def _look(args: argparse.Namespace, context: Context) -> Checkup:
    return check_up(context.settings.storage_dir, args.lock_stale_seconds, context.clock, context.log)


def _warning(checkup: Checkup, storage_dir: str) -> str:
    dangling, leftovers = checkup.count(DANGLING), checkup.count(LEFTOVER)
    return (
        f"This removes {quantity.counted(dangling, 'dangling entry')} and "
        f"{quantity.counted(leftovers, 'left-over file')} in {printable(storage_dir)}."
    )


def _print(checkup: Checkup, adoption: Optional[Adoption], repaired: Optional[Repair], out: Output) -> None:
    if adoption is not None:
        out.line(
            f"adopted {quantity.counted(len(adoption.adopted), 'orphan')}, {quantity.size(adoption.adopted_bytes)}"
            + (f"; {adoption.left_count:,} could not be" if adoption.left_count else "")
        )
    if repaired is not None:
        out.line(
            f"removed {quantity.counted(repaired.swept_count, 'dangling entry')} and "
            f"{quantity.counted(len(repaired.removed), 'file')} of unfinished metadata"
        )
        for name in repaired.kept:
            out.line(f"kept {printable(name)}: it is young, or may tell of a blob without an entry")
    for suggested in checkup.totals.suggested_dirs:
        out.line(f"the directory is empty; did you mean --storage-dir {printable(suggested)}?")
    rows = [
        (finding.kind.replace("_", " "), f"{finding.item_count:,}", quantity.size(finding.size_bytes))
        for finding in checkup.findings
    ]
    if rows:
        for line, finding in zip(tables.table(("FINDING", "COUNT>", "SIZE>"), rows), [None, *checkup.findings]):
            out.line(line)
            if finding is not None:
                for example in finding.examples:
                    out.line(f"    {example}")
                if finding.item_count > len(finding.examples):
                    out.line("    ...")
                out.line(f"    to do: {finding.remedy}")
    out.line(summary(checkup))


def _report(checkup: Checkup, storage_dir: str, context: Context) -> None:
    emit = context.log.info if checkup.is_clean else context.log.warning
    emit(
        "storage_manager.check.summary",
        summary(checkup),
        kinds={finding.kind: finding.item_count for finding in checkup.findings},
        session_count=checkup.totals.session_count,
        usage_bytes=checkup.totals.usage_bytes,
        suggested_dirs=checkup.totals.suggested_dirs,
        storage_dir=storage_dir,
        exit_code=_exit_code(checkup),
    )


def _json(
    checkup: Checkup, storage_dir: str, adoption: Optional[Adoption], repaired: Optional[Repair]
) -> dict[str, Any]:
    return {
        "storage_dir": storage_dir,
        "clean": checkup.is_clean,
        "exit_code": _exit_code(checkup),
        "session_count": checkup.totals.session_count,
        "usage_bytes": checkup.totals.usage_bytes,
        "suggested_dirs": list(checkup.totals.suggested_dirs),
        "findings": [
            {
                "kind": finding.kind,
                "count": finding.item_count,
                "size_bytes": finding.size_bytes,
                "needs_attention": finding.needs_attention,
                "examples": finding.examples,
                "remedy": finding.remedy,
            }
            for finding in checkup.findings
        ],
        "adopted_count": None if adoption is None else len(adoption.adopted),
        "adopted_bytes": None if adoption is None else adoption.adopted_bytes,
        "left_count": None if adoption is None else adoption.left_count,
        "swept_count": None if repaired is None else repaired.swept_count,
        "removed_files": None if repaired is None else list(repaired.removed),
        "kept_files": None if repaired is None else list(repaired.kept),
    }
