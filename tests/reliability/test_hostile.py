"""Stores that are damaged, or made to do damage: an exit code, an event, and nothing touched that is not ours."""

from __future__ import annotations

import errno
import gc
import json
import os
import shutil
import stat
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from stores import (
    blobs,
    event,
    events,
    leftovers,
    make_store,
    read_entries,
    run_as_nobody,
    write_entries,
)

from storage_manager.base.clock import Clock
from storage_manager.cli import main
from storage_manager.jobs import prune as prune_job
from storage_manager.store import reading, survey

METADATA = "metadata.json"
COUNT, LIMIT, VICTIMS = 6, "4000B", 2
OLD = 1_000_000_000
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount, or become another user")


class Result(NamedTuple):
    code: int
    out: str
    err: str

    def anomalies(self) -> dict[str, dict[str, Any]]:
        return {item["kind"]: item for item in events(self.err) if item["event"] == "storage_manager.anomaly"}


Run = Callable[..., Result]


@pytest.fixture
def run(storage: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """The tool in this process, with less patience for what stays torn. No output may show a traceback."""
    monkeypatch.setattr(Clock, "install", lambda self: None)
    monkeypatch.setattr(reading, "READ_PATIENCE_SECS", 0.05)
    monkeypatch.setattr(survey, "READ_PATIENCE_SECS", 0.05)

    def call(*arguments: object) -> Result:
        options = ["--storage-dir", str(storage), "--log-format", "json"]
        try:
            code = main([*options, *map(str, arguments or ("prune-size", "--max-mb", LIMIT))])
        finally:
            gc.enable()
        captured = capfd.readouterr()
        assert '"@x"' not in captured.err and "Traceback" not in captured.err + captured.out
        return Result(code, captured.out, captured.err)

    return call


def everything(directory: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below, with its mode and what is in it; links are not followed."""
    found = {}
    for path in sorted(directory.rglob("*")):
        status = os.lstat(path)
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        if stat.S_ISLNK(status.st_mode):
            content = os.fsencode(os.readlink(path))
        found[str(path)] = (status.st_mode, content)
    return found


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """What must never be touched."""
    directory = tmp_path / "outside"
    directory.mkdir()
    (directory / "precious.json").write_text("precious")
    (directory / "precious").write_text("precious")
    return directory


# --- metadata.json -----------------------------------------------------------------------------------------

GUID = "11111111-2222-4333-8444-555555555555"
ENTRY = '{"format": "json", "size": 1000, "created_at": "2026-01-01T00:00:00"}'

UNREADABLE = {
    "empty": b"",
    "blank": b" \n\t ",
    "torn": b'{"11111111-2222-4333-8444-555555555555": {"format": "js',
    "torn behind an entry": f'{{"{GUID}": {ENTRY},'.encode(),
    "binary": bytes(range(256)),
    "zeros": bytes(5000),
    "not UTF-8": b'{"\xff\xfe": 1}',
    "not UTF-8 in a value": b'{"a": {"title": "\xe9"}}',
    "an array": b"[]",
    "a string": b'"{}"',
    "null": b"null",
    "two documents": b"{}{}",
    "text behind the end": b"{} x }",
    "a comma too many": f'{{"{GUID}": {ENTRY},}}'.encode(),
    "a comma missing": f'{{"a": {ENTRY} "b": {ENTRY}}}'.encode(),
    "single quotes": b"{'a': 1}",
    "a control character in a string": b'{"a": "\x01"}',
    "nested too deeply": b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "nested too deeply and torn": b'{"a":' * 100_000 + b"}",
    "a byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": "{}".encode("utf-16"),
}


@pytest.mark.parametrize("text", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_metadata_that_is_not_json_stops_every_command_and_nothing_is_touched(
    storage: Path, run: Run, text: bytes
) -> None:
    make_store(storage, COUNT)
    (storage / METADATA).write_bytes(text)
    before = everything(storage)
    result = run()
    assert result.code == 1
    found = event(result.err, "storage_manager.metadata_corrupt")
    assert found["@l"] == "Error" and str(storage / METADATA) in found["@m"]
    assert everything(storage) == before
    assert run("purge", "--yes", "--age-days", "0").code == 1
    assert everything(storage) == before


@pytest.mark.parametrize("command", [("list",), ("stats",), ("prune-size", "--max-mb", "1", "--dry-run")])
def test_a_command_that_only_looks_says_that_metadata_is_corrupt(
    storage: Path, run: Run, command: tuple[str, ...]
) -> None:
    (storage / METADATA).write_text('{"torn')
    result = run(*command)
    assert result.code == 1
    assert result.out == ""
    assert str(storage / METADATA) in event(result.err, "storage_manager.metadata_corrupt")["@m"]


def test_a_huge_sparse_metadata_file_is_refused_without_reading_it(storage: Path, run: Run) -> None:
    guids = make_store(storage, COUNT)
    os.truncate(storage / METADATA, 5 << 30)
    started = time.monotonic()
    result = run()
    assert result.code == 1
    assert event(result.err, "storage_manager.metadata_corrupt")
    assert time.monotonic() - started < 5
    assert blobs(storage) == set(guids)


def test_a_sparse_metadata_file_of_readable_size_is_corrupt(storage: Path, run: Run) -> None:
    guids = make_store(storage, COUNT)
    os.truncate(storage / METADATA, 300 << 20)
    assert run().code == 1
    assert blobs(storage) == set(guids)


@pytest.mark.parametrize("kind", ["symlink", "broken symlink", "symlink to itself", "fifo", "directory", "device"])
def test_metadata_that_is_not_a_regular_file_is_refused(storage: Path, run: Run, outside: Path, kind: str) -> None:
    guids = make_store(storage, COUNT)
    path = storage / METADATA
    os.rename(path, outside / METADATA)
    if kind == "symlink":
        path.symlink_to(outside / METADATA)
    elif kind == "broken symlink":
        path.symlink_to(outside / "absent")
    elif kind == "symlink to itself":
        path.symlink_to(path)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        if os.geteuid() != 0:
            pytest.skip("only root can make a device")
        try:
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))
        except PermissionError:
            pytest.skip("no devices can be made here")
    before = everything(outside)
    result = run()
    assert result.code == 1
    assert any(item["@l"] == "Error" and METADATA in item["@m"] for item in events(result.err))
    assert blobs(storage) == set(guids)
    assert everything(outside) == before
    assert os.path.lexists(path)
    assert run("list").code == 1


def test_of_two_members_with_one_key_the_last_one_counts(storage: Path, run: Run) -> None:
    guids = make_store(storage, COUNT)
    entries = read_entries(storage)
    members = [f'"{guid}": {json.dumps(entry)}' for guid, entry in entries.items()]
    newest = json.dumps({**entries[guids[0]], "created_at": "2030-01-01T00:00:00"})
    (storage / METADATA).write_text("{" + ",".join([*members, f'"{guids[0]}": {newest}']) + "}")
    result = run()
    assert result.code == 0
    assert blobs(storage) == {guids[0], *guids[3:]}, "by its last member the first session is the newest"
    assert read_entries(storage)[guids[0]]["created_at"] == "2030-01-01T00:00:00"


def test_a_number_of_a_million_digits_does_no_harm(storage: Path, run: Run) -> None:
    guids = make_store(storage, COUNT)
    text = (storage / METADATA).read_text().replace('"size": 1000', f'"size": {"9" * 1_000_000}', 1)
    (storage / METADATA).write_text(text)
    assert run().code == 0
    assert list(read_entries(storage)) == guids[VICTIMS:]


def test_a_moderate_nesting_is_read(storage: Path, run: Run) -> None:
    guids = make_store(storage, COUNT)
    deep: Any = "x"
    for _ in range(100):
        deep = {"a": [deep]}
    entries = read_entries(storage)
    entries[guids[-1]]["deep"] = deep
    write_entries(storage, entries)
    assert run().code == 0
    assert read_entries(storage)[guids[-1]]["deep"] == deep


# --- entries -----------------------------------------------------------------------------------------------

BAD_NAMES = [
    "../outside/precious", "/etc/passwd", "..", ".", "", "a\x00b", "x" * 5000, "\x1b[31m", "\udc80", "é",
    GUID + "/../../outside/precious", "../" + GUID, GUID + "\n", GUID[:-1], GUID + "0", "{" + GUID + "}",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES, ids=range(len(BAD_NAMES)))
def test_a_key_that_is_no_guid_is_reported_and_stays(storage: Path, run: Run, outside: Path, name: str) -> None:
    guids = make_store(storage, COUNT)
    entries = {name: {"format": "json", "size": 1000, "created_at": "2000-01-01T00:00:00"}, **read_entries(storage)}
    write_entries(storage, entries)
    before = everything(outside)
    result = run()
    assert result.code == 0
    assert result.anomalies()["corrupt"]["count"] == 1
    assert "\x1b" not in result.err
    assert list(read_entries(storage)) == [name, *guids[VICTIMS:]]
    assert blobs(storage) == set(guids[VICTIMS:])
    assert everything(outside) == before


BAD_FORMATS: list[Any] = [
    "../../outside/precious", "/precious", "json/../../outside/precious", "", ".", "..", "JSON", "a\x00b", "x" * 300,
    "js on", "\n", "json\n", "é", None, 7, ["json"], {"json": 1}, True,
]  # fmt: skip


@pytest.mark.parametrize("extension", BAD_FORMATS, ids=range(len(BAD_FORMATS)))
def test_a_format_that_is_no_plain_extension_is_reported_and_stays(
    storage: Path, run: Run, outside: Path, extension: Any
) -> None:
    guids = make_store(storage, COUNT)
    entries = read_entries(storage)
    entries[guids[0]]["format"] = extension
    write_entries(storage, entries)
    before = everything(outside)
    result = run()
    assert result.code == 0
    corrupt = result.anomalies()["corrupt"]
    assert (corrupt["count"], corrupt["size_bytes"]) == (1, 1000)
    assert everything(outside) == before
    assert set(read_entries(storage)) == blobs(storage) == {guids[0], *guids[3:]}, "its bytes count, it stays"


def test_a_guid_that_leads_outside_by_its_format_alone_deletes_nothing_there(
    storage: Path, run: Run, outside: Path
) -> None:
    """A directory with a session's name, and a format that would walk out of it."""
    (storage / f"{GUID}.x").mkdir()
    write_entries(storage, {GUID: {"format": "x/../../outside/precious", "created_at": "2000-01-01T00:00:00"}})
    before = everything(outside)
    assert run("purge", "--yes", "--age-days", "0").code == 0
    assert everything(outside) == before
    assert (storage / f"{GUID}.x").is_dir()


BAD_TIMES: list[Any] = [
    None, 1_700_000_000, 1.5e9, "", "yesterday", "2026-13-01T00:00:00", "2026-02-30T00:00:00", "10000-01-01T00:00:00",
    "0000-01-01T00:00:00", [], {}, True, "2026-01-01T00:00:00+99:00", "x" * 100_000, "2026-01-01T25:00:00",
    "0001-01-01T00:00:00+23:00", "٢٠٢٦-٠١-٠١T٠٠:٠٠:٠٠", "NaN",
]  # fmt: skip


@pytest.mark.parametrize("created_at", BAD_TIMES, ids=range(len(BAD_TIMES)))
def test_an_entry_without_a_usable_time_is_reported_and_stays(storage: Path, run: Run, created_at: Any) -> None:
    guids = make_store(storage, COUNT)
    entries = read_entries(storage)
    entries[guids[0]]["created_at"] = created_at
    write_entries(storage, entries)
    result = run()
    assert result.code == 0
    assert result.anomalies()["corrupt"]["count"] == 1
    assert set(read_entries(storage)) == blobs(storage) == {guids[0], *guids[3:]}


def test_an_entry_without_created_at_survives_even_a_purge_of_everything(storage: Path, run: Run) -> None:
    guids = make_store(storage, COUNT)
    entries = read_entries(storage)
    del entries[guids[0]]["created_at"]
    write_entries(storage, entries)
    assert run("purge", "--yes", "--age-days", "0").code == 0
    assert set(read_entries(storage)) == blobs(storage) == {guids[0]}


@pytest.mark.parametrize(
    ("created_at", "oldest"),
    [("0001-01-01T00:00:00", True), ("9999-12-31T23:59:59.999999", False), ("2999-01-01T00:00:00", False),
     ("1969-12-31T23:59:59Z", True)],
)  # fmt: skip
def test_a_time_at_the_ends_of_the_calendar_is_a_time(storage: Path, run: Run, created_at: str, oldest: bool) -> None:
    guids = make_store(storage, COUNT)
    entries = read_entries(storage)
    odd = guids[3]
    entries[odd]["created_at"] = created_at
    write_entries(storage, entries)
    victims = {odd, guids[0]} if oldest else {guids[0], guids[1]}
    assert run("list", "--verbose").code == 0
    assert run("prune-size", "--max-mb", LIMIT, "--min-age-mins", "1e10").code == 1, "all of them are protected"
    assert blobs(storage) == set(guids)
    assert run().code == 0
    assert blobs(storage) == set(guids) - victims == set(read_entries(storage))


BAD_SIZES: list[Any] = [-1, -(10**30), 10**30, "1000", None, 1.5, [], {}, True, "absent", float("nan"), float("inf")]


@pytest.mark.parametrize("size", BAD_SIZES, ids=range(len(BAD_SIZES)))
def test_the_declared_size_decides_nothing(storage: Path, run: Run, size: Any) -> None:
    guids = make_store(storage, COUNT)
    entries = read_entries(storage)
    for entry in entries.values():
        entry["size"] = size
        if size == "absent":
            del entry["size"]
    write_entries(storage, entries)
    assert run("stats", "--json").code == 0
    assert run().code == 0
    assert list(read_entries(storage)) == guids[VICTIMS:]
    assert blobs(storage) == set(guids[VICTIMS:])


@pytest.mark.parametrize("value", [None, 7, "text", [], [{}], True, {}, {"format": "json"}, 1e999])
def test_an_entry_that_is_no_entry_is_reported_and_stays(storage: Path, run: Run, value: Any) -> None:
    guids = make_store(storage, COUNT)
    entries = read_entries(storage)
    entries[guids[0]] = value
    write_entries(storage, entries)
    result = run()
    assert result.code == 0
    assert result.anomalies()["corrupt"]["count"] == 1
    assert read_entries(storage)[guids[0]] == value
    assert blobs(storage) == {guids[0], *guids[3:]}


@pytest.mark.parametrize("group", [7, None, [], {}, "", "\x1b[2J\u202e", "\udc80", "g" * 100_000])
def test_a_hostile_group_is_printed_harmlessly(storage: Path, run: Run, group: Any) -> None:
    guids = make_store(storage, COUNT, group=group)
    for arguments in (("list", "-v"), ("stats",), ("list", "--json"), ("stats", "--json")):
        result = run(*arguments)
        assert result.code == 0
        assert "\x1b" not in result.out + result.err and "\u202e" not in result.out
    assert run().code == 0
    assert list(read_entries(storage)) == guids[VICTIMS:]


# --- blobs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["symlink", "broken symlink", "directory", "full directory", "fifo", "socket"])
def test_a_blob_that_is_not_a_regular_file_is_reported_and_stays(
    storage: Path, run: Run, outside: Path, kind: str
) -> None:
    guids = make_store(storage, COUNT)
    blob = storage / f"{guids[0]}.json"
    blob.unlink()
    if kind == "symlink":
        blob.symlink_to(outside / "precious")
    elif kind == "broken symlink":
        blob.symlink_to(outside / "absent")
    elif kind.endswith("directory"):
        blob.mkdir()
        if kind.startswith("full"):
            (blob / "inside").write_text("inside")
    else:
        os.mknod(blob, (stat.S_IFIFO if kind == "fifo" else stat.S_IFSOCK) | 0o600)
    before = everything(outside)
    result = run()
    assert result.code == 0
    assert result.anomalies()["not_a_file"]["count"] == 1
    assert os.path.lexists(blob)
    assert everything(outside) == before
    # Five sessions of 1000 bytes are over the limit by one; its entry is nobody's to remove.
    assert set(read_entries(storage)) == {guids[0], *guids[2:]}
    assert run("purge", "--yes", "--age-days", "0").code == 0
    assert os.path.lexists(blob) and set(read_entries(storage)) == {guids[0]}
    assert everything(outside) == before


def test_a_hard_linked_blob_loses_its_name_in_the_store_alone(storage: Path, run: Run, outside: Path) -> None:
    guids = make_store(storage, COUNT)
    blob = storage / f"{guids[0]}.json"
    blob.unlink()
    os.link(outside / "precious", blob)
    blob_bytes = blob.read_bytes()
    os.truncate(storage / f"{guids[1]}.json", 2000)
    assert run().code == 0
    assert not blob.exists()
    assert (outside / "precious").read_bytes() == blob_bytes == b"precious"


def test_an_unreadable_blob_is_pruned_like_any_other(storage: Path, run: Run) -> None:
    guids = make_store(storage, COUNT)
    os.chmod(storage / f"{guids[0]}.json", 0)
    assert run().code == 0
    assert blobs(storage) == set(guids[VICTIMS:])


def test_blobs_that_vanish_during_the_scan_are_no_failure(
    storage: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    guids = make_store(storage, COUNT)
    real = os.scandir

    @contextmanager
    def scandir(where: Any) -> Iterator[Iterator[os.DirEntry[str]]]:
        def listing() -> Iterator[os.DirEntry[str]]:
            with real(where) as items:
                found = list(items)
            for guid in guids[2:4]:
                (storage / f"{guid}.json").unlink(missing_ok=True)
            yield from found

        yield listing()

    monkeypatch.setattr(os, "scandir", scandir)
    result = run("prune-size", "--max-mb", "3000B")
    assert result.code == 0
    assert blobs(storage) == {guids[1], *guids[4:]}
    monkeypatch.undo()


def test_victims_that_vanish_before_they_are_deleted_are_no_failure(
    storage: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    guids = make_store(storage, COUNT)
    real = os.unlink

    def unlink(name: str, *arguments: Any, **options: Any) -> None:
        if name == f"{guids[0]}.json":
            real(storage / f"{guids[1]}.json")
        real(name, *arguments, **options)

    monkeypatch.setattr(os, "unlink", unlink)
    result = run()
    monkeypatch.undo()
    assert result.code == 0
    assert event(result.err, "storage_manager.prune.summary")["deleted_count"] == 1
    assert list(read_entries(storage)) == guids[VICTIMS:]


def test_odd_file_names_are_not_ours(storage: Path, run: Run) -> None:
    guids = make_store(storage, COUNT)
    odd = [
        b"\xff\xfe.json", b"\x1b[31mred.json", b"new\nline", b" ", b"-rf", b"notes.txt", b"*", b"metadata.json.bak",
        b".hidden", os.fsencode(GUID), os.fsencode(GUID) + b".\xff", os.fsencode(GUID) + b".", b"a" * 255,
    ]  # fmt: skip
    for name in odd:
        with open(os.path.join(os.fsencode(storage), name), "wb") as file:
            file.write(b"z" * 5000)
    result = run()
    assert result.code == 0
    assert "\x1b" not in result.err
    assert list(read_entries(storage)) == guids[VICTIMS:]
    assert set(odd) <= set(os.listdir(os.fsencode(storage)))
    assert run("purge", "--yes", "--age-days", "0").code == 0
    assert set(odd) <= set(os.listdir(os.fsencode(storage)))


@pytest.mark.parametrize("extension", ["JSON", "json.bak", "tar.gz", "0"])
def test_a_file_named_like_a_blob_without_an_entry_counts_and_stays(storage: Path, run: Run, extension: str) -> None:
    guids = make_store(storage, COUNT)
    path = storage / f"{GUID}.{extension}"
    path.write_bytes(b"o" * 2000)
    os.utime(path, (OLD, OLD))
    result = run("prune-size", "--max-mb", "5000B")
    assert result.code == 0
    assert result.anomalies()["orphan"]["size_bytes"] == 2000
    assert list(read_entries(storage)) == guids[3:]
    assert run("purge", "--yes", "--age-days", "0").code == 0
    assert path.exists()


def test_sub_directories_are_left_alone(storage: Path, run: Run) -> None:
    guids = make_store(storage, COUNT)
    below = make_store(storage / "sessions", 3, seed=9)
    (storage / str(uuid.UUID(int=5, version=4))).mkdir()
    before = everything(storage / "sessions")
    assert run().code == 0
    assert list(read_entries(storage)) == guids[VICTIMS:]
    assert everything(storage / "sessions") == before and len(below) == 3


def test_orphans_are_reported_and_never_deleted(storage: Path, run: Run) -> None:
    guids = make_store(storage, COUNT)
    orphan = storage / f"{GUID}.json"
    orphan.write_bytes(b"o" * 3000)
    os.utime(orphan, (OLD, OLD))
    result = run("prune-size", "--max-mb", "5000B")
    assert result.code == 0
    assert result.anomalies()["orphan"]["size_bytes"] == 3000
    assert list(read_entries(storage)) == guids[4:], "its bytes count"
    assert run("prune-size", "--max-mb", "1000B").code == 1
    assert orphan.exists()


def test_the_store_as_a_symlink_is_followed_as_any_directory_is(storage: Path, run: Run, tmp_path: Path) -> None:
    """An operator's link to the volume is no trap; the contents are still reached through one descriptor."""
    guids = make_store(storage, COUNT)
    link = tmp_path / "link"
    link.symlink_to(storage)
    assert run("--storage-dir", link, "prune-size", "--max-mb", LIMIT).code == 0
    assert list(read_entries(storage)) == guids[VICTIMS:]


# --- file systems and permissions --------------------------------------------------------------------------


@needs_root
def test_a_read_only_directory_is_refused_before_the_first_deletion(storage: Path) -> None:
    guids = make_store(storage, COUNT)
    for path in [*storage.iterdir(), storage]:
        os.chown(path, 65534, 65534)
    os.chmod(storage, 0o555)
    done = run_as_nobody(storage, "prune-size", "--max-mb", LIMIT)
    assert done.returncode == 1
    assert event(done.stderr, "storage_manager.prune.failed")["deleted_count"] == 0
    assert blobs(storage) == set(guids) == set(read_entries(storage))
    assert run_as_nobody(storage, "list").stdout.split() == guids


@needs_root
def test_a_directory_that_may_not_be_listed_is_an_error(storage: Path) -> None:
    guids = make_store(storage, COUNT)
    os.chmod(storage, 0o711)
    for arguments in (("list",), ("prune-size", "--max-mb", LIMIT)):
        done = run_as_nobody(storage, *arguments)
        assert done.returncode == 1
        assert any(item.get("errno") == "EACCES" for item in events(done.stderr))
    assert blobs(storage) == set(guids)


@needs_root
def test_metadata_that_may_not_be_read_is_an_error(storage: Path) -> None:
    guids = make_store(storage, COUNT)
    os.chmod(storage, 0o777)
    os.chmod(storage / METADATA, 0o600)
    for arguments in (("list",), ("prune-size", "--max-mb", LIMIT)):
        done = run_as_nobody(storage, *arguments)
        assert done.returncode == 1
        assert any(item.get("errno") == "EACCES" and METADATA in item["file"] for item in events(done.stderr))
    assert blobs(storage) == set(guids)


@needs_root
def test_blobs_that_may_not_be_deleted_keep_their_entries(storage: Path) -> None:
    """A sticky directory: the metadata is the user's own, some of the blobs are not."""
    guids = make_store(storage, COUNT)
    os.chmod(storage, 0o1777)
    for path in (storage / METADATA, *(storage / f"{guid}.json" for guid in guids[1:])):
        os.chown(path, 65534, 65534)
    done = run_as_nobody(storage, "prune-size", "--max-mb", LIMIT)
    assert done.returncode == 1
    failed = event(done.stderr, "storage_manager.prune.delete_failed")
    assert failed["errno"] in ("EPERM", "EACCES") and guids[0] in failed["file"]
    assert event(done.stderr, "storage_manager.prune.summary")["failed_count"] == 1
    assert set(read_entries(storage)) == blobs(storage) == {guids[0], *guids[2:]}
    assert leftovers(storage) == []


@contextmanager
def mounted(path: Path, options: str) -> Iterator[Path]:
    """A small file system of its own; the test is skipped where none can be mounted."""
    path.mkdir(exist_ok=True)
    mount = shutil.which("mount")
    if mount is None or shutil.which("umount") is None:
        pytest.skip("there is no mount command")
    done = subprocess.run(
        [mount, "-t", "tmpfs", "-o", options, "tmpfs", str(path)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


def fill(directory: Path) -> None:
    """Use up every byte that is left."""
    with open(directory / "filler", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            assert error.errno == errno.ENOSPC


@needs_root
@pytest.mark.parametrize("commit_every_secs", [5.0, 0.0])
def test_a_full_disk_is_given_room(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, commit_every_secs: float
) -> None:
    monkeypatch.setattr(prune_job, "COMMIT_EVERY_SECS", commit_every_secs)
    with mounted(tmp_path / "full", "size=1m") as directory:
        guids = make_store(directory, 20, size=20_000)
        fill(directory)
        result = run("--storage-dir", directory, "prune-size", "--max-mb", "200000B")
        assert result.code == 0, result.err
        assert list(read_entries(directory)) == guids[10:]
        assert blobs(directory) == set(guids[10:])
        assert leftovers(directory) == []
        status = os.statvfs(directory)
        assert status.f_bavail * status.f_frsize >= 10 * 20_000


@needs_root
def test_a_disk_without_a_free_inode_is_given_room(tmp_path: Path, run: Run) -> None:
    with mounted(tmp_path / "full", "size=1m,nr_inodes=40") as directory:
        guids = make_store(directory, 20)
        number = 0
        with pytest.raises(OSError, match="No space left"):
            while True:
                (directory / f"filler-{number}").touch()
                number += 1
        result = run("--storage-dir", directory, "prune-size", "--max-mb", "10000B")
        assert result.code == 0, result.err
        assert list(read_entries(directory)) == guids[10:]
        assert leftovers(directory) == []


@needs_root
def test_a_read_only_file_system_is_refused_before_the_first_deletion(tmp_path: Path, run: Run) -> None:
    with mounted(tmp_path / "frozen", "size=1m") as directory:
        guids = make_store(directory, COUNT)
        done = subprocess.run(["mount", "-o", "remount,ro", str(directory)], capture_output=True, check=False)
        if done.returncode:
            pytest.skip("it cannot be remounted read-only")
        result = run("--storage-dir", directory, "prune-size", "--max-mb", LIMIT)
        assert result.code == 1
        assert event(result.err, "storage_manager.prune.failed")["deleted_count"] == 0
        assert blobs(directory) == set(guids) == set(read_entries(directory))
        assert run("--storage-dir", directory, "list").out.split() == guids
        assert run("--storage-dir", directory, "prune-size", "--max-mb", LIMIT, "--dry-run").code == 0


def test_a_file_system_that_becomes_read_only_while_it_is_pruned_ends_the_prune(
    storage: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    guids = make_store(storage, COUNT)
    real = os.unlink

    def unlink(name: str, *arguments: Any, **options: Any) -> None:
        if name == f"{guids[1]}.json":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        real(name, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", unlink)
        result = run("prune-size", "--max-mb", "1000B")
    assert result.code == 1
    found = event(result.err, "storage_manager.prune.failed")
    assert (found["errno"], found["file"]) == ("EROFS", str(storage / f"{guids[1]}.json"))
    assert blobs(storage) == set(guids[1:]) == set(read_entries(storage))


@pytest.mark.parametrize("code", [errno.EIO, errno.EPERM, errno.EACCES, errno.EBUSY])
def test_a_blob_that_cannot_be_deleted_keeps_its_entry_and_the_others_go(
    storage: Path, run: Run, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    guids = make_store(storage, COUNT)
    real = os.unlink

    def unlink(name: str, *arguments: Any, **options: Any) -> None:
        if name == f"{guids[0]}.json":
            raise OSError(code, os.strerror(code))
        real(name, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", unlink)
        result = run()
    assert result.code == 1
    failed = event(result.err, "storage_manager.prune.delete_failed")
    assert (failed["errno"], failed["file"]) == (errno.errorcode[code], str(storage / f"{guids[0]}.json"))
    assert set(read_entries(storage)) == blobs(storage) == {guids[0], *guids[2:]}
    assert leftovers(storage) == []


@pytest.mark.parametrize("kind", ["file", "absent", "fifo"])
def test_a_storage_directory_that_is_none_is_named(tmp_path: Path, run: Run, kind: str) -> None:
    path = tmp_path / "somewhere"
    if kind == "file":
        path.write_text("x")
    elif kind == "fifo":
        os.mkfifo(path)
    for arguments in (("list",), ("stats",), ("prune-size", "--max-mb", "1")):
        result = run("--storage-dir", path, *arguments)
        assert result.code == 1
        assert any(str(path) in item["@m"] and item["@l"] == "Error" for item in events(result.err))
    assert (kind == "absent") != os.path.lexists(path)
