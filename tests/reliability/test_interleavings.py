"""Every order of the system calls of a prune and its clients: nothing is lost, and what would lose is found."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import random
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Optional

import pytest
from client import Client
from interleaving import (
    REWRITE_SECS,
    Actor,
    Dice,
    Died,
    Search,
    Strategy,
    Systematic,
    VirtualClock,
    World,
    actor,
    client_open,
    intercepted,
    read_schedule,
)
from stores import blobs, leftovers, new_guid

from storage_manager.base.clock import Patience
from storage_manager.base.errors import StorageManagerError
from storage_manager.base.log import EventLog
from storage_manager.jobs import prune as prune_job
from storage_manager.jobs.policy import Limits, plan_prune
from storage_manager.jobs.work import Terms
from storage_manager.store import commit, locked, reading, recovery, replace, survey
from storage_manager.store.aside import unlink_previous
from storage_manager.store.commit import Committer, PutBack
from storage_manager.store.directory import Store
from storage_manager.store.document import Document, NotJson
from storage_manager.store.draft import Draft, remove_leftover
from storage_manager.store.reading import Reading
from storage_manager.store.replace import Old

# Four sessions of which the oldest is over the limit; with one saved beside the prune, two may be.
GUIDS = [new_guid(random.Random(number)) for number in range(4)]
VICTIM, SURVIVOR = GUIDS[0], GUIDS[2]
SIZE, LIMIT = 100, 300
TEXT = json.dumps(
    {guid: {"format": "json", "size": SIZE, "created_at": f"2026-01-0{number + 1}T00:00:00"}
     for number, guid in enumerate(GUIDS)}, indent=2,
)  # fmt: skip

# Steps that the other one cannot notice, while there is one prune and one client. The prune's: on its draft, its lock,
# its second names. The client's: reading, since nobody else writes to a file that has the name metadata.json.
PRIVATE = {
    "prune": re.compile(
        r"(start|close .*|(open|flock|f?stat) (directory|storage|\.)|\w+ (\.prune_size\.lock|prune's \d+)|"
        r"(open|stat|unlink) \.metadata\.json\..*|link metadata\.json \.metadata\.json\.prev.*)$"
    ),
    "client": re.compile(r"start|its turn|close |read "),
}

logging.getLogger("interleavings").addHandler(logging.NullHandler())
LOG = EventLog(logging.getLogger("interleavings"))


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """Where files cost little: thousands of stores are made here."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    path = Path(tempfile.mkdtemp(prefix="interleavings-", dir=memory))
    yield path
    shutil.rmtree(path)


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Calls that change nothing which anybody sees, saved; and attempts that are forgotten with what they saw."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    for module in (survey, replace, recovery):
        monkeypatch.setattr(module, "read_stable", forgetful(reading.read_stable))
    for module in (commit, recovery):
        monkeypatch.setattr(module, "read_descriptor", forgetful(reading.read_descriptor))
    with intercepted():
        yield


