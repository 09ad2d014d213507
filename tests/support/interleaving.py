"""A deterministic scheduler: the real prune and the test client on a real directory, one system call at a time.

Each actor is a thread that stops before every system call on the store; exactly one runs at any time, and a strategy
says which. Time is virtual: it passes in pauses alone. So are the time stamps of files: those of the kernel would make
each execution another one.

An execution is told by its schedule: `prune*12 client*3 prune!` are twelve choices of one actor, three of another, and
the death of the first before its next call; `client~` stops it until everybody else has come to an end. The same
schedule gives the same execution.
"""

from __future__ import annotations

import fcntl
import io
import os
import random
import re
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from itertools import count, groupby
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from storage_manager.base.clock import Clock

BEGINNING = datetime(2026, 6, 1)
EPOCH_NS = int((BEGINNING - datetime(1970, 1, 1)).total_seconds()) * 10**9

# What the protocol rests on, a little less than commit.SETTLE_SECS and REWRITE_SECS: a client that has looked
# metadata.json up truncates it within the one, and one that has read it opens it for writing within the other. A client
# that is writing may take any time.
OPEN_SECS = 0.045
REWRITE_SECS = 0.9

# A sleep in which nobody else takes a step lasts longer than asked for, so that patience ends after few rounds.
LEAP_SECS = 0.25
ALONE_SECS = 4.0

STEPS = ("open", "close", "stat", "fstat", "read", "pread", "write", "pwrite", "ftruncate", "link", "unlink", "rename",
         "listdir", "scandir")  # fmt: skip

CHANGING = ("open", "write", "pwrite", "ftruncate", "link", "unlink", "rename", "pause")


class Died(BaseException):
    """Ends the thread of an actor whose process has been killed. No code of the package may catch it."""


class Enough(Exception):
    """From here on the execution is one that has been seen."""


class Status(NamedTuple):
    """A stat result with a virtual time stamp."""

    st_mode: int
    st_ino: int
    st_dev: int
    st_nlink: int
    st_uid: int
    st_gid: int
    st_size: int
    st_mtime_ns: int
    st_mtime: float


class Actor:
    """One process: a function in a thread, its descriptors, and all that it has seen."""

    def __init__(self, world: World, name: str, run: Callable[[], Any]) -> None:
        self.world = world
        self.name = name
        self.result: Any = None
        self.error: BaseException | None = None
        self.done = self.dead = False
        self.stalled = False
        """Stopped, until everybody else has come to an end."""
        self.deadline: float | None = None
        """Until when, by what the protocol rests on, it must have gone on."""
        self.ready: Callable[[], bool] = lambda: True
        self.next = "start"
        self.steps = 0
        self.seen = 0
        """A hash of every result of its calls: with the same, it is in the same state, for its code knows no chance."""
        self._round = 0
        self._last_round = (0, 0)
        self.before_attempt: int | None = None
        self.rejected = 0
        self.examined = 0
        """A hash of what its last look at an inode showed."""
        self.fds: dict[int, str] = {}
        self.go = threading.Lock()
        self.go.acquire()
        self.run = run
        self.thread = threading.Thread(target=self._main, name=name, daemon=True)

    def _main(self) -> None:
        ACTORS[threading.get_ident()] = self
        self.go.acquire()
        try:
            if not self.dead:
                self.result = self.run()
        except Died:
            pass
        except BaseException as error:  # noqa: BLE001 - the harness reports it with the schedule
            self.error = error
        finally:
            del ACTORS[threading.get_ident()]
            for fd, label in self.fds.items():
                with suppress(OSError):
                    if self.world.know(REAL["fstat"](fd)) == label:
                        REAL["close"](fd)
            self.fds.clear()
            self.done = True
            self.world.pass_on()

    def step(self, call: str, what: str, action: Callable[[], Any]) -> Any:
        """One system call: wait for the turn, make it, remember what came of it."""
        self.wait(f"{call} {what}")
        try:
            result = action()
        except OSError as error:
            self.saw(("error", error.errno))
            raise
        return result

    def wait(self, label: str, ready: Callable[[], bool] = lambda: True) -> None:
        if self.dead:
            raise Died
        self.next, self.ready = label, ready
        if not self.world.goes_on(self):
            self.world.pass_on(self)
        self.ready = lambda: True
        if self.dead:
            raise Died
        self.steps += 1
        self.world.trace.append(f"{self.name:>8}  {label}")

    def saw(self, what: object) -> None:
        self.seen = hash((self.seen, what))
        self._round = hash((self._round, what))

    def forget_round(self) -> None:
        """At a pause: looking again, and seeing the same as in the round before, leaves nothing to remember."""
        if self._round == self._last_round[0]:
            self.seen = self._last_round[1]
        self._last_round, self._round = (self._round, self.seen), 0

    @contextmanager
    def forgetting(self) -> Iterator[None]:
        """Inside, a pause ends an attempt: what was seen before it is of no more use, but for the last look."""
        outer, self.before_attempt = self.before_attempt, self.seen
        try:
            yield
        finally:
            self.before_attempt, self.rejected = outer, 0


