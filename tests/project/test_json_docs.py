"""docs/json.md describes what the commands really write with --json: no key more, and none less."""

from __future__ import annotations

import copy
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, get_args

import pytest
from client import Client
from json_schema import mistakes, problems, subschemas
from loops import loop
from stores import ROOT, hurried_command, make_store, read_entries, run_command, run_tool, write_entries

from storage_manager.grammar import build_parser
from storage_manager.jobs.checkup import NOUNS
from storage_manager.jobs.plan import HELP
from storage_manager.loop.heartbeat import State
from storage_manager.store.snapshot import ANOMALY_KINDS, DANGLING, FUTURE, UNREADABLE

DOCUMENT = (ROOT / "docs" / "json.md").read_text()
SCHEMAS: dict[str, dict[str, Any]] = {
    section.split(maxsplit=1)[0]: json.loads(section.partition("```json\n")[2].partition("```")[0])
    for section in DOCUMENT.split("\n## ")[1:]
}
GUID = "{}4444444-4444-4444-8444-444444444444"
LONG_AGO = 1_700_000_000


def commands_with_json() -> set[str]:
    [subparsers] = [action for action in build_parser()._actions if isinstance(action.choices, dict)]
    return {name for name, parser in subparsers.choices.items() if "--json" in parser._option_string_actions}


# The document


def test_every_command_with_json_has_a_schema_and_no_other_has() -> None:
    assert set(SCHEMAS) == commands_with_json()
    assert DOCUMENT.count("```json") == len(SCHEMAS)


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_says_only_what_is_compared(name: str) -> None:
    assert not list(mistakes(SCHEMAS[name]))


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_key_is_required_but_in_maps_of_what_occurs(name: str) -> None:
    for schema in subschemas(SCHEMAS[name]):
        properties = set(schema.get("properties", ()))
        assert not schema.get("required") or set(schema["required"]) == properties
        assert schema.get("required") or properties <= set(HELP) | {DANGLING, FUTURE}


def test_kinds_and_states_are_those_of_the_code() -> None:
    check, stats, health = (SCHEMAS[name]["properties"] for name in ("check", "stats", "health"))
    assert set(check["findings"]["items"]["properties"]["kind"]["enum"]) == set(NOUNS)
    assert list(stats["anomalies"]["properties"]) == list(ANOMALY_KINDS)
    heartbeat = health["heartbeat"]["properties"]
    assert list(heartbeat["last_cycle"]["properties"]["anomalies"]["properties"]) == list(ANOMALY_KINDS)
    assert heartbeat["state"]["enum"] == list(get_args(State))
    # A dangling entry takes no bytes, and a session of the future is kept as others are.
    assert set(SCHEMAS["prune-size"]["properties"]["causes"]["properties"]) == set(HELP) - {DANGLING, FUTURE}


# What the commands write


def empty(storage: Path) -> None:
    """Not even a metadata.json."""


def normal(storage: Path) -> None:
    make_store(storage, 2, size=1000, group="research", seed=1)
    client = Client(storage)
    for hours in (1, 30, 100):
        created = datetime.now(timezone.utc) - timedelta(hours=hours)
        client.save(b"x" * 500, created_at=created.replace(tzinfo=None).isoformat())


def odd(storage: Path) -> None:
    """Something of every kind that a test can make."""
    normal(storage)
    entries = read_entries(storage)
    first, second, third, *_ = entries
    (storage / f"{first}.json").unlink()
    entries[second].update(size=7, group="\udcff\x1b[2J")
    entries[third]["created_at"] = "9000-01-01T00:00:00"
    entries[GUID.format(1)] = {"format": "json", "created_at": "yesterday"}
    entries["no guid"] = 5
    write_entries(storage, entries)
    for digit, name, mtime in (
        (2, "json", LONG_AGO), (3, "JSON", LONG_AGO), (4, "json", time.time()), (5, "json", time.time() + 86_400),
    ):  # fmt: skip
        path = storage / f"{GUID.format(digit)}.{name}"
        path.write_bytes(b"x" * 300)
        os.utime(path, (mtime, mtime))
    (storage / f"{GUID.format(6)}.json").symlink_to("/etc/hostname")
    (storage / ".metadata.json.torn-2026-a").write_bytes(b"{")
    (storage / ".prune_size.lock").write_text(json.dumps({"pid": 2**22 + 1, "host": os.uname().nodename}))


def misplaced(storage: Path) -> None:
    normal(storage / "sessions")


HURRY = {"store.commit.WATCH_SECS": 0.0, "store.recovery.REWRITE_SECS": 0.0}

