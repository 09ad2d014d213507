"""Beside a client that saves at full speed: no session that the policy has not chosen is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from stores import ROOT, blobs, clean_environment, command, events, leftovers, make_store, read_entries, run_tool
from stores import write_entries as rewrite

SAVES = 350
SAVE_BYTES = 100


def old_store(storage: Path, count: int) -> list[str]:
    """Sessions of 1000 bytes that are older than anything the client saves, whatever the clock says."""
    guids = make_store(storage, count)
    entries = read_entries(storage)
    for number, guid in enumerate(guids):
        entries[guid]["created_at"] = f"2001-01-01T{number // 60:02}:{number % 60:02}:00"
    rewrite(storage, entries)
    return guids


@contextmanager
def client(storage: Path, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "support" / "client.py"), str(storage), *map(str, arguments)],
        env=clean_environment(), stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def saved_by(process: subprocess.Popen[str]) -> list[str]:
    """Every guid that the client has printed, once it has ended."""
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 0
    return output.split()


def prune(storage: Path, limit_bytes: int) -> list[str]:
    """One prune; the guids it deleted. What it must never do, whatever its exit code."""
    done = run_tool("--storage-dir", storage, "--log-format", "json", "prune-size", "--max-mb", f"{limit_bytes}B")
    assert "@x" not in done.stderr, done.stderr
    keys = [item["event"] for item in events(done.stderr)]
    assert done.returncode == 0, done.stderr
    assert "storage_manager.metadata_corrupt" not in keys
    return [item["guid"] for item in events(done.stderr) if item["event"] == "storage_manager.prune.deleted"]


def expect_nothing_lost(storage: Path, saved: list[str], old: list[str], deleted: list[str]) -> None:
    entries = json.loads((storage / "metadata.json").read_text())
    present = blobs(storage)
    without_entry = [guid for guid in saved + old if guid in present and guid not in entries]
    assert without_entry == [], f"{len(without_entry)} sessions lost their entry"
    chosen = set(deleted)
    gone = [guid for guid in saved + old if guid not in chosen and guid not in present]
    assert gone == [], f"{len(gone)} sessions that nobody chose are gone"
    assert not chosen & present


def test_a_client_at_full_speed_loses_none_of_its_sessions(storage: Path) -> None:
    old = old_store(storage, 120)
    deleted: list[str] = []
    prunes = 0
    with client(storage, SAVES, "--mix", "--size", SAVE_BYTES) as process:
        # Each prune has some of the old sessions to delete, never one of the client's: those fit in.
        while process.poll() is None:
            prunes += 1
            found = prune(storage, 60_000 + max(0, 60_000 - 4000 * prunes))
            assert set(found) <= set(old)
            deleted += found
        saved = saved_by(process)
    assert len(saved) == SAVES - SAVES // 7
    assert prunes and deleted
    expect_nothing_lost(storage, saved, old, deleted)
    assert set(saved) <= set(read_entries(storage))
    aliased = [guid for guid, entry in read_entries(storage).items() if entry.get("aliases")]
    assert len(aliased) > SAVES // 10
    for _ in range(2):  # the first may keep what the second sees to be safe
        prune(storage, 10_000_000)
    assert leftovers(storage) == []


def test_a_client_whose_own_sessions_are_pruned_loses_no_other(storage: Path) -> None:
    """The limit is so low that the client's own sessions go, oldest first, while it saves new ones."""
    deleted: list[str] = []
    with client(storage, SAVES, "--mix", "--size", SAVE_BYTES) as process:
        while process.poll() is None:
            deleted += prune(storage, 40 * SAVE_BYTES)
        saved = saved_by(process)
    present = blobs(storage)
    entries = read_entries(storage)
    assert [guid for guid in saved if guid in present and guid not in entries] == []
    # What went is the oldest part of what was saved: the newest 39 were never over the limit.
    assert set(saved[-30:]) <= present
    assert [guid for guid in saved if guid not in present and guid not in set(deleted)] == []


