"""Damaged stores for random searches: healthy sessions, then damage to the text of metadata.json and to the directory.

Everything follows from the random.Random that is handed over. What was done comes back in words.
"""

from __future__ import annotations

import calendar
import itertools
import json
import os
import random
import shutil
import stat
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from stores import BEGINNING, new_guid

NOW = datetime(2026, 1, 3)
"""The time of the runs; the sessions are from the two days before."""
NOW_SECS = calendar.timegm(NOW.timetuple())

METADATA_AGE_SECS = 1000
LEFTOVER_AGES_SECS = (10, 5000)

METADATA, LOCK, DRAFT = b"metadata.json", b".prune_size.lock", b".metadata.json.tmp"
PREVIOUS = [b".metadata.json.prev", *(b".metadata.json.prev.%d" % number for number in range(1, 8))]
TORN_PREFIX = b".metadata.json.torn-"


class Raw(str):
    """A value that goes into the text as it is."""


class Members(list[Any]):
    """An object as its (key, value) pairs, so that a key can come twice."""


Session = tuple[str, Members]

# --- values -------------------------------------------------------------------------------------------------

ODD_TEXTS = (
    "", " ", "x", "null", "\x00", "\x1b[31m\u202e", "\ud800", "\udcff", "\ud83d\ude00", "é", "日本語", '"', "\\", "{}",
    "/", "\n  },", "x" * 5000,
)  # fmt: skip
ODD_NUMBERS = (
    0, -1, 10**18, 10**30, -(10**40), 0.1, 1.5e308, -2.5e-7, float("nan"), float("inf"), -float("inf"),
    *map(Raw, ("1e999", "-1E-999", "-0", "-0.0", "1e+05", "9" * 33, "9" * 5000, "01", "1.", "0x1", "+1", "٣")),
)  # fmt: skip
FORMATS = (
    "../../outside/precious", "/etc/passwd", "json/../../outside/precious", "", ".", "..", "JSON", "Json", "a\x00b",
    "x" * 32, "x" * 33, "x" * 300, "js on", "json\n", "é", "٣", "json.bak", "tar.gz", "-x", "_x", "0", "\u212a", "*",
)  # fmt: skip
TIMES = (
    "2026-01-01T05:00:00Z", "2026-01-01T05:00:00z", "2026-01-01T05:00:00+02:00", "2026-01-01T05:00:00-0530", "20260101",
    "2026-01-01", "2026-01-01 05:00", "20260101T050000", "2026-01-01T05:00:00.1", "2026-01-01T05:00:00,123456789",
    "2026-01-01T05:00:00.123456+00:00", "2026-01-01T24:00:00", "2026-01-01T05:00:00+14:00:30", " 2026-01-01T05:00:00 ",
    "0001-01-01T00:00:00", "0001-01-01T00:00:00+23:00", "9999-12-31T23:59:59.999999", "9999-12-31T23:59:59-01:00",
    "0000-01-01T00:00:00", "10000-01-01T00:00:00", "2999-01-01T00:00:00", "1969-12-31T23:59:59Z", "2026-02-30T00:00:00",
    "2026-13-01T00:00:00", "2026-01-01T25:00:00", "2016-12-31T23:59:60Z", "2026-01-01T05:00:00+24:00", "2026-W01-1",
    "2026-001", "2026-01-01T05", "2026-1-1T5:0:0", "2026-01-01T05:00:00 UTC", "Thu, 01 Jan 2026 05:00:00 GMT", "now",
    "", "٢٠٢٦-٠١-٠١T٠٥:٠٠:٠٠", "２０２６-01-01T05:00:00", "2026-01-01T05:00:00\x00", "2026-01-01T05:00:00\n",
    "-2026-01-01T05:00:00", "2026-01-01T05:00:00." + "9" * 5000, 20260101, 1767243600.5, Raw("1e999"), None, True, [],
)  # fmt: skip
EXTENSIONS = (*("json",) * 12, *("png",) * 6, "a_b+c-d", "0", "JSON", "tar.gz")
"""Of the blobs; an entry with one of the last two is corrupt."""
GROUPS = ("a", "b", "", "é", "\x1b[2J\u202e", "\udcff", "g" * 300)


