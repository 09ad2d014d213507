"""What only shows when two things go wrong together: each of these once lost something, or hung."""

from __future__ import annotations

import errno
import json
import os
import pty
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from client import Client
from stores import (
    blobs,
    clean_environment,
    command,
    event,
    events,
    leftovers,
    make_store,
    new_guid,
    read_entries,
    run_tool,
)

from storage_manager.base import room
from storage_manager.base.clock import HANDLED, Clock, Patience
from storage_manager.base.errors import Interrupted, LockLost, NoRoom, StorageManagerError, StoreError
from storage_manager.base.log import EventLog, build_logger
from storage_manager.store import lock
from storage_manager.store.commit import Committer
from storage_manager.store.directory import Store, open_store
from storage_manager.store.document import parse
from storage_manager.store.draft import Draft, remove_leftover
from storage_manager.store.edit import Removal
from storage_manager.store.likeness import likeness_of_blob
from storage_manager.store.reading import read_stable

LOG = EventLog(build_logger(None, True, 50))


@pytest.fixture
def store(storage: Path) -> Iterator[Store]:
    with open_store(str(storage)) as opened:
        yield opened


def delete(store: Store, storage: Path, guids: list[str]) -> Removal:
    for guid in guids:
        (storage / f"{guid}.json").unlink()
    return Removal(store, Clock(), set(guids), ())


def test_a_second_run_does_not_take_a_live_draft_for_a_leftover(storage: Path, store: Store) -> None:
    make_store(storage, 2)
    draft = Draft(store, likeness_of_blob(store, "metadata.json", 0o7777))
    with pytest.raises(LockLost):
        remove_leftover(store)
    with pytest.raises(LockLost):
        Draft(store, likeness_of_blob(store, "metadata.json", 0o7777))
    draft.discard()
    assert not remove_leftover(store)


def test_a_draft_that_was_replaced_is_not_published(storage: Path, store: Store) -> None:
    guids = make_store(storage, 2)
    draft = Draft(store, likeness_of_blob(store, "metadata.json", 0o7777))
    draft.write([b"{}"], 2)
    (storage / ".metadata.json.tmp").unlink()
    (storage / ".metadata.json.tmp").touch()
    with pytest.raises(LockLost):
        draft.examine()
    assert list(read_entries(storage)) == guids


def test_a_draft_whose_sync_failed_is_not_synced_again(
    storage: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    guids = make_store(storage, 3)
    real = os.fsync
    synced: list[int] = []

    def fsync(fd: int) -> None:
        name = os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))
        if name.startswith(".metadata"):
            synced.append(os.fstat(fd).st_ino)
            if len(synced) == 1:
                keep.append(os.dup(fd))  # so that the inode's number is not given away again
                raise OSError(errno.EIO, "Input/output error")
        real(fd)

    keep: list[int] = []
    monkeypatch.setattr(os, "fsync", fsync)
    committer = Committer(store, Clock(), LOG)
    removal = delete(store, storage, guids[:1])
    with pytest.raises(StoreError):
        committer.commit(removal, None)
    committer.commit(removal, None)
    committer.close()
    os.close(keep[0])
    assert len(set(synced)) == 2
    assert list(read_entries(storage)) == guids[1:]


def test_of_two_members_with_one_key_and_a_blob_each_the_last_counts(storage: Path) -> None:
    guids = make_store(storage, 2000, size=100)  # so large that the two are decoded apart
    twice = guids[0]
    (storage / f"{twice}.txt").write_bytes(b"y" * 100)
    text = (storage / "metadata.json").read_text().rstrip()
    last = json.dumps({"format": "txt", "size": 100, "created_at": "2026-10-01T00:00:00"})
    (storage / "metadata.json").write_text(f'{text[:-2]},\n  "{twice}": {last}\n}}')
    done = run_tool("--storage-dir", storage, "prune-size", "--max-mb", "150000B")
    assert done.returncode == 0
    assert (storage / f"{twice}.txt").exists() and twice in read_entries(storage)
    assert (storage / f"{twice}.json").exists()  # nobody's any more, and not ours to delete


