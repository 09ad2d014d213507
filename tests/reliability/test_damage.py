"""Thousands of damaged stores: a documented end, nothing gone but by a legitimate plan, the text read as json does."""

from __future__ import annotations

import functools
import gc
import itertools
import json
import os
import random
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, Optional

import pytest
from damage import (
    DRAFT,
    GROUPS,
    LOCK,
    METADATA,
    NOW,
    NOW_SECS,
    PREVIOUS,
    TORN_PREFIX,
    Members,
    damaged_store,
    damaged_text,
    healthy_sessions,
    text_of,
)
from stores import IMPORT_ALL, clean_environment, make_store, read_entries

from storage_manager import cli, grammar
from storage_manager.base.clock import Clock
from storage_manager.jobs import orphans
from storage_manager.store import commit, document, locked, reading, recovery, replace, survey

GUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
EXTENSION = re.compile(r"[a-z0-9][a-z0-9_+-]{0,31}")
BLOB = re.compile(GUID.pattern.encode() + rb"\.[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")


# --- an independent reading of a store ----------------------------------------------------------------------


class Seen(NamedTuple):
    """One file, link or directory as it is on disk."""

    mode: int
    inode: int = 0
    size: int = 0
    mtime_ns: int = 0
    content: Optional[bytes] = None

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)


Files = dict[bytes, Seen]


