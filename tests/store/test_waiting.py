"""What waits or takes long: it ends in time, and tells that it is at work."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stores import blobs, events, make_store, read_entries

from storage_manager.base.clock import Clock
from storage_manager.base.log import EventLog, build_logger
from storage_manager.cli import main
from storage_manager.jobs import prune
from storage_manager.store import commit, inventory, replace
from storage_manager.store.directory import Store
from storage_manager.store.survey import take_snapshot


@pytest.mark.parametrize(("count", "calls"), [(0, 2), (8, 3), (9, 3), (10, 4), (35, 6)])
def test_a_listing_tells_of_its_progress(
    storage: Path, monkeypatch: pytest.MonkeyPatch, count: int, calls: int
) -> None:
    monkeypatch.setattr(inventory, "PROGRESS_FILES", 10)
    make_store(storage, count)
    clock = Clock()
    told: list[int] = []
    clock.listener = lambda: told.append(1)
    take_snapshot(str(storage), clock, EventLog(build_logger(None, True, 10)))
    assert len(told) == calls


@pytest.mark.parametrize(
    "words",
    [
        ("prune-size", "--max-mb", "100B"),
        ("purge", "--age-days", "0", "--yes"),
        ("purge", "--orphans", "--age-days", "0", "--yes"),
        ("check", "--repair", "--yes"),
    ],
)
def test_no_more_than_some_files_are_looked_at_without_a_sign_of_life(
    storage: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    """On a slow network file system each takes milliseconds, and thousands of them look like a loop that hangs."""
    few = 10
    monkeypatch.setattr(Clock, "install", lambda self: None)
    monkeypatch.setattr(inventory, "PROGRESS_FILES", few)
    guids = make_store(storage, 200, size=100)
    for guid in guids[:90]:
        (storage / f"{guid}.json").unlink()
    for number in range(100):
        orphan = storage / f"00000000-0000-4000-8000-{number:012}.json"
        orphan.write_bytes(b"x")
        os.utime(orphan, (1, 1))
    silent, longest = 0, 0

    def stat(
        name: str, *arguments: Any, real: Callable[..., os.stat_result] = os.stat, **options: Any
    ) -> os.stat_result:
        nonlocal silent, longest
        if "dir_fd" in options:
            silent += 1
            longest = max(longest, silent)
        return real(name, *arguments, **options)

    def progress(self: Clock, steps: int = 0) -> None:
        nonlocal silent
        silent = 0

    monkeypatch.setattr(os, "stat", stat)
    monkeypatch.setattr(Clock, "progress", progress)
    main(["--storage-dir", str(storage), "--log-level", "critical", *words])
    assert few <= longest <= few + 5


def test_a_torn_file_puts_a_commit_off_and_the_deletions_go_on(
    storage: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    guids = make_store(storage, 8)
    text = (storage / "metadata.json").read_bytes()
    monkeypatch.setattr(Clock, "install", lambda self: None)
    monkeypatch.setattr(prune, "COMMIT_EVERY_SECS", 0.0)
    monkeypatch.setattr("storage_manager.store.locked.COMMIT_PATIENCE_SECS", 0.05)
    for module in (commit, replace):
        monkeypatch.setattr(module, "READ_PATIENCE_SECS", 60.0)
    real = Store.unlink

    def unlink(self: Store, name: str) -> bool:
        done = real(self, name)
        if name.endswith(".json"):  # torn while blobs go, and whole again with the last
            (storage / "metadata.json").write_bytes(text if name.startswith(guids[4]) else text[:-1])
        return done

    monkeypatch.setattr(Store, "unlink", unlink)
    words = ["--storage-dir", str(storage), "--log-format", "json", "prune-size", "--max-mb", "3500B"]
    assert main(words) == 0
    assert blobs(storage) == set(guids[5:]) == set(read_entries(storage))
    deferred = [item for item in events(capfd.readouterr().err) if item["event"] == "storage_manager.commit_deferred"]
    assert len(deferred) == 4
    assert not any("backup," in json.dumps(item) for item in deferred)
