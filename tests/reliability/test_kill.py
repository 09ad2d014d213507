"""Killed at any call that changes something, and killed again: nothing is lost, and the next runs clear up."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import faults
import pytest
from faults import (
    Call,
    Overlap,
    Pauses,
    Scene,
    act,
    check,
    clone,
    expect_convergence,
    intercepted,
    looks,
    made,
    run_main,
)
from stores import ROOT, clean_environment

from storage_manager.jobs import prune as prune_job

pauses, room = faults.pauses, faults.room


class Scenario(NamedTuple):
    make: Callable[[Path], Scene]
    often: bool = False
    """Whether there is a commit after each deletion."""
    hard_links: bool = True
    kills: int = 2
    """How many kills in a row are tried."""


ALL = 1000
SCENARIOS = {
    "prune": Scenario(faults.plain),
    "prune committing often": Scenario(faults.plain, often=True, kills=1),
    "prune without hard links": Scenario(faults.plain, hard_links=False),
    "prune and overlapping save": Scenario(faults.overlap, kills=ALL),
    "prune committing often and overlapping save": Scenario(faults.overlap, often=True, kills=1),
    "purge": Scenario(faults.purge),
    "purge and overlapping save": Scenario(faults.purge_overlap),
    "recovery of all kinds": Scenario(faults.left),
    "recovery of several files": Scenario(faults.several),
    "recovery of as many files as there can be": Scenario(faults.crowded, kills=1),
    "recovery of metadata that is missing": Scenario(faults.missing),
    "recovery of a second name": Scenario(faults.twice),
    "recovery of a torn file": Scenario(faults.torn),
    "adoption": Scenario(faults.with_orphans),
    "adoption and overlapping save": Scenario(faults.orphans_and_overlap),
    "adoption without metadata": Scenario(faults.nothing_but_orphans),
    "purge of orphans": Scenario(faults.orphans_to_purge),
    "repair": Scenario(faults.to_repair),
    "adopting cycle": Scenario(faults.adopting_cycle),
    "adopting cycle and overlapping save": Scenario(faults.adopting_cycle_and_overlap, kills=1),
    "purging cycle": Scenario(faults.purging_cycle),
    "purging cycle and overlapping save": Scenario(faults.purging_cycle_and_overlap, kills=1),
}

Around = Callable[[Call, Callable[..., Any]], Any]


class State(NamedTuple):
    """A store as kills have left it, and how far the client is."""

    storage: Path
    where: str
    overlap: str
    text: str = ""
    """What the overlapping client has still to write."""
    acted: bool = False
    kills: int = 0

    def client(self, storage: Path, scene: Scene) -> Overlap:
        client = Overlap(storage, scene, self.overlap)
        if self.overlap == "writing":
            client.resume(self.text)
        return client


class Trial:
    """One scenario: its first state, and runs on copies of states."""

    def __init__(self, room: Path, name: str, pauses: Pauses, patch: pytest.MonkeyPatch) -> None:
        self.scenario = SCENARIOS[name]
        self.work = room / "work"
        self.pauses = pauses
        self.scene = made(self.scenario.make, room / "template")
        for variable, value in self.scene.environ.items():
            patch.setenv(variable, value)
        self.start = State(room / "template", name, "waiting" if self.scene.overlapping else "done")
        if self.scenario.often:
            patch.setattr(prune_job, "COMMIT_EVERY_SECS", 0.0)

    def run(self, client: Overlap, around: Around) -> int:
        """A run on the work store. `around` makes each call that changes something."""

        def handler(call: Call, go: Callable[..., Any]) -> Any:
            if call.name == "link" and not self.scenario.hard_links:
                raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
            client.handle(call)
            return around(call, go) if call.changes else go()

        self.pauses.action = client.finish
        try:
            with intercepted(self.work, handler):
                return run_main(self.work, self.scene.arguments)
        finally:
            self.pauses.action = lambda: None

    def moments(self, state: State, at: Callable[[int, str, State], None]) -> None:
        """Run through on a copy of a state, and stop at each moment at which a kill would leave something else.

        `at` is given the call's number, `before` or `after`, and what the store is then (in the work directory).
        """
        clone(state.storage, self.work)
        client = state.client(self.work, self.scene)
        number = 0

        def note(moment: str, call: Call) -> None:
            where = f"{state.where}; killed {moment} call {number}, {call}"
            at(number, moment, State(self.work, where, client.state, client.text, state.acted, state.kills + 1))

        def around(call: Call, go: Callable[..., Any]) -> Any:
            nonlocal number
            number += 1
            if number == 1 or self.scene.overlapping:  # the client does something in between
                note("before", call)
            try:
                return go()
            finally:
                note("after", call)

        code = self.run(client, around)
        client.finish()
        # An adoption that finds no orphans leaves what else is there, and says so.
        assert code == 0 or self.scene.arguments == faults.ADOPT, state.where

    def kill(self, number: int, moment: str) -> None:
        """A run on a copy of the first state, in a process of its own that is killed there."""
        clone(self.start.storage, self.work)
        count = 0

        def around(call: Call, go: Callable[..., Any]) -> Any:
            nonlocal count
            count += 1
            if (count, moment) == (number, "before"):
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return go()
            finally:
                if (count, moment) == (number, "after"):
                    os.kill(os.getpid(), signal.SIGKILL)

        child = os.fork()
        if not child:
            try:
                self.run(self.start.client(self.work, self.scene), around)
            finally:
                os._exit(0)
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, f"not killed {moment} call {number}"


# The others are made of the same calls.
REALLY_KILLED = ("prune", "prune and overlapping save", "purge", "recovery of all kinds", "recovery of a torn file",
                 "recovery of metadata that is missing", "adoption without metadata", "repair", "adopting cycle",
                 "purging cycle")  # fmt: skip


@pytest.mark.parametrize("name", REALLY_KILLED)
def test_a_run_killed_at_any_call_leaves_what_was_done_until_then(
    room: Path,
    pauses: Pauses,
    monkeypatch: pytest.MonkeyPatch,
    sample: Callable[[Iterable[int]], list[int]],
    name: str,
) -> None:
    """So that the test below need not kill a process for each state that it tries."""
    trial = Trial(room, name, pauses, monkeypatch)
    expected: dict[tuple[int, str], str] = {}
    trial.moments(trial.start, lambda number, moment, _: expected.update({(number, moment): looks(trial.work)}))
    total = max(number for number, _ in expected)
    assert total >= 20
    for number in sample(range(1, total + 1)):
        for moment in ("before", "after"):
            trial.kill(number, moment)
            known = expected.get((number, moment)) or expected[number - 1, "after"]
            assert looks(trial.work) == known, f"killed {moment} call {number}"


@pytest.mark.parametrize("name", SCENARIOS)
def test_nothing_is_lost_by_kills_and_the_next_runs_clear_up(
    room: Path, pauses: Pauses, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Each store that kills in a row can leave, also with a client at work after the first: it is whole to a client
    that reads it, and as if nothing had happened once the client has worked on and the next runs have ended."""
    trial = Trial(room, name, pauses, monkeypatch)
    seen: set[tuple[str, str, bool]] = set()
    queue: list[State] = []

    def add(state: State) -> None:
        key = (looks(state.storage), state.overlap, state.acted)
        if key not in seen:
            seen.add(key)
            copy = room / f"state-{len(seen)}"
            clone(state.storage, copy)
            queue.append(state._replace(storage=copy))

    add(trial.start)
    while queue:
        state = queue.pop(0)
        check(state.storage, trial.scene, state.where, state.acted, writing=state.overlap == "writing")
        if state.kills < trial.scenario.kills:
            trial.moments(state, lambda number, moment, after: add(after))
        clone(state.storage, trial.work)
        client = state.client(trial.work, trial.scene)
        if state.overlap == "writing":
            client.finish()
            where = f"{state.where}; the client finishes"
            add(state._replace(storage=trial.work, where=where, overlap="done"))
        elif state.kills == 1 and not state.acted:
            act(trial.work, trial.scene)
            add(state._replace(storage=trial.work, where=f"{state.where}; a client works", acted=True))
            clone(state.storage, trial.work)
        expect_convergence(trial.work, trial.scene, client, state.where, state.acted)


