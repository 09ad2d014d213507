"""Killed at every call that changes something: nothing is lost, and the next prune clears up."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from client import Client
from stores import blobs, clean_environment, leftovers, make_store, read_entries, write_entries

from storage_manager import commit
from storage_manager.cli import main
from storage_manager.clock import Clock

PREV = ".metadata.json.prev"
COUNT, LIMIT, VICTIMS = 8, "5000B", 3

# Runs prunes in children of its own, each on a store of its own, each killed right before or right after another
# call of what changes a file; number 0 runs through and says how many calls there were. With "overlap" a client
# opens metadata.json for a save before the rename and has written it right after; its calls do not count.
DRIVER = """
import json, os, signal, sys
from storage_manager import cli, commit, pruner
moment, scenario, limit = sys.argv[1:4]
storage, number, count = "", 0, 0
commit.SETTLE_SECS = 0.0
os.fsync = lambda fd: None  # it matters when the machine dies, not when a process does; and it takes its time
if scenario == "often":
    pruner.COMMIT_EVERY_SECS = 0.0
def counted(real):
    def call(*arguments, **options):
        global count
        count += 1
        if count == number and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            return real(*arguments, **options)
        finally:
            if count == number and moment == "after":
                os.kill(os.getpid(), signal.SIGKILL)
    return call
def overlapped(real):
    def rename(source, *arguments, **options):
        path = os.path.join(storage, "metadata.json")
        saved = os.path.join(storage, "..", "save.json")
        if source != ".metadata.json.tmp" or not os.path.exists(saved):
            return real(source, *arguments, **options)
        with open(path) as file:
            entries = json.load(file)
        with open(saved) as file:
            entries.update(json.load(file))
        os.replace(saved, saved + ".done")
        with open(path, "w") as file:
            real(source, *arguments, **options)
            json.dump(entries, file, indent=2)
    return rename
def run():
    os.rename = overlapped(os.rename) if scenario == "overlap" else os.rename
    for name in ("unlink", "rename", "link", "fsync", "open", "pwrite", "ftruncate", "fchown", "fchmod", "utime"):
        setattr(os, name, counted(getattr(os, name)))
    code = cli.main(["--storage-dir", storage, "--log-level", "ERROR", "prune-size", "--max-mb", limit])
    return count if code == 0 else 0
for job in sys.argv[4:]:
    number, storage = int(job.split(":", 1)[0]), job.split(":", 1)[1]
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        os.write(writer, str(run()).encode())
        os._exit(0)
    os.close(writer)
    said = os.read(reader, 100).decode()
    os.close(reader)
    status = os.waitpid(child, 0)[1]
    sys.stderr.write("%d %d %s\\n" % (number, os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, said))
"""


def drive(jobs: list[tuple[int, Path]], moment: str, scenario: str) -> list[tuple[int, int, int]]:
    """Run a prune for each (call to be killed at, store): (call, signal it died of, how many calls it made)."""
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, moment, scenario, LIMIT, *(f"{number}:{storage}" for number, storage in jobs)],
        env=clean_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=60, check=True,
    )  # fmt: skip
    lines = [(line.split() + ["0"])[:3] for line in done.stderr.splitlines()]
    assert len(lines) == len(jobs), done.stderr
    return [(int(number), int(signum), int(count)) for number, signum, count in lines]


def prune(storage: Path) -> int:
    """A normal prune, in this process: a new one for each of hundreds of kills would take too long."""
    try:
        return main(["--storage-dir", str(storage), "--log-level", "ERROR", "prune-size", "--max-mb", LIMIT])
    finally:
        gc.enable()


def fresh(storage: Path) -> list[str]:
    return make_store(storage, COUNT)


def overlapped(storage: Path) -> list[str]:
    """A store, a session that a client has not finished to save, and what it is about to write."""
    guids = make_store(storage, COUNT)
    client = Client(storage)
    before = client.metadata.read_bytes()
    late = client.save(b"")
    (storage.parent / "save.json").write_text(json.dumps({late: client.read()[late]}))
    client.metadata.write_bytes(before)
    return [*guids, late]


def unfinished(storage: Path) -> list[str]:
    """What a run leaves that was killed after its rename, while a client saved, and an earlier one's draft."""
    guids = make_store(storage, COUNT)
    entries = read_entries(storage)
    (storage / PREV).write_text(json.dumps(entries, indent=2))
    (storage / ".metadata.json.tmp").write_text("{")
    (storage / ".prune_size.lock").write_text('{"pid": 1}\n')
    write_entries(storage, {guid: entries[guid] for guid in guids[:-2]})
    return guids


