"""The commit beside a writer without a lock: what must survive interleavings, failing calls, and crashes."""

from __future__ import annotations

import errno
import gc
import json
import os
import re
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import stores
from client import Client
from stores import blobs, event, events, leftovers, make_store, read_entries, run_as_nobody, write_entries

from storage_manager.base.clock import Clock
from storage_manager.cli import main
from storage_manager.jobs import prune as prune_job
from storage_manager.store import commit, reading, recovery, replace, survey

TMP = ".metadata.json.tmp"
PREV = ".metadata.json.prev"
METADATA = "metadata.json"
NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")

# Eight sessions of 1000 bytes: the three oldest go, also when a small save is under way.
COUNT, LIMIT, VICTIMS = 8, "5500B", 3


class Result(NamedTuple):
    code: int
    err: str

    def names(self) -> list[str]:
        return [item["event"] for item in events(self.err)]

    def recovered(self) -> list[str]:
        return [item["what"] for item in events(self.err) if item["event"] == "storage_manager.recovered"]


Prune = Callable[..., Result]


@pytest.fixture
def prune(storage: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Prune:
    """prune-size in this process, where its system calls can be watched, delayed and made to fail."""
    monkeypatch.setattr(Clock, "install", lambda self: None)

    def run(limit: str = LIMIT) -> Result:
        try:
            code = main(["--storage-dir", str(storage), "--log-format", "json", "prune-size", "--max-mb", limit])
        finally:
            gc.enable()
        return Result(code, capfd.readouterr().err)

    return run


@pytest.fixture
def guids(storage: Path) -> list[str]:
    return make_store(storage, COUNT)


def names_in(arguments: tuple[Any, ...]) -> set[str]:
    """The names of the files that a system call is about: its strings, and what its descriptors were opened as."""
    names = set()
    for argument in arguments:
        if isinstance(argument, str):
            names.add(argument)
        elif type(argument) is int:
            try:
                path = os.readlink(f"/proc/self/fd/{argument}")
            except OSError:
                continue
            names.add(os.path.basename(path.replace(" (deleted)", "")))
    return names


def is_blob_call(arguments: tuple[Any, ...]) -> bool:
    return any(re.fullmatch(r"[0-9a-f-]{36}\.json", name) for name in names_in(arguments))


def fail(
    patch: pytest.MonkeyPatch,
    call: str,
    name: str,
    code: int,
    when: Callable[..., bool] = lambda *arguments: True,
    position: int | None = None,
) -> list[int]:
    """Let `os.<call>` fail for one file; returns a list that grows with each failure."""
    real = getattr(os, call)
    failures: list[int] = []

    def failing(*arguments: Any, **options: Any) -> Any:
        subject = arguments if position is None else arguments[position : position + 1]
        if name in names_in(subject) and when(*arguments):
            failures.append(code)
            raise OSError(code, os.strerror(code))
        return real(*arguments, **options)

    patch.setattr(os, call, failing)
    return failures


def armed_by(patch: pytest.MonkeyPatch, call: str, subject: Callable[[tuple[Any, ...]], bool]) -> list[bool]:
    """A list that stays empty until `os.<call>` has succeeded on the subject."""
    real = getattr(os, call)
    armed: list[bool] = []

    def watching(*arguments: Any, **options: Any) -> Any:
        result = real(*arguments, **options)
        if subject(arguments):
            armed.append(True)
        return result

    patch.setattr(os, call, watching)
    return armed


def around(
    patch: pytest.MonkeyPatch,
    call: str,
    name: str,
    before: Callable[[], None] = lambda: None,
    after: Callable[[], None] = lambda: None,
    times: int = 1,
) -> list[bool]:
    """Do something right before and after the first `times` calls of `os.<call>` whose first argument is `name`."""
    real = getattr(os, call)
    calls: list[bool] = []

    def wrapped(*arguments: Any, **options: Any) -> Any:
        if arguments[0] != name or len(calls) >= times:
            return real(*arguments, **options)
        calls.append(True)
        before()
        result = real(*arguments, **options)
        after()
        return result

    patch.setattr(os, call, wrapped)
    return calls


def before_rename(patch: pytest.MonkeyPatch, action: Callable[[], object], times: int = 1) -> list[str]:
    """Do something in the first `times` attempts of the commit, when it has read and written, not yet renamed.

    Returns a list of the names that were linked, one for each attempt.
    """
    real = os.link
    armed = armed_by(patch, "unlink", is_blob_call)  # a link before the first deletion is no attempt
    links: list[str] = []

    def link(source: str, name: str, **options: Any) -> None:
        real(source, name, **options)
        if armed:
            links.append(name)
            if len(links) <= times:
                action()

    patch.setattr(os, "link", link)
    return links


class Writer:
    """A client caught in the middle of a rewrite: opened (and so truncated), not yet written and closed."""

    def __init__(self, client: Client, change: Callable[[dict[str, Any]], None]) -> None:
        self.client = client
        self.change = change

    def open(self) -> None:
        entries = self.client.read()
        self.change(entries)
        self.text = json.dumps(entries, indent=2)
        self.file = os.fdopen(os.open(self.client.metadata, os.O_WRONLY | os.O_TRUNC), "w")

    def write_half(self) -> None:
        half = len(self.text) // 2
        self.file.write(self.text[:half])
        self.file.flush()
        self.text = self.text[half:]

    def finish(self) -> None:
        with self.file:
            self.file.write(self.text)


def new_session(storage: Path, size: int = 100) -> tuple[str, Callable[[dict[str, Any]], None]]:
    """A blob that has been saved, and the change to the metadata that its client is about to make."""
    client = Client(storage)
    before = client.metadata.read_bytes()
    guid = client.save(b"n" * size)
    entry = client.read()[guid]
    client.metadata.write_bytes(before)
    return guid, lambda entries: entries.update({guid: entry})


def expect_cleared(storage: Path, prune: Prune) -> None:
    """What was kept until it is certain that a merge stays goes with a later run; one may keep it for the next."""
    for _ in range(3):
        prune("10")
    assert leftovers(storage) == []


def expect_kept(storage: Path, guids: list[str]) -> None:
    entries = read_entries(storage)
    on_disk = blobs(storage)
    missing = [guid for guid in guids if guid not in entries or guid not in on_disk]
    assert not missing, f"lost: {missing}"


def text_of(storage: Path, guids: list[str]) -> str:
    """What metadata.json must be when of a store as `make_store` makes it only these entries are left."""
    entries = read_entries(storage)
    return json.dumps({guid: entries[guid] for guid in guids}, indent=2)


# --- survivors' bytes, owner and mode ----------------------------------------------------------------------


def odd_pieces(storage: Path) -> list[tuple[str, str]]:
    """Members as a client, an editor or a script may have written them, oldest first: (guid, text)."""
    guids = [f"0000000{number}-aaaa-4bbb-8ccc-dddddddddddd" for number in range(6)]
    created = [f"2020-01-0{number + 1}T00:00:00" for number in range(6)]
    texts = [
        '\n  "{g}": {{"format": "json", "size": 1000, "created_at": "{c}"}}',
        '"{g}":{{"created_at":"{c}","format":"json","size":1E+3,"z":-0,"y":0.10,"x":1.0e-007,"w":12345678901234567890}}',
        '\r\n\t"{g}" \t:\n {{ "format" : "json" , "format" : "json", "created_at" : "{c}", '
        '"url" : "https:\\/\\/x/?token=%7B}},{{" }}',
        ' "{g}": {{"created_at": "{c}", "format": "json", "title": "\\u00e9\\ud83d\\ude00 é €", '
        '"aliases": ["a", "a", null, [[]]]}}',
        '\n"{g}": {{"created_at": "{c}", "format": "json", "": {{"": {{}}}}, "n": NaN, "i": -Infinity, "big": 1e999}}',
        '\n\n  "{g}"  :  {{"format":"json","created_at":"{c}"}} \n ',
    ]  # fmt: skip
    for guid in guids:
        (storage / f"{guid}.json").write_bytes(b"x" * 1000)
    return [(g, text.format(g=g, c=c)) for g, c, text in zip(guids, created, texts)]


@pytest.mark.parametrize("keep", range(7))
def test_survivors_keep_their_exact_bytes(storage: Path, prune: Prune, keep: int) -> None:
    pieces = odd_pieces(storage)
    whole = "{" + ",".join(text for _, text in pieces) + "\n}  \n"
    (storage / METADATA).write_bytes(whole.encode())
    result = prune(f"{max(1, keep * 1000)}B")
    assert result.code == 0
    kept = pieces[len(pieces) - keep :]
    tail = "\n}  \n" if kept else "}  \n"
    expected = "{" + ",".join(text for _, text in kept) + tail
    found = (storage / METADATA).read_bytes()
    # The space before the brace belongs to nobody; where the last member goes, it may go along.
    assert found == expected.encode() or (not kept and json.loads(found) == {})
    assert blobs(storage) == {guid for guid, _ in kept}


def test_survivors_keep_their_order_when_victims_stand_between_them(storage: Path, prune: Prune) -> None:
    pieces = odd_pieces(storage)
    order = [5, 0, 3, 1, 4, 2]
    (storage / METADATA).write_bytes(("{" + ",".join(pieces[i][1] for i in order) + "}").encode())
    assert prune("3000B").code == 0
    kept = [pieces[i][1].rstrip() for i in order if i >= 3]  # the space before a comma is no member's
    assert (storage / METADATA).read_bytes() == ("{" + ",".join(kept) + "}").encode()


def test_duplicate_and_foreign_members_survive_a_commit(storage: Path, guids: list[str], prune: Prune) -> None:
    members = [
        *(f'"{guid}": {json.dumps(entry)}' for guid, entry in read_entries(storage).items()),
        '"not a guid": [1, 2,  3]',
        '"not a guid": "again"',
        f'"{guids[-1]}": {json.dumps(read_entries(storage)[guids[-1]])}',
        '"": 0.0',
    ]
    (storage / METADATA).write_text("{" + ",\n".join(members) + "}")
    assert prune().code == 0
    assert (storage / METADATA).read_text() == "{\n" + ",\n".join(members[VICTIMS:]) + "}"


def test_all_duplicates_of_a_victim_go(storage: Path, guids: list[str], prune: Prune) -> None:
    entries = read_entries(storage)
    members = [f'"{guid}": {json.dumps(entries[guid])}' for guid in [*guids, guids[0], guids[1]]]
    (storage / METADATA).write_text("{" + ", ".join(members) + "}")
    assert prune().code == 0
    assert list(read_entries(storage)) == guids[VICTIMS:]
    assert not any(guid in (storage / METADATA).read_text() for guid in guids[:VICTIMS])


def test_a_large_document_is_copied_exactly_across_the_chunks_of_the_draft(storage: Path, prune: Prune) -> None:
    guids = make_store(storage, COUNT, text="é" * 200_000, token="x" * 1_500_000)
    expected = text_of(storage, guids[VICTIMS:])
    assert prune().code == 0
    assert (storage / METADATA).read_text() == expected


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o666, 0o460])
def test_the_mode_is_kept(storage: Path, guids: list[str], prune: Prune, mode: int) -> None:
    os.chmod(storage / METADATA, mode)
    assert prune().code == 0
    assert stat.S_IMODE(os.stat(storage / METADATA).st_mode) == mode


