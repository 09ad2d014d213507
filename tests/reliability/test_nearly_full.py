"""A disk with little left, and a client that saves: what we write must never be what its write needed."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from client import Client
from images import memory_at
from stores import ROOT, blobs, event, events, leftovers, make_store, read_entries, run_tool

DISK_BYTES = 3 << 20
SESSIONS = 250
LONG = "x" * 1500  # of an entry: a URL with a token, for one


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "disk").mkdir()
    with memory_at(tmp_path / "disk", f"size={DISK_BYTES}") as directory:
        yield directory


def free_bytes(directory: Path) -> int:
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize


def fill(disk: Path, left_bytes: int) -> None:
    """Leave so much, or a page less."""
    with open(disk / "filler", "wb") as file:
        file.write(bytes(free_bytes(disk) - left_bytes))


def metadata_bytes(storage: Path) -> int:
    return (storage / "metadata.json").stat().st_size


@contextlib.contextmanager
def saving(storage: Path, stop: Path) -> Iterator[None]:
    """A client at work in a process of its own, until the end. None of its writes may fail.

    It deletes each session right after it was saved, so that the disk becomes no fuller of itself.
    """
    code = f"""
import sys, time
sys.path.insert(0, {str(ROOT / "tests" / "support")!r})
from pathlib import Path
from client import Client
client = Client(Path({str(storage)!r}))
print("ready", flush=True)
while not Path({str(stop)!r}).exists():
    client.delete(client.save(b"s" * 100, note={LONG!r}))
    time.sleep(0.002)
"""
    words = [sys.executable, "-c", code]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    try:
        yield
    finally:
        stop.touch()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err


@pytest.mark.parametrize("free_kib", [120, 200, 500])
def test_a_prune_never_takes_what_a_client_needs_for_its_write(disk: Path, tmp_path: Path, free_kib: int) -> None:
    storage = disk / "store"
    guids = make_store(storage, SESSIONS, size=4000, note=LONG)
    fill(disk, free_kib << 10)
    with saving(storage, tmp_path / "stop"), open(disk / "filler", "ab", buffering=0) as filler:
        for run in range(1, 7):
            # Each run deletes ten sessions, whose entries have to go, too. The room that this makes is used up again.
            limit = f"{4000 * (SESSIONS - 10 * run) + 1000}B"  # what the client has just saved has room
            done = run_tool("--storage-dir", storage, "prune-size", "--max-mb", limit)
            assert done.returncode == 0, done.stderr
            filler.write(bytes(10 * 4096))
    assert set(guids[60:]) <= set(read_entries(storage)), "entries are lost"
    assert set(guids[60:]) <= blobs(storage)


def test_a_commit_without_room_is_put_off_and_made_up_for(disk: Path) -> None:
    storage = disk / "store"
    guids = make_store(storage, SESSIONS, size=4000, note=LONG)
    text = (storage / "metadata.json").read_bytes()
    fill(disk, 200 << 10)
    keep = ("--storage-dir", storage, "prune-size", "--max-mb", f"{4000 * (SESSIONS - 20)}B")
    done = run_tool(*keep, "--json")
    assert done.returncode == 0
    assert blobs(storage) == set(guids[20:])
    assert (storage / "metadata.json").read_bytes() == text
    assert leftovers(storage) == []
    deferred = event(done.stderr, "storage_manager.commit_deferred")
    assert (deferred["@l"], deferred["entry_count"]) == ("Warning", 20)
    assert deferred["free_bytes"] < deferred["needed_bytes"] == pytest.approx(3 * len(text), abs=70_000)
    assert json.loads(done.stdout)["deferred_count"] == 20
    (disk / "filler").unlink()
    assert run_tool(*keep[:-1], f"{4000 * (SESSIONS - 21)}B").returncode == 0
    assert list(read_entries(storage)) == guids[21:]


def test_a_disk_that_the_deletion_makes_room_on_gets_its_commit(disk: Path) -> None:
    storage = disk / "store"
    guids = make_store(storage, SESSIONS, size=8000)
    fill(disk, 0)
    done = run_tool("--storage-dir", storage, "prune-size", "--max-mb", f"{8000 * 100}B")
    assert done.returncode == 0
    assert list(read_entries(storage)) == guids[150:]
    assert not [item for item in events(done.stderr) if item["event"] == "storage_manager.commit_deferred"]


def test_recovery_and_adoption_wait_for_room(disk: Path) -> None:
    storage = disk / "store"
    guids = make_store(storage, SESSIONS // 2, size=4000, note=LONG)
    late = Client(storage).save(note=LONG)
    os.rename(storage / "metadata.json", storage / ".metadata.json.prev")
    entries = json.loads((storage / ".metadata.json.prev").read_text())
    del entries[late]
    (storage / "metadata.json").write_text(json.dumps(entries, indent=2))
    orphan = guids[7]
    del entries[orphan]
    fill(disk, 100 << 10)
    done = run_tool("--storage-dir", storage, "prune-size", "--max-mb", "100")
    assert done.returncode == 0
    pending = event(done.stderr, "storage_manager.recovered")
    assert (pending["what"], pending["@l"]) == ("pending", "Warning")
    assert pending["free_bytes"] < pending["needed_bytes"]
    assert late not in read_entries(storage)
    assert leftovers(storage) == [".metadata.json.prev"]
    (disk / "filler").unlink()
    assert run_tool("--storage-dir", storage, "prune-size", "--max-mb", "100").returncode == 0
    assert late in read_entries(storage)

    (storage / ".metadata.json.prev").unlink(missing_ok=True)
    (storage / "metadata.json").write_text(json.dumps(entries, indent=2))
    old = time.time() - 3600
    for guid in (orphan, late):
        os.utime(storage / f"{guid}.json", (old, old))
    fill(disk, 100 << 10)
    done = run_tool("--storage-dir", storage, "check", "--adopt-orphans", "found", "--yes")
    assert "storage_manager.adopt.deferred" in [item["event"] for item in events(done.stderr)], done.stderr
    assert read_entries(storage) == entries
    assert leftovers(storage) == []


def test_nothing_is_written_beside_a_store_that_needs_the_room(disk: Path) -> None:
    storage = disk / "store"
    guids = make_store(storage, SESSIONS, size=4000, note=LONG)
    fill(disk, 200 << 10)
    env = {"GOFR_DIG_LOG_FILE": str(disk / "log"), "GOFR_DIG_HISTORY_FILE": str(disk / "history")}
    limit = f"{4000 * (SESSIONS - 2)}B"
    done = run_tool("--storage-dir", storage, "prune-size", "--max-mb", limit, env=env)
    assert done.returncode == 0
    assert blobs(storage) == set(guids[2:])
    assert (disk / "log").read_bytes() == (disk / "history").read_bytes() == b""
    assert "the service needs" in event(done.stderr, "storage_manager.history_failed")["@m"]
    (disk / "filler").unlink()
    run_tool("--storage-dir", storage, "prune-size", "--max-mb", limit, env=env)
    assert b"prune.check" in (disk / "log").read_bytes()
