"""Every system call that a run makes on its store, watched from within; and stores on which none may do harm."""

from __future__ import annotations

import _pyio
import builtins
import fcntl
import functools
import gc
import json
import os
import shutil
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from client import Client
from stores import blobs, leftovers, make_store, read_entries

from storage_manager import cli, grammar
from storage_manager.base.clock import Clock
from storage_manager.store import holder

METADATA, DRAFT, PREV, LOCK = "metadata.json", ".metadata.json.tmp", ".metadata.json.prev", ".prune_size.lock"
ASIDE = ".metadata.json.torn-"
ACCESS_LIST, DEFAULT_ACCESS_LIST = "system.posix_acl_access", "system.posix_acl_default"

# --- system calls ------------------------------------------------------------------------------------------

CHANGING = (
    "write", "pwrite", "ftruncate", "fsync", "fchmod", "fchown", "utime", "unlink", "rename", "link", "setxattr",
    "removexattr",
)  # fmt: skip
LOOKING = (
    "open", "close", "stat", "fstat", "access", "pread", "read", "lseek", "dup", "getxattr", "listxattr", "listdir",
    "scandir",
)  # fmt: skip
_real: dict[str, Any] = {name: getattr(os, name) for name in (*CHANGING, *LOOKING)}


class Call(NamedTuple):
    """A system call on the store."""

    name: str
    """The function in `os`; `flock`; `getdents` for a step of a directory listing."""
    files: tuple[str, ...]
    """The names in the store that it is about; `.` is the directory."""
    arguments: tuple[Any, ...]

    @property
    def changes(self) -> bool:
        """Whether it changes something that outlives the process, or a lock."""
        if self.name == "open":
            return bool(self.arguments[1] & (os.O_CREAT | os.O_TRUNC))
        return self.name in CHANGING or self.name == "flock"

    def __str__(self) -> str:
        return f"{self.name}({', '.join(self.files)})"


Handler = Callable[[Call, Callable[..., Any]], Any]
"""What is done in place of a call. The second argument makes the real one, with other arguments if given any."""


