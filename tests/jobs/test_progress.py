"""What was done is said: whatever ends a run, in the sentence on the terminal and in the events."""

from __future__ import annotations

import errno
import gc
import json
import os
import resource
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from stores import (
    blobs,
    clean_environment,
    command,
    event,
    events,
    leftovers,
    make_store,
    read_entries,
    run_tool,
    write_entries,
)

from storage_manager.base.clock import Clock
from storage_manager.cli import main
from storage_manager.jobs.progress import Progress
from storage_manager.store import reading
from storage_manager.store.directory import Store

COUNT, LIMIT, VICTIMS = 8, "5500B", 3
METADATA = "metadata.json"
TMP = ".metadata.json.tmp"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")

# All that a write, a sync or a rename of the next metadata.json can give, but a full disk.
DOES_NOT_PASS = ["EFBIG", "EDQUOT", "EIO", "EROFS", "EACCES", "EPERM", "EINVAL", "ESTALE", "ENOTCONN", "ENOMEM"]


class Result(NamedTuple):
    code: int
    err: str

    def names(self) -> list[str]:
        return [item["event"] for item in events(self.err)]

    def guids(self, *keys: str) -> list[str]:
        return [item["guid"] for item in events(self.err) if item["event"] in keys]


Tool = Callable[..., Result]