def test_a_file_kept_aside_as_torn_is_merged_once_its_writer_has_finished(storage: Path) -> None:
    guids = make_store(storage, 3)
    entries = read_entries(storage)
    late = Client(storage).save()
    whole = (storage / "metadata.json").read_text()
    (storage / "metadata.json").write_text(json.dumps(entries, indent=2))
    aside = storage / ".metadata.json.torn-20260101T000000Z-00000000"
    aside.write_text(whole[:-40])
    run_tool("--storage-dir", storage, "prune-size", "--max-mb", "10")
    assert list(read_entries(storage)) == guids and aside.exists()
    aside.write_text(whole)
    done = run_tool("--storage-dir", storage, "prune-size", "--max-mb", "10")
    assert event(done.stderr, "storage_manager.recovered")["what"] == "torn"
    assert list(read_entries(storage)) == [*guids, late]
    run_tool("--storage-dir", storage, "prune-size", "--max-mb", "10")  # sees that it has stayed
    assert leftovers(storage) == []


def test_what_cannot_be_put_back_is_kept(storage: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    make_store(storage, 1)
    late = parse((storage / "metadata.json").read_bytes())
    (storage / "metadata.json").unlink()
    with pytest.raises(StorageManagerError, match="disappeared"):
        Committer(store, Clock(), LOG).put_back(late, None, None)


def test_a_rename_that_fails_although_it_was_done_leaves_no_draft_to_write_to(
    storage: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without hard links, what a client writes to the old file has to be put back at once: by another draft."""
    guids = make_store(storage, 3)
    client = Client(storage)
    guid = new_guid(random.Random(5))
    renames: list[str] = []
    real_rename, real_pwrite = os.rename, os.pwrite

    def rename(*arguments: Any, **options: Any) -> None:
        renames.append("")
        if len(renames) > 1:
            real_rename(*arguments, **options)
            return
        (storage / f"{guid}.json").write_text("x")
        entries = {**client.read(), guid: {"format": "json", "created_at": "2026-05-05T00:00:00"}}
        with open(storage / "metadata.json", "w") as file:  # opened before the rename, written after it
            real_rename(*arguments, **options)
            json.dump(entries, file, indent=2)
        raise OSError(errno.EIO, "Input/output error")

    def pwrite(fd: int, *arguments: Any) -> int:
        assert os.fstat(fd).st_ino != os.stat(storage / "metadata.json").st_ino, "it is written in place"
        return real_pwrite(fd, *arguments)

    def no_links(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(os, "link", no_links)
    committer = Committer(store, Clock(), LOG)
    with pytest.raises(StoreError, match="EIO"):
        committer.commit(delete(store, storage, guids[:1]), None)
    committer.close()
    assert list(read_entries(storage)) == [*guids[1:], guid]


@pytest.mark.parametrize(("times", "expected"), [(2.5, False), (3.5, True)])
def test_without_hard_links_there_is_room_for_a_copy_too(
    storage: Path, store: Store, monkeypatch: pytest.MonkeyPatch, times: float, expected: bool
) -> None:
    guids = make_store(storage, 2000, size=10)
    size = (storage / "metadata.json").stat().st_size

    def no_links(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    def free(fd: int, *_: Any) -> room.Free:
        """So much once the draft is written."""
        return room.Free(int(times * size) + room.SLACK_BYTES + size - os.fstat(fd).st_size, False)

    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(room, "free", free)
    committer = Committer(store, Clock(), LOG)
    removal = delete(store, storage, guids[:1])
    if expected:
        committer.commit(removal, None)
    else:
        with pytest.raises(NoRoom):
            committer.commit(removal, None)
    assert (guids[0] in read_entries(storage)) != expected
    assert leftovers(storage) == []


def test_a_late_save_survives_without_hard_links_and_without_room(
    storage: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    guids = make_store(storage, 3)
    client = Client(storage)
    renames: list[str] = []
    real_rename = os.rename
    late: list[str] = []

    def rename(*arguments: Any, **options: Any) -> None:
        renames.append("")
        if len(renames) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        guid = new_guid(random.Random(5))
        (storage / f"{guid}.json").write_text("x")
        entries = {**client.read(), guid: {"format": "json", "created_at": "2026-05-05T00:00:00"}}
        with open(storage / "metadata.json", "w") as file:  # opened before the rename, written after it
            real_rename(*arguments, **options)
            json.dump(entries, file, indent=2)
        late.append(guid)

    def no_links(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(os, "link", no_links)
    committer = Committer(store, Clock(), LOG)
    with pytest.raises(StoreError):
        committer.commit(delete(store, storage, guids[:1]), None)
    committer.close()
    asides = list(storage.glob(".metadata.json.torn-*"))
    assert len(asides) == 1 and late[0] in json.loads(asides[0].read_text())
    monkeypatch.undo()
    run_tool("--storage-dir", storage, "prune-size", "--max-mb", "10")
    assert late[0] in read_entries(storage)


def test_a_metadata_file_that_is_a_mount_point_is_found_before_anything_is_deleted(
    storage: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    guids = make_store(storage, 3)

    def link(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", link)
    committer = Committer(store, Clock(), LOG)
    found = read_stable(store, Patience(Clock(), 1.0, 0.0), parse)
    assert found is not None
    with found[0] as reading, pytest.raises(StorageManagerError, match="mount point"):
        committer.prepare(reading)
    committer.close()
    assert blobs(storage) == set(guids)


def test_an_access_list_inherited_from_the_directory_does_not_reach_the_new_file(storage: Path, store: Store) -> None:
    make_store(storage, 1)
    path = storage / "metadata.json"
    path.chmod(0o640)
    entries = ((1, 6, -1), (2, 4, 1234), (4, 0, -1), (16, 4, -1), (32, 0, -1))
    acl = b"\x02\x00\x00\x00" + b"".join(
        tag.to_bytes(2, "little") + rights.to_bytes(2, "little") + (who & 0xFFFFFFFF).to_bytes(4, "little")
        for tag, rights, who in entries
    )
    try:
        os.setxattr(storage, "system.posix_acl_default", acl)
    except OSError as error:
        pytest.skip(f"no access control lists here: {error}")
    draft = Draft(store, likeness_of_blob(store, "metadata.json", 0o7777))
    with pytest.raises(OSError):
        os.getxattr(storage / ".metadata.json.tmp", "system.posix_acl_access")
    assert os.stat(storage / ".metadata.json.tmp").st_mode & 0o777 == 0o640
    draft.discard()


@pytest.mark.parametrize("option", ["--storage-dir", "--data-root"])
def test_an_empty_directory_name_is_not_the_default_store(tmp_path: Path, option: str) -> None:
    guids = make_store(tmp_path / "data" / "storage", 2)
    done = run_tool(option, "", "purge", "--age-days", "0", "--yes", cwd=tmp_path)
    assert done.returncode == 64
    assert blobs(tmp_path / "data" / "storage") == set(guids)


def test_a_lock_that_cannot_be_closed_cleanly_is_let_go_all_the_same(
    storage: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.close

    def close(fd: int) -> None:
        real(fd)
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    held = lock.acquire_lock(store, LOG, Clock(), "test", 0.0, 3600.0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "close", close)
        held.release()
    lock.acquire_lock(store, LOG, Clock(), "test", 0.0, 3600.0).release()


def test_a_lock_file_that_cannot_be_examined_is_an_error_and_no_endless_search(
    storage: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.stat

    def stat(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        if path == lock.LOCK_NAME:
            raise OSError(errno.EIO, "Input/output error")
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", stat)
    with pytest.raises(StoreError):
        lock.acquire_lock(store, LOG, Clock(), "test", 0.0, 3600.0)


def test_waiting_for_a_line_in_an_empty_lock_file_ends_on_a_signal(storage: Path, store: Store) -> None:
    class Stopped(Clock):
        def pause(self, secs: float) -> None:
            os.utime(storage / lock.LOCK_NAME)  # somebody keeps it young
            self.stop_signal = signal.SIGTERM

    (storage / lock.LOCK_NAME).touch()
    with pytest.raises(Interrupted):
        lock.acquire_lock(store, LOG, Stopped(), "test", 0.0, 3600.0)


def test_a_terminal_that_nobody_reads_does_not_hold_a_prune_up(storage: Path) -> None:
    make_store(storage, 600, size=100)
    ours, theirs = pty.openpty()
    arguments = command("--storage-dir", storage, "--log-format", "json", "--log-level", "INFO")
    process = subprocess.Popen(
        [*arguments, "prune-size", "--max-mb", "100B"],
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    try:
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)
    assert len(blobs(storage)) == 1


def test_a_loop_lives_with_more_descriptors_than_select_can_watch(storage: Path) -> None:
    script = (
        "import os, resource, sys\n"
        "soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096) if hard > 0 else 4096, hard))\n"
        "for _ in range(1100): os.open('/dev/null', os.O_RDONLY)\n"
        "from storage_manager.cli import main\n"
        "sys.exit(main(['run-loop']))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        env=clean_environment({"GOFR_DIG_STORAGE": str(storage)}),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    seen = []
    with process.stderr:
        for line in process.stderr:
            seen += events(line)
            if seen[-1:] and seen[-1]["event"] == "housekeeper.sleep":
                process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0
    assert "housekeeper.stopping" in [item["event"] for item in seen]


def test_a_signal_right_after_the_question_is_not_slept_through(here: None, storage: Path) -> None:
    clock = Clock()
    reader, writer = os.pipe()
    clock.install()
    with clock.deferred():  # the signal has come, and nobody has looked
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0)
        with pytest.raises(Interrupted):
            clock.wait_for_input(reader)
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("signum", [number.name for number in HANDLED])
@pytest.mark.parametrize("interrupted", [False, True])
def test_a_signal_while_the_interpreter_ends_does_not_change_the_exit_code(
    storage: Path, signum: str, interrupted: bool
) -> None:
    """It puts handlers back to the default, which kills: right then a module's last object sends a signal."""
    script = (
        "import os, signal, sys\n"
        "from storage_manager import cli\n"
        "class Last:\n"
        "    def __del__(self, kill=os.kill, pid=os.getpid()):\n"
        f"        kill(pid, signal.{signum})\n"
        "last = Last()\n"
        "def stop(logger):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        + ("cli.close_logger = stop\n" if interrupted else "")
        + "sys.exit(cli.main(['list']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=clean_environment({"GOFR_DIG_STORAGE": str(storage)}),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == (143 if interrupted else 0), done.stderr


def test_a_process_that_cannot_even_start_says_so_in_one_sentence(storage: Path) -> None:
    script = (
        "import os, sys\n"
        "def pipe():\n"
        "    raise OSError(24, 'Too many open files')\n"
        "os.pipe = pipe\n"
        "from storage_manager.cli import main\n"
        "sys.exit(main(['list']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=clean_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "storage_manager: cannot start: Too many open files (EMFILE)\n"


def test_a_sleep_that_the_kernel_refuses_is_no_busy_wait_and_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def register(self, fd: int, events: int) -> None: ...

        def poll(self, msecs: float) -> list[Any]:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")

    slept: list[float] = []
    monkeypatch.setattr("storage_manager.base.clock.select.poll", Broken)
    monkeypatch.setattr("storage_manager.base.clock.time.sleep", slept.append)
    clock = Clock()
    clock._pipe = (0, 0)
    clock.sleep(3600.0)
    assert slept == [1.0]
