"""`check`: what is odd about a store, and repairs for those who ask for them."""

from __future__ import annotations

import argparse

from storage_manager.commands import Context
from storage_manager.commands._shared import add_lock_arguments

NAME = "check"
HELP = "what is odd about the store, with bytes and what to do; repairs when asked to"
# On a terminal the result says it all; nobody need read it twice.
TOLD_IN_RESULT = ("storage_manager.anomaly", "storage_manager.storage_suspect", "storage_manager.check.summary")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--repair", action="store_true", help="remove dangling entries and left-over files; asks first")
    parser.add_argument(
        "--adopt-orphans", metavar="GROUP", help="give orphans entries again, in this group, so that they are sessions"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask before a repair")
    add_lock_arguments(parser)


def run(args: argparse.Namespace, context: Context) -> int:
    from storage_manager.commands import _check

    return _check.run(args, context)
