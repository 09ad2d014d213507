"""One entry: what its members mean, what makes it corrupt, and that nothing in it makes the reader fail."""

from __future__ import annotations

import math
import random
from datetime import datetime, timedelta, timezone
from typing import Any, Optional

import pytest

from storage_manager.base.times import from_timestamp, parse_time, utc_text
from storage_manager.store.entry import NOT_SEEN, entry_visitor
from storage_manager.store.names import is_blob_name, is_format, is_guid
from storage_manager.store.snapshot import Session

GUID = "5d0c8f0e-1234-4abc-9def-0123456789ab"
WHEN = "2026-02-03T04:05:06.789012"
MOMENT = datetime(2026, 2, 3, 4, 5, 6, 789012)
SECOND = datetime(2026, 2, 3, 4, 5, 6)


def entry(**changes: Any) -> dict[str, Any]:
    """An entry as the client writes it; a change to `...` leaves the member out."""
    members = {"format": "json", "size": 2048, "created_at": WHEN, "group": "research", **changes}
    return {key: value for key, value in members.items() if value is not ...}


def short(value: object) -> str:
    """A test's name for a value of any length."""
    return ascii(value)[:40]


def read(key: str, value: Any) -> tuple[Optional[Session], Optional[str]]:
    """What the visitor makes of an entry whose blob is not there: a session, or what is wrong."""
    sessions: list[Session] = []
    problems: list[tuple[str, str]] = []
    visit = entry_visitor(
        lambda name, default: default,
        problems.append,
        lambda key, what: problems.append((key, what)) if isinstance(what, str) else sessions.append(what),
    )
    visit(key, value)
    assert len(sessions) + len(problems) == 1
    if problems:
        assert problems[0][0] == key
        return None, problems[0][1]
    return sessions[0], None


def read_entry(key: str, value: Any) -> Optional[Session]:
    return read(key, value)[0]


def problem_of(key: str, value: Any) -> Optional[str]:
    return read(key, value)[1]


# --- Times


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        (WHEN, MOMENT),
        ("2026-02-03T04:05:06", SECOND),
        ("2026-02-03T04:05:06Z", SECOND),
        ("2026-02-03T04:05:06z", SECOND),
        ("2026-02-03t04:05:06z", SECOND),
        ("2026-02-03T04:05:06.789012Z", MOMENT),
        ("2026-02-03 04:05:06", SECOND),
        ("2026-02-03 04:05:06.789012", MOMENT),
        ("2026-02-03 04:05:06.789012 +00:00", MOMENT),
        ("2026-02-03T04:05:06+00:00", SECOND),
        ("2026-02-03T04:05:06-00:00", SECOND),
        ("2026-02-03T06:05:06+02:00", SECOND),
        ("2026-02-03T06:05:06+0200", SECOND),
        ("2026-02-03T06:05:06+02", SECOND),
        ("2026-02-02T23:35:06-04:30", SECOND),
        ("2026-02-03T04:05:36+00:00:30", SECOND),
        ("2026-02-04T04:04:06+23:59", SECOND),
        ("2026-02-03T04:05", datetime(2026, 2, 3, 4, 5)),
        ("2026-02-03T04:05Z", datetime(2026, 2, 3, 4, 5)),
        ("2026-02-03", datetime(2026, 2, 3)),
        ("20260203", datetime(2026, 2, 3)),
        ("20260203T040506", SECOND),
        ("20260203T040506Z", SECOND),
        ("20260203T040506.789012+0000", MOMENT),
        ("20260203T0605+0200", datetime(2026, 2, 3, 4, 5)),
        ("2026-02-03T04:05:06,789012", MOMENT),
        ("2026-02-03T04:05:06,5Z", SECOND.replace(microsecond=500_000)),
        ("  2026-02-03T04:05:06\n", SECOND),
        ("2026-02-02T24:00:00", datetime(2026, 2, 3)),
        ("2026-02-02T24:00", datetime(2026, 2, 3)),
        ("2026-02-02T24:00:00.000000", datetime(2026, 2, 3)),
        ("2026-12-31T24:00:00Z", datetime(2027, 1, 1)),
        ("2024-02-29T00:00:00", datetime(2024, 2, 29)),
        ("0001-01-01T00:00:00", datetime.min),
        ("9999-12-31T23:59:59.999999", datetime.max),
        ("9999-12-31T23:59:59.999999Z", datetime.max),
        ("0001-01-01T00:00:00-01:00", datetime(1, 1, 1, 1)),
        ("9999-12-31T23:59:59+01:00", datetime(9999, 12, 31, 22, 59, 59)),
    ],
)
def test_a_time_is_read_as_naive_utc_in_every_form_of_iso_8601(text: str, moment: datetime) -> None:
    assert parse_time(text) == moment