def look(directory: bytes, below: bytes = b"") -> Files:
    """Everything below, by path. Links are not followed. Of directories the mode alone counts."""
    found = {}
    with os.scandir(os.path.join(directory, below)) as items:
        for item in items:
            path = os.path.join(below, item.name)
            status = item.stat(follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                found[path] = Seen(status.st_mode)
                found.update(look(directory, path))
                continue
            content = None
            if stat.S_ISLNK(status.st_mode):
                content = os.readlink(os.path.join(directory, path))
            elif stat.S_ISREG(status.st_mode) and os.access(item.path, os.R_OK):
                with open(item.path, "rb") as file:
                    content = file.read()
            found[path] = Seen(status.st_mode, status.st_ino, status.st_size, status.st_mtime_ns, content)
    return found


class Member(NamedTuple):
    key: str
    text: str
    """From the key's quote to the end of the value, as it stands in the file."""


# No integer matters here, and their length is no reason to refuse a store.
DECODER = json.JSONDecoder(parse_int=lambda digits: 0)
SPACE = re.compile(r"[ \t\n\r]*")


def members_of(data: bytes) -> Optional[list[Member]]:
    """The members of the outermost object, duplicates included; None when json.loads() would not take it."""
    try:
        text = data.decode()
        if not isinstance(DECODER.decode(text), dict):
            return None
    except (ValueError, RecursionError):
        return None
    members = []
    pos = skip(text, skip(text, 0) + 1)
    while text[pos] != "}":
        key, end = DECODER.raw_decode(text, pos)
        _, end = DECODER.raw_decode(text, skip(text, skip(text, end) + 1))
        members.append(Member(key, text[pos:end]))
        pos = skip(text, end)
        if text[pos] == ",":
            pos = skip(text, pos + 1)
    return members


def members_in(seen: Seen) -> Optional[list[Member]]:
    return members_of(seen.content) if seen.is_file and seen.content is not None else None


def skip(text: str, pos: int) -> int:
    found = SPACE.match(text, pos)
    assert found is not None
    return found.end()


ABSENT = -1
"""The size of a blob that is not there."""


class Session(NamedTuple):
    """The order is that of age."""

    created_at: datetime
    guid: str
    name: bytes
    size: int
    group: Optional[str]


CANONICAL_TIME = re.compile(r"\d{4}-\d\d-\d\dT[01]\d:[0-5]\d:[0-5]\d(\.\d{6})?([+-][01]\d:[0-5]\d)?", re.ASCII)


def moment(text: str) -> Optional[datetime]:
    """A lenient reading: it may take what the tool does not, but means the same where the tool takes it."""
    match = re.fullmatch(
        r"([-\d]{8,10})(?:[Tt ]([\d:]+)(?:[.,](\d+))? ?(?:[Zz]|([+-])([\d:]+))?)?", text.strip(), re.ASCII
    )
    if match is None:
        return None
    date, time, fraction, sign, offset = match.groups()
    try:
        day = datetime.strptime(date.replace("-", ""), "%Y%m%d")
        found = day + duration(time) + timedelta(microseconds=int((fraction or "").ljust(6, "0")[:6]))
        return found - duration(offset) if sign == "+" else found + duration(offset)
    except (ValueError, OverflowError):
        return None


def duration(clock: Optional[str]) -> timedelta:
    digits = (clock or "").replace(":", "").ljust(6, "0")
    return timedelta(hours=int(digits[:2]), minutes=int(digits[2:4]), seconds=int(digits[4:6]))


def is_torn(name: bytes) -> bool:
    """Whether it is a name for the text of a writer who never finished it."""
    return name.startswith(TORN_PREFIX) and b"/" not in name


class Store:
    """A store before a run, and how it has to be read: what may go, and what must."""

    def __init__(self, files: Files, recovers: bool) -> None:
        """`recovers` says that the run takes the lock, and first merges what dead runs have left."""
        self.files = files
        metadata = files.get(METADATA)
        left = [name for name in reversed(PREVIOUS) if name in files]
        left += sorted(filter(is_torn, files))
        self.left = {name: members_in(files[name]) for name in left if recovers and files[name].is_file}
        self.members = members_in(metadata) if metadata is not None else []
        if metadata is None and left and left[0] in PREVIOUS and left[0] in self.left:
            self.members = self.left[left[0]]
        self.own_count = len(self.members or ())
        self.beginnings = {os.fsdecode(name[:36]) for name in files if b"/" not in name}
        """Of the names: an entry whose key is among them is never dangling."""
        self.late: dict[str, set[str]] = {}
        """What an entry may be replaced with: its texts in the files that were left."""
        for name, found in self.left.items():
            if found is None or self.members is None or metadata and files[name].inode == metadata.inode:
                continue
            # Of several members with one key the last counts, in the place of the first.
            last = {member.key: member for member in found}
            present = {member.key for member in self.members}
            self.members += [
                member
                for key, member in last.items()
                if key not in present
                and (key in self.beginnings or not GUID.fullmatch(key) or not self._names_a_blob(key, member.text))
            ]
            for key, member in last.items():
                self.late.setdefault(key, set()).add(member.text)
        self._read_entries()

    def keys_left(self) -> dict[bytes, set[str]]:
        """The keys in each file that an earlier run or a writer has left."""
        return {name: {member.key for member in found or ()} for name, found in self.left.items()}

    def _read_entries(self) -> None:
        self.possible: dict[str, Session] = {}
        """What is not even here must never go."""
        self.certain: dict[str, Session] = {}
        """Nobody could doubt that these are sessions."""
        self.dangling: dict[str, Session] = {}
        self.is_plain = True
        """Whether each entry means the same in all the files that have it."""
        for key, text in {member.key: member.text for member in self.members or ()}.items():
            readings = {self._session(key, each) for each in {text, *self.late.get(key, ())}}
            self.is_plain = self.is_plain and len(readings) == 1
            for session, is_certain in filter(None, readings):
                if session.size == ABSENT:
                    self.dangling[key] = session
                    continue
                self.possible[key] = session
                if is_certain:
                    self.certain[key] = session

    @staticmethod
    def _names_a_blob(key: str, text: str) -> bool:
        """Whether the blob of an entry can be looked up: of any other, nobody can say that it is gone."""
        entry = DECODER.decode(f"{{{text}}}")[key]
        extension = entry.get("format") if isinstance(entry, dict) else None
        return isinstance(extension, str) and EXTENSION.fullmatch(extension) is not None

    def _session(self, key: str, text: str) -> Optional[tuple[Session, bool]]:
        """A session that an entry may mean, and whether that is certain."""
        entry = DECODER.decode(f"{{{text}}}")[key]
        if not GUID.fullmatch(key) or not isinstance(entry, dict):
            return None
        extension, created, group = (entry.get(name) for name in ("format", "created_at", "group"))
        if not isinstance(extension, str) or not EXTENSION.fullmatch(extension) or not isinstance(created, str):
            return None
        name = os.fsencode(f"{key}.{extension}")
        blob, created_at = self.files.get(name), moment(created)
        if created_at is None or blob is not None and not blob.is_file:
            return None
        size = ABSENT if blob is None else blob.size
        session = Session(created_at, key, name, size, group if isinstance(group, str) else None)
        return session, CANONICAL_TIME.fullmatch(created) is not None

    def has_kept(self, members: list[Member], expected: list[Member]) -> bool:
        """Whether these are the expected ones, with the texts that they had."""
        return len(members) == len(expected) and all(
            one == other or one.key == other.key and one.text in self.late.get(one.key, ())
            for one, other in zip(members, expected)
        )

    def scope(self, sessions: dict[str, Session], group: Optional[str]) -> list[Session]:
        return sorted(session for session in sessions.values() if group is None or session.group == group)

    def usage(self, group: Optional[str]) -> int:
        """Of a group it is an upper bound."""
        if group is not None:
            return sum(session.size for session in self.scope(self.possible, group))
        return sum(seen.size for name, seen in self.files.items() if seen.is_file and BLOB.fullmatch(name))


# --- commands -----------------------------------------------------------------------------------------------


class Command(NamedTuple):
    """A command line, and what it means."""

    argv: list[str]
    name: str
    changes: bool
    group: Optional[str] = None
    limit: int = 0
    target: int = 0
    keep_last: int = 0
    least_age: timedelta = timedelta.min
    env: dict[str, str] = {}

    @property
    def prints_json(self) -> bool:
        return "--json" in self.argv


def random_command(rng: random.Random) -> Command:
    name = rng.choice(("list", "stats", "purge", "purge", "prune-size", "prune-size", "prune-size", "run-loop"))
    argv = [name]
    limit = target = rng.choice((1, 500, 1000, 1500, 2500, 4000, 1 << 30))
    dry = rng.random() < 0.15
    if name == "run-loop":
        argv += ["--once"] + ["--dry-run"] * dry
        return Command(argv, "prune", not dry, limit=limit, target=limit, env={"GOFR_DIG_MAX_STORAGE_MB": f"{limit}B"})
    if rng.random() < 0.5:
        argv.append("--json")
    group = rng.choice(("a", "b", *GROUPS)) if rng.random() < 0.25 else None
    if group is not None:
        argv.append(f"--group={group}")
    if name in ("list", "stats"):
        return Command(argv + ["-v"] * (name == "list" and rng.random() < 0.5), name, False, group)
    if dry:
        argv.append("--dry-run")
    if name == "purge":
        days = rng.choice((0, 0.5, 1, 1.25, 1.75, 30))
        least_age = timedelta(days=days) if days else timedelta.min
        return Command([*argv, "--yes", f"--age-days={days}"], name, not dry, group, least_age=least_age)
    if rng.random() < 0.4:
        target = rng.choice((1, 700, 2000, 4000))
    keep_last, least_age = 0, timedelta.min
    if rng.random() < 0.25:
        keep_last = rng.randrange(1, 6)
        argv.append(f"--keep-last={keep_last}")
    if rng.random() < 0.25:
        minutes = rng.choice((0.5, 600, 1200, 1e10))
        least_age = timedelta(minutes=minutes)
        argv.append(f"--min-age-mins={minutes:g}")
    argv += [f"--max-mb={limit}B", f"--target-mb={target}B"] + ["-v"] * (rng.random() < 0.2)
    if target > limit:
        return Command(argv, "wrong usage", False)
    return Command(argv, "prune", not dry, group, limit, target, keep_last, least_age)


class Result(NamedTuple):
    code: int
    out: str
    events: list[dict[str, Any]]
    """Empty when the log was text."""
    failed: bool
    """Whether there was an error, as opposed to a target that cannot be met."""


Tool = Callable[[bytes, Command, str], Result]
UNPRINTABLE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


@pytest.fixture
def in_memory(tmp_path: Path) -> Iterator[Path]:
    """An empty directory in memory where there is one: a disk would wait for whoever syncs it."""
    if not os.access("/dev/shm", os.W_OK | os.X_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        yield Path(directory)


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Tool:
    """The tool in this process. Its time passes with its own pauses alone; its output is checked here."""
    passed = [0.0]

    def pass_time(clock: Clock, secs: float) -> None:
        passed[0] += secs

    for name, value in {
        "install": lambda clock: None, "now": lambda clock: NOW, "monotonic": lambda clock: passed[0],
        "pause": pass_time, "sleep": pass_time,
    }.items():  # fmt: skip
        monkeypatch.setattr(Clock, name, value)
    # Nobody writes beside these runs: what is torn stays torn.
    for module in (commit, locked, reading, recovery, replace, orphans, survey):
        for name in [name for name in vars(module) if name.endswith("PATIENCE_SECS")]:
            monkeypatch.setattr(module, name, 0.0)
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # and the machine does not die
    monkeypatch.setattr(grammar, "build_parser", functools.lru_cache(maxsize=None)(grammar.build_parser))

    def run(storage: bytes, command: Command, log_format: str) -> Result:
        with monkeypatch.context() as patch:
            # No case knows of another's store.
            patch.setenv("GOFR_DIG_HOUSEKEEPER_HEARTBEAT_FILE", os.fsdecode(os.path.dirname(storage)) + "/heartbeat")
            for name, value in command.env.items():
                patch.setenv(name, value)
            try:
                code = cli.main([f"--storage-dir={os.fsdecode(storage)}", f"--log-format={log_format}", *command.argv])
            finally:
                gc.enable()
        out, err = (text.decode() for text in capfdbinary.readouterr())
        assert '"@x"' not in err and "Traceback" not in err + out and "internal error" not in err, err
        assert not UNPRINTABLE.search(out + err), ascii(out + err)
        if command.prints_json:
            for line in out.splitlines():
                strict(line)
        if log_format == "json" and command.name != "wrong usage":
            events = [strict(line) for line in err.splitlines()]
            return Result(code, out, events, any(item["@l"] in ("Error", "Fatal") for item in events))
        return Result(code, out, [], any(line[21:].startswith("ERROR") for line in err.splitlines()))

    return run


def strict(line: str) -> Any:
    def refuse(text: str) -> None:
        raise AssertionError(f"not strict JSON: {text}")

    value = json.loads(line, parse_constant=refuse)
    json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate has no UTF-8
    return value


# --- checks -------------------------------------------------------------------------------------------------


def check_victims(store: Store, command: Command, victims: set[str], complete: bool) -> None:
    """Whether these may go: the oldest of the scope, no more of them than asked for, and, if `complete`, no less."""
    assert victims <= store.possible.keys(), "only a healthy session may go"
    possible = store.scope(store.possible, command.group)
    certain = store.scope(store.certain, command.group)
    if not store.is_plain:
        return
    gone = [session for session in possible if session.guid in victims]
    assert len(gone) == len(victims), "only sessions of the group may go"
    stayed = [session for session in certain if session.guid not in victims]
    usage = store.usage(command.group)
    if gone:
        newer = [session for session in possible if session > gone[-1]]
        assert not stayed or gone[-1] < stayed[0], "never a newer one while an older one stays"
        assert NOW - gone[-1].created_at >= command.least_age
        assert len(newer) >= command.keep_last
        assert command.name == "purge" or usage > command.limit, "within the limit nothing goes"
    if gone and command.name == "prune" and possible == certain:
        other = usage - sum(session.size for session in possible)
        left = sum(session.size for session in stayed)
        allowed = max(command.target - other, command.target // 2)
        assert left + gone[-1].size > allowed, "no more than is needed"
    if complete and command.name == "purge":
        assert all(NOW - session.created_at < command.least_age for session in stayed)
    elif complete and command.group is None:
        left = usage - sum(session.size for session in gone)
        assert left <= command.target or not gone and usage <= command.limit, "the target is said to be met"


def check_look(before: Files, command: Command, result: Result) -> None:
    """A command that changes nothing: its exit code, and what it has found."""
    store = Store(before, recovers=False)
    if store.members is None:
        assert result.code == 1 and result.failed and not result.out
        return
    if command.name not in ("list", "stats"):
        assert not result.failed
        if command.prints_json:
            plan = json.loads(result.out)
            assert plan["exit_code"] == result.code
            victims = {item["guid"] for item in plan["plan"] if item["action"] == "delete"}
            check_victims(store, command, victims, complete=result.code == 0)
        return
    assert result.code == 0 and not result.failed
    possible, certain = (store.scope(sessions, command.group) for sessions in (store.possible, store.certain))
    if command.name == "list" and command.prints_json:
        lines = [json.loads(line) for line in result.out.splitlines()]
        healthy = {line["guid"] for line in lines if line["state"] == "ok"}
        assert {session.guid for session in certain} <= healthy <= {session.guid for session in possible}
    elif command.prints_json:
        facts = json.loads(result.out)
        assert len(certain) <= facts["session_count"] <= len(possible)
        assert command.group is not None or facts["usage_bytes"] == store.usage(None)


def check_run(before: Files, after: Files, command: Command, result: Result) -> None:
    """A run that may delete: what has gone, what is left of metadata.json, and that nothing else has changed."""
    store = Store(before, recovers=True)
    ours = {METADATA, LOCK, DRAFT, *PREVIOUS, *filter(is_torn, {**before, **after})}
    gone = {name for name in before if name not in after} - ours
    victims = {os.fsdecode(name[:36]) for name in gone}
    if store.is_plain:
        assert gone == {store.possible[guid].name for guid in victims if guid in store.possible}, (
            "the blobs of sessions"
        )
    check_victims(store, command, victims, complete=result.code == 0)
    for name, seen in after.items():
        assert name in ours or before.get(name) == seen, f"{name!r} was changed or made"
    assert LOCK not in after or after[LOCK] == before.get(LOCK), "the lock was changed or left"
    if LOCK in before and not before[LOCK].is_file:
        assert result.code == 1 and after == before
    if DRAFT in after:
        assert after[DRAFT] == before.get(DRAFT)
    assert (result.code == 2) == of_the_previous_generation(before.get(LOCK))
    if result.code == 2:
        assert after == before
        return
    assert result.code in (0, 1)
    assert result.code == 0 or result.failed or unmet(result), "a failure without a reason"
    assert result.code == 1 or not result.failed
    check_metadata(store, command, after, victims, result)
    contents = {seen.content for name, seen in after.items() if name in ours}
    present = {member.key for member in METADATA in after and members_in(after[METADATA]) or ()}
    for name, members in store.left.items():
        if members is None:
            assert before[name].content in contents, f"the text of {name!r} is lost"
        elif name not in after and result.failed:
            lost = {member.key for member in members} - present
            assert not lost & store.beginnings and all(map(GUID.fullmatch, lost)), f"what {name!r} held is lost"


def of_the_previous_generation(lock: Optional[Seen]) -> bool:
    """Whether it is a lock that holds by its mere existence, as long as it is young."""
    if lock is None or not lock.is_file or not lock.content or not re.match(rb"\s*pid=\d{1,10}\b", lock.content):
        return False
    return abs(NOW_SECS - lock.mtime_ns / 1e9) <= 3600


def unmet(result: Result) -> bool:
    return not result.events or any(item["event"] == "storage_manager.prune.target_unmet" for item in result.events)


def check_swept(store: Store, command: Command, swept: set[str], victims: set[str]) -> None:
    """Whether these dangling entries may go along."""
    assert not swept & store.beginnings, "an entry whose blob is there was dropped"
    assert swept <= store.dangling.keys(), "only a dangling entry may go without a blob"
    if not store.is_plain:
        return
    entries = [store.dangling[guid] for guid in swept]
    assert all(command.group in (None, entry.group) for entry in entries)
    assert all(NOW - entry.created_at >= command.least_age for entry in entries)
    assert command.name == "purge" or all(entry < max(map(store.possible.__getitem__, victims)) for entry in entries)


def check_metadata(store: Store, command: Command, after: Files, victims: set[str], result: Result) -> None:
    before = store.files
    if store.members is None:
        assert result.code == 1 and result.failed and not victims
        assert METADATA not in before or after[METADATA] == before[METADATA]
        return
    if METADATA not in after:
        assert METADATA not in before and not victims
        return
    members = members_in(after[METADATA])
    assert members is not None, "metadata.json is no JSON any more"
    if METADATA in before:
        assert after[METADATA].mode == before[METADATA].mode
    if result.failed:
        assert not victims, "what fails is to fail before the first deletion"
        assert store.has_kept(members[: store.own_count], store.members[: store.own_count])
        return
    dropped = {member.key for member in store.members} - {member.key for member in members}
    kept = [member for member in store.members if member.key not in dropped]
    assert store.has_kept(members, kept), "survivors keep their text and their order"
    assert victims <= dropped
    check_swept(store, command, dropped - victims, victims)
    if dropped == victims == set() and not store.left:
        assert after[METADATA] == before[METADATA]


def check_case(tool: Tool, directory: Path, rng: random.Random, kind: str, notes: list[str]) -> None:
    notes += damaged_store(directory, rng, kind)
    command = random_command(rng)
    log_format = rng.choice(("json", "json", "json", "text"))
    notes.insert(0, ascii([*command.argv, *command.env.values()]))
    storage, outside = os.fsencode(directory / "storage"), os.fsencode(directory / "outside")
    before, precious = look(storage), look(outside)
    result = tool(storage, command, log_format)
    after = look(storage)
    assert look(outside) == precious, "something outside was touched"
    if not command.changes:
        assert after == before, "a command that only looks has changed something"
        assert result.code == 64 if command.name == "wrong usage" else result.code in (0, 1)
        if command.name != "wrong usage":
            check_look(before, command, result)
        return
    check_run(before, after, command, result)
    again = tool(storage, command, log_format)
    settled = look(storage)
    assert again.code == result.code or not again.failed
    if not any(name in PREVIOUS or is_torn(name) for name in after):
        assert settled == after, "a second run has found something to do"
    else:  # the previous file stays until a write or another run shows that what was merged stays
        check_run(after, settled, command, again)
        assert {name for name in after if BLOB.fullmatch(name)} <= settled.keys(), "a second run has found a victim"


@pytest.mark.parametrize("kind", ["text", "directory", "both"])
def test_damaged_stores(in_memory: Path, tool: Tool, seeds: Callable[[int], range], kind: str) -> None:
    directory = in_memory / "case"
    for seed in seeds(2500):
        directory.mkdir()
        notes: list[str] = []
        try:
            check_case(tool, directory, random.Random(f"{kind} {seed}"), kind, notes)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {'; '.join(notes)}: {error}") from error
        finally:
            os.chmod(directory / "storage", 0o700)
            shutil.rmtree(directory)


CHECKS = (["check"], ["check", "--repair", "--yes"], ["check", "--adopt-orphans=lost"],
          ["check", "--repair", "--yes", "--adopt-orphans=lost"])  # fmt: skip


def check_check(tool: Tool, directory: Path, rng: random.Random, kind: str, notes: list[str]) -> None:
    """Whatever it finds and mends: no blob goes, no session's entry changes, and the exit code is a documented one."""
    notes += damaged_store(directory, rng, kind)
    argv = [*rng.choice(CHECKS), *["--json"] * (rng.random() < 0.7)]
    command = Command(argv, "check", changes=any(word.startswith(("--repair", "--adopt")) for word in argv))
    notes.append(" ".join(argv))
    storage = os.fsencode(directory / "storage")
    before = look(storage)
    result = tool(storage, command, rng.choice(("json", "text")))
    after = look(storage)
    assert result.code in (0, 1, 2)
    assert (result.code == 0) <= (not result.failed)
    ours = {METADATA, LOCK, DRAFT, *PREVIOUS, *filter(is_torn, {**before, **after})}
    assert {name: seen for name, seen in before.items() if name not in ours} == {
        name: seen for name, seen in after.items() if name not in ours
    }, "something else than metadata has changed"
    if not command.changes:
        assert after == before, "looking has changed something"
    if result.code == 2:
        assert after == before and of_the_previous_generation(before.get(LOCK))
    if result.out and command.prints_json:
        assert json.loads(result.out)["exit_code"] == result.code
    if after == before:
        return
    store = Store(before, recovers=True)
    if store.members is None or METADATA not in after:
        assert METADATA not in before or after.get(METADATA) == before[METADATA]
        return
    members = members_in(after[METADATA])
    assert members is not None, "metadata.json is no JSON any more"
    present = {member.key for member in members}
    waiting = {key for name, keys in store.keys_left().items() if after.get(name) == before[name] for key in keys}
    waiting -= {member.key for member in store.members[: store.own_count]}  # what is still to come back
    lost = {member.key for member in store.members} - present - waiting
    assert lost <= store.dangling.keys() and not lost & store.beginnings, "an entry was dropped whose blob is there"
    if not store.left:
        kept = [member for member in store.members if member.key in present]
        assert store.has_kept(members[: len(kept)], kept), "survivors keep their text and their order"


@pytest.mark.parametrize("kind", ["text", "directory", "both"])
def test_checks_of_damaged_stores(in_memory: Path, tool: Tool, seeds: Callable[[int], range], kind: str) -> None:
    directory = in_memory / "case"
    for seed in seeds(400):
        directory.mkdir()
        notes: list[str] = []
        try:
            check_check(tool, directory, random.Random(f"check {kind} {seed}"), kind, notes)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {'; '.join(notes)}: {error}") from error
        finally:
            os.chmod(directory / "storage", 0o700)
            shutil.rmtree(directory)


# --- entries that come more than once: of each key the last member counts -----------------------------------

TWICE = "11111111-2222-4333-8444-555555555555"


def entry_text(extension: str) -> str:
    return json.dumps({"format": extension, "size": 1, "created_at": "2026-01-01T00:00:00"})


def make_repeated(storage: Path, texts: list[str], *names: str) -> None:
    (storage / "metadata.json").write_text("{" + ", ".join(f'"{TWICE}": {text}' for text in texts) + "}")
    for name in names:
        (storage / name).write_bytes(b"x")


PURGE = Command(["purge", "--yes", "--age-days=0", "--json"], "purge", True)


def test_a_repeated_entry_goes_with_its_blob_whatever_else_bears_its_name(in_memory: Path, tool: Tool) -> None:
    """Nobody has changed it meanwhile, so that it is still the entry that was planned."""
    make_repeated(in_memory, ["true", entry_text("json")], f"{TWICE}.json", TWICE)
    assert tool(os.fsencode(in_memory), PURGE, "json").code == 0
    assert sorted(os.listdir(in_memory)) == [TWICE, "metadata.json"]
    assert read_entries(in_memory) == {}


def test_an_entry_beside_a_repeated_one_goes_with_its_blob(in_memory: Path, tool: Tool) -> None:
    other = str(uuid.UUID(int=7))
    make_repeated(in_memory, ["true", entry_text("json")], f"{other}.json", other)
    path = in_memory / "metadata.json"
    path.write_text(path.read_text().replace("true,", f'true, "{other}": {entry_text("json")},'))
    assert tool(os.fsencode(in_memory), PURGE, "json").code == 0
    assert other not in read_entries(in_memory)


@pytest.mark.parametrize("formats", [*itertools.product(("json", "png"), repeat=3)], ids=" ".join)
def test_a_session_is_what_the_last_of_three_members_says(
    in_memory: Path, tool: Tool, formats: tuple[str, str, str]
) -> None:
    make_repeated(in_memory, [*map(entry_text, formats)], f"{TWICE}.json", f"{TWICE}.png")
    result = tool(os.fsencode(in_memory), PURGE, "json")
    assert result.code == 0
    assert f"{TWICE}.{formats[-1]}" not in os.listdir(in_memory)
    assert read_entries(in_memory) == {}


def test_of_a_repeated_entry_in_a_previous_file_the_last_counts(in_memory: Path, tool: Tool) -> None:
    make_repeated(in_memory, [entry_text("png"), entry_text("json")], f"{TWICE}.json")
    previous = in_memory / os.fsdecode(PREVIOUS[0])
    os.rename(in_memory / "metadata.json", previous)
    make_repeated(in_memory, [entry_text("json")])
    os.utime(in_memory / "metadata.json", (NOW_SECS - 100, NOW_SECS - 100))
    command = Command(["prune-size", "--max-mb=1"], "prune", True)
    assert tool(os.fsencode(in_memory), command, "json").code == 0
    assert read_entries(in_memory) == {TWICE: json.loads(entry_text("json"))}


# --- the parser alone ---------------------------------------------------------------------------------------


WINDOWS = {
    "_WINDOW_BYTES": (1 << 20, 1 << 20, 64, 1),
    "_SMALL_WINDOW_BYTES": (4096, 16, 1),
    "_BATCH_BYTES": (1 << 17, 300, 1),
}


def test_the_parser_takes_what_json_takes(seeds: Callable[[int], range], monkeypatch: pytest.MonkeyPatch) -> None:
    """Three differences are deliberate, and members_of() has them, too: UTF-8 alone, without a byte order mark
    (json.loads() guesses the encoding of bytes); nothing but an object; integers of any length."""
    assert all(hasattr(document, name) for name in WINDOWS)
    for seed in seeds(20_000):
        rng = random.Random(seed)
        for name, sizes in WINDOWS.items():
            monkeypatch.setattr(document, name, rng.choice(sizes))
        sessions = healthy_sessions(rng)[:3]
        known = document.parse(text_of(Members(sessions), rng)).fingerprint()
        data, notes = damaged_text(rng, sessions)
        try:
            check_parser(data, rng, known)
        except BaseException as error:
            raise AssertionError(f"seed {seed}: {'; '.join(notes)}: {ascii(data[:2000])}: {error}") from error


def check_parser(data: bytes, rng: random.Random, known: document.Fingerprint) -> None:
    expected = members_of(data)
    shown: dict[str, Any] = {}
    readers: list[Callable[[], Any]] = [
        lambda: document.parse(data),
        lambda: document.reparse(data, known),
        lambda: document.visit_members(data, shown.__setitem__),
    ]
    if expected is None:
        for read in readers:
            with pytest.raises(document.NotJson):
                read()
        return
    found, again, _ = (read() for read in readers)
    every_third = found.keys[::3]
    once_more = [document.reparse(data, found.fingerprint(every_third, is_current)) for is_current in (False, True)]
    for one in (found, again, *once_more):
        assert members_of(b"{" + b",".join(one.piece(index) for index in range(len(one.keys))) + b"}") == expected
        assert one.keys == [member.key for member in expected]
    if not re.search(rb"\d{33}", data):
        wanted = {member.key: json.loads(f"{{{member.text}}}")[member.key] for member in expected}
        assert ascii(shown) == ascii(wanted)
    drop = {key for key in found.keys if rng.random() < 0.4}
    text = b"".join(found.rendered(drop, {}, ()))
    assert members_of(text) == [member for member in expected if member.key not in drop]


# --- little time and memory ---------------------------------------------------------------------------------

LIMITED = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
resource.setrlimit(resource.RLIMIT_AS, (400 << 20, 400 << 20))
{IMPORT_ALL}
for module in [module for name, module in sys.modules.items() if name.startswith("storage_manager.")]:
    for name in [name for name in vars(module) if name.endswith("PATIENCE_SECS")]:
        setattr(module, name, 0.0)
sys.exit(storage_manager.cli.main(sys.argv[1:]))
"""

MANY = 3_000_000
MANY_ENTRIES = MANY // 30
HEAVY: dict[str, tuple[Callable[[], str], int]] = {
    "arrays": (lambda: "[" * (MANY // 2) + "]" * (MANY // 2), 1),
    "arrays without an end": (lambda: "[" * MANY, 1),
    "objects": (lambda: '{"a":' * (MANY // 6) + "1" + "}" * (MANY // 6), 1),
    "objects without an end": (lambda: '{"a":' * (MANY // 5), 1),
    "a string without an end": (lambda: '"' + "x" * MANY, 1),
    "an integer": (lambda: "9" * MANY, 0),
    "integers just short enough to be converted": (lambda: f"[{','.join(['9' * 4000] * (MANY // 4000))}]", 0),
    "a fraction": (lambda: "0." + "9" * MANY, 0),
    "an exponent": (lambda: "1e-" + "9" * MANY, 0),
    "escapes": (lambda: '"' + "\\ud800" * (MANY // 6) + '"', 0),
    "more than ASCII": (lambda: '"' + "é" * (MANY // 2) + '"', 0),
    "spaces": (lambda: " " * MANY + "1", 0),
    "a long key": (lambda: '{"' + "k" * MANY + '": 1}', 0),
    "a key many times": (lambda: "1" + ', "heavy": 1' * MANY_ENTRIES, 0),
    "a guid many times": (lambda: "1" + f', "{uuid.UUID(int=7)}": {{}}' * MANY_ENTRIES, 0),
    "keys in the client's layout": (lambda: json.dumps({str(n): {"": 0} for n in range(MANY_ENTRIES)}, indent=2), 0),
}  # fmt: skip


@pytest.mark.parametrize("heavy", HEAVY)
def test_megabytes_of_anything_take_little_time_and_memory(in_memory: Path, heavy: str) -> None:
    """The limits are the kernel's: a run that exceeds them is killed, or ends without a documented code."""
    storage = in_memory / "storage"
    guids = make_store(storage, 4)
    make_value, expected = HEAVY[heavy]
    text = (storage / "metadata.json").read_text()
    (storage / "metadata.json").write_text(text.replace("{", f'{{"heavy": {make_value()},', 1))
    before = look(os.fsencode(storage))
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, "--storage-dir", str(storage), "prune-size", "--max-mb", "2000B"],
        env=clean_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == expected, done.stderr
    assert not re.search('"@x"|Traceback|not enough memory', done.stderr)
    after = look(os.fsencode(storage))
    if expected:
        assert after == before
        return
    assert before.keys() - after.keys() == {os.fsencode(f"{guid}.json") for guid in guids[:2]}
    left = members_in(before[METADATA]) or []
    assert members_in(after[METADATA]) == [member for member in left if member.key not in guids[:2]]
