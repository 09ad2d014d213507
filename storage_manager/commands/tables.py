"""Tables and bars for people. Everything from the store passes through printable()."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from storage_manager.base.text import printable

_BAR_WIDTH = 30


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
