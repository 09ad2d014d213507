"""Text from anywhere, made safe to show: no control characters, no lone surrogates, bounded length."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Optional

# C0 and C1 controls, DEL, line and paragraph separators, and the bidirectional overrides that can make a
# terminal show a file name that is not the one on disk. Compiled when it is needed, which takes half a millisecond.
_UNPRINTABLE = "[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"


def printable(value: object, limit: int = 4096) -> str:
    """`value` as one line of plain text, at most `limit` characters; what cannot be shown is escaped."""
    text = str(value)[: limit + 1]
    if not (text.isascii() and text.isprintable()):
        text = re.sub(_UNPRINTABLE, _escape, text)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def is_name(text: str) -> bool:
    """Whether it says something, and has nothing in it that cannot be shown."""
    return bool(text.strip()) and printable(text, len(text)) == text


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was not UTF-8, as surrogateescape carries it
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def nearest(word: str, known: Iterable[str], alike: float = 0.6) -> Optional[str]:
    """The one of `known` that was probably meant by `word`, or None. `alike`, of 1, is how near it must come."""
    from difflib import get_close_matches  # only a slip needs it

    return next(iter(get_close_matches(word, list(known), 1, alike)), None)
