"""Every order of the system calls of an adoption and its client, and random ones of all repairs: nothing is lost."""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import test_interleavings
from interleaving import Actor, Dice, Search, Strategy, VirtualClock, World
from stores import blobs, leftovers
from test_interleavings import (
    FATES,
    GUIDS,
    LOG,
    PRIVATE,
    SIZE,
    SURVIVOR,
    Case,
    Lost,
    Service,
    check,
    expect,
    prune,
)

from storage_manager import config
from storage_manager.base.errors import StorageManagerError
from storage_manager.config import read_settings
from storage_manager.jobs import orphans, policy, repair
from storage_manager.jobs import prune as prune_job
from storage_manager.jobs.progress import Progress
from storage_manager.jobs.work import Terms
from storage_manager.loop import housekeeper
from storage_manager.loop.cycle import Turn
from storage_manager.store import commit, inventory
from storage_manager.store.draft import Draft

directory, quiet = test_interleavings.directory, test_interleavings.quiet

# Of the four sessions, the first has lost its entry; in the random search, so has the second.
ORPHAN = GUIDS[0]
HOUR_SECS = 3600.0


@pytest.fixture(autouse=True)
def forgetful_guard(quiet: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit, "WATCH_SECS", 0.0)
    monkeypatch.setattr(orphans, "read_document", test_interleavings.forgetful(orphans.read_document))


def terms(world: World) -> repair.Terms:
    return Terms(str(world.storage), "check", 0.0, HOUR_SECS)


def exit_code_of(run: Callable[[], Any]) -> int:
    try:
        run()
    except StorageManagerError as error:
        return error.exit_code
    return 0


def adopt(world: World) -> int:
    return exit_code_of(lambda: repair.adopt(terms(world), "lost", VirtualClock(world), LOG))


def mend(world: World) -> int:
    return exit_code_of(lambda: repair.repair(terms(world), VirtualClock(world), LOG))


def purge_orphans(world: World) -> int:
    limits = policy.Limits(max_age_days=0.01)
    job = prune_job.Job("purge", terms(world)._replace(command="purge"), policy.plan_orphan_purge, limits)
    return exit_code_of(lambda: prune_job.run(job, VirtualClock(world), LOG))


def cycle(world: World, rule: str) -> int:
    """A cycle of the loop, which prunes, too. That it holds a purge is no failure."""
    names = {"MAX_STORAGE_MB": f"{test_interleavings.LIMIT}B", "ORPHANS": rule, "HISTORY_FILE": "off"}
    environ = {f"GOFR_DIG_{name}": value for name, value in names.items()}
    settings, _ = read_settings(environ, str(world.storage), None)
    clock = VirtualClock(world)
    ending = housekeeper._cycle(Turn(settings, clock, LOG, Progress(), False))
    return 0 if "would have to go, beside only" in ending.sentence else ending.exit_code


def adopting_cycle(world: World) -> int:
    return cycle(world, "adopt:lost")


def purging_cycle(world: World) -> int:
    return cycle(world, "purge:0.02")


CYCLES = {"an adopting": adopting_cycle, "a purging": purging_cycle}


def alias_of_the_orphan(service: Service) -> None:
    """Of what the client has seen as a session, it may change the entry."""
    with service.alone(ORPHAN):
        entry = service.read().get(ORPHAN)
        if entry is not None:
            service.register_alias(ORPHAN, "latest")
            service.expected[ORPHAN] = {**entry, "aliases": ["latest"]}


OPERATIONS: dict[str, Callable[[Service], Any]] = {
    "save": lambda service: service.do_save(),
    "delete a survivor": lambda service: service.do_delete(SURVIVOR),
    "delete the orphan": lambda service: service.do_delete(ORPHAN),
    "alias of a survivor": lambda service: service.do_alias(SURVIVOR, "latest"),
    "alias of the orphan": alias_of_the_orphan,
}


