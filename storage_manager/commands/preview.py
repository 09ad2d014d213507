"""The dry run of a prune or a purge as text: the sum, the groups, how far back sessions go, the first that would go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import islice
from os import terminal_size
from typing import Optional

from storage_manager.base import quantity
from storage_manager.base.text import printable
from storage_manager.base.times import minute_text
from storage_manager.commands import tables
from storage_manager.jobs.plan import Plan
from storage_manager.store.snapshot import Session

# A list that is longer scrolls away what stands in front of it: the sentence, and perhaps the limit. Behind it stand
# "... and more", perhaps a warning of two lines, and a prompt.
_LINES, _FEWEST_LINES = 20, 3
_OTHER_LINES = 6
# Around the groups there are a header, the age of the oldest session, and three blank lines.
_GROUPS, _FEWEST_GROUPS = 8, 3
_GROUP_LINES = 5


def preview(
    plan: Plan, lines: Iterator[str], now: datetime, verbose: bool, screen: Optional[terminal_size]
) -> Iterator[str]:
    """What stands behind the sentence. `lines` are those of the list; without `verbose`, only the first are shown.

    On a terminal, all of it fits into the screen, unless that is very small, or `verbose` asks for all.
    """
    head = list(_head(plan, now, verbose, screen))
    yield from head
    if verbose:
        yield from lines
        return
    count = len(plan.swept) + len(plan.victims)
    most = _LINES if screen is None else max(_FEWEST_LINES, min(_LINES, screen.lines - len(head) - _OTHER_LINES))
    for line in islice(lines, most):
        yield line if screen is None else printable(line, screen.columns)
    if count > most:
        yield f"... and {count - most:,} more (--verbose shows all)"


def _head(plan: Plan, now: datetime, verbose: bool, screen: Optional[terminal_size]) -> Iterator[str]:
    if plan.victims:
        header = ("GROUP", f"{plan.noun.upper()}S>", "SIZE>", "FROM (UTC)", "TO (UTC)")
        yield ""
        most = None if verbose else _GROUPS
        if most is not None and screen is not None:
            room = screen.lines - _FEWEST_LINES - _OTHER_LINES - _GROUP_LINES
            most = max(_FEWEST_GROUPS, min(most, room))
        yield from tables.table(header, _rows(plan, most), screen and screen.columns)
        if not plan.are_orphans:
            yield ""
            yield _retention(plan, now)
    if plan.victims or plan.swept or verbose:
        yield ""


def _rows(plan: Plan, most: Optional[int]) -> Iterator[tuple[str, ...]]:
    """The groups that lose most, and the others in one row; None: all of them."""
    by_group: dict[Optional[str], list[Session]] = {}
    for session in plan.victims:
        by_group.setdefault(session.group, []).append(session)
    groups = sorted(by_group.items(), key=lambda item: (-_bytes(item[1]), item[0] or ""))
    shown = groups if most is None or len(groups) <= most + 1 else groups[:most]
    for group, sessions in shown:
        yield _row("-" if group is None else group, sessions)
    rest = groups[len(shown) :]
    if rest:
        yield _row(f"({len(rest):,} more)", [session for _, sessions in rest for session in sessions])


def _row(name: str, sessions: Sequence[Session]) -> tuple[str, ...]:
    first, last = min(sessions).created_at, max(sessions).created_at
    return name, f"{len(sessions):,}", quantity.size(_bytes(sessions)), minute_text(first), minute_text(last)


def _bytes(sessions: Sequence[Session]) -> int:
    return sum(session.size_bytes for session in sessions)


def _retention(plan: Plan, now: datetime) -> str:
    """How far back the sessions go, before and after."""
    left = min((keep.sessions[0] for keep in plan.kept if keep.sessions), default=None)
    oldest = min(plan.victims[0], left or plan.victims[0])
    if left is None:
        return f"The oldest session is {_age(oldest, now)}; no session would remain."
    return f"The oldest session is {_age(oldest, now)}; the oldest that would remain is {_age(left, now)}."


def _age(session: Session, now: datetime) -> str:
    return "dated in the future" if session.created_at > now else f"{quantity.age(session.created_at, now)} old"
