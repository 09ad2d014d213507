"""The loop in fast-forward: whatever the environment, the clock and the store do, it lives and does not grow."""

from __future__ import annotations

import fcntl
import gc
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import datetime, timedelta
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from client import Client
from stores import BEGINNING, blobs, clean_environment, command, make_store, read_entries

from storage_manager import cli
from storage_manager.base import log as log_module
from storage_manager.base.clock import Clock
from storage_manager.cli import main
from storage_manager.config import read_settings
from storage_manager.loop import housekeeper
from storage_manager.loop.cycle import Manner
from storage_manager.loop.housekeeper import run_loop
from storage_manager.store import lock

MB = 1 << 20
LONG = 100_000

# --- the environment ---------------------------------------------------------------------------------------

BLANK = ["", " ", "\t \n", "\u3000\xa0"]
"""Counts as not set."""

UNUSABLE = [
    "nan", "-nan", "inf", "-inf", "Infinity", "-0", "0", "-1", "1e400", "1e-400", "1e99999", "9" * 41, "9" * LONG,
    "5_000", "0x10", "0b1", "1,5", "1.2.3", "1e", "e5", "+", ".", "--1", "+-1", "1 2", "5;5", "${X}", "%s%n", "'60",
    "٣", "６０", "½", "²", "∞", "6\u200b0", "\u202e60", "60\x7f", "\x1b[31m60", "6\r\n0", "\x01", "ten", "None", "{}",
    os.fsdecode(b"\xff\xfe"), os.fsdecode(b"60\xff"), "x" * LONG, "é" * LONG,
]  # fmt: skip
"""No interval, no size, no time, no level, no truth. (`0` is a truth.)"""


class Variable(NamedTuple):
    default: Any
    shown: str
    usable: dict[str, Any]
    unusable: list[str]


VARIABLES = {
    "HOUSEKEEPING_INTERVAL_MINS": Variable(
        60, "60", {"0.0001": 0.0001, "1": 1, " 7.5 ": 7.5, "+90": 90, ".5": 0.5, "1e2": 100, "527040": 527040},
        [*UNUSABLE, "527041", "1e30", "1h"],
    ),
    "MAX_STORAGE_MB": Variable(
        1024 * MB, "1024",
        {"1B": 1, "2000B": 2000, "3KB": 3072, " 1.5 kib ": 1536, "0.002": 2097, "5e3b": 5000, "7E": 7 << 60,
         '"2000B"': 2000, "'3 Ki' ": 3072, "1B # a comment": 1},
        [*(text for text in UNUSABLE if text != "1e"), "10 parsecs", "MB", "0.0000001", "9E", "1e30G", "-5M"],
    ),
    "HOUSEKEEPER_LOCK_STALE_SECONDS": Variable(
        3600, "3600", {"30": 30, "45.5": 45.5, "+5e3": 5000, "31622400": 31622400},
        [*UNUSABLE, "29.9", "31622401", "1h"],
    ),
    "LOG_LEVEL": Variable(None, "INFO", {"debug": None, " Error ": None}, [*UNUSABLE, "LOUD"]),
    "LOG_JSON": Variable(
        None, "decided by the terminal", {"0": None, "TRUE": None, " text ": None}, [u for u in UNUSABLE if u != "0"]
    ),
}  # fmt: skip

PREFIX = "STORAGE_MANAGER_ENV_PREFIX"
PREFIXES = ["OTHER", "_", " nan ", "A" * LONG]
NO_PREFIXES = ["GOFR DIG", "1X", "A-B", "A.B", "É", "٣", os.fsdecode(b"A\xff"), "A=", "!" * LONG]


class Environment(NamedTuple):
    variables: dict[str, str]
    unusable: dict[str, str]
    """The default of each variable whose value is unusable."""
    values: dict[str, Any]
    prefix: str
    leads_to_store: bool

    @property
    def interval_secs(self) -> float:
        return float(60 * self.values["HOUSEKEEPING_INTERVAL_MINS"])

    @property
    def limit_bytes(self) -> int:
        return int(self.values["MAX_STORAGE_MB"])

    @property
    def stale_secs(self) -> float:
        return float(self.values["HOUSEKEEPER_LOCK_STALE_SECONDS"])


