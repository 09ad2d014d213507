"""Entries without blobs: swept where an interrupted run or a few deletions explain them, else nothing is deleted."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
from stores import blobs, event, make_store, read_entries, run_tool

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


def brought_back(storage: Path, count: int, gone: int) -> list[str]:
    """A store of which a run has deleted so many, whose entries a client wrote back, and an older session whose entry
    was put back late."""
    guids = make_store(storage, count)
    text = (storage / "metadata.json").read_bytes()
    entries = json.loads(text)
    late = entries.pop(guids[0])
    (storage / "metadata.json").write_text(json.dumps(entries, indent=2))
    most = sum(entries[guid]["size"] for guid in guids[gone + 1 :])
    done = run_tool("--storage-dir", storage, "prune-size", "--max-mb", f"{most + late['size']}B")
    assert done.returncode == 0, done.stderr
    assert blobs(storage) == {guids[0], *guids[gone + 1 :]}
    (storage / "metadata.json").write_bytes(text)
    return guids


@pytest.mark.parametrize(
    "command", [("prune-size", "--max-mb", "1000B"), ("purge", "--age-days", "1"), ("run-loop", "--once")], ids=" ".join
)
def test_what_earlier_runs_have_deleted_is_explained_beside_a_session_that_is_older(
    storage: Path, command: tuple[str, ...]
) -> None:
    guids = brought_back(storage, 100, 60)
    for extra in ("--dry-run", "--quiet"):
        done = run_tool("--storage-dir", storage, "prune-size", "--max-mb", "1P", extra)
        assert done.returncode == 0, done.stderr
    done = run_tool("--storage-dir", storage, *command, env={"GOFR_DIG_MAX_STORAGE_MB": "1000B"})
    assert done.returncode == 0 and not blobs(storage) & set(guids[:61]), done.stderr
    assert set(read_entries(storage)) == blobs(storage)


@pytest.mark.parametrize("doubt", ["no history", "restored", "others are missing", "all are missing"])
def test_a_history_explains_neither_a_restored_store_nor_what_it_does_not_tell(storage: Path, doubt: str) -> None:
    guids = brought_back(storage, 100, 60)
    env = {}
    if doubt == "no history":
        env = {"GOFR_DIG_HISTORY_FILE": "off"}
    elif doubt == "restored":
        (storage / f"{guids[40]}.json").write_bytes(b"x")
    else:
        without(storage, guids[70:81] if doubt == "others are missing" else [guids[0], *guids[61:]])
    before = (storage / "metadata.json").read_bytes(), blobs(storage)
    for command in COMMANDS:
        done = run_tool("--storage-dir", storage, *command, env=env)
        assert done.returncode == 1 and event(done.stderr, "storage_manager.storage_suspect"), done.stderr
        assert ((storage / "metadata.json").read_bytes(), blobs(storage)) == before


def test_a_history_that_cannot_be_read_is_told_of(storage: Path, tmp_path: Path) -> None:
    brought_back(storage, 100, 60)
    (tmp_path / "history").symlink_to("/dev/null")
    env = {"GOFR_DIG_HISTORY_FILE": str(tmp_path / "history")}
    done = run_tool("--storage-dir", storage, "prune-size", "--max-mb", "1000B", "--dry-run", env=env)
    assert done.returncode == 1
    assert "cannot read the history" in event(done.stderr, "storage_manager.history_failed")["@m"]


def test_a_purge_of_a_whole_group_goes_on_where_a_client_has_brought_its_entries_back(storage: Path) -> None:
    stays = set(make_store(storage, 5))
    make_store(storage, 50, seed=2, group="weekly")
    text = (storage / "metadata.json").read_bytes()
    purge = ("--storage-dir", storage, "purge", "--age-days", "0", "--group", "weekly", "--yes")
    assert run_tool(*purge).returncode == 0
    for _ in range(2):
        (storage / "metadata.json").write_bytes(text)
        done = run_tool(*purge)
        assert done.returncode == 0, done.stderr
        assert set(read_entries(storage)) == blobs(storage) == stays
    (storage / "metadata.json").write_bytes(text)
    done = run_tool(*purge, env={"GOFR_DIG_HISTORY_FILE": "off"})
    assert done.returncode == 1 and event(done.stderr, "storage_manager.storage_suspect"), done.stderr
