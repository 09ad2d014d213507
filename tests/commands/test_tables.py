"""What a person reads."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from storage_manager.base.quantity import age, counted, megabytes, size
from storage_manager.commands.tables import bar, columns_of, table
from storage_manager.jobs.plan import Counts, Outcome, Plan, sentence

NOW = datetime(2026, 6, 1, 12, 0, 0)
PLAN = Plan((), (), "", (), 0, 0, None, {})


def outcome(**changes: object) -> Outcome:
    made = Outcome(PLAN, False, Counts(), 0, 0)
    for name, value in changes.items():
        if name in Outcome._fields:
            made = made._replace(**{name: value})
        else:
            assert hasattr(made.counts, name)
            setattr(made.counts, name, value)
    return made


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"), (1, "1 B"), (1023, "1023 B"), (1024, "1.0 KB"), (1536, "1.5 KB"), (1024**2, "1.0 MB"),
        (10 * 1024**2, "10.0 MB"), (1024**3, "1.0 GB"), (1024**4, "1.0 TB"), (1024**5, "1.0 PB"),
        (5000 * 1024**5, "5000.0 PB"), (-2048, "-2.0 KB"), (-1, "-1 B"),
    ],
)  # fmt: skip
def test_a_size_has_the_unit_that_suits_it(size_bytes: int, text: str) -> None:
    assert size(size_bytes) == text


def test_a_million_absurd_sizes_together_can_be_shown() -> None:
    assert size(10**6 << 63).endswith(" PB")


def test_megabytes_are_rounded_to_a_kilobyte_or_so() -> None:
    assert megabytes(1024 * 1024) == 1.0
    assert megabytes(1) == 0.0
    assert megabytes(1234567) == 1.177


@pytest.mark.parametrize(
    ("gone", "text"),
    [
        (timedelta(0), "0 s"), (timedelta(seconds=119), "119 s"), (timedelta(minutes=2), "2 min"),
        (timedelta(minutes=119), "119 min"), (timedelta(hours=2), "2 h"), (timedelta(hours=47), "47 h"),
        (timedelta(days=2), "2 d"), (timedelta(days=400), "400 d"), (timedelta(microseconds=-1), "in the future"),
        (timedelta(days=-400), "in the future"),
    ],
)  # fmt: skip
def test_an_age_is_in_the_one_unit_that_says_most(gone: timedelta, text: str) -> None:
    assert age(NOW - gone, NOW) == text


def test_the_first_and_the_last_moment_have_an_age() -> None:
    assert age(datetime.min, datetime.max).endswith(" d")
    assert age(datetime.max, datetime.min) == "in the future"


def test_things_are_counted_in_english() -> None:
    assert counted(0, "session") == "0 sessions"
    assert counted(1, "session") == "1 session"
    assert counted(1234567, "session") == "1,234,567 sessions"
    assert counted(1, "dangling entry") == "1 dangling entry"
    assert counted(2, "dangling entry") == "2 dangling entries"


@pytest.mark.parametrize(
    ("part", "whole", "filled"), [(0, 100, 0), (50, 100, 15), (100, 100, 30), (250, 100, 30), (1, 0, 30)]
)
def test_a_bar_is_as_full_as_the_store_and_always_as_wide(part: int, whole: int, filled: int) -> None:
    assert bar(part, whole, "utf-8") == "█" * filled + "░" * (30 - filled)
    assert bar(part, whole, "ascii") == "#" * filled + "-" * (30 - filled)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "iso8859-15", "cp1252", "UTF-8", "utf8", "utf-16"])
def test_a_bar_uses_only_characters_that_the_terminal_has(encoding: str) -> None:
    bar(1, 2, encoding).encode(encoding)


def test_columns_are_as_wide_as_they_need_to_be_and_aligned() -> None:
    assert list(table(("GROUP", "SIZE>"), [("a", "1 B"), ("research", "10.0 MB")])) == [
        "GROUP        SIZE",
        "a             1 B",
        "research  10.0 MB",
    ]


def test_a_table_without_rows_is_its_header() -> None:
    assert list(table(("GUID", "SIZE>"), [])) == ["GUID  SIZE"]


def test_lines_of_a_table_have_no_trailing_space() -> None:
    assert list(table(("A", "B"), [("long text", ""), ("", "x")])) == ["A          B", "long text", "           x"]


def test_a_cell_from_the_store_cannot_break_out_of_its_line() -> None:
    lines = list(table(("GROUP", "SIZE>"), [("evil\x1b[2J\ngroup\u202e", "1 B"), ("x" * 10_000, "2 B")]))
    assert len(lines) == 3
    assert all(line.isprintable() for line in lines)
    assert max(map(len, lines)) <= 60 + 2 + 4


def test_a_cell_of_controls_does_not_widen_the_table() -> None:
    lines = list(table(("GROUP", "SIZE>"), [("\x1b" * 1000, "1 B")]))
    assert max(map(len, lines)) <= 60 + 2 + 4


def test_an_outcome_is_one_sentence() -> None:
    assert sentence(outcome()) == "deleted 0 sessions, 0 B; 0 B remain"
    assert (
        sentence(outcome(deleted_count=1, freed_bytes=2048, final_bytes=1024))
        == "deleted 1 session, 2.0 KB; 1.0 KB remain"
    )


def test_an_outcome_tells_of_what_was_swept_and_what_failed() -> None:
    text = sentence(outcome(deleted_count=3, freed_bytes=3, swept_count=1, failed=frozenset({"a", "b"}), final_bytes=5))
    assert text == "deleted 3 sessions, 3 B, and 1 dangling entry; 5 B remain; 2 blobs could not be deleted"
    assert "2 dangling entries" in sentence(outcome(swept_count=2))


def test_a_dry_run_speaks_of_what_would_be() -> None:
    text = sentence(outcome(dry_run=True, deleted_count=3, freed_bytes=3, final_bytes=5))
    assert text == "would delete 3 sessions, 3 B; 5 B would remain"


def test_a_table_that_is_too_wide_is_cut_in_its_first_column_alone() -> None:
    rows = [("a name that is far too long", "1", "last"), ("b", "1000", "last")]
    assert list(table(("NAME", "COUNT>", "X"), rows, 30)) == [
        "NAME               COUNT  X",
        "a name that is...      1  last",
        "b                   1000  last",
    ]
    assert list(table(("NAME", "COUNT>", "X"), rows, 10))[1].startswith("a name th...  ")
    assert list(table(("NAME", "COUNT>", "X"), rows))[1].startswith("a name that is far too long  ")


@pytest.mark.parametrize(
    ("counts", "shown", "in_ascii"),
    [
        ([0, 1, 4, 8], " ▁▄█", " .=@"),
        ([0, 1, 1000], " ▁█", " .@"),
        ([0, 0], "  ", "  "),
        ([], "", ""),
    ],
)
def test_a_column_is_as_high_as_its_count_and_one_is_always_seen(counts: list[int], shown: str, in_ascii: str) -> None:
    assert (columns_of(counts, "UTF-8"), columns_of(counts, "ascii")) == (shown, in_ascii)
