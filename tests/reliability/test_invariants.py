"""Invariants over random stores with every kind of anomaly in them, end to end through the command line."""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from stores import leftovers, new_guid

from storage_manager.base.clock import Clock
from storage_manager.cli import main
from storage_manager.store import commit

STORES = 200
BATCHES = 10
NOW = datetime(2026, 6, 1)
OLD = 1_000_000_000


class Made(NamedTuple):
    """What the generator put into a store: the tool must come to the same view by itself."""

    healthy: dict[str, tuple[str, int, str | None]]
    """guid -> (created_at, real size, group)."""
    dangling: set[str]
    corrupt_keys: set[str]
    odd_files: set[str]
    """Names of files that nobody may delete."""


def make_random_store(storage: Path, rng: random.Random) -> Made:
    storage.mkdir(parents=True)
    members: list[tuple[str, Any]] = []
    made = Made({}, set(), set(), set())

    def blob(name: str, size: int, new: bool = False) -> None:
        (storage / name).write_bytes(b"b" * size)
        if not new:
            os.utime(storage / name, (OLD, OLD))

    for _ in range(rng.randrange(0, 25)):
        guid = new_guid(rng)
        # Few different moments, so that ties are common.
        created = (datetime(2026, 1, 1) + timedelta(hours=rng.randrange(20))).isoformat()
        size = rng.choice([0, 1, 10, 500, 1000, 1000, 3000])
        group = rng.choice([None, None, "a", "b"])
        entry: dict[str, Any] = {"format": rng.choice(["json", "png", "txt"]), "size": size, "created_at": created}
        if group is not None:
            entry["group"] = group
        if rng.random() < 0.3:
            entry[rng.choice(["url", "aliases", "é", "size"])] = rng.choice([None, 0.10, "x" * 50, [1, {}], "\u20ac"])
        kind = rng.random()
        if kind < 0.6:
            made.healthy[guid] = (created, size, group)
            blob(f"{guid}.{entry['format']}", size)
        elif kind < 0.75:
            made.dangling.add(guid)
        elif kind < 0.85:
            member, value = rng.choice(
                [("created_at", "never"), ("created_at", 7), ("format", "../x"), ("format", None)]
            )
            blob(f"{guid}.{entry['format']}", size)
            made.odd_files.add(f"{guid}.{entry['format']}")
            entry[member] = value
            made.corrupt_keys.add(guid)
        elif kind < 0.92:
            name = f"{guid}.{entry['format']}"
            if rng.random() < 0.5:
                (storage / name).mkdir()
            else:
                (storage / name).symlink_to("/dev/null")
            made.odd_files.add(name)
            made.corrupt_keys.add(guid)  # not corrupt itself, but as untouchable
        else:
            blob(f"{guid}.other", size)  # the blob has another extension than its entry says
            made.odd_files.add(f"{guid}.other")
            made.corrupt_keys.add(guid)
        members.append((guid, entry))
    for _ in range(rng.randrange(0, 4)):
        name = f"{new_guid(rng)}.json"
        blob(name, rng.choice([0, 100, 2000]), new=rng.random() < 0.5)
        made.odd_files.add(name)
    for _ in range(rng.randrange(0, 3)):
        key = rng.choice(["not a guid", "../../x", "", new_guid(rng) + "x"])
        members.append((key, rng.choice([1, None, {"format": "json"}, []])))
        made.corrupt_keys.add(key)
    rng.shuffle(members)
    indent = rng.choice([None, 2, "\t"])
    entries = dict(members)
    (storage / "metadata.json").write_text(json.dumps(entries, indent=indent, ensure_ascii=rng.random() < 0.5))
    made.corrupt_keys.intersection_update(entries)
    return made


Tool = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Tool:
    """One command in this process, with its --json result."""
    monkeypatch.setattr(Clock, "install", lambda self: None)
    monkeypatch.setattr(Clock, "now", lambda self: NOW)
    monkeypatch.setattr(commit, "SETTLE_SECS", 0.0)  # nobody writes beside these prunes
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # and the machine does not die

    def run(storage: Path, *arguments: object) -> tuple[int, dict[str, Any]]:
        try:
            code = main(["--storage-dir", str(storage), "--log-level", "ERROR", *map(str, arguments), "--json"])
        finally:
            gc.enable()
        captured = capfd.readouterr()
        assert "Traceback" not in captured.err and '"@x"' not in captured.err, captured.err
        return code, json.loads(captured.out)

    return run


