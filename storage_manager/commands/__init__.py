"""One module per subcommand: its arguments, one call into the core, its output."""

from __future__ import annotations

import argparse
from typing import NamedTuple, Protocol

from storage_manager.clock import Clock
from storage_manager.config import Settings
from storage_manager.housekeeper import Load
from storage_manager.logs import EventLog
from storage_manager.output import Output


class Context(NamedTuple):
    """What every command is handed; cli.py builds it once."""

    settings: Settings
    load: Load
    clock: Clock
    log: EventLog
    out: Output


class Command(Protocol):
    """What a module in this package offers."""

    NAME: str
    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, args: argparse.Namespace, context: Context) -> int: ...