@contextmanager
def intercepted(storage: Path, handler: Handler, sync: bool = False) -> Iterator[None]:
    """Let `handler` decide about each system call on the store. Nothing is really synced: that would take its time.

    What Python's own files do is seen as well: they are replaced by those that are written in Python.
    """
    root = str(storage)
    opened: dict[int, str] = {}
    busy = False

    def decide(call: Call, go: Callable[..., Any]) -> Any:
        nonlocal busy
        busy = True  # what the handler itself does is nobody's call
        try:
            return handler(call, go)
        finally:
            busy = False

    def name_of(subject: Any, dir_fd: int | None) -> str | None:
        if isinstance(subject, int):
            return opened.get(subject)
        if dir_fd is not None:
            return str(subject) if dir_fd in opened else None
        path = os.fspath(subject)
        if path == root:
            return "."
        return path[len(root) + 1 :] if path.startswith(root + "/") else None

    def files_of(name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> tuple[str, ...]:
        if name in ("rename", "link"):
            found = [name_of(arguments[0], options.get("src_dir_fd")), name_of(arguments[1], options.get("dst_dir_fd"))]
        else:
            found = [name_of(arguments[0], options.get("dir_fd"))]
        return tuple(file for file in found if file is not None)

    def wrapped(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            files = () if busy else files_of(name, arguments, options)
            if not files:
                return real(*arguments, **options)

            def go(*others: Any) -> Any:
                if name == "fsync" and not sync:
                    return None
                if name == "close":
                    del opened[arguments[0]]
                result = real(*(others or arguments), **options)
                if name in ("open", "dup"):
                    opened[result] = files[0]
                return _Listing(result, decide) if name == "scandir" else result

            return decide(Call(name, files, arguments), go)

        return call

    real_open, real_flock = builtins.open, fcntl.flock
    try:
        for name, real in _real.items():
            setattr(os, name, wrapped(name, real))
        fcntl.flock = wrapped("flock", real_flock)
        builtins.open = lambda file, *rest, **more: (  # type: ignore[assignment]
            (_pyio.open if file in opened else real_open)(file, *rest, **more)
        )
        yield
    finally:
        builtins.open, fcntl.flock = real_open, real_flock
        for name, real in _real.items():
            setattr(os, name, real)


class _Listing:
    """A directory listing of which each step, and each look at an entry, is a call."""

    def __init__(self, listing: Any, decide: Handler) -> None:
        self._listing = listing
        self._decide = decide

    def __iter__(self) -> _Listing:
        return self

    def __next__(self) -> _Entry:
        item = self._decide(Call("getdents", (".",), ()), lambda: next(self._listing))
        return _Entry(item, self._decide)

    def __enter__(self) -> _Listing:
        return self

    def __exit__(self, *exc: object) -> None:
        self._listing.close()


class _Entry:
    def __init__(self, item: os.DirEntry[str], decide: Handler) -> None:
        self.name, self.path, self.is_dir = item.name, item.path, item.is_dir
        self._item = item
        self._decide = decide

    def stat(self, **options: Any) -> os.stat_result:
        return self._decide(Call("stat", (self.name,), ()), lambda: self._item.stat(**options))


# --- runs --------------------------------------------------------------------------------------------------


class Pauses:
    """Replaces the clock's waiting: each pause is a second long and takes no time; something can be done in it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.secs = 0.0
        self.action: Callable[[], None] = lambda: None
        patch.setattr(Clock, "install", lambda clock: None)
        patch.setattr(Clock, "monotonic", lambda clock: self._monotonic())
        patch.setattr(Clock, "pause", lambda clock, secs: self._pause(secs))
        # Whoever held a lock that is left is this very process; it stands for one that has died.
        patch.setattr(holder, "is_alive", lambda pid: False)

    def _monotonic(self) -> float:
        self.secs += 1e-4  # what polls without a pause must come to an end, too
        return self.secs

    def _pause(self, secs: float) -> None:
        self.secs += max(1.0, secs)
        self.action()


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Path]:
    """Where thousands of stores can be made quickly: in memory, where that is possible."""
    try:
        path = tempfile.mkdtemp(dir="/dev/shm")
    except OSError:
        path = str(tmp_path)
    yield Path(path)
    shutil.rmtree(path)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> Pauses:
    """No waiting, and the same command line parser each time: thousands of runs need not make a new one."""
    monkeypatch.setattr(grammar, "build_parser", functools.lru_cache(maxsize=None)(grammar.build_parser))
    return Pauses(monkeypatch)


def run_main(storage: Path, arguments: Sequence[str], level: str = "ERROR") -> int:
    try:
        return cli.main(["--storage-dir", str(storage), "--log-format", "json", "--log-level", level, *arguments])
    finally:
        gc.enable()


# --- stores ------------------------------------------------------------------------------------------------

# Eight sessions of 1000 bytes, and one of 10: the three oldest go. A client that is at work in between deletes the
# small one and saves one of 2000 bytes: then it is the five oldest, however many had gone before. In the end it
# saves one of 1000 bytes more, and the six oldest go; a prune that has nothing to delete would sweep nothing.
PRUNE = ("prune-size", "--max-mb", "5500B")
PURGE = ("purge", "--group", "old", "--age-days", "0", "--yes")
PURGE_ORPHANS = ("purge", "--orphans", "--age-days", "0", "--yes")
ADOPT = ("check", "--adopt-orphans", "lost")
REPAIR = ("check", "--repair", "--yes")
CYCLE = ("run-loop", "--once")  # with PRUNE's limit
OLD = 1_000_000_000
LATE, PUT_BACK, NEW, LAST, *LOST = (f"{digit * 8}-aaaa-4bbb-8ccc-dddddddddddd" for digit in "123456")


class Scene(NamedTuple):
    """A store that was made for a test, and what may become of it."""

    arguments: tuple[str, ...]
    order: list[str]
    """The sessions of 1000 bytes, oldest first."""
    small: str
    saved: dict[str, Any]
    """What a client has saved of which metadata.json does not know (yet)."""
    texts: dict[str, bytes]
    """The members of metadata.json as they are written there."""
    unfinished: tuple[str, ...]
    """What clients have left unfinished. It is kept for good."""
    overlapping: bool
    """Whether a client is about to save LATE: it opens the file right before the rename and is slow to write."""
    missing: bool = False
    """Whether metadata.json is missing."""
    attributes: dict[str, bytes] = {}
    """That of metadata.json."""
    purged: int = 3
    """How many of the oldest go if the command neither is PRUNE nor CYCLE."""
    environ: dict[str, str] = {}
    adopted: tuple[str, ...] = ()
    """Orphans that are to have entries in the end."""
    unwanted: tuple[str, ...] = ()
    """Orphans that are to go."""

    def victims(self, acted: bool, last: bool = False) -> list[str]:
        return self.order[: 3 + 2 * acted + last if self.arguments in (PRUNE, CYCLE) else self.purged]


def made(make: Callable[[Path], Scene], storage: Path) -> Scene:
    """A scene in which nothing has been written just now: a run may wait for what is, and then makes other calls."""
    scene = make(storage)
    names = [METADATA, *leftovers(storage)]  # what clients have left in the others is newer
    for number, name in enumerate(names):
        if name != METADATA or not scene.missing:
            os.utime(storage / name, (OLD + number, OLD + number))
    return scene


def plain(storage: Path, arguments: tuple[str, ...] = PRUNE) -> Scene:
    order = make_store(storage, 3, group="old")
    order += make_store(storage, 5, seed=2, created_at="2026-02-01T00:00:00")
    order[3:] = sorted(order[3:])
    (small,) = make_store(storage, 1, size=10, seed=3, created_at="2026-03-01T00:00:00")
    texts = {guid: _member(guid, entry) for guid, entry in read_entries(storage).items()}
    (storage / METADATA).write_bytes(_document(texts))
    return Scene(arguments, order, small, {}, texts, (), overlapping=False)


def _member(guid: str, entry: Any) -> bytes:
    """With spaces where a client puts none: what is copied keeps them, what is encoded anew does not."""
    return json.dumps({guid: entry}, separators=(" , ", ":  "))[1:-1].encode()


def _document(texts: dict[str, bytes], **more: Any) -> bytes:
    return b"{" + b",".join([*texts.values(), *(_member(guid, entry) for guid, entry in more.items())]) + b" }"


def purge(storage: Path) -> Scene:
    return plain(storage, PURGE)


def with_orphans(storage: Path, arguments: tuple[str, ...] = ADOPT, purged: int = 0) -> Scene:
    """The two oldest have lost their entries."""
    scene = plain(storage, arguments)
    texts = {guid: text for guid, text in scene.texts.items() if guid not in scene.order[:2]}
    (storage / METADATA).write_bytes(_document(texts))
    for guid in scene.order[:2]:
        os.utime(storage / f"{guid}.json", (OLD, OLD))
    return scene._replace(texts=texts, purged=purged)


def orphans_to_purge(storage: Path) -> Scene:
    return with_orphans(storage, PURGE_ORPHANS, 2)


def orphans_and_overlap(storage: Path) -> Scene:
    return with_orphans(storage)._replace(overlapping=True, saved={LATE: _blob(storage, LATE)})


def _cycle(storage: Path, rule: str) -> Scene:
    """A cycle that adopts or purges two small orphans, younger than every session, and then prunes."""
    scene = plain(storage, CYCLE)
    for guid in LOST:
        (storage / f"{guid}.json").write_bytes(b"n" * 10)
        moment = time.time() - 20 * 86_400
        os.utime(storage / f"{guid}.json", (moment, moment))
    names = {"MAX_STORAGE_MB": "5500B", "ORPHANS": rule, "HISTORY_FILE": "off"}
    return scene._replace(environ={f"GOFR_DIG_{name}": value for name, value in names.items()})


def adopting_cycle(storage: Path) -> Scene:
    return _cycle(storage, "adopt:lost")._replace(adopted=tuple(LOST))


def purging_cycle(storage: Path) -> Scene:
    return _cycle(storage, "purge:10")._replace(unwanted=tuple(LOST))


def adopting_cycle_and_overlap(storage: Path) -> Scene:
    return adopting_cycle(storage)._replace(overlapping=True, saved={LATE: _blob(storage, LATE)})


def purging_cycle_and_overlap(storage: Path) -> Scene:
    return purging_cycle(storage)._replace(overlapping=True, saved={LATE: _blob(storage, LATE)})


def nothing_but_orphans(storage: Path) -> Scene:
    scene = plain(storage, ADOPT)
    (storage / METADATA).unlink()
    for guid in (*scene.order, scene.small):
        os.utime(storage / f"{guid}.json", (OLD, OLD))
    return scene._replace(texts={}, purged=0, missing=True)


def to_repair(storage: Path) -> Scene:
    """All that is left of dead runs and clients, and an entry whose blob is gone."""
    scene = left(storage)
    gone = {"format": "json", "size": 1, "created_at": "2026-01-01T00:00:00"}
    (storage / METADATA).write_bytes(_document(scene.texts, **{NEW.replace("a", "b"): gone}))
    return scene._replace(arguments=REPAIR, unfinished=(), purged=0)


def access_list(storage: Path) -> Scene:
    """A client that is not the owner may depend on it, and whoever has set an attribute on that."""
    scene = plain(storage)
    _set_access_list(storage / METADATA, ACCESS_LIST)
    with suppress(OSError):  # no attributes of users here
        os.setxattr(storage / METADATA, "user.origin", b"import")
    return scene._replace(attributes=_attributes(storage / METADATA))


def inherited_access_list(storage: Path) -> Scene:
    """New files get one from the directory, metadata.json has none."""
    scene = plain(storage)
    _set_access_list(storage, DEFAULT_ACCESS_LIST)
    return scene


def _attributes(path: Path) -> dict[str, bytes]:
    """What a commit has to keep."""
    kept = (name for name in os.listxattr(path) if name == ACCESS_LIST or name.startswith("user."))
    return {name: os.getxattr(path, name) for name in kept}


def _set_access_list(path: Path, name: str) -> None:
    parts = ((1, 6, -1), (2, 6, 1234), (4, 4, -1), (16, 6, -1), (32, 4, -1))  # tag, permissions, id
    try:
        os.setxattr(path, name, struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *part) for part in parts))
    except OSError as error:
        pytest.skip(f"no access lists here: {error}")


def overlap(storage: Path) -> Scene:
    return plain(storage)._replace(overlapping=True, saved={LATE: _blob(storage, LATE)})


def purge_overlap(storage: Path) -> Scene:
    return overlap(storage)._replace(arguments=PURGE)


def left(storage: Path) -> Scene:
    """After a run that died behind its rename, a client that went on late, and another that never did."""
    scene = plain(storage)
    late, finished = _blob(storage, LATE), _blob(storage, PUT_BACK)
    (storage / PREV).write_bytes(_document(scene.texts, **{LATE: late}))
    (storage / f"{ASIDE}20260101T000000Z-aaaaaaaa").write_bytes(_document({}, **{PUT_BACK: finished}))
    unfinished = _document(scene.texts)[:500].decode()
    (storage / f"{ASIDE}20260101T000000Z-bbbbbbbb").write_text(unfinished)
    (storage / DRAFT).write_text('{"half')
    (storage / LOCK).write_text('{"pid": 1}\n')
    return scene._replace(saved={LATE: late, PUT_BACK: finished}, unfinished=(unfinished,))


def several(storage: Path) -> Scene:
    scene = plain(storage)
    late, put_back = _blob(storage, LATE), _blob(storage, PUT_BACK)
    (storage / PREV).write_bytes(_document(scene.texts, **{LATE: late}))
    (storage / f"{PREV}.1").write_bytes(_document(scene.texts))
    (storage / f"{PREV}.7").write_bytes(_document(scene.texts, **{PUT_BACK: put_back}))
    return scene._replace(saved={LATE: late, PUT_BACK: put_back})


def crowded(storage: Path) -> Scene:
    """Eight commits in a row were overlapped, and the last save of them could not be merged."""
    scene = plain(storage)
    late = _blob(storage, LATE)
    for suffix in ("", *(f".{number}" for number in range(1, 7))):
        (storage / f"{PREV}{suffix}").write_bytes(_document(scene.texts))
    (storage / f"{PREV}.7").write_bytes(_document(scene.texts, **{LATE: late}))
    return scene._replace(saved={LATE: late})


def missing(storage: Path) -> Scene:
    scene = plain(storage)
    os.rename(storage / METADATA, storage / PREV)
    return scene._replace(missing=True)


def twice(storage: Path) -> Scene:
    scene = plain(storage)
    os.link(storage / METADATA, storage / PREV)
    return scene


def torn(storage: Path) -> Scene:
    scene = plain(storage)
    unfinished = (storage / METADATA).read_text()[:500]
    (storage / PREV).write_text(unfinished)
    return scene._replace(unfinished=(unfinished,))


def _blob(storage: Path, guid: str, size: int = 0) -> dict[str, Any]:
    """The first half of a save; returns the entry for the second."""
    (storage / f"{guid}.json").write_bytes(b"n" * size)
    return {"format": "json", "size": size, "created_at": f"2026-03-1{guid[0]}T00:00:00"}


def clone(source: Path, target: Path) -> None:
    """Make `target` what `source` is. Files with two names stay so; blobs are shared, since nobody writes to them."""
    target.mkdir(exist_ok=True)
    inherits = DEFAULT_ACCESS_LIST in os.listxattr(source)
    if inherits and DEFAULT_ACCESS_LIST in os.listxattr(target):
        os.removexattr(target, DEFAULT_ACCESS_LIST)  # what is copied keeps its own list, or none
    for name in os.listdir(target):
        os.unlink(f"{target}/{name}")
    copies: dict[int, str] = {}
    for name in os.listdir(source):
        old, new = f"{source}/{name}", f"{target}/{name}"
        if not name.startswith(".") and name != METADATA:
            os.link(old, new)
            continue
        inode = os.lstat(old).st_ino
        if inode in copies:
            os.link(copies[inode], new)
        else:
            copies[inode] = new
            shutil.copy2(old, new)
    if inherits:
        shutil.copystat(source, target)


def looks(storage: Path) -> str:
    """What the next run sees: two stores that look the same need not both be tried."""
    found = []
    names: dict[int, str] = {}
    for name in sorted(os.listdir(storage)):
        status = os.lstat(f"{storage}/{name}")
        content = ""
        if name == LOCK:  # who held it and since when makes no difference
            content = "x" * min(1, status.st_size)
        elif name.startswith(".") or name == METADATA:
            with open(f"{storage}/{name}") as file:
                content = file.read()
        shown = ASIDE if name.startswith(ASIDE) else name
        found.append((shown, content, oct(status.st_mode), names.setdefault(status.st_ino, name) == name))
    return repr(sorted(found))


# --- clients -----------------------------------------------------------------------------------------------


class Overlap:
    """A client that opens metadata.json right before the rename, which empties it, and takes its time to write LATE.

    It is `waiting`, `writing` or `done`.
    """

    def __init__(self, storage: Path, scene: Scene, state: str = "waiting") -> None:
        self.storage = storage
        self.entry = scene.saved.get(LATE, {})
        self.state = state if scene.overlapping else "done"
        self.text = ""
        self.file: Any = None

    def handle(self, call: Call) -> None:
        if call.name == "rename" and call.files == (DRAFT, METADATA):
            self.begin()

    def begin(self) -> None:
        if self.state != "waiting":
            return
        self.text = json.dumps({**Client(self.storage).read(), LATE: self.entry}, indent=2)
        self.file = open(self.storage / METADATA, "w")  # noqa: SIM115
        self.state = "writing"

    def resume(self, text: str) -> None:
        """Take over from a client of which only the store is left: the file that it has emptied is its own."""
        for name in (METADATA, PREV, *(f"{PREV}.{number}" for number in range(1, 8))):
            if os.path.exists(self.storage / name) and not os.path.getsize(self.storage / name):
                self.text, self.state = text, "writing"
                self.file = open(self.storage / name, "w")  # noqa: SIM115
                return

    def finish(self) -> None:
        if self.state == "writing":
            self.file.write(self.text)
            self.state = "done"
        if self.file is not None:
            self.file.close()

    def save_alone(self) -> None:
        """The save happens after all, with nobody in its way."""
        self.finish()
        if self.state == "waiting":
            client = Client(self.storage)
            client.write({**client.read(), LATE: self.entry})
            self.state = "done"


def act(storage: Path, scene: Scene) -> None:
    """A client at work: it deletes, registers an alias, and saves."""
    client = Client(storage)
    client.delete(scene.small)
    client.register_alias(scene.order[-1], "alias")
    client.write({**client.read(), NEW: _blob(storage, NEW, 2000)})


# --- what must hold ----------------------------------------------------------------------------------------


def check(storage: Path, scene: Scene, where: str, acted: bool = False, writing: bool = False) -> None:
    """What holds at any moment, whatever has happened to whom: only the planned sessions may have lost anything."""
    may_go = {*scene.victims(acted), *scene.unwanted, *([scene.small] if acted else [])}
    everything = {*scene.order, scene.small, *scene.saved, *scene.adopted, *scene.unwanted, *([NEW] if acted else [])}
    on_disk = blobs(storage)
    assert everything - may_go <= on_disk <= everything, f"{where}: the wrong blobs are gone"
    assert all((storage / f"{guid}.json").read_bytes() == b"x" * 1000 for guid in on_disk & {*scene.order}), where
    kept = [path.read_text() for path in storage.glob(".metadata.json.*")]
    assert all(text in kept for text in scene.unfinished), f"{where}: what was unfinished is gone"
    if (storage / METADATA).exists():
        assert _attributes(storage / METADATA) == scene.attributes, f"{where}: other attributes"
    if writing and not os.path.getsize(storage / METADATA):
        return  # the client itself has emptied it
    # Strictly: a client that reads a torn file takes it for empty, and loses everything with its next save.
    text = (storage / METADATA).read_text() if (storage / METADATA).exists() else "{}"
    entries = set(json.loads(text))
    if scene.missing and (acted or not entries):
        text = (storage / PREV).read_text() if (storage / PREV).exists() else text
        entries |= set(json.loads(text))
    known = set(scene.texts) - may_go
    assert known <= entries, f"{where}: entries are lost"
    if not acted and not scene.overlapping:
        assert all(scene.texts[guid] in text.encode() for guid in known), f"{where}: an entry was encoded anew"


def expect_convergence(storage: Path, scene: Scene, client: Overlap, where: str, acted: bool = False) -> None:
    """A client works on, then healthy runs: everything ends up as if nothing had happened."""
    client.save_alone()
    if not acted:
        act(storage, scene)
    last = Client(storage)
    last.write({**last.read(), LAST: _blob(storage, LAST, 1000)})
    by_client = {guid: _text(guid, entry) for guid, entry in read_entries(storage).items()}
    expected = {*scene.order, *scene.saved, *scene.adopted, NEW, LAST} - set(scene.victims(acted=True, last=True))
    asides = len(scene.unfinished)
    arguments = (*ADOPT, *REPAIR[1:]) if scene.arguments in (ADOPT, REPAIR) else scene.arguments
    if (storage / LOCK).exists():
        os.utime(storage / LOCK, (OLD, OLD))  # an empty one counts as somebody's for a second
    for _ in range(2):
        assert run_main(storage, arguments) == 0, where
        entries = read_entries(storage)
        assert set(entries) == expected == blobs(storage), f"{where}: {set(entries) ^ expected}"
        if len(leftovers(storage)) == asides:
            break
    assert len(leftovers(storage)) == asides, f"{where}: {leftovers(storage)} stay"
    text = (storage / METADATA).read_bytes()
    for guid in expected:
        assert by_client.get(guid, scene.texts.get(guid, b"")) in text, f"{where}: {guid} was encoded anew"
        if guid in scene.texts:
            assert (storage / f"{guid}.json").read_bytes() == b"x" * 1000, where


def _text(guid: str, entry: Any) -> bytes:
    """A member as a client writes it."""
    return json.dumps({guid: entry}, indent=2)[2:-2].encode()
