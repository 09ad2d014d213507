"""Stores for tests: made at a stroke, looked at without the code under test."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BEGINNING = datetime(2026, 1, 1)


def new_guid(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def make_store(
    storage: Path, count: int, size: int = 1000, seed: int = 1, group: str | None = None, **extra: Any
) -> list[str]:
    """`count` healthy sessions of `size` bytes, an hour apart, oldest first; returns their guids in that order."""
    storage.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    entries = read_entries(storage)
    guids = []
    for number in range(count):
        guid = new_guid(rng)
        guids.append(guid)
        created = BEGINNING + timedelta(hours=number, microseconds=number % 3)
        entries[guid] = {"format": "json", "size": size, "created_at": created.isoformat(), **extra}
        if group is not None:
            entries[guid]["group"] = group
        (storage / f"{guid}.json").write_bytes(b"x" * size)
    write_entries(storage, entries)
    return guids


def read_entries(storage: Path) -> dict[str, Any]:
    """The entries, strictly: a torn file is an error here."""
    path = storage / "metadata.json"
    return json.loads(path.read_text()) if path.exists() else {}


def write_entries(storage: Path, entries: dict[str, Any]) -> None:
    (storage / "metadata.json").write_text(json.dumps(entries, indent=2))


def blobs(storage: Path) -> set[str]:
    """The guids of the blobs on disk."""
    return {name[:36] for name in os.listdir(storage) if len(name) > 37 and not name.startswith(".")}


def leftovers(storage: Path) -> list[str]:
    """Our own files that should be gone after a run."""
    return sorted(name for name in os.listdir(storage) if name.startswith((".metadata.json", ".prune")))


def run_tool(
    *arguments: object, env: dict[str, str] | None = None, stdin: str | None = None, timeout: float = 60, **options: Any
) -> subprocess.CompletedProcess[str]:
    """The tool in a process of its own, from the sources, with a clean environment."""
    return run_command(command(*arguments), env, stdin, timeout, **options)


def run_command(
    words: list[str], env: dict[str, str] | None = None, stdin: str | None = None, timeout: float = 60, **options: Any
) -> subprocess.CompletedProcess[str]:
    """What command() or hurried_command() made, in a clean environment."""
    return subprocess.run(
        words,
        env=clean_environment(env),
        input="" if stdin is None else stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        **options,
    )


def answered_late(meanwhile: Callable[[], object], *arguments: object) -> tuple[int, str, str]:
    """The tool, to whose question somebody says yes after something else has happened: exit code, and what it wrote."""
    process = subprocess.Popen(
        command(*arguments), env=clean_environment(), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    asked = ""
    while not asked.endswith("(yes/no)"):
        read = process.stderr.read(1)
        assert read, asked
        asked += read
    meanwhile()
    out, err = process.communicate("yes\n", timeout=60)
    return process.returncode, out, asked + err


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "storage_manager", *map(str, arguments)]


def hurried_command(constants: dict[str, float], *arguments: object) -> list[str]:
    """The same with other constants, such as `{"seq.handler.GATHER_SECS": 0.0}`: a test need not wait for them."""
    code = "import sys\nfrom importlib import import_module\nfrom storage_manager import cli\n"
    for name, value in constants.items():
        module, _, constant = name.rpartition(".")
        code += f"import_module('storage_manager.{module}').{constant} = {value}\n"
    return [sys.executable, "-c", code + "sys.exit(cli.main())", *map(str, arguments)]


def clean_environment(more: dict[str, str] | None = None) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GOFR_DIG", "STORAGE_MANAGER"))}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "NO_COLOR": "1", **(more or {})}


def events(stderr: str) -> list[dict[str, Any]]:
    """The JSON lines of standard error, strictly parsed; other lines are passed over."""

    def refuse(text: str) -> None:
        raise AssertionError(f"not strict JSON: {text}")

    return [json.loads(line, parse_constant=refuse) for line in stderr.splitlines() if line.startswith("{")]


def event(stderr: str, key: str) -> dict[str, Any]:
    """The one event with that key."""
    found = [item for item in events(stderr) if item["event"] == key]
    assert len(found) == 1, f"{len(found)} events {key} in:\n{stderr}"
    return found[0]


# Commands import what they need when they need it.
IMPORT_ALL = """
import importlib, pkgutil
import storage_manager
for module in pkgutil.walk_packages(storage_manager.__path__, "storage_manager."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""

AS_NOBODY = f"""
import os, sys
{IMPORT_ALL}
storage_manager.grammar.build_parser().format_help()  # for which argparse imports more
# From here on the program and Python's own library may be out of reach.
os.chdir(sys.argv[1])
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
sys.exit(storage_manager.cli.main(["--storage-dir", ".", "--log-format", "json", *sys.argv[2:]]))
"""


def run_as_nobody(storage: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The tool as a user without rights; it enters the directory before it gives its own up."""
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, str(storage), *arguments],
        env=clean_environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr and '"@x"' not in done.stderr, done.stderr
    return done
