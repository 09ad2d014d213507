"""Moments as text and back, and the time stamps of files: naive UTC, clamped to the calendar."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from typing import Any, Optional, Union

from storage_manager.base.quantity import parse_duration_secs

# Compiled where it is first needed, for that takes a while: what the client writes is read without it.
_ISO_TIME = (
    r"(?a)(\d{4})-?(\d\d)-?(\d\d)"
    r"(?:[Tt ](\d\d):?(\d\d)(?::?(\d\d)(?:[.,](\d+))?)?"
    r" ?(?:([Zz])|([+-])(\d\d):?(\d\d)?(?::?(\d\d))?)?)?"
)


def parse_time(text: Any) -> Optional[datetime]:
    """An ISO 8601 date and time as naive UTC, or None. Without an offset it is UTC, as the client writes it.

    Every supported Python gives the same answer. Fractions beyond microseconds are cut off; an instant
    outside the years 1 to 9999 is none.
    """
    if type(text) is not str:
        return None
    # What the client writes goes the short way. Where fromisoformat() of a newer Python takes more than an
    # older one in this shape, _parse_iso() takes it to mean the same.
    length = len(text)
    if (length == 26 and text[19] == "." or length == 19) and text[10] == "T" and text[7] == "-" and text[16] == ":":
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            pass
        else:
            if moment.tzinfo is None:
                return moment
    try:
        return _parse_iso(text)
    except (ValueError, OverflowError):
        return None


def _parse_iso(text: str) -> Optional[datetime]:
    match = re.fullmatch(_ISO_TIME, text.strip())
    if match is None:
        return None
    year, month, day, hour, minute, second, fraction, _, sign, *offset = match.groups()
    midnight = (hour, minute, second or "00") == ("24", "00", "00") and not (fraction or "").strip("0")
    moment = datetime(
        int(year), int(month), int(day), 0 if midnight else int(hour or 0), int(minute or 0), int(second or 0),
        int((fraction or "0")[:6].ljust(6, "0")),
    )  # fmt: skip
    if midnight:
        moment += timedelta(days=1)
    if sign is None:
        return moment
    hours, minutes, seconds = (int(part or 0) for part in offset)
    if hours > 23 or minutes > 59 or seconds > 59:
        return None
    east = timedelta(hours=hours, minutes=minutes, seconds=seconds)
    return moment - east if sign == "+" else moment + east


def parse_since(text: str) -> Union[float, datetime]:
    """How far to look back: a duration in seconds, or a moment as parse_time() takes it. Raises ValueError."""
    moment = parse_time(text)
    if moment is not None:
        return moment
    if "-" in text or ":" in text:
        raise ValueError("it is no date; write 2026-11-20, 2026-11-20T03:00 (UTC), or a duration such as 7d or 12h")
    return parse_duration_secs(text)


def utc_text(moment: datetime) -> str:
    """A naive UTC moment as ISO 8601 with `Z`."""
    return moment.isoformat() + "Z"


def minute_text(moment: datetime) -> str:
    """For tables: to the minute, without the T."""
    return moment.isoformat(" ")[:16]


def second_text(moment: datetime) -> str:
    return moment.isoformat(" ")[:19]


def later(moment: datetime, by: timedelta) -> datetime:
    """The end of the calendar where it is that far off."""
    try:
        return moment + by
    except OverflowError:
        return datetime.max if by > timedelta() else datetime.min


def from_timestamp(secs: float) -> datetime:
    """Seconds since the epoch as naive UTC; clamped to the years 1 to 9999, which a damaged inode may leave."""
    try:
        return datetime.fromtimestamp(secs, timezone.utc).replace(tzinfo=None)
    except (OverflowError, ValueError, OSError):
        return datetime.max if secs > 0 else datetime.min
