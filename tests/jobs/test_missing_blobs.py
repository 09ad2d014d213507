"""Entries without blobs: swept where an interrupted run or a few deletions explain them, else nothing is deleted."""

from __future__ import annotations

import json
import os
import random
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from stores import blobs, event, make_store, read_entries, run_tool

from storage_manager.jobs.policy import FEW_IN, FEW_MISSING, blobs_are_missing
from storage_manager.store.snapshot import Session, Snapshot

BEGIN = datetime(2026, 1, 1)
COMMANDS = [
    ("prune-size", "--max-mb", "1000B"),
    ("purge", "--age-days", "30"),
    ("purge", "--age-days", "0", "--yes"),
    ("purge", "--orphans", "--age-days", "0", "--yes"),
    ("purge", "--age-days", "30", "--dry-run"),
]


def without(storage: Path, guids: list[str]) -> None:
    for guid in guids:
        os.unlink(storage / f"{guid}.json")


def sessions(ages: list[int]) -> list[Session]:
    return sorted(Session(BEGIN + timedelta(days=age), f"{age:036}", "json", None, 1, 1) for age in ages)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("present", ["none", "five", "the oldest half", "every other"])
def test_a_store_whose_blobs_are_missing_loses_nothing(storage: Path, command: tuple[str, ...], present: str) -> None:
    guids = make_store(storage, 100)
    chosen = {"none": [], "five": random.Random(1).sample(guids, 5), "the oldest half": guids[:50]}.get(
        present, guids[::2]
    )
    without(storage, [guid for guid in guids if guid not in chosen])
    before = (storage / "metadata.json").read_bytes()
    done = run_tool("--storage-dir", storage, *command)
    assert done.returncode == 1
    told = event(done.stderr, "storage_manager.storage_suspect")
    assert (told["@l"], told["missing_count"], told["entry_count"]) == ("Error", 100 - len(chosen), 100)
    assert "check --repair" in told["@m"]
    assert (storage / "metadata.json").read_bytes() == before
    assert blobs(storage) == set(chosen)


def test_a_cycle_fails_and_health_says_so_at_once(storage: Path) -> None:
    guids = make_store(storage, 100)
    assert run_tool("run-loop", "--once", "--storage-dir", storage).returncode == 0
    without(storage, guids)
    assert run_tool("run-loop", "--once", "--storage-dir", storage).returncode == 1
    asked = run_tool("health", "--storage-dir", storage)
    assert asked.returncode == 1 and "100 of 100 entries" in asked.stdout


def test_a_repair_is_the_way_out(storage: Path) -> None:
    guids = make_store(storage, 100)
    without(storage, guids[5:])
    done = run_tool("check", "--repair", "--yes", "--json", "--storage-dir", storage)
    assert json.loads(done.stdout)["swept_count"] == 95
    assert list(read_entries(storage)) == guids[:5]
    assert run_tool("purge", "--age-days", "0", "--yes", "--storage-dir", storage).returncode == 0
    assert read_entries(storage) == {}


@pytest.mark.parametrize("gone", [1, 60, 99])
def test_what_an_interrupted_run_left_is_swept(storage: Path, gone: int) -> None:
    guids = make_store(storage, 100)
    without(storage, guids[:gone])
    assert run_tool("purge", "--age-days", "0", "--yes", "--storage-dir", storage).returncode == 0
    assert read_entries(storage) == {} and blobs(storage) == set()


def test_few_missing_blobs_are_everyday_life() -> None:
    for total in (1, FEW_MISSING, 100, FEW_IN * FEW_MISSING, FEW_IN * 50):
        few = max(FEW_MISSING, total // FEW_IN)
        for count in {0, 1, few, few + 1, total} - {total + 1}:
            if count > total:
                continue
            newest = range(total - count, total)
            store = Snapshot(sessions(list(range(total - count))), sessions(list(newest)), [])
            assert blobs_are_missing(store) == (count > few), (total, count)


def test_what_is_older_than_every_session_is_explained() -> None:
    rng = random.Random(7)
    for _ in range(300):
        ages = list(range(rng.randint(1, 200)))
        dangling = sessions([age for age in ages if rng.random() < 0.5])
        present = sessions([age for age in ages if age not in {(one.created_at - BEGIN).days for one in dangling}])
        unexplained = [one for one in dangling if not present or one > present[0]]
        expected = len(unexplained) > max(FEW_MISSING, len(ages) // FEW_IN)
        assert blobs_are_missing(Snapshot(present, dangling, [])) == expected