class OrphanCase(Case):
    """A store whose oldest sessions have lost their entries; all that may go is what `victims` and the purge allow."""

    def __init__(self, directory: Path, strategy: Strategy, lost: list[str], victims: int = 0, **options: Any) -> None:
        super().__init__(directory, strategy, victims, **options)
        self.orphans = lost
        self.may_go: set[str] = set()
        for guid in lost:
            del self.service.expected[guid]
            label = self.world.know(os.lstat(self.storage / f"{guid}.json"))
            self.world.versions[label] = -HOUR_SECS, 0
        (self.storage / "metadata.json").write_text(json.dumps(self.service.expected, indent=2))

    def check(self) -> None:
        # Not promised: a change of an entry, beside a client that is stopped in it and then works on.
        check(self.world, self.service, self.victims, forgiven="~" in self.world.told())
        gone = set(self.orphans) - blobs(self.storage) - self.may_go - self.service.deleted
        expect(not gone, f"orphans are gone: {gone}")

    def check_afterwards(self) -> None:
        """Another adoption and another repair: each blob is a session, each entry has one, and nothing is left."""
        for _ in range(2):
            codes = adopt(self.world), mend(self.world)
            self.check()
            if any(codes):
                writer = self.world.last_writer(self.storage / "metadata.json")
                expect(writer is not None and writer.dead and not writer.name.startswith("prune"), f"codes {codes}")
                return
        entries = json.loads((self.storage / "metadata.json").read_text())
        young = blobs(self.storage) - set(self.orphans)  # saves that died are in flight
        expect(set(entries) <= blobs(self.storage) <= set(entries) | young, f"{set(entries)} and {blobs(self.storage)}")
        for guid in set(self.orphans) & set(entries):
            entry = {key: value for key, value in entries[guid].items() if key != "aliases"}
            expected = {"format": "json", "size": SIZE, "created_at": "2026-05-31T23:00:00", "group": "lost"}
            expect(entry == expected, f"{guid} is {entry}")
        left = [name for name in leftovers(self.storage) if not name.startswith(".metadata.json.torn-")]
        expect(not left, f"left over: {left}")


def adoption(directory: Path, operation: str, strategy: Strategy, run: Callable[[World], int] = adopt) -> OrphanCase:
    """Or a cycle, for which the three sessions and the orphan are one too many."""
    victims = 0 if run is adopt else 1 + (operation == "save")
    case = OrphanCase(directory, strategy, [ORPHAN], victims)
    case.may_go = {ORPHAN} if run is purging_cycle else set()

    def private(who: Actor, label: str) -> bool:
        touched = {"delete a survivor": SURVIVOR, "delete the orphan": ORPHAN}.get(operation)
        untouched = who.name == "prune" and any(guid in label for guid in GUIDS if guid != touched)
        return untouched or PRIVATE[who.name].match(label) is not None

    case.world.private = private
    case.world.add("prune", lambda: run(case.world))
    case.world.add("client", lambda: OPERATIONS[operation](case.service))
    return case


def explore(directory: Path, operation: str, search: Search, run: Callable[[World], int] = adopt) -> int:
    return sum(adoption(directory, operation, strategy, run).run() for strategy in search.strategies())


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("fate", FATES)
def test_no_interleaving_of_an_operation_and_an_adoption_loses_anything(
    directory: Path, exhaustive: Callable[[bool], int | None], operation: str, fate: str
) -> None:
    search = Search(*FATES[fate], budget=exhaustive(operation == "alias of the orphan" and "nobody" in fate))
    ends = explore(directory, operation, search)
    print(f"{operation} {fate}: {search.executions} executions, {len(search.states)} states, {ends} ends")
    assert ends > (20 if search.budget is None else 5)


@pytest.mark.parametrize("run", CYCLES)
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("fate", ["and nobody dies", "and the prune dies"])
def test_no_interleaving_of_an_operation_and_a_cycle_loses_anything(
    directory: Path, exhaustive: Callable[[bool], int | None], operation: str, fate: str, run: str
) -> None:
    search = Search(*FATES[fate], budget=exhaustive(False))
    ends = explore(directory, operation, search, CYCLES[run])
    print(f"{run} cycle, {operation} {fate}: {search.executions} executions, {len(search.states)} states, {ends} ends")
    assert ends > 1  # of an alias of what is purged there are no more


ONE_SHOT = (adopt, adopt, mend, purge_orphans, prune)
PRUNING = {prune, adopting_cycle, purging_cycle}


