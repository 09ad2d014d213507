#!/usr/bin/env python3
"""Measure storage_manager against floors taken in the same run, and print the ratios.

    check   a check with nothing to do    floor: json.load, and scandir with lstat, in a bare Python
    prune   half of the sessions go       floor: find | sort | head | xargs rm of the same number of files
    scale   cost of ten times as many     floor: the cost of the smaller store

The two of a pair run in turn. Where a run changes the store, the store is written anew before it. The median counts.
Peak memory is the largest resident set of the process. This script judges nothing, and no test uses it.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from datetime import datetime, timedelta
from pathlib import Path

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

FLOOR_PRUNE = (
    'cd "$1" && find . -maxdepth 1 -type f -name "*-*.*" -printf "%T@ %f\\n" '
    '| sort -n | head -n "$2" | cut -d" " -f2 | xargs rm -f'
)


def main():
    parser = argparse.ArgumentParser(description="Benchmark storage_manager against floors of the same run.")
    parser.add_argument("--sessions", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--scale", action="store_true", help="also measure ten times as many sessions")
    parser.add_argument("--directory", help="where the stores are made (default: the temporary directory)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.directory) as scratch:
        scratch = Path(scratch)
        archive = scratch / "storage_manager.pyz"
        build = [sys.executable, ROOT / "build_zipapp.py", "--precompile", "--output", archive]
        subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
        print(f"Python {sys.version.split()[0]}, {args.sessions:,} sessions, median of {args.runs} runs")
        check = check_benchmark(scratch, archive, args.sessions, args.runs)
        prune = prune_benchmark(scratch, archive, args.sessions, args.runs)
        if args.scale:
            runs = max(1, args.runs // 2)
            for name, small, function in (("check", check, check_benchmark), ("prune", prune, prune_benchmark)):
                large = function(scratch, archive, 10 * args.sessions, runs)
                print(f"{name} x10: {large / small:.2f} times the cost of {args.sessions:,} sessions")


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


def measured(command):
    """(seconds, peak MiB) of a command whose output nobody reads."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    secs = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, f"{command} ended with {process.returncode}"
    return secs, usage.ru_maxrss / 1024


def shown(name, ours, floors, peaks):
    ratios = sorted(ours_secs / floor_secs for ours_secs, floor_secs in zip(ours, floors))
    print(
        f"{name:<16} {median(ours):7.2f} s   floor {median(floors):7.2f} s   ratio {median(ratios):5.2f} "
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
