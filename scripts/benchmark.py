#!/usr/bin/env python3
"""Measure storage_manager against floors taken in the same run, and print the ratios.

    check   a check with nothing to do    floor: json.load, and scandir with lstat, in a bare Python
    prune   half of the sessions go       floor: find | sort | head | xargs rm of the same number of files
    start   stats and health of 1 session floor: a bare Python that imports the same of the standard library
    scale   cost of ten times as many     floor: the cost of the smaller store
    client  prunes beside a client that saves without a pause, and what that costs the client; with --client

The two of a pair run in turn. Where a run changes the store, the store is written anew before it. The median counts.
Peak memory is the largest resident set of the process. This script judges nothing, and no test uses it.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
BLOB_BYTES = 1024

FLOOR_CHECK = """
import json, os, sys
with open(os.path.join(sys.argv[1], "metadata.json")) as file:
    entries = json.load(file)
total = 0
with os.scandir(sys.argv[1]) as listing:
    for item in listing:
        total += item.stat(follow_symlinks=False).st_size
"""

# What a start of `stats` loads of the standard library; the rest comes along.
FLOOR_START = "import argparse, array, datetime, gc, json, logging, select, signal, traceback"
# A start is so short that what else the machine does counts for much.
STARTS = 25

FLOOR_PRUNE = (
    'cd "$1" && find . -maxdepth 1 -type f -name "*-*.*" -printf "%T@ %f\\n" '
    '| sort -n | head -n "$2" | cut -d" " -f2 | xargs rm -f'
)

CLIENT_SIZES = (30, 300, 3_000, 30_000)
CLIENT_PRUNES = 8

# How long the client is watched while nobody prunes: some thirty saves of 30,000 entries.
ALONE_SECS = 5

# How the service saves a session: blob, read all, write all; where nobody prunes, it keeps that many entries. Prints
# when it began, how long it took, how many entries there were, and which session it was.
CLIENT = """
import json, os, signal, sys, time, uuid
from datetime import datetime
os.chdir(sys.argv[1])
stopping = []
signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
while not stopping:
    start, guid = time.monotonic(), str(uuid.uuid4())
    with open(guid + ".json", "wb") as blob:
        blob.write(b"x" * 1024)
    try:
        with open("metadata.json") as file:
            entries = json.load(file)
    except ValueError:
        entries = {}
    entries[guid] = {"format": "json", "size": 1024, "created_at": datetime.utcnow().isoformat(), "group": "client"}
    while len(entries) > int(sys.argv[3]):
        del entries[next(iter(entries))]
    with open("metadata.json", "w") as file:
        json.dump(entries, file, indent=2)
    print(start, time.monotonic() - start, len(entries), guid, flush=True)
    time.sleep(float(sys.argv[2]))
"""


class Save(NamedTuple):
    """One of that client's; in seconds, `start` on the clock that all processes share."""

    start: float
    secs: float
    entry_count: int
    guid: str

    @property
    def end(self):
        return self.start + self.secs


