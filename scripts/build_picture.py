#!/usr/bin/env python3
"""Run the tool on a store made for it, and write what a terminal shows as an SVG: the picture of the README."""

import argparse
import json
import os
import pty
import random
import subprocess
import sys
import tempfile
import uuid
from datetime import datetime, timedelta, timezone
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COLUMNS, LINE_PX, CHARACTER_PX, MARGIN_PX = 80, 18, 8.4, 16
COMMANDS = (
    ("stats",),
    ("prune-size", "--max-mb", "9", "--target-mb", "8"),
    ("history",),
)
LIMIT_MB = "9"
NO_BREAK = "\u00a0"
"""Not every viewer keeps several blanks."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the picture of the README.")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "picture.svg")
    output = parser.parse_args().output
    with tempfile.TemporaryDirectory() as scratch:
        store = Path(scratch) / "sessions"
        make_store(store)
        lines = [line for command in COMMANDS for line in shown(store, command)]
    output.write_text(picture(lines), encoding="utf-8")


def make_store(store: Path) -> None:
    """Forty sessions of three groups, saved in the last weeks."""
    rng, now = random.Random(7), datetime.now(timezone.utc).replace(tzinfo=None)
    store.mkdir()
    entries = {}
    for _ in range(40):
        guid, size = str(uuid.UUID(int=rng.getrandbits(128), version=4)), rng.randrange(50_000, 500_000)
        created_at = now - timedelta(minutes=rng.randrange(30, 60 * 24 * 40))
        (store / f"{guid}.json").write_bytes(b"x" * size)
        entries[guid] = {
            "format": "json",
            "size": size,
            "created_at": created_at.isoformat(),
            "group": rng.choice(("research", "research", "weekly", "support")),
        }
    (store / "metadata.json").write_text(json.dumps(entries, indent=2))


def shown(store: Path, command: tuple[str, ...]) -> list[str]:
    """The command line, what a terminal shows of it, and a blank line."""
    env = {
        "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "LANG": "C.UTF-8", "COLUMNS": str(COLUMNS), "TERM": "dumb",
        "TMPDIR": str(store.parent), "GOFR_DIG_STORAGE": str(store), "GOFR_DIG_MAX_STORAGE_MB": LIMIT_MB,
    }  # fmt: skip
    terminal, end = pty.openpty()
    with subprocess.Popen([sys.executable, "-m", "storage_manager", *command], stdout=end, stderr=end, env=env):
        os.close(end)
        data = b""
        try:
            while part := os.read(terminal, 65536):
                data += part
        except OSError:  # nobody has the other end any more
            pass
    os.close(terminal)
    text = data.decode().replace(str(store), "/srv/sessions").replace("\r\n", "\n")
    return [f"$ storage_manager {' '.join(command)}", *text.splitlines(), ""]


def kind(line: str) -> str:
    return "typed" if line.startswith("$ ") else "shown"


def picture(lines: list[str]) -> str:
    width, height = 2 * MARGIN_PX + COLUMNS * CHARACTER_PX, 2 * MARGIN_PX + LINE_PX * (len(lines) - 1)
    rows = []
    for number, line in enumerate(lines):
        place = f'x="{MARGIN_PX}" y="{MARGIN_PX + LINE_PX * number + 12}" class="{kind(line)}"'
        rows.append(f"<text {place}>{escape(line).replace(' ', NO_BREAK)}</text>\n" if line else "")
    size = f'viewBox="0 0 {width:g} {height:g}" width="{width:g}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xml:space="preserve" {size}>\n'
        "<style>text { font: 14px monospace; fill: #d8dee9 } .typed { fill: #8fd18f }</style>\n"
        f'<rect width="100%" height="100%" rx="8" fill="#1e2430"/>\n{"".join(rows)}</svg>\n'
    )


if __name__ == "__main__":
    main()
