"""What a commit keeps of the file that it replaces, and what it refuses to lose."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stores import (
    blobs,
    clean_environment,
    command,
    event,
    leftovers,
    make_store,
    read_entries,
    run_tool,
    write_entries,
)

from storage_manager.base.clock import Clock
from storage_manager.base.errors import NotWritable
from storage_manager.cli import main
from storage_manager.store import likeness
from storage_manager.store.directory import Store, open_store
from storage_manager.store.likeness import Likeness, likeness_of_metadata

METADATA, TMP, PREV = "metadata.json", ".metadata.json.tmp", ".metadata.json.prev"
COUNT, PRUNE = 6, ("prune-size", "--max-mb", "3500B")  # the three oldest go
NEW = "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture
def guids(storage: Path) -> list[str]:
    return make_store(storage, COUNT)


@pytest.fixture
def store(storage: Path, guids: list[str]) -> Iterator[Store]:
    with open_store(str(storage)) as opened:
        yield opened


def contents(storage: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in storage.iterdir()}


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr and '"@x"' not in done.stderr
    for word in words:
        assert word in done.stderr


def with_owner(store: Store, user: int, group: int) -> Likeness:
    """What is taken for the likeness of metadata.json when the kernel shows these."""
    fd = store.open(METADATA)
    try:
        fields = list(os.fstat(fd)[:10])
        fields[stat.ST_UID], fields[stat.ST_GID] = user, group
        return likeness_of_metadata(store, fd, os.stat_result(fields))
    finally:
        os.close(fd)


# --- an owner that is not one ------------------------------------------------------------------------------

MAPS = {
    "every id": ("0 0 4294967295", False),
    "every id, in pieces": ("0 0 1000\n1000 5000 1\n1001 1001 4294966294", False),
    "root alone": ("0 0 1", True),
    "of a container": ("0 100000 65536", True),
    "all but one": ("0 0 4294967294", True),
    "none yet": ("", True),
    "not readable": (None, False),
    "not a map": ("a b c", False),
}


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("overflow", [65534, 99, None])
def test_an_id_that_may_stand_for_another_is_refused(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, overflow: int | None
) -> None:
    """Where not every id is mapped, the one that stands for the others; user and group each by its own map."""
    text, partial = MAPS[name]
    shown = 65534 if overflow is None else overflow
    monkeypatch.setattr(likeness, "_PROC", str(tmp_path))
    for directory in ("self", "sys/kernel"):
        (tmp_path / directory).mkdir(parents=True)
    for kind, other, what in (("uid", "gid", "user"), ("gid", "uid", "group")):
        (tmp_path / "self" / f"{other}_map").write_text("0 0 4294967295")
        (tmp_path / "self" / f"{kind}_map").unlink(missing_ok=True)
        if text is not None:
            (tmp_path / "self" / f"{kind}_map").write_text(text)
        if overflow is not None:
            (tmp_path / "sys" / "kernel" / f"overflow{kind}").write_text(f"{overflow}\n")
        for user, group in itertools.product((0, 1234, shown), repeat=2):
            if partial and (user, group)[kind == "gid"] == shown:
                with pytest.raises(NotWritable, match=f"{METADATA} belongs to {what} {shown},"):
                    with_owner(store, user, group)
            else:
                assert with_owner(store, user, group)[:2] == (user, group)


def run_in_namespace(storage: Path, ids: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The tool in a user namespace that knows only these ids."""
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("unshare is not there")
    wait = [unshare, "--user", "sh", "-c", 'read -r line; exec "$@"', "sh"]
    with subprocess.Popen(
        [*wait, *command("--storage-dir", storage, *arguments)],
        env=clean_environment(), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 10
        while os.readlink(f"/proc/{process.pid}/ns/user") == os.readlink("/proc/self/ns/user"):
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                pytest.skip("user namespaces are not permitted")
            time.sleep(0.01)
        try:
            for kind in ("uid", "gid"):
                Path(f"/proc/{process.pid}/{kind}_map").write_text(ids)
        except OSError as error:
            process.kill()
            pytest.skip(f"ids may not be mapped: {error}")
        out, err = process.communicate("\n", timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@needs_root
@pytest.mark.parametrize("ids", ["0 0 1", "0 0 1\n65534 65534 1"], ids=["nobody unknown", "nobody known"])
@pytest.mark.parametrize(("user", "group"), [(1234, 1234), (1234, 0), (0, 1234)])
def test_in_a_user_namespace_no_file_of_somebody_unknown_changes_hands(
    storage: Path, guids: list[str], ids: str, user: int, group: int
) -> None:
    storage.chmod(0o777)
    os.chown(storage / METADATA, user, group)
    (storage / METADATA).chmod(0o666)
    before = contents(storage)
    refused(run_in_namespace(storage, ids, *PRUNE), METADATA, "65534", "namespace")
    assert contents(storage) == before
    status = os.stat(storage / METADATA)
    assert (status.st_uid, status.st_gid) == (user, group)


@needs_root
def test_in_a_user_namespace_the_store_of_somebody_known_is_pruned(storage: Path, guids: list[str]) -> None:
    for path in (storage, *storage.iterdir()):
        os.chown(path, 0, 0)
    done = run_in_namespace(storage, "0 0 1\n65534 65534 1", *PRUNE)
    assert done.returncode == 0, done.stderr
    assert set(read_entries(storage)) == blobs(storage) == set(guids[3:])


@needs_root
def test_in_a_user_namespace_no_metadata_is_made_for_somebody_unknown(storage: Path, guids: list[str]) -> None:
    (storage / METADATA).unlink()
    storage.chmod(0o777)
    for number, guid in enumerate(guids):
        os.utime(storage / f"{guid}.json", (number, number))
        os.chown(storage / f"{guid}.json", 1234, 1234)
    before = contents(storage)
    adopt = ("check", "--adopt-orphans", "found")
    refused(run_in_namespace(storage, "0 0 1\n65534 65534 1", *adopt), f"{guids[-1]}.json belongs to", "namespace")
    assert contents(storage) == before


# --- what the file system was asked for is what it did -----------------------------------------------------


@pytest.mark.parametrize("call", ["fchmod", pytest.param("fchown", marks=needs_root)])
def test_a_change_of_owner_or_mode_that_the_file_system_only_pretends_is_refused(
    storage: Path, guids: list[str], call: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if call == "fchown":
        os.chown(storage / METADATA, 1234, 4321)
    (storage / METADATA).chmod(0o640)
    before = contents(storage)
    monkeypatch.setattr(os, call, lambda *arguments: None)
    assert run_main(storage) == 1
    message = event(capfd.readouterr().err, "storage_manager.prune.failed")["@m"]
    assert METADATA in message and ("0640" if call == "fchmod" else "1234") in message
    assert contents(storage) == before


def run_main(storage: Path) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Clock, "install", lambda self: None)
        return main(["--storage-dir", str(storage), "--log-format", "json", *PRUNE])


@pytest.mark.parametrize("moment", ["link", "unlink"])
def test_a_mode_that_changes_during_a_run_is_the_one_that_stays(
    storage: Path, guids: list[str], moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the deletion, when a first draft is ready; and when the commit has made its own."""
    real: Callable[..., Any] = getattr(os, moment)
    count = 0

    def changing(name: str, *arguments: Any, **options: Any) -> None:
        nonlocal count
        real(name, *arguments, **options)
        count += (storage / TMP).exists()
        if count == 2:
            (storage / METADATA).chmod(0o604)

    (storage / METADATA).chmod(0o640)
    monkeypatch.setattr(os, moment, changing)
    assert run_main(storage) == 0
    assert stat.S_IMODE(os.stat(storage / METADATA).st_mode) == 0o604
    assert set(read_entries(storage)) == set(guids[3:]) and leftovers(storage) == []


# --- other names -------------------------------------------------------------------------------------------

OWN = (TMP, PREV, f"{PREV}.1", f"{PREV}.8")
FOREIGN = ("metadata.json.bak", ".metadata.json.prev.x", ".metadata.json.torn-1", "../elsewhere")


@pytest.mark.parametrize("own", [(), *((name,) for name in OWN), OWN])
@pytest.mark.parametrize("foreign", [(), *((name,) for name in FOREIGN), FOREIGN])
def test_another_name_of_metadata_is_refused_unless_a_commit_has_made_it(
    storage: Path, store: Store, own: tuple[str, ...], foreign: tuple[str, ...]
) -> None:
    for name in (*own, *foreign):
        os.link(storage / METADATA, storage / name)
    (storage / f"{PREV}.2").touch()  # one of our names, but another file
    fd = store.open(METADATA)
    try:
        if foreign:
            with pytest.raises(NotWritable, match=rf"{METADATA} has {len(foreign)} other names? \(hard link"):
                likeness_of_metadata(store, fd, os.fstat(fd))
        else:
            assert likeness_of_metadata(store, fd, os.fstat(fd)).shown_by(os.fstat(fd))
    finally:
        os.close(fd)


CHANGERS = {
    "prune": PRUNE,
    "purge": ("purge", "--age-days", "0", "--yes"),
    "repair": ("check", "--repair", "--yes"),
    "adoption": ("check", "--adopt-orphans", "found"),
    "recovery": PRUNE,
}


@pytest.mark.parametrize("name", CHANGERS)
def test_whatever_would_replace_a_file_with_another_name_changes_nothing(
    storage: Path, guids: list[str], name: str
) -> None:
    entries = read_entries(storage)
    if name == "repair":
        write_entries(storage, {**entries, NEW: entries[guids[0]]})
    elif name == "adoption":
        (storage / f"{NEW}.json").write_bytes(b"x")
        for path in storage.iterdir():
            os.utime(path, (1, 1))
    elif name == "recovery":
        (storage / f"{NEW}.json").write_bytes(b"x")
        write_entries(storage, {**entries, NEW: entries[guids[0]]})
        os.rename(storage / METADATA, storage / PREV)
        write_entries(storage, entries)
    os.link(storage / METADATA, storage / "other")
    before = contents(storage)
    refused(run_tool("--storage-dir", storage, *CHANGERS[name]), f"{storage / METADATA} has 1 other name", "samefile")
    assert contents(storage) == before
    (storage / "other").unlink()
    assert run_tool("--storage-dir", storage, *CHANGERS[name]).returncode == 0
    assert (storage / METADATA).read_bytes() != before[METADATA]


# --- attributes --------------------------------------------------------------------------------------------

ATTRIBUTES = {"user.origin": b"import", "user.empty": b"", "user.binary": bytes(range(256)), "user.": b"odd"}


def set_attributes(path: Path) -> dict[str, bytes]:
    for name, value in ATTRIBUTES.items():
        try:
            os.setxattr(path, name, value)
        except OSError as error:
            if name == "user.":  # no name at all; some kernels refuse it
                continue
            pytest.skip(f"no attributes of users here: {error}")
    return attributes(path)


def attributes(path: Path) -> dict[str, bytes]:
    return {name: os.getxattr(path, name) for name in os.listxattr(path) if name.startswith("user.")}


@pytest.mark.parametrize("mode", [0o644, 0o400, 0o000])
@pytest.mark.parametrize("owner", [None, pytest.param(1234, marks=needs_root)])
def test_attributes_of_users_are_kept(storage: Path, guids: list[str], mode: int, owner: int | None) -> None:
    if mode == 0 and os.geteuid() != 0:
        pytest.skip("only root reads what nobody may read")
    before = set_attributes(storage / METADATA)
    if owner is not None:
        os.chown(storage / METADATA, owner, owner)
    (storage / METADATA).chmod(mode)
    inode = os.stat(storage / METADATA).st_ino
    assert run_tool("--storage-dir", storage, *PRUNE).returncode == 0
    assert os.stat(storage / METADATA).st_ino != inode
    assert len(before) >= 3 and attributes(storage / METADATA) == before


def test_a_draft_of_before_has_the_attributes_of_now(
    storage: Path, guids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Set and removed between the preparation and the commit."""
    set_attributes(storage / METADATA)
    real = os.unlink

    def changing(name: str, **options: Any) -> None:
        if name == f"{guids[0]}.json":
            os.setxattr(storage / METADATA, "user.origin", b"changed")
            os.removexattr(storage / METADATA, "user.binary")
        real(name, **options)

    monkeypatch.setattr(os, "unlink", changing)
    assert run_main(storage) == 0
    kept = attributes(storage / METADATA)
    assert kept["user.origin"] == b"changed" and "user.binary" not in kept


@pytest.mark.parametrize(
    ("call", "code"),
    [("setxattr", errno.EOPNOTSUPP), ("setxattr", errno.EPERM), ("setxattr", errno.E2BIG), ("getxattr", errno.EIO),
     ("getxattr", errno.EPERM), ("listxattr", errno.EIO), ("listxattr", errno.E2BIG)],
)  # fmt: skip
def test_attributes_that_cannot_be_kept_end_the_run_before_the_first_deletion(
    storage: Path, guids: list[str], call: str, code: int, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    set_attributes(storage / METADATA)
    before = contents(storage)
    real = getattr(os, call)

    def failing(fd: int, *arguments: Any) -> Any:
        if not arguments or arguments[0].startswith("user."):
            raise OSError(code, os.strerror(code))
        return real(fd, *arguments)

    monkeypatch.setattr(os, call, failing)
    assert run_main(storage) == 1
    message = event(capfd.readouterr().err, "storage_manager.prune.failed")["@m"]
    assert METADATA in message and "attribute" in message and errno.errorcode[code] in message
    assert contents(storage) == before


@pytest.mark.parametrize("flag", ["i", "a"])
def test_a_file_that_nobody_may_replace_ends_the_run_before_the_first_deletion(
    storage: Path, guids: list[str], flag: str
) -> None:
    chattr = shutil.which("chattr")
    if chattr is None:
        pytest.skip("chattr is not there")
    before = contents(storage)
    if subprocess.run([chattr, f"+{flag}", storage / METADATA], capture_output=True, check=False).returncode:
        pytest.skip("this user or file system sets no such attributes")
    try:
        refused(run_tool("--storage-dir", storage, *PRUNE), METADATA, "lsattr")
        assert contents(storage) == before
    finally:
        subprocess.run([chattr, f"-{flag}", storage / METADATA], check=True)
