"""`run-loop`: the housekeeper; prune-size for ever, configured by the environment."""

from __future__ import annotations

import argparse

from storage_manager.commands import Context
from storage_manager.commands._shared import argument
from storage_manager.quantity import parse_count

NAME = "run-loop"
HELP = "keep the store within its limit for ever, configured by the environment"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--once", action="store_true", help="one cycle, ending with its exit code (for timers)")
    parser.add_argument("--dry-run", action="store_true", help="say what would go; delete nothing")
    parser.add_argument(
        "--max-failures",
        metavar="N",
        type=argument(_at_least_one),
        help="end with 1 after N failed cycles in a row, for a restart policy (default: go on for ever)",
    )


def _at_least_one(text: str) -> int:
    if parse_count(text) < 1:
        raise ValueError("it must be at least 1")
    return parse_count(text)


def run(args: argparse.Namespace, context: Context) -> int:
    from storage_manager.housekeeper import run_loop  # most of the program, which `health` must not wait for

    return run_loop(context.load, context.clock, context.log, args.once, args.dry_run, args.max_failures)
