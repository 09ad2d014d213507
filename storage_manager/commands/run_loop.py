"""`run-loop`: the housekeeper; prune-size for ever, configured by the environment."""

from __future__ import annotations

import argparse

from storage_manager.commands import Context
from storage_manager.housekeeper import run_loop

NAME = "run-loop"
HELP = "keep the store within its limit for ever, configured by the environment"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--once", action="store_true", help="one cycle, ending with its exit code (for timers)")
    parser.add_argument("--dry-run", action="store_true", help="say what would go; delete nothing")


def run(args: argparse.Namespace, context: Context) -> int:
    return run_loop(context.load, context.clock, context.log, args.once, args.dry_run)