@pytest.fixture
def tool(storage: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Tool:
    monkeypatch.setattr(Clock, "install", lambda self: None)

    def run(*arguments: str) -> Result:
        words = arguments or ("prune-size", "--max-mb", LIMIT)
        try:
            code = main(["--storage-dir", str(storage), "--log-format", "json", *words])
        finally:
            gc.enable()
        return Result(code, capfd.readouterr().err)

    return run


@pytest.fixture
def guids(storage: Path) -> list[str]:
    return make_store(storage, COUNT)


def progress(**values: Any) -> Progress:
    made = Progress()
    for name, value in values.items():
        if name == "purged_count":
            made.purged.deleted_count = value
        else:
            setattr(made if hasattr(made, name) else made.counts, name, value)
    return made


def entries_of(count: int) -> set[str]:
    return set(map(str, range(count)))


@pytest.mark.parametrize(
    ("done", "text"),
    [
        ({}, "nothing was deleted"),
        ({"deleted_count": 1}, "1 session was deleted"),
        (
            {"deleted_count": 1, "uncommitted": entries_of(1)},
            "1 session was deleted; its entry stays until a later run removes it",
        ),
        (
            {"deleted_count": 1234, "uncommitted": entries_of(1234)},
            "1,234 sessions were deleted; their entries stay until a later run removes them",
        ),
        (
            {"deleted_count": 1234, "uncommitted": entries_of(34)},
            "1,234 sessions were deleted; 34 entries stay until a later run removes them",
        ),
        (
            {"deleted_count": 0, "uncommitted": entries_of(1)},
            "0 sessions were deleted; 1 entry stays until a later run removes it",
        ),
        ({"deleted_count": 2, "noun": "orphan"}, "2 orphans were deleted"),
        ({"swept_count": 2}, "2 dangling entries were removed"),
        ({"deleted_count": 1, "swept_count": 1}, "1 session was deleted; 1 dangling entry was removed"),
        ({"removed_count": 1}, "1 file of unfinished metadata was removed"),
        ({"adopted_count": 2}, "2 orphans were adopted"),
        ({"adopting_count": 2}, "up to 2 orphans were adopted"),
        ({"adopted_count": 1, "swept_count": 1}, "1 orphan was adopted; 1 dangling entry was removed"),
        ({"deleted_count": 1, "sentence": "deleted 1 session; 0 B remain"}, "deleted 1 session; 0 B remain"),
    ],
)  # fmt: skip
def test_every_end_has_its_sentence(done: dict[str, Any], text: str) -> None:
    assert progress(**done).done() == text


# --- A commit that fails


def failing(patch: pytest.MonkeyPatch, place: str, number: int) -> None:
    """Let the write, the sync or the rename of the draft fail, whenever the run comes to it."""
    real: Callable[..., Any] = getattr(os, place)

    def fail(subject: Any, *arguments: Any, **options: Any) -> Any:
        name = subject if isinstance(subject, str) else os.readlink(f"/proc/self/fd/{subject}")
        # The trial before the first deletion writes one byte.
        if name.endswith(TMP) and not (place == "pwrite" and len(arguments[0]) == 1):
            raise OSError(number, os.strerror(number))
        return real(subject, *arguments, **options)

    patch.setattr(os, place, fail)


@pytest.mark.parametrize("code", [*DOES_NOT_PASS, "ENOSPC"])
@pytest.mark.parametrize("place", ["pwrite", "fsync", "rename"])
def test_a_commit_that_fails_tells_what_went_and_nothing_more_goes_while_it_does(
    storage: Path, guids: list[str], tool: Tool, monkeypatch: pytest.MonkeyPatch, place: str, code: str
) -> None:
    with monkeypatch.context() as patch:
        failing(patch, place, getattr(errno, code))
        first = tool()
        assert first.code == 1
        told = event(first.err, "storage_manager.prune.failed")
        assert "; 3 sessions were deleted; their entries stay until a later run removes them" in told["@m"]
        assert (told["deleted_count"], told["uncommitted_count"], told["errno"]) == (3, 3, code)
        left = blobs(storage)
        assert left == set(guids[VICTIMS:])

        again = tool("prune-size", "--max-mb", "2500B")
        assert again.code == 1
        if code == "ENOSPC":  # deleting makes room
            assert blobs(storage) < left
            return
        assert blobs(storage) == left, "a store that cannot be committed to is not deleted from again"
        told = event(again.err, "storage_manager.prune.failed")
        assert told["@m"].endswith("; nothing was deleted") and told["uncommitted_count"] == 0
    assert tool("prune-size", "--max-mb", "2500B").code == 0
    assert list(read_entries(storage)) == guids[6:] and leftovers(storage) == []


def test_entries_that_are_gone_although_the_commit_failed_are_not_said_to_stay(
    storage: Path, guids: list[str], tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def fsync(fd: int) -> None:
        if os.path.samefile(f"/proc/self/fd/{fd}", storage):
            raise OSError(errno.EIO, "no")
        real(fd)

    (storage / f"{guids[0]}.json").unlink()
    monkeypatch.setattr(os, "fsync", fsync)
    result = tool("purge", "--age-days", "1", "--lock-timeout", "0")
    told = event(result.err, "storage_manager.purge.failed")
    assert result.code == 1 and told["uncommitted_count"] == 0
    assert told["@m"].endswith("; 1 dangling entry was removed")
    assert result.guids("storage_manager.purge.swept") == guids[:1]
    assert blobs(storage) == set(guids[1:])


@pytest.mark.parametrize("room", [0, 1, -1, 1000])
def test_a_limit_of_the_size_of_files_is_seen_before_the_first_deletion(
    storage: Path, guids: list[str], room: int
) -> None:
    limit = 0 if not room else (storage / METADATA).stat().st_size + (room if room < 1000 else 1000)
    done = run_tool(
        "--storage-dir", storage, "--log-format", "json", "prune-size", "--max-mb", LIMIT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    if room > 0:
        assert done.returncode == 0 and blobs(storage) == set(guids[VICTIMS:])
        return
    assert done.returncode == 1 and blobs(storage) == set(guids) == set(read_entries(storage))
    told = event(done.stderr, "storage_manager.prune.failed")["@m"]
    assert "raise its limit" in told and told.endswith("nothing was deleted")
    assert leftovers(storage) == []


@needs_root
@pytest.mark.parametrize(("uid", "gid"), [(0, 0), (65534, 0), (0, 65534), (65534, 65534)])
def test_a_quota_that_the_deletion_would_not_free_is_seen_before_it(
    storage: Path, guids: list[str], tool: Tool, monkeypatch: pytest.MonkeyPatch, uid: int, gid: int
) -> None:
    for guid in guids:
        os.chown(storage / f"{guid}.json", uid, gid)
    real = os.pwrite

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        if os.readlink(f"/proc/self/fd/{fd}").endswith(TMP) and blobs(storage) == set(guids):
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    result = tool()
    if (uid, gid) == (0, 0):  # the deletion makes room in the same quota
        assert result.code == 0 and blobs(storage) == set(guids[VICTIMS:])
    else:
        assert result.code == 1 and blobs(storage) == set(guids)
        assert "quota" in event(result.err, "storage_manager.prune.failed")["@m"]


# --- metadata.json that cannot be read


def test_a_file_that_is_being_written_is_not_called_damaged(
    storage: Path, guids: list[str], tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (storage / METADATA).read_bytes()
    (storage / METADATA).write_bytes(text[:-1])
    pause = reading.Patience.pause

    def writing(self: Any, secs: float) -> None:
        pause(self, secs)
        with open(storage / METADATA, "ab") as file:
            file.write(b" ")

    monkeypatch.setattr(reading.Patience, "pause", writing)
    monkeypatch.setattr("storage_manager.store.survey.READ_PATIENCE_SECS", 0.1)
    result = tool()
    told = event(result.err, "storage_manager.metadata_corrupt")["@m"]
    assert result.code == 1 and "Try again" in told and "nothing was deleted" in told
    assert "a backup" not in told and "repair" not in told


def test_a_backup_is_not_recommended_once_something_was_deleted(
    storage: Path, guids: list[str], tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage_manager.store.replace.READ_PATIENCE_SECS", 0.1)
    real = Store.unlink

    def unlink(self: Store, name: str) -> bool:
        done = real(self, name)
        if name.endswith(".json"):
            (storage / METADATA).write_bytes(b"{")
        return done

    monkeypatch.setattr(Store, "unlink", unlink)
    result = tool()
    told = event(result.err, "storage_manager.metadata_corrupt")
    assert result.code == 1 and told["deleted_count"] == VICTIMS == told["uncommitted_count"]
    assert told["@m"].endswith("; 3 sessions were deleted; their entries stay until a later run removes them")
    assert "a backup" not in result.err


# --- Other ends


@pytest.mark.parametrize("number", range(VICTIMS))
@pytest.mark.parametrize("failure", [MemoryError, ZeroDivisionError])
def test_no_memory_and_a_fault_of_ours_tell_what_was_done(
    storage: Path,
    guids: list[str],
    tool: Tool,
    monkeypatch: pytest.MonkeyPatch,
    failure: type[Exception],
    number: int,
) -> None:
    real = Store.unlink

    def unlink(self: Store, name: str) -> bool:
        if name == f"{guids[number]}.json":
            raise failure
        return real(self, name)

    monkeypatch.setattr(Store, "unlink", unlink)
    result = tool()
    assert result.code == 1 and blobs(storage) == set(guids[number:])
    assert "half done" not in result.err
    if not number:
        assert "storage_manager.prune.failed" not in result.names()
        return
    told = event(result.err, "storage_manager.prune.failed")
    assert (told["deleted_count"], told["uncommitted_count"], told["exit_code"]) == (number, number, 1)
    assert told["@m"] == progress(deleted_count=number, uncommitted=entries_of(number)).done()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_told_after_what_was_done(storage: Path, signum: int) -> None:
    make_store(storage, 3000, size=10)
    process = subprocess.Popen(
        command("--storage-dir", storage, "--log-format", "json", "purge", "--age-days", "0", "--yes"),
        env=clean_environment(), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    with process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if '"storage_manager.purge.deleted"' in line:
                process.send_signal(signum)
                break
        err = "".join([*lines, *process.stderr])
    assert process.returncode == 128 + signum
    summary = event(err, "storage_manager.purge.summary")
    assert 0 < summary["deleted_count"] < 3000
    assert event(err, "storage_manager.command_failed")["@m"].startswith(f"{summary['@m']}; interrupted by ")
    assert len(read_entries(storage)) == 3000 - summary["deleted_count"]


# --- The trail


class Killed(BaseException):
    """The process is gone: nobody handles this."""


def dangle(storage: Path, guids: list[str]) -> None:
    for guid in guids:
        (storage / f"{guid}.json").unlink()


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (("prune-size", "--max-mb", "3500B"), "prune"),
        (("purge", "--age-days", "0", "--yes"), "purge"),
        (("check", "--repair", "--yes"), "repair"),
    ],
)
def test_every_swept_entry_is_an_event_of_its_own(
    storage: Path, guids: list[str], tool: Tool, words: tuple[str, ...], kind: str
) -> None:
    entries = read_entries(storage)
    entries[guids[1]]["group"] = "research"
    write_entries(storage, entries)
    dangle(storage, guids[:3])
    result = tool(*words)
    assert result.guids(f"storage_manager.{kind}.swept") == guids[:3]
    groups = [item["group"] for item in events(result.err) if item["event"] == f"storage_manager.{kind}.swept"]
    assert groups == [None, "research", None]
    assert event(result.err, f"storage_manager.{kind}.summary")["swept_count"] == 3
    assert not set(guids[:3]) & set(read_entries(storage))


@pytest.mark.parametrize("number", range(VICTIMS))
def test_the_trail_has_every_session_even_if_a_run_was_killed_before_it_told(
    storage: Path, guids: list[str], tool: Tool, monkeypatch: pytest.MonkeyPatch, number: int,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    real = Store.unlink

    def unlink(self: Store, name: str) -> bool:
        done = real(self, name)
        if name == f"{guids[number]}.json":
            raise Killed
        return done

    with monkeypatch.context() as patch:
        patch.setattr(Store, "unlink", unlink)
        with pytest.raises(Killed):
            tool()
    told = [item["guid"] for item in events(capfd.readouterr().err) if item["event"] == "storage_manager.prune.deleted"]
    assert told == guids[:number]
    result = tool("prune-size", "--max-mb", "2500B")
    told += result.guids("storage_manager.prune.swept", "storage_manager.prune.deleted")
    gone = set(guids) - blobs(storage)
    assert gone == set(guids) - set(read_entries(storage)) == set(told)


def test_a_sweep_that_is_not_committed_is_not_told(
    storage: Path, guids: list[str], tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    dangle(storage, guids[:2])
    failing(monkeypatch, "fsync", errno.EIO)
    result = tool("prune-size", "--max-mb", "3500B")
    assert result.code == 1 and result.guids("storage_manager.prune.swept") == []
    assert json.loads((storage / METADATA).read_text()).keys() == set(guids)
