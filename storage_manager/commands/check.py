"""`check`: everything odd about a store, and the repairs that somebody asks for."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple, Optional

from storage_manager.base import quantity
from storage_manager.base.colour import DOUBTFUL, GOOD
from storage_manager.base.errors import EXIT_FAILED, EXIT_OK, UsageError
from storage_manager.base.text import is_name, printable
from storage_manager.base.times import minute_text, second_text, utc_text
from storage_manager.commands import Context, tables
from storage_manager.commands.outcome import confirmed
from storage_manager.jobs.checkup import LEFTOVER, Checkup, check_up, foresee_adoption, orphan_from, summary
from storage_manager.jobs.orphans import Adoptable
from storage_manager.jobs.progress import Progress, telling
from storage_manager.jobs.repair import NOTHING_CHANGED, Adoption, Repair, adopt, repair
from storage_manager.jobs.work import Terms
from storage_manager.loop.own_files import writable_history_file
from storage_manager.store.snapshot import DANGLING, IN_FLIGHT, ORPHAN, Anomaly, Session


def run(args: argparse.Namespace, context: Context) -> int:
    group = _group(args.adopt_orphans)
    if args.dry_run and args.repair:
        raise UsageError("--dry-run goes with --adopt-orphans alone; what a repair would remove, `check` shows")
    progress = Progress(nothing=NOTHING_CHANGED)
    with telling(progress):
        if args.dry_run and group is not None:
            return _foresee(args, context)
        return _check(args, group, context, progress)


def _check(args: argparse.Namespace, group: Optional[str], context: Context, progress: Progress) -> int:
    checkup = _look(args, context)
    terms = Terms(context.settings.storage_dir, args.command, args.lock_timeout, args.lock_stale_seconds)
    must_adopt = group is not None and checkup.count(ORPHAN) > 0
    must_repair = args.repair and checkup.is_repairable
    # Asked before anything is done: where nobody can answer, nothing shall have been done.
    is_cancelled = must_repair and not (args.yes or confirmed(_warning(checkup, terms.storage_dir), context.clock))
    if is_cancelled:
        context.log.info("storage_manager.repair.cancelled", "cancelled; nothing was removed")
        must_repair = False
    if must_adopt or must_repair:
        terms = terms._replace(history=writable_history_file(context.settings, context.log))
    adoption = None if group is None else Adoption((), 0)
    if group is not None and must_adopt:
        adoption = adopt(terms, group, context.clock, context.log, progress)
    repaired = Repair(0, (), ()) if args.repair and not is_cancelled else None
    if must_repair:
        asked_about = None if args.yes else checkup.count(DANGLING)
        repaired = repair(terms, context.clock, context.log, progress, asked_about)
    if must_adopt or must_repair:
        checkup = _look(args, context)
    if is_cancelled and not args.json:
        context.out.line("cancelled; nothing was removed")
    return _tell(_Result(checkup, adoption, repaired), args, context)


def _foresee(args: argparse.Namespace, context: Context) -> int:
    """The dry run of an adoption."""
    storage_dir = context.settings.storage_dir
    checkup, choice = foresee_adoption(storage_dir, args.lock_stale_seconds, context.clock, context.log)
    return _tell(_Result(checkup, Adoption(choice.orphans, len(choice.left)), None, choice), args, context)


class _Result(NamedTuple):
    """What was done, or would be, and what is odd after it."""

    checkup: Checkup
    adoption: Optional[Adoption]
    repaired: Optional[Repair]
    choice: Optional[Adoptable] = None
    """Of a dry run."""


def _tell(result: _Result, args: argparse.Namespace, context: Context) -> int:
    if args.json:
        context.out.json(_json(result, context.settings.storage_dir, args.verbose))
    else:
        _print(result, args.verbose, context)
    _report(result, context)
    return _exit_code(result.checkup)


def _group(text: Optional[str]) -> Optional[str]:
    """The group for adopted orphans. Raises UsageError."""
    if text is not None and not is_name(text):
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


def _print(result: _Result, verbose: bool, context: Context) -> None:
    out = context.out
    for line in (*_adoption_lines(result), *_repair_lines(result.repaired)):
        out.line(line)
    for line in _finding_lines(result.checkup, verbose):
        out.line(line)
    if verbose and result.checkup.orphans:
        for line in ("", *_orphan_lines(result.checkup.orphans, context.clock.now()), ""):
            out.line(line)
    out.line(out.paint(_sentence(result), GOOD if result.checkup.is_clean else DOUBTFUL))


def _adoption_lines(result: _Result) -> Iterator[str]:
    if result.adoption is None:
        return
    count, left_count = len(result.adoption.adopted), result.adoption.left_count
    adopted = f"{quantity.counted(count, 'orphan')}, {quantity.size(result.adoption.adopted_bytes)}"
    if result.choice is None:
        yield f"adopted {adopted}" + (f"; {left_count:,} could not be" if left_count else "")
        return
    for action, blob, reason in _decisions(result.choice):
        yield f"{action}   {blob.blob_name}  {minute_text(blob.created_at)}  {quantity.size(blob.size_bytes):>9}"
        if reason is not None:
            yield f"        {reason}"
    yield f"would adopt {adopted}" + (f"; {left_count:,} would be left" if left_count else "")


def _repair_lines(repaired: Optional[Repair]) -> Iterator[str]:
    if repaired is not None:
        yield (
            f"removed {quantity.counted(repaired.swept_count, 'dangling entry')} and "
            f"{quantity.counted(len(repaired.removed), 'file')} of unfinished metadata"
        )
        for name in repaired.kept:
            yield f"kept {printable(name)}: it is young, or may tell of an entry that is missing"


def _finding_lines(checkup: Checkup, verbose: bool) -> Iterator[str]:
    for suggested in checkup.totals.suggested_dirs:
        yield f"the directory is empty; did you mean --storage-dir {printable(suggested)}?"
    rows = [
        (finding.kind.replace("_", " "), f"{finding.item_count:,}", quantity.size(finding.size_bytes))
        for finding in checkup.findings
    ]
    if not rows:
        return
    for line, finding in zip(tables.table(("FINDING", "COUNT>", "SIZE>"), rows), [None, *checkup.findings]):
        yield line
        if finding is None:
            continue
        if not (verbose and finding.kind in (ORPHAN, IN_FLIGHT)):  # all of them are named below
            yield from (f"    {example}" for example in finding.examples)
            if finding.item_count > len(finding.examples):
                yield "    ..."
        yield f"    to do: {finding.remedy}"


def _orphan_lines(orphans: Sequence[Anomaly], now: datetime) -> Iterator[str]:
    """A table of all of them; of a young one, the time from which it counts."""
    rows = [
        (blob.blob_name, minute_text(blob.created_at), _age(blob, now), quantity.size(blob.size_bytes))
        for blob in (orphan.as_session() for orphan in orphans)
    ]
    header = ("BLOB WITHOUT AN ENTRY", "MODIFIED (UTC)", "AGE>", "SIZE>")
    for line, orphan in zip(tables.table(header, rows), [None, *orphans]):
        yield line
        if orphan is not None and orphan.kind == IN_FLIGHT:
            yield f"    in flight: counts as an orphan from {second_text(orphan_from(orphan))} UTC"


def _decisions(choice: Adoptable) -> Iterator[tuple[str, Session, Optional[str]]]:
    """(action, the blob as a session, why it cannot be adopted)."""
    for orphan in choice.orphans:
        yield "adopt", orphan, None
    for left in choice.left:
        yield "leave", left.as_session(), left.detail


def _age(blob: Session, now: datetime) -> str:
    return "future" if blob.created_at > now else quantity.age(blob.created_at, now)


def _sentence(result: _Result) -> str:
    told = summary(result.checkup)
    if result.choice is None:
        return told
    return f"would be {told}" if result.checkup.is_clean else f"would remain: {told}"


def _report(result: _Result, context: Context) -> None:
    checkup = result.checkup
    emit = context.log.info if checkup.is_clean else context.log.warning
    emit(
        "storage_manager.check.summary",
        _sentence(result),
        kinds={finding.kind: finding.item_count for finding in checkup.findings},
        session_count=checkup.totals.session_count,
        usage_bytes=checkup.totals.usage_bytes,
        suggested_dirs=checkup.totals.suggested_dirs,
        storage_dir=context.settings.storage_dir,
        dry_run=result.choice is not None,
        exit_code=_exit_code(checkup),
    )


def _json(result: _Result, storage_dir: str, verbose: bool) -> dict[str, Any]:
    checkup, adoption, repaired, choice = result
    return {
        "storage_dir": storage_dir,
        "dry_run": choice is not None,
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
        "orphans": [_orphan_json(orphan) for orphan in checkup.orphans] if verbose else None,
        "plan": None if choice is None else list(_plan_json(choice)),
        "adopted_count": None if adoption is None else len(adoption.adopted),
        "adopted_bytes": None if adoption is None else adoption.adopted_bytes,
        "left_count": None if adoption is None else adoption.left_count,
        "swept_count": None if repaired is None else repaired.swept_count,
        "removed_files": None if repaired is None else list(repaired.removed),
        "kept_files": None if repaired is None else list(repaired.kept),
    }


def _orphan_json(orphan: Anomaly) -> dict[str, Any]:
    return {
        "name": orphan.name,
        "state": orphan.kind,
        "modified_at": utc_text(orphan.as_session().created_at),
        "orphan_from": utc_text(orphan_from(orphan)),
        "size_bytes": orphan.size_bytes,
    }


def _plan_json(choice: Adoptable) -> Iterator[dict[str, Any]]:
    for action, blob, reason in _decisions(choice):
        yield {
            "action": action,
            "name": blob.blob_name,
            "modified_at": utc_text(blob.created_at),
            "size_bytes": blob.size_bytes,
            "reason": reason,
        }