@pytest.mark.parametrize("digits", range(1, 10))
@pytest.mark.parametrize("tail", ["", "Z", "+00:00"])
def test_fractions_of_any_length_are_cut_off_at_microseconds(digits: int, tail: str) -> None:
    fraction = "987654321"[:digits]
    expected = SECOND.replace(microsecond=int(fraction[:6].ljust(6, "0")))
    assert parse_time(f"2026-02-03T04:05:06.{fraction}{tail}") == expected
    assert parse_time(f"2026-02-03T04:05:06,{fraction}{tail}") == expected


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "yesterday", "None", "nan", "1767000000", "1767000000.5", "2026", "2026-02", "2026-2-3", "26-02-03",
        "2026-02-30", "2026-00-01", "2026-13-01", "2025-02-29T00:00:00", "0000-01-01T00:00:00", "10000-01-01T00:00:00",
        "2026-02-03T", "2026-02-03T04", "2026-02-03T04Z", "2026-02-03T4:05:06", "2026-02-03T25:00:00",
        "2026-02-03T04:60:00", "2026-02-03T04:05:60", "2026-02-03T04:05:61", "2026-02-03T24:00:01",
        "2026-02-03T24:01:00", "2026-02-03T24:00:00.000001", "2026-02-03T04:05:06.", "2026-02-03T04:05:06.Z",
        "2026-02-03T04:05:06+", "2026-02-03T04:05:06+2", "2026-02-03T04:05:06+24:00", "2026-02-03T04:05:06+01:60",
        "2026-02-03T04:05:06 UTC", "2026-02-03T04:05:06ZZ", "2026-02-03T04:05:06Z+01:00", "2026-02-03_04:05:06",
        "2026-W06-2", "2026-034", "+2026-02-03T04:05:06", "-2026-02-03T04:05:06", "2026-02-03T04:05:06\x00",
        "2026-02-03T-4:05:06", "2026-02-03T04:05:06.1e5", "2026-02-03T 4: 5: 6", "2026/02/03T04:05:06",
        "9999-12-31T24:00:00", "0001-01-01T00:00:00+00:01", "9999-12-31T23:59:59-00:01",
        "9999-12-31T23:59:59.999999-23:59", "٢٠٢٦-٠٢-٠٣T٠٤:٠٥:٠٦", "2026-02-03T04:05:0٦",
        "２０２６-02-03T04:05:06", "2026-02-03T04:05:06.78901²",
        "\ud800" * 19, "2" * 100_000,
    ],
    ids=short,
)  # fmt: skip
def test_what_is_no_time_is_none(text: str) -> None:
    assert parse_time(text) is None


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        False,
        0,
        1,
        1767000000,
        1767000000.5,
        math.nan,
        math.inf,
        10**30,
        [],
        [WHEN],
        {},
        {"at": WHEN},
        b"2026",
    ],
)
def test_a_time_that_is_no_text_is_none(value: Any) -> None:
    assert parse_time(value) is None


@pytest.mark.parametrize(
    "text",
    ["2026-01-02T03.12345", "2026-01-02T03:04.12", "2026-01-02T0304.123", "2026-01-02T03:04.123456789",
     "2026-02-03T04:05:06:789012", "2026-01-02T030405.1", "2026-01-02T0304:5.12",
     "2026-01-02T03:04:05+0102", "2026-01-02T03:04:05.123+0"],
)  # fmt: skip
def test_a_time_of_the_clients_length_means_what_it_means_at_any_other_length(text: str) -> None:
    """Texts of 19 and 26 characters are read by Python's own reader, which differs from version to version."""
    assert parse_time(text) == parse_time(f" {text} ")