WORDS = [
    "list", "list --sort size --limit 2", "list --group research",
    "stats", "stats --group research",
    "check", "check --verbose", "check --adopt-orphans back --dry-run --verbose", "check --adopt-orphans back",
    "check --repair --yes", "check --repair --yes --adopt-orphans back",
    "purge --dry-run", "purge --age-days 2", "purge --age-days 0 --yes", "purge --orphans --dry-run",
    "purge --age-days 1 --dry-run --verbose", "purge --orphans --verbose",
    "purge --orphans", "purge --group research --age-days 1",
    "prune-size --max-mb 1P", "prune-size --max-mb 1900B --dry-run", "prune-size --max-mb 1900B",
    "prune-size --max-mb 1900B --target-mb 900B --verbose", "prune-size --max-mb 1B --keep-last 2 --min-age-mins 90",
    "prune-size --max-mb 1B --group research --dry-run --verbose",
]  # fmt: skip


def written(storage: Path, words: str, stdin: str | None = None, **env: str) -> list[dict[str, Any]]:
    """The objects that a command writes, each of which must be as the schema says."""
    name, *options = words.split()
    arguments = (name, "--json", *options, "--storage-dir", storage)
    done = run_command(hurried_command(HURRY, *arguments), env, stdin)
    found: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    for one in found:
        assert not list(problems(one, SCHEMAS[name])), done.stdout
        assert one.get("exit_code", done.returncode) == done.returncode
    return found


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("make", [empty, normal, odd, misplaced])
def test_what_a_command_writes_is_documented(storage: Path, make: Callable[[Path], None], words: str) -> None:
    make(storage)
    assert len(written(storage, words)) == 1 or words.startswith("list")


def test_the_states_have_what_a_schema_allows(storage: Path) -> None:
    """Otherwise nothing would have been compared."""
    odd(storage)
    assert {one["state"] for one in written(storage, "list")} == {"ok", "dangling"}
    [stats] = written(storage, "stats")
    assert set(stats["anomalies"]) == set(ANOMALY_KINDS) - {UNREADABLE}  # root can examine everything
    assert stats["growth"] and len(stats["groups"]) == 2
    [check] = written(storage, "check --verbose --adopt-orphans back --dry-run")
    kinds = {one["kind"] for one in written(storage, "check")[0]["findings"]}
    assert kinds == set(NOUNS) - {UNREADABLE}
    assert {one["state"] for one in check["orphans"]} == {"orphan", "in_flight"}
    assert {one["action"] for one in check["plan"]} == {"adopt", "leave"}
    [prune] = written(storage, "prune-size --max-mb 900B --keep-last 1 --verbose --dry-run")
    assert {one["action"] for one in prune["plan"]} == {"sweep", "delete", "keep"}
    assert not prune["target_met"] and {"orphan", "in_flight", "keep_last"} <= set(prune["causes"])


@pytest.mark.parametrize("limit", ["off", "900B", "50 %", ""])
def test_stats_with_any_limit_is_documented(storage: Path, limit: str) -> None:
    normal(storage)
    assert written(storage, "stats", GOFR_DIG_MAX_STORAGE_MB=limit)


def test_what_config_tells_is_documented(storage: Path) -> None:
    for env in ({}, {"GOFR_DIG_MAX_STORAGE_MB": "50 %", "GOFR_DIG_MAX_STORAGE_GB": "5"}):
        assert written(storage, "config", **env)[0]["settings"]


def test_what_history_tells_is_documented(storage: Path) -> None:
    normal(storage)
    guid = next(iter(read_entries(storage)))
    assert written(storage, "history")[0]["sentence"]
    written(storage, "purge --age-days 2")
    (storage / f"{guid}.json").unlink(missing_ok=True)
    [told] = written(storage, "history --since 1h")
    assert [one["what"] for one in told["runs"]] == ["deleted"] and told["fates"] is None
    [told] = written(storage, f"history --session {guid}")
    assert [one["what"] for one in told["fates"]] == ["deleted"] and told["runs"] is None


def test_a_purge_that_is_cancelled_is_documented(storage: Path) -> None:
    normal(storage)
    assert written(storage, "purge --age-days 0", "no\n")[0]["cancelled"]


@pytest.mark.parametrize("words", ["purge --age-days 2", "prune-size --max-mb 1000B"])
def test_blobs_that_cannot_be_deleted_are_documented(storage: Path, words: str) -> None:
    normal(storage)
    name, *options = words.split()
    code = (
        "import os, sys\nfrom storage_manager import cli\nunlink = os.unlink\n"
        "def refuse(name, **more):\n    if str(name).endswith('.json') and not str(name).startswith(('.', 'meta')):\n"
        "        raise PermissionError(13, 'Permission denied')\n    unlink(name, **more)\n"
        "os.unlink = refuse\nsys.exit(cli.main())"
    )
    done = run_command([sys.executable, "-c", code, name, "--json", *options, "--storage-dir", str(storage)])
    found = json.loads(done.stdout)
    assert not list(problems(found, SCHEMAS[name]))
    assert found["failed_count"] > 0 and {one["action"] for one in found["plan"]} == {"failed"}


