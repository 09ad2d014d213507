"""Numbers as people write them: sizes with units, ages, intervals. ASCII digits only; never nan or inf."""

from __future__ import annotations

import math
import re

from storage_manager.model import BYTES_PER_MB

# The largest file system Linux knows holds 8 EiB; a larger size is a slip of the keyboard.
LARGEST_SIZE_BYTES = 1 << 63

_NUMBER = re.compile(r"\+?(\d{1,40}(?:\.\d{0,40})?|\.\d{1,40})(?:[eE][+-]?\d{1,4})?", re.ASCII)
_SIZE = re.compile(rf"({_NUMBER.pattern})\s*([A-Za-z]*)", re.ASCII)
_UNITS = {"": BYTES_PER_MB, "b": 1}
for _power, _letter in enumerate("kmgtpe", start=1):
    _UNITS.update({_letter: 1024**_power, f"{_letter}b": 1024**_power, f"{_letter}ib": 1024**_power})


def parse_number(text: str, at_least: float = 0.0, at_most: float = math.inf) -> float:
    """A finite decimal number. Raises ValueError with what is wrong with it."""
    text = text.strip()
    if _NUMBER.fullmatch(text) is None:
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


def parse_count(text: str) -> int:
    """A whole number from 0. Raises ValueError with what is wrong with it."""
    if re.fullmatch(r"\+?\d{1,18}", text.strip(), re.ASCII) is None:
        raise ValueError("it is not a whole number from 0 up")
    return int(text)


def parse_size_bytes(text: str) -> int:
    """A size above zero in bytes: a plain number is MB; units are powers of 1024 (512M, 10GB, 1.5 GiB)."""
    match = _SIZE.fullmatch(text.strip())
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