def odd_keys(guid: str) -> tuple[str, ...]:
    return (
        "../x", "../../outside/precious", ".", "..", "", "/", "\x00", "\ud800", "é", "metadata.json", guid.upper(),
        guid.title(), "{" + guid + "}", "urn:uuid:" + guid, guid.replace("-", ""), guid + "\n", " " + guid, guid[:-1],
        guid + "0", guid + ".json", guid + "/../../outside/precious", guid.replace(guid[:1], "０"), "k" * 5000,
    )  # fmt: skip


def odd_value(rng: random.Random) -> Any:
    kind = rng.randrange(200)
    if kind == 0:  # rare, since they take time
        return Raw("9" * 100_000)
    if kind == 1:
        return nested(rng, rng.choice((100_000, 200_000)))
    if kind < 10:
        return nested(rng, rng.choice((3, 30, 300)))
    return rng.choice(
        (rng.choice(ODD_TEXTS), rng.choice(ODD_NUMBERS), None, True, [], [[]], Members(), Members([("a", [1])]))
    )


def plausible_time(rng: random.Random) -> str:
    moment = BEGINNING + timedelta(minutes=rng.randrange(48 * 60), microseconds=rng.choice((0, 123456)))
    return moment.isoformat() + rng.choice(("", "Z", "+02:00", "-0530", "+14:00", "-11:59", "+00:00"))


def nested(rng: random.Random, levels: int) -> Raw:
    """Arrays or objects in each other; sometimes the end is missing, or one too many is there."""
    opening, closing = rng.choice((("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")))
    return Raw(opening * levels + rng.choice(("1", "")) + closing * (levels + rng.choice((0, 0, 0, 0, -1, 1))))


# --- healthy sessions and their text ------------------------------------------------------------------------


def healthy_sessions(rng: random.Random) -> list[Session]:
    sessions = []
    for _ in range(rng.choice((0, 1, 2, 4, 6, 8, 10))):
        # Few different moments, so that ties are common.
        created = BEGINNING + timedelta(hours=rng.randrange(8) * 6, microseconds=rng.choice((0, 0, 1, 999_999)))
        entry = Members([("format", rng.choice(EXTENSIONS)), ("size", 1000), ("created_at", created.isoformat())])
        if rng.random() < 0.4:
            entry.append(("group", rng.choice(GROUPS)))
        if rng.random() < 0.2:
            entry.insert(rng.randrange(4), (rng.choice(("url", "aliases", "x")), rng.choice(("é", "/", ["a"], None))))
        sessions.append((new_guid(rng), entry))
    return sessions


ENCODERS = {ascii_only: json.JSONEncoder(ensure_ascii=ascii_only).encode for ascii_only in (True, False)}


def encoded(value: Any, indent: bool, ascii_only: bool, depth: int = 0) -> str:
    """As json.dumps() would write it, with Raw and Members."""
    if isinstance(value, Raw):
        return value
    if not isinstance(value, list):
        return ENCODERS[ascii_only](value)
    colon = ": " if indent else ":"
    if isinstance(value, Members):
        parts = [
            encoded(key, indent, ascii_only) + colon + encoded(item, indent, ascii_only, depth + 1)
            for key, item in value
        ]
    else:
        parts = [encoded(item, indent, ascii_only, depth + 1) for item in value]
    opening, closing = "{}" if isinstance(value, Members) else "[]"
    if not parts or not indent:
        return opening + ",".join(parts) + closing
    margin = "\n" + "  " * (depth + 1)
    return opening + margin + ("," + margin).join(parts) + margin[:-2] + closing


def text_of(document: Members, rng: random.Random) -> bytes:
    indent, ascii_only = rng.random() < 0.7, rng.random() < 0.6
    try:
        return encoded(document, indent, ascii_only).encode()
    except UnicodeEncodeError:  # a lone surrogate has no UTF-8
        return encoded(document, indent, True).encode()


# --- damage to what the text says ---------------------------------------------------------------------------


def slots(value: Any) -> Iterator[tuple[list[Any], int]]:
    """Where each value stands: a list and an index in it."""
    for index, item in enumerate(value):
        yield value, index
        inner = item[1] if isinstance(value, Members) else item
        if isinstance(inner, list):
            yield from slots(inner)