ACTORS: dict[int, Actor] = {}
LEFT_BEHIND: list[World] = []
REAL: dict[str, Callable[..., Any]] = {name: getattr(os, name) for name in STEPS}
REAL["flock"] = fcntl.flock


def actor() -> Actor | None:
    return ACTORS.get(threading.get_ident())


class World:
    """One execution: a store, its actors, and the order in which they took their steps."""

    def __init__(self, storage: Path, strategy: Strategy, coarse: bool = True, chunk: int = 1 << 16) -> None:
        self.storage = storage
        self.strategy = strategy
        self.coarse = coarse
        self.chunk = chunk
        """How many bytes the client reads at once; what it writes, it writes in two halves."""
        self.complete = False
        """Whether every actor has come to its end."""
        self.private: Callable[[Actor, str], bool] = lambda actor, label: False
        """Which steps no other actor can notice, nor influence: their order is of no consequence."""
        self.actors: list[Actor] = []
        self.schedule: list[str] = []
        self.trace: list[str] = []
        self.clock_secs = 0.0
        self.inodes: dict[tuple[int, int], str] = {}
        self.versions: dict[str, tuple[float, int]] = {}
        """When each inode was written to last: the time, and how many writes there had been in all."""
        self.writers: dict[str, Actor] = {}
        self._numbers = count()
        self._last: Actor | None = None
        self._finished = threading.Lock()
        self._over = False
        self.failure: Exception | None = None
        for name in os.listdir(storage):
            self.know(os.lstat(storage / name), name)

    def add(self, name: str, run: Callable[[], Any]) -> Actor:
        self.actors.append(Actor(self, name, run))
        return self.actors[-1]

    def run(self) -> None:
        """Let the actors run to their ends, in the order that the strategy chooses."""
        self._finished.acquire()
        for each in self.actors:
            each.thread.start()
        self.pass_on()
        self._finished.acquire()
        for each in self.actors:
            each.thread.join()
        if self.failure is not None:
            raise self.failure

    @contextmanager
    def left_behind(self) -> Iterator[None]:
        """Once it has run: who is alone with the store now sees its virtual time stamps."""
        LEFT_BEHIND.append(self)
        try:
            yield
        finally:
            LEFT_BEHIND.remove(self)

    def pass_on(self, current: Actor | None = None) -> None:
        """Choose who takes the next step, and wait until that is `current` again."""
        if not self._over:
            chosen = None
            try:
                chosen = self._choose()
            except Enough:
                pass
            except Exception as error:  # noqa: BLE001 - an actor's thread is no place to raise it
                self.failure = error
            if chosen is None:
                self._over = True
                for each in self.actors:
                    each.dead = True
        if self._over:
            chosen = next((each for each in self.actors if not each.done), None)
            if chosen is None:
                self._finished.release()
                return
        assert chosen is not None
        self._last = chosen
        if chosen is not current:
            chosen.go.release()
            if current is not None:
                current.go.acquire()

    def goes_on(self, current: Actor) -> bool:
        """Whether an actor may take its next step without anybody being asked."""
        return not self._over and self.private(current, current.next) and not self.strategy.wants_death(self, current)

    def _choose(self) -> Actor | None:
        active = [each for each in self.actors if not each.done]
        if not active:
            self.complete = True
            return None
        able = [each for each in active if each.ready() and not each.stalled]
        if not able:  # the others have come to an end, or wait for it
            for each in active:
                each.stalled = False
            able = [each for each in active if each.ready()]
        assert able, f"deadlock after {self.told()}"
        token = self.strategy.choose(self, able)
        self.schedule.append(token)
        chosen = next(each for each in active if each.name == token.rstrip("!~"))
        if token.endswith("!"):
            chosen.dead = True
            self.trace.append(f"{chosen.name:>8}  dies before {chosen.next}")
        elif token.endswith("~"):
            chosen.stalled = True
            self.trace.append(f"{chosen.name:>8}  is stopped before {chosen.next}")
            return self._choose()
        return chosen

    @property
    def last(self) -> Actor | None:
        return self._last

    def pause(self, secs: float) -> None:
        """A sleep: it ends when somebody else has taken a step, or nobody else can."""
        sleeper = actor()
        if secs <= 0:
            return
        if sleeper is None:
            self.clock_secs += max(secs, ALONE_SECS)
            return

        others = [each for each in self.actors if each is not sleeper]

        def progress() -> int:
            return sum(each.steps + each.done for each in others)

        def lasts() -> float:
            if progress() > before:
                return secs
            return max(secs, LEAP_SECS if any(not each.done and not each.stalled for each in others) else ALONE_SECS)

        def ready() -> bool:
            awake = [each for each in others if not each.done and not each.stalled]
            return not any(each.deadline is not None and self.clock_secs + lasts() > each.deadline for each in awake)

        before = progress()
        if sleeper.before_attempt is not None:
            sleeper.seen, sleeper.rejected = sleeper.before_attempt, sleeper.examined
        else:
            sleeper.forget_round()
        sleeper.wait("pause", ready)
        self.clock_secs += lasts()

    # What the wrapped calls tell

    def know(self, status: os.stat_result, label: str | None = None) -> str:
        """The name under which an inode is known: numbers of the kernel differ from run to run."""
        key = status.st_dev, status.st_ino
        if label is not None or key not in self.inodes:
            is_directory = stat.S_ISDIR(status.st_mode)
            self.inodes[key] = label or ("directory" if is_directory else f"inode {next(self._numbers)}")
        return self.inodes[key]

    def virtual(self, status: os.stat_result) -> Status:
        label = self.know(status)
        written_at, version = self.versions.get(label, (0.0, 0))
        mtime_ns = EPOCH_NS + int(written_at * 1e9) + (0 if self.coarse else version)
        return Status(
            status.st_mode, status.st_ino, status.st_dev, status.st_nlink, status.st_uid, status.st_gid,
            status.st_size, mtime_ns, mtime_ns / 1e9,
        )  # fmt: skip

    def changed(self, fd: int, by: Actor | None = None) -> None:
        label = self.know(REAL["fstat"](fd))
        self.versions[label] = self.clock_secs, next(self._numbers)
        if by is not None:
            self.writers[label] = by

    def last_writer(self, path: Path) -> Actor | None:
        """Who wrote last to the file that is there."""
        return self.writers.get(self.know(REAL["stat"](path)))

    def files(self) -> tuple[object, ...]:
        """The directory as it is: names, which inode each is, and the bytes."""
        found = []
        for name in sorted(REAL["listdir"](self.storage)):
            path = os.path.join(self.storage, name)
            with open(path, "rb") as file:
                found.append((name, self.know(REAL["fstat"](file.fileno())), file.read()))
        return tuple(found)

    def state(self) -> int:
        """A hash of all that can matter from here on: the files, and what each actor has seen and holds."""
        held = []
        for each in self.actors:
            for label in sorted(each.fds.values()):
                fd = next(fd for fd, found in each.fds.items() if found == label)
                status = REAL["fstat"](fd)
                if stat.S_ISREG(status.st_mode):
                    held.append((each.name, label, self._content(fd, status.st_size)))
            left = None if each.deadline is None else int((each.deadline - self.clock_secs) / LEAP_SECS)
            fate = each.done, each.dead, each.stalled
            held.append((each.name, each.seen, each.rejected, fate, each.ready(), each.next, left))
        # While all make progress, the patience of a reader does not end, and the time is of no consequence.
        waits = any(
            each.stalled or each.dead or each.next == "pause" and each.before_attempt is None for each in self.actors
        )
        return hash((self.files(), tuple(held), self.clock_secs if waits else None))

    def _content(self, fd: int, size: int) -> object:
        try:
            return REAL["pread"](fd, size, 0)
        except OSError:  # open for writing only: its name is in the directory, or nobody can see it any more
            return size

    def told(self) -> str:
        """The schedule, short enough to be repeated."""
        parts = [(token, len(list(group))) for token, group in groupby(self.schedule)]
        return " ".join(token if number == 1 else f"{token}*{number}" for token, number in parts)