@needs_root
def test_owner_group_and_mode_are_kept(storage: Path, guids: list[str], prune: Prune) -> None:
    os.chown(storage / METADATA, 1234, 4321)
    os.chmod(storage / METADATA, 0o640)
    assert prune().code == 0
    status = os.stat(storage / METADATA)
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1234, 4321, 0o640)
    assert list(read_entries(storage)) == guids[VICTIMS:]


@needs_root
def test_a_user_who_cannot_reproduce_the_owner_deletes_nothing(storage: Path, guids: list[str]) -> None:
    for path in [storage, *storage.iterdir()]:
        os.chown(path, 1234, 1234)
    os.chmod(storage, 0o777)
    os.chmod(storage / METADATA, 0o666)
    before = (storage / METADATA).read_bytes()
    done = run_as_nobody(storage, "prune-size", "--max-mb", LIMIT)
    assert done.returncode == 1
    found = event(done.stderr, "storage_manager.prune.failed")
    assert METADATA in found["@m"] and "1234" in found["@m"]
    assert found["exit_code"] == 1 and found["deleted_count"] == 0
    assert blobs(storage) == set(guids)
    assert (storage / METADATA).read_bytes() == before
    assert leftovers(storage) == []


@needs_root
def test_a_user_who_owns_the_store_prunes_it_without_being_root(storage: Path, guids: list[str]) -> None:
    for path in [storage, *storage.iterdir()]:
        os.chown(path, NOBODY, NOBODY)
    done = run_as_nobody(storage, "prune-size", "--max-mb", LIMIT)
    assert done.returncode == 0, done.stderr
    assert list(read_entries(storage)) == guids[VICTIMS:]
    assert os.stat(storage / METADATA).st_uid == NOBODY


@needs_root
def test_a_directory_that_is_not_writable_is_noticed_before_the_first_deletion(storage: Path, guids: list[str]) -> None:
    # The lock file is there already, as after a crash, so that taking the lock does not fail first.
    (storage / ".prune_size.lock").touch()
    for path in storage.iterdir():
        os.chown(path, NOBODY, NOBODY)
    os.chmod(storage, 0o755)
    done = run_as_nobody(storage, "prune-size", "--max-mb", LIMIT)
    assert done.returncode == 1
    assert "not writable" in event(done.stderr, "storage_manager.prune.failed")["@m"]
    assert blobs(storage) == set(guids)


# --- failing system calls ----------------------------------------------------------------------------------


