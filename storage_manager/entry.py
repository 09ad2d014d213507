"""One entry of metadata.json: what its members mean, and what makes it corrupt."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any, Optional

from storage_manager.model import Session

_GUID = r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"
# The client writes lower-case extensions; with anything else an entry could not name its blob for certain.
_FORMAT = r"[a-z0-9][a-z0-9_+-]{0,31}"

is_guid = re.compile(_GUID).fullmatch
is_format = re.compile(_FORMAT).fullmatch
# Wider than what a session's blob may be called: the blob of a corrupt entry takes up space, too.
is_blob_name = re.compile(rf"{_GUID}\.[A-Za-z0-9][A-Za-z0-9._+-]{{0,63}}").fullmatch
GUID_LENGTH = 36

_BAD_FORMAT = "its format is not a plain lower-case extension"

# No file system holds more; a larger claim only makes sums that nobody can read.
_LARGEST_SIZE_BYTES = 1 << 63

_ISO_TIME = re.compile(
    r"(\d{4})-?(\d\d)-?(\d\d)"
    r"(?:[Tt ](\d\d):?(\d\d)(?::?(\d\d)(?:[.,](\d+))?)?"
    r" ?(?:([Zz])|([+-])(\d\d):?(\d\d)?(?::?(\d\d))?)?)?",
    re.ASCII,
).fullmatch


NOT_SEEN = -1
"""The size of a session whose blob was not found."""


def entry_visitor(
    take_size: Callable[[str, int], int],
    on_session: Callable[[Session], object],
    on_missing: Callable[[Session], object],
    on_corrupt: Callable[[str, str], object],
    formats: Optional[dict[str, str]] = None,
) -> Callable[[str, Any], None]:
    """A function that reads one entry, given its key and value. It never raises, whatever the value is.

    `take_size` gives the size of a blob by file name, or its second argument when there is none. An entry
    that is understood goes to `on_session`, or to `on_missing` without a blob, with size NOT_SEEN; of any
    other entry `on_corrupt` is told the key and what is wrong. `formats` collects the formats that occur.
    Everything is a local name in here: the body runs a million times for a million sessions, and that
    decides what a check costs.
    """
    formats = {} if formats is None else formats
    groups: dict[str, str] = {}
    guid_matches = is_guid
    new_tuple = tuple.__new__  # half the time that Session's own constructor takes

    def visit(key: str, value: Any) -> None:
        if guid_matches(key) is None:
            on_corrupt(key, "its key is not a UUID")
            return
        if type(value) is not dict:
            on_corrupt(key, "it is not an object")
            return
        find = value.get
        extension = find("format")
        if type(extension) is not str:
            on_corrupt(key, _BAD_FORMAT)
            return
        known = formats.get(extension)
        if known is None:
            if is_format(extension) is None:
                on_corrupt(key, _BAD_FORMAT)
                return
            known = formats[extension] = extension
        created_at = parse_time(find("created_at"))
        if created_at is None:
            on_corrupt(key, "it has no usable created_at")
            return
        group = find("group")
        group = groups.setdefault(group, group) if type(group) is str else None
        declared = find("size")
        if type(declared) is not int or not 0 <= declared <= _LARGEST_SIZE_BYTES:
            declared = None
        size = take_size(f"{key}.{known}", NOT_SEEN)
        session = new_tuple(Session, (created_at, key, known, group, declared, size))
        if size >= 0:
            on_session(session)
        else:
            on_missing(session)

    return visit


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
    match = _ISO_TIME(text.strip())
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


def utc_text(moment: datetime) -> str:
    """A naive UTC moment as ISO 8601 with `Z`."""
    return moment.isoformat() + "Z"


def from_timestamp(secs: float) -> datetime:
    """Seconds since the epoch as naive UTC; clamped to the years 1 to 9999, which a damaged inode may leave."""
    try:
        return datetime.fromtimestamp(secs, timezone.utc).replace(tzinfo=None)
    except (OverflowError, ValueError, OSError):
        return datetime.max if secs > 0 else datetime.min
