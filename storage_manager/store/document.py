"""The text of metadata.json: its members found, cut out and put in without re-encoding the rest.

A document is handled as bytes. A member's piece runs from behind the `{` or `,` before it to the end of its
value, so pieces joined by commas give the text back, and a survivor's bytes are copied, never encoded anew.
"""

from __future__ import annotations

import json
import re
import sys
from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Callable, NamedTuple, Optional

_SPACE = r"[ \t\n\r]*"
_KEY = re.compile(_SPACE + r'"([^"\\\x00-\x1f]*)"' + _SPACE + ":" + _SPACE).match
_QUOTE = re.compile(_SPACE + '"').match
_COLON = re.compile(_SPACE + ":" + _SPACE).match
_NEXT = re.compile(_SPACE + "([,}])").match
_NEXT_BYTES = re.compile(_SPACE.encode() + b"([,}])").match
_OPENING_BYTES = re.compile(_SPACE.encode() + rb"(\{)(?:" + _SPACE.encode() + rb"(\}))?").match
_SPACE_BYTES = re.compile(_SPACE.encode())
_CLOSE, _COMMA = b"}", b","

# How much is decoded at a time: a window that does not hold the next member whole is moved, then widened.
_WINDOW_BYTES = 1 << 20
_SMALL_WINDOW_BYTES = 1 << 12

# How much is given to the decoder at a time: enough to make its start negligible, little enough that the
# decoded values are still in the processor's cache when they are looked at.
_BATCH_BYTES = 1 << 17
_ENTRY_END = re.compile(rb'\}[ \t\n\r]*,[ \t\n\r]*"[0-9A-Fa-f-]{36}"').match

# What is rendered is cut out of the text in slices of this size: a copy of all the survivors would be the peak.
_SLICE_BYTES = 1 << 20

# A text that may be kept in memory for the sake of speed.
_SMALL_BYTES = 4 << 20

# An integer longer than this is no size of anything, and converting a huge one takes quadratic time.
_LONGEST_INTEGER = 32
Visitor = Callable[[str, Any], None]


class NotJson(ValueError):
    """The bytes are not one complete JSON object (torn, damaged, or not UTF-8)."""


class Fingerprint(NamedTuple):
    """Enough of a document to recognise its members in a later version without keeping its text."""

    keys: Sequence[str]
    lengths: Sequence[int]
    hashes: Sequence[int]
    document: Optional[Document] = None
    """The text after all, where it is small: a version with a few members more is then recognised at a glance."""


class Document:
    """The bytes of a complete metadata.json and where its members are. Immutable by convention."""

    def __init__(
        self, data: bytes, keys: list[str], starts: array[int], ends: array[int], body: int, fresh: Sequence[int]
    ) -> None:
        self.data = data
        self.keys = keys
        self.fresh = fresh
        """Indexes of the members that were decoded, not recognised from a fingerprint."""
        self._starts = starts
        self._ends = ends
        self._body = body  # the offset behind the opening brace

    def piece(self, index: int) -> bytes:
        return self.data[self._starts[index] : self._ends[index]]

    def value(self, index: int) -> Any:
        """The decoded value of one member."""
        piece = self.piece(index)
        return _member(piece.decode(), 0)[1]

    def fingerprint(self, without: Collection[str] = (), is_current: bool = False) -> Fingerprint:
        """What a later version of this document is compared with; the keys of `without` shall be unknown to it.

        `is_current`: the next version will be one of this text.
        """
        keys: list[str] = []
        lengths, hashes = array("q"), array("q")
        data = self.data
        for key, start, end in zip(self.keys, self._starts, self._ends):
            if key in without:
                continue
            keys.append(key)
            # Only an object says by itself where it ends; anything else is read again each time.
            lengths.append(end - start if data[end - 1 : end] == _CLOSE else 0)
            hashes.append(hash(data[start:end]))
        document = None
        if is_current and self.keys and len(data) <= _SMALL_BYTES:
            fresh = [index for index, key in enumerate(self.keys) if key in without]
            document = Document(data, self.keys, self._starts, self._ends, self._body, fresh)
        return Fingerprint(keys, lengths, hashes, document)

    def rendered(self, drop: Collection[str], replace: Mapping[str, bytes], add: Sequence[bytes]) -> Iterator[bytes]:
        """The document's text without `drop`, with the pieces of `replace` exchanged and `add` at the end."""
        data = self.data
        last = self._ends[-1] if self.keys else self._body
        yield data[: self._body]
        separator = b""
        for part in (*self._runs(drop, replace), *add):
            yield separator
            if isinstance(part, bytes):
                yield part
            else:
                start, end = part
                for at in range(start, end, _SLICE_BYTES):
                    yield data[at : min(at + _SLICE_BYTES, end)]
            separator = _COMMA
        if not separator:
            yield data[data.index(_CLOSE, last) :]
        else:
            yield data[last:] if self.keys else b"\n" + data[last:].lstrip()

    def _runs(self, drop: Collection[str], replace: Mapping[str, bytes]) -> Iterator[bytes | tuple[int, int]]:
        """Runs of neighbouring survivors as (start, end), and exchanged pieces as bytes."""
        start, end = -1, -1
        for key, piece_start, piece_end in zip(self.keys, self._starts, self._ends):
            if key in drop or key in replace:
                if start >= 0:
                    yield start, end
                    start = -1
                if key in replace:
                    yield replace[key]
                continue
            if start < 0:
                start = piece_start
            end = piece_end
        if start >= 0:
            yield start, end


