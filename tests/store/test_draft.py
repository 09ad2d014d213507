"""The next metadata.json in the making: its owner and mode, its content, and what is left of it."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storage_manager.base.errors import NotWritable, StoreError
from storage_manager.store.directory import Store, open_store
from storage_manager.store.draft import Draft, remove_leftover
from storage_manager.store.likeness import likeness_of_metadata

TMP = ".metadata.json.tmp"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture
def store(storage: Path) -> Iterator[Store]:
    (storage / "metadata.json").write_text("{}")
    with open_store(str(storage)) as opened:
        yield opened


def draft_of(store: Store, **attributes: bytes) -> Draft:
    """With the extended attributes that metadata.json has, or those given."""
    fd = store.open("metadata.json")
    try:
        like = likeness_of_metadata(store, fd, os.fstat(fd))
    finally:
        os.close(fd)
    return Draft(store, like._replace(attributes=attributes or like.attributes))


def refuse(monkeypatch: pytest.MonkeyPatch, call: str, code: int) -> list[str]:
    """Let a system call on the draft fail, and no other."""
    real = getattr(os, call)
    calls: list[str] = []

    def failing(subject: Any, *arguments: Any, **options: Any) -> Any:
        name = subject if isinstance(subject, str) else os.path.basename(os.readlink(f"/proc/self/fd/{subject}"))
        if name == TMP:
            calls.append(call)
            raise OSError(code, os.strerror(code))
        return real(subject, *arguments, **options)

    monkeypatch.setattr(os, call, failing)
    return calls


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o444, 0o1644])
def test_a_draft_has_the_mode_of_what_it_replaces_whatever_the_umask(storage: Path, store: Store, mode: int) -> None:
    os.chmod(storage / "metadata.json", mode)
    before = os.umask(0o077)
    try:
        draft = draft_of(store)
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(storage / TMP).st_mode) == mode
    draft.discard()


@needs_root
def test_a_draft_has_the_owner_of_what_it_replaces(storage: Path, store: Store) -> None:
    os.chown(storage / "metadata.json", 1234, 4321)
    draft = draft_of(store)
    status = os.stat(storage / TMP)
    assert (status.st_uid, status.st_gid) == (1234, 4321)
    draft.discard()


def test_a_draft_has_the_access_list_of_what_it_replaces(storage: Path, store: Store) -> None:
    # Version 2; user: read and write, user 1234: read, group: read, mask: read, others: nothing.
    acl = b"\x02\x00\x00\x00" + b"".join(
        tag.to_bytes(2, "little") + rights.to_bytes(2, "little") + who.to_bytes(4, "little", signed=False)
        for tag, rights, who in ((1, 6, 0xFFFFFFFF), (2, 4, 1234), (4, 4, 0xFFFFFFFF), (16, 4, 0xFFFFFFFF),
                                 (32, 0, 0xFFFFFFFF))
    )  # fmt: skip
    path = storage / "metadata.json"
    try:
        os.setxattr(path, "system.posix_acl_access", acl)
    except OSError as error:
        pytest.skip(f"this file system has no access lists: {error}")
    draft = draft_of(store)
    assert os.getxattr(storage / TMP, "system.posix_acl_access") == acl
    draft.discard()


@pytest.mark.parametrize(
    "chunks", [[], [b""], [b"{}"], [b"{", b"a" * (3 << 20), b"b" * 10, b"}"], [b"x" * 9] * 200_000]
)
def test_what_is_written_is_what_is_in_the_file(storage: Path, store: Store, chunks: list[bytes]) -> None:
    draft = draft_of(store)
    draft.write(iter(chunks), 4 << 20)
    assert (storage / TMP).read_bytes() == b"".join(chunks)
    draft.discard()


def test_a_second_attempt_replaces_the_first_whatever_differs(storage: Path, store: Store) -> None:
    big = bytes(range(256)) * 8192  # two megabytes
    versions = [big, big + b"more", big[:100], b"", big[: 1 << 20] + b"!" + big[(1 << 20) + 1 :], b"short"]
    draft = draft_of(store)
    for version in versions:
        draft.write([version[:1000], version[1000:]], 1000)
        assert (storage / TMP).read_bytes() == version
    draft.discard()


def test_a_write_that_the_kernel_takes_only_in_part_is_continued(
    storage: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, bytes(data)[:7], offset))
    draft = draft_of(store)
    draft.write([b"0123456789" * 10], 1000)
    assert (storage / TMP).read_bytes() == b"0123456789" * 10
    draft.discard()


def test_publishing_replaces_metadata_and_leaves_no_draft(storage: Path, store: Store) -> None:
    draft = draft_of(store)
    draft.write([b'{"new": 1}'], 1000)
    draft.publish()
    assert (storage / "metadata.json").read_bytes() == b'{"new": 1}'
    assert not (storage / TMP).exists()
    draft.discard()  # nothing is left to discard, and the published file stays
    assert (storage / "metadata.json").read_bytes() == b'{"new": 1}'


def test_a_draft_is_synced_before_it_is_published(storage: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bytes] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append((storage / TMP).read_bytes()), real(fd))[1])
    draft = draft_of(store)
    draft.write([b"content"], 1000)
    assert synced == [b"content"]
    draft.discard()


def test_discarding_leaves_nothing_behind(storage: Path, store: Store) -> None:
    before = len(os.listdir("/proc/self/fd"))
    draft = draft_of(store)
    draft.write([b"x"], 1000)
    draft.discard()
    draft.discard()
    assert os.listdir(storage) == ["metadata.json"]
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_leftover_of_a_run_that_died_is_replaced(storage: Path, store: Store) -> None:
    (storage / TMP).write_text("left over and longer")
    draft = draft_of(store)
    draft.write([b"new"], 1000)
    assert (storage / TMP).read_text() == "new"
    draft.discard()
    assert remove_leftover(store) is False
    (storage / TMP).touch()
    assert remove_leftover(store) is True


@pytest.mark.parametrize("call", ["fchmod", "setxattr"])
def test_rights_that_may_not_be_set_are_an_error_that_names_the_owner(
    storage: Path, store: Store, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    calls = refuse(monkeypatch, call, errno.EPERM)
    with pytest.raises(NotWritable, match="metadata.json"):
        draft_of(store, **{"system.posix_acl_access": b"\x02\x00\x00\x00"})
    assert calls
    assert os.listdir(storage) == ["metadata.json"]


@pytest.mark.parametrize("call", ["open", "fstat", "fchmod"])
def test_a_draft_that_cannot_be_made_names_itself_and_leaves_nothing(
    storage: Path, store: Store, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    calls = refuse(monkeypatch, call, errno.EIO)
    with pytest.raises(StoreError) as caught:
        draft_of(store)
    assert calls
    assert caught.value.fields == {"file": str(storage / TMP), "errno": "EIO"}
    assert os.listdir(storage) == ["metadata.json"]
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("call", ["pwrite", "ftruncate", "fsync", "pread"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_draft_that_cannot_be_written_names_itself(
    storage: Path, store: Store, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    draft = draft_of(store)
    calls = refuse(monkeypatch, call, code)
    with pytest.raises(StoreError) as caught:
        draft.write([b"x" * 100], 1000)
    assert calls
    assert caught.value.fields == {"file": str(storage / TMP), "errno": errno.errorcode[code]}
    assert (storage / "metadata.json").read_text() == "{}"
    monkeypatch.undo()
    draft.write([b"y" * 50], 1000)
    assert (storage / TMP).read_bytes() == b"y" * 50, "the next attempt succeeds"
    draft.discard()


def test_a_rename_that_fails_leaves_the_old_file(storage: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    draft = draft_of(store)
    draft.write([b"new"], 1000)
    refuse(monkeypatch, "rename", errno.EIO)
    with pytest.raises(StoreError) as caught:
        draft.publish()
    assert caught.value.fields == {"file": str(storage / "metadata.json"), "errno": "EIO"}
    assert (storage / "metadata.json").read_text() == "{}"
    draft.discard()
    assert os.listdir(storage) == ["metadata.json"]