class Fault(NamedTuple):
    call: str
    name: str
    code: int
    flags: int | None = None
    """Of open(): only where these bits are what the access mode and O_CREAT say."""


def describe(fault: Fault) -> str:
    return f"{fault.call}-{fault.name}-{errno.errorcode[fault.code]}"


EARLY = [
    Fault("open", METADATA, errno.EIO, os.O_RDONLY),
    Fault("open", METADATA, errno.EACCES, os.O_RDONLY),
    Fault("fstat", METADATA, errno.EIO),
    Fault("pread", METADATA, errno.EIO),
    Fault("stat", METADATA, errno.EIO),
    Fault("scandir", "storage", errno.EIO),
    Fault("unlink", TMP, errno.EIO),
    Fault("unlink", TMP, errno.EROFS),
    Fault("stat", PREV, errno.EIO),
    Fault("open", TMP, errno.EACCES),
    Fault("open", TMP, errno.EIO),
    Fault("open", TMP, errno.EROFS),
    Fault("fstat", TMP, errno.EIO),
    Fault("fchmod", TMP, errno.EIO),
    Fault("link", PREV, errno.EIO),
    Fault("link", PREV, errno.EACCES),
    Fault("unlink", PREV, errno.EIO),
]


def break_call(patch: pytest.MonkeyPatch, fault: Fault, when: Callable[..., bool]) -> list[int]:
    def applies(*arguments: Any) -> bool:
        if fault.flags is not None and arguments[1] & (os.O_ACCMODE | os.O_CREAT) != fault.flags:
            return False
        return when(*arguments)

    return fail(patch, fault.call, fault.name, fault.code, applies, position=1 if fault.call == "link" else 0)


@pytest.mark.parametrize("fault", EARLY, ids=describe)
def test_a_call_that_fails_before_the_first_deletion_leaves_the_store_untouched(
    storage: Path, guids: list[str], prune: Prune, fault: Fault
) -> None:
    before = (storage / METADATA).read_bytes()
    if fault.call == "unlink":
        (storage / TMP).touch()  # a leftover to remove
    with pytest.MonkeyPatch.context() as patch:
        failures = break_call(patch, fault, lambda *arguments: True)
        result = prune()
    assert failures, "the call was never made"
    assert result.code == 1
    found = event(result.err, "storage_manager.prune.failed")
    assert found["errno"] == errno.errorcode[fault.code]
    assert found["file"] == str(storage if fault.name == "storage" else storage / fault.name)
    assert found["deleted_count"] == 0 and found["exit_code"] == 1
    assert (storage / METADATA).read_bytes() == before
    assert blobs(storage) == set(guids)
    assert prune().code == 0
    assert leftovers(storage) == []