# The tool on a disk that takes so many seconds longer for an fsync.
SLOW_DISK = """
import os, runpy, sys, time
secs, fsync = float(sys.argv[1]), os.fsync
def slow_fsync(fd):
    fsync(fd)
    time.sleep(secs)
os.fsync = slow_fsync
del sys.argv[:2]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def main():
    parser = argparse.ArgumentParser(description="Benchmark storage_manager against floors of the same run.")
    parser.add_argument("--sessions", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--scale", action="store_true", help="also measure ten times as many sessions")
    parser.add_argument("--client", action="store_true", help="only measure prunes beside a busy client")
    parser.add_argument("--pause", type=float, default=0.0, help="of that client between two saves, in ms")
    parser.add_argument("--directory", help="where the stores are made (default: the temporary directory)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.directory) as scratch:
        scratch = Path(scratch)
        os.environ["GOFR_DIG_HISTORY_FILE"] = str(scratch / "history")  # by default it would stay behind in /tmp
        archive, source_only = scratch / "storage_manager.pyz", scratch / "source_only.pyz"
        build = [sys.executable, ROOT / "build_zipapp.py", "--output"]
        subprocess.run([*build, archive, "--precompile"], check=True, stdout=subprocess.DEVNULL)
        subprocess.run([*build, source_only], check=True, stdout=subprocess.DEVNULL)
        if args.client:
            for fsync_ms in (0.2, 10.0):
                for sessions in CLIENT_SIZES:
                    client_benchmark(scratch, archive, sessions, fsync_ms, args.pause)
            return
        print(f"Python {sys.version.split()[0]}, {args.sessions:,} sessions, median of {args.runs} runs")
        for command in ("stats", "health"):
            start_benchmark(scratch, archive, command, command)
        start_benchmark(scratch, source_only, "stats", "source only")
        check = check_benchmark(scratch, archive, args.sessions, args.runs)
        prune = prune_benchmark(scratch, archive, args.sessions, args.runs)
        if args.scale:
            runs = max(1, args.runs // 2)
            for name, small, function in (("check", check, check_benchmark), ("prune", prune, prune_benchmark)):
                large = function(scratch, archive, 10 * args.sessions, runs)
                print(f"{name} x10: {large / small:.2f} times the cost of {args.sessions:,} sessions")


def start_benchmark(scratch, archive, command, name):
    store = scratch / "store"
    make_store(store, 1)
    exit_code = 1 if command == "health" else 0  # there is nobody's heartbeat
    tool = [sys.executable, archive, "--storage-dir", store, command]
    floor = [sys.executable, "-c", FLOOR_START]
    ours, floors, peaks = [], [], []
    for _ in range(STARTS):
        secs, peak = measured(tool, exit_code)
        ours.append(secs)
        peaks.append(peak)
        floors.append(measured(floor)[0])
    shutil.rmtree(store)
    shown(f"start {name}", ours, floors, peaks)


def check_benchmark(scratch, archive, sessions, runs):
    store = scratch / "store"
    make_store(store, sessions)
    tool = [sys.executable, archive, "--storage-dir", store, "prune-size", "--max-mb", "8000000"]
    floor = [sys.executable, "-c", FLOOR_CHECK, store]
    ours, floors, peaks = [], [], []
    for command in (tool, floor):
        measured(command)  # warm up
    for _ in range(runs):
        secs, peak = measured(tool)
        ours.append(secs)
        peaks.append(peak)
        floors.append(measured(floor)[0])
    shutil.rmtree(store)
    return shown(f"check {sessions:,}", ours, floors, peaks)


def prune_benchmark(scratch, archive, sessions, runs):
    store = scratch / "store"
    limit = f"{sessions // 2 * BLOB_BYTES}B"
    tool = [sys.executable, archive, "--storage-dir", store, "prune-size", "--max-mb", limit]
    floor = ["sh", "-c", FLOOR_PRUNE, "sh", store, str(sessions - sessions // 2)]
    ours, floors, peaks = [], [], []
    for _ in range(runs):
        for command, times in ((tool, ours), (floor, floors)):
            make_store(store, sessions)
            os.sync()
            secs, peak = measured(command)
            times.append(secs)
            if command is tool:
                peaks.append(peak)
            left = sum(1 for name in os.listdir(store) if len(name) > 37)
            assert left == sessions // 2, f"{left} blobs left"
            shutil.rmtree(store)
    return shown(f"prune {sessions:,}", ours, floors, peaks)


def client_benchmark(scratch, archive, sessions, fsync_ms, pause_ms):
    store, trail = scratch / "store", scratch / "trail"
    make_store(store, sessions)
    limit = f"{sessions * 3 // 4 * BLOB_BYTES}B"
    tool = [sys.executable, "-W", "ignore", "-c", SLOW_DISK, str(fsync_ms / 1000), archive, "--storage-dir", store]
    client = [sys.executable, "-W", "ignore", "-c", CLIENT, store, str(pause_ms / 1000)]
    prunes, codes, deferred, deleted = [], [], 0, set()
    with open(trail, "w+") as saves:
        process = subprocess.Popen([*client, str(10**9)], stdout=saves)
        for _ in range(CLIENT_PRUNES):
            time.sleep(1)
            start = time.monotonic()
            done = subprocess.run([*tool, "prune-size", "--max-mb", limit], capture_output=True, text=True)
            prunes.append((start, time.monotonic()))
            codes.append(done.returncode)
            events = [json.loads(line) for line in done.stderr.splitlines()]
            deferred += any(event["event"] == "storage_manager.commit_deferred" for event in events)
            deleted |= {event["guid"] for event in events if event["event"].endswith(".deleted")}
        saved = stop(process, saves)
    # With nobody about: what was put off is done now.
    subprocess.run([*tool, "prune-size", "--max-mb", "1P"], check=True, capture_output=True)
    entries = json.loads((store / "metadata.json").read_text())
    lost = sum(save.guid not in entries for save in saved if save.guid not in deleted)
    dangling = sum(guid in entries for guid in deleted)
    shutil.rmtree(store)
    # Between the prunes nobody is in a save's way.
    beside = [save for save in saved if any(save.start < end and save.end > start for start, end in prunes)]
    # A save takes the longer the more entries there are: without us, at the least and the most that there were.
    counts = sorted(save.entry_count for save in beside)
    few, many = counts[len(counts) // 10], counts[-1 - len(counts) // 10]
    alone = {}
    for entry_count in (few, many):
        make_store(store, entry_count)
        with open(trail, "w+") as saves:
            process = subprocess.Popen([*client, str(entry_count)], stdout=saves)
            time.sleep(ALONE_SECS)
            alone[entry_count] = [save.secs for save in stop(process, saves)]
        shutil.rmtree(store)
    base = median(alone[few])
    # Where the counts differ little, the difference of two medians is chance: no line through them goes below zero.
    slope = max(0.0, median(alone[many]) - base) / max(1, many - few)
    slower = median([save.secs / (base + slope * max(0, save.entry_count - few)) for save in beside])
    worst, worst_alone = 1000 * max(save.secs for save in beside), 1000 * max([*alone[few], *alone[many]])
    lasted = [end - start for start, end in prunes]
    print(
        f"client {sessions:<7,} fsync {fsync_ms:4.1f} ms, pause {pause_ms:2.0f} ms   prune {median(lasted):5.2f} s, "
        f"worst {max(lasted):5.2f} s, exit codes {sorted(set(codes))}, {deferred} of {CLIENT_PRUNES} deferred, "
        f"{lost} lost, {dangling} dangling   save {slower:4.2f} times, worst {worst:6.1f} ms; without us "
        f"{worst_alone:6.1f} ms",
        flush=True,
    )


def stop(process, saves):
    """What the client has printed by the end of its last save."""
    process.send_signal(signal.SIGTERM)
    process.wait()
    saves.seek(0)
    lines = map(str.split, saves)
    return [Save(float(start), float(secs), int(count), guid) for start, secs, count, guid in lines]


def measured(command, exit_code=0):
    """(seconds, peak MiB) of a command whose output nobody reads."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    secs = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == exit_code, f"{command} ended with {process.returncode}"
    return secs, usage.ru_maxrss / 1024