def forgetful(read: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(*arguments: Any) -> Any:
        me = actor()
        if me is None:
            return read(*arguments)
        with me.forgetting():
            return read(*arguments)

    return wrapper


def prune(world: World, limit: int = LIMIT) -> int:
    """prune-size as the command runs it, on the world's clock; its exit code."""
    terms = Terms(str(world.storage), "prune-size", 0.0, 3600.0)
    job = prune_job.Job("prune", terms, plan_prune, Limits(limit, limit))
    try:
        return prune_job.run(job, VirtualClock(world), LOG).exit_code
    except StorageManagerError as error:
        return error.exit_code


class Service(Client):
    """The client, in the world; it remembers what must be in the store."""

    def __init__(self, world: World) -> None:
        super().__init__(world.storage, client_open)
        self.world = world
        self.expected: dict[str, dict[str, Any]] = json.loads(TEXT)
        """The entries of sessions that are saved and not deleted."""
        self.uncertain: set[str] = set()
        """Guids of which an operation was begun and not finished."""
        self.deleted: set[str] = set()
        self.torn_reads = 0
        self._busy: Actor | None = None
        self._next = 1

    def read(self) -> dict[str, Any]:
        me = actor()
        try:
            with self.open(self.metadata) as file:
                if me is not None:
                    me.deadline = self.world.clock_secs + REWRITE_SECS
                return json.load(file)
        except json.JSONDecodeError:
            self.torn_reads += 1
            return {}

    @contextmanager
    def alone(self, guid: str) -> Iterator[None]:
        """One operation at a time, as in one process; when that has died, nobody goes on."""
        me = actor()
        assert me is not None
        me.wait("its turn", lambda: self._busy is None or self._busy.dead)
        if self._busy is not None:
            raise Died
        self._busy = me
        self.uncertain.add(guid)
        yield
        me.deadline = None
        self.uncertain.discard(guid)
        self._busy = None

    def do_save(self) -> str:
        guid = new_guid(random.Random(f"new {self._next}"))
        created_at = f"2026-02-{self._next:02}T00:00:00"
        self._next += 1
        with self.alone(guid):
            self.save(b"x" * SIZE, guid=guid, created_at=created_at)
            self.expected[guid] = {"format": "json", "size": SIZE, "created_at": created_at}
        return guid

    def do_delete(self, guid: str) -> None:
        with self.alone(guid):
            self.deleted.add(guid)
            self.expected.pop(guid, None)
            self.delete(guid)

    def do_alias(self, guid: str, alias: str) -> None:
        with self.alone(guid):
            if guid in self.read() and guid in self.expected:
                self.register_alias(guid, alias)
                self.expected[guid].setdefault("aliases", []).append(alias)


Operation = Callable[[Service], None]
OPERATIONS: dict[str, Operation] = {
    "save": lambda service: (service.do_save(), None)[1],
    "delete a survivor": lambda service: service.do_delete(SURVIVOR),
    "delete a victim": lambda service: service.do_delete(VICTIM),
    "alias of a survivor": lambda service: service.do_alias(SURVIVOR, "latest"),
    "alias of a victim": lambda service: service.do_alias(VICTIM, "latest"),
}


def is_prune(who: Actor) -> bool:
    return who.name.startswith("prune")


# Blobs that only the prune has to do with.
UNTOUCHED = {
    name: [guid for guid in GUIDS if "delete" not in name or guid not in (VICTIM, SURVIVOR)] for name in OPERATIONS
}


class Lost(AssertionError):
    """An invariant does not hold."""


def expect(holds: object, what: str) -> None:
    if not holds:
        raise Lost(what)


def check(world: World, service: Service, victims: int, forgiven: bool = False) -> None:
    """What must hold whatever has happened, for `victims` sessions at most that the policy may have chosen.

    With `forgiven`, a change of an entry may be lost.
    """
    storage = world.storage
    on_disk = blobs(storage)
    by_age = sorted(service.expected, key=lambda guid: service.expected[guid]["created_at"])
    gone = [guid for guid in by_age if guid not in on_disk]
    expect(gone == by_age[: len(gone)] and len(gone) <= victims, f"gone without a plan: {gone} of {by_age}")
    for guid in on_disk:
        expect((storage / f"{guid}.json").stat().st_size == SIZE or guid in service.uncertain, f"changed: {guid}")
    text = (storage / "metadata.json").read_bytes()
    try:
        entries = json.loads(text)
    except ValueError:
        # Only a client that died while it wrote may leave this, and the file is its own.
        writer = world.last_writer(storage / "metadata.json")
        expect(writer is not None and writer.dead and not is_prune(writer), f"a torn file: {text!r}")
        return
    expect(service.torn_reads == 0, "a client was shown a torn file")
    forgiven = forgiven or world.coarse and any(each.dead and is_prune(each) for each in world.actors)
    for guid in on_disk.intersection(service.expected).difference(service.uncertain):
        expect(guid in entries, f"without its entry: {guid}")
        # Not promised where time stamps are coarse: a change of an entry, not its loss, beside a prune that dies.
        without_aliases = {key: value for key, value in service.expected[guid].items() if key != "aliases"}
        expect(
            entries[guid] == service.expected[guid] or (forgiven and entries[guid] == without_aliases),
            f"{guid} is {entries[guid]}, not {service.expected[guid]}",
        )


def check_afterwards(world: World, service: Service, victims: int) -> None:
    """The client goes on, and so do the prunes: all is as it should be, and nothing is left over."""
    for _ in range(2):
        before = (world.storage / "metadata.json").read_bytes()
        code = prune(world)
        check(world, service, victims)
        if code != 0:
            writer = world.last_writer(world.storage / "metadata.json")
            expect(writer is not None and writer.dead and not is_prune(writer), f"exit code {code}")
            expect((world.storage / "metadata.json").read_bytes() == before, "a torn file was touched")
            return
    left = [name for name in leftovers(world.storage) if not name.startswith(".metadata.json.torn-")]
    expect(not left, f"left over: {left}")
    used = sum(path.stat().st_size for path in world.storage.glob("*-*.json"))
    expect(used <= LIMIT, f"{used} bytes are over the limit")


class Case:
    """One execution, from its store to what is left of it."""

    def __init__(self, directory: Path, strategy: Strategy, victims: int, **options: Any) -> None:
        self.storage = Path(tempfile.mkdtemp(dir=directory)) / "storage"
        self.storage.mkdir()
        for guid in GUIDS:
            (self.storage / f"{guid}.json").write_bytes(b"x" * SIZE)
        (self.storage / "metadata.json").write_text(TEXT)
        self.world = World(self.storage, strategy, **options)
        self.service = Service(self.world)
        self.victims = victims

    def run(self) -> bool:
        """Whether it came to its end (and was not one that has been seen). Raises Lost, with the schedule."""
        try:
            self.world.run()
            if not self.world.complete:
                return False
            for each in self.world.actors:
                expect(each.error is None, f"{each.name} failed: {each.error!r}")
                if is_prune(each) and not each.dead:
                    self.expect_exit_code(each.result)
            if not any(each.dead and is_prune(each) for each in self.world.actors):
                self.check()  # else the next run has to recover first
            with self.world.left_behind():
                self.check_afterwards()
            return True
        except AssertionError as error:
            steps = "\n".join(self.world.trace[-100:])
            raise Lost(f"{error}\n{steps}\nschedule: {self.world.told()}") from error
        finally:
            shutil.rmtree(self.storage.parent)

    def check(self) -> None:
        check(self.world, self.service, self.victims)

    def check_afterwards(self) -> None:
        check_afterwards(self.world, self.service, self.victims)

    def expect_exit_code(self, code: int) -> None:
        if code == 2:
            expect(sum(map(is_prune, self.world.actors)) > 1, "busy without another prune")
        elif code == 1:
            harmed = any((each.dead or "~" in self.world.told()) and not is_prune(each) for each in self.world.actors)
            expect(harmed, "failed beside a client that goes on")
        else:
            expect(code == 0, f"exit code {code}")


def one_against_one(directory: Path, operation: str, strategy: Strategy, coarse: bool = True) -> Case:
    case = Case(directory, strategy, 2 if operation == "save" else 1, coarse=coarse)

    def private(who: Actor, label: str) -> bool:
        if not coarse and label.startswith(("pwrite", "ftruncate")):
            return False  # which file was written last can be seen
        untouched = is_prune(who) and any(guid in label for guid in UNTOUCHED[operation])
        return untouched or PRIVATE[who.name].match(label) is not None

    case.world.private = private
    case.world.add("prune", lambda: prune(case.world))
    case.world.add("client", lambda: OPERATIONS[operation](case.service))
    return case


with_a_fine_clock = partial(one_against_one, coarse=False)


def start(world: World) -> str | None:
    """Lead nowhere: the search begins at the beginning."""
    return None


def late_write(world: World) -> str | None:
    """Lead to where a client has saved into the old file: after the last look at it, before the rename."""
    prune, client = world.actors
    if not prune.next.startswith("rename"):
        return "prune"
    return "client" if client.result is None else None


def after_a_late_write(directory: Path, operation: str, strategy: Strategy) -> Case:
    """A save that overlaps the rename, and then one operation more, beside the rest of the prune and the next one."""
    case = one_against_one(directory, operation, strategy)
    case.victims = 3
    prune_actor, client = case.world.actors
    prune_actor.run = lambda: max(prune(case.world), prune(case.world))

    def both() -> None:
        client.result = case.service.do_save()
        OPERATIONS[operation](case.service)

    client.run = both
    return case


Scenario = Callable[[Path, str, Strategy], Case]


def explore(directory: Path, scenario: Scenario, operation: str, search: Search) -> int:
    """Every interleaving of a scenario; how many came to their ends. Raises Lost."""
    return sum(scenario(directory, operation, strategy).run() for strategy in search.strategies())


FATES = {
    "and nobody dies": ((), ()),
    "and the prune dies": (("prune",), ()),
    "and the client dies": (("client",), ()),
    "and the client is stopped": ((), ("client",)),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("fate", FATES)
def test_no_interleaving_of_an_operation_and_a_prune_loses_anything(
    directory: Path, exhaustive: Callable[[bool], int | None], operation: str, fate: str
) -> None:
    budget = exhaustive("nobody" in fate or operation in ("save", "alias of a survivor"))
    search = Search(*FATES[fate], budget=budget)
    ends = explore(directory, with_a_fine_clock if "alias" in operation else one_against_one, operation, search)
    print(f"{operation} {fate}: {search.executions} executions, {len(search.states)} states, {ends} ends")
    assert ends > (20 if search.budget is None else 5)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("fate", ["and nobody dies", "and the prune dies"])
def test_no_interleaving_after_a_save_that_overlaps_the_rename_loses_anything(
    directory: Path, exhaustive: Callable[[bool], int | None], operation: str, fate: str
) -> None:
    search = Search(*FATES[fate], lead=late_write, budget=exhaustive(False))
    ends = explore(directory, after_a_late_write, operation, search)
    print(f"late write, {operation} {fate}: {search.executions} executions, {len(search.states)} states, {ends} ends")
    assert ends > (20 if search.budget is None else 5)


def at_random(directory: Path, seed: int) -> Case:
    """Up to three clients, one of which may die or be stopped, and up to two prunes in each of up to two processes."""
    rng = random.Random(seed)
    clients = [f"client{number}" for number in range(rng.randint(1, 3))]
    prunes = [f"prune{number}" for number in range(rng.randint(1, 2))]
    mortal = rng.choice(((), (), (), tuple(prunes), tuple(clients)))
    lazy = tuple(clients) if rng.random() < 0.2 else ()
    case = Case(
        directory, Dice(rng, mortal, lazy), victims=1 + 3 * len(clients), coarse=rng.random() < 0.7,
        chunk=rng.choice((100, 1 << 16)),
    )  # fmt: skip
    guids = rng.sample(GUIDS, len(GUIDS))  # none is aliased twice: two changes of one entry may meet
    for name in clients:
        operations = [
            rng.choice(
                (
                    case.service.do_save,
                    partial(case.service.do_delete, rng.choice(GUIDS)),
                    partial(case.service.do_alias, guids.pop() if guids else "", "latest"),
                )
            )
            for _ in range(rng.randint(1, 3))
        ]
        case.world.add(name, lambda operations=operations: [operation() for operation in operations])
    for name in prunes:
        times = rng.randint(1, 2)
        case.world.add(name, lambda times=times: max([prune(case.world) for _ in range(times)]))
    return case


def test_no_random_order_of_several_clients_and_prunes_loses_anything(
    directory: Path, seeds: Callable[[int], range]
) -> None:
    for seed in seeds(1500):
        try:
            assert at_random(directory, seed).run()
        except AssertionError as error:
            raise AssertionError(f"--seed {seed} --cases 1: {error}") from error


# --- what the harness finds when a step of the protocol is left out -------------------------------------------


def without_salvage(patch: pytest.MonkeyPatch) -> None:
    def give_up(self: Committer, old: Old, within: Optional[PutBack]) -> None:
        unlink_previous(self.store, old.previous)

    patch.setattr(Committer, "_settle", give_up)


def without_settling(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(commit, "SETTLE_SECS", 0.0)


def without_the_check_before_the_rename(patch: pytest.MonkeyPatch) -> None:
    real_unchanged, real_is_named = Reading.unchanged, replace.is_named
    renamed = [True]
    real_examine, real_publish = Draft.examine, Draft.publish

    def examine(self: Draft) -> os.stat_result:
        renamed[0] = False
        return real_examine(self)

    def publish(self: Draft) -> None:
        renamed[0] = True
        real_publish(self)

    patch.setattr(Draft, "examine", examine)
    patch.setattr(Draft, "publish", publish)
    patch.setattr(Reading, "unchanged", lambda self: not renamed[0] or real_unchanged(self))
    patch.setattr(replace, "is_named", lambda *arguments: not renamed[0] or real_is_named(*arguments))


def without_a_stable_read(patch: pytest.MonkeyPatch) -> None:
    """Take what is there at one glance, up to the last member that is whole."""

    def glance(store: Store, patience: object, read: Callable[[bytes], Any]) -> Any:
        fd = os.open("metadata.json", os.O_RDONLY, dir_fd=store.dir_fd)
        status = os.fstat(fd)
        data = os.pread(fd, status.st_size + 1, 0)
        for text in (data, data[: data.rfind(b"}") + 1] + b"}", b"{}"):
            try:
                return Reading(store.file("metadata.json"), fd, status, data), read(text)
            except NotJson:
                continue
        raise AssertionError("{} is JSON")

    for module in (survey, replace, recovery):
        patch.setattr(module, "read_stable", glance)


def without_watching_what_is_put_back(patch: pytest.MonkeyPatch) -> None:
    def put_back(self: Committer, late: Document, base: Optional[Document], what: str, most_names: int = 4) -> bool:
        self._merge(late, base, PutBack(Patience(self.clock, 4.0, 0.0), most_names))
        return True

    patch.setattr(Committer, "put_back", put_back)


def without_awaiting_a_rewrite(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(recovery, "await_rewrite", lambda committer: None)


def without_recovery(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(locked, "recover", lambda committer: remove_leftover(committer.store) and None)


def without_a_lock(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(fcntl, "flock", lambda fd, operation: None)


@pytest.mark.parametrize(
    ("mutation", "scenario", "operation"),
    [
        (without_salvage, one_against_one, "save"),
        (without_settling, one_against_one, "save"),
        (without_a_stable_read, one_against_one, "save"),
        (without_the_check_before_the_rename, with_a_fine_clock, "alias of a survivor"),
        (without_watching_what_is_put_back, after_a_late_write, "delete a victim"),
        (without_awaiting_a_rewrite, after_a_late_write, "delete a victim"),
    ],
)
def test_an_exhaustive_search_finds_the_loss_and_its_schedule_repeats_it(
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    mutation: Callable[[pytest.MonkeyPatch], None],
    scenario: Scenario,
    operation: str,
) -> None:
    mutation(monkeypatch)
    mortal = ("prune",) if scenario is with_a_fine_clock else ()
    with pytest.raises(Lost) as found:
        lead = late_write if scenario is after_a_late_write else start
        explore(directory, scenario, operation, Search(mortal, lead=lead))
    told = str(found.value)
    schedule = read_schedule(told.rpartition("schedule: ")[2])
    with pytest.raises(Lost) as again:
        scenario(directory, operation, Systematic(Search(mortal), schedule)).run()
    assert str(again.value) == told


@pytest.mark.parametrize(
    "mutation",
    [without_a_stable_read, without_recovery, without_a_lock],
)
def test_a_random_search_finds_the_loss_and_its_seed_repeats_it(
    directory: Path, monkeypatch: pytest.MonkeyPatch, mutation: Callable[[pytest.MonkeyPatch], None]
) -> None:
    mutation(monkeypatch)
    for seed in range(1, 3000):
        try:
            at_random(directory, seed).run()
        except Lost as error:
            print(f"{mutation.__name__} {seed}: {str(error).splitlines()[0]}")
            with pytest.raises(Lost) as again:
                at_random(directory, seed).run()
            assert str(again.value) == str(error)
            return
    raise AssertionError("nothing was found")