def random_environment(rng: random.Random, storage: Path, traps: list[str]) -> Environment:
    """Every variable unset, blank, usable or not; the store named in one of three ways, or something else."""
    variables: dict[str, str] = {}
    unusable: dict[str, str] = {}
    values: dict[str, Any] = {}
    prefix = "GOFR_DIG"
    kind = rng.choices(["unset", "blank", "usable", "unusable"], [6, 1, 2, 2])[0]
    if kind == "blank":
        variables[PREFIX] = rng.choice(BLANK)
    elif kind == "usable":
        variables[PREFIX] = rng.choice(PREFIXES)
        prefix = variables[PREFIX].strip()
    elif kind == "unusable":
        variables[PREFIX] = rng.choice(NO_PREFIXES)
        unusable[PREFIX] = prefix
    for name, variable in VARIABLES.items():
        kind = rng.choices(["unset", "blank", "usable", "unusable"], [2, 1, 5, 4])[0]
        values[name] = variable.default
        if kind == "blank":
            variables[f"{prefix}_{name}"] = rng.choice(BLANK)
        elif kind == "usable":
            text, values[name] = rng.choice(list(variable.usable.items()))
            variables[f"{prefix}_{name}"] = text
        elif kind == "unusable":
            variables[f"{prefix}_{name}"] = rng.choice(variable.unusable)
            unusable[f"{prefix}_{name}"] = variable.shown
    variables[f"{prefix}_ENV"] = rng.choice([*BLANK, "PROD", *UNUSABLE])
    leads = rng.random() < 0.85
    where = str(storage) if leads else rng.choice(traps)
    names = ["STORAGE", "STORAGE_DIR"] + ["DATA_DIR"] * (os.path.basename(where) == "storage")
    chosen = rng.choice(names)
    for name in names[: names.index(chosen)]:
        variables[f"{prefix}_{name}"] = rng.choice(BLANK)
    variables[f"{prefix}_{chosen}"] = os.path.dirname(where) if chosen == "DATA_DIR" else where
    return Environment(variables, unusable, values, prefix, leads)


# --- the clock ---------------------------------------------------------------------------------------------