# Looks at what it is given, and says which calls the watching has seen.
WATCHED = """
import sys
from pathlib import Path
import pytest, faults
faults.Pauses(pytest.MonkeyPatch())
def note(call, go):
    if call.changes:
        print(call.name)
    return go()
storage = Path(sys.argv[1])
with faults.intercepted(storage, note, sync=True):
    code = faults.run_main(storage, sys.argv[2:])
sys.exit(code)
"""
KERNEL_NAMES = {
    "open": "openat", "pwrite": "pwrite64", "utime": "utimensat", "unlink": "unlinkat", "rename": "renameat",
    "link": "linkat", "setxattr": "fsetxattr", "removexattr": "fremovexattr",
}  # fmt: skip
LOOKING = {
    "newfstatat", "fstat", "fstatfs", "statx", "stat", "lstat", "access", "faccessat", "faccessat2", "close", "read",
    "pread64",
    "lseek", "getdents64", "fgetxattr", "flistxattr", "fcntl", "ioctl", "dup", "dup3", "readlink",
}  # fmt: skip


@pytest.mark.parametrize("name", ["prune", "purge", "recovery of all kinds", "recovery of a torn file"])
def test_no_call_that_changes_the_store_is_missed(tmp_path: Path, name: str) -> None:
    """What the kernel is asked for on the store, as strace sees it, is what the kills above are tried at."""
    strace = shutil.which("strace")
    if strace is None or subprocess.run([strace, "true"], capture_output=True, check=False).returncode:
        pytest.skip("strace is not there, or may trace nothing")
    storage = tmp_path / "storage"
    scene = made(SCENARIOS[name].make, storage)
    done = subprocess.run(
        [strace, "-f", "-y", "-s", "0", "-e", "trace=%file,%desc", "-e", "signal=none", "-o", str(tmp_path / "trace"),
         sys.executable, "-c", WATCHED, str(storage), *scene.arguments],
        env=clean_environment({"PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'support'}"}),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen = [KERNEL_NAMES.get(line, line) for line in done.stdout.splitlines() if " " not in line]
    changes = []
    for line in (tmp_path / "trace").read_text().splitlines():
        name = line.split()[1].partition("(")[0]
        if f"{storage}/" not in line and f"{storage}>" not in line or name in LOOKING:
            continue
        if name != "openat" or "O_CREAT" in line or "O_TRUNC" in line:
            changes.append(name)
    assert changes == seen
