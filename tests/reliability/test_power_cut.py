"""The power fails at any call that changes the store: metadata.json is whole, and nothing is lost."""

from __future__ import annotations

import errno
import gc
import json
import os
import shutil
import stat
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Optional

import pytest
from client import Client
from images import Image, memory_at
from stores import blobs, leftovers, make_store, read_entries, write_entries

from storage_manager.base.clock import Clock
from storage_manager.cli import main
from storage_manager.jobs import prune as prune_job
from storage_manager.store import commit, lock, recovery

METADATA, TMP, PREV, TORN = "metadata.json", ".metadata.json.tmp", ".metadata.json.prev", ".metadata.json.torn-"
OWNER = (1234, 4321, 0o640)

# What changes names and makes changes last; the rest changes files that are not yet, or no more, of any account.
NAMING = ("open", "fsync", "link", "rename", "unlink")
CHANGES = (*NAMING, "pwrite", "ftruncate", "fchown", "fchmod", "utime")

# Eight sessions of 5000 bytes: the three oldest go, also when a small save is under way. Their entries are long enough
# for metadata.json to have several blocks.
COUNT, SIZE, SMALL, LIMIT, VICTIMS = 8, 5000, 100, "27500B", 3
LONG = "t" * 1000


# --- the stores, and what is done to them ------------------------------------------------------------------


class Case(NamedTuple):
    versions: list[Optional[bytes]]
    """All that metadata.json may ever be, in the order of its changes; None where it may be missing."""
    victims: list[str]
    survivors: list[str]
    late: str = ""
    """A session that a client saves in the first run, to the file that is being replaced; the cuts come after it."""
    late_is_synced: bool = False
    arguments: tuple[str, ...] = ("prune-size", "--max-mb", LIMIT)
    runs: int = 1
    """What a run has put back is made sure of by the next."""


def text_of(entries: dict[str, Any]) -> bytes:
    return json.dumps(entries, indent=2).encode()


def without(entries: dict[str, Any], guids: list[str]) -> dict[str, Any]:
    return {guid: entry for guid, entry in entries.items() if guid not in guids}


def pruned(storage: Path) -> Case:
    guids = make_store(storage, COUNT, SIZE, text=LONG)
    entries = read_entries(storage)
    # A run that commits once shows the first and the last of these alone.
    texts = [text_of(without(entries, guids[:gone])) for gone in range(VICTIMS + 1)]
    return Case([*texts], guids[:VICTIMS], guids[VICTIMS:])


def purged(storage: Path) -> Case:
    guids = make_store(storage, COUNT, SIZE, text=LONG)
    entries = read_entries(storage)
    victims = guids[:VICTIMS]
    for guid in victims:
        entries[guid]["group"] = "old"
    write_entries(storage, entries)
    texts = [text_of(entries), text_of(without(entries, victims))]
    return Case([*texts], victims, guids[VICTIMS:], arguments=("purge", "--age-days", "1", "--group", "old"))


def saved_beside(storage: Path, is_synced: bool) -> Case:
    guids = make_store(storage, COUNT, SIZE, text=LONG)
    before = read_entries(storage)
    client = Client(storage)
    late = client.save(b"x" * SMALL)
    saved = client.read()
    write_entries(storage, before)
    victims = guids[:VICTIMS]
    # Once it is synced, the client's own text is what the name leads to if the rename does not last.
    texts = [saved if is_synced else before, without(before, victims), without(saved, victims)]
    return Case([text_of(entries) for entries in texts], victims, guids[VICTIMS:], late, is_synced, runs=2)


def unfinished(storage: Path) -> Case:
    """What two runs have left that died, one while a client saved, one while it wrote its draft."""
    guids = make_store(storage, COUNT, SIZE, text=LONG)
    before = read_entries(storage)
    client = Client(storage)
    aside = client.save(b"x" * SMALL)
    saved = client.read()
    (storage / f"{TORN}20260101T000000Z").write_bytes(text_of({aside: saved[aside]}))
    (storage / PREV).write_bytes(text_of(before))
    (storage / TMP).write_text("{")
    (storage / ".prune_size.lock").write_text('{"pid": 1}\n')
    current = without(before, guids[-2:])
    write_entries(storage, current)
    victims = guids[:VICTIMS]
    texts = [current, before, saved, without(saved, victims)]
    return Case([text_of(entries) for entries in texts], victims, [*guids[VICTIMS:], aside], runs=2)


