"""docs/events.md and the code name the same events, with the same fields."""

from __future__ import annotations

import ast
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import stores

from storage_manager.base import errors
from storage_manager.jobs import evidence

PACKAGE = stores.ROOT / "storage_manager"
DOCUMENT = stores.ROOT / "docs" / "events.md"

LEVELS = {
    "debug": "Debug", "info": "Information", "warning": "Warning", "error": "Error", "exception": "Error",
    "critical": "Fatal",
}  # fmt: skip
EVENT_KEY = re.compile(r"(?:storage_manager|housekeeper)(?:\.[a-z_]+)+")

# The parts of an f-string that a key is made of.
PLACEHOLDERS = {
    "job.kind": ("prune", "purge"),
    "kind": ("prune", "purge", "repair", "adopt"),
    "sweeper": ("prune", "purge", "repair"),
}

# Fields that a call could give to an event by its form alone, but never does.
NEVER = {
    # run() has told of a busy lock by the time that cli.py sees it, and has deleted nothing by then.
    "storage_manager.prune.lock_busy": {"command", "exit_code", "deleted_count", "freed_bytes", "uncommitted_count"},
    # What run() tells of a failure without an event of its own is `.failed`.
    "storage_manager.command_failed": {"deleted_count", "freed_bytes", "uncommitted_count"},
    # UsageError has no fields of its own.
    "storage_manager.prune.validation_failed": {"file", "errno"},
    # The loop has told of it by the time that cli.py sees an error.
    "storage_manager.prune.held": {"command"},
    # A purge has no limit.
    "storage_manager.purge.summary": {"limit_mb"},
}


MOST_BY_HAND = 22
"""Events that no short scene brings about: they need a fault, a race, a Seq server, or half a minute."""


class Event(NamedTuple):
    fields: set[str]
    levels: set[str]


# --- What the code says