def shown(name, ours, floors, peaks):
    ratios = sorted(ours_secs / floor_secs for ours_secs, floor_secs in zip(ours, floors))
    print(
        f"{name:<17} {median(ours):7.3f} s   floor {median(floors):7.3f} s   ratio {median(ratios):5.2f} "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f})   peak {max(peaks):.0f} MiB",
        flush=True,
    )
    return median(ours)


def median(values):
    return sorted(values)[len(values) // 2]


def make_store(store, sessions):
    """In a process of its own: what this one has grown to would count as the peak of those it starts."""
    child = os.fork()
    if child == 0:
        write_store(store, sessions)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, "cannot write the store"


def write_store(store, sessions):
    store.mkdir()
    rng = random.Random(sessions)
    created = datetime(2026, 1, 1)
    entries = {}
    blob = b"x" * BLOB_BYTES
    for number in range(sessions):
        guid = str(uuid.UUID(int=rng.getrandbits(128), version=4))
        created += timedelta(microseconds=rng.randrange(1, 60_000_000))
        entries[guid] = {
            "format": "json",
            "size": BLOB_BYTES,
            "created_at": created.isoformat(),
            "group": f"group-{number % 10}",
        }
        handle = os.open(store / f"{guid}.json", os.O_WRONLY | os.O_CREAT, 0o644)
        os.write(handle, blob)
        os.close(handle)
    with open(store / "metadata.json", "w") as file:
        json.dump(entries, file, indent=2)


if __name__ == "__main__":
    main()