def read_schedule(text: str) -> list[str]:
    """The tokens of a schedule as `told` writes it."""
    tokens = []
    for word in text.split():
        match = re.fullmatch(r"([^*]+)(?:\*(\d+))?", word)
        assert match is not None, f"not a schedule: {word!r}"
        tokens += [match.group(1)] * int(match.group(2) or 1)
    return tokens


# --- strategies --------------------------------------------------------------------------------------------


class Strategy:
    """Says who takes the next step: a name, or a name with `!` for its death."""

    def choose(self, world: World, able: list[Actor]) -> str:
        raise NotImplementedError

    def wants_death(self, world: World, current: Actor) -> bool:
        """Whether to be asked even where nobody notices who is first."""
        return False


def stay(world: World, able: list[Actor]) -> str:
    """As few switches as possible."""
    return world.last.name if world.last in able and world.last is not None else able[0].name


class Systematic(Strategy):
    """One path of an exhaustive search: a known beginning, then whatever leads to a state not seen before.

    With a whole schedule for a beginning, and a new search of the same kind, it repeats an execution.
    """

    def __init__(self, search: Search, beginning: list[str]) -> None:
        self._search = search
        self._beginning = beginning
        self._led = False

    def choose(self, world: World, able: list[Actor]) -> str:
        position = len(world.schedule)
        if position < len(self._beginning):
            return self._beginning[position]
        if not self._beginning and not self._led:
            token = self._search.lead(world)
            if token is not None:
                return token
            self._led = True
        state = world.state()
        if state in self._search.states:
            raise Enough
        self._search.states.add(state)
        choice = stay(world, able)
        alone = world.private(world.last, world.last.next) if world.last in able and world.last is not None else False
        others = [] if alone else [each.name for each in able if each.name != choice]
        others += [f"{each.name}!" for each in able if self._may_die(world, each)]
        others += [f"{each.name}~" for each in able if self._may_stall(world, each)]
        self._search.pending += [[*world.schedule, token] for token in others]
        return choice

    def wants_death(self, world: World, current: Actor) -> bool:
        return self._may_die(world, current)

    def _may_die(self, world: World, candidate: Actor) -> bool:
        """Before a call that changes something: to die elsewhere leaves the same behind. One death is enough."""
        return (
            candidate.name in self._search.mortal
            and candidate.next.split()[0] in CHANGING
            and not any(each.dead for each in world.actors)
        )

    def _may_stall(self, world: World, candidate: Actor) -> bool:
        """While it writes, that is; once is enough."""
        return (
            candidate.name in self._search.lazy
            and candidate.next.split()[0] == "write"
            and not any("~" in token for token in world.schedule)
        )


