"""Numbers as people write them: sizes with units, ages, intervals. ASCII digits only; never nan or inf."""

from __future__ import annotations

import math
import re
from datetime import datetime
from typing import NamedTuple

BYTES_PER_MB = 1024 * 1024

# The largest file system Linux knows holds 8 EiB; a larger size is a slip of the keyboard.
LARGEST_SIZE_BYTES = 1 << 63
# Compiled when they are needed, which is not at each start: that takes longer than most commands' work.
_NUMBER = r"\+?(\d{1,40}(?:\.\d{0,40})?|\.\d{1,40})(?:[eE][+-]?\d{1,4})?"
_SIZE = rf"({_NUMBER})\s*([A-Za-z]*)"
_UNITS = {"": BYTES_PER_MB, "b": 1}

for _power, _letter in enumerate("kmgtpe", start=1):
    _UNITS.update({f"{_letter}{_rest}": 1024**_power for _rest in ("", "b", "i", "ib")})

# Small letters only: an M might be meant as months.
_DURATION_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}
# Longer than any store has existed; and the calendar still has a date that long ago.
LONGEST_DURATION_SECS = 100 * 366 * 86_400


def parse_number(text: str, at_least: float = 0.0, at_most: float = math.inf) -> float:
    """A finite decimal number. Raises ValueError with what is wrong with it."""
    text = text.strip()
    if re.fullmatch(_NUMBER, text, re.ASCII) is None:
        raise ValueError("it is not a plain number")
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("it is too large")
    if number < at_least:
        raise ValueError(f"it must be at least {at_least:g}")
    if number > at_most:
        raise ValueError(f"it must be at most {at_most:g}")
    return number


def parse_positive(text: str, at_most: float = math.inf) -> float:
    """Like parse_number(), and above zero."""
    number = parse_number(text, at_most=at_most)
    if number <= 0:
        raise ValueError("it must be greater than 0")
    return number


def parse_count(text: str, at_least: int = 0) -> int:
    """A whole number from `at_least`. Raises ValueError with what is wrong with it."""
    if re.fullmatch(r"\+?\d{1,18}", text.strip(), re.ASCII) is None:
        raise ValueError("it is not a whole number from 0 up")
    if int(text) < at_least:
        raise ValueError(f"it must be at least {at_least}")
    return int(text)


class Share(NamedTuple):
    """A number of sessions, or that many per cent of them."""

    amount: float
    is_percent: bool

    def of(self, count: int) -> float:
        """How many of so many that is."""
        return count * self.amount / 100 if self.is_percent else self.amount

    def __str__(self) -> str:
        return f"{self.amount:g} %" if self.is_percent else f"{self.amount:,.0f}"


def parse_share(text: str) -> Share:
    """A whole number from 0 (50), or a per cent up to 100 (50%, 12.5 %). Raises ValueError."""
    text = text.strip()
    if text.endswith("%"):
        return Share(parse_number(text[:-1], at_most=100.0), True)
    return Share(float(parse_count(text)), False)


def parse_size_bytes(text: str) -> int:
    """A size above zero in bytes: a plain number is MB; units are powers of 1024 (512M, 10GB, 50Gi, 1.5 GiB)."""
    match = re.fullmatch(_SIZE, text.strip(), re.ASCII)
    if match is None:
        raise ValueError("it is not a size such as 512, 512M, 10GB or 1.5 GiB")
    unit = _UNITS.get(match.group(3).lower())
    if unit is None:
        raise ValueError(f"{match.group(3)} is not a unit; use B, K, M, G, T or P")
    size = parse_positive(match.group(1)) * unit
    if size > LARGEST_SIZE_BYTES:
        raise ValueError("it is larger than any file system")
    if size < 1:
        raise ValueError("it is less than one byte")
    return int(size)


def parse_duration_secs(text: str) -> float:
    """A length of time above zero in seconds: a number and its unit (7d, 12h, 30m, 2w, 1.5 h), up to 100 years.

    Raises ValueError with what is wrong with it. A number without a unit is refused: each reader would take another.
    """
    match = re.fullmatch(_SIZE, text.strip(), re.ASCII)
    if match is None:
        raise ValueError("it is not a length of time such as 7d, 12h, 30m or 2w")
    unit = match.group(3)
    if not unit:
        raise ValueError("it has no unit: write s, m, h, d or w behind it, such as 7d")
    if unit not in _DURATION_UNITS:
        raise ValueError(f"{unit} is not a unit; use s, m, h, d or w, such as 7d")
    secs = parse_positive(match.group(1)) * _DURATION_UNITS[unit]
    if secs > LONGEST_DURATION_SECS:
        raise ValueError("it is longer than 100 years")
    return secs


def size(size_bytes: int) -> str:
    """Bytes with the unit that suits them (powers of 1024, called KB, MB, GB as everywhere here)."""
    amount = float(size_bytes)
    if abs(amount) < 1024:
        return f"{size_bytes} B"
    for unit in ("KB", "MB", "GB", "TB"):
        amount /= 1024
        if abs(amount) < 1024:
            return f"{amount:.1f} {unit}"
    return f"{amount / 1024:.1f} PB"


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
    for word in (" in ", " of "):
        if word in noun:
            head, space, rest = noun.partition(word)
    plural = head[:-1] + "ies" if head.endswith("y") else head + "s"
    return f"{count:,} {head if count == 1 else plural}{space}{rest}"
