"""JSON that strict readers take, whatever the value is."""

from __future__ import annotations

import json

import pytest

from storage_manager.base import strict_json
from storage_manager.base.strict_json import compact, json_text


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_json_refuses_what_strict_readers_refuse(number: float) -> None:
    with pytest.raises(ValueError):
        json_text({"deep": [number]})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("plain", "plain"),
        ("größe 😀 \U0010ffff", "größe 😀 \U0010ffff"),
        ("lone \ud800", "lone \\ud800"),
        ("byte \udcff", "byte \\udcff"),
        (["\ud800", {"\udfff": ("\udc80",)}], ["\\ud800", {"\\udfff": ["\\udc80"]}]),
        ({"n": None, "b": True, "i": 3, "f": 0.5}, {"n": None, "b": True, "i": 3, "f": 0.5}),
    ],
)
def test_json_says_everything_in_ascii_without_lone_surrogates(value: object, expected: object) -> None:
    text = json_text(value)
    assert text.isascii() and text.isprintable()
    assert json.loads(text) == expected


@pytest.mark.parametrize("text", ["\x00", "\x1b[31m", "\x7f", "\x9b", "\n\r", "\u2028", "\u202e"])
def test_json_escapes_every_control_character(text: str) -> None:
    encoded = json_text(text)
    assert encoded.isprintable()
    assert json.loads(encoded) == text


@pytest.mark.parametrize("other", [None, lambda: None])
def test_a_python_whose_encoder_is_made_otherwise_gives_the_same_events(
    other: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = {"a": [1, 2.5, None, True], "b": {"ö": "\ud800\n"}}
    monkeypatch.setattr(json.encoder, "c_make_encoder", other)
    made = strict_json._make_chunks()
    assert made is not strict_json._chunks
    assert "".join(made(value, 0)) == compact(value)
    for refused in (float("nan"), {1, 2}):
        with pytest.raises((ValueError, TypeError)):
            "".join(made(refused, 0))
