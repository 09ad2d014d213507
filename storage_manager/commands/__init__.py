"""One module per subcommand: its arguments, one call into the core, its output."""

from __future__ import annotations

from typing import NamedTuple

from storage_manager.base.clock import Clock
from storage_manager.base.log import EventLog
from storage_manager.base.output import Output
from storage_manager.config import Explain, Load, Refresh, Settings


class Context(NamedTuple):
    """What every command is handed; cli.py builds it once."""

    settings: Settings
    load: Load
    explain: Explain
    refresh: Refresh
    program: str
    """What was run, as it was called."""
    clock: Clock
    log: EventLog
    out: Output