def put(container: list[Any], index: int, value: Any) -> None:
    container[index] = (container[index][0], value) if isinstance(container, Members) else value


def some_entry(document: Members, rng: random.Random) -> Members:
    entries = [value for _, value in document if isinstance(value, Members)]
    return rng.choice(entries) if entries else Members()


def set_member(entry: Members, name: str, value: Any) -> None:
    entry[:] = [(key, value if key == name else item) for key, item in entry]


def wrong_value_anywhere(document: Members, rng: random.Random) -> str:
    places = list(slots(document))
    value = odd_value(rng)
    if places:
        put(*rng.choice(places), value)
    return f"a value is {shown(value)}"


def wrong_member(document: Members, rng: random.Random) -> str:
    name, values = rng.choice(
        (("format", FORMATS), ("created_at", TIMES), ("created_at", TIMES), ("group", ODD_TEXTS), ("size", ODD_NUMBERS))
    )
    value = odd_value(rng) if rng.random() < 0.2 else rng.choice(values)
    if name == "created_at" and rng.random() < 0.4:
        value = plausible_time(rng)
    set_member(some_entry(document, rng), name, value)
    return f"{name} is {shown(value)}"


def odd_key(document: Members, rng: random.Random) -> str:
    if not document:
        document.append((new_guid(rng), Members()))
    index = rng.randrange(len(document))
    guid, value = document[index]
    key = rng.choice(odd_keys(guid)) if rng.random() < 0.98 else "k" * 100_000
    if rng.random() < 0.5:
        document[index] = (key, value)
    else:
        document.insert(index, (key, value))
    return f"a key is {shown(key)}"


def escaped_key(document: Members, rng: random.Random) -> str:
    for index, (key, value) in enumerate(document):
        if key:
            document[index] = (Raw(f'"\\u{ord(key[0]) & 0xFFFF:04x}{json.dumps(key[1:])[1:]}'), value)
    return "keys with an escape"


def member_missing(document: Members, rng: random.Random) -> str:
    entry = some_entry(document, rng)
    if entry:
        return f"no {shown(entry.pop(rng.randrange(len(entry)))[0])}"
    return "nothing"


def doubled_entry(document: Members, rng: random.Random) -> str:
    """The same guid again, with another format, another time, or something else altogether."""
    if not document:
        return "nothing"
    key, value = rng.choice(document)
    again = Members(value) if isinstance(value, Members) else value
    change = rng.randrange(5)
    if isinstance(again, Members) and change < 4:
        if change in (1, 3):
            set_member(again, "format", rng.choice(("json", "png", "txt", "../x")))
        if change in (2, 3):
            set_member(again, "created_at", plausible_time(rng))
    elif change == 4:
        again = odd_value(rng)
    document.insert(rng.randrange(len(document) + 1), (key, again))
    return f"{shown(key)} again, {'the same' if change == 0 else shown(again)}"


def doubled_member(document: Members, rng: random.Random) -> str:
    entry = some_entry(document, rng)
    if not entry:
        return "nothing"
    name, value = rng.choice(entry)
    value = rng.choice((value, odd_value(rng), rng.choice(TIMES), rng.choice(FORMATS)))
    entry.insert(rng.randrange(len(entry) + 1), (name, value))
    return f"{shown(name)} again, {shown(value)}"


def stray_entry(document: Members, rng: random.Random) -> str:
    """A session without a blob."""
    created = BEGINNING + timedelta(hours=rng.randrange(48))
    entry = Members([("format", "json"), ("created_at", created.isoformat()), ("group", rng.choice(GROUPS))])
    document.insert(rng.randrange(len(document) + 1), (new_guid(rng), entry))
    return "an entry without a blob"


MEANING: tuple[Callable[[Members, random.Random], str], ...] = (
    wrong_value_anywhere, wrong_member, wrong_member, odd_key, escaped_key, member_missing, doubled_entry,
    doubled_entry, doubled_member, stray_entry, stray_entry,
)  # fmt: skip

# --- damage to the bytes ------------------------------------------------------------------------------------

