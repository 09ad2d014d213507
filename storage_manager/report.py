"""What a person reads: sizes, ages, bars and tables. Everything from the store passes through printable()."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from storage_manager.model import BYTES_PER_MB, Outcome
from storage_manager.text import printable

_BAR_WIDTH = 30


def size(size_bytes: int) -> str:
    """Bytes with the unit that suits them (powers of 1024, called KB, MB, GB as everywhere here)."""
    amount = float(size_bytes)
    if abs(amount) < 1024:
        return f"{size_bytes} B"
    for unit in ("KB", "MB", "GB", "TB", "PB"):
        amount /= 1024
        if abs(amount) < 1024 or unit == "PB":
            return f"{amount:.1f} {unit}"
    raise AssertionError("unreachable")


def megabytes(size_bytes: int) -> float:
    return round(size_bytes / BYTES_PER_MB, 3)


def age(created_at: datetime, now: datetime) -> str:
    """How old, in the one unit that says most."""
    secs = (now - created_at).total_seconds()
    return "in the future" if secs < 0 else duration(secs)


def duration(secs: float) -> str:
    """A length of time in the one unit that says most."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if secs >= 2 * length:
            return f"{secs / length:.0f} {unit}"
    return f"{secs:.0f} s"


def counted(count: int, noun: str) -> str:
    """`1 session`, `2 sessions`; of a noun with more behind it, `2 blobs in flight`."""
    head, space, rest = noun, "", ""
    for word in (" in ", " of ", " that "):
        if word in noun:
            head, space, rest = noun.partition(word)
    plural = head[:-1] + "ies" if head.endswith("y") else head + "s"
    return f"{count:,} {head if count == 1 else plural}{space}{rest}"


def bar(part: int, whole: int, encoding: str) -> str:
    """How full something is, in characters that the terminal has."""
    full, empty = ("█", "░") if "utf" in encoding.lower() else ("#", "-")
    filled = _BAR_WIDTH if whole <= 0 else min(_BAR_WIDTH, _BAR_WIDTH * part // whole)
    return full * filled + empty * (_BAR_WIDTH - filled)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Lines of a table with columns as wide as they need to be; columns whose header ends in `>` align right."""
    names = [name.rstrip(">") for name in header]
    shown = [[printable(cell, 60) for cell in row] for row in rows]
    widths = [max([len(name), *(len(row[column]) for row in shown)]) for column, name in enumerate(names)]
    for row in [names, *shown]:
        cells = [
            cell.rjust(width) if name.endswith(">") else cell.ljust(width)
            for cell, width, name in zip(row, widths, header)
        ]
        yield "  ".join(cells).rstrip()


def sentence(outcome: Outcome) -> str:
    """What came of a prune or a purge, in one sentence."""
    verb = "would delete" if outcome.dry_run else "deleted"
    text = f"{verb} {counted(outcome.deleted_count, outcome.plan.noun)}, {size(outcome.freed_bytes)}"
    if outcome.swept_count:
        text += f", and {counted(outcome.swept_count, 'dangling entry')}"
    text += f"; {size(outcome.final_bytes)} {'would remain' if outcome.dry_run else 'remain'}"
    if outcome.failed:
        text += f"; {counted(len(outcome.failed), 'blob')} could not be deleted"
    return text
