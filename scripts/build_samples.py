#!/usr/bin/env python3
"""Write the samples of docs/events.md anew: events of real runs on stores made for them.

What differs from run to run (times, pids, durations) is pinned, so that the same code makes the same samples. An event
that none of these scenes brings about keeps the sample that it has.
"""

import argparse
import fcntl
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import uuid
from datetime import datetime, timedelta, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGINNING = datetime(2026, 11, 23, 17, 29, tzinfo=timezone.utc)
PINNED = {
    "@t": "2026-11-23T17:29:01.162807Z", "run_id": "bfcb06efcd97d6ea", "host": "app1", "pid": 24776,
    "duration_ms": 12, "holder_age_secs": 74, "allocated_bytes": 9_801_728, "sleep_seconds": 3599.8,
}  # fmt: skip
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z")
SAMPLE = re.compile(r'^\{"@t":.*\}$', re.MULTILINE)
LIMITS = "etc/storage_manager/limits.env"
HOLDER = {"pid": 4217, "host": "app1", "command": "run-loop"}
SIZES = (1_700_000, 1_400_000, 1_500_000, 1_900_000, 1_300_000, 1_250_000)


def main():
    parser = argparse.ArgumentParser(description="Write the samples of docs/events.md.")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "events.md")
    output = parser.parse_args().output
    samples = {}
    for scene in SCENES:
        with tempfile.TemporaryDirectory() as scratch:
            for event in Stage(Path(scratch).resolve()).play(scene):
                samples.setdefault(kind(event), json.dumps(event, separators=(",", ":")))
    text = (ROOT / "docs" / "events.md").read_text(encoding="utf-8")
    output.write_text(SAMPLE.sub(lambda old: samples.get(kind(json.loads(old[0])), old[0]), text), encoding="utf-8")
    by_hand = {event["event"] for event in map(json.loads, SAMPLE.findall(text)) if kind(event) not in samples}
    print("written by hand:", *sorted(by_hand), sep="\n  ")


def kind(event):
    """What one sample is of: some events have a sample for each value of these fields."""
    return (event["event"], *map(event.get, ("what", "action", "holder_generation")))


class Stage:
    """A scratch directory that stands for /, with a store of six sessions in /srv/store."""

    def __init__(self, root):
        self.root, self.store, self.now = root, root / "srv/store", datetime.now(timezone.utc).replace(microsecond=0)
        self.store.mkdir(parents=True)
        self.entries = {}
        rng = random.Random(7)
        for number, size in enumerate(SIZES):
            guid = str(uuid.UUID(int=rng.getrandbits(128), version=4))
            self.entries[guid] = self.entry(size, 40 - 6 * number, ("research", "drafts")[number % 2])
            self.blob(f"{guid}.json", size)
        self.guids = list(self.entries)
        self.save()

    def entry(self, size, days, group):
        created_at = (self.now - timedelta(days=days)).replace(tzinfo=None).isoformat()
        return {"format": "json", "size": size, "created_at": created_at, "group": group}

    def blob(self, name, size):
        path = self.store / name
        path.touch()
        os.truncate(path, size)
        self.age(path)

    def age(self, path):
        os.utime(path, (self.now.timestamp() - 86_400,) * 2)

    def save(self):
        (self.store / "metadata.json").write_text(json.dumps(self.entries))

    def lose_entries(self):
        for guid in self.guids[:2]:
            del self.entries[guid]
        self.save()

    def lose_blob(self):
        (self.store / f"{self.guids[0]}.json").unlink()

    def play(self, scene):
        """The events of a scene, pinned."""
        prepare, words, env, stdin = (*scene, "")[:4]
        kept = prepare(self)  # a lock lasts as long as its file is open
        settings = {name: value.replace("~", str(self.root)) for name, value in env.items()}
        environment = {
            "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "TMPDIR": str(self.root),
            "GOFR_DIG_HOUSEKEEPER_HEARTBEAT_FILE": f"{self.root}/run/heartbeat", **settings,
        }  # fmt: skip
        (self.root / "run").mkdir(exist_ok=True)
        command = [
            sys.executable, "-m", "storage_manager", "--storage-dir", str(self.store), "--log-level", "DEBUG",
            "--log-format", "json", *words.replace("~", str(self.root)).split(),
        ]  # fmt: skip
        pipe, null = subprocess.PIPE, subprocess.DEVNULL
        with subprocess.Popen(command, env=environment, stdin=pipe, stdout=null, stderr=pipe, text=True) as process:
            process.stdin.write(stdin)
            process.stdin.close()
            for line in process.stderr:
                if line.startswith("{"):
                    event = json.loads(line)
                    yield self.pinned(line)
                    if words.startswith("run-loop") and event["event"] in CUES:
                        CUES[event["event"]](self, process)
        del kept

    def pinned(self, line):
        shifted = MOMENT.sub(self.shifted, line.replace(str(self.root), ""))
        event = json.loads(shifted)
        return {name: PINNED.get(name, value) for name, value in event.items()}

    def shifted(self, found):
        text = found[0][:19] + "+00:00"
        moment = datetime.fromisoformat(text) - self.now + BEGINNING
        return moment.strftime("%Y-%m-%dT%H:%M:00Z")


