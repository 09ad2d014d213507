"""The text of metadata.json against Python's own json: the same inputs taken, the same members, the same bytes."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Optional

import pytest
from stores import new_guid

from storage_manager.store import document as document_module
from storage_manager.store.document import Document, NotJson, parse, reparse, visit_members

SPACES = ("", "", "", " ", "\n", "\n  ", "\t", "\r\n", "   ")
ODD_TEXTS = (
    "", "a", "naïve", "日本語", "🙂", "\ud83d", "\x7f", '"', "\\", "/", "\n", "\u2028", "},", "\n  },", '{"a": 1}',
    "// no comment", "é" * 30, "\x00", "\x1f", "\xa0", "\x85", "ÿ",
)  # fmt: skip


class Pairs(list[Any]):
    """The members of an object as they stand in the text, duplicates included."""


def plain(value: Any) -> Any:
    """`value` with Pairs as the dicts that they mean."""
    if isinstance(value, Pairs):
        return {key: plain(item) for key, item in value}
    return [plain(item) for item in value] if isinstance(value, list) else value


def pairs_of(data: bytes) -> list[tuple[str, Any]]:
    """Every member of the outermost object, as Python's own json reads them."""
    found = json.loads(data.decode(), object_pairs_hook=Pairs)
    assert isinstance(found, Pairs)
    return [(key, plain(value)) for key, value in found]