# A command that fails


@pytest.mark.parametrize("words", WORDS)
def test_a_command_that_fails_writes_nothing(tmp_path: Path, words: str) -> None:
    assert written(tmp_path / "nowhere", words) == []


def test_health_writes_what_it_finds(storage: Path) -> None:
    [nothing] = written(storage, "health")
    assert not nothing["healthy"] and nothing["heartbeat"] is None
    for make in (empty, odd):
        make(storage)
        run_tool("run-loop", "--once", "--storage-dir", storage)
        [found] = written(storage, "health")
        assert found["healthy"] and found["heartbeat"]["last_cycle"]
    (storage / "metadata.json").unlink()
    run_tool("run-loop", "--once", "--storage-dir", storage)
    [gone] = written(storage, "health")
    assert not gone["healthy"] and gone["heartbeat"]["last_cycle"]["lacks_evidence"]


def test_health_writes_of_a_loop_at_work(storage: Path) -> None:
    normal(storage)
    with loop(storage, "--dry-run", "--max-failures", "5") as running:
        running.wait_for("housekeeper.sleep")
        assert written(storage, "health")[0]["heartbeat"]["state"] == "sleeping"


def test_health_writes_of_a_heartbeat_of_an_older_version(storage: Path) -> None:
    run_tool("run-loop", "--once", "--storage-dir", storage)
    path = Path(written(storage, "health")[0]["heartbeat_file"])
    heartbeat = json.loads(path.read_text())
    for name in ("store", "boot", "monotonic_secs", "limit_from_file", "pid_namespace", "started_ticks"):
        del heartbeat[name]
    for name in ("limit_source", "lacks_evidence"):
        del heartbeat["last_cycle"][name]
    path.write_text(json.dumps(heartbeat))
    [found] = written(storage, "health")
    assert found["heartbeat"]["boot"] is None and found["heartbeat"]["last_cycle"]["limit_source"] is None


# What would be found


def objects(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in a value, the outermost too."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from objects(inner)


@pytest.mark.parametrize("words", ["list", "stats", "check -v", "purge --dry-run", "prune-size --max-mb 1B --dry-run"])
def test_a_key_more_or_less_or_of_another_type_is_found(storage: Path, words: str) -> None:
    odd(storage)
    name, found = words.split()[0], written(storage, words)[0]
    for number, original in enumerate(objects(found)):
        for key in ["surprise", *original]:
            changed = copy.deepcopy(found)
            place = list(objects(changed))[number]
            place[key] = {"surprise": []}
            assert list(problems(changed, SCHEMAS[name])), key
        if not set(original) <= set(HELP) | {DANGLING, FUTURE}:
            changed = copy.deepcopy(found)
            list(objects(changed))[number].popitem()
            assert list(problems(changed, SCHEMAS[name]))


@pytest.mark.parametrize(
    ("value", "schema", "right"),
    [
        (True, {"type": "integer"}, False), (True, {"type": "boolean"}, True), (1.5, {"type": "integer"}, False),
        (1, {"type": "number"}, True), (None, {"type": ["string", "null"]}, True), (None, {"type": "string"}, False),
        (-1, {"type": "integer", "minimum": 0}, False), (None, {"type": ["integer", "null"], "minimum": 0}, True),
        ("a", {"type": "string", "enum": ["b"]}, False), (1, {"type": ["integer", "boolean"], "enum": [True]}, False),
        (["a", 1], {"type": "array", "items": {"type": "string"}}, False),
        (1, {"anyOf": [{"type": "string"}, {"type": "integer"}]}, True),
        ([], {"anyOf": [{"type": "string"}, {"type": "integer"}]}, False),
    ],
)  # fmt: skip
def test_the_checker_itself(value: Any, schema: dict[str, Any], right: bool) -> None:
    assert not list(mistakes(schema))
    assert (not list(problems(value, schema))) == right


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "text"}, {"type": "string", "pattern": "x"}, {"type": "array"},
        {"type": "object", "properties": {}, "required": []},
        {"type": "object", "additionalProperties": False, "properties": {}, "required": ["a"]},
        {"type": "array", "items": {"type": "string", "$ref": "#"}},
    ],
)  # fmt: skip
def test_a_schema_that_would_not_be_compared_whole_is_found(schema: dict[str, Any]) -> None:
    assert list(mistakes(schema))