def nothing(stage):
    """The store as it is."""


def gone(stage):
    stage.store.rename(stage.root / "elsewhere")


def empty(stage):
    gone(stage)
    stage.store.mkdir()


def misplaced(stage):
    empty(stage)
    (stage.root / "elsewhere").rename(stage.store / "sessions")


def large(stage):
    for guid in stage.guids:
        os.truncate(stage.store / f"{guid}.json", 300 << 20)


def held(stage):
    file = open(stage.store / ".prune_size.lock", "w")  # noqa: SIM115
    fcntl.flock(file, fcntl.LOCK_EX)
    started_at = (stage.now - timedelta(minutes=14)).strftime("%Y-%m-%dT%H:%M:%SZ")
    file.write(json.dumps({**HOLDER, "started_at": started_at}))
    file.flush()
    return file


def left(stage):
    held(stage).close()
    (stage.store / ".metadata.json.tmp").write_text("{")
    stage.lose_blob()


def no_lock(stage):
    stage.lose_entries()
    (stage.store / ".prune_size.lock").mkdir()


def torn(stage):
    stage.lose_blob()
    path = stage.store / ".metadata.json.torn-20261101T000000Z-1f0c2b7a"
    path.write_text("{")
    stage.age(path)


def limits(stage, text="GOFR_DIG_MAX_STORAGE_MB=50G\nGOFR_DIG_KEEP_LAST=1\n"):
    path = stage.root / LIMITS
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    stage.age(path)


def asleep(stage, process):
    """First the file changes, then the loop is stopped."""
    path = stage.root / LIMITS
    if path.exists() and "LOG_LEVEL" not in path.read_text():
        limits(stage, "GOFR_DIG_MAX_STORAGE_MB=60G\nGOFR_DIG_KEEP_LAST=1\nGOFR_DIG_LOG_LEVEL=ERROR\n")
        process.send_signal(signal.SIGHUP)


CUES = {
    "housekeeper.sleep": asleep,
    "housekeeper.restart_needed": lambda stage, process: process.send_signal(signal.SIGTERM),
}
LOOP = {"GOFR_DIG_MAX_STORAGE_MB": "6"}
SCENES = (
    (held, "prune-size --max-mb 6 --gofr-dig-env PROD", {}),
    (nothing, "list", {}),
    (nothing, "list --group reserch", {}),
    (nothing, "stats", {}),
    (gone, "list", {}),
    (misplaced, "stats", {}),
    (Stage.lose_entries, "prune-size --max-mb 6", {}),
    (nothing, "prune-size --max-mb 60", {}),
    (empty, "prune-size --max-mb 6", {}),
    (left, "prune-size --max-mb 6", {"GOFR_DIG_HISTORY_FILE": "~/var/lib/storage_manager/history"}),
    (Stage.lose_entries, "prune-size --max-mb 1 --keep-last 1", {}),
    (nothing, "prune-size --max-mb 1 --target-mb 2", {}),
    (no_lock, "prune-size --max-mb 6", {}),
    (Stage.lose_blob, "purge --age-days 30", {}),
    (nothing, "purge --age-days 0", {}, "no\n"),
    (no_lock, "purge --age-days 30", {}),
    (Stage.lose_entries, "check", {}),
    (Stage.lose_entries, "check --adopt-orphans recovered", {}),
    (no_lock, "check --adopt-orphans recovered", {}),
    (torn, "check --repair --yes", {}),
    (torn, "check --repair", {}, "no\n"),
    (no_lock, "check --repair --yes", {}),
    (nothing, "run-loop --once", {**LOOP, "GOFR_DIG_HOUSEKEEPING_INTERVAL_MINS": "0", "GOFR_DIG_MAX_STORAGE_GB": "5"}),
    (limits, f"run-loop --env-file ~/{LIMITS}", {"GOFR_DIG_KEEP_LAST": "2"}),
    (large, "run-loop --once", {"GOFR_DIG_MAX_STORAGE_MB": "50 %"}),
    (nothing, "run-loop --once", {"GOFR_DIG_MAX_STORAGE_MB": "off"}),
    (nothing, "run-loop --once", {**LOOP, "GOFR_DIG_HOUSEKEEPER_HEARTBEAT_FILE": "~/run/gofr-dig/heartbeat"}),
    (gone, "run-loop --max-failures 1", LOOP),
    (nothing, "health", {}),
)  # Of an event that several scenes bring about, the first one's is taken.


if __name__ == "__main__":
    sys.exit(main())