class WildClock(Clock):
    """Nothing takes time on it, and it does what it likes: leaps, stands still, goes back, wakes early and late."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.rng = rng
        self.slept_secs: list[float] = []
        self.sleeping = True
        self.went_back_secs = 0.0
        self.interruption: tuple[int, Callable[[], object]] | None = None
        """After how many more looks at the clock something happens, and what."""
        self._secs = rng.choice([0.0, 1e3, 1e9])
        self._moments: Callable[[], datetime]
        self._steps: Callable[[], float]
        self.change()

    def install(self) -> None:
        pass

    def change(self) -> None:
        rng = self.rng
        start = rng.choice([BEGINNING, datetime.min, datetime.max, datetime(1970, 1, 1), datetime(2038, 1, 19, 3, 14)])
        self.keeps_time = rng.random() < 0.5
        self._moments = rng.choice([
            lambda: start,
            lambda: rng.choice([datetime.min, datetime.max, BEGINNING]),
            lambda: BEGINNING + timedelta(days=rng.uniform(-7e5, 2.9e6)),
        ])  # fmt: skip
        self._steps = rng.choice([
            lambda: 1e-4,
            lambda: 0.0,
            lambda: rng.choice([1e-4, 1e-4, 1e-4, rng.expovariate(1e-5)]),
            # Back less than pauses bring it forward, however often it is looked at between two: else no wait would end.
            lambda: -rng.expovariate(10) if rng.random() < 0.01 else 1e-4,
        ])  # fmt: skip
        if rng.random() < 0.1:
            self._secs += rng.choice([-1e6, 1e6])

    def _look(self) -> None:
        if self.interruption is not None and not self.sleeping:
            left, happen = self.interruption
            self.interruption = (left - 1, happen) if left else None
            if not left:
                happen()

    def now(self) -> datetime:
        self._look()
        return super().now() if self.keeps_time else self._moments()

    def monotonic(self) -> float:
        self._look()
        step = self._steps()
        self._secs += step
        self.went_back_secs -= min(0.0, step)
        return self._secs

    def pause(self, secs: float) -> None:
        self._look()
        self._secs += secs

    def sleep(self, secs: float) -> None:
        if not self.sleeping:  # a contender waiting for the lock
            self._secs += secs
            return
        self.slept_secs.append(secs)
        how = self.rng.random()
        if how < 0.05:
            self.wake_requested = True
        elif how < 0.15:
            self._secs += secs * self.rng.random()
        elif how < 0.2:
            pass
        elif how < 0.25:
            self._secs += secs + self.rng.expovariate(1e-5)
        else:
            self._secs += secs


# --- the store ---------------------------------------------------------------------------------------------


class World:
    """A store with a client, and what befalls it."""

    def __init__(self, storage: Path, rng: random.Random, clock: WildClock) -> None:
        self.storage = storage
        self.aside = storage.parent / "aside"
        self.rng = rng
        self.clock = clock
        self.client = Client(storage)
        self.sizes: dict[str, int] = {}
        """Of each session, oldest first."""
        self._saved = 0

    def save(self, size: int) -> str:
        self._saved += 1
        created_at = (BEGINNING + timedelta(minutes=self._saved)).isoformat()
        guid = self.client.save(b"x" * size, created_at=created_at)
        self.sizes[guid] = size
        return guid

    def within(self, limit_bytes: int) -> list[str]:
        """The newest sessions that are within the limit."""
        kept = list(self.sizes)
        while sum(self.sizes[guid] for guid in kept) > limit_bytes:
            kept.pop(0)
        return kept


class Outlook(NamedTuple):
    """What may come of a cycle."""

    exit_codes: set[int]
    reaches_store: bool
    """Whether the cycle may have deleted something."""


KEPT = Outlook({0}, True)
FAILED = Outlook({1}, False)
BUSY = Outlook({2}, False)
UNSURE = Outlook({0, 1, 2}, True)
HARMLESS = Outlook({0, 1, 2}, False)

Weather = Callable[[World, Environment], AbstractContextManager[Outlook]]


@contextmanager
def fair(world: World, environment: Environment) -> Iterator[Outlook]:
    yield KEPT


def instead_of_store(make: Callable[[World], object], outlook: Outlook) -> Weather:
    @contextmanager
    def weather(world: World, environment: Environment) -> Iterator[Outlook]:
        os.rename(world.storage, world.aside)
        make(world)
        yield outlook
        remove(world.storage)
        os.rename(world.aside, world.storage)

    return weather


def instead_of_metadata(make: Callable[[Path, bytes], object], outlook: Outlook) -> Weather:
    @contextmanager
    def weather(world: World, environment: Environment) -> Iterator[Outlook]:
        os.rename(world.client.metadata, world.aside)
        make(world.client.metadata, world.aside.read_bytes())
        yield outlook
        remove(world.client.metadata)
        os.rename(world.aside, world.client.metadata)

    return weather


def besides(name: str, make: Callable[[Path], object], outlook: Outlook) -> Weather:
    @contextmanager
    def weather(world: World, environment: Environment) -> Iterator[Outlook]:
        make(world.storage / name)
        yield outlook
        remove(world.storage / name)

    return weather


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


@contextmanager
def unreadable(world: World, environment: Environment) -> Iterator[Outlook]:
    world.storage.chmod(0)
    yield KEPT if os.geteuid() == 0 else FAILED
    world.storage.chmod(0o755)


@contextmanager
def held(world: World, environment: Environment) -> Iterator[Outlook]:
    path = world.storage / lock.LOCK_NAME
    with open(path, "w") as file:
        file.write('{"pid": 1, "host": "elsewhere", "started_at": "2026-01-01T00:00:00Z"}\n')
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        yield BUSY
    path.unlink()


@contextmanager
def left_by_the_previous_generation(world: World, environment: Environment) -> Iterator[Outlook]:
    path = world.storage / lock.LOCK_NAME
    path.write_text("pid=1 started_at=1767000000\n")
    age_secs = world.rng.choice([10, 40, 2000, 4000, 10_000])
    os.utime(path, (time.time() - age_secs,) * 2)
    busy = BUSY if age_secs < environment.stale_secs else KEPT
    yield busy if world.clock.keeps_time else UNSURE
    path.unlink(missing_ok=True)


@contextmanager
def gone_midway(world: World, environment: Environment) -> Iterator[Outlook]:
    world.clock.interruption = world.rng.randrange(20), lambda: os.rename(world.storage, world.aside)
    yield UNSURE
    if world.aside.exists():
        os.rename(world.aside, world.storage)


@contextmanager
def saved_midway(world: World, environment: Environment) -> Iterator[Outlook]:
    world.clock.interruption = world.rng.randrange(20), lambda: world.save(world.rng.choice([1, 500]))
    yield UNSURE


@contextmanager
def asked_to_stop_midway(world: World, environment: Environment) -> Iterator[Outlook]:
    def stop() -> None:
        world.clock.stop_signal = int(signal.SIGINT)

    world.clock.interruption = world.rng.randrange(20), stop
    yield UNSURE


@contextmanager
def fault_of_ours(world: World, environment: Environment) -> Iterator[Outlook]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(housekeeper, "plan_prune", None)
        yield FAILED


WEATHERS: dict[str, Weather] = {
    "fair": fair,
    "missing": instead_of_store(lambda world: None, FAILED),
    "a file": instead_of_store(lambda world: world.storage.touch(), FAILED),
    "a FIFO": instead_of_store(lambda world: os.mkfifo(world.storage), FAILED),
    "a link": instead_of_store(lambda world: world.storage.symlink_to(world.aside), KEPT),
    "a broken link": instead_of_store(lambda world: world.storage.symlink_to("absent"), FAILED),
    "a loop": instead_of_store(lambda world: world.storage.symlink_to(world.storage), FAILED),
    "an empty directory": instead_of_store(lambda world: world.storage.mkdir(), Outlook({0, 1}, False)),
    "unreadable": unreadable,
    "torn": instead_of_metadata(lambda path, data: path.write_bytes(data[:-1]), FAILED),
    "emptied": instead_of_metadata(lambda path, data: path.touch(), FAILED),
    "not an object": instead_of_metadata(lambda path, data: path.write_bytes(b"[]"), FAILED),
    "no metadata": instead_of_metadata(lambda path, data: None, HARMLESS),
    "no entries": instead_of_metadata(lambda path, data: path.write_bytes(b"{}"), HARMLESS),
    "metadata a directory": instead_of_metadata(lambda path, data: path.mkdir(), FAILED),
    "metadata a link": instead_of_metadata(lambda path, data: path.symlink_to("../aside"), FAILED),
    "metadata a FIFO": instead_of_metadata(lambda path, data: os.mkfifo(path), FAILED),
    "a lock held": held,
    "a lock left": besides(lock.LOCK_NAME, lambda path: path.write_text('{"pid": 1}\n'), KEPT),
    "a lock of the previous generation": left_by_the_previous_generation,
    "a lock that is a directory": besides(lock.LOCK_NAME, lambda path: path.mkdir(), FAILED),
    "a lock that is a link": besides(lock.LOCK_NAME, lambda path: path.symlink_to("absent"), FAILED),
    "a draft left": besides(".metadata.json.tmp", lambda path: path.write_bytes(b"{"), KEPT),
    "a link left": besides(
        ".metadata.json.prev", lambda path: os.link(path.with_name("metadata.json"), path), KEPT
    ),
    "gone midway": gone_midway,
    "a save midway": saved_midway,
}  # fmt: skip
STOPPED = "stopped midway"
FAULT = "a fault of ours"
ALL_WEATHERS = {**WEATHERS, STOPPED: asked_to_stop_midway, FAULT: fault_of_ours}


# --- the loop ----------------------------------------------------------------------------------------------


class Record(NamedTuple):
    """What was asked of one cycle, and what was wrong with the store after it."""

    weather: str
    environment: Environment
    outlook: Outlook
    slept_secs: list[float]
    problems: list[str]


class Driver:
    """Lets the loop run cycle by cycle: before each one the world changes, after each one the store is examined."""

    def __init__(self, world: World, next_cycle: Callable[[], tuple[str, Environment]], cycles: int) -> None:
        self.records: list[Record] = []
        self._world = world
        self._next_cycle = next_cycle
        self._left = cycles
        self._stack = ExitStack()
        self._tmpdir = os.environ["TMPDIR"]

    def prepare(self) -> None:
        world = self._world
        weather, environment = self._next_cycle()
        if not environment.leads_to_store:
            weather = "fair"
        os.environ.clear()
        os.environ.update(environment.variables, TMPDIR=self._tmpdir)
        outlook = self._stack.enter_context(ALL_WEATHERS[weather](world, environment))
        if not environment.leads_to_store:
            outlook = HARMLESS
        self.records.append(Record(weather, environment, outlook, [], []))

    def before_cycle(self) -> None:
        self._world.clock.sleeping = False
        self._world.clock.slept_secs = self.records[-1].slept_secs

    def after_cycle(self) -> None:
        clock = self._world.clock
        clock.interruption = None
        clock.sleeping = True
        self._stack.close()
        self.records[-1].problems.extend(self._examine(self.records[-1]))
        self._left -= 1
        if self._left:
            self.prepare()
        elif not clock.stopping:
            clock.stop_signal = int(signal.SIGTERM)

    def _examine(self, record: Record) -> Iterator[str]:
        world = self._world
        entries = read_entries(world.storage)
        found = blobs(world.storage)
        before = list(world.sizes)
        within = world.within(record.environment.limit_bytes)
        if record.outlook.exit_codes == {0} and record.outlook.reaches_store:
            if found != set(within):
                yield f"{len(found)} sessions stay instead of {len(within)}"
            if len(within) < len(before) and set(entries) != found:
                yield "there are entries without blobs"
        elif not record.outlook.reaches_store:
            if found != set(before):
                yield "something was deleted"
        elif found != set(before[len(before) - len(found) :]) or not set(within) <= found:
            yield "something else was deleted than the oldest"
        if not found <= set(entries):
            yield "an entry was lost"
        if os.path.lexists(world.storage / lock.LOCK_NAME):
            yield "the lock was left"
        world.sizes = {guid: size for guid, size in world.sizes.items() if guid in found}


def events_of(lines: bytes) -> list[dict[str, Any]]:
    """Nothing but lines of strict JSON, without what is no character."""

    def refuse(text: str) -> None:
        raise AssertionError(f"not strict JSON: {text}")

    found = []
    for line in lines.decode("utf-8", "strict").split("\n")[:-1]:
        found.append(json.loads(line, parse_constant=refuse))
        json.dumps(found[-1], ensure_ascii=False).encode("utf-8", "strict")
    return found


def what_is_wrong(record: Record, events: list[dict[str, Any]], is_last: bool, went_back_secs: float) -> Iterator[str]:
    """With the events of one cycle."""
    keys = [item["event"] for item in events]
    fallbacks = [item for item in events if item["event"] == "housekeeper.invalid_env"]
    environment = record.environment
    fallbacks = [item for item in fallbacks if not item["variable"].endswith(("_HEARTBEAT_FILE", "_METRICS_FILE"))]
    if sorted((item["variable"], item["default"]) for item in fallbacks) != sorted(environment.unusable.items()):
        yield f"unusable are {sorted(environment.unusable)}, reported {[item['variable'][:99] for item in fallbacks]}"
    if any(len(item["value"]) > 80 or "\x1b" in item["value"] for item in fallbacks):
        yield "a value was not made fit to show"
    ends = [item for item in events if item["event"].startswith("housekeeper.cycle_") and "exit_code" in item]
    if keys.count("housekeeper.cycle_start") != 1 or (len(ends) != 1 and (ends or record.weather != STOPPED)):
        yield f"not one cycle: {keys}"
    for end in ends:
        if end["event"] == "housekeeper.cycle_failed":
            yield f"an unexpected error: {end['@x']}"
        if end["exit_code"] not in record.outlook.exit_codes:
            yield f"it ended with {end['exit_code']}: {end['@m']}"
    limit_mb = round(environment.limit_bytes / MB, 3)
    if any(item.get("limit_mb", limit_mb) != limit_mb for item in events):
        yield f"the limit was not {limit_mb}"
    longest_secs = max(environment.interval_secs, 0.1)
    sleeps = [item["sleep_seconds"] for item in events if item["event"] == "housekeeper.sleep"]
    if len(sleeps) != 1 - is_last or not all(0.1 <= secs <= longest_secs + 0.1 for secs in sleeps):
        yield f"slept {sleeps}"
    if not all(0 < secs <= longest_secs + went_back_secs for secs in record.slept_secs):
        yield f"asked to sleep {record.slept_secs}"
    yield from record.problems


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch, sleeps_in_one_go: None) -> None:
    """No real time passes, so nothing has to be waited for; and nothing has to be on disk."""
    for name, module in list(sys.modules.items()):
        if name.startswith("storage_manager") and hasattr(module, "READ_PATIENCE_SECS"):
            monkeypatch.setattr(module, "READ_PATIENCE_SECS", 0.1)
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A directory in memory, where there is one: on a disk, a client that truncates and writes takes its time."""
    shared = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None) as directory:
        yield Path(directory)