def random_value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(9 if depth < 3 else 6)
    if kind == 0:
        return rng.choice((None, True, False))
    if kind == 1:
        return rng.choice((0, -0.0, rng.randrange(-(10**6), 10**6), 10**30, rng.random(), 1e300, -2.5e-7))
    if kind < 6:
        return rng.choice(ODD_TEXTS)
    if kind == 6:
        return [random_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {random_key(rng): random_value(rng, depth + 1) for _ in range(rng.randrange(4))}


def random_key(rng: random.Random) -> str:
    return rng.choice((new_guid(rng), new_guid(rng), rng.choice(ODD_TEXTS)))


def random_entry(rng: random.Random) -> dict[str, Any]:
    entry = {"format": "json", "size": rng.randrange(10**6), "created_at": "2026-02-03T04:05:06.789012"}
    return {**entry, rng.choice(("url", "group")): rng.choice(ODD_TEXTS), "aliases": [random_value(rng, 2)]}


def random_members(rng: random.Random, count: int) -> list[tuple[str, Any]]:
    members: list[tuple[str, Any]] = []
    for _ in range(count):
        again = members and rng.random() < 0.1
        key = rng.choice(members)[0] if again else random_key(rng)
        members.append((key, random_entry(rng) if rng.random() < 0.7 else random_value(rng)))
    return members


def encoded(value: Any, indent: Any = None, ascii_only: bool = True) -> str:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    # A lone surrogate has no UTF-8.
    return json.dumps(value, indent=indent) if "\ud83d" in text else text


def as_the_client_writes(members: list[tuple[str, Any]], ascii_only: bool = True, indent: Any = 2) -> bytes:
    """One member a line as json.dump(..., indent=2) has it, duplicates included."""
    pieces = [encoded({key: value}, indent, ascii_only)[1:-1].rstrip("\n") for key, value in members]
    end = "\n" if indent is not None and members else ""
    return ("{" + ("," if indent is not None else ", ").join(pieces) + end + "}").encode()


def oddly_spaced(members: list[tuple[str, Any]], rng: random.Random) -> bytes:
    """The same with white space wherever JSON allows it, and some characters of keys escaped."""

    def space() -> str:
        return rng.choice(SPACES)

    pieces = []
    for key, value in members:
        name = encoded(key, None, rng.random() < 0.5)
        if rng.random() < 0.2 and key[:1].isalnum() and key.isascii():
            name = f'"\\u{ord(key[0]):04x}{name[2:]}'
        text = encoded(value, rng.choice((None, 2, "\t")), rng.random() < 0.5)
        pieces.append(f"{space()}{name}{space()}:{space()}{text}{space()}")
    return f"{space()}{{{','.join(pieces) or space()}}}{space()}".encode()


def documents(count: int, most: int = 12) -> Iterator[tuple[int, bytes]]:
    """(seed, text) of random objects in every layout."""
    for seed in range(count):
        rng = random.Random(seed)
        members = random_members(rng, rng.randrange(most + 1))
        layout = seed % 4
        if layout == 0:
            yield seed, as_the_client_writes(members)
        elif layout == 1:
            yield seed, as_the_client_writes(members, ascii_only=False)
        elif layout == 2:
            yield seed, as_the_client_writes(members, indent=None, ascii_only=rng.random() < 0.5)
        else:
            yield seed, oddly_spaced(members, rng)


@pytest.fixture(params=["whole", "tiny", "one byte"])
def windows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How much is decoded or rendered at a time; the tiny sizes put an edge into every part of a member."""
    sizes = {"tiny": (64, 16, 100, 50), "one byte": (1, 1, 1, 1)}.get(request.param)
    if sizes is not None:
        for name, size in zip(("_WINDOW_BYTES", "_SMALL_WINDOW_BYTES", "_BATCH_BYTES", "_SLICE_BYTES"), sizes):
            assert hasattr(document_module, name)
            monkeypatch.setattr(document_module, name, size)
    return str(request.param)


def visited(data: bytes) -> list[tuple[str, Any]]:
    shown: list[tuple[str, Any]] = []
    visit_members(data, lambda key, value: shown.append((key, value)))
    return shown


def pieces_of(document: Document) -> list[bytes]:
    return [document.piece(index) for index in range(len(document.keys))]


def rendered(document: Document, drop: Any = (), replace: Any = None, add: Any = ()) -> bytes:
    return b"".join(document.rendered(drop, replace or {}, list(add)))


def takes(read: Callable[[bytes], object], data: bytes) -> bool:
    """Whether `read` takes the data; any exception but NotJson is a failure."""
    try:
        read(data)
    except NotJson:
        return False
    return True


def own_json_takes(data: bytes) -> bool:
    try:
        return isinstance(json.loads(data.decode()), dict)
    except (ValueError, RecursionError):
        return False


def reread(data: bytes) -> Document:
    """reparse() of something unlike what it knows."""
    return reparse(data, KNOWN)


KNOWN = parse(as_the_client_writes(random_members(random.Random(99), 5))).fingerprint()
READERS: list[Callable[[bytes], object]] = [parse, visited, reread]


# --- Reading


def test_every_member_is_found_with_its_key_and_value(windows: str) -> None:
    for seed, data in documents(1200):
        expected = pairs_of(data)
        document = parse(data)
        assert document.keys == [key for key, _ in expected], seed
        assert [document.value(index) for index in range(len(expected))] == [value for _, value in expected], seed
        assert list(document.fresh) == list(range(len(expected))), seed


def test_pieces_joined_by_commas_give_the_text_back(windows: str) -> None:
    for seed, data in documents(600):
        document = parse(data)
        for piece, (key, value) in zip(pieces_of(document), pairs_of(data)):
            assert json.loads(b"{" + piece + b"}") == {key: value}, seed


def test_a_visitor_is_shown_what_parse_finds_and_the_last_member_of_a_key_last(windows: str) -> None:
    for seed, data in documents(1200):
        expected = pairs_of(data)
        shown = visited(data)
        assert dict(shown) == dict(expected), seed
        assert all(member in expected for member in shown), seed
        if len(dict(expected)) == len(expected):
            assert shown == expected, seed


def test_the_members_of_a_store_larger_than_any_window_are_all_shown_in_order() -> None:
    rng = random.Random(5)
    members = [(new_guid(rng), random_entry(rng)) for _ in range(12_000)]
    members[7000] = (members[7000][0], {"deep": {"deeper": {"x": "\n  },"}}})
    members[9000] = (members[9000][0], "no object")
    for ascii_only in (True, False):
        data = as_the_client_writes(members, ascii_only)
        assert len(data) > 2 * document_module._WINDOW_BYTES
        assert visited(data) == members
        assert parse(data).keys == [key for key, _ in members]


def test_a_member_larger_than_any_window_is_read(windows: str) -> None:
    long = "é" * (3_000_000 if windows == "whole" else 3_000)
    data = as_the_client_writes([("a", 1), ("long", {"text": long}), ("b", 2)], ascii_only=False)
    document = parse(data)
    assert document.keys == ["a", "long", "b"]
    assert document.value(1) == {"text": long}
    assert dict(visited(data))["long"] == {"text": long}
    assert reparse(data, KNOWN).keys == document.keys


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999", "-0", "1E+2", "-0.0"])
def test_numbers_are_what_python_takes_for_numbers(text: str, windows: str) -> None:
    data = f'{{"x": {text}, "y": {text}}}'.encode()
    expected = json.loads(data)["x"]
    for value in (parse(data).value(0), visited(data)[0][1], reread(data).value(1)):
        assert value == expected or (math.isnan(value) and math.isnan(expected))


@pytest.mark.parametrize("data", [b"{}", b" { } ", b"\n{\r\n\t}\n", b"{" + b" " * 100 + b"}"])
def test_an_empty_object_has_no_members(data: bytes, windows: str) -> None:
    for read in (parse, reread):
        assert read(data).keys == []
    assert visited(data) == []


# --- Refusing


GARBAGE = [
    b"", b" ", b"\n\n", b"null", b"[]", b'[{"a": 1}]', b'"text"', b"1", b"true", b"{", b"}", b"{{}}", b"{}}", b"{}{}",
    b"{} x", b"{},", b"{,}", b'{"a"}', b'{"a":}', b'{"a" 1}', b'{"a": 1,}', b'{"a": 1,,"b": 2}', b'{,"a": 1}',
    b'{"a": 1 "b": 2}', b'{"a": 1; "b": 2}', b"{'a': 1}", b"{a: 1}", b"{1: 2}", b'{"a": 01}', b'{"a": +1}',
    b'{"a": .5}', b'{"a": 1.}', b'{"a": 1e}', b'{"a": -}', b'{"a": 0x1}', b'{"a": nan}', b'{"a": True}', b'{"a": nul}',
    b'{"a": "\n"}', b'{"a\tb": 1}', b'{"a": "\x00"}', b'{"a": "\\x41"}', b'{"a": "\\u12"}', b'{"\\u12g4": 1}',
    b'{"a": "b', b'{"a": "b\\', b'{"a": [1,]}', b'{"a": [1', b'{"a": {"b": 1}', b'{"a": {"b": 1,}}', b'{"a": {"b" 1}}',
    b'{"a": 1}\x00', b'\x00{"a": 1}', b"\x00" * 64, b'{"a": 1} // end', b'/* x */ {"a": 1}', b'{"a": 1}\x0b',
    b'\x0c{"a": 1}', b'{"a":\xc2\xa01}', '{"a": 1}\u2028'.encode(), '{"a":\u00a01}'.encode(), '{"a": \u0661}'.encode(),
    '\ufeff{"a": 1}'.encode(), b'{"a": 1}\xef\xbb\xbf', b'{"a": "\xff"}', b'{"a": "\xc3"}', b'{"\xe9": 1}',
    b"\xff\xfe{\x00", b'{"a": "\xed\xa0\x80"}', b'{"a": "\xc0\x80"}', b'{"a": 1}\x80', '{"a": 1}'.encode("utf-16"),
    '{"é": 1}'.encode("utf-32"), b'{\n  "a": {\n  },', b'{\n  "a": {\n  },\n}', b'{\n  "a": {\n  },\n  "b": {\n  },}',
    b"{\n  },\n}", b"{\n  },", b'{"a": "\n  },"}', b'{"a": 1}, {"b": {\n  },\n  "c": {\n  }}',
]  # fmt: skip


@pytest.mark.parametrize("data", GARBAGE, ids=lambda data: ascii(data)[:40])
def test_what_is_not_one_complete_object_is_refused(data: bytes, windows: str) -> None:
    assert not own_json_takes(data)
    for read in READERS:
        with pytest.raises(NotJson) as refusal:
            read(data)
        assert str(refusal.value)


def test_every_truncation_of_a_document_is_refused(windows: str) -> None:
    rng = random.Random(1)
    members = [("é", {"x": "日本語"}), *random_members(rng, 2), ("b", {"size": -1.5e10, "list": [True, None, "\\"]})]
    layouts = [
        as_the_client_writes(members),
        as_the_client_writes(members, ascii_only=False),
        as_the_client_writes(members, indent=None),
        oddly_spaced(members, rng).rstrip(),
    ]
    for data in layouts:
        known = [parse(data).fingerprint(is_current=is_current) for is_current in (False, True)]
        for length in range(len(data)):
            torn = data[:length]
            assert not any(takes(read, torn) for read in READERS), torn
            assert not any(takes(partial(reparse, known=one), torn) for one in known), torn


def test_a_large_store_torn_anywhere_is_refused() -> None:
    rng = random.Random(2)
    data = as_the_client_writes([(new_guid(rng), random_entry(rng)) for _ in range(8_000)])
    known = parse(data).fingerprint()
    window, batch = document_module._WINDOW_BYTES, document_module._BATCH_BYTES
    cuts = [len(data) - 1, len(data) - 2, len(data) - 3, window, window + 1, window - 1, batch, batch + 1, batch + 2]
    cuts += [data.rfind(b"\n  },", 0, len(data) // 2) + extra for extra in range(6)]
    for cut in cuts + [rng.randrange(len(data)) for _ in range(10)]:
        torn = data[:cut]
        assert not any(takes(read, torn) for read in READERS), cut
        assert not takes(partial(reparse, known=known), torn), cut


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":'])
def test_too_deep_a_nesting_is_refused_not_a_crash(opening: bytes) -> None:
    """However it ends: torn, closed, or in a member that others surround."""
    closing = opening.replace(b'"a":', b"").translate(bytes.maketrans(b"[{", b"]}"))[::-1]
    deep = opening * 100_000
    for data in (
        b'{"x": ' + deep,
        b'{"x": ' + deep + b"1" + closing * 100_000 + b"}",
        b'{\n  "w": {\n  },\n  "x": ' + deep + b"1" + closing * 100_000 + b',\n  "y": {\n  }\n}',
    ):
        for read in READERS:
            assert not takes(read, data)


def test_nesting_that_python_reads_is_read() -> None:
    data = b'{"x": ' + b"[" * 100 + b"]" * 100 + b', "y": {\n  },\n  "z": 1}'
    assert all(takes(read, data) for read in READERS)


@pytest.mark.parametrize("digits", [40, 5_000, 1_000_000])
@pytest.mark.parametrize("sign", ["", "-"])
def test_an_integer_of_any_length_is_no_reason_to_refuse_a_store(digits: int, sign: str) -> None:
    data = ('{\n  "a": {\n    "size": ' + sign + "9" * digits + '\n  },\n  "b": {\n    "size": 1\n  }\n}').encode()
    document = parse(data)
    assert document.keys == ["a", "b"]
    assert document.value(1) == {"size": 1}
    assert [key for key, _ in visited(data)] == ["a", "b"]
    assert dict(visited(data))["b"] == {"size": 1}
    assert reparse(data, document.fingerprint()).keys == ["a", "b"]
    assert rendered(document, drop={"b"}).endswith(b"9\n  }\n}")
    if digits > 4_300:
        assert document.value(0) == {"size": None}
        assert dict(visited(data))["a"] == {"size": None}


def test_everything_is_taken_or_refused_as_python_does(windows: str) -> None:
    """Documents damaged at random places: a byte changed, removed, put in, or a part repeated."""
    refused = 0
    for seed, whole in documents(1500, most=4):
        rng = random.Random(-seed)
        data = bytearray(whole)
        for _ in range(rng.randrange(1, 3)):
            place = rng.randrange(len(data) + 1)
            edit = rng.randrange(4)
            if edit == 0:
                data[place : place + 1] = rng.choice((b"{", b"}", b",", b'"', b":", b"\\", b"\n", b"9", b"\xc3", b"-"))
            elif edit == 1:
                del data[place : place + rng.randrange(1, 4)]
            elif edit == 2:
                data[place:place] = rng.choice((b" ", b",", b"}", b"{", b'"', b"1", b"\n  },", b"[]", b"\xa0", b"\x00"))
            else:
                data[place:place] = data[max(0, place - rng.randrange(20)) : place]
        damaged = bytes(data)
        expected = own_json_takes(damaged)
        refused += not expected
        for read in READERS:
            assert takes(read, damaged) == expected, (seed, damaged)
        for is_current in (False, True):
            known = parse(whole).fingerprint(is_current=is_current)
            assert takes(partial(reparse, known=known), damaged) == expected, (seed, damaged)
        if expected:
            assert dict(visited(damaged)) == json.loads(damaged.decode()), seed
            assert parse(damaged).keys == [key for key, _ in pairs_of(damaged)], seed
    assert 300 < refused < 1450


# --- Rendering


def test_rendering_without_changes_is_the_identity(windows: str) -> None:
    for seed, data in documents(600):
        document = parse(data)
        if document.keys:
            assert rendered(document) == data, seed
        else:
            assert json.loads(rendered(document)) == {}, seed


def test_what_is_rendered_is_never_copied_as_a_whole() -> None:
    data = json.dumps({str(number): "x" * 1000 for number in range(3000)}, indent=2).encode()
    parts = list(parse(data).rendered({"0"}, {}, ()))
    assert max(map(len, parts)) == 1 << 20
    assert len(b"".join(parts)) == len(data) - len(json.dumps({"0": "x" * 1000})) - 2


def test_survivors_keep_their_exact_bytes(windows: str) -> None:
    for seed, data in documents(1200):
        rng = random.Random(seed)
        document = parse(data)
        drop = {key for key in document.keys if rng.random() < rng.choice((0.1, 0.5, 0.9))} | {"not there"}
        text = rendered(document, drop)
        survivors = [piece for key, piece in zip(document.keys, pieces_of(document)) if key not in drop]
        assert pieces_of(parse(text)) == survivors, seed
        assert pairs_of(text) == [(key, value) for key, value in pairs_of(data) if key not in drop], seed
        # What is before the first and behind the last member stays as well.
        assert text.startswith(data[: data.index(b"{") + 1]), seed
        assert text.endswith(data[data.rindex(b"}") :]), seed


def test_dropping_from_what_the_client_wrote_gives_what_the_client_would_write() -> None:
    for seed in range(200):
        rng = random.Random(seed)
        entries = {new_guid(rng): random_entry(rng) for _ in range(rng.randrange(1, 12))}
        drop = {key for key in entries if rng.random() < 0.4}
        left = {key: value for key, value in entries.items() if key not in drop}
        text = rendered(parse(json.dumps(entries, indent=2).encode()), drop)
        assert text == json.dumps(left, indent=2).encode(), seed


def test_every_member_of_a_dropped_key_goes() -> None:
    document = parse(b'{"a": {"n": 1}, "b": 2, "a": {"n": 3}}')
    assert rendered(document, {"a"}) == b'{ "b": 2}'


def test_a_key_is_dropped_however_it_is_escaped() -> None:
    document = parse(b'{"\\u0061bc": 1, "abc": 2, "\\u00e9": 3, "\xc3\xa9": 4, "z": 5}')
    assert document.keys == ["abc", "abc", "é", "é", "z"]
    assert rendered(document, {"abc", "é"}) == b'{ "z": 5}'


def test_replaced_members_stand_where_they_stood_and_added_ones_at_the_end() -> None:
    document = parse(b'{\n  "a": 1,\n  "b": 2,\n  "c": 3\n}\n')
    text = rendered(document, {"c"}, {"a": b'\n  "a": {"new": true}'}, [b'\n  "d": 4', b'\n  "e": 5'])
    assert text == b'{\n  "a": {"new": true},\n  "b": 2,\n  "d": 4,\n  "e": 5\n}\n'


@pytest.mark.parametrize("data", [b"{}", b"{}\n", b" {  } ", b'{"a": 1}', b'{\n  "a": {}\n}'])
def test_members_can_be_added_when_none_is_left(data: bytes) -> None:
    document = parse(data)
    text = rendered(document, set(document.keys), {}, [b'\n  "x": {"n": 1}', b'\n  "y": 2'])
    assert pairs_of(text) == [("x", {"n": 1}), ("y", 2)]
    assert json.loads(rendered(document, set(document.keys))) == {}


def test_pieces_of_one_document_fit_into_another() -> None:
    for seed, data in documents(400):
        rng = random.Random(seed)
        document, other = parse(data), parse(as_the_client_writes(random_members(rng, 3), ascii_only=False))
        drop = {key for key in document.keys if rng.random() < 0.5}
        replaced = {key: other.piece(0) for key in document.keys if rng.random() < 0.3}
        add = pieces_of(other)[1:]
        survivors = [
            replaced.get(key, piece)
            for key, piece in zip(document.keys, pieces_of(document))
            if key not in drop or key in replaced
        ]
        assert pieces_of(parse(rendered(document, drop, replaced, add))) == [*survivors, *add], seed


# --- Reading a later version


def edited(members: list[tuple[str, Any]], rng: random.Random) -> list[tuple[str, Any]]:
    """A later version, as a client may leave it: members added, deleted, changed, moved, written twice."""
    members = list(members)
    for _ in range(rng.randrange(5)):
        edit = rng.randrange(6)
        if edit == 0 or not members:
            members.extend(random_members(rng, rng.randrange(1, 4)))
            continue
        place = rng.randrange(len(members))
        if edit == 1:
            del members[place : place + rng.randrange(1, 4)]
        elif edit == 2:
            members[place] = (members[place][0], random_value(rng))
        elif edit == 3:
            members.insert(rng.randrange(len(members)), members.pop(place))
        elif edit == 4:
            members.insert(rng.randrange(len(members) + 1), members[place])
        else:
            members[place:place] = random_members(rng, 2)
    return members


def same(one: Document, other: Document) -> bool:
    return (one.data, one.keys, pieces_of(one), rendered(one, {"x"})) == (
        other.data, other.keys, pieces_of(other), rendered(other, {"x"})
    )  # fmt: skip


def test_reading_any_later_version_again_is_reading_it(windows: str) -> None:
    for seed in range(1200):
        rng = random.Random(seed)
        members = random_members(rng, rng.randrange(10))
        later = edited(members, rng)
        layout = rng.randrange(4)
        if layout == 0:
            before, after = as_the_client_writes(members), as_the_client_writes(later)
        elif layout == 1:
            before, after = as_the_client_writes(members, False), as_the_client_writes(later, False)
        elif layout == 2:
            before, after = as_the_client_writes(members), as_the_client_writes(later, indent=None)
        else:
            before, after = (oddly_spaced(version, random.Random(seed)) for version in (members, later))
        old = parse(before)
        without = {key for key in old.keys if rng.random() < 0.2}
        for known in (
            old.fingerprint(), old.fingerprint(without), old.fingerprint((), True), old.fingerprint(without, True)
        ):  # fmt: skip
            again = reparse(after, known)
            assert same(again, parse(after)), seed
            recognised = set(range(len(again.keys))) - set(again.fresh)
            before_pieces = set(pieces_of(old))
            assert all(again.piece(index) in before_pieces for index in recognised), seed


def test_what_has_been_rendered_is_recognised_whole() -> None:
    rng = random.Random(3)
    members = [(new_guid(rng), random_entry(rng)) for _ in range(50)]
    document = parse(as_the_client_writes(members))
    drop = {key for key, _ in members[::3]}
    again = reparse(rendered(document, drop), document.fingerprint(without=drop))
    assert again.keys == [key for key, _ in members if key not in drop]
    assert list(again.fresh) == []


def test_only_what_has_changed_is_decoded() -> None:
    rng = random.Random(4)
    members = [(new_guid(rng), random_entry(rng)) for _ in range(50)]
    known = parse(as_the_client_writes(members)).fingerprint()
    changed = list(members)
    changed[10] = (members[10][0], {**members[10][1], "aliases": ["latest"]})
    del changed[30:35]
    changed.append((new_guid(rng), random_entry(rng)))
    again = reparse(as_the_client_writes(changed), known)
    fresh = [again.keys[index] for index in again.fresh]
    assert fresh == [members[10][0], changed[-1][0]]


@pytest.mark.parametrize("indent", [2, None])
def test_of_a_document_that_has_grown_only_the_new_members_are_fresh(indent: int | None) -> None:
    """And those that were not to count as known."""
    rng = random.Random(5)
    members = [(new_guid(rng), random_entry(rng)) for _ in range(50)]
    before = parse(as_the_client_writes(members[:40], indent=indent))
    data = as_the_client_writes(members, indent=indent)
    for is_current in (False, True):
        again = reparse(data, before.fingerprint({before.keys[7]}, is_current))
        assert [again.keys[index] for index in again.fresh] == [before.keys[7], *(key for key, _ in members[40:])]
        assert same(again, parse(data))


def test_the_text_of_a_large_document_is_not_kept() -> None:
    entry = {"text": "x" * 1000}
    small, large = (parse(as_the_client_writes([(str(n), entry) for n in range(count)])) for count in (10, 5000))
    assert small.fingerprint(is_current=True).document is not None
    assert large.fingerprint(is_current=True).document is None
    assert small.fingerprint().document is None


def test_a_number_that_grew_a_digit_is_not_mistaken_for_the_old_one() -> None:
    for after in (b'{"a": %b, "b": "x"}', b'{"b": "x", "a": %b}'):
        for is_current in (False, True):
            known = parse(after % b"1").fingerprint(is_current=is_current)
            again = reparse(after % b"12", known)
            assert {key: again.value(index) for index, key in enumerate(again.keys)} == {"a": 12, "b": "x"}
            assert takes(partial(reparse, known=known), after % b"1.5")
            assert not takes(partial(reparse, known=known), after % b"1x")


@pytest.mark.parametrize("behind", [b"", b",", b" ,", b"x", b"}}", b"}x", b"{", b'"b": 1}', b"},", b"}\x00", b"}\xff"])
def test_a_recognised_member_does_not_excuse_what_follows_it(behind: bytes) -> None:
    data = b'{"a": {"n": 1}' + behind
    assert not own_json_takes(data)
    for is_current in (False, True):
        known = parse(b'{"a": {"n": 1}}').fingerprint(is_current=is_current)
        assert not takes(partial(reparse, known=known), data)


class Watched(bytes):
    """Bytes that count how much of them is copied."""

    copied = 0

    def __getitem__(self, key: Any) -> Any:
        part = super().__getitem__(key)
        if isinstance(part, bytes):
            Watched.copied += len(part)
        return part


@pytest.mark.parametrize("comma", [",", " ,", "\n,"])
def test_reading_again_takes_time_in_proportion_wherever_the_commas_stand(comma: str) -> None:
    rng = random.Random(6)
    data = ("{" + comma.join(json.dumps({new_guid(rng): random_entry(rng)})[1:-1] for _ in range(500)) + "}").encode()
    known = parse(data).fingerprint()
    Watched.copied = 0
    assert len(reparse(Watched(data), known).keys) == 500
    assert Watched.copied < 10 * len(data)


def test_a_fingerprint_keeps_no_text() -> None:
    fingerprint = parse(b'{"a": {"token": "secret"}, "b": 2}').fingerprint()
    assert list(fingerprint.keys) == ["a", "b"]
    assert b"secret" not in repr(fingerprint).encode()


@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("indent", [None, 1, 2, 4])
def test_entries_in_every_common_spelling_are_decoded_many_at_a_time(
    indent: Optional[int], ascii_only: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One at a time is several times slower; only what follows the last whole batch is read so."""
    entries = {
        f"{number:08x}-0000-4000-8000-000000000000": {"format": "json", "group": "grün", "more": {"a": [number, {}]}}
        for number in range(8000)
    }
    data = as_the_client_writes(list(entries.items()), indent=indent, ascii_only=ascii_only)
    left: list[int] = []
    careful = document_module._parse_from

    def spy(data: bytes, base: int, done: bool, visit: Any) -> Any:
        left.append(len(data) - base)
        return careful(data, base, done, visit)

    monkeypatch.setattr(document_module, "_parse_from", spy)
    assert visited(data) == list(entries.items())
    assert left[0] < document_module._BATCH_BYTES < len(data) / 4