def missing(storage: Path) -> Case:
    """metadata.json has gone; a run that died has left its second name."""
    case = pruned(storage)
    os.rename(storage / METADATA, storage / PREV)
    return case._replace(versions=[None, *case.versions])


CASES: dict[str, Callable[[Path], Case]] = {
    "prune": pruned,
    "many commits": pruned,
    "purge": purged,
    "save": lambda storage: saved_beside(storage, is_synced=False),
    "synced save": lambda storage: saved_beside(storage, is_synced=True),
    "recovery": unfinished,
    "missing": missing,
}


# --- the cuts ----------------------------------------------------------------------------------------------


class Moments:
    """Calls `visit` before and after each call that changes the store, or only before those that are NAMING."""

    def __init__(
        self, patch: pytest.MonkeyPatch, storage: Path, case: Case, visit: Callable[[str], None], all_of_them: bool
    ) -> None:
        self.durable = case.versions[0]
        """The metadata.json that an fsync of the directory has made durable."""
        self._metadata = storage / METADATA
        self._case = case
        self._visitor = visit
        self._afterwards = all_of_them
        self._is_counting = not case.late
        if case.late:
            patch.setattr(os, "rename", self._with_a_save(os.rename, os.fsync))
        for name in CHANGES if all_of_them else NAMING:
            patch.setattr(os, name, self._watched(name, getattr(os, name)))

    def _watched(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(subject: Any, *arguments: Any, **options: Any) -> Any:
            if name == "open" and not arguments[0] & os.O_CREAT:
                return real(subject, *arguments, **options)
            is_directory = name == "fsync" and stat.S_ISDIR(os.fstat(subject).st_mode)
            file = os.path.basename(os.readlink(f"/proc/self/fd/{subject}")) if type(subject) is int else subject
            self._visit(f"before {name} of {file}")
            result = real(subject, *arguments, **options)
            if is_directory:
                self.durable = self._metadata.read_bytes()
            if self._afterwards:
                self._visit(f"after {name} of {file}")
            return result

        return call

    def _visit(self, moment: str) -> None:
        if self._is_counting:
            self._is_counting = False  # what the visitor does is none of it
            self._visitor(moment)
            self._is_counting = True

    def _with_a_save(self, real: Callable[..., None], fsync: Callable[[int], None]) -> Callable[..., None]:
        """A rename over metadata.json for which a client opens it right before, and writes right after."""
        case = self._case

        def rename(source: str, *arguments: Any, **options: Any) -> None:
            if source != TMP or self._is_counting:
                return real(source, *arguments, **options)
            entries = {**read_entries(self._metadata.parent), case.late: json.loads(case.versions[-1])[case.late]}
            with open(self._metadata, "wb") as file:
                real(source, *arguments, **options)
                file.write(text_of(entries))
                file.flush()
                if case.late_is_synced:
                    fsync(file.fileno())
            self._is_counting = True
            return None

        return rename


class Found(NamedTuple):
    """A store after a power cut and a restart."""

    storage: Path
    case: Case
    durable: Optional[bytes]
    where: str


Tool = Callable[..., int]
Cuts = Callable[[Image, str, Tool], Generator[Found, None, None]]


@contextmanager
def prepared(image: Image, name: str) -> Iterator[tuple[Path, Case]]:
    """A new store, all of it on the disk."""
    storage = image.directory / "storage"
    case = CASES[name](storage)
    for file in {METADATA, PREV}.intersection(os.listdir(storage)):
        os.chown(storage / file, *OWNER[:2])
        os.chmod(storage / file, OWNER[2])
    image.sync()
    try:
        yield storage, case
    finally:
        shutil.rmtree(storage)


def cut_off(metadata_is_written: bool) -> Cuts:
    """The run itself is cut off: at its first moment, at its second in another run, and so on."""

    def cuts(image: Image, name: str, tool: Tool) -> Generator[Found, None, None]:
        image.sync()  # the removal of the last store
        image.cut(metadata_is_written)  # whether it can be done
        image.restart()
        # What is left out leaves the same on the disk as the next moment does; only the run fails elsewhere.
        all_of_them = name == "prune" and image.kind == "ext4"
        number, is_over = 0, False
        while not is_over:
            number += 1
            with prepared(image, name) as (storage, case):
                seen: list[str] = []

                def visit(moment: str, number: int = number, seen: list[str] = seen) -> None:
                    seen.append(moment)
                    if len(seen) == number:
                        image.cut(metadata_is_written)

                try:
                    with pytest.MonkeyPatch.context() as patch:
                        moments = Moments(patch, storage, case, visit, all_of_them)
                        codes = [tool(storage, *case.arguments) for _ in range(case.runs)]
                    is_over = len(seen) < number
                    if is_over:
                        image.cut(metadata_is_written)
                finally:
                    image.restart()
                where = f"{image.kind}, {name}, " + ("at the end" if is_over else f"{number}: {seen[number - 1]}")
                assert set(codes) <= {0, 1}, where
                assert codes[-1] == 0 or not is_over, where
                if 0 in codes:
                    assert moments.durable == case.versions[-1], f"{where}: success before it is durable"
                yield Found(storage, case, moments.durable, where)

    return cuts


def copied(metadata_is_written: bool) -> Cuts:
    """A run goes on to its end, and the disk is copied at each of its moments. Equal copies are looked at once."""

    def cuts(image: Image, name: str, tool: Tool) -> Generator[Found, None, None]:
        found: dict[bytes, tuple[Path, Optional[bytes], str]] = {}
        with prepared(image, name) as (storage, case):

            def visit(moment: str) -> None:
                if metadata_is_written:
                    image.write_metadata()
                file = image.file.with_name(f"copy-{len(found)}")
                digest = image.copy(file)
                if digest in found:
                    file.unlink()
                    file = found[digest][0]
                found[digest] = file, moments.durable, moment

            with pytest.MonkeyPatch.context() as patch:
                moments = Moments(patch, storage, case, visit, all_of_them=False)
                codes = [tool(storage, *case.arguments) for _ in range(case.runs)]
            assert set(codes) == {0}
            visit("at the end")
            assert moments.durable == case.versions[-1]
            with image.unmounted():
                for file, durable, moment in found.values():
                    copy = Image(image.kind, file)
                    try:
                        yield Found(copy.directory / "storage", case, durable, f"{image.kind}, {name}, {moment}")
                    finally:
                        copy.close()
                        file.unlink()

    return cuts


# --- what must hold afterwards -----------------------------------------------------------------------------


def expect_whole(found: Found) -> None:
    storage, case, durable, where = found
    names = os.listdir(storage)
    text = (storage / METADATA).read_bytes() if METADATA in names else None
    assert text in case.versions, f"{where}: metadata.json is neither old nor new: {(text or b'')[:60]!r}"
    assert durable in case.versions, f"{where}: metadata.json was neither old nor new: {(durable or b'')[:60]!r}"
    is_lasting = case.versions.index(text) >= case.versions.index(durable)
    assert is_lasting, f"{where}: a metadata.json that had been synced is gone"
    if text is not None:
        status = os.stat(storage / METADATA)
        assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == OWNER, where
    kept_aside = (keys_if_whole(storage / name) for name in names if name.startswith((PREV, TORN)))
    reachable = set(json.loads(text or b"{}")).union(*kept_aside)
    kept = {*case.survivors, *([case.late] if case.late_is_synced else [])}
    assert kept <= reachable, f"{where}: lost: {kept - reachable}"
    for guid in kept:
        content = (storage / f"{guid}.json").read_bytes()
        assert content in (b"x" * SIZE, b"x" * SMALL), f"{where}: a blob is damaged"
    assert not blobs(storage).intersection(case.victims) - reachable, f"{where}: a blob came back without its entry"


def keys_if_whole(path: Path) -> set[str]:
    try:
        return set(json.loads(path.read_bytes()))
    except ValueError:
        return set()


def expect_convergence(found: Found, tool: Tool) -> None:
    """The client goes on, and the next prune, with two more at most, leaves a store that is in order."""
    storage, case, _, where = found
    new = Client(storage).save(b"n" * SIZE)
    for _ in range(3):
        assert tool(storage, "prune-size", "--max-mb", LIMIT) == 0, where
        if not leftovers(storage):
            break
    # There is one session too many now, however far the run had come.
    expected = {*case.survivors[1:], new}
    late = {case.late} - {""}
    entries = set(read_entries(storage))
    assert entries | late == expected | late and blobs(storage) == expected | late, where
    left = leftovers(storage)
    if late and not case.late_is_synced:
        # The client's text was lost with the power; what is left of it is kept aside.
        left = [name for name in left if not name.startswith(TORN)]
    else:
        assert late <= entries, where
    assert left == [], where


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Tool:
    """The tool in this process, without patience for a client that is not there. It may not end with a traceback."""
    monkeypatch.setattr(Clock, "install", lambda self: None)
    for name in ("SETTLE_SECS", "WATCH_SECS"):
        monkeypatch.setattr(commit, name, 0.0)
    monkeypatch.setattr(recovery, "REWRITE_SECS", 0.0)
    monkeypatch.setattr(lock, "LINE_WRITTEN_SECS", 0.0)
    monkeypatch.setattr(prune_job, "COMMIT_EVERY_SECS", 1e9)  # however slow this machine is
    for name, module in list(sys.modules.items()):
        if name.startswith("storage_manager.") and hasattr(module, "READ_PATIENCE_SECS"):
            monkeypatch.setattr(module, "READ_PATIENCE_SECS", 0.0)

    def run(storage: Path, *arguments: str) -> int:
        try:
            code = main(["--storage-dir", str(storage), "--log-format", "json", "--log-level", "ERROR", *arguments])
        finally:
            gc.enable()
        said = capfd.readouterr().err
        assert '"@x"' not in said and "Traceback" not in said, said
        return code

    return run


@pytest.fixture(scope="module")
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    with memory_at(tmp_path_factory.mktemp(request.param)) as directory:
        with closing(Image(request.param, directory / "image")) as made:
            yield made


WAYS: dict[str, tuple[str, Cuts]] = {
    "ext4": ("ext4", cut_off(metadata_is_written=False)),
    "ext4, names written": ("ext4", cut_off(metadata_is_written=True)),
    "xfs": ("xfs", cut_off(metadata_is_written=False)),
    "xfs, names written": ("xfs", cut_off(metadata_is_written=True)),
    "btrfs": ("btrfs", copied(metadata_is_written=False)),
    "btrfs, names written": ("btrfs", copied(metadata_is_written=True)),
}


# A purge differs from a prune in its plan alone: once is enough.
@pytest.mark.parametrize(
    ("image", "cuts", "name"),
    [
        pytest.param(*WAYS[way], name, id=f"{way}, {name}")
        for way in WAYS
        for name in CASES
        if name != "purge" or way == "ext4, names written"
    ],
    indirect=["image"],
    scope="module",  # or each test would make a file system of its own
)
def test_after_a_power_cut_the_metadata_is_whole_and_the_next_prune_clears_up(
    image: Image, cuts: Cuts, name: str, tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "many commits":
        monkeypatch.setattr(prune_job, "COMMIT_EVERY_SECS", 0.0)
    count = 0
    with closing(cuts(image, name, tool)) as all_found:
        for found in all_found:
            count += 1
            expect_whole(found)
            expect_convergence(found, tool)
    assert count > 2


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("image", ["ext4"], indirect=True)
def test_a_torn_text_that_is_kept_aside_where_there_are_no_hard_links_lasts(
    image: Image, written: bool, tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torn = b'{"a synced text of a client that was interrupted'
    real, fsync = os.rename, os.fsync

    def rename(source: str, *arguments: Any, **options: Any) -> None:
        with open(storage / METADATA, "wb") as file:
            real(source, *arguments, **options)
            file.write(torn)
            file.flush()
            fsync(file.fileno())

    def link(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    with prepared(image, "prune") as (storage, case):
        monkeypatch.setattr(os, "rename", rename)
        monkeypatch.setattr(os, "link", link)
        try:
            assert tool(storage, *case.arguments) == 0
            image.cut(written)
        finally:
            image.restart()
        assert [(storage / name).read_bytes() for name in os.listdir(storage) if name.startswith(TORN)] == [torn]


@pytest.mark.parametrize(
    ("way", "problem"),
    [
        ("ext4, names written", "neither old nor new"),
        ("xfs, names written", "neither old nor new"),
        ("ext4", "had been synced is gone"),
        ("xfs", "had been synced is gone"),
        ("btrfs", "had been synced is gone"),
        # Not btrfs with names written: a rename over another file begins to write what is in the file by itself.
    ],
)
def test_a_run_that_does_not_sync_is_found_out(
    tmp_path: Path, tool: Tool, monkeypatch: pytest.MonkeyPatch, way: str, problem: str
) -> None:
    kind, cuts = WAYS[way]
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(os, "ftruncate", lambda fd, length: None)  # in xfs, it writes what is in the file
    with memory_at(tmp_path), closing(Image(kind, tmp_path / "image")) as image:
        with pytest.raises(AssertionError, match=problem), closing(cuts(image, "prune", tool)) as all_found:
            for found in all_found:
                expect_whole(found)
