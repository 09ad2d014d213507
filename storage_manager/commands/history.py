"""`history`: what was deleted, when, and why, as the runs themselves have told it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, Optional, Union

from storage_manager.base.errors import EXIT_OK, StorageManagerError, described
from storage_manager.base.quantity import counted, size
from storage_manager.base.text import printable
from storage_manager.base.times import later, minute_text, second_text, utc_text
from storage_manager.commands import Context, tables
from storage_manager.jobs.history import STAYED, SWEPT, UNCERTAIN, Fate, Line, Run, fates, runs
from storage_manager.jobs.journal import ADOPTED, HistoryFile
from storage_manager.loop.history_file import history_file, others, read_history


def run(args: argparse.Namespace, context: Context) -> int:
    file = history_file(context.settings)
    since = _since(args.since, context.clock.now())
    lines = None if file is None else _lines(file)
    beside = [] if file is None else others(file.path)
    told: list[Run] = []
    known: list[Fate] = []
    if args.session is None:
        told = [run for run in runs(lines or ()) if since is None or run.last.time >= since]
    else:
        known = [fate for fate in fates(lines or (), args.session) if since is None or fate.line.time >= since]
    nothing = None
    if not (told or known):
        nothing = _nothing(args.session, since, file, lines is not None, context)
    if args.json:
        context.out.json(
            {
                "storage_dir": context.settings.storage_dir,
                "history_file": None if file is None else file.path,
                "other_files": beside,
                "since": None if since is None else utc_text(since),
                "session": args.session,
                "sentence": nothing,
                "runs": None if args.session is not None else [_run_json(run) for run in told],
                "fates": None if args.session is None else [_fate_json(fate) for fate in known],
            }
        )
        return EXIT_OK
    for text in [nothing] if nothing else _table(told) if told else map(_sentence, known):
        context.out.line(printable(text))
    for path in beside:
        context.out.line(f"another user's runs have written {printable(path)}: ask as that user, too")
    return EXIT_OK


def _since(asked: Union[None, float, datetime], now: datetime) -> Optional[datetime]:
    return later(now, timedelta(seconds=-asked)) if isinstance(asked, float) else asked


def _lines(file: HistoryFile) -> Optional[list[Line]]:
    """None where no run has written yet. Raises StorageManagerError."""
    try:
        return read_history(file)
    except (OSError, ValueError) as error:
        raise StorageManagerError(
            f"cannot read the history {file.path}: {described(error)}; ask as the user who runs the loop, or name "
            f"another file: {file.variable}"
        ) from error


def _nothing(
    guid: Optional[str], since: Optional[datetime], file: Optional[HistoryFile], is_there: bool, context: Context
) -> str:
    """Why nothing is told, and where it was looked for."""
    if file is None:
        return f"no history is kept: {context.settings.prefix}_HISTORY_FILE is `off`"
    what = "nothing that was deleted is known here" if guid is None else f"session {guid} is not known here"
    when = "" if since is None else f" since {second_text(since)} UTC"
    where = file.path if is_there else f"{file.path}, which no run has written yet"
    return f"{what}{when}: looked in {where}"


def _table(told: list[Run]) -> Iterator[str]:
    rows = [
        (
            minute_text(run.began_at),
            run.last.command,
            f"{run.last.session_count:,}{'' if run.has_ended else '+'}",
            size(run.last.size_bytes),
            run.last.why,
        )
        for run in told
    ]
    lines = tables.table(("TIME (UTC)", "COMMAND", "SESSIONS>", "SIZE>", "WHY"), rows)
    yield next(lines)
    for line, run in zip(lines, told):
        yield line
        notes = "; ".join(_notes(run))
        if notes:
            yield f"    {notes}"


def _notes(run: Run) -> Iterator[str]:
    """What is out of the ordinary."""
    last = run.last
    if last.swept_count:
        yield f"{counted(last.swept_count, 'entry')} without blobs removed"
    if last.removed_count:
        yield f"{counted(last.removed_count, 'file')} of unfinished metadata removed"
    if last.exit_code:
        yield f"exit code {last.exit_code}"
    if last.exit_code is None:
        yield "it has not told its end: it was killed, or is at work"


def _sentence(fate: Fate) -> str:
    line = fate.line
    done = "adopted" if line.what == ADOPTED else "deleted"
    by = f"{second_text(line.time)} UTC by {line.command}: {line.why}"
    if fate.what == SWEPT:
        return f"its entry, which had no blob, was removed {by}"
    if fate.what == STAYED:
        return f"chosen, but not {done}, {by}"
    if fate.what == UNCERTAIN:
        return f"about to be {done} {by}; that run has not told more: `list` shows whether it is still there"
    return f"{done} {by}"


def _run_json(run: Run) -> dict[str, Any]:
    last = run.last
    return {
        "run_id": last.run_id,
        "command": last.command,
        "what": last.what,
        "why": last.why,
        "began_at": utc_text(run.began_at),
        "ended_at": utc_text(last.time) if run.has_ended else None,
        "exit_code": last.exit_code,
        "session_count": last.session_count,
        "size_bytes": last.size_bytes,
        "oldest_created_at": None if last.oldest is None else utc_text(last.oldest),
        "newest_created_at": None if last.newest is None else utc_text(last.newest),
        "swept_count": last.swept_count,
        "removed_count": last.removed_count,
    }


def _fate_json(fate: Fate) -> dict[str, Any]:
    line = fate.line
    return {
        "what": fate.what,
        "at": utc_text(line.time),
        "command": line.command,
        "why": line.why,
        "run_id": line.run_id,
        "sentence": _sentence(fate),
    }
