"""Strict JSON, as every reader takes it: ASCII, no NaN, and lone surrogates (bytes that were not UTF-8) as text."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from typing import Any

from storage_manager.base.text import printable

# No level of a result is deeper; events, whose fields may hold anything, are cut off earlier.
RESULT_DEPTH = 16
EVENT_DEPTH = 4

_compact = json.JSONEncoder(allow_nan=False, check_circular=False, separators=(",", ":"))


def _make_chunks() -> Callable[[Any, int], Iterable[str]]:
    """What JSONEncoder makes anew for each value, which takes as long as encoding an event."""
    try:
        made: Callable[[Any, int], Iterable[str]] = json.encoder.c_make_encoder(  # type: ignore[attr-defined]
            None, _compact.default, json.encoder.encode_basestring_ascii, None, ":", ",", False, False, False
        )
    except (AttributeError, TypeError):  # not in public: another Python may have it otherwise, or not at all
        return lambda value, level: _compact.iterencode(value)
    return made


_chunks = _make_chunks()


def compact(value: Any) -> str:
    """For events. Raises TypeError, ValueError or RecursionError for what is not JSON."""
    return "".join(_chunks(value, 0))


_spaced = json.JSONEncoder(allow_nan=False).encode


def json_text(value: Any) -> str:
    """A result. Raises like `compact`."""
    text = _spaced(value)
    return _spaced(sayable(value, RESULT_DEPTH)) if may_have_surrogates(text) else text


def may_have_surrogates(text: str) -> bool:
    """Whether this JSON has an escaped surrogate, maybe a lone one: strict readers refuse those."""
    return "\\ud" in text


def sayable(value: Any, depth: int = EVENT_DEPTH) -> Any:
    """`value` as something that strict JSON can say. Raises nothing."""
    if value is None or (isinstance(value, int) and abs(value) < 1 << 128):  # Python refuses to print the largest
        return value
    if isinstance(value, float):
        return value if abs(value) <= sys.float_info.max else str(value)
    if depth and isinstance(value, dict):
        return {_shown(key): sayable(item, depth - 1) for key, item in value.items()}
    if depth and isinstance(value, (list, tuple, set, frozenset)):
        return [sayable(item, depth - 1) for item in value]
    return _shown(value)


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    try:
        return printable(value, 1000)
    except Exception:  # noqa: BLE001  # an object whose text cannot be had; a log line must not fail over it
        return f"<{type(value).__name__}>"
