"""A strict reader of Prometheus' text format, as node_exporter's textfile collector wants it."""

from __future__ import annotations

import re
from typing import NamedTuple

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\\\|\\"|\\n)*)"')
_VALUE = re.compile(r"[+-]?(?:\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)")

Labels = frozenset[tuple[str, str]]


class Family(NamedTuple):
    type: str
    help: str
    samples: dict[Labels, float]


def families(data: bytes) -> dict[str, Family]:
    """Every family of a file. Asserts that the file is in order."""
    text = data.decode("utf-8", "strict")
    assert text.endswith("\n")
    found: dict[str, Family] = {}
    current = ""
    helped = ""
    for line in text.split("\n")[:-1]:
        if line.startswith("# HELP "):
            helped, _, help_text = line[7:].partition(" ")
            assert _NAME.fullmatch(helped) and help_text and helped not in found, line
            assert not re.search(r"\\(?![\\n])", help_text), "what is escaped in a help text"
        elif line.startswith("# TYPE "):
            current, kind = line[7:].split(" ")
            assert current == helped and current not in found, f"out of order: {line}"
            assert kind in ("gauge", "counter")
            assert (kind == "counter") == current.endswith("_total"), line
            found[current] = Family(kind, help_text, {})
        else:
            name, labels, value = sample(line)
            assert name == current, f"a sample apart from its family: {line}"
            assert labels not in found[current].samples, f"twice: {line}"
            found[current].samples[labels] = value
    assert all(family.samples for family in found.values())
    return found


def sample(line: str) -> tuple[str, Labels, float]:
    head = _NAME.match(line)
    assert head, line
    rest, labels = line[head.end() :], []
    if rest.startswith("{"):
        rest = rest[1:]
        while not rest.startswith("}"):
            label = _LABEL.match(rest)
            assert label, line
            labels.append((label.group(1), unescaped(label.group(2))))
            rest = rest[label.end() :]
            assert rest[:1] in (",", "}"), line
            rest = rest[rest.startswith(",") :]
        rest = rest[1:]
    assert len(dict(labels)) == len(labels), f"a label twice: {line}"
    assert rest.startswith(" ") and _VALUE.fullmatch(rest[1:]), f"no plain value, or a time stamp: {line}"
    return head.group(), frozenset(labels), float(rest[1:])


def unescaped(text: str) -> str:
    return re.sub(r"\\(.)", lambda match: "\n" if match.group(1) == "n" else match.group(1), text)