def test_every_shape_of_the_clients_length_means_what_it_means_at_any_other_length() -> None:
    rng = random.Random(7)
    for _ in range(20_000):
        text = list(rng.choice((WHEN, WHEN[:19], "2026-02-03T04:05:06.7890Z", "2026-02-03T04:05:06+01:00")))
        for _ in range(rng.randrange(1, 4)):
            place = rng.randrange(11, len(text) + 1)
            edit = rng.randrange(3)
            if edit == 0:
                text[place:place] = rng.choice("0123459:.,+-Zz T")
            elif edit == 1:
                del text[place : place + 1]
            else:
                text[place : place + 1] = rng.choice("0123459:.,+-Zz T")
        at_length = "".join(text).strip().ljust(rng.choice((19, 26)), rng.choice("05"))[:26]
        assert parse_time(at_length) == parse_time(f" {at_length} "), at_length


def test_the_clients_own_times_survive_the_round_trip() -> None:
    rng = random.Random(8)
    for _ in range(2_000):
        moment = datetime.min + timedelta(days=rng.randrange(3_652_059), microseconds=rng.randrange(86_400 * 10**6))
        moment = moment.replace(microsecond=rng.choice((0, moment.microsecond)))
        assert parse_time(moment.isoformat()) == moment
        assert parse_time(moment.isoformat(" ")) == moment
        assert parse_time(utc_text(moment)) == moment


def test_offsets_are_taken_off() -> None:
    rng = random.Random(9)
    for _ in range(2_000):
        zone = timezone(timedelta(minutes=rng.randrange(-1439, 1440)))
        moment = datetime(2026, 1, 1, tzinfo=zone) + timedelta(microseconds=rng.randrange(10**15))
        assert parse_time(moment.isoformat()) == moment.astimezone(timezone.utc).replace(tzinfo=None)


def test_parsed_times_are_naive_and_compare() -> None:
    texts = [WHEN, "2026-02-03T04:05:06Z", "2026-02-03T04:05:06+05:00", "2026-02-03"]
    moments = [parse_time(text) for text in texts]
    assert all(moment is not None and moment.tzinfo is None for moment in moments)


# --- Keys, formats, sizes, groups


def test_an_entry_of_the_client_is_understood() -> None:
    assert read_entry(GUID, entry(url="https://example.org", aliases=["latest"])) == Session(
        MOMENT, GUID, "json", "research", 2048, NOT_SEEN
    )


def test_an_entry_without_group_and_size_is_understood() -> None:
    session = read_entry(GUID, entry(group=..., size=...))
    assert session is not None
    assert (session.group, session.declared_bytes) == (None, None)


def test_a_session_knows_its_blobs_name() -> None:
    session = read_entry(GUID, entry(format="png"))
    assert session is not None
    assert session.blob_name == f"{GUID}.png"


def test_the_guid_stays_as_the_client_spelt_it() -> None:
    session = read_entry(GUID.upper(), entry())
    assert session is not None
    assert session.blob_name == f"{GUID.upper()}.json"


BAD_KEYS = [
    "", "x", "latest", GUID[:-1], GUID + "0", GUID.replace("-", ""), GUID.replace("-", "_"), f"{{{GUID}}}",
    f"urn:uuid:{GUID}", f" {GUID}", f"{GUID}\n", f"{GUID}\x00", f"{GUID[:-1]}\x00", f"{GUID[:-1]}g", f"{GUID[:-1]}٣",
    f"../{GUID}", f"/{GUID}", "../../../../etc/passwd", "..", ".", "metadata", ".prune_size.lock", "/etc/passwd",
    f"{GUID}.json", f"{GUID}/x", "a" * 1_000_000, "\ud800", "５" + GUID[1:], "\x1b[2J",
]  # fmt: skip


@pytest.mark.parametrize("key", BAD_KEYS, ids=short)
def test_a_key_that_is_no_uuid_makes_the_entry_corrupt(key: str) -> None:
    assert is_guid(key) is None
    assert problem_of(key, entry()) == "its key is not a UUID"
    assert read_entry(key, entry()) is None


