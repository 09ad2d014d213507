"""Every system call on the store fails in turn: an exit code, an event that names it, and nothing lost."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import faults
import pytest
from client import Client
from faults import (
    ASIDE,
    DRAFT,
    METADATA,
    PREV,
    Call,
    Overlap,
    Pauses,
    Scene,
    check,
    clone,
    expect_convergence,
    intercepted,
    looks,
    made,
    run_main,
)
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
)

from storage_manager.jobs import prune as prune_job

pauses, room = faults.pauses, faults.room

# What each call can really give. EINTR is not among it but for close: Python makes an interrupted call again.
GONE = (errno.EIO, errno.ESTALE)
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
FULL = (errno.ENOSPC, errno.EDQUOT)
ERRNOS: dict[str, tuple[int, ...]] = {
    "open": (*GONE, errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.EBUSY),
    "close": (*GONE, *FULL, errno.EINTR),
    "stat": (*GONE, errno.EACCES),
    "fstat": GONE,
    "access": (errno.EACCES,),
    "pread": GONE,
    "read": GONE,
    "lseek": GONE,
    "dup": (errno.EMFILE,),
    "listdir": (*GONE, errno.EACCES, errno.EMFILE),
    "scandir": (*GONE, errno.EACCES, errno.EMFILE),
    "getdents": GONE,
    "getxattr": GONE,
    "listxattr": GONE,
    "pwrite": (*GONE, *FULL),
    "write": (*GONE, *FULL),
    "ftruncate": (*GONE, errno.EPERM),
    "fsync": (*GONE, *FULL, errno.EROFS),
    "fchmod": (*GONE, errno.EPERM, errno.EROFS),
    "fchown": (*GONE, errno.EPERM, errno.EROFS, errno.EDQUOT),
    "setxattr": (*GONE, *FULL, errno.EPERM, errno.EROFS),
    "removexattr": (*GONE, errno.EPERM, errno.EROFS),
    "utime": (*GONE, *DENIED),
    "unlink": (*GONE, *DENIED, errno.EBUSY, errno.ENOSPC),
    "rename": (*GONE, *DENIED, *FULL, errno.EBUSY, errno.ENOENT),
    "link": (*GONE, *DENIED, *FULL, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOENT),
    "flock": (*GONE, errno.EOPNOTSUPP, errno.ENOLCK, errno.EAGAIN),
}

# What a server's answer can be that was lost and asked for again: it has been done before.
DONE_BEFORE = {"unlink": errno.ENOENT, "rename": errno.ENOENT, "link": errno.EEXIST, "open": errno.EEXIST}

GUID_LENGTH = 36

# By which other name an event may tell of a file: the one it has been replaced by, is kept under, or is to get.
ALSO = {METADATA: (PREV, ASIDE), DRAFT: (METADATA,)}

ONCE, DONE, FILE, DISK = "once", "once, although it was done", "this file from then on", "the disk from then on"


class Fault(NamedTuple):
    """What fails: the call of that number, and with some modes what comes after it."""

    mode: str
    number: int
    call: Call
    code: int

    def __str__(self) -> str:
        return f"{self.mode}, call {self.number}, {self.call}, {errno.errorcode[self.code]}"

    def hits(self, number: int, call: Call) -> bool:
        if self.mode == FILE:
            return number >= self.number and bool({*call.files} & {*self.call.files})
        if self.mode == DISK:  # what is read-only can still be read
            return number >= self.number and (call.changes or self.code != errno.EROFS)
        return number == self.number

    @property
    def is_absence(self) -> bool:
        """A metadata.json that is not there is no failure, but a store without sessions."""
        return self.code == errno.ENOENT and self.call.name == "open" and self.call.files == (METADATA,)


def errnos_of(mode: str, number: int, call: Call) -> Iterator[int]:
    if mode == FILE:
        yield (errno.EIO, errno.EACCES)[number % 2]
    elif mode == DISK:
        yield from (errno.EIO, *([errno.EROFS] if call.changes else []))
    elif mode == DONE:
        yield from (errno.EIO, *([DONE_BEFORE[call.name]] if call.name in DONE_BEFORE else [])) if call.changes else ()
    else:
        yield from ERRNOS[call.name]
        if call.name == "open":
            flags = call.arguments[1]
            yield from FULL if flags & os.O_CREAT else () if flags & os.O_DIRECTORY else (errno.ENOENT,)
            yield from (errno.EROFS,) if flags & os.O_ACCMODE != os.O_RDONLY else ()


class Scenario(NamedTuple):
    make: Callable[[Path], Scene]
    modes: tuple[str, ...] = (ONCE, DONE)
    hard_links: bool = True
    often: bool = False
    """Whether there is a commit after each deletion."""
    all_calls: bool = True
    """Or else only those that change something, or look at the access list: the others are tried elsewhere."""


SCENARIOS = {
    "prune": Scenario(faults.plain, (ONCE, DONE, FILE, DISK)),
    "prune committing often": Scenario(faults.plain, often=True, all_calls=False),
    "prune with an access list": Scenario(faults.access_list, all_calls=False),
    "prune below an access list": Scenario(faults.inherited_access_list, all_calls=False),
    "prune and overlapping save": Scenario(faults.overlap, (ONCE, DONE, FILE, DISK)),
    "prune and overlapping save without hard links": Scenario(faults.overlap, hard_links=False),
    "purge": Scenario(faults.purge),
    "recovery of all kinds": Scenario(faults.left, (ONCE, DONE, FILE, DISK)),
    "recovery of metadata that is missing": Scenario(faults.missing, all_calls=False),
    "adoption": Scenario(faults.with_orphans),
    "adoption without metadata": Scenario(faults.nothing_but_orphans),
    "adoption and overlapping save without hard links": Scenario(
        faults.orphans_and_overlap, hard_links=False, all_calls=False
    ),
    "purge of orphans": Scenario(faults.orphans_to_purge),
    "repair": Scenario(faults.to_repair, all_calls=False),
    "adopting cycle": Scenario(faults.adopting_cycle, all_calls=False),
    "purging cycle": Scenario(faults.purging_cycle, (ONCE, DONE, DISK)),
    "adopting cycle and overlapping save": Scenario(faults.adopting_cycle_and_overlap, all_calls=False),
}


class Trial:
    """One scenario: its first state, and runs on copies of it."""

    def __init__(
        self, room: Path, name: str, pauses: Pauses, patch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        self.scenario = SCENARIOS[name]
        self.template, self.work = room / "template", room / "work"
        self.pauses = pauses
        self.capfd = capfd
        self.scene = made(self.scenario.make, self.template)
        self.tried: set[tuple[str, str]] = set()
        for variable, value in self.scene.environ.items():
            patch.setenv(variable, value)
        if self.scenario.often:
            patch.setattr(prune_job, "COMMIT_EVERY_SECS", 0.0)

    def run(self, handle: Callable[[int, Call, Callable[..., Any]], Any]) -> tuple[int, str, Overlap]:
        """A run on a new copy: its exit code, what it has logged, and the client that may have been at work."""
        clone(self.template, self.work)
        client = Overlap(self.work, self.scene)
        count = -1

        def handler(call: Call, go: Callable[..., Any]) -> Any:
            nonlocal count
            if call.name == "link" and not self.scenario.hard_links:
                raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
            count += 1
            client.handle(call)
            return handle(count, call, go)

        self.pauses.action = client.finish
        self.capfd.readouterr()
        try:
            with intercepted(self.work, handler):
                code = run_main(self.work, self.scene.arguments, "WARNING")
        finally:
            self.pauses.action = lambda: None
            client.finish()
        return code, self.capfd.readouterr().err, client

    def calls(self) -> list[Call]:
        found: list[Call] = []

        def note(number: int, call: Call, go: Callable[..., Any]) -> Any:
            found.append(call)
            return go()

        assert self.run(note)[0] == 0
        return found

    def fail(self, fault: Fault) -> None:
        """A run with a fault in it. Raises AssertionError."""
        first: list[Call] = []

        def handle(number: int, call: Call, go: Callable[..., Any]) -> Any:
            if not fault.hits(number, call):
                return go()
            first.append(call)
            if call.name == "access":
                return False
            if call.name == "close" or fault.mode == DONE:  # a close that fails has closed all the same
                result = go()
                if call.name == "open":
                    os.close(result)
            raise OSError(fault.code, os.strerror(fault.code))

        before = descriptors()
        code, err, client = self.run(handle)
        assert first, "the call was never made"
        assert descriptors() == before, "a descriptor stays open"
        self.expect_told(fault, first[0], code, err)
        check(self.work, self.scene, str(fault))
        key = looks(self.work), client.state
        if key not in self.tried:
            self.tried.add(key)
            expect_convergence(self.work, self.scene, client, str(fault))

    def expect_told(self, fault: Fault, call: Call, code: int, err: str) -> None:
        told = events(err)
        name = errno.errorcode[fault.code]
        about = [item for item in told if item.get("errno") == name or name in item["@m"]]
        assert "Traceback" not in err and not any("@x" in item for item in told), f"internal error: {err}"
        if code == 0:
            harmless = blobs(self.work).isdisjoint(self.scene.victims(acted=False))
            assert harmless or fault.is_absence, "exit code 0, and above the limit"
            assert about or call.name != "fsync", "what may not be on disk is taken for written"
            return
        if code == 2:
            last = next(item["event"] for item in told[::-1] if item["event"] != "housekeeper.cycle_nonzero")
            assert fault.code == errno.EAGAIN and last == "storage_manager.prune.lock_busy"
            return
        assert code == 1
        if fault.is_absence or call.name == "access" or fault.code == errno.EAGAIN:
            assert told  # access() does not say why it is denied, and a lock that is held is no failure
            return
        if told[-1]["event"] == "storage_manager.check.summary" and not about:
            assert told[-1]["kinds"]  # done, but for something that is left over and told as such
            return
        assert about, f"no event names {name}: {err}"
        if fault.mode in (ONCE, DONE):
            names = {*call.files, *(other for file in call.files for other in ALSO.get(file, ()))}
            paths = [str(self.work if name == "." else self.work / name) for name in names]
            paths += [name for name in names if len(name) > GUID_LENGTH]  # a blob's name says enough
            where = [item.get("file", "") + " " + item["@m"] for item in about]
            assert any(path in text for path in paths for text in where), f"no event names {paths}: {err}"


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


@pytest.mark.parametrize(
    ("name", "mode"), [(name, mode) for name, scenario in SCENARIOS.items() for mode in scenario.modes]
)
def test_a_failing_call_is_told_and_loses_nothing(
    room: Path,
    pauses: Pauses,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    sample: Callable[[Iterable[Fault]], list[Fault]],
    name: str,
    mode: str,
) -> None:
    """Whichever call it is, and with whatever it fails; once it is over, everything clears up."""
    trial = Trial(room, name, pauses, monkeypatch, capfd)
    problems = []
    faults = sample(
        Fault(mode, number, call, code)
        for number, call in enumerate(trial.calls())
        if trial.scenario.all_calls or call.changes or call.name in ("getxattr", "listxattr")
        for code in errnos_of(mode, number, call)
    )
    for fault in faults:
        try:
            trial.fail(fault)
        except AssertionError as error:
            problems.append(f"{fault}: {str(error).splitlines()[0]}")
    assert faults and not problems, f"{len(problems)} of {len(faults)} cases:\n" + "\n".join(problems)


@pytest.mark.parametrize("kind", ["cut once", "cut each time", "a hole each time"])
@pytest.mark.parametrize("name", ["repair", *(name for name, scenario in SCENARIOS.items() if scenario.all_calls)])
def test_a_listing_that_is_short_loses_nothing(
    room: Path, pauses: Pauses, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], name: str, kind: str
) -> None:
    """Every listing, cut at every place, without an error: as of NFS, FUSE, a failing disk."""
    trial = Trial(room, name, pauses, monkeypatch, capfd)
    calls = [call.name for call in trial.calls()]
    refused = 0
    for listing in range(calls.count("scandir") + calls.count("listdir")) if kind == "cut once" else [0]:
        for place in range(len(os.listdir(trial.template)) + 2):  # a lock and a draft may be listed, too
            number, step = -1, -1

            def handle(
                count: int, call: Call, go: Callable[..., Any], listing: int = listing, place: int = place
            ) -> Any:
                nonlocal number, step
                if call.name in ("scandir", "listdir"):
                    number, step = number + 1, -1
                short = number == listing or kind != "cut once"
                end = place + 1 if kind == "a hole each time" else None
                if call.name == "listdir" and short:
                    found = go()
                    return found[:place] + (found[end:] if end else [])
                if call.name == "getdents":
                    step += 1
                    if short and step == place:
                        if end is None:
                            raise StopIteration
                        go()
                return go()

            code, err, client = trial.run(handle)
            where = f"{kind}, listing {listing}, item {place}: {err}"
            told = [item["event"] for item in events(err)]
            is_refused = "storage_manager.listing_incomplete" in told
            refused += is_refused
            assert code in ((1,) if is_refused else (0, 1)) and "Traceback" not in err, where
            check(trial.work, trial.scene, where)
            key = looks(trial.work), client.state
            if key not in trial.tried:
                trial.tried.add(key)
                expect_convergence(trial.work, trial.scene, client, where)
    assert refused or kind == "cut once" or trial.scene.missing


TRANSFERS = ("pread", "read", "pwrite", "write")


@pytest.mark.parametrize("part", [2, 10**9], ids=["half", "a byte"])
@pytest.mark.parametrize("name", [name for name, scenario in SCENARIOS.items() if not scenario.often])
def test_transfers_may_move_less_than_was_asked_for(
    room: Path,
    pauses: Pauses,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    sample: Callable[[Iterable[int]], list[int]],
    name: str,
    part: int,
) -> None:
    """Each of them alone, and all of them."""
    trial = Trial(room, name, pauses, monkeypatch, capfd)
    transfers = sample(number for number, call in enumerate(trial.calls()) if call.name in TRANSFERS)
    for only in (*transfers, None):

        def handle(number: int, call: Call, go: Callable[..., Any], only: int | None = only) -> Any:
            if call.name not in TRANSFERS or only not in (number, None):
                return go()
            fd, what, *rest = call.arguments
            size = what if isinstance(what, int) else len(what)
            less = max(1, size // part) if size else 0
            return go(fd, less if isinstance(what, int) else what[:less], *rest)

        code, err, client = trial.run(handle)
        where = f"call {only}" if only is not None else "all calls"
        assert code == 0, f"{where}: {err}"
        check(trial.work, trial.scene, where)
        expect_convergence(trial.work, trial.scene, client, where)


# --- real faults -------------------------------------------------------------------------------------------

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")


@pytest.fixture
def small_ext4(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few megabytes and 64 inodes."""
    image, directory = tmp_path / "image", tmp_path / "small"
    directory.mkdir()
    image.touch()
    os.truncate(image, 8 << 20)
    steps = (
        ["mkfs.ext4", "-q", "-F", "-m", "0", "-b", "1024", "-N", "64", image],
        ["mount", "-o", "loop", image, directory],
    )
    for step in steps:
        if shutil.which(step[0]) is None:
            pytest.skip(f"there is no {step[0]}")
        done = subprocess.run(step, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", directory], check=True)


def fill(directory: Path, what: str, file_name: str = "filler") -> None:
    """Use up every byte or every inode that is left."""
    with pytest.raises(OSError, match="No space left"):
        for number in range(1000):
            with open(directory / f"{file_name}-{what}-{number}", "wb", buffering=0) as file:
                while what == "bytes":
                    file.write(bytes(1024))


@needs_root
@pytest.mark.parametrize("what", [("bytes",), ("inodes",), ("bytes", "inodes"), ("inodes", "bytes")])
def test_a_disk_that_is_really_full_is_given_room(small_ext4: Path, what: tuple[str, ...]) -> None:
    """No byte left, no inode left; by the program itself, with nothing in its way taken away."""
    storage = small_ext4 / "storage"
    guids = make_store(storage, 20, size=20_000)
    for kind in what:
        fill(small_ext4, kind)
    with pytest.raises(OSError, match="No space left"):
        Client(storage).save(b"n" * 5000)
    done = run_tool("--storage-dir", storage, "prune-size", "--max-mb", "200000B")
    assert done.returncode == 0, done.stderr
    assert list(read_entries(storage)) == guids[10:]
    assert leftovers(storage) == []
    new = Client(storage).save(b"n" * 5000)
    assert {*guids[10:], new} <= blobs(storage)
    assert {*guids[10:], new} == set(read_entries(storage))


@needs_root
@pytest.mark.parametrize("empty", [False, True])
def test_metadata_that_a_client_has_torn_on_a_full_disk_costs_no_session(
    small_ext4: Path, pauses: Pauses, capfd: pytest.CaptureFixture[str], empty: bool
) -> None:
    """Its entries are gone for the tool as well: nothing tells which session is old. It waits for somebody."""
    storage = small_ext4 / "storage"
    guids = make_store(storage, 20, size=20_000, title="x" * 100)
    whole = (storage / METADATA).read_text()
    fill(small_ext4, "bytes")
    with pytest.raises(OSError, match="No space left"), open(storage / METADATA, "w") as file:  # which empties it
        if empty:  # the room is not for the client alone
            fill(small_ext4, "bytes", "others")
        else:
            (small_ext4 / "others").write_bytes(bytes(1024))
        file.write(whole)
    torn = (storage / METADATA).read_bytes()
    assert len(torn) < len(whole) and whole.startswith(torn.decode()) and empty == (not torn)
    before = sorted(os.listdir(storage))
    for arguments in (("prune-size", "--max-mb", "200000B"), ("purge", "--age-days", "0", "--yes")):
        assert run_main(storage, arguments) == 1
        assert event(capfd.readouterr().err, "storage_manager.metadata_corrupt")["deleted_count"] == 0
        assert sorted(os.listdir(storage)) == before
        assert (storage / METADATA).read_bytes() == torn
    (small_ext4 / "filler-bytes-0").unlink()
    (storage / METADATA).write_text(whole)
    done = run_tool("--storage-dir", storage, "prune-size", "--max-mb", "200000B")
    assert done.returncode == 0, done.stderr
    assert list(read_entries(storage)) == guids[10:] and leftovers(storage) == []


# Of each system call all that a small prune makes on its store, each with the next of these.
INJECTED = {
    "openat": (errno.EIO, errno.EACCES, errno.EMFILE, errno.ESTALE, errno.EINTR, errno.ENOSPC),
    "getdents64": (errno.EIO, errno.ESTALE),
    "pwrite64": (errno.ENOSPC, errno.EINTR, errno.EIO, errno.EDQUOT),
    "fsync": (errno.EIO, errno.EDQUOT, errno.EINTR),
    "ftruncate": (errno.EIO,),
    "fchmod": (errno.EIO, errno.EROFS),
    "renameat": (errno.EIO, errno.EROFS, errno.ENOSPC),
    "linkat": (errno.EOPNOTSUPP, errno.EIO, errno.EPERM),
    "unlinkat": (errno.EIO, errno.EPERM, errno.EBUSY, errno.EROFS),
    "flock": (errno.EOPNOTSUPP, errno.ENOLCK, errno.EINTR, errno.EIO),
    "newfstatat": (errno.EIO, errno.ESTALE, errno.EACCES),
}


def traced(storage: Path, log: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["strace", "-f", "-y", "-o", str(log), *options, *command("--storage-dir", storage, *faults.PRUNE)],
        env=clean_environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_calls_that_the_kernel_lets_fail_are_told_and_lose_nothing(
    room: Path, pauses: Pauses, capfd: pytest.CaptureFixture[str]
) -> None:
    """As above, with strace in the kernel's place: some of the calls, each once, in a process of its own."""
    scene = made(faults.plain, room / "template")
    clone(room / "template", room / "work")
    if shutil.which("strace") is None:
        pytest.skip("there is no strace")
    if traced(room / "work", room / "log", "-e", f"trace={','.join('?' + name for name in INJECTED)}").returncode:
        pytest.skip("strace may trace nothing here")
    counts = Counter[str]()
    cases = []
    for line in (room / "log").read_text().splitlines():
        name = line.split()[1].partition("(")[0]
        counts[name] += 1
        if str(room / "work") in line and (name != "newfstatat" or counts[name] % 5 == 0):
            codes = INJECTED[name]
            cases.append((name, counts[name], codes[len(cases) % len(codes)]))
    assert 20 < len(cases) < 70

    def inject(case: tuple[str, int, int]) -> subprocess.CompletedProcess[str]:
        name, number, code = case
        directory = room / f"{name}-{number}"
        clone(room / "template", directory)
        fault = f"inject={name}:error={code}:when={number}"
        return traced(directory, directory.with_suffix(".log"), "-e", f"trace={name}", "-e", fault)

    with ThreadPoolExecutor(2) as pool:
        results = [*zip(cases, pool.map(inject, cases))]
    for (name, number, code), done in results:
        directory = room / f"{name}-{number}"
        where = f"{name} number {number}: {errno.errorcode[code]}"
        (injected,) = [line for line in directory.with_suffix(".log").read_text().splitlines() if "INJECTED" in line]
        assert str(directory) in injected, f"{where}: not on the store"
        assert "Traceback" not in done.stderr and '"@x"' not in done.stderr, f"{where}: {done.stderr}"
        if done.returncode == 0:
            assert blobs(directory).isdisjoint(scene.victims(acted=False)), f"{where}: above the limit"
        else:
            assert done.returncode == 1 and errno.errorcode[code] in done.stderr, f"{where}: {done.stderr}"
        check(directory, scene, where)
        expect_convergence(directory, scene, Overlap(directory, scene), where)
