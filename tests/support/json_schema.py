"""A small part of JSON Schema (draft-07): as much as docs/json.md needs. Whatever else a schema says is an error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

ANNOTATIONS = {"description"}
KEYWORDS = {"type", "enum", "minimum", "items", "properties", "required", "additionalProperties", "anyOf"}
TYPES = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}


def problems(value: Any, schema: dict[str, Any], where: str = "$") -> Iterator[str]:
    """What of a value, as json.loads() makes it, is not as the schema says."""
    if "anyOf" in schema:
        found = [list(problems(value, one, where)) for one in schema["anyOf"]]
        if all(found):
            yield from min(found, key=len)  # of the one that was probably meant
        return
    if not any(_is(value, name) for name in type_names(schema)):
        yield f"{where} is {json.dumps(value)[:60]}, not {' or '.join(type_names(schema))}"
        return
    if "enum" in schema and not any(value == one and type(value) is type(one) for one in schema["enum"]):
        yield f"{where} is {value!r}, none of {schema['enum']}"
    if "minimum" in schema and value is not None and value < schema["minimum"]:
        yield f"{where} is {value}, below {schema['minimum']}"
    if isinstance(value, dict):
        known = schema["properties"]
        yield from (f"{where} lacks {name}" for name in schema["required"] if name not in value)
        yield from (f"{where} has {name}, which is not documented" for name in value if name not in known)
        for name in filter(known.__contains__, value):
            yield from problems(value[name], known[name], f"{where}.{name}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from problems(item, schema["items"], f"{where}[{number}]")


def type_names(schema: dict[str, Any]) -> list[str]:
    return schema["type"] if isinstance(schema["type"], list) else [schema["type"]]


def _is(value: Any, name: str) -> bool:
    if name == "null":
        return value is None
    # A bool is an int in Python, and no number in JSON.
    return isinstance(value, TYPES[name]) and (name == "boolean" or not isinstance(value, bool))


def subschemas(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The schema and all schemas in it."""
    yield schema
    inner = [*schema.get("anyOf", ()), *schema.get("properties", {}).values()]
    inner += [schema["items"]] if "items" in schema else []
    for one in inner:
        yield from subschemas(one)


def mistakes(schema: dict[str, Any]) -> Iterator[str]:
    """What problems() would pass over, or fail at."""
    for one in subschemas(schema):
        yield from (f"{name} is not known here" for name in set(one) - KEYWORDS - ANNOTATIONS)
        if "anyOf" in one:
            continue
        names = type_names(one)
        yield from (f"{name} is no type" for name in names if name != "null" and name not in TYPES)
        if "object" in names:
            if one.get("additionalProperties") is not False:
                yield f"additionalProperties is not false: {one}"
            unknown = set(one["required"]) - set(one["properties"])
            yield from (f"{name} is required and not described" for name in unknown)
        if "array" in names and "items" not in one:
            yield f"an array of nobody knows what: {one}"