def at_random(directory: Path, seed: int, choices: tuple[Callable[[World], int], ...] = ONE_SHOT) -> OrphanCase:
    """Up to two clients, and up to two runs in each of up to two processes; of either kind, some may die."""
    rng = random.Random(seed)
    runs = [f"prune{number}" for number in range(rng.randint(1, 2))]
    kinds = [[rng.choice(choices) for _ in range(rng.randint(1, 2))] for _ in runs]
    every = [kind for each in kinds for kind in each]
    # With two clients at work, a session may come into the store after a younger one has been pruned.
    clients = [f"client{number}" for number in range(1 if PRUNING.intersection(every) else rng.randint(1, 2))]
    mortal = rng.choice(((), (), (), tuple(runs), tuple(clients)))
    lazy = tuple(clients) if rng.random() < 0.2 else ()
    case = OrphanCase(
        directory, Dice(rng, mortal, lazy), GUIDS[:2], victims=99 if PRUNING.intersection(every) else 0,
        coarse=rng.random() < 0.7, chunk=rng.choice((100, 1 << 16)),
    )  # fmt: skip
    if PRUNING.intersection(every) or purge_orphans in every:
        case.may_go = set(GUIDS[:2])
    if rng.random() < 0.5:  # an entry whose blob is gone
        entries = {**case.service.expected, GUIDS[1]: {"format": "md", "created_at": "2026-01-01T00:00:00"}}
        entries["99999999-9999-4999-8999-999999999999"] = entries.pop(GUIDS[1])
        (case.storage / "metadata.json").write_text(json.dumps(entries, indent=2))
    guids = rng.sample(GUIDS[2:], 2)  # none is aliased twice: two changes of one entry may meet
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
    for name, chosen in zip(runs, kinds):
        case.world.add(name, lambda chosen=chosen: max([run(case.world) for run in chosen]))
    return case


def test_no_random_order_of_clients_and_repairs_loses_anything(directory: Path, seeds: Callable[[int], range]) -> None:
    for seed in seeds(400):
        try:
            assert at_random(directory, seed).run()
        except AssertionError as error:
            raise AssertionError(f"--seed {seed} --cases 1: {error}") from error


def test_no_random_order_of_clients_and_cycles_loses_anything(directory: Path, seeds: Callable[[int], range]) -> None:
    choices = (adopting_cycle, purging_cycle, adopting_cycle, purging_cycle, prune)
    for seed in seeds(400):
        try:
            assert at_random(directory, seed, choices).run()
        except AssertionError as error:
            raise AssertionError(f"--seed {seed} --cases 1: {error}") from error


class FirstService(Service):
    """A client that may find no metadata.json."""

    def read(self) -> dict[str, Any]:
        try:
            return super().read()
        except FileNotFoundError:
            return {}


def creation(directory: Path, seed: int) -> OrphanCase:
    """A store without metadata.json: the client may make one at any moment, too."""
    rng = random.Random(seed)
    mortal = rng.choice(((), ("prune",)))
    case = OrphanCase(directory, Dice(rng, mortal), [ORPHAN], coarse=rng.random() < 0.7)
    case.service, sessions = FirstService(case.world), case.service.expected
    for guid in sessions:
        (case.storage / f"{guid}.json").unlink()
    case.service.expected.clear()
    (case.storage / "metadata.json").unlink()
    case.world.add("prune", lambda: adopt(case.world))
    case.world.add("client", case.service.do_save)
    return case


def test_no_random_order_of_a_save_and_the_creation_of_metadata_loses_anything(
    directory: Path, seeds: Callable[[int], range]
) -> None:
    for seed in seeds(200):
        try:
            assert creation(directory, seed).run()
        except AssertionError as error:
            raise AssertionError(f"--seed {seed} --cases 1: {error}") from error


# --- what the harness finds when a step is left out -----------------------------------------------------------


def by_a_rename(patch: pytest.MonkeyPatch) -> None:
    def publish_new(self: Draft) -> None:
        directory = self._store.dir_fd
        os.rename(".metadata.json.tmp", "metadata.json", src_dir_fd=directory, dst_dir_fd=directory)
        self._close()

    patch.setattr(Draft, "publish_new", publish_new)


def test_what_would_replace_what_a_client_creates_is_found(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_a_rename(monkeypatch)
    with pytest.raises(Lost, match="without its entry"):
        for seed in range(2000):
            creation(directory, seed).run()


def test_a_cycle_that_purges_what_is_in_flight_is_found(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory, "IN_FLIGHT_AGE", timedelta(0))
    monkeypatch.setattr(config, "SHORTEST_MAX_AGE_DAYS", 0.0)
    every = lambda world: cycle(world, "purge:0")  # noqa: E731
    monkeypatch.setattr(sys.modules[__name__], "PRUNING", {every})
    with pytest.raises(Lost, match="gone without a plan"):
        for seed in range(2000):
            at_random(directory, seed, (every,)).run()
