"""Reading metadata.json stably: whole, and all of it from one moment."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from storage_manager.base.clock import Clock, Patience
from storage_manager.base.errors import MetadataCorrupt, StoreError
from storage_manager.store import reading
from storage_manager.store.directory import Store, open_store
from storage_manager.store.document import Document, parse
from storage_manager.store.reading import Reading, read_descriptor, read_stable

METADATA = "metadata.json"


class Walking(Clock):
    """A clock that is only moved by waiting; each wait can bring something about."""

    def __init__(self) -> None:
        super().__init__()
        self.secs = 0.0
        self.pauses: list[float] = []
        self.events: list[Callable[[], object]] = []

    def monotonic(self) -> float:
        return self.secs

    def pause(self, secs: float) -> None:
        self.secs += secs
        self.pauses.append(secs)
        if self.events:
            self.events.pop(0)()


@pytest.fixture
def store(storage: Path) -> Iterator[Store]:
    with open_store(str(storage)) as opened:
        yield opened


@pytest.fixture
def clock() -> Walking:
    return Walking()


def read(store: Store, clock: Clock, secs: float = 30.0) -> tuple[Reading, Document] | None:
    return read_stable(store, Patience(clock, secs, 0.0), parse)


def read_text(store: Store, clock: Clock) -> bytes:
    found = read(store, clock)
    assert found is not None
    with found[0] as reading:
        return reading.data


def test_a_whole_file_is_read_at_once(storage: Path, store: Store, clock: Walking) -> None:
    text = b' {"a": 1,\n"b" : [2]}\n'
    (storage / METADATA).write_bytes(text)
    assert read_text(store, clock) == text
    assert clock.pauses == []


def test_no_file_is_no_error(store: Store, clock: Walking) -> None:
    assert read(store, clock) is None
    assert clock.pauses == []


@pytest.mark.parametrize("torn", [b"", b"{", b'{"a": {', b'{"a": {}', b'{"a": {}}, "b": {}', b'{"a": {"b": {}}'])
def test_a_torn_file_is_read_when_its_writer_has_finished(
    storage: Path, store: Store, clock: Walking, torn: bytes
) -> None:
    path = storage / METADATA
    path.write_bytes(torn)
    clock.events = [lambda: None, lambda: path.write_bytes(torn[:3]), lambda: path.write_text('{"a": {}}')]
    assert read_text(store, clock) == b'{"a": {}}'
    assert len(clock.pauses) == 3


def test_a_file_that_stays_torn_is_corrupt_when_patience_ends(storage: Path, store: Store, clock: Walking) -> None:
    (storage / METADATA).write_text('{"a": ')
    with pytest.raises(MetadataCorrupt, match=METADATA) as caught:
        read(store, clock)
    assert caught.value.exit_code == 1
    assert 30.0 <= clock.secs < 31.0
    assert max(clock.pauses) <= 0.1, "a short moment in which the file is whole must not be missed"


def test_a_file_that_vanishes_while_it_is_torn_is_no_file(storage: Path, store: Store, clock: Walking) -> None:
    (storage / METADATA).write_text("{")
    clock.events = [(storage / METADATA).unlink]
    assert read(store, clock) is None


def test_a_file_that_is_replaced_while_it_is_torn_is_read_anew(storage: Path, store: Store, clock: Walking) -> None:
    (storage / METADATA).write_text("{")
    (storage / "other").write_text('{"b": 2}')
    clock.events = [lambda: os.rename(storage / "other", storage / METADATA)]
    assert read_text(store, clock) == b'{"b": 2}'


def rewrite_during_read(
    monkeypatch: pytest.MonkeyPatch, path: Path, half: int, text: bytes, keep_time: bool
) -> list[bool]:
    """Let the first read of the whole give only the first half, and the file be rewritten before the second."""
    real = os.pread
    done: list[bool] = []

    def pread(fd: int, length: int, offset: int) -> bytes:
        if done or os.readlink(f"/proc/self/fd/{fd}") != str(path) or offset != 0 or length <= half:
            return real(fd, length, offset)
        if length != path.stat().st_size + 1:
            return real(fd, length, offset)  # the quick look at the beginning
        done.append(True)
        first = real(fd, half, 0)
        status = path.stat()
        with open(path, "r+b") as file:
            file.write(text)
        if keep_time:
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        return first

    monkeypatch.setattr(os, "pread", pread)
    return done


@pytest.mark.parametrize("keep_time", [False, True], ids=["later", "within one tick of the clock"])
def test_two_halves_from_different_moments_are_never_put_together(
    storage: Path, store: Store, clock: Walking, monkeypatch: pytest.MonkeyPatch, keep_time: bool
) -> None:
    old = json.dumps({f"k{number}": 1 for number in range(20)}).encode()
    new = old.replace(b": 1", b": 2")
    path = storage / METADATA
    path.write_bytes(old)
    done = rewrite_during_read(monkeypatch, path, len(old) // 2, new, keep_time)
    assert read_text(store, clock) == new
    assert done
    assert len(clock.pauses) == 1


def test_a_file_that_grows_during_the_read_is_read_again(
    storage: Path, store: Store, clock: Walking, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = storage / METADATA
    path.write_text('{"a": 1}')
    longer = b'{"a": 1, "b": 2, "c": {}}'
    done = rewrite_during_read(monkeypatch, path, 4, longer, False)
    assert read_text(store, clock) == longer
    assert done


def test_a_short_read_is_continued(
    storage: Path, store: Store, clock: Walking, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = json.dumps({str(number): number for number in range(500)}).encode()
    (storage / METADATA).write_bytes(text)
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, length, offset: real(fd, min(length, 700), offset))
    assert read_text(store, clock) == text
    assert clock.pauses == []


def test_a_reading_knows_whether_its_file_is_unchanged(storage: Path, store: Store, clock: Walking) -> None:
    path = storage / METADATA
    path.write_text('{"a": 1}')
    found = read(store, clock)
    assert found is not None
    with found[0] as reading:
        assert reading.unchanged()
        status = path.stat()
        with open(path, "r+") as file:
            file.write('{"a": 2}')
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert not reading.unchanged(), "same inode, length and time, but other bytes"


@pytest.mark.parametrize(("call", "code"), [("open", errno.EIO), ("open", errno.EACCES), ("fstat", errno.EIO),
                                            ("pread", errno.EIO), ("stat", errno.EIO)])  # fmt: skip
def test_a_failing_call_names_the_file_and_its_errno_and_leaves_nothing_open(
    storage: Path, store: Store, clock: Walking, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    (storage / METADATA).write_text("{}")
    before = len(os.listdir("/proc/self/fd"))
    real = getattr(os, call)

    def failing(subject: Any, *arguments: Any, **options: Any) -> Any:
        name = subject if isinstance(subject, str) else os.readlink(f"/proc/self/fd/{subject}")
        if os.path.basename(name) == METADATA:
            raise OSError(code, os.strerror(code))
        return real(subject, *arguments, **options)

    monkeypatch.setattr(os, call, failing)
    with pytest.raises(StoreError) as caught:
        read(store, clock)
    monkeypatch.undo()
    assert caught.value.fields == {"file": str(storage / METADATA), "errno": errno.errorcode[code]}
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_symbolic_link_is_not_followed(storage: Path, store: Store, clock: Walking, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("{}")
    (storage / METADATA).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError) as caught:
        read(store, clock)
    assert caught.value.errno == errno.ELOOP


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_not_a_file_is_refused_at_once(
    storage: Path, store: Store, clock: Walking, make: Callable[[Path], None]
) -> None:
    make(storage / METADATA)
    with pytest.raises((MetadataCorrupt, StoreError), match=METADATA):
        read(store, clock)
    assert clock.pauses == []


def test_a_file_too_large_to_be_real_is_refused_at_once(storage: Path, store: Store, clock: Walking) -> None:
    (storage / METADATA).touch()
    os.truncate(storage / METADATA, reading.LARGEST_BYTES + 1)
    with pytest.raises(MetadataCorrupt, match="too large"):
        read(store, clock)


def test_a_file_that_cannot_be_parsed_is_not_parsed_again_until_it_changes(
    storage: Path, store: Store, clock: Walking
) -> None:
    path = storage / METADATA
    path.write_text('{"a": nonsense}')
    calls: list[bytes] = []

    def counting(data: bytes) -> Document:
        calls.append(data)
        return parse(data)

    clock.events = [lambda: None] * 5 + [lambda: path.write_text("{}")]
    found = read_stable(store, Patience(clock, 30.0, 0.0), counting)
    assert found is not None
    found[0].close()
    assert calls == [b'{"a": nonsense}', b"{}"]


def test_a_descriptor_is_read_when_its_writer_has_finished(storage: Path, store: Store, clock: Walking) -> None:
    path = storage / "old"
    path.write_text('{"a": ')
    fd = os.open(path, os.O_RDONLY)
    writer = os.open(path, os.O_WRONLY | os.O_APPEND)
    path.unlink()

    def finish() -> None:
        os.write(writer, b"1}")
        os.close(writer)

    clock.events = [lambda: None, finish]
    document = read_descriptor(store, fd, ".metadata.json.prev", Patience(clock, 30.0, 0.0))
    os.close(fd)
    assert document is not None and document.data == b'{"a": 1}'


def test_a_descriptor_that_stays_torn_gives_nothing_when_patience_ends(
    storage: Path, store: Store, clock: Walking
) -> None:
    (storage / "old").write_text("{")
    fd = os.open(storage / "old", os.O_RDONLY)
    assert read_descriptor(store, fd, ".metadata.json.prev", Patience(clock, 30.0, 0.0)) is None
    os.close(fd)
    assert 30.0 <= clock.secs < 31.0
