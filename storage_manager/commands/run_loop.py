"""`run-loop`: the housekeeper; prune-size for ever, configured by the environment."""

from __future__ import annotations

import argparse

# What a traceback needs, as everything else that a cycle does, is loaded before the first one: the archive, or Python
# itself, may be replaced while the loop runs.
import ast  # noqa: F401
import tokenize  # noqa: F401

from storage_manager.commands import Context
from storage_manager.loop.cycle import Manner
from storage_manager.loop.housekeeper import run_loop


def run(args: argparse.Namespace, context: Context) -> int:
    manner = Manner(args.once, args.dry_run, args.max_failures)
    return run_loop(context.load, context.clock, context.log, manner, context.refresh)