def kill_at_each_call(
    tmp_path: Path, make: Callable[[Path], list[str]], scenario: str, moment: str
) -> list[tuple[int, Path, list[str]]]:
    """Runs killed at the 1st, 2nd, ... call; checks what holds right after each kill."""
    template = tmp_path / "template"
    guids = make(template / "storage")

    def store(name: str) -> Path:
        copy = tmp_path / name
        shutil.copytree(template, copy)
        return copy / "storage"

    ((_, _, total),) = drive([(0, store("whole"))], moment, scenario)
    assert total > 20
    runs = [(number, store(f"killed-{number}")) for number in range(1, total + 1)]
    with ThreadPoolExecutor(2) as pool:
        results = [*pool.map(lambda half: drive(half, moment, scenario), (runs[::2], runs[1::2]))]
    for number, signum, _ in results[0] + results[1]:
        assert signum == signal.SIGKILL, f"the run to be killed at call {number} ended by itself"
    return [(number, storage, guids) for number, storage in runs]


SCENARIOS: dict[str, Callable[[Path], list[str]]] = {
    "plain": fresh,
    "often": fresh,
    "overlap": overlapped,
    "recovery": unfinished,
}


@pytest.mark.parametrize(
    ("scenario", "moment"),
    # Right after a call is right before the next one, mostly; two scenarios are enough to see it.
    [*((scenario, "before") for scenario in SCENARIOS), ("plain", "after"), ("overlap", "after")],
)
def test_a_prune_killed_at_any_call_loses_nothing_and_the_next_one_clears_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], scenario: str, moment: str
) -> None:
    monkeypatch.setattr(Clock, "install", lambda self: None)
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(commit, "WATCH_SECS", 0.0)
    monkeypatch.setattr(commit, "SETTLE_SECS", 0.0)  # nobody writes beside the prunes that follow the kills
    runs = kill_at_each_call(tmp_path, SCENARIOS[scenario], scenario, moment)
    for number, storage, guids in runs:
        where = f"{scenario}, killed {moment} call {number}"
        survivors = guids[VICTIMS:COUNT]
        saved = guids[COUNT:]
        entries = json.loads((storage / "metadata.json").read_text())
        present = blobs(storage)
        assert set(survivors) <= present, where
        if scenario != "recovery":  # there two of them are still in the old file alone
            assert set(survivors) <= set(entries), where
        client = Client(storage)
        if scenario == "overlap" and (storage.parent / "save.json").exists():
            # Killed before its turn came: the client finishes on its own.
            client.write({**client.read(), **json.loads((storage.parent / "save.json").read_text())})
        new = [client.save(b"n" * 1000), client.save(b"n" * 1000)]
        assert prune(storage) == 0, where + capfd.readouterr().err
        # Two sessions more, so the five oldest are over the limit, however far the killed run had come.
        expected = {*guids[VICTIMS + 2 : COUNT], *saved, *new}
        entries = read_entries(storage)
        assert set(entries) == expected, where
        assert blobs(storage) == expected, where
        if leftovers(storage):  # kept until it is certain that a merge stays
            assert scenario in ("overlap", "recovery"), where
            assert prune(storage) == 0, where
        assert leftovers(storage) == [], where
        assert {name for name in os.listdir(storage) if not name.startswith(".")} == {
            "metadata.json", *(f"{guid}.json" for guid in expected)
        }, where  # fmt: skip