class Search:
    """An exhaustive search: every order of the actors' system calls, every moment for one of the mortal to die, and for
    one of the lazy to be stopped in the middle of a file, until everybody else has come to an end.

    Two ways into one state are followed once: what comes after is the same. A state is the directory, the bytes, and
    everything that each actor has seen. With a budget it is a sample of so many executions.
    """

    def __init__(
        self,
        mortal: tuple[str, ...] = (),
        lazy: tuple[str, ...] = (),
        lead: Callable[[World], str | None] = lambda world: None,
        budget: int | None = None,
    ) -> None:
        self.mortal = mortal
        self.lazy = lazy
        self.lead = lead
        """Says what is done first, in one order; the search begins where it says None."""
        self.states: set[int] = set()
        self.pending: list[list[str]] = [[]]
        self.executions = 0
        self.budget = budget
        self._rng = random.Random(0)

    def strategies(self) -> Iterator[Strategy]:
        """Every path, or as many as the budget has. In random order: it finds a loss ten times as fast."""
        while self.pending and self.executions != self.budget:
            self.executions += 1
            at = self._rng.randrange(len(self.pending))
            self.pending[at], self.pending[-1] = self.pending[-1], self.pending[at]
            yield Systematic(self, self.pending.pop())


class Dice(Strategy):
    """A random order. How often actors take turns, and how likely they die, is random as well."""

    def __init__(self, rng: random.Random, mortal: tuple[str, ...] = (), lazy: tuple[str, ...] = ()) -> None:
        self._rng = rng
        self._mortal = mortal
        self._lazy = lazy
        self._switch = rng.choice((0.02, 0.1, 0.3, 0.7))
        self._death = rng.choice((0.0, 0.003, 0.02)) if mortal else 0.0

    def choose(self, world: World, able: list[Actor]) -> str:
        rng = self._rng
        if rng.random() < self._death:
            victims = [each.name for each in able if each.name in self._mortal and each.steps]
            if victims:
                return rng.choice(victims) + "!"
        lazy = [each.name for each in able if each.name in self._lazy and each.next.startswith("write")]
        if lazy and rng.random() < 0.2 and not any("~" in token for token in world.schedule):
            return lazy[0] + "~"
        return stay(world, able) if rng.random() > self._switch else rng.choice(able).name