class Source:
    """One module, and what its names stand for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tree = ast.parse(path.read_text())
        self.functions = {node.name: node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef)}

    def events_of(self, function: ast.FunctionDef) -> list[tuple[str, set[str], set[str]]]:
        """(key, fields, levels) of every call in a function that emits an event."""
        found = []
        for node in ast.walk(function):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            levels = self.levels(node.func, function)
            if not levels:
                continue
            for key in self.keys(node.args[0], function):
                fields = set()
                for keyword in node.keywords:
                    fields |= {keyword.arg} if keyword.arg else self.expanded(keyword.value, key)
                found.append((key, fields, levels))
        return found + self.made_by_hand(function)

    def levels(self, called: ast.expr, function: ast.FunctionDef) -> set[str]:
        if isinstance(called, ast.Attribute) and called.attr in LEVELS:
            return {LEVELS[called.attr]}
        if isinstance(called, ast.Name) and called.id == "emit":
            methods = [node for value in self.assigned("emit", function) for node in branches(value)]
            return {LEVELS[method.attr] for method in methods if isinstance(method, ast.Attribute)}
        return set()

    def keys(self, expression: ast.expr, function: ast.FunctionDef) -> set[str]:
        """Every event that an expression may stand for."""
        if isinstance(expression, ast.Constant):
            return {expression.value}
        if isinstance(expression, ast.JoinedStr):
            return {"".join(parts) for parts in itertools.product(*map(alternatives, expression.values))}
        if isinstance(expression, ast.IfExp):
            return self.keys(expression.body, function) | self.keys(expression.orelse, function)
        if isinstance(expression, ast.Name) and self.assigned(expression.id, function):
            return set().union(*(self.keys(value, function) for value in self.assigned(expression.id, function)))
        if isinstance(expression, ast.Call) and ast.unparse(expression.func) in self.functions:
            return set().union(*(self.keys(value, function) for value in self.returned(expression)))
        if ast.unparse(expression) == "error.event":
            return set(ERROR_FIELDS)
        raise AssertionError(f"{self.path.name}:{expression.lineno}: which event is {ast.unparse(expression)}?")

    def expanded(self, expression: ast.expr, key: str) -> set[str]:
        """The field names behind `**expression`."""
        text = ast.unparse(expression)
        if text == "error.fields":
            return ERROR_FIELDS.get(key, ERROR_FIELDS[errors.StoreError.event])
        if text == "busy.fields":
            return HOLDER_FIELDS
        if isinstance(expression, ast.Dict):
            return dict_keys(expression)
        if isinstance(expression, ast.DictComp):
            source = expression.generators[0].iter.func.value
            if isinstance(expression.key, ast.JoinedStr):
                assert ast.unparse(source).startswith("parse_holder(")
                return HOLDER_FIELDS - {"holder_generation"}
            left_out = {
                node.value
                for condition in expression.generators[0].ifs
                for node in ast.walk(condition)
                if isinstance(node, ast.Constant)
            }
            return self.members_of(ast.unparse(source)) - left_out
        if isinstance(expression, ast.Name):
            return self.members_of(expression.id)
        raise AssertionError(f"{self.path.name}:{expression.lineno}: which fields are in {text}?")

    def members_of(self, name: str) -> set[str]:
        """The keys of a dict that is built under `name` anywhere in the module."""
        found: set[str] = set()
        for function in self.functions.values():
            for value in self.assigned(name, function):
                # What a function returns under a name is found where that name is filled.
                whole = self.returned(value) if isinstance(value, ast.Call) else [value]
                found |= set().union(*(dict_keys(part) for part in whole if not isinstance(part, ast.Name)))
            stored = [node for node in ast.walk(function) if isinstance(node, ast.Subscript)]
            found |= {
                node.slice.value
                for node in stored
                if isinstance(node.ctx, ast.Store) and isinstance(node.slice, ast.Constant)
                if ast.unparse(node.value) == name
            }
        assert found, f"{self.path.name}: nothing is known of {name}"
        return found

    def assigned(self, name: str, function: ast.FunctionDef) -> list[ast.expr]:
        found = []
        for node in ast.walk(function):
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
                found += [node.value for target in targets if isinstance(target, ast.Name) and target.id == name]
        return found

    def returned(self, call: ast.Call) -> list[ast.expr]:
        function = self.functions[ast.unparse(call.func)]
        return [node.value for node in ast.walk(function) if isinstance(node, ast.Return) and node.value is not None]

    def made_by_hand(self, function: ast.FunctionDef) -> list[tuple[str, set[str], set[str]]]:
        """An event put together as `Event(level, "...", message, {...}, ...)`."""
        made = [
            node.args
            for node in ast.walk(function)
            if isinstance(node, ast.Call)
            and ast.unparse(node.func) == "Event"
            and isinstance(node.args[1], ast.Constant)
        ]
        return [
            (key.value, dict_keys(fields), {LEVELS[ast.unparse(level).lower().rpartition(".")[2]]})
            for level, key, _, fields, *_ in made
            if isinstance(key, ast.Constant)
        ]


def branches(expression: ast.expr) -> list[ast.expr]:
    if isinstance(expression, ast.IfExp):
        return branches(expression.body) + branches(expression.orelse)
    return [expression]


def alternatives(part: ast.expr) -> tuple[str, ...]:
    """The texts that one part of an f-string may have."""
    if isinstance(part, ast.Constant):
        return (part.value,)
    assert isinstance(part, ast.FormattedValue)
    known = PLACEHOLDERS.get(ast.unparse(part.value))
    if known is not None:
        return known
    chosen = branches(part.value)
    assert all(isinstance(choice, ast.Constant) for choice in chosen), f"what may {ast.unparse(part)} stand for?"
    return tuple(choice.value for choice in chosen if isinstance(choice, ast.Constant))


def dict_keys(expression: ast.expr) -> set[str]:
    assert isinstance(expression, ast.Dict)
    return {key.value for key in expression.keys if isinstance(key, ast.Constant)}


def holder_fields() -> set[str]:
    """Whatever lock.py and holder.py say about a holder."""
    names: set[str] = set()
    texts = ((PACKAGE / name).read_text() for name in ("store/lock.py", "store/holder.py"))
    for node in (node for text in texts for node in ast.walk(ast.parse(text))):
        if isinstance(node, ast.Dict):
            names |= dict_keys(node)
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            names |= {node.slice.value} if isinstance(node.slice, ast.Constant) else set()
    return {f"holder_{name}" for name in names}


def error_fields() -> dict[str, set[str]]:
    """event -> fields that the error classes of that event add."""
    classes = [errors.StorageManagerError, *all_subclasses(errors.StorageManagerError)]
    found: dict[str, set[str]] = {}
    for node in ast.walk(ast.parse((PACKAGE / "base/errors.py").read_text())):
        if isinstance(node, ast.FunctionDef) and node.name == "fields":
            returned = next(inner.value for inner in ast.walk(node) if isinstance(inner, ast.Return))
            owner = next(
                cls for cls in classes if "fields" in vars(cls) and vars(cls)["fields"].fget.__code__.co_firstlineno
                in (node.lineno, node.lineno - 1)
            )  # fmt: skip
            names = HOLDER_FIELDS if isinstance(returned, ast.DictComp) else dict_keys(returned)
            found.setdefault(owner.event, set()).update(names)
    for cls in classes:
        found.setdefault(cls.event, set())
    for node in ast.walk(ast.parse((PACKAGE / "jobs/evidence.py").read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Reason" and len(node.args) > 3:
            event, fields = node.args[2:4]
            key = event.value if isinstance(event, ast.Constant) else getattr(evidence, ast.unparse(event))
            found.setdefault(key, set()).update(dict_keys(fields))
    return found


def all_subclasses(cls: type) -> list[Any]:
    return [found for sub in cls.__subclasses__() for found in (sub, *all_subclasses(sub))]


HOLDER_FIELDS = holder_fields()
ERROR_FIELDS = error_fields()


def events_in_code() -> dict[str, Event]:
    events: dict[str, Event] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        source = Source(path)
        for function in source.functions.values():
            for key, fields, levels in source.events_of(function):
                event = events.setdefault(key, Event(set(), set()))
                event.fields.update(fields)
                event.levels.update(levels)
    for key, fields in NEVER.items():
        assert fields <= events[key].fields, f"NEVER names fields that {key} could not have anyway"
        events[key].fields.difference_update(fields)
    return events


# --- What the document says


class Documented(NamedTuple):
    fields: set[str]
    levels: set[str]
    examples: list[dict[str, Any]]


def events_in_document() -> dict[str, Documented]:
    events = {}
    for section in re.split(r"^### ", DOCUMENT.read_text(), flags=re.MULTILINE)[1:]:
        section = re.split(r"^## ", section, flags=re.MULTILINE)[0]
        heading = re.match(r"`([^`]+)`\n", section)
        assert heading, f"not an event's key: {section.splitlines()[0]}"
        assert heading.group(1) not in events, f"{heading.group(1)} is there twice"
        examples = [
            line for block in re.findall(r"```json\n(.*?)```", section, re.DOTALL) for line in block.split("\n")
        ]
        events[heading.group(1)] = Documented(
            fields=names_of(section, "Fields"),
            levels=names_of(section, "Level"),
            examples=[json.loads(line, parse_constant=refuse) for line in examples if line],
        )
    return events


def names_of(section: str, what: str) -> set[str]:
    """The backticked names of the list item `- What: ...`, up to the next item or empty line."""
    item = re.search(rf"^- {what}: (.*?)(?=^- |^$)", section, re.MULTILINE | re.DOTALL)
    assert item, f"no line '- {what}:' in the section {section.splitlines()[0]}"
    names = re.findall(r"`([^`]+)`", item.group(1))
    assert names or item.group(1).strip() == "none", f"no names in '- {what}:' of {section.splitlines()[0]}"
    return set(names)


def refuse(text: str) -> None:
    raise AssertionError(f"not strict JSON: {text}")


def common_fields() -> set[str]:
    section = re.search(r"^## Common fields\n(.*?)^## ", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    assert section
    return set(re.findall(r"^\| `([^`]+)` \|", section.group(1), re.MULTILINE))


IN_CODE = events_in_code()
IN_DOCUMENT = events_in_document()


def test_every_event_is_documented_and_no_other() -> None:
    assert set(IN_DOCUMENT) == set(IN_CODE)


def test_every_key_written_in_the_code_is_one_that_is_emitted() -> None:
    written = {
        node.value
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and EVENT_KEY.fullmatch(node.value)
    }
    assert written <= set(IN_CODE)
    assert all(EVENT_KEY.fullmatch(key) for key in IN_CODE)


@pytest.mark.parametrize("key", sorted(set(IN_CODE) & set(IN_DOCUMENT)))
def test_an_event_has_the_documented_fields_and_level(key: str) -> None:
    assert IN_DOCUMENT[key].fields == IN_CODE[key].fields
    assert IN_DOCUMENT[key].levels <= IN_CODE[key].levels


@pytest.mark.parametrize("key", sorted(IN_DOCUMENT))
def test_the_examples_of_an_event_are_of_that_event(key: str) -> None:
    documented = IN_DOCUMENT[key]
    common = common_fields()
    assert documented.examples
    for example in documented.examples:
        assert example["event"] == key
        assert example["@l"] in documented.levels
        assert common - {"@x"} <= set(example)
        assert set(example) - common <= documented.fields


def test_the_samples_are_of_this_version(tmp_path: Path) -> None:
    """If not, run scripts/build_samples.py."""
    made = tmp_path / "events.md"
    script = stores.ROOT / "scripts" / "build_samples.py"
    done = subprocess.run([sys.executable, script, "--output", made], check=True, timeout=120, capture_output=True)
    by_hand = done.stdout.decode().split()[3:]
    assert DOCUMENT.read_text() == made.read_text()
    assert len(by_hand) <= MOST_BY_HAND and "storage_manager.prune.summary" not in by_hand


def test_the_common_fields_are_those_of_a_real_event(storage: Path) -> None:
    result = stores.run_tool("--storage-dir", storage, "list")
    start = stores.event(result.stderr, "storage_manager.command_start")
    assert set(start) - IN_CODE["storage_manager.command_start"].fields == common_fields() - {"@x"}