def test_one_client_after_another_loses_nothing(storage: Path) -> None:
    old = old_store(storage, 60)
    deleted: list[str] = []
    saved: list[str] = []
    limit = 60_000 + 2 * SAVES * SAVE_BYTES // 2
    for group in ("first", "second"):
        with client(storage, SAVES // 2, "--group", group, "--size", SAVE_BYTES) as process:
            while process.poll() is None:
                limit -= 2000
                deleted += prune(storage, max(limit, SAVES * SAVE_BYTES + 1000))
            saved += saved_by(process)
    assert deleted and set(deleted) <= set(old)
    expect_nothing_lost(storage, saved, old, deleted)
    assert {read_entries(storage)[guid]["group"] for guid in saved} == {"first", "second"}


@pytest.mark.parametrize("limit", ["40000B", "3000B"])
def test_a_client_beside_the_loop_loses_nothing(storage: Path, tmp_path: Path, limit: str) -> None:
    old = old_store(storage, 60)
    log = tmp_path / "loop.log"
    environment = clean_environment(
        {
            "GOFR_DIG_HOUSEKEEPING_INTERVAL_MINS": "0.0001",
            "GOFR_DIG_MAX_STORAGE_MB": limit,
            "GOFR_DIG_LOG_JSON": "1",
        }
    )
    with open(log, "wb") as stderr, subprocess.Popen(
        command("--storage-dir", storage, "run-loop"), env=environment, stderr=stderr, stdout=subprocess.DEVNULL
    ) as loop:  # fmt: skip
        try:
            while b"housekeeper.sleep" not in log.read_bytes():  # it runs, and its first cycle is over
                assert loop.poll() is None
                time.sleep(0.01)
            with client(storage, SAVES, "--mix", "--size", SAVE_BYTES) as process:
                saved = saved_by(process)
        finally:
            loop.send_signal(signal.SIGTERM)
        assert loop.wait(60) == 0
    told = events(log.read_text())
    keys = [item["event"] for item in told]
    assert keys.count("housekeeper.cycle_start") > 1
    assert "housekeeper.cycle_failed" not in keys
    assert keys[-1] == "storage_manager.command_end" and "housekeeper.stopping" in keys
    deleted = [item["guid"] for item in told if item["event"] == "storage_manager.prune.deleted"]
    # A session that the client itself deletes is not printed; one that it saved after a prune chose it is.
    present = blobs(storage)
    entries = read_entries(storage)
    assert [guid for guid in saved + old if guid in present and guid not in entries] == []
    assert [guid for guid in saved + old if guid not in present and guid not in set(deleted)] == []
    assert deleted
    for _ in range(2):  # the first may keep what the second sees to be safe
        prune(storage, 10_000_000)
    assert leftovers(storage) == []


def test_orphans_are_adopted_beside_a_client_at_full_speed(storage: Path) -> None:
    """Each is a session in the end or an orphan still; what the client saves is not touched."""
    old = old_store(storage, 60)
    lost = old[::2]
    rewrite(storage, {guid: entry for guid, entry in read_entries(storage).items() if guid not in lost})
    for guid in lost:
        os.utime(storage / f"{guid}.json", (1_000_000_000, 1_000_000_000))
    adopted: set[str] = set()
    has_ended = False
    with client(storage, SAVES, "--mix", "--size", SAVE_BYTES) as process:
        while not has_ended:
            has_ended = process.poll() is not None  # once more when it has
            done = run_tool("--storage-dir", storage, "--log-format", "json", "check", "--adopt-orphans", "lost")
            assert done.returncode in (0, 1) and "@x" not in done.stderr, done.stderr
            assert "failed" not in " ".join(item["event"] for item in events(done.stderr)), done.stderr
            adopted |= {
                item["guid"] for item in events(done.stderr) if item["event"] == "storage_manager.adopt.adopted"
            }
        saved = saved_by(process)
    assert adopted == set(lost)
    expect_nothing_lost(storage, saved, old, [])
    entries = read_entries(storage)
    assert {guid for guid in entries if entries[guid].get("group") == "lost"} == set(lost)
    assert run_tool("--storage-dir", storage, "check", "--repair", "--yes").returncode == 0
    assert leftovers(storage) == []
