"""How long a commit and a recovery wait for a writer, and what they do when it does not come: on a clock of our own."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
from collections.abc import Callable, Iterator
from datetime import timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from client import Client
from stores import leftovers, make_store, read_entries, run_tool, write_entries

from storage_manager.base.clock import Clock
from storage_manager.base.errors import CommitContended, Interrupted, StoreError
from storage_manager.base.log import EventLog
from storage_manager.store import recovery
from storage_manager.store.commit import PUT_BACK_PATIENCE_SECS, Committer
from storage_manager.store.directory import Store, open_store
from storage_manager.store.document import parse
from storage_manager.store.edit import Removal
from storage_manager.store.reading import Reading

METADATA = "metadata.json"
TMP = ".metadata.json.tmp"
PREV = ".metadata.json.prev"
MIB = 1 << 20

logging.getLogger("recoveries").addHandler(logging.NullHandler())
LOG = EventLog(logging.getLogger("recoveries"))


class Walked(Clock):
    """A clock that pauses move."""

    def __init__(self) -> None:
        super().__init__()
        self.passed_secs = 0.0
        self.on_pause: Callable[[], None] = lambda: None
        self._began_at = super().now()

    def now(self) -> Any:
        return self._began_at + timedelta(seconds=self.passed_secs)

    def monotonic(self) -> float:
        return self.passed_secs

    def pause(self, secs: float) -> None:
        self.passed_secs += secs
        self.on_pause()


@pytest.fixture
def clock() -> Walked:
    return Walked()


@pytest.fixture
def store(storage: Path) -> Iterator[Store]:
    storage.mkdir(exist_ok=True)
    with open_store(str(storage)) as opened:
        yield opened


@pytest.fixture
def committer(store: Store, clock: Walked) -> Iterator[Committer]:
    made = Committer(store, clock, LOG)
    yield made
    made.close()


def wrote(path: Path, clock: Clock, age_secs: float) -> None:
    at = clock.now().replace(tzinfo=timezone.utc).timestamp()
    os.utime(path, (at - age_secs, at - age_secs))


@pytest.mark.parametrize(
    ("size_bytes", "age_secs", "least_secs"),
    [
        (0, 0.0, 1.0),
        (0, 0.4, 0.6),
        (0, 5.0, 0.0),
        (0, -3600.0, 1.0),  # of a file from the future, nobody knows the age
        (100 * MIB, 0.0, 11.0),  # a client takes long to parse so much
        (100 * MIB, 8.0, 3.0),
    ],
)
def test_a_client_that_has_read_gets_the_time_to_write(
    storage: Path, committer: Committer, clock: Walked, size_bytes: int, age_secs: float, least_secs: float
) -> None:
    (storage / METADATA).touch()
    os.truncate(storage / METADATA, size_bytes)
    wrote(storage / METADATA, clock, age_secs)
    recovery.await_rewrite(committer)
    assert least_secs - 0.01 <= clock.passed_secs <= least_secs + 0.05


def test_a_client_that_has_written_is_waited_for_no_longer(storage: Path, committer: Committer, clock: Walked) -> None:
    make_store(storage, 1)
    wrote(storage / METADATA, clock, 0.0)
    clock.on_pause = lambda: os.truncate(storage / METADATA, 0)
    recovery.await_rewrite(committer)
    assert 0 < clock.passed_secs < 0.1


def test_an_old_file_is_not_given_up_as_torn_by_a_run_that_was_stopped(
    storage: Path, committer: Committer, clock: Walked
) -> None:
    make_store(storage, 1)
    (storage / PREV).write_text('{"torn": {')

    def stop() -> None:
        clock.stop_signal = signal.SIGTERM

    clock.on_pause = stop
    with pytest.raises(Interrupted):
        recovery.recover(committer)
    assert leftovers(storage) == [PREV]


def test_as_many_old_files_as_commits_may_leave_are_all_put_back(
    storage: Path, committer: Committer, clock: Walked
) -> None:
    """Merging the last of them takes a commit, and that a name."""
    guids = make_store(storage, 9)
    entries = read_entries(storage)
    for guid, name in zip(guids, [PREV, *(f"{PREV}.{number}" for number in range(1, 8))]):
        (storage / name).write_text(json.dumps({guid: entries[guid]}))
    write_entries(storage, {guids[8]: entries[guids[8]]})
    recovery.recover(committer)
    assert read_entries(storage) == entries


def test_an_old_file_under_the_name_that_only_a_recovery_uses_is_put_back(storage: Path, committer: Committer) -> None:
    guids = make_store(storage, 2)
    entries = read_entries(storage)
    (storage / f"{PREV}.8").write_text(json.dumps(entries))
    write_entries(storage, {guids[0]: entries[guids[0]]})
    recovery.recover(committer)
    assert read_entries(storage) == entries


def test_a_client_that_undoes_what_is_put_back_costs_a_run_one_patience_in_all(
    storage: Path, committer: Committer, clock: Walked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many old files there are, and although what is put back overlaps writes itself."""
    guids = make_store(storage, 4)
    entries = read_entries(storage)
    for guid, name in zip(guids[1:], [PREV, f"{PREV}.1", f"{PREV}.2"]):
        (storage / name).write_text(json.dumps({guid: entries[guid]}))
    write_entries(storage, {guids[0]: entries[guids[0]]})
    text = (storage / METADATA).read_text()
    real_rename = os.rename
    overlapped: list[str] = []
    is_quiet: list[bool] = []

    def undo() -> None:
        (storage / METADATA).write_text(text)

    def rename(source: str, *arguments: Any, **options: Any) -> None:
        if source != TMP or is_quiet:
            real_rename(source, *arguments, **options)
            return
        clock.passed_secs += 1.0
        with (storage / METADATA).open("w") as old:
            real_rename(source, *arguments, **options)
            overlapped.append(Client(storage).save())
            json.dump({**json.loads(text), overlapped[-1]: read_entries(storage)[overlapped[-1]]}, old)

    monkeypatch.setattr(os, "rename", rename)
    clock.on_pause = undo
    recovery.recover(committer)
    # What overlaps when patience has ended is not even tried; each attempt takes a second, each pause a little.
    assert clock.passed_secs < PUT_BACK_PATIENCE_SECS + 3 * 1.5 and len(leftovers(storage)) == 3 + len(overlapped)
    is_quiet.append(True)
    for _ in range(3):  # nobody writes: only the next run can be sure that it stays
        assert run_tool("prune-size", "--max-mb", "1P", "--storage-dir", storage).returncode == 0
    assert set(read_entries(storage)) == {*guids, *overlapped} and leftovers(storage) == []