BAD_FORMATS = [
    "", ".", "..", "../x", "../../etc/passwd", "/etc/passwd", "a/b", "json/../x", "tar.gz", ".json", "json.", "JSON",
    "Json", " json", "json ", "json\n", "json\x00", "\x00", "j\x00son", "a" * 33, "a" * 1_000_000, "-rf", "_x", "+x",
    "é", "ｊson", "js*n", "js?n", "~", "\ud800", "\x1b[2J", "a\\b", "١",
]  # fmt: skip


@pytest.mark.parametrize("extension", BAD_FORMATS, ids=short)
def test_a_format_that_is_no_plain_extension_makes_the_entry_corrupt(extension: str) -> None:
    assert is_format(extension) is None
    assert "format" in (problem_of(GUID, entry(format=extension)) or "")


@pytest.mark.parametrize("extension", [..., None, 0, 1.5, True, [], ["json"], {}, {"a": "json"}])
def test_a_format_that_is_no_text_makes_the_entry_corrupt(extension: Any) -> None:
    assert "format" in (problem_of(GUID, entry(format=extension)) or "")


@pytest.mark.parametrize("extension", ["json", "txt", "png", "mp4", "7z", "a", "a" * 32, "svg+xml", "x-tar", "a_b"])
def test_plain_extensions_are_understood(extension: str) -> None:
    session = read_entry(GUID, entry(format=extension))
    assert session is not None
    assert is_blob_name(session.blob_name)


@pytest.mark.parametrize("value", [None, True, 0, -1, 1.5, math.nan, "", "json", [], [entry()], 10**40])
def test_an_entry_that_is_no_object_is_corrupt(value: Any) -> None:
    assert problem_of(GUID, value) == "it is not an object"
    assert read_entry(GUID, value) is None


@pytest.mark.parametrize(
    "created_at", [..., None, "", "soon", 1767000000, [], {}, True, "2026-02-30", "9999-12-31T24:00"]
)
def test_an_entry_without_a_usable_time_is_corrupt(created_at: Any) -> None:
    assert "created_at" in (problem_of(GUID, entry(created_at=created_at)) or "")


@pytest.mark.parametrize(
    ("size", "declared"),
    [
        (0, 0), (1, 1), (2048, 2048), (2**62, 2**62), (2**64, None),
        (..., None), (None, None), (-1, None), (-(10**40), None),
        ("2048", None), ("", None), (True, None), (False, None), (1.5, None), (2048.0, None), (math.nan, None),
        (math.inf, None), ([], None), ({}, None),
    ],
)  # fmt: skip
def test_a_declared_size_counts_only_when_it_makes_sense(size: Any, declared: Optional[int]) -> None:
    session = read_entry(GUID, entry(size=size))
    assert session is not None
    assert session.declared_bytes == declared
    assert type(session.declared_bytes) is not bool


@pytest.mark.parametrize("digits", [32, 400, 4000])
def test_a_declared_size_beyond_any_file_system_makes_no_sense(digits: int) -> None:
    """As a number it would break whoever adds and shows sizes."""
    session = read_entry(GUID, entry(size=10**digits))
    assert session is not None
    assert session.declared_bytes is None


@pytest.mark.parametrize(
    ("group", "expected"),
    [("research", "research"), ("", ""), ("café", "café"), (" a ", " a "), ("\ud800", "\ud800"), (..., None),
     (None, None), (0, None), (True, None), ([], None), (["a"], None), ({}, None)],
)  # fmt: skip
def test_a_group_is_text_or_none(group: Any, expected: Optional[str]) -> None:
    session = read_entry(GUID, entry(group=group))
    assert session is not None
    assert session.group == expected


# --- Names of blobs


@pytest.mark.parametrize("extension", ["json", "JSON", "tar.gz", "a" * 64, "7z", "svg+xml", "x-tar"])
def test_a_file_that_takes_up_space_under_a_guid_is_a_blob_whatever_its_extension(extension: str) -> None:
    assert is_blob_name(f"{GUID}.{extension}")


