"""How long a commit and a recovery wait, and what they give up when they stop: on a clock of the test's own."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from stores import make_store, read_entries, write_entries

from storage_manager.base.clock import Clock
from storage_manager.base.errors import Interrupted, StoreError
from storage_manager.base.log import EventLog
from storage_manager.store import commit
from storage_manager.store.commit import REWRITE_SECS, REWRITE_SECS_PER_BYTE, STOPPING_PATIENCE_SECS, Committer
from storage_manager.store.directory import Store, open_store
from storage_manager.store.edit import Removal
from storage_manager.store.names import METADATA_NAME, MOST_PREVIOUS, PREV_NAME, TMP_NAME, previous_names

NOW = datetime(2026, 6, 1)


class WaitingClock(Clock):
    """Time passes in pauses alone; `then` is called in each."""

    def __init__(self) -> None:
        super().__init__()
        self.secs = 0.0
        self.then: Callable[[], None] = lambda: None

    def now(self) -> datetime:
        return NOW + timedelta(seconds=self.secs)

    def monotonic(self) -> float:
        return self.secs

    def pause(self, secs: float) -> None:
        self.secs += secs
        self.then()


@pytest.fixture
def clock() -> WaitingClock:
    return WaitingClock()


@pytest.fixture
def store(storage: Path) -> Iterator[Store]:
    with open_store(str(storage)) as opened:
        yield opened


@pytest.fixture
def committer(store: Store, clock: WaitingClock, monkeypatch: pytest.MonkeyPatch) -> Iterator[Committer]:
    monkeypatch.setattr(commit, "WATCH_SECS", 0.0)
    made = Committer(store, clock, EventLog(logging.Logger("test")))
    yield made
    made.close()


def written_now(path: Path) -> None:
    secs = NOW.replace(tzinfo=timezone.utc).timestamp()
    os.utime(path, (secs, secs))


def times_of_renames(patch: pytest.MonkeyPatch, clock: WaitingClock) -> list[float]:
    real = os.rename
    found: list[float] = []

    def rename(*arguments: Any, **options: Any) -> None:
        found.append(clock.secs)
        real(*arguments, **options)

    patch.setattr(os, "rename", rename)
    return found


@pytest.mark.parametrize("padding_mib", [0, 8])
def test_a_recovery_waits_until_a_client_that_read_before_it_must_have_written(
    storage: Path, committer: Committer, clock: WaitingClock, monkeypatch: pytest.MonkeyPatch, padding_mib: int
) -> None:
    guids = make_store(storage, 3)
    entries = read_entries(storage)
    (storage / PREV_NAME).write_text(json.dumps(entries))
    padding = " " * (padding_mib << 20)
    (storage / METADATA_NAME).write_text("{" + padding + json.dumps({guids[0]: entries[guids[0]]})[1:])
    written_now(storage / METADATA_NAME)
    renamed_at = times_of_renames(monkeypatch, clock)
    committer.recover()
    assert len(renamed_at) == 1
    assert renamed_at[0] >= REWRITE_SECS + REWRITE_SECS_PER_BYTE * len(padding)
    assert set(read_entries(storage)) == set(guids)


def test_a_recovery_that_is_asked_to_stop_moves_nothing_aside(
    storage: Path, committer: Committer, clock: WaitingClock
) -> None:
    make_store(storage, 2)
    (storage / PREV_NAME).write_text('{"half')

    def stop() -> None:
        clock.stop_signal = 15

    clock.then = stop
    with pytest.raises(Interrupted):
        committer.recover()
    assert (storage / PREV_NAME).read_text() == '{"half'


def test_a_recovery_has_a_name_left_when_all_that_commits_use_are_taken(storage: Path, committer: Committer) -> None:
    guids = make_store(storage, 3)
    entries = read_entries(storage)
    write_entries(storage, {guid: entries[guid] for guid in guids[:2]})
    old = NOW.replace(tzinfo=timezone.utc).timestamp() - 1000
    os.utime(storage / METADATA_NAME, (old, old))
    assert len(previous_names()) == MOST_PREVIOUS
    for name in previous_names():
        (storage / name).write_text(json.dumps(entries))
    committer.recover()
    assert set(read_entries(storage)) == set(guids)


@pytest.mark.parametrize(("hard_links", "merged"), [(False, True), (True, False)])
def test_without_hard_links_a_late_save_is_waited_for_even_when_asked_to_stop(
    storage: Path,
    store: Store,
    committer: Committer,
    clock: WaitingClock,
    monkeypatch: pytest.MonkeyPatch,
    hard_links: bool,
    merged: bool,
) -> None:
    """With one, the next run finds the old file by it and can go on waiting."""
    guids = make_store(storage, 3)
    entries = read_entries(storage)
    late = make_store(storage, 1, seed=9)[0]
    text = json.dumps({**entries, late: read_entries(storage)[late]}).encode()
    write_entries(storage, entries)
    if not hard_links:

        def link(*arguments: Any, **options: Any) -> None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr(os, "link", link)
    real = os.rename
    writer = -1

    def rename(*arguments: Any, **options: Any) -> None:
        nonlocal writer
        if writer < 0:
            writer = os.open(storage / METADATA_NAME, os.O_WRONLY | os.O_TRUNC)
            clock.stop_signal = 15
        real(*arguments, **options)

    def finish() -> None:
        if clock.secs > 2 * STOPPING_PATIENCE_SECS and os.fstat(writer).st_size == 0:
            os.write(writer, text)

    monkeypatch.setattr(os, "rename", rename)
    clock.then = finish
    (storage / f"{guids[0]}.json").unlink()
    committer.commit(Removal(store, {guids[0]}, ()), None)
    os.close(writer)
    assert (late in read_entries(storage)) == merged
    assert (storage / PREV_NAME).exists() == hard_links


@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_a_draft_whose_writing_failed_is_never_used_again(
    storage: Path, store: Store, committer: Committer, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """After a failed fsync the kernel takes the lost pages for clean."""
    guids = make_store(storage, 3)

    def failing(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (storage / f"{guids[0]}.json").unlink()
    removal = Removal(store, {guids[0]}, ())
    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing)
        with pytest.raises(StoreError):
            committer.commit(removal, None)
    assert not (storage / TMP_NAME).exists()
    committer.commit(removal, None)
    assert list(read_entries(storage)) == guids[1:]