@pytest.mark.parametrize("second", [None, 0, 5, 8])
def test_the_one_old_file_for_which_no_name_is_left_is_merged_as_well(storage: Path, second: int | None) -> None:
    """Or, where one of them is the current file itself, that one makes room."""
    guids = make_store(storage, 12)
    entries = read_entries(storage)
    names = [PREV, *(f"{PREV}.{number}" for number in range(1, 9))]
    missing = {name: guid for number, (name, guid) in enumerate(zip(names, guids)) if number != second}
    write_entries(storage, {guid: entries[guid] for guid in guids if guid not in missing.values()})
    for name in names:
        if name in missing:
            (storage / name).write_text(json.dumps({missing[name]: entries[missing[name]]}))
        else:
            os.link(storage / METADATA, storage / name)
    for _ in range(3):  # the next run makes sure, and then there are names for the last one, too
        done = run_tool("prune-size", "--max-mb", "1P", "--storage-dir", storage)
        assert done.returncode == 0 and ("kept_aside" in done.stderr) <= (second is None)
    assert leftovers(storage) == [] and set(read_entries(storage)) == set(guids)


def test_a_file_that_is_torn_while_something_is_put_back_is_not_yet_called_damaged(
    storage: Path, committer: Committer, clock: Walked
) -> None:
    guids = make_store(storage, 1)
    late = parse((storage / METADATA).read_bytes())
    (storage / METADATA).write_text('{"torn": {')
    with pytest.raises(CommitContended):
        committer.put_back(late, None, "commit")
    assert 4.0 <= clock.passed_secs <= 4.1
    (storage / METADATA).write_text("{}")
    assert not committer.put_back(late, None, "commit")  # only the next look can be sure of it
    assert list(read_entries(storage)) == guids and committer.put_back(late, None, "commit")


def test_a_commit_takes_no_longer_than_its_patience_whatever_it_waits_for(
    storage: Path, committer: Committer, clock: Walked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a torn file, and then, because it was written again, once more."""
    guids = make_store(storage, 2)
    (storage / f"{guids[0]}.json").unlink()
    text = (storage / METADATA).read_text()
    (storage / METADATA).write_text(text[:-1])

    def write() -> None:
        if clock.passed_secs > 3.0:
            (storage / METADATA).write_text(text)

    def unchanged(reading: Reading) -> bool:
        (storage / METADATA).write_text(text[:-1])
        clock.on_pause = lambda: None
        return False

    clock.on_pause = write
    monkeypatch.setattr(Reading, "unchanged", unchanged)
    with pytest.raises(CommitContended):
        committer.commit(Removal(committer.store, committer.clock, guids[:1], ()), None, 5.0)
    assert 5.0 <= clock.passed_secs <= 5.1


@pytest.mark.parametrize("has_links", [True, False])
def test_a_stop_leaves_a_half_written_save_to_the_next_run_unless_this_is_the_only_chance(
    storage: Path, committer: Committer, clock: Walked, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    guids = make_store(storage, 3)
    late = Client(storage).save()
    text = (storage / METADATA).read_text()
    write_entries(storage, {guid: entry for guid, entry in json.loads(text).items() if guid != late})
    (storage / f"{guids[0]}.json").unlink()
    real_rename, real_link = os.rename, os.link
    held: list[Any] = []

    def rename(source: str, *arguments: Any, **options: Any) -> None:
        if source == TMP and not clock.stopping:
            held.append((storage / METADATA).open("w"))
            clock.stop_signal = signal.SIGTERM
        real_rename(source, *arguments, **options)

    def link(*arguments: Any, **options: Any) -> None:
        if not has_links:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        real_link(*arguments, **options)

    def finish() -> None:
        if held and clock.passed_secs > 10.0:  # Docker would have killed us by now
            with held.pop() as file:
                file.write(text)

    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(os, "link", link)
    clock.on_pause = finish
    committer.commit(Removal(committer.store, committer.clock, guids[:1], ()), None)
    assert (late in read_entries(storage)) is not has_links
    assert (clock.passed_secs < 5.0) is has_links
    assert bool(held) is has_links
    for file in held:
        file.close()


@pytest.mark.parametrize("call", ["pwrite", "ftruncate", "fsync"])
def test_a_draft_that_could_not_be_written_is_not_used_again(
    storage: Path, committer: Committer, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    guids = make_store(storage, 2)
    (storage / f"{guids[0]}.json").unlink()
    removal = Removal(committer.store, committer.clock, guids[:1], ())

    def failing(*arguments: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing)
        with pytest.raises(StoreError):
            committer.commit(removal, None)
    assert leftovers(storage) == []
    committer.commit(removal, None)
    assert list(read_entries(storage)) == guids[1:]