NO_BLOBS = [
    "", ".", "..", "metadata.json", ".metadata.json.tmp", ".prune_size.lock", GUID, f"{GUID}.", f".{GUID}.json",
    f"x{GUID}.json", f"{GUID}json", f"{GUID}..json", f"{GUID}.json\n", f"{GUID}.json/x", f"../{GUID}.json",
    f"{GUID}.j\x00son", f"{GUID}.-rf", f"{GUID}. json", f"{GUID}.é", f"{GUID}.\udcff", f"{GUID}." + "a" * 1000,
]  # fmt: skip


@pytest.mark.parametrize("name", NO_BLOBS, ids=short)
def test_other_files_are_no_blobs(name: str) -> None:
    assert is_blob_name(name) is None


# --- The visitor


def test_a_blob_that_is_there_makes_a_session_and_one_that_is_not_a_missing_one() -> None:
    sizes = {f"{GUID}.json": 77}
    found: list[Session] = []
    missing: list[Session] = []
    visit = entry_visitor(sizes.pop, found.append, lambda key, session: missing.append(session))
    visit(GUID, entry())
    visit(GUID, entry())
    assert [session.size_bytes for session in found] == [77]
    assert [session.size_bytes for session in missing] == [NOT_SEEN]
    assert sizes == {}


def test_an_empty_blob_is_there() -> None:
    found: list[Session] = []
    entry_visitor({f"{GUID}.json": 0}.pop, found.append, lambda key, what: None)(GUID, entry())
    assert [session.size_bytes for session in found] == [0]


def test_no_size_is_asked_for_on_behalf_of_an_entry_that_is_not_understood() -> None:
    asked: list[str] = []

    def take_size(name: str, default: int) -> int:
        asked.append(name)
        return default

    visit = entry_visitor(take_size, asked.append, lambda key, what: None)
    for key in BAD_KEYS:
        visit(key, entry())
    for extension in BAD_FORMATS:
        visit(GUID, entry(format=extension))
    assert asked == []


def test_a_session_is_a_session_whichever_way_it_was_made() -> None:
    session = read_entry(GUID, entry())
    assert type(session) is Session
    assert session == Session(MOMENT, GUID, "json", "research", 2048, NOT_SEEN)


def test_no_value_whatever_makes_the_visitor_fail() -> None:
    rng = random.Random(10)
    odd: list[Any] = [
        None, True, False, 0, -1, 10**50, 1.5, math.nan, -math.inf, "", "json", WHEN, "\ud800", "\x00", "../x", [], {},
        [[[]]], {"format": {}}, "9" * 5000,
    ]  # fmt: skip
    keys = [GUID, GUID.upper(), *BAD_KEYS[:20]]
    for _ in range(5_000):
        value = {name: rng.choice(odd) for name in ("format", "size", "created_at", "group") if rng.random() < 0.9}
        problem_of(rng.choice(keys), value if rng.random() < 0.9 else rng.choice(odd))


# --- Clocks and inodes


@pytest.mark.parametrize(
    ("secs", "moment"),
    [
        (0, datetime(1970, 1, 1)),
        (0.5, datetime(1970, 1, 1, 0, 0, 0, 500_000)),
        (-1, datetime(1969, 12, 31, 23, 59, 59)),
        (1_767_225_600, datetime(2026, 1, 1)),
        (253_402_300_799, datetime(9999, 12, 31, 23, 59, 59)),
        (253_402_300_800, datetime.max),
        (-62_135_596_800, datetime.min),
        (-62_135_596_801, datetime.min),
        (2.0**63, datetime.max),
        (-(2.0**63), datetime.min),
        (1e300, datetime.max),
        (-1e300, datetime.min),
        (math.inf, datetime.max),
        (-math.inf, datetime.min),
    ],
)
def test_a_timestamp_is_naive_utc_and_never_out_of_the_calendar(secs: float, moment: datetime) -> None:
    assert from_timestamp(secs) == moment


def test_a_timestamp_that_is_no_number_is_still_a_moment() -> None:
    assert from_timestamp(math.nan) in (datetime.min, datetime.max)


def test_utc_text_says_that_it_is_utc() -> None:
    assert utc_text(MOMENT) == "2026-02-03T04:05:06.789012Z"
    assert utc_text(datetime.min) == "0001-01-01T00:00:00Z"
