"""Numbers as people write them, and as they must not."""

from __future__ import annotations

import math
from typing import Any, Callable

import pytest

from storage_manager.base.quantity import (
    LARGEST_SIZE_BYTES,
    parse_count,
    parse_duration_secs,
    parse_number,
    parse_positive,
    parse_size_bytes,
)

MB = 1024 * 1024

NO_NUMBERS = [
    "", " ", "nan", "NaN", "-nan", "inf", "Infinity", "-inf", "+inf", "-1", "-0", "−1", "1,5", "1 000", "5_000",
    "1_0.5", "0x10", "0b1", "e5", "1e+", "1e1.5", ".", "+", "++1", "1.2.3", "1..2", "one", "None", "true",
    "1\x00", "1;rm", "1%", "١٢", "٣.٥", "１２", "²", "½", "Ⅷ", "1\u00a00", "$1", "1e99999", "9" * 41, "9" * 1_000_000,
]  # fmt: skip


def short(value: object) -> str:
    """A test's name for a value of any length."""
    return ascii(value)[:30]


@pytest.mark.parametrize("text", NO_NUMBERS, ids=short)
@pytest.mark.parametrize("parse", [parse_number, parse_positive, parse_count, parse_size_bytes])
def test_what_is_no_plain_number_is_refused_in_words(parse: Callable[[str], Any], text: str) -> None:
    with pytest.raises(ValueError) as refusal:
        parse(text)
    assert 0 < len(str(refusal.value)) < 100


@pytest.mark.parametrize(
    ("text", "number"),
    [("0", 0), ("1", 1), ("007", 7), ("+5", 5), ("1.5", 1.5), ("1.", 1), (".5", 0.5), ("1e3", 1000), ("1E-3", 0.001),
     ("1.5e+2", 150), (" 42 ", 42), ("42\n", 42), ("0.0", 0), ("1e308", 1e308), ("1e-400", 0), ("9" * 40, 1e40)],
)  # fmt: skip
def test_decimal_numbers_are_understood(text: str, number: float) -> None:
    assert parse_number(text) == number


@pytest.mark.parametrize("text", ["1e309", "1e400", "9e9999"])
def test_a_number_beyond_floats_is_refused_rather_than_infinite(text: str) -> None:
    for parse in (parse_number, parse_positive, parse_size_bytes):
        with pytest.raises(ValueError, match="too large"):
            parse(text)


def test_an_exponent_without_digits_is_no_number_but_as_a_unit_it_is_exbibytes() -> None:
    for parse in (parse_number, parse_positive):
        with pytest.raises(ValueError, match="plain number"):
            parse("1e")
    assert parse_size_bytes("1e") == 1024**6


def test_a_number_is_held_to_its_bounds_inclusively() -> None:
    assert parse_number("30", 30, 60) == 30
    assert parse_number("60", 30, 60) == 60
    with pytest.raises(ValueError, match="at least 30"):
        parse_number("29.999", 30, 60)
    with pytest.raises(ValueError, match="at most 60"):
        parse_number("60.001", 30, 60)


@pytest.mark.parametrize("text", ["0", "0.0", ".0", "0e5", "1e-400"])
def test_positive_means_above_zero(text: str) -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        parse_positive(text)
    with pytest.raises(ValueError, match="greater than 0"):
        parse_size_bytes(text)


def test_the_least_positive_number_is_positive() -> None:
    assert parse_positive("1e-300") > 0
    with pytest.raises(ValueError, match="at most 5"):
        parse_positive("5.1", at_most=5)


@pytest.mark.parametrize(
    ("text", "count"), [("0", 0), ("7", 7), ("+7", 7), (" 12 ", 12), ("0012", 12), ("9" * 18, 10**18 - 1)]
)
def test_counts_are_whole_numbers(text: str, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["1.0", "1.5", "1e", "1e3", "-0", "0x1", "9" * 19, "5_000", "1 2"])
def test_what_is_no_whole_number_is_no_count(text: str) -> None:
    with pytest.raises(ValueError, match="whole number"):
        parse_count(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", MB), ("512", 512 * MB), ("0.5", MB // 2), ("1e3", 1000 * MB), ("+2", 2 * MB), (" 3 ", 3 * MB),
        ("1b", 1), ("100B", 100), ("1k", 1024), ("1K", 1024), ("1KB", 1024), ("1kb", 1024), ("1KiB", 1024),
        ("512M", 512 * MB), ("512MB", 512 * MB), ("512 MiB", 512 * MB), ("10GB", 10 * 1024**3), ("10g", 10 * 1024**3),
        ("1.5 GiB", 3 * 1024**3 // 2), ("1.5\tGiB", 3 * 1024**3 // 2), ("2T", 2 * 1024**4), ("1tib", 1024**4),
        ("3P", 3 * 1024**5), ("1E", 1024**6), ("1EiB", 1024**6), ("1e1", 10 * MB), ("1e1K", 10 * 1024), (".5k", 512),
        ("8E", 1 << 63), ("0.0009765625K", 1), ("1.9b", 1), ("0.00000095367431640625", 1),
    ],
)  # fmt: skip
def test_a_plain_size_is_megabytes_and_units_are_powers_of_1024(text: str, size: int) -> None:
    found = parse_size_bytes(text)
    assert found == size
    assert type(found) is int


@pytest.mark.parametrize("text", ["1X", "1 bytes", "1MBs", "1Mbps", "1iB", "1mibi", "1 kilo", "1ZB", "1YiB", "1e3x"])
def test_an_unknown_unit_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="is not a unit"):
        parse_size_bytes(text)


@pytest.mark.parametrize(
    "text", ["M", "GB", "1M 2K", "1M2K", "1GB!", "1 G B", "1Ｍ", "1м", "-1G", "1,5G", "nanM", "infG"]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_size_bytes(text)


def test_a_size_has_an_upper_and_a_lower_end() -> None:
    assert parse_size_bytes(f"{LARGEST_SIZE_BYTES}b") == LARGEST_SIZE_BYTES
    for text in ("9E", "1e300", "1e300E", "8796093022209", "1e20"):
        with pytest.raises(ValueError, match="larger than any"):
            parse_size_bytes(text)
    for text in ("0.9b", "1e-9", "1e-300", "0.0000001"):
        with pytest.raises(ValueError, match="less than one byte"):
            parse_size_bytes(text)


def test_every_number_is_finite() -> None:
    for text in ("1", "1e308", "0", "1e-320"):
        assert math.isfinite(parse_number(text))


@pytest.mark.parametrize(
    ("text", "secs"),
    [("30m", 1800), ("12h", 43_200), ("7d", 604_800), (" 2W ", 1_209_600), ("1.5 h", 5400), ("90s", 90)],
)
def test_a_duration_is_a_number_with_its_unit(text: str, secs: float) -> None:
    assert parse_duration_secs(text) == secs


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("7", "it has no unit; use s, m, h, d or w"),
        ("7y", "y is not a unit of time; use s, m, h, d or w"),
        ("-7d", "it is not a duration such as 30m, 12h, 7d or 2w"),
        ("d", "it is not a duration such as 30m, 12h, 7d or 2w"),
        ("0d", "it must be greater than 0"),
        ("1e400w", "it is too large"),
        ("9999999d", "it is longer than 100 years"),
    ],
)
def test_what_is_no_duration_is_refused_in_words(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_duration_secs(text)