# --- the calls, the clock and the client's files -----------------------------------------------------------


class VirtualClock(Clock):
    """Time as the world counts it."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def now(self) -> datetime:
        return BEGINNING + timedelta(seconds=self._world.clock_secs)

    def monotonic(self) -> float:
        return self._world.clock_secs

    def sleep(self, secs: float) -> None:
        self._world.pause(secs)

    def pause(self, secs: float) -> None:
        self._world.pause(secs)


class ClientFile(io.RawIOBase):
    """A file of the client: each read and write is a step; what is text goes out in two halves."""

    def __init__(self, world: World, owner: Actor, fd: int, writing: bool, parts: int = 1) -> None:
        self._world, self._owner, self._fd, self._writing = world, owner, fd, writing
        self._parts = parts

    def readable(self) -> bool:
        return not self._writing

    def writable(self) -> bool:
        return self._writing

    def readinto(self, buffer: Any) -> int:
        data = os.read(self._fd, min(len(buffer), self._world.chunk))
        buffer[: len(data)] = data
        return len(data)

    def write(self, data: Any) -> int:
        if self._owner.dead:  # whatever Python still flushes, a dead process does not
            return len(data)
        size = -(-len(data) // self._parts)
        self._parts = max(1, self._parts - 1)
        return os.write(self._fd, bytes(data[:size]))

    def close(self) -> None:
        if not self.closed:
            super().close()
            if not self._owner.dead:
                os.close(self._fd)


def client_open(path: Any, mode: str = "r") -> Any:
    """open() as the client calls it; the two halves of one that truncates are steps of their own."""
    owner = actor()
    if owner is None:
        return open(path, mode)
    if "w" in mode:
        try:
            fd = os.open(path, os.O_WRONLY)
        except FileNotFoundError:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        else:
            owner.deadline = owner.world.clock_secs + OPEN_SECS
            os.ftruncate(fd, 0)
            owner.deadline = None
        raw = ClientFile(owner.world, owner, fd, True, parts=1 if "b" in mode else 2)
        buffer: Any = io.BufferedWriter(raw, 1 << 16)
    else:
        raw = ClientFile(owner.world, owner, os.open(path, os.O_RDONLY), False)
        buffer = io.BufferedReader(raw)
    return buffer if "b" in mode else io.TextIOWrapper(buffer, encoding="utf-8")


class Entry:
    """An entry of a directory listing; its stat() is a step."""

    def __init__(self, world: World, entry: os.DirEntry[str]) -> None:
        self.name = entry.name
        self.path = entry.path
        self.is_dir = entry.is_dir
        self._world = world

    def stat(self, follow_symlinks: bool = True) -> Any:
        assert not follow_symlinks
        return os.stat(os.path.join(self._world.storage, self.name), follow_symlinks=False)


def _wrap(call: str) -> Callable[..., Any]:
    real = REAL[call]

    def wrapper(*arguments: Any, **options: Any) -> Any:
        caller = actor()
        if caller is None:
            return _afterwards(call, real, arguments, options)
        what = " ".join(str(a) for a in arguments if isinstance(a, (str, os.PathLike)))
        if arguments and type(arguments[0]) is int:
            what = caller.fds.get(arguments[0], "?")
        return caller.step(call, os.path.basename(what), lambda: _make(caller, call, real, arguments, options))

    return wrapper


def _afterwards(call: str, real: Callable[..., Any], arguments: Any, options: Any) -> Any:
    """A call of somebody who is alone with what a world has left: no step, but time stamps go on as they were."""
    result = real(*arguments, **options)
    if LEFT_BEHIND and call in ("stat", "fstat"):
        return LEFT_BEHIND[-1].virtual(result)
    if LEFT_BEHIND and call in ("write", "pwrite", "ftruncate"):
        LEFT_BEHIND[-1].changed(arguments[0])
    if LEFT_BEHIND and call == "scandir":
        with result as listing:
            return _listing([Entry(LEFT_BEHIND[-1], entry) for entry in listing])
    return result


def _make(caller: Actor, call: str, real: Callable[..., Any], arguments: Any, options: Any) -> Any:
    """Make a call for an actor; what it sees of the result is the same in every execution."""
    world = caller.world
    if call in ("write", "pwrite", "ftruncate"):
        result = real(*arguments, **options)
        world.changed(arguments[0], caller)
        caller.saw(result)
    elif call == "open":
        existed = not arguments[1] & os.O_CREAT or _exists(arguments[0], options)
        result = real(*arguments, **options)
        label = world.know(REAL["fstat"](result), None if existed else f"{caller.name}'s {caller.steps}")
        caller.fds[result] = label
        caller.saw(label)
    elif call == "close":
        caller.fds.pop(arguments[0], None)
        result = real(*arguments, **options)
    elif call in ("stat", "fstat"):
        result = world.virtual(real(*arguments, **options))
        is_directory = stat.S_ISDIR(result.st_mode)
        look = "directory" if is_directory else (world.inodes[result.st_dev, result.st_ino], *result[6:])
        caller.examined = hash(look)
        caller.saw(look)
    elif call == "rename":
        result = real(*arguments, **options)
        renamed = REAL["stat"](arguments[1], dir_fd=options["dst_dir_fd"], follow_symlinks=False)
        label = f"{arguments[1]} of {caller.name}'s {caller.steps}"
        before = world.know(renamed)
        for known in (world.writers, world.versions):
            if before in known:
                known[label] = known[before]
        world.know(renamed, label)
        caller.saw(call)
    elif call == "listdir":
        result = sorted(real(*arguments, **options))
        caller.saw(tuple(result))
    elif call == "scandir":
        with real(*arguments, **options) as listing:
            entries = sorted((Entry(world, entry) for entry in listing), key=lambda entry: entry.name)
        caller.saw(tuple(entry.name for entry in entries))
        result = _listing(entries)
    else:
        result = real(*arguments, **options)
        caller.saw(result if isinstance(result, bytes) else call)
    return result


def _exists(path: Any, options: dict[str, Any]) -> bool:
    try:
        REAL["stat"](path, dir_fd=options.get("dir_fd"), follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


@contextmanager
def _listing(entries: list[Entry]) -> Iterator[Iterator[Entry]]:
    yield iter(entries)


@contextmanager
def intercepted() -> Iterator[None]:
    """Let the actors' system calls be steps; other threads' pass through."""
    with pytest.MonkeyPatch.context() as patch:
        for name in STEPS:
            patch.setattr(os, name, _wrap(name))
        patch.setattr(fcntl, "flock", _wrap("flock"))
        yield
