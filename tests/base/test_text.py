"""Text from anywhere, made safe to show."""

from __future__ import annotations

import random
import unicodedata

import pytest

from storage_manager.base.text import printable


@pytest.mark.parametrize("text", ["", "plain", "a b~!", "café", "日本語", "🙂", "e\u0301", "\\x1b as it stands"])
def test_text_that_can_be_shown_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", "\\x1b[2J"), ("a\nb", "a\\x0ab"), ("\x00", "\\x00"), ("\r\t", "\\x0d\\x09"), ("\x7f", "\\x7f"),
        ("\x9b31m", "\\x9b31m"), ("\x85", "\\x85"), ("\u2028\u2029", "\\u2028\\u2029"),
        ("a\u202egnp.exe", "a\\u202egnp.exe"), ("\u2066x\u2069", "\\u2066x\\u2069"), ("\u200e\u200f", "\\u200e\\u200f"),
        ("\ud83d", "\\ud83d"), ("\udfff", "\\udfff"), ("caf\udce9", "caf\\xe9"), ("\udcff\udc80", "\\xff\\x80"),
        ("é\n", "é\\x0a"),
    ],
)  # fmt: skip
def test_what_cannot_be_shown_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_the_result_is_one_line_without_controls_and_encodes() -> None:
    rng = random.Random(1)
    for _ in range(3_000):
        ranges = rng.choices(((0, 0x100), (0x2000, 0x2070), (0xD700, 0xE100), (0, 0x110000)), k=rng.randrange(20))
        text = "".join(chr(rng.randrange(*span)) for span in ranges)
        shown = printable(text)
        shown.encode("utf-8")
        assert len(shown.splitlines()) <= 1
        assert not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in shown)


@pytest.mark.parametrize(
    "character", ["x", "é", "\x1b", "\n", "\ud83d", "\udcff", "\u202e"], ids=lambda character: ascii(character)
)
def test_the_result_is_never_longer_than_the_limit(character: str) -> None:
    for length in (0, 1, 59, 60, 61, 100, 100_000):
        assert len(printable(character * length, 60)) <= 60
    assert len(printable(character * 1_000_000)) <= 4096


def test_what_is_cut_off_says_so() -> None:
    assert printable("x" * 60, 60) == "x" * 60
    shown = printable("x" * 61, 60)
    assert shown == "x" * 57 + "..."


def test_anything_can_be_shown() -> None:
    assert printable(None) == "None"
    assert printable(1.5) == "1.5"
    assert printable(["\n"]) == "['\\n']"
    assert printable(ValueError("bad\x07")) == "bad\\x07"