@pytest.mark.parametrize("code", [errno.EPERM, errno.EROFS])
def test_an_immutable_metadata_file_is_noticed_before_the_first_deletion(
    storage: Path, guids: list[str], prune: Prune, code: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        assert fail(patch, "open", METADATA, code, lambda *a: a[1] & os.O_ACCMODE == os.O_WRONLY, 0) == []
        result = prune()
    assert result.code == 1
    message = event(result.err, "storage_manager.prune.failed")["@m"]
    assert str(storage / METADATA) in message and errno.errorcode[code] in message
    assert blobs(storage) == set(guids) == set(read_entries(storage))
    assert leftovers(storage) == []


def test_a_metadata_file_without_write_permission_is_replaced_all_the_same(
    storage: Path, guids: list[str], prune: Prune
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        failures = fail(patch, "open", METADATA, errno.EACCES, lambda *a: a[1] & os.O_ACCMODE == os.O_WRONLY, 0)
        assert prune().code == 0
    assert failures
    assert list(read_entries(storage)) == guids[VICTIMS:]


@pytest.mark.parametrize("call", ["fchmod", "fchown"])
@needs_root
def test_an_owner_or_mode_that_may_not_be_set_stops_before_the_first_deletion(
    storage: Path, guids: list[str], prune: Prune, call: str
) -> None:
    os.chown(storage / METADATA, 1234, 4321)
    with pytest.MonkeyPatch.context() as patch:
        failures = fail(patch, call, TMP, errno.EPERM, position=0)
        result = prune()
    assert failures
    assert result.code == 1
    assert str(storage / METADATA) in event(result.err, "storage_manager.prune.failed")["@m"]
    assert blobs(storage) == set(guids) == set(read_entries(storage))
    assert leftovers(storage) == []


@needs_root
def test_an_owner_that_cannot_be_set_is_reported_with_its_errno(storage: Path, guids: list[str], prune: Prune) -> None:
    os.chown(storage / METADATA, 1234, 4321)
    with pytest.MonkeyPatch.context() as patch:
        fail(patch, "fchown", TMP, errno.EIO, position=0)
        result = prune()
    assert result.code == 1
    assert event(result.err, "storage_manager.prune.failed")["errno"] == "EIO"
    assert blobs(storage) == set(guids)


LATE = [
    Fault("open", METADATA, errno.EIO),
    Fault("fstat", METADATA, errno.EIO),
    Fault("pread", METADATA, errno.EIO),
    Fault("stat", METADATA, errno.EIO),
    Fault("pwrite", TMP, errno.EIO),
    Fault("pwrite", TMP, errno.ENOSPC),
    Fault("pwrite", TMP, errno.EDQUOT),
    Fault("ftruncate", TMP, errno.EIO),
    Fault("fsync", TMP, errno.EIO),
    Fault("fsync", TMP, errno.ENOSPC),
    Fault("pread", TMP, errno.EIO),
    Fault("link", PREV, errno.EIO),
    Fault("link", PREV, errno.EACCES),
    Fault("link", PREV, errno.ENOSPC),
    Fault("link", PREV, errno.EROFS),
    Fault("rename", TMP, errno.EIO),
    Fault("rename", TMP, errno.EACCES),
    Fault("rename", TMP, errno.ENOSPC),
    Fault("rename", TMP, errno.EROFS),
    Fault("fsync", "storage", errno.EIO),
    Fault("unlink", PREV, errno.EIO),
    Fault("unlink", PREV, errno.EROFS),
]


@pytest.mark.parametrize("fault", LATE, ids=describe)
def test_a_call_that_fails_during_the_commit_loses_nothing(
    storage: Path, guids: list[str], prune: Prune, fault: Fault
) -> None:
    survivors = guids[VICTIMS:]
    kept = [json.dumps({guid: read_entries(storage)[guid]}, indent=2)[1:-2] for guid in survivors]
    with pytest.MonkeyPatch.context() as patch:
        armed = armed_by(patch, "unlink", is_blob_call)
        position = 1 if fault.call == "link" else 0
        failures = fail(patch, fault.call, fault.name, fault.code, lambda *a: bool(armed), position)
        result = prune()
    assert failures, "the call was never made"
    assert result.code == 1
    found = event(result.err, "storage_manager.prune.failed")
    assert found["deleted_count"] == VICTIMS and found["exit_code"] == 1
    assert found["errno"] == errno.errorcode[fault.code]
    if fault.call == "rename":  # what could not be done is told of the file that it was to be done to
        assert found["file"] == str(storage / METADATA)
    else:
        assert found["file"] == str(storage if fault.name == "storage" else storage / fault.name)
    assert "@x" not in result.err
    expect_kept(storage, survivors)
    text = (storage / METADATA).read_text()
    assert all(piece in text for piece in kept)
    assert TMP not in leftovers(storage)
    # Once the fault is gone, the next prune that has a victim clears everything up.
    assert prune("4000B").code == 0
    assert list(read_entries(storage)) == guids[VICTIMS + 1 :]
    assert leftovers(storage) == []


def test_a_read_that_fails_right_before_the_rename_names_the_file(
    storage: Path, guids: list[str], prune: Prune
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        links = before_rename(patch, lambda: None)
        failures = fail(patch, "pread", METADATA, errno.EIO, lambda *a: bool(links), 0)
        result = prune()
    assert failures
    assert result.code == 1
    found = event(result.err, "storage_manager.prune.failed")
    assert (found["file"], found["errno"]) == (str(storage / METADATA), "EIO")
    assert set(read_entries(storage)) == set(guids)
    expect_kept(storage, guids[VICTIMS:])
    assert leftovers(storage) == []


def test_a_read_that_fails_right_after_the_rename_leaves_the_old_file_for_the_next_run(
    storage: Path, guids: list[str], prune: Prune
) -> None:
    guid, change = new_session(storage)
    writer = Writer(Client(storage), change)
    with pytest.MonkeyPatch.context() as patch:
        around(patch, "rename", TMP, writer.open, writer.finish)
        armed = armed_by(patch, "rename", lambda arguments: arguments[0] == TMP)
        failures = fail(patch, "fstat", METADATA, errno.EIO, lambda *a: bool(armed), 0)
        result = prune()
    assert failures
    assert result.code == 1
    assert leftovers(storage) == [PREV]
    assert prune().code == 0
    assert set(read_entries(storage)) == {*guids[VICTIMS:], guid}
    expect_cleared(storage, prune)


def test_a_rename_that_happened_although_it_was_reported_as_failed_loses_no_late_save(
    storage: Path, guids: list[str], prune: Prune
) -> None:
    """As on a network file system whose answer got lost: the old file must stay reachable for the next run."""
    guid, change = new_session(storage)
    writer = Writer(Client(storage), change)
    real = os.rename

    def rename(source: str, *arguments: Any, **options: Any) -> None:
        if source != TMP:
            return real(source, *arguments, **options)
        writer.open()
        real(source, *arguments, **options)
        writer.finish()
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "rename", rename)
        assert prune().code == 1
    assert PREV in leftovers(storage)
    assert prune().code == 0
    expect_kept(storage, [*guids[VICTIMS:], guid])
    expect_cleared(storage, prune)


def test_a_directory_that_cannot_be_synced_at_all_is_no_failure(storage: Path, guids: list[str], prune: Prune) -> None:
    with pytest.MonkeyPatch.context() as patch:
        failures = fail(patch, "fsync", "storage", errno.EINVAL)
        assert prune().code == 0
    assert failures
    assert list(read_entries(storage)) == guids[VICTIMS:]


def test_a_failed_sync_of_the_directory_does_not_keep_a_late_save_from_being_merged(
    storage: Path, guids: list[str], prune: Prune
) -> None:
    guid, change = new_session(storage)
    writer = Writer(Client(storage), change)
    with pytest.MonkeyPatch.context() as patch:
        fail(patch, "fsync", "storage", errno.EIO)
        around(patch, "rename", TMP, writer.open, writer.finish)
        assert prune().code == 1
    expect_kept(storage, [*guids[VICTIMS:], guid])


# --- a client that writes in the middle of a commit --------------------------------------------------------


def test_a_save_between_reading_and_renaming_makes_the_commit_start_over(
    storage: Path, guids: list[str], prune: Prune, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[str] = []
    client = Client(storage)
    links = before_rename(monkeypatch, lambda: saved.append(client.save()))
    result = prune()
    assert result.code == 0
    expect_kept(storage, [*guids[VICTIMS:], *saved])
    assert set(read_entries(storage)) == {*guids[VICTIMS:], *saved}
    assert links == [PREV, PREV], "the first attempt must be given up before the rename"
    assert result.recovered() == []
    assert leftovers(storage) == []


def test_a_save_of_the_same_length_and_time_makes_the_commit_start_over(
    storage: Path, guids: list[str], prune: Prune, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within one tick of the file system's clock a rewrite leaves neither size nor time changed."""

    def rewrite() -> None:
        path = storage / METADATA
        status = os.stat(path)
        with open(path, "r+b") as file:
            text = file.read().replace(b'"size": 1000', b'"size": 1111')
            file.seek(0)
            file.write(text)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    links = before_rename(monkeypatch, rewrite)
    result = prune()
    assert result.code == 0
    assert {entry["size"] for entry in read_entries(storage).values()} == {1111}
    assert len(links) == 2
    assert result.recovered() == []


def test_a_file_put_in_place_of_the_one_that_was_read_is_not_overwritten(
    storage: Path, guids: list[str], prune: Prune, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the client, but an editor or a restore: the old file stays unchanged, only its name has gone."""
    guid, change = new_session(storage)

    def replace() -> None:
        entries = read_entries(storage)
        change(entries)
        other = storage / "restored"
        other.write_text(json.dumps(entries))
        other.replace(storage / METADATA)

    before_rename(monkeypatch, replace)
    assert prune().code == 0
    expect_kept(storage, [*guids[VICTIMS:], guid])
    assert leftovers(storage) == []


def test_a_save_that_overlaps_the_rename_is_merged(
    storage: Path, guids: list[str], prune: Prune, monkeypatch: pytest.MonkeyPatch
) -> None:
    guid, change = new_session(storage)
    writer = Writer(Client(storage), change)
    around(monkeypatch, "rename", TMP, writer.open, writer.finish)
    result = prune()
    assert result.code == 0
    assert result.recovered() == ["late_write", "pending"]
    expect_kept(storage, [*guids[VICTIMS:], guid])
    assert set(read_entries(storage)) == {*guids[VICTIMS:], guid}, "the victims' entries must not come back"
    assert blobs(storage) == {*guids[VICTIMS:], guid}
    expect_cleared(storage, prune)


def test_a_merged_entry_keeps_the_bytes_that_the_client_wrote(
    storage: Path, guids: list[str], prune: Prune, monkeypatch: pytest.MonkeyPatch
) -> None:
    guid, change = new_session(storage)
    writer = Writer(Client(storage), change)
    around(monkeypatch, "rename", TMP, writer.open, writer.finish)
    expected = read_entries(storage)
    change(expected)
    assert prune().code == 0
    kept = {key: expected[key] for key in [*guids[VICTIMS:], guid]}
    assert (storage / METADATA).read_text() == json.dumps(kept, indent=2)


def test_a_save_that_truncates_the_old_file_only_after_the_rename_is_merged(
    storage: Path, guids: list[str], prune: Prune, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An open() looks the name up first and truncates later; the rename may fall in between."""
    guid, change = new_session(storage)
    entries = read_entries(storage)
    change(entries)
    held: list[int] = []
    real_pause = Clock.pause

    def pause(clock: Clock, secs: float) -> None:
        while held:
            fd = held.pop()
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps(entries, indent=2).encode(), 0)
            os.close(fd)
        real_pause(clock, secs)

    around(monkeypatch, "rename", TMP, before=lambda: held.append(os.open(storage / METADATA, os.O_RDWR)))
    monkeypatch.setattr(Clock, "pause", pause)
    assert prune().code == 0
    assert not held
    expect_kept(storage, [*guids[VICTIMS:], guid])
    expect_cleared(storage, prune)


def test_a_save_that_is_still_half_written_after_the_rename_is_waited_for(
    storage: Path, guids: list[str], prune: Prune, monkeypatch: pytest.MonkeyPatch
) -> None:
    guid, change = new_session(storage)
    writer = Writer(Client(storage), change)
    waited = threading.Event()

    def finish() -> None:
        waited.wait(20)
        writer.finish()

    thread = threading.Thread(target=finish)
    real_pause = Clock.pause
    pauses: list[float] = []

    def pause(clock: Clock, secs: float) -> None:
        pauses.append(secs)
        if len(pauses) == 5:  # it has looked at a torn file more than once by now
            waited.set()
        real_pause(clock, secs)

    def begin() -> None:
        writer.open()
        writer.write_half()

    around(monkeypatch, "rename", TMP, begin, thread.start)
    monkeypatch.setattr(Clock, "pause", pause)
    result = prune()
    thread.join()
    assert result.code == 0
    assert result.recovered() == ["late_write", "pending"]
    assert set(read_entries(storage)) == {*guids[VICTIMS:], guid}
    expect_cleared(storage, prune)


def test_a_save_that_stays_half_written_is_left_for_the_next_run(
    storage: Path, guids: list[str], prune: Prune, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (commit, replace):
        monkeypatch.setattr(module, "READ_PATIENCE_SECS", 0.1)
    guid, change = new_session(storage)
    writer = Writer(Client(storage), change)

    def begin() -> None:
        writer.open()
        writer.write_half()

    around(monkeypatch, "rename", TMP, begin)
    result = prune()
    assert result.recovered() == ["pending"]
    assert leftovers(storage) == [PREV]
    expect_kept(storage, guids[VICTIMS:])
    writer.finish()
    result = prune()
    assert result.code == 0
    assert result.recovered() == ["commit"]
    assert set(read_entries(storage)) == {*guids[VICTIMS:], guid}
    expect_cleared(storage, prune)


def test_an_alias_registered_during_the_rename_is_merged(
    storage: Path, guids: list[str], prune: Prune, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Writer(Client(storage), lambda entries: entries[guids[-2]].update(aliases=["latest"]))
    around(monkeypatch, "rename", TMP, writer.open, writer.finish)
    assert prune().code == 0
    entries = read_entries(storage)
    assert entries[guids[-2]]["aliases"] == ["latest"]
    assert list(entries) == guids[VICTIMS:]
    expect_cleared(storage, prune)


def test_a_newer_change_of_an_entry_wins_over_one_that_overlapped_the_rename(
    storage: Path, guids: list[str], prune: Prune, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Writer(Client(storage), lambda entries: entries[guids[-2]].update(aliases=["older"]))

    def finish() -> None:
        writer.finish()
        Client(storage).register_alias(guids[-2], "newer")

    around(monkeypatch, "rename", TMP, writer.open, finish)
    assert prune().code == 0
    assert read_entries(storage)[guids[-2]]["aliases"] == ["newer"]


def test_a_delete_that_overlaps_the_rename_brings_nothing_back_and_loses_nothing(
    storage: Path, guids: list[str], prune: Prune, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = guids[-1]

    def delete(entries: dict[str, Any]) -> None:
        (storage / f"{gone}.json").unlink()
        del entries[gone]

    writer = Writer(Client(storage), delete)
    around(monkeypatch, "rename", TMP, writer.open, writer.finish)
    assert prune().code == 0
    assert blobs(storage) == set(guids[VICTIMS:-1])
    expect_kept(storage, guids[VICTIMS:-1])
    assert set(read_entries(storage)) <= set(guids[VICTIMS:])
    assert leftovers(storage) == []


def test_a_member_that_nobody_understands_is_merged_too(
    storage: Path, guids: list[str], prune: Prune, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Writer(Client(storage), lambda entries: entries.update({"schema": {"version": 2}}))
    around(monkeypatch, "rename", TMP, writer.open, writer.finish)
    assert prune().code == 0
    assert read_entries(storage)["schema"] == {"version": 2}


def test_saves_that_overlap_each_rename_in_turn_are_all_merged(
    storage: Path, guids: list[str], prune: Prune, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A salvage is a commit itself, and can be overlapped like one."""
    saved: list[str] = []
    writers: list[Writer] = []

    def begin() -> None:
        guid, change = new_session(storage)
        saved.append(guid)
        writers.append(Writer(Client(storage), change))
        writers[-1].open()

    around(monkeypatch, "rename", TMP, begin, lambda: writers[-1].finish(), times=4)
    result = prune()
    assert result.code == 0
    assert len(saved) == 4
    expect_kept(storage, [*guids[VICTIMS:], *saved])
    assert set(read_entries(storage)) == {*guids[VICTIMS:], *saved}
    expect_cleared(storage, prune)


def test_a_client_that_read_before_a_salvage_and_writes_after_it_does_not_undo_it(
    storage: Path, guids: list[str], prune: Prune, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first save went to the old file; its second one was read before that was merged, and written after."""
    client = Client(storage)
    first, change_first = new_session(storage)
    second, change_second = new_session(storage)
    writer = Writer(client, change_first)
    read_early: dict[str, Any] = {}
    real = os.rename
    renames: list[str] = []

    def rename(source: str, *arguments: Any, **options: Any) -> None:
        if source != TMP:
            return real(source, *arguments, **options)
        renames.append(source)
        if len(renames) == 1:
            writer.open()
            real(source, *arguments, **options)
            writer.finish()
        elif len(renames) == 2:
            read_early.update(client.read())
            real(source, *arguments, **options)
            change_second(read_early)
            client.write(read_early)
        else:
            real(source, *arguments, **options)
        return None

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", rename)
        assert prune().code == 0
    assert len(renames) >= 2
    # At the latest the next run must have put right what this one could not see.
    assert prune("1G").code == 0
    expect_kept(storage, [*guids[VICTIMS:], first, second])


def test_a_session_saved_again_under_a_victims_name_keeps_its_entry(
    storage: Path, guids: list[str], prune: Prune, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = guids[0]

    def save_again() -> None:
        (storage / f"{again}.json").write_bytes(b"new")
        entries = read_entries(storage)
        entries[again] = {**entries[again], "size": 3, "created_at": "2030-01-01T00:00:00"}
        write_entries(storage, entries)

    around(monkeypatch, "unlink", f"{guids[VICTIMS - 1]}.json", after=save_again)
    assert prune().code == 0
    assert read_entries(storage)[again]["size"] == 3
    assert set(read_entries(storage)) == {again, *guids[VICTIMS:]} == blobs(storage)


def test_a_session_saved_again_under_a_victims_name_keeps_its_entry_when_the_commit_starts_over(
    storage: Path, guids: list[str], prune: Prune, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = guids[0]

    def save_again() -> None:
        (storage / f"{again}.json").write_bytes(b"new")
        entries = read_entries(storage)
        entries[again] = {**entries[again], "size": 3, "created_at": "2030-01-01T00:00:00"}
        write_entries(storage, entries)

    saved: list[str] = []
    around(monkeypatch, "unlink", f"{guids[VICTIMS - 1]}.json", after=save_again)
    before_rename(monkeypatch, lambda: saved.append(Client(storage).save()))
    assert prune().code == 0
    expect_kept(storage, [again, *guids[VICTIMS:], *saved])
    assert set(read_entries(storage)) == {again, *guids[VICTIMS:], *saved} == blobs(storage)


def test_a_dangling_entry_whose_blob_has_come_back_keeps_its_entry(
    storage: Path, guids: list[str], prune: Prune, monkeypatch: pytest.MonkeyPatch
) -> None:
    (storage / f"{guids[0]}.json").unlink()
    (storage / f"{guids[1]}.json").unlink()
    around(monkeypatch, "access", ".", after=lambda: (storage / f"{guids[1]}.json").write_bytes(b"back"))
    assert prune().code == 0
    entries = read_entries(storage)
    assert guids[0] not in entries, "a dangling entry older than a victim goes along"
    assert guids[1] in entries, "with its blob it is a session again, which no plan has chosen"
    expect_kept(storage, [guids[1], *guids[3:]])


def test_a_commit_under_which_the_file_always_changes_gives_up_without_losing_anything(
    storage: Path, guids: list[str], prune: Prune, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[str] = []
    client = Client(storage)
    later = [0.0]
    real = Clock.monotonic
    monkeypatch.setattr(Clock, "monotonic", lambda clock: real(clock) + later[0])

    def save() -> None:
        saved.append(client.save())
        later[0] += 2.0  # as if each attempt took that long

    with pytest.MonkeyPatch.context() as patch:
        before_rename(patch, save, times=100_000)
        result = prune()
    assert result.code == 0
    assert len(saved) > 1
    found = event(result.err, "storage_manager.commit_deferred")
    assert METADATA in found["@m"] and found["entry_count"] == VICTIMS
    entries = read_entries(storage)
    assert set(entries) == {*guids, *saved}, "the victims' entries stay, dangling"
    assert blobs(storage) == {*guids[VICTIMS:], *saved}
    assert leftovers(storage) == []


def test_metadata_that_disappears_before_the_commit_is_not_made_up(
    storage: Path, guids: list[str], prune: Prune, monkeypatch: pytest.MonkeyPatch
) -> None:
    around(monkeypatch, "unlink", f"{guids[0]}.json", after=(storage / METADATA).unlink)
    result = prune()
    assert result.code in (0, 1)
    assert not (storage / METADATA).exists()
    assert blobs(storage) == set(guids[VICTIMS:])
    assert leftovers(storage) == []


# --- file systems without hard links -----------------------------------------------------------------------

NO_LINKS = [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK]


@pytest.mark.parametrize("code", NO_LINKS, ids=lambda code: errno.errorcode[code])
def test_a_file_system_without_hard_links_is_pruned_all_the_same(
    storage: Path, guids: list[str], prune: Prune, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    failures = fail(monkeypatch, "link", PREV, code)
    assert prune().code == 0
    assert failures
    assert list(read_entries(storage)) == guids[VICTIMS:]
    assert leftovers(storage) == []


def save_over_the_rename_without_hard_links(storage: Path, patch: pytest.MonkeyPatch) -> str:
    """A client opens metadata.json before the next commit and writes it after. Returns the guid that it saves."""
    fail(patch, "link", PREV, errno.EPERM)
    guid, change = new_session(storage)
    writer = Writer(Client(storage), change)
    around(patch, "rename", TMP, writer.open, writer.finish)
    return guid


def test_a_save_that_overlaps_the_rename_is_merged_without_hard_links(
    storage: Path, guids: list[str], prune: Prune, monkeypatch: pytest.MonkeyPatch
) -> None:
    guid = save_over_the_rename_without_hard_links(storage, monkeypatch)
    assert prune().code == 0
    assert set(read_entries(storage)) == {*guids[VICTIMS:], guid}
    expect_cleared(storage, prune)


def test_a_save_whose_merge_is_not_certain_to_stay_is_kept_aside_without_hard_links(
    storage: Path, guids: list[str], prune: Prune, monkeypatch: pytest.MonkeyPatch
) -> None:
    guid = save_over_the_rename_without_hard_links(storage, monkeypatch)
    monkeypatch.setattr(commit, "PUT_BACK_PATIENCE_SECS", 0.0)
    result = prune()
    [told] = [item for item in events(result.err) if item.get("what") == "kept_aside"]
    (aside,) = storage.glob(".metadata.json.torn-*")
    assert told["file"] == aside.name and "not certain that the merge lasts" in told["@m"]
    assert guid in json.loads(aside.read_text())
    expect_cleared(storage, prune)
    expect_kept(storage, [guid])


def test_an_unfinished_save_is_kept_aside_without_hard_links(
    storage: Path, guids: list[str], prune: Prune, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (commit, replace):
        monkeypatch.setattr(module, "READ_PATIENCE_SECS", 0.1)
    fail(monkeypatch, "link", PREV, errno.EPERM)
    guid, change = new_session(storage)
    writer = Writer(Client(storage), change)

    def begin() -> None:
        writer.open()
        writer.write_half()

    around(monkeypatch, "rename", TMP, begin)
    result = prune()
    assert result.recovered() == ["kept_aside"]
    (aside,) = storage.glob(".metadata.json.torn-*")
    told = event(result.err, "storage_manager.recovered")
    assert told["file"] == aside.name and "unfinished text" in told["@m"]
    assert aside.read_text() and aside.read_text() == writer_text_so_far(writer)
    writer.finish()
    expect_kept(storage, guids[VICTIMS:])


def writer_text_so_far(writer: Writer) -> str:
    """What a writer caught half-way has written, judged from what it has still to write."""
    entries = json.dumps(_whole(writer), indent=2)
    assert entries.endswith(writer.text)
    return entries[: -len(writer.text)]


def _whole(writer: Writer) -> dict[str, Any]:
    """The document that the writer set out to write, from the text that it has left and the file it writes to."""
    with open(f"/proc/self/fd/{writer.file.fileno()}") as file:
        return dict(json.loads(file.read() + writer.text))


# --- recovery after a run that died ------------------------------------------------------------------------


def test_a_leftover_draft_is_removed(storage: Path, guids: list[str], prune: Prune) -> None:
    (storage / TMP).write_text('{"half')
    before = (storage / METADATA).read_bytes()
    result = prune("1G")
    assert result.code == 0
    assert result.recovered() == ["draft"]
    assert (storage / METADATA).read_bytes() == before
    assert leftovers(storage) == []


def test_a_leftover_draft_that_is_a_link_is_removed_without_following_it(
    storage: Path, guids: list[str], prune: Prune, tmp_path: Path
) -> None:
    target = tmp_path / "precious"
    target.write_text("precious")
    (storage / TMP).symlink_to(target)
    assert prune().code == 0
    assert target.read_text() == "precious"
    assert list(read_entries(storage)) == guids[VICTIMS:]


def test_a_leftover_draft_that_is_a_directory_is_refused(storage: Path, guids: list[str], prune: Prune) -> None:
    (storage / TMP).mkdir()
    result = prune()
    assert result.code == 1
    assert event(result.err, "storage_manager.prune.failed")["file"] == str(storage / TMP)
    assert blobs(storage) == set(guids)


def test_a_second_name_of_the_current_file_is_removed(storage: Path, guids: list[str], prune: Prune) -> None:
    """Died between the link and the rename."""
    os.link(storage / METADATA, storage / PREV)
    before = (storage / METADATA).read_bytes()
    assert prune("1G").code == 0
    assert (storage / METADATA).read_bytes() == before
    assert leftovers(storage) == []


@pytest.mark.parametrize("name", [PREV, PREV + ".1", PREV + ".7"])
def test_a_save_in_the_old_file_of_a_run_that_died_is_put_back(
    storage: Path, guids: list[str], prune: Prune, name: str
) -> None:
    entries = read_entries(storage)
    late = guids[5]
    write_entries(storage, {guid: entries[guid] for guid in guids[VICTIMS:] if guid != late})
    (storage / name).write_text(json.dumps(entries, indent=2))
    for guid in guids[:VICTIMS]:
        (storage / f"{guid}.json").unlink()
    result = prune("1G")
    assert result.code == 0
    assert event(result.err, "storage_manager.recovered")["entries"] == 1
    assert read_entries(storage) == {guid: entries[guid] for guid in guids[VICTIMS:]}
    expect_cleared(storage, prune)


def test_several_old_files_are_all_put_back(storage: Path, guids: list[str], prune: Prune) -> None:
    entries = read_entries(storage)
    write_entries(storage, {guid: entries[guid] for guid in guids[4:]})
    for number, guid in enumerate(guids[:4]):
        name = PREV if number == 0 else f"{PREV}.{number}"
        (storage / name).write_text(json.dumps({guid: entries[guid]}))
    assert prune("1G").code == 0
    assert read_entries(storage) == entries
    expect_cleared(storage, prune)


@pytest.mark.parametrize(("waiting", "is_put_off"), [(3, False), (4, True)])
def test_while_many_old_files_wait_the_deletions_go_on_and_their_entries_wait_too(
    storage: Path, guids: list[str], prune: Prune, monkeypatch: pytest.MonkeyPatch, waiting: int, is_put_off: bool
) -> None:
    """Each commit may leave another, and there are names for some only."""
    entries = read_entries(storage)
    late = guids[-waiting:]
    for guid, name in zip(late, [PREV, *(f"{PREV}.{number}" for number in range(1, waiting))]):
        (storage / name).write_text(json.dumps({guid: entries[guid]}))
    write_entries(storage, {guid: entries[guid] for guid in guids if guid not in late})
    with monkeypatch.context() as patch:
        patch.setattr(commit, "PUT_BACK_PATIENCE_SECS", 0.0)  # as if a client had undone it for so long
        result = prune()
    assert result.code == 0 and blobs(storage) == set(guids[VICTIMS:])
    assert len(leftovers(storage)) == waiting
    if is_put_off:
        told = event(result.err, "storage_manager.commit_deferred")
        assert (told["@l"], told["entry_count"]) == ("Information", VICTIMS) and "4 files" in told["@m"]
    assert (set(read_entries(storage)) == set(guids)) is is_put_off
    expect_cleared(storage, prune)
    expect_kept(storage, late)


def test_a_client_that_read_before_a_recovery_and_writes_after_it_does_not_undo_it(
    storage: Path, guids: list[str], prune: Prune, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = read_entries(storage)
    late = guids[-1]
    (storage / PREV).write_text(json.dumps(entries))
    write_entries(storage, {guid: entries[guid] for guid in guids if guid != late})
    client = Client(storage)
    new, change = new_session(storage)
    writer = Writer(client, change)
    read_early: dict[str, Any] = {}

    def write() -> None:
        writer.change(read_early)
        client.write(read_early)

    with monkeypatch.context() as patch:
        around(patch, "rename", TMP, lambda: read_early.update(client.read()), write)
        assert prune("1G").code == 0
    assert prune("1G").code == 0
    expect_kept(storage, [*guids, new])


@pytest.mark.parametrize("age_secs", [100, -100])
def test_of_two_versions_of_an_entry_that_of_the_file_written_last_wins(
    storage: Path, guids: list[str], prune: Prune, age_secs: int
) -> None:
    entries = read_entries(storage)
    old = {guid: {**entry, "title": "old"} for guid, entry in entries.items()}
    (storage / PREV).write_text(json.dumps(old))
    now = os.stat(storage / METADATA).st_mtime
    os.utime(storage / PREV, (now - age_secs, now - age_secs))
    assert prune("1G").code == 0
    assert read_entries(storage) == (entries if age_secs > 0 else old)
    for _ in range(2):
        prune("1G")
    assert leftovers(storage) == []


def test_metadata_that_is_missing_is_restored_from_the_old_file(storage: Path, guids: list[str], prune: Prune) -> None:
    os.rename(storage / METADATA, storage / PREV)
    before = (storage / PREV).read_bytes()
    assert prune("1G").code == 0
    assert (storage / METADATA).read_bytes() == before
    assert leftovers(storage) == []


def test_an_old_file_that_stays_torn_is_kept_aside(
    storage: Path, guids: list[str], prune: Prune, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "READ_PATIENCE_SECS", 0.05)
    (storage / PREV).write_text('{"torn": {')
    result = prune()
    assert result.code == 0
    found = event(result.err, "storage_manager.recovered")
    assert found["what"] == "kept_aside" and found["@l"] == "Warning"
    (aside,) = storage.glob(".metadata.json.torn-*")
    assert aside.name == found["file"]
    assert aside.read_text() == '{"torn": {'
    assert list(read_entries(storage)) == guids[VICTIMS:]
    assert leftovers(storage) == [aside.name]


def test_two_torn_old_files_are_both_kept(
    storage: Path, guids: list[str], prune: Prune, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "READ_PATIENCE_SECS", 0.02)
    frozen = Clock().now()
    monkeypatch.setattr(Clock, "now", lambda clock: frozen)
    (storage / PREV).write_text("{first")
    (storage / f"{PREV}.1").write_text("{second")
    prune()
    kept = sorted(path.read_text() for path in storage.glob(".metadata.json.torn-*"))
    assert kept == ["{first", "{second"]


def test_an_old_file_that_its_writer_finishes_late_is_put_back(
    storage: Path, guids: list[str], prune: Prune, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = read_entries(storage)
    late = guids[-1]
    text = json.dumps(entries)
    (storage / PREV).write_text(text[:300])
    write_entries(storage, {guid: entries[guid] for guid in guids if guid != late})
    real_pause = Clock.pause
    pauses: list[float] = []

    def pause(clock: Clock, secs: float) -> None:
        pauses.append(secs)
        if len(pauses) == 3:
            (storage / PREV).write_text(text)
        real_pause(clock, secs)

    monkeypatch.setattr(Clock, "pause", pause)
    assert prune("1G").code == 0
    assert read_entries(storage) == {**entries}
    expect_cleared(storage, prune)


@pytest.mark.parametrize("kind", ["symlink", "directory", "fifo"])
def test_an_old_file_that_is_not_a_regular_file_is_refused(
    storage: Path, guids: list[str], prune: Prune, tmp_path: Path, kind: str
) -> None:
    path = storage / PREV
    target = tmp_path / "precious"
    target.write_text("{}")
    if kind == "symlink":
        path.symlink_to(target)
    elif kind == "directory":
        path.mkdir()
    else:
        os.mkfifo(path)
    result = prune()
    assert result.code == 1
    assert str(path) in event(result.err, "storage_manager.prune.failed")["@m"]
    assert blobs(storage) == set(guids) == set(read_entries(storage))
    assert target.read_text() == "{}"
    assert os.path.lexists(path)


@pytest.mark.parametrize("call", ["open", "unlink"])
def test_an_old_file_that_cannot_be_recovered_stops_the_prune(
    storage: Path, guids: list[str], prune: Prune, call: str
) -> None:
    (storage / PREV).write_text("{}")
    with pytest.MonkeyPatch.context() as patch:
        fail(patch, call, PREV, errno.EIO, position=0)
        result = prune()
    assert result.code == 1
    found = event(result.err, "storage_manager.prune.failed")
    assert (found["file"], found["errno"]) == (str(storage / PREV), "EIO")
    assert blobs(storage) == set(guids)
    assert prune().code == 0
    assert leftovers(storage) == []


def test_more_old_files_than_are_ever_left_put_the_commit_off(
    storage: Path, guids: list[str], prune: Prune, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names that reappear as soon as they are removed: the commit must end, and lose nothing."""
    real = os.link

    def link(source: str, name: str, **options: Any) -> None:
        if name.startswith(PREV):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        real(source, name, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", link)
        result = prune()
    assert result.code == 0
    told = event(result.err, "storage_manager.commit_deferred")
    assert PREV in told["@m"] and told["entry_count"] == VICTIMS
    assert set(read_entries(storage)) == set(guids) and blobs(storage) == set(guids[VICTIMS:])
    assert prune("10").code == 0
    expect_kept(storage, guids[VICTIMS:])
    assert leftovers(storage) == []


def test_a_torn_file_during_the_commit_is_waited_for(
    storage: Path, guids: list[str], prune: Prune, monkeypatch: pytest.MonkeyPatch
) -> None:
    guid, change = new_session(storage)
    writer = Writer(Client(storage), change)

    def begin() -> None:
        writer.open()
        writer.write_half()
        threading.Timer(0.1, writer.finish).start()

    around(monkeypatch, "unlink", f"{guids[VICTIMS - 1]}.json", after=begin)
    assert prune().code == 0
    assert set(read_entries(storage)) == {*guids[VICTIMS:], guid}


def test_metadata_that_becomes_corrupt_during_the_prune_is_left_as_it_is(
    storage: Path, guids: list[str], prune: Prune, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (commit, reading, replace, survey):
        monkeypatch.setattr(module, "READ_PATIENCE_SECS", 0.1)
    around(
        monkeypatch, "unlink", f"{guids[0]}.json", after=lambda: (storage / METADATA).write_text('{"damaged')
    )  # fmt: skip
    result = prune()
    assert result.code == 1
    assert "storage_manager.metadata_corrupt" in result.names()
    assert (storage / METADATA).read_text() == '{"damaged'
    assert blobs(storage) == set(guids[VICTIMS:])
    assert leftovers(storage) == []


# --- while it is asked to stop -----------------------------------------------------------------------------


def test_a_stop_signal_between_two_deletions_commits_what_was_done(storage: Path) -> None:
    guids = make_store(storage, COUNT)
    code = """
import os, signal, sys
from storage_manager import cli
real = os.unlink
def unlink(name, **options):
    real(name, **options)
    if name == sys.argv[1]:
        os.kill(os.getpid(), signal.SIGTERM)
os.unlink = unlink
sys.exit(cli.main(sys.argv[2:]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, f"{guids[1]}.json", "--storage-dir", str(storage), "--log-format", "json",
         "prune-size", "--max-mb", LIMIT],
        env=stores.clean_environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 128 + signal.SIGTERM
    assert list(read_entries(storage)) == guids[2:]
    assert blobs(storage) == set(guids[2:])
    assert leftovers(storage) == []


def test_a_commit_is_made_while_a_long_prune_goes_on(
    storage: Path, guids: list[str], prune: Prune, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prune_job, "COMMIT_EVERY_SECS", 0.0)
    seen: list[list[str]] = []
    around(monkeypatch, "unlink", f"{guids[2]}.json", before=lambda: seen.append(list(read_entries(storage))))
    assert prune().code == 0
    assert seen == [guids[2:]]
    assert list(read_entries(storage)) == guids[VICTIMS:]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_only_puts_an_early_commit_off(
    storage: Path, guids: list[str], prune: Prune, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(prune_job, "COMMIT_EVERY_SECS", 0.0)
    failures = fail(
        monkeypatch, "pwrite", TMP, code, lambda *a: (storage / f"{guids[VICTIMS - 1]}.json").exists(), position=0
    )
    result = prune()
    assert failures
    assert result.code == 0
    assert "storage_manager.commit_deferred" in result.names()
    assert list(read_entries(storage)) == guids[VICTIMS:]
    assert leftovers(storage) == []