# Three readers walk the same grammar, each fast at one thing:
#
#     opening brace, then: member, separator, member, separator, ... up to a closing brace, then only space
#
#     visit_members()  decodes some hundred members at a time; what it does not expect it leaves to _parse_from()
#     _parse_from()    decodes one member after the other, and remembers where each is
#     reparse()        passes over members that a fingerprint knows, and decodes the rest with _member_at()
#
# In each, `pos` or `base` is the offset behind the last separator, and `done` says that this was the closing brace.


def visit_members(data: bytes, visit: Visitor, progress: Callable[[int], None] = lambda read_bytes: None) -> None:
    """Show each member's key and decoded value to `visit`, without remembering where the members are.

    Accepts and refuses exactly what parse() does, and is faster on what the client writes. Of members with
    one key some may not be shown, but always the last. `progress` is told of the bytes of each batch. Raises NotJson.
    """
    _, base, done = _opening(data)
    try:
        while not done:
            end = _batch_end(data, base)
            if end is None:
                break
            # If that was not the end of a member after all, what is cut out there does not decode.
            for key, value in _decode(f"{{{data[base:end].decode()}}}").items():
                visit(key, value)
            progress(end - base)
            base = data.index(_COMMA, end) + 1
    except (ValueError, RecursionError):
        pass  # read with care from here on, which either succeeds or says what is wrong
    if not data.isascii():
        _require_utf8(data, base)
    _parse_from(data, base, done, visit)


def _batch_end(data: bytes, base: int) -> Optional[int]:
    """Where the last entry of a batch seems to end, before its comma; None where none does."""
    stop = base + _BATCH_BYTES
    while True:
        stop = data.rfind(_CLOSE, base, stop)
        if stop < 0:
            return None
        if _ENTRY_END(data, stop):
            return stop + 1


def parse(data: bytes) -> Document:
    """Find every member of `data`.

    Raises NotJson when `data` is not one complete JSON object, as Python's own json would read it.
    """
    if not data.isascii():
        _require_utf8(data)
    body, base, done = _opening(data)
    keys, starts, ends = _parse_from(data, base, done, None)
    return Document(data, keys, starts, ends, body, range(len(keys)))


def _parse_from(
    data: bytes, base: int, done: bool, visit: Optional[Visitor]
) -> tuple[list[str], array[int], array[int]]:
    """The members from `base` on, up to the end: their keys, starts and ends. Raises NotJson."""
    keys: list[str] = []
    starts, ends = array("q"), array("q")
    add_key, add_start, add_end = keys.append, starts.append, ends.append
    scan = _scan_once
    window = _WINDOW_BYTES
    # The text is decoded a window at a time, so that there is never a second copy of a large file in memory.
    # Latin-1 gives every byte its own character: offsets in the text are offsets in the bytes.
    while not done:
        text = data[base : base + window].decode("latin-1")
        all_ascii = text.isascii()
        start = pos = 0
        try:
            while True:
                start = pos
                match = _KEY(text, pos)
                try:
                    if match is None:
                        key, value, end = _member(text, pos)
                    else:
                        key = match.group(1)
                        value, end = scan(text, match.end())
                except (StopIteration, ValueError, RecursionError):
                    key, value, end = _member(text, pos)
                if text[end : end + 1] == ",":
                    pos = end + 1
                else:
                    pos, done = _separator(text, end)
                if not all_ascii and not text[start:end].isascii():
                    key, value, _ = _member(data[base + start : base + end].decode(), 0)
                add_key(key)
                add_start(base + start)
                add_end(base + end)
                if visit is not None:
                    visit(key, value)
                if done:
                    break
        except NotJson as error:
            if base + window >= len(data):
                raise NotJson(f"{error} in the entry at byte {base + start}") from error
            # Perhaps the window ends within the member: move it there, or widen it.
            if start == 0:
                window *= 8
            pos = start
        base += pos
    _require_end(data, base)
    return keys, starts, ends


