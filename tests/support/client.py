"""A client of the store, as the services that own it behave: no lock, no fsync, no rename.

Run as a program it saves sessions until it is told to stop, and prints the guid of each one it has saved:

    python client.py STORAGE COUNT [--pause SECS] [--size BYTES] [--group NAME] [--mix]
"""

from __future__ import annotations

import argparse
import json
import os
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any


class Client:
    """Saves, deletes and aliases by rewriting metadata.json in place; reads a torn file as `{}`."""

    def __init__(self, storage: Path, opener: Callable[..., Any] = open) -> None:
        self.storage = Path(storage)
        self.open = opener
        self.metadata = self.storage / "metadata.json"
        self.storage.mkdir(parents=True, exist_ok=True)
        if not self.metadata.exists():
            self.write({})

    def read(self) -> dict[str, Any]:
        try:
            with self.open(self.metadata) as file:
                return json.load(file)
        except (FileNotFoundError, json.JSONDecodeError):
            return {}

    def write(self, entries: dict[str, Any]) -> None:
        with self.open(self.metadata, "w") as file:
            json.dump(entries, file, indent=2)

    def save(
        self,
        data: bytes = b"x" * 100,
        group: str | None = None,
        created_at: str | None = None,
        guid: str | None = None,
        **extra: Any,
    ) -> str:
        guid = guid or str(uuid.uuid4())
        with self.open(self.storage / f"{guid}.json", "wb") as blob:
            blob.write(data)
        entries = self.read()
        entry: dict[str, Any] = {
            "format": "json",
            "size": len(data),
            "created_at": created_at or datetime.now(timezone.utc).replace(tzinfo=None).isoformat(),
        }
        if group is not None:
            entry["group"] = group
        entry.update(extra)
        entries[guid] = entry
        self.write(entries)
        return guid

    def delete(self, guid: str) -> None:
        for name in os.listdir(self.storage):
            if name.startswith(f"{guid}."):
                with suppress(FileNotFoundError):
                    os.unlink(self.storage / name)
        entries = self.read()
        entries.pop(guid, None)
        self.write(entries)

    def register_alias(self, guid: str, alias: str) -> None:
        entries = self.read()
        if guid in entries:
            entries[guid].setdefault("aliases", []).append(alias)
            self.write(entries)

    def get(self, guid: str) -> bytes | None:
        entry = self.read().get(guid)
        names = [f"{guid}.{entry['format']}"] if entry else [path.name for path in self.storage.glob(f"{guid}.*")]
        for name in names:
            try:
                return (self.storage / name).read_bytes()
            except FileNotFoundError:
                continue
        return None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("storage", type=Path)
    parser.add_argument("count", type=int)
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--size", type=int, default=100)
    parser.add_argument("--group")
    parser.add_argument("--mix", action="store_true", help="delete every seventh, alias every fifth")
    args = parser.parse_args()
    client = Client(args.storage)
    for number in range(args.count):
        guid = client.save(b"s" * args.size, args.group)
        if args.mix and number % 7 == 6:
            client.delete(guid)
            continue
        if args.mix and number % 5 == 4:
            client.register_alias(guid, f"alias-{number}")
        os.write(1, guid.encode() + b"\n")
        time.sleep(args.pause)


if __name__ == "__main__":
    main()