def drive(driver: Driver, clock: WildClock) -> int:
    """Run the tool's loop in this process until the driver ends it; the exit code."""
    real = housekeeper._cycle

    def run_cycle(*arguments: Any) -> Any:
        driver.before_cycle()
        try:
            return real(*arguments)
        finally:
            driver.after_cycle()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "environ", {})
        patch.setattr(cli, "Clock", lambda: clock)
        patch.setattr(housekeeper, "_cycle", run_cycle)
        driver.prepare()
        try:
            return main(["--log-format", "json", "--log-level", "DEBUG", "run-loop"])
        finally:
            gc.enable()


def make_traps(directory: Path) -> list[str]:
    """What a variable may name that is no storage directory."""
    directory.mkdir()
    (directory / "file").touch()
    os.mkfifo(directory / "fifo")
    (directory / "loop").symlink_to("loop")
    names = [
        "absent",
        "file",
        "file/below",
        "fifo",
        "loop",
        "n" * 300,
        "\x1b[31m\n",
        "\u202e",
        os.fsdecode(b"\xff\xfe"),
    ]
    return [*(str(directory / name) for name in names), "p" * LONG, "/dev/null", "/proc", "", " \t", ".", "~", "$HOME"]


def random_log_file(rng: random.Random, directory: Path) -> tuple[str, bool]:
    """(where, whether that can be a log file)."""
    directory.mkdir()
    os.mkfifo(directory / "fifo")
    (directory / "loop").symlink_to("loop")
    (directory / "link").symlink_to("linked")
    (directory / "old").write_text("{}\n")
    usable = [str(directory / name) for name in ("new", "old", "link", "\u202e\x1b[31m")]
    names = ["fifo", "loop", "absent/new", "old/new", "n" * 300]
    others = [*(str(directory / name) for name in names), str(directory), "/dev/full", "p" * LONG]
    return (rng.choice(usable), True) if rng.random() < 0.5 else (rng.choice(others), False)


