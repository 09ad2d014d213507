"""`run-loop`: the housekeeper; prune-size for ever, configured by the environment."""

from __future__ import annotations

import argparse

from storage_manager.commands import Context
from storage_manager.loop.housekeeper import run_loop


def run(args: argparse.Namespace, context: Context) -> int:
    return run_loop(context.load, context.clock, context.log, args.once, args.dry_run, args.max_failures)
