"""Tables and bars for people. Everything from the store passes through printable()."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Optional

from storage_manager.base.text import printable

# A first column is not made narrower than this for the others' sake.
_LEAST_WIDTH = 12


def bar(part: int, whole: int, encoding: str, width: int = 30) -> str:
    """How full something is, in characters that the terminal has."""
    full, empty = ("█", "░") if "utf" in encoding.lower() else ("#", "-")
    filled = width if whole <= 0 else min(width, width * part // whole)
    return full * filled + empty * (width - filled)


def columns_of(counts: Sequence[int], encoding: str) -> str:
    """One character for each count, the higher the larger; a blank for none."""
    levels = " ▁▂▃▄▅▆▇█" if "utf" in encoding.lower() else " .:-=+*#@"
    most = max(counts, default=0) or 1
    return "".join(levels[-(-count * (len(levels) - 1) // most)] for count in counts)


def height(lines: Sequence[str], columns: int) -> int:
    """How many lines of a terminal they take: it wraps the long ones."""
    return sum(max(1, -(-len(line) // columns)) for line in lines)


def table(header: Sequence[str], rows: Iterable[Sequence[str]], columns: Optional[int] = None) -> Iterator[str]:
    """Lines of a table with columns as wide as they need to be; columns whose header ends in `>` align right.

    Where the lines would be longer than `columns`, the first column is cut.
    """
    names = [name.rstrip(">") for name in header]
    shown = [[printable(cell, 60) for cell in row] for row in rows]
    widths = [max([len(name), *(len(row[column]) for row in shown)]) for column, name in enumerate(names)]
    excess = 0 if columns is None else sum(widths) + 2 * (len(widths) - 1) - columns
    if excess > 0:
        widths[0] = max(_LEAST_WIDTH, widths[0] - excess)
        shown = [[printable(row[0], widths[0]), *row[1:]] for row in shown]
    for row in [names, *shown]:
        cells = [
            cell.rjust(width) if name.endswith(">") else cell.ljust(width)
            for cell, width, name in zip(row, widths, header)
        ]
        yield "  ".join(cells).rstrip()