def told_where(rng: random.Random, world: World, directory: Path, traps: list[str]) -> dict[str, str]:
    """Where the loop shall tell how it does: usable, or not, or right into the store."""
    usable, in_store = str(directory / "status"), str(world.storage / "metadata.json")
    names = [usable, usable, in_store, *(name for name in traps if name.startswith("/"))]
    heartbeat, metrics = rng.choice(names), rng.choice(names)
    return {
        "HOUSEKEEPER_HEARTBEAT_FILE": heartbeat if heartbeat != metrics else str(directory / "heartbeat"),
        "METRICS_FILE": metrics,
    }


CYCLES = 100


def run_case(seed: int, world: World, log_file: str, traps: list[str]) -> Driver:
    clock, rng = world.clock, world.rng
    directory = world.storage.parent
    told = told_where(rng, world, directory, make_traps(directory / "told"))

    def next_cycle() -> tuple[str, Environment]:
        clock.change()
        for _ in range(rng.choice([0, 1, 1, 2, 4])):
            world.save(rng.choice([0, 1, 500, 500, 1000, 1499]))
        environment = random_environment(rng, world.storage, traps)
        environment.variables[f"{environment.prefix}_LOG_FILE"] = log_file
        environment.variables.update({f"{environment.prefix}_{name}": value for name, value in told.items()})
        environment.variables["NOTIFY_SOCKET"] = str(directory / "nobody")
        is_last = len(driver.records) == CYCLES - 1
        return STOPPED if is_last and rng.random() < 0.7 else rng.choice(list(WEATHERS)), environment

    driver = Driver(world, next_cycle, CYCLES)
    assert drive(driver, clock) == 0, f"seed {seed}"
    return driver