def on_disk(storage: Path) -> set[str]:
    return {name for name in os.listdir(storage) if name != "metadata.json"}


def raw_members(storage: Path) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = json.loads(
        (storage / "metadata.json").read_text(), object_pairs_hook=lambda pairs: pairs, parse_float=str
    )
    return found


def random_command(rng: random.Random) -> list[str]:
    group = rng.choice([[], [], ["--group", "a"]])
    if rng.random() < 0.3:
        return ["purge", "--yes", "--age-days", str(rng.choice([0, 150.5, 151, 500])), *group]
    limit = rng.choice([1, 500, 3000, 8000, 20_000])
    target = rng.choice([[], ["--target-mb", f"{max(1, limit // 2)}B"]])
    protection = rng.choice([[], [], ["--keep-last", str(rng.randrange(6))], ["--min-age-mins", "217000"]])
    return ["prune-size", "--max-mb", f"{limit}B", *target, *protection, *group]


def check(tool: Tool, directory: Path, seed: int) -> None:
    rng = random.Random(seed)
    storage = directory / "storage"
    made = make_random_store(storage, rng)
    command = random_command(rng)
    group = "a" if "--group" in command else None
    scope = {guid: facts for guid, facts in made.healthy.items() if group is None or facts[2] == group}
    order = sorted(scope, key=lambda guid: (scope[guid][0], guid))
    before_text = (storage / "metadata.json").read_bytes()
    before = raw_members(storage)
    files = on_disk(storage)

    dry_code, dry = tool(storage, *command, "--dry-run")
    again_code, again = tool(storage, *command, "--dry-run")
    assert (dry_code, dry) == (again_code, again), "the same store gives the same plan"
    assert (storage / "metadata.json").read_bytes() == before_text and on_disk(storage) == files, "it only looks"
    copy = directory / "copy"
    shutil.copytree(storage, copy, symlinks=True)
    copied_code, copied = tool(copy, *command, "--dry-run")
    assert (copied_code, copied["plan"]) == (dry_code, dry["plan"]), "also in another directory order"

    code, real = tool(storage, *command)
    assert code == dry_code
    assert {**real, "dry_run": True} == dry, "the dry run is the real run"

    victims = [item["guid"] for item in real["plan"] if item["action"] == "delete"]
    swept = {item["guid"] for item in real["plan"] if item["action"] == "sweep"}
    assert victims == order[: len(victims)], "never a newer one while an older one of the scope stays"
    assert swept <= made.dangling
    gone = set(victims) | swept
    assert on_disk(storage) == files - {name for name in files if name[:36] in set(victims)}
    assert made.odd_files <= on_disk(storage), "anomalies are never deleted"
    assert raw_members(storage) == [(key, value) for key, value in before if key not in gone]
    assert made.corrupt_keys <= {key for key, _ in raw_members(storage)}
    assert leftovers(storage) == []
    assert real["freed_bytes"] == sum(scope[guid][1] for guid in victims)
    assert real["final_bytes"] == real["current_bytes"] - real["freed_bytes"]
    if not gone:
        assert (storage / "metadata.json").read_bytes() == before_text

    if real["target_bytes"] is not None:
        over = real["current_bytes"] > real["limit_bytes"]
        assert over or not victims, "within the limit nothing goes"
        assert code == (1 if over and real["final_bytes"] > real["target_bytes"] else 0)
        if victims:
            last = scope[victims[-1]][1]
            anomalous = real["current_bytes"] - sum(facts[1] for facts in scope.values())
            allowed = max(real["target_bytes"] - anomalous, real["target_bytes"] // 2)
            assert real["final_bytes"] - anomalous + last > allowed, "no more than is needed"
    second_code, second = tool(storage, *command)
    assert second["deleted_count"] == 0, "a second run finds nothing more to do"
    still_over = code == 1 and real["final_bytes"] > real["limit_bytes"]
    assert second_code == (1 if still_over else 0)


@pytest.mark.parametrize("batch", range(BATCHES))
def test_invariants_hold_on_random_stores(tmp_path: Path, tool: Tool, batch: int) -> None:
    for seed in range(batch, STORES, BATCHES):
        directory = tmp_path / str(seed)
        directory.mkdir()
        try:
            check(tool, directory, seed)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        shutil.rmtree(directory)