SNIPPETS = (
    b"{", b"}", b"[", b"]", b",", b",,", b":", b'"', b"\\", b"\\u", b"\\ud800", b"\x00", b"\x01", b"\x1f", b"\x7f",
    b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\x80", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\xc2\xa0", b"NaN", b"null",
    b"1", b"-", b"9e9", b"\n  },", b"{}", b'"":0,', b"'", b"/* x */", b"// x\n", b"# x\n",
)  # fmt: skip
SPACES = (
    b" ", b"\n", b"\t", b"\r\n", b" " * 100, b"\n  ", b"\x0b", b"\x0c", b"\xc2\xa0", b"\xe2\x80\x83", b"\xef\xbb\xbf",
)  # fmt: skip
CODECS = ("utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "utf-7", "cp037")


def flipped_bits(data: bytearray, rng: random.Random) -> str:
    for _ in range(count := rng.choice((1, 1, 2, 8))):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return f"{count} bits flipped"


def deleted_bytes(data: bytearray, rng: random.Random) -> str:
    place, length = rng.randrange(len(data) + 1), rng.choice((1, 1, 2, 10, 200))
    del data[place : place + length]
    return f"{length} bytes deleted at {place}"


def inserted_bytes(data: bytearray, rng: random.Random) -> str:
    place, snippet = rng.randrange(len(data) + 1), rng.choice(SNIPPETS)
    data[place:place] = snippet
    return f"{snippet!r} put in at {place}"


def doubled_or_missing_mark(data: bytearray, rng: random.Random) -> str:
    marks = [place for place, byte in enumerate(data) if byte in b'{}[],:"']
    if not marks:
        return "nothing"
    place = rng.choice(marks)
    mark = bytes(data[place : place + 1])
    data[place : place + 1] = mark * rng.choice((0, 2))
    return f"{mark!r} doubled or missing at {place}"


def truncated(data: bytearray, rng: random.Random) -> str:
    place = rng.randrange(len(data) + 1)
    del data[place:]
    return f"truncated at {place}"


def spliced(data: bytearray, rng: random.Random) -> str:
    """As after two writers at once: the beginning of this text and the end of another."""
    other = text_of(Members(healthy_sessions(rng)), rng)
    place, start = rng.randrange(len(data) + 1), rng.randrange(len(other) + 1)
    data[place:] = other[start:]
    return f"at {place} goes on as another text"


def longer_end(data: bytearray, rng: random.Random) -> str:
    """As after a shorter text was written over a longer one."""
    behind = rng.choice((bytes(data[rng.randrange(len(data) + 1) :]), b"}", b"{}", b"\x00" * 20, b"null", b"\n" * 100))
    data.extend(behind)
    return f"{len(behind)} bytes behind the end"


def zeroed(data: bytearray, rng: random.Random) -> str:
    """As after a power failure."""
    place = rng.randrange(len(data) + 1)
    end = rng.choice((len(data), place + 1, place + 30))
    data[place:end] = bytes(len(data[place:end]))
    return f"zeros from {place} to {end}"


def repeated_part(data: bytearray, rng: random.Random) -> str:
    start = rng.randrange(len(data) + 1)
    end = start + rng.choice((1, 5, 60, 500))
    data[start:start] = data[start:end]
    return f"{start} to {end} repeated"


def odd_spaces(data: bytearray, rng: random.Random) -> str:
    space = rng.choice(SPACES)
    for place in sorted(rng.sample(range(len(data) + 1), min(len(data) + 1, 3)), reverse=True):
        if place == 0 or data[place - 1 : place] in (b",", b":", b"{", b"}") or rng.random() < 0.02:
            data[place:place] = space
    data[:] = rng.choice((b"", space)) + data + rng.choice((b"", space))
    return f"spaces {space[:4]!r}"


def other_encoding(data: bytearray, rng: random.Random) -> str:
    codec = rng.choice(CODECS)
    data[:] = data.decode("utf-8", "replace").encode(codec, "replace")
    return f"encoded as {codec}"


def single_quotes(data: bytearray, rng: random.Random) -> str:
    data[:] = data.replace(b'"', b"'", rng.choice((2, -1)))
    return "single quotes"


def not_an_object(data: bytearray, rng: random.Random) -> str:
    data[:] = rng.choice((b"", b" ", b"[]", b"null", b'"{}"', b"[%s]" % bytes(data), b"0", b"{}", b"\x00", b"NaN"))
    return f"the text is {bytes(data[:10])!r}"


BYTES: tuple[Callable[[bytearray, random.Random], str], ...] = (
    flipped_bits, flipped_bits, deleted_bytes, inserted_bytes, inserted_bytes, doubled_or_missing_mark,
    doubled_or_missing_mark, truncated, spliced, longer_end, zeroed, repeated_part, odd_spaces, odd_spaces,
    other_encoding, single_quotes, not_an_object,
)  # fmt: skip


def damaged_text(rng: random.Random, sessions: list[Session]) -> tuple[bytes, list[str]]:
    """The text of these sessions' metadata.json, damaged, and what was done to it."""
    document = Members(sessions)
    done = [rng.choice(MEANING)(document, rng) for _ in range(rng.choice((0, 1, 1, 2, 3, 5)))]
    data = bytearray(text_of(document, rng))
    done += [rng.choice(BYTES)(data, rng) for _ in range(rng.choice((0, 0, 0, 1, 1, 2)))]
    return bytes(data), done


# --- damage to the directory --------------------------------------------------------------------------------


class Place(NamedTuple):
    """The directories and the sessions that the damage is done to."""

    storage: bytes
    outside: bytes
    names: list[bytes]
    """The blobs' names."""
    text: bytes
    """A healthy metadata.json."""

    def path(self, name: bytes) -> bytes:
        return os.path.join(self.storage, name)

    def some_name(self, rng: random.Random) -> bytes:
        return rng.choice(self.names) if self.names and rng.random() < 0.8 else os.fsencode(new_guid(rng)) + b".json"


def clear(path: bytes) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def write(path: bytes, data: bytes, age_secs: float | None = None) -> None:
    with open(path, "wb") as file:
        file.write(data)
    if age_secs is not None:
        os.utime(path, (NOW_SECS - age_secs, NOW_SECS - age_secs))


def put_something_odd(place: Place, name: bytes, rng: random.Random) -> str:
    """Something that is no file of its own under this name."""
    path, kind = place.path(name), rng.randrange(13)
    outside_file, outside_dir = os.path.join(place.outside, b"precious"), place.outside
    clear(path)
    targets = {
        0: outside_file, 1: outside_dir, 2: os.path.join(place.outside, b"absent"), 3: name, 4: b"../outside/precious",
        5: METADATA, 6: place.some_name(rng), 7: b"/dev/null",
    }  # fmt: skip
    if kind in targets:
        os.symlink(targets[kind], path)
        return f"{shown(name)} is a link to {os.path.basename(targets[kind])!r}"
    if kind < 10:
        os.mkdir(path)
        if kind == 9:
            write(os.path.join(path, place.some_name(rng)), b"below")
            write(os.path.join(path, METADATA), place.text)
        return f"{shown(name)} is a directory"
    if kind == 10:
        os.link(outside_file, path)
        return f"{shown(name)} is a hard link to a file outside"
    os.mknod(path, (stat.S_IFIFO if kind == 11 else stat.S_IFSOCK) | 0o600)
    return f"{shown(name)} is a {'FIFO' if kind == 11 else 'socket'}"


def odd_blob(place: Place, rng: random.Random) -> str:
    return put_something_odd(place, place.some_name(rng), rng)


def changed_blob(place: Place, rng: random.Random) -> str:
    name = place.some_name(rng)
    path, kind = place.path(name), rng.randrange(6)
    if not os.path.isfile(path) or os.path.islink(path):
        return "nothing"
    if kind == 0:
        os.unlink(path)
        return f"{shown(name)} is missing"
    if kind == 1:
        os.chmod(path, 0o644)
        os.truncate(path, rng.choice((0, 1, 50_000)))  # sparse
        return f"{shown(name)} has another size"
    if kind == 2:
        mode = rng.choice((0, 0o200, 0o400, 0o4777))
        os.chmod(path, mode)
        return f"{shown(name)} has mode {mode:o}"
    if kind == 3:
        clear(os.path.join(place.outside, name))
        os.link(path, os.path.join(place.outside, name))
        return f"{shown(name)} has a second name outside"
    guid, _, extension = name.partition(b".")
    other = rng.choice(
        (guid, guid + b".", guid + b".json.bak", guid + b".txt", guid + b".JSON", guid.upper() + b"." + extension)
    )
    if os.path.lexists(place.path(other)):
        return "nothing"
    if kind == 4:
        os.rename(path, place.path(other))
        return f"{shown(name)} is called {shown(other)}"
    os.link(path, place.path(other))
    return f"{shown(name)} is called {shown(other)}, too"


def orphan(place: Place, rng: random.Random) -> str:
    guid = os.fsencode(new_guid(rng))
    name = guid + rng.choice((b".json", b".JSON", b".tar.gz", b".x" + b"y" * 63, b".0", b".\xff"))
    age_secs = rng.choice((0, 599, 601, 1e6, -1e6, NOW_SECS + 3e9, -9e9))
    write(place.path(name), b"o" * rng.choice((0, 10, 1500)), age_secs)
    return f"orphan {shown(name)}, {age_secs:g} s old"


ODD_NAMES = (
    b"new\nline", b"\x1b[31mred.json", b"\xff\xfe.json", b"\xed\xa0\x80", b" ", b"-rf", b"*", b"a" * 255, b"\r",
    b"metadata.json.bak", b"METADATA.JSON", b".metadata.json", b".metadata.json.prev.9", b".metadata.json.tmp2",
)  # fmt: skip
AROUND_A_GUID = (
    (b"", b""), (b"", b"."), (b"", b".json\n"), (b"", b".json "), (b"", b".\xe2\x80\xae"), (b"{", b"}.json"),
    (b".", b".json"), (b"", b"." + b"x" * 200), (b"", b"0.json"), (b" ", b".json"),
)  # fmt: skip


def odd_name(place: Place, rng: random.Random) -> str:
    guid = os.fsencode(new_guid(rng))
    name = rng.choice((*ODD_NAMES, *(before + guid + behind for before, behind in AROUND_A_GUID), guid[:-1] + b".json"))
    if rng.random() < 0.2:
        return put_something_odd(place, name, rng)
    clear(place.path(name))
    write(place.path(name), b"z" * 2000, 1e6)
    return f"a file {shown(name)}"


def odd_metadata(place: Place, rng: random.Random) -> str:
    path, kind = place.path(METADATA), rng.randrange(6)
    if kind == 0:
        clear(path)
        return "metadata.json is missing"
    if kind == 1 and not os.path.lexists(os.path.join(place.outside, METADATA)) and os.path.isfile(path):
        os.link(path, os.path.join(place.outside, METADATA), follow_symlinks=False)
        return "metadata.json has a second name outside"
    if kind == 2 and os.path.isfile(path) and not os.path.islink(path):
        os.chmod(path, rng.choice((0, 0o444, 0o666)))
        return "metadata.json has another mode"
    if kind == 3:
        write(os.path.join(place.outside, b"whole"), place.text)
        clear(path)
        os.symlink(b"../outside/whole", path)
        return "metadata.json is a link to a whole one outside"
    return put_something_odd(place, METADATA, rng)


LOCK_LINES = (
    b"", b"pid=4217 started\n", b"pid=4217", b"pid=" + b"9" * 30, b"[" * 4000, b'{"pid": ' * 500, b"\x00" * 5000,
    b"\xff\xfe", b'{"pid": 1, "host": "\\ud800\\u001b", "command": 1e999}',
    b'{"started_at": "0001-01-01", "host": {"a": []}}',
    b'{"pid": ' + b"9" * 3000 + b', "started_at": "9999-12-31T23:59:59"}',
)  # fmt: skip


def odd_lock(place: Place, rng: random.Random) -> str:
    if rng.random() < 0.4:
        return put_something_odd(place, LOCK, rng)
    line = rng.choice(LOCK_LINES)
    age_secs = rng.choice((10, 3000, 4000, -4000, NOW_SECS + 3e9))
    clear(place.path(LOCK))
    write(place.path(LOCK), line, age_secs)
    return f"the lock holds {line[:40]!r}, {age_secs:g} s old"


def leftover(place: Place, rng: random.Random) -> str:
    """What a run that died may have left, and what it cannot have left."""
    torn = TORN_PREFIX + rng.choice((b"20260101T000000Z-0", b"x", b"\xff\n"))
    name = rng.choice((DRAFT, PREVIOUS[0], PREVIOUS[0], rng.choice(PREVIOUS), torn, torn))
    path, kind = place.path(name), rng.randrange(8)
    if kind == 0:
        return put_something_odd(place, name, rng)
    clear(path)
    if kind == 1 and os.path.isfile(place.path(METADATA)):
        os.link(place.path(METADATA), path, follow_symlinks=False)
        return f"{shown(name)} is another name of metadata.json"
    document = Members(json.loads(place.text).items())
    for index, (key, value) in enumerate(document):
        document[index] = (key, Members(value.items()))
    if kind < 5:
        done = stray_entry(document, rng)
        del document[: rng.randrange(len(document))]
        data = encoded(document, True, True).encode()
    else:
        data, damage = damaged_text(rng, document)
        done = ", ".join(damage)
    write(path, data[: rng.choice((len(data), len(data), len(data) // 2))], rng.choice(LEFTOVER_AGES_SECS))
    return f"{shown(name)}: {done}"


def lost_entry(place: Place, rng: random.Random) -> str:
    """A session that only the previous file still has."""
    path = place.path(METADATA)
    entries = json.loads(place.text)
    if not entries or not os.path.isfile(path) or os.path.islink(path):
        return "nothing"
    clear(place.path(PREVIOUS[0]))
    write(place.path(PREVIOUS[0]), place.text, rng.choice(LEFTOVER_AGES_SECS))
    entries.pop(rng.choice(list(entries)))
    clear(path)
    write(path, json.dumps(entries, indent=2).encode(), METADATA_AGE_SECS)
    return "an entry is in the previous file alone"


def read_only(place: Place) -> str:
    clear(place.path(LOCK))  # a lock that is there could be taken, but not be removed again
    os.chmod(place.storage, 0o500)
    return "the directory is read-only"


DIRECTORY: tuple[Callable[[Place, random.Random], str], ...] = (
    odd_blob, odd_blob, odd_blob, changed_blob, changed_blob, changed_blob, changed_blob, orphan, orphan, odd_name,
    odd_name, odd_metadata, odd_lock, leftover, leftover, lost_entry,
)  # fmt: skip


def damaged_store(directory: Path, rng: random.Random, kind: str) -> list[str]:
    """Make `directory`/storage, damaged in its `text`, its `directory` or `both`, and `directory`/outside.

    Returns what was done. `outside` holds what links out of the store lead to.
    """
    storage, outside = (os.fsencode(directory / name) for name in ("storage", "outside"))
    os.mkdir(storage)
    os.mkdir(outside)
    for name in (b"precious", b"precious.json"):
        write(os.path.join(outside, name), b"precious")
    sessions = healthy_sessions(rng)
    names = []
    for guid, entry in sessions:
        name = os.fsencode(f"{guid}.{dict(entry)['format']}")
        names.append(name)
        write(os.path.join(storage, name), b"x" * rng.choice((0, 1, 500, 1000, 1000, 3000)), 1e5)
    text = encoded(Members(sessions), True, True).encode()
    data, done = text, []
    if kind != "directory":
        data, done = damaged_text(rng, [(guid, Members(entry)) for guid, entry in sessions])
    write(os.path.join(storage, METADATA), data, METADATA_AGE_SECS)
    if rng.random() < 0.25:
        done.append("each session has three blobs")
        for guid, extension in itertools.product(dict(sessions), ("json", "png", "txt")):
            path = os.path.join(storage, os.fsencode(f"{guid}.{extension}"))
            if not os.path.exists(path):
                write(path, b"t" * rng.choice((0, 500)), rng.choice((1e5, 0)))
    if kind != "text":
        place = Place(storage, outside, names, text)
        done += [rng.choice(DIRECTORY)(place, rng) for _ in range(rng.choice((1, 1, 2, 3, 6)))]
        if rng.random() < 0.02:
            done.append(read_only(place))
    return done


def shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:50]}... ({len(text)})"
