"""`run-loop`: the housekeeper; prune-size for ever, configured by the environment."""

from __future__ import annotations

import argparse

# What a traceback needs, as everything else that a cycle does, is loaded before the first one: the archive, or Python
# itself, may be replaced while the loop runs.
import ast  # noqa: F401
import tokenize  # noqa: F401

from storage_manager.commands import Context
from storage_manager.loop.housekeeper import run_loop


def run(args: argparse.Namespace, context: Context) -> int:
    once, only_plan = args.once, args.dry_run
    return run_loop(context.load, context.clock, context.log, once, only_plan, args.max_failures, context.refresh)