def reparse(data: bytes, known: Fingerprint) -> Document:
    """Like parse(), for a later version of a document: members that are `known` are not decoded again.

    Several times as fast when little has changed, which is what lets a commit fit between two of a busy
    client's writes.
    """
    if not data.isascii():
        _require_utf8(data)
    longer = _longer(data, known.document) if known.document is not None else None
    if longer is not None:
        return longer
    body, pos, done = _opening(data)
    known_keys, lengths, hashes, _ = known
    count = len(known_keys)
    index: dict[str, int] = {}
    pieces: set[tuple[str, int]] = set()
    keys: list[str] = []
    starts, ends = array("q"), array("q")
    fresh: list[int] = []
    at = 0
    while not done:
        start = pos
        end = start + lengths[at] if at < count else start
        if end > start and hash(data[start:end]) == hashes[at]:
            key = known_keys[at]
            match = _NEXT_BYTES(data, end)
            if match is None:
                raise NotJson(f"a comma or closing brace is missing at byte {end}")
            pos, done = match.end(), match.group(1) == _CLOSE
            at += 1
        else:
            key, end, pos, done = _member_at(data, start)
            if not index:
                index = {known_key: number for number, known_key in enumerate(known_keys)}
            known_at = index.get(key)
            if known_at is None:
                fresh.append(len(keys))
            else:
                # Read again because it is out of step or does not say where it ends, it may be known all the same:
                # as the last member with its key, or as another.
                at = known_at + 1
                piece = key, hash(data[start:end])
                if hashes[known_at] != piece[1]:
                    pieces = pieces or set(zip(known_keys, hashes))
                    if piece not in pieces:
                        fresh.append(len(keys))
        keys.append(key)
        starts.append(start)
        ends.append(end)
    _require_end(data, pos)
    return Document(data, keys, starts, ends, body, fresh)


def _longer(data: bytes, shorter: Document) -> Optional[Document]:
    """`data` as `shorter` with more members behind its last; None when it is anything else. Raises NotJson."""
    known_end = shorter._ends[-1]
    if shorter.data[known_end - 1 : known_end] != _CLOSE or data[:known_end] != shorter.data[:known_end]:
        return None
    match = _NEXT_BYTES(data, known_end)
    if match is None:
        return None
    pos, done = match.end(), match.group(1) == _CLOSE
    keys, starts, ends = shorter.keys[:], shorter._starts[:], shorter._ends[:]
    while not done:
        start = pos
        key, end, pos, done = _member_at(data, start)
        keys.append(key)
        starts.append(start)
        ends.append(end)
    _require_end(data, pos)
    fresh = [*shorter.fresh, *range(len(shorter.keys), len(keys))]
    return Document(data, keys, starts, ends, shorter._body, fresh)


def _member_at(data: bytes, start: int) -> tuple[str, int, int, bool]:
    """One member: (key, its end, offset behind the separator, whether that was the brace). Raises NotJson."""
    window = _SMALL_WINDOW_BYTES
    while True:
        text = data[start : start + window].decode("latin-1")
        try:
            key, _, end = _member(text, 0)
            pos, done = _separator(text, end)
        except NotJson:
            if start + window >= len(data):
                raise
            window *= 8
            continue
        if not text[:end].isascii():
            key, _, _ = _member(data[start : start + end].decode(), 0)
        return key, start + end, start + pos, done


def _separator(text: str, end: int) -> tuple[int, bool]:
    """(offset behind the comma or brace that follows `end`, whether it was the brace). Raises NotJson."""
    match = _NEXT(text, end)
    if match is None:
        raise NotJson("a comma or closing brace is missing")
    return match.end(), match.group(1) == "}"


def _opening(data: bytes) -> tuple[int, int, bool]:
    """(offset behind the brace, where to read on, whether the object is empty). Raises NotJson."""
    match = _OPENING_BYTES(data)
    if match is None:
        raise NotJson("it does not begin with an object" if data.strip() else "it is empty")
    return match.end(1), match.end(), match.group(2) is not None


def _require_end(data: bytes, pos: int) -> None:
    if _SPACE_BYTES.fullmatch(data, pos) is None:
        raise NotJson(f"there is more behind the closing brace, at byte {pos}")


def _require_utf8(data: bytes, base: int = 0) -> None:
    try:
        str(memoryview(data)[base:], "utf-8")
    except UnicodeDecodeError as error:
        raise NotJson(f"it is not UTF-8 at byte {base + error.start}") from error


def _member(text: str, pos: int) -> tuple[str, Any, int]:
    """One member at `pos`, read with care: integers of any length, keys with escapes. Raises NotJson."""
    quote = _QUOTE(text, pos)
    if quote is None:
        raise NotJson("a key is missing")
    try:
        key, end = json.decoder.scanstring(text, quote.end(), True)  # type: ignore[attr-defined]
        colon = _COLON(text, end)
        if colon is None:
            raise NotJson("a colon is missing")
        value, end = _careful_scan(text, colon.end())
    except RecursionError as error:
        raise NotJson("too deep a nesting") from error
    except StopIteration as error:
        raise NotJson("no value") from error
    except json.JSONDecodeError as error:
        raise NotJson(error.msg) from error
    return key, value, end


def _bounded_int(digits: str) -> Optional[int]:
    return int(digits) if len(digits) <= _LONGEST_INTEGER else None


_careful = json.JSONDecoder(parse_int=_bounded_int)

# The decoder's own int() is faster, and safe where this Python bounds it: an integer too long is an error
# there, and the member is read again with care.
_int_is_bounded = getattr(sys, "get_int_max_str_digits", lambda: 0)() > 0
_quick = json.JSONDecoder() if _int_is_bounded else _careful
_decode = _quick.decode
_scan_once: Callable[[str, int], tuple[Any, int]] = _quick.scan_once  # type: ignore[attr-defined]
_careful_scan: Callable[[str, int], tuple[Any, int]] = _careful.scan_once  # type: ignore[attr-defined]