def test_nothing_in_the_environment_the_clock_or_the_store_ends_the_loop(
    in_memory: Path,
    tmp_path: Path,
    seeds: Callable[[int], range],
    impatient: None,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    traps = make_traps(tmp_path / "traps")
    for seed in seeds(30):
        rng = random.Random(seed)
        clock = WildClock(rng)
        world = World(in_memory / str(seed) / "storage", rng, clock)
        log_file, usable = random_log_file(rng, tmp_path / f"logs {seed}")
        records = run_case(seed, world, log_file, traps).records
        found = events_of(capfdbinary.readouterr().err)
        by_run: dict[str, list[dict[str, Any]]] = {}
        for item in found:
            by_run.setdefault(item["run_id"], []).append(item)
        before, *cycles = by_run.values()
        assert len(cycles) == len(records) == CYCLES, f"seed {seed}"
        for number, (record, events) in enumerate(zip(records, cycles)):
            problems = list(what_is_wrong(record, events, number == CYCLES - 1, clock.went_back_secs))
            assert not problems, f"seed {seed}, cycle {number} ({record.weather}): {problems[0]}"
        keys = [item["event"] for item in found]
        assert keys[-2:] == ["housekeeper.stopping", "storage_manager.command_end"], f"seed {seed}"
        refused = [item["variable"] for item in before if item["event"] == "housekeeper.invalid_env"]
        variable = f"{records[0].environment.prefix}_LOG_FILE"
        assert refused == ([] if usable else [variable]), f"seed {seed}: {log_file[:99]} ({records[0].weather})"
        if usable:
            assert events_of(Path(log_file).read_bytes())[-len(found) :] == found, f"seed {seed}"


def test_a_monotonic_clock_that_goes_back_does_not_prolong_the_sleep(storage: Path, sleeps_in_one_go: None) -> None:
    class Back(Clock):
        secs = 1e6
        slept_secs: list[float] = []

        def monotonic(self) -> float:
            return self.secs

        def sleep(self, secs: float) -> None:
            self.slept_secs.append(secs)
            self.secs += secs - (1e5 if len(self.slept_secs) == 1 else 0.0)
            if len(self.slept_secs) == 4:
                self.stop_signal = int(signal.SIGTERM)

    clock = Back()
    variables = {"GOFR_DIG_HOUSEKEEPING_INTERVAL_MINS": "10", "TMPDIR": os.environ["TMPDIR"]}
    log = log_module.EventLog(log_module.build_logger(None, True, 10))
    assert run_loop(lambda: read_settings(variables, str(storage), None), clock, log, Manner()) == 0
    assert max(clock.slept_secs) <= 600


# --- what it keeps -----------------------------------------------------------------------------------------


def plain_environment(storage: Path, log_file: Path) -> Environment:
    variables = {
        "GOFR_DIG_STORAGE": str(storage),
        "GOFR_DIG_MAX_STORAGE_MB": "2000B",
        "GOFR_DIG_LOG_FILE": str(log_file),
        "GOFR_DIG_HOUSEKEEPING_INTERVAL_MINS": "often",
        "GOFR_DIG_HOUSEKEEPER_HEARTBEAT_FILE": str(log_file.with_name("heartbeat")),
        "GOFR_DIG_METRICS_FILE": str(log_file.with_name("metrics.prom")),
        "NOTIFY_SOCKET": str(storage.parent / "notify"),
    }
    values = {"HOUSEKEEPING_INTERVAL_MINS": 60, "MAX_STORAGE_MB": 2000, "HOUSEKEEPER_LOCK_STALE_SECONDS": 3600}
    return Environment(variables, {"GOFR_DIG_HOUSEKEEPING_INTERVAL_MINS": "60"}, values, "GOFR_DIG", True)


@pytest.mark.parametrize("weathers", [[*WEATHERS, FAULT], [FAULT]], ids=["all in turn", "faults alone"])
def test_memory_and_descriptors_stay_flat(
    in_memory: Path,
    tmp_path: Path,
    impatient: None,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
    weathers: list[str],
) -> None:
    """Also those of a log file that is rotated, and whose directory is gone for a while."""
    monkeypatch.setattr(log_module, "LOG_FILE_BYTES", 20_000)
    clock = WildClock(random.Random(1))
    world = World(in_memory / "storage", random.Random(1), clock)
    log_dir = tmp_path / "logs"
    log_dir.mkdir()
    environment = plain_environment(world.storage, log_dir / "log")
    steps = cycle(weathers)
    period = max(len(weathers), 25)
    seen: list[tuple[int, int]] = []
    number = 0

    def next_cycle() -> tuple[str, Environment]:
        nonlocal number
        clock.keeps_time = True
        while len(world.sizes) < 6:
            world.save(500)
        if number % period == 0:
            driver.records.clear()
            seen.append((tracemalloc.get_traced_memory()[0], len(os.listdir("/proc/self/fd"))))
        if number % period == 10:
            os.rename(log_dir, tmp_path / "gone")
        if number % period == 15:
            os.rename(tmp_path / "gone", log_dir)
        number += 1
        return next(steps), environment

    driver = Driver(world, next_cycle, 20 * period + 1)
    tracemalloc.start()
    try:
        assert drive(driver, clock) == 0
        largest = "\n".join(map(str, tracemalloc.take_snapshot().statistics("lineno")[:8]))
    finally:
        tracemalloc.stop()
    assert {"heartbeat", "metrics.prom"} < set(os.listdir(log_dir))
    assert 4 <= len(os.listdir(log_dir)) <= 3 + log_module.LOG_FILE_BACKUPS
    assert all(path.stat().st_size <= log_module.LOG_FILE_BYTES for path in log_dir.iterdir())
    memory, descriptors = zip(*seen[4:])
    assert len(set(descriptors)) == 1
    # From many cycles to many: a table of the interpreter's that doubles its size once is no leak.
    growth = statistics.median(memory[len(memory) // 2 :]) - statistics.median(memory[: len(memory) // 2])
    assert growth < 100 * period * len(memory) // 2, f"more than 100 bytes for each cycle; at the end:\n{largest}"


def test_a_real_loop_stays_flat_while_its_store_comes_and_goes(in_memory: Path) -> None:
    storage, aside = in_memory / "storage", in_memory / "aside"
    make_store(storage, 6, size=1000)
    client = Client(storage)
    variables = {
        "GOFR_DIG_HOUSEKEEPING_INTERVAL_MINS": "0.0001",
        "GOFR_DIG_MAX_STORAGE_MB": "4000B",
        "GOFR_DIG_METRICS_FILE": str(in_memory / "metrics.prom"),
        "NOTIFY_SOCKET": str(in_memory / "nobody"),
        "WATCHDOG_USEC": "1000000",
    }
    arguments = command("run-loop", "--storage-dir", storage)
    process = subprocess.Popen(
        arguments, env=clean_environment(variables), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    alarm = threading.Timer(60, process.kill)
    alarm.start()
    assert process.stderr is not None

    def wait_for(key: str) -> None:
        for line in process.stderr or ():
            if json.loads(line)["event"] == key:
                return
        raise AssertionError(f"{key} never came")

    seen: list[tuple[int, int]] = []
    try:
        wait_for("housekeeper.sleep")
        for number in range(200):
            os.rename(storage, aside)
            process.send_signal(signal.SIGUSR1)
            wait_for("housekeeper.cycle_nonzero")
            os.rename(aside, storage)
            if number % 10 == 0:
                client.save(b"x" * 1000)
            process.send_signal(signal.SIGUSR1)
            wait_for("housekeeper.cycle_ok")
            status = Path(f"/proc/{process.pid}/status").read_text()
            (resident,) = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")]
            seen.append((int(resident), len(os.listdir(f"/proc/{process.pid}/fd"))))
        process.send_signal(signal.SIGTERM)
        keys = [json.loads(line)["event"] for line in process.stderr]
        assert "housekeeper.stopping" in keys
        assert process.wait() == 0
    finally:
        alarm.cancel()
        alarm.join()
        process.kill()
        process.wait()
        process.stderr.close()
    assert len(blobs(storage)) == 4 == len(read_entries(storage))
    # What a cycle has open for a moment may be seen, or not.
    (early_kb, early_descriptors), (late_kb, late_descriptors) = (
        [min(column) for column in zip(*part)] for part in (seen[50:100], seen[150:])
    )
    assert late_descriptors == early_descriptors
    assert late_kb - early_kb < 200, "more than a kilobyte for each cycle"
