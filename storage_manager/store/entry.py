"""One entry of metadata.json: what its members mean, and what makes it corrupt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Optional, Union

from storage_manager.base.quantity import LARGEST_SIZE_BYTES
from storage_manager.base.times import parse_time
from storage_manager.store.names import is_format, is_guid
from storage_manager.store.snapshot import Session

_BAD_FORMAT = "its format is not a plain lower-case extension"
NOT_SEEN = -1
"""The size of a session whose blob was not found."""


def blob_name(key: str, value: Any) -> Optional[str]:
    """The only name that the blob of an entry can have; None where its format is unusable."""
    extension = value.get("format") if isinstance(value, dict) else None
    return f"{key}.{extension}" if isinstance(extension, str) and is_format(extension) else None


def entry_visitor(
    take_size: Callable[[str, int], int],
    on_session: Callable[[Session], object],
    on_other: Callable[[str, Union[Session, str]], object],
    formats: Optional[dict[str, str]] = None,
) -> Callable[[str, Any], None]:
    """A function that reads one entry, given its key and value. It never raises, whatever the value is.

    `take_size` gives the size of a blob by file name, or its second argument when there is none. An entry
    that is understood and has a blob goes to `on_session`. `on_other` is told the key of any other, and the session
    without a blob, with size NOT_SEEN, or what is wrong with the entry. `formats` collects the formats that occur.
    Everything is a local name in here: the body runs a million times for a million sessions, and that
    decides what a check costs.
    """
    formats = {} if formats is None else formats
    groups: dict[str, str] = {}
    guid_matches = is_guid
    new_tuple = tuple.__new__  # half the time that Session's own constructor takes

    def visit(key: str, value: Any) -> None:
        if guid_matches(key) is None:
            on_other(key, "its key is not a UUID")
            return
        if type(value) is not dict:
            on_other(key, "it is not an object")
            return
        find = value.get
        extension = find("format")
        if type(extension) is not str:
            on_other(key, _BAD_FORMAT)
            return
        known = formats.get(extension)
        if known is None:
            if is_format(extension) is None:
                on_other(key, _BAD_FORMAT)
                return
            known = formats[extension] = extension
        created_at = parse_time(find("created_at"))
        if created_at is None:
            on_other(key, "it has no usable created_at")
            return
        group = find("group")
        group = groups.setdefault(group, group) if type(group) is str else None
        declared = find("size")
        if type(declared) is not int or not 0 <= declared <= LARGEST_SIZE_BYTES:
            declared = None  # a larger claim only makes sums that nobody can read
        size = take_size(f"{key}.{known}", NOT_SEEN)
        session = new_tuple(Session, (created_at, key, known, group, declared, size))
        if size >= 0:
            on_session(session)
        else:
            on_other(key, session)

    return visit
