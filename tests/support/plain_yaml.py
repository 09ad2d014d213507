"""Reads the plain part of YAML that docs/deploy is written in, strictly: what is not plain is an error.

Block mappings and sequences; scalars on one line, plain or in double quotes; flow sequences of scalars; comments;
an anchor on a mapping (`key: &name`) and its merge into another (`<<: *name`).
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

SCALARS = {"true": True, "false": False, "null": None}
KEY = re.compile(r"([A-Za-z_][\w./-]*|<<):(?: +(.+))?$")
ANCHOR = re.compile(r"&([\w-]+)$")
MERGE = re.compile(r"\*([\w-]+)$")
Anchors = dict[str, dict[str, Any]]
PLAIN = re.compile(r"[A-Za-z0-9_./-]([\w ./:=,;()-]*[\w./=)-])?$")


class Line(NamedTuple):
    """A line that says something."""

    number: int
    indent: int
    text: str


def read_documents(text: str) -> list[Any]:
    """Every document of a file. Raises ValueError with the line's number."""
    return [_read_document(part, first) for first, part in _split(text)]


def _split(text: str) -> list[tuple[int, list[str]]]:
    parts: list[tuple[int, list[str]]] = [(1, [])]
    for number, line in enumerate(text.split("\n"), 1):
        if line == "---":
            parts.append((number + 1, []))
        else:
            parts[-1][1].append(line)
    return parts


def _read_document(raw: list[str], first: int) -> Any:
    lines = []
    for number, line in enumerate(raw, first):
        if "\t" in line or line != line.rstrip():
            raise ValueError(f"line {number}: a tab, or a space at the end")
        text = _without_comment(line).strip()
        if text:
            lines.append(Line(number, len(line) - len(line.lstrip()), text))
    value, rest = _block(lines, 0, {})
    if rest:
        raise ValueError(f"line {rest[0].number}: does not belong anywhere")
    return value


def _without_comment(line: str) -> str:
    quoted = False
    for at, character in enumerate(line):
        if character == '"' and line[at - 1] != "\\":
            quoted = not quoted
        if character == "#" and not quoted and (at == 0 or line[at - 1] == " "):
            return line[:at]
    return line


def _block(lines: list[Line], indent: int, anchors: Anchors) -> tuple[Any, list[Line]]:
    if lines[0].indent != indent:
        raise ValueError(f"line {lines[0].number}: indented by {lines[0].indent}, not by {indent}")
    kind = _sequence if lines[0].text.startswith("- ") else _mapping
    return kind(lines, indent, anchors)


def _sequence(lines: list[Line], indent: int, anchors: Anchors) -> tuple[list[Any], list[Line]]:
    items: list[Any] = []
    while lines and lines[0].indent == indent and lines[0].text.startswith("- "):
        head = Line(lines[0].number, indent + 2, lines[0].text[2:].strip())
        if KEY.match(head.text):
            item, lines = _mapping([head, *lines[1:]], indent + 2, anchors)
        else:
            item, lines = _scalar(head.text, head.number), lines[1:]
        items.append(item)
    return items, lines


def _mapping(lines: list[Line], indent: int, anchors: Anchors) -> tuple[dict[str, Any], list[Line]]:
    found: dict[str, Any] = {}
    merged: dict[str, Any] = {}
    while lines and lines[0].indent == indent and not lines[0].text.startswith("- "):
        line, lines = lines[0], lines[1:]
        match = KEY.match(line.text)
        if not match or match.group(1) in found:
            raise ValueError(f"line {line.number}: no key, or a key that was there already: {line.text}")
        key, value = match.groups()
        if key == "<<":
            merge = MERGE.match(value or "")
            if not merge or merge.group(1) not in anchors or merged:
                raise ValueError(f"line {line.number}: not the name of one anchor before it: {line.text}")
            merged = anchors[merge.group(1)]
            continue
        anchor = ANCHOR.match(value or "")
        if value and not anchor:
            found[key] = _scalar(value, line.number)
            continue
        if not lines or lines[0].indent <= indent:
            raise ValueError(f"line {line.number}: a key without a value")
        found[key], lines = _block(lines, indent + 2, anchors)
        if anchor:
            anchors[anchor.group(1)] = found[key]
    if lines and lines[0].indent > indent:
        raise ValueError(f"line {lines[0].number}: indented too far")
    return {**merged, **found}, lines


def _scalar(text: str, number: int) -> Any:
    if text.startswith('"'):
        return json.loads(text)
    if text.startswith("[") and text.endswith("]"):
        return [_scalar(part.strip(), number) for part in text[1:-1].split(",")]
    if text in SCALARS:
        return SCALARS[text]
    if re.match(r"[0-9]+$", text):
        return int(text)
    if ": " in text or not PLAIN.match(text):
        raise ValueError(f"line {number}: put it into quotes: {text}")
    return text
