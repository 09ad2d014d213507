"""`completion`: what a shell reads to complete the command line."""

from __future__ import annotations

import argparse

from storage_manager.base.errors import EXIT_OK
from storage_manager.commands import Context
from storage_manager.usage.completion import script


def run(args: argparse.Namespace, context: Context) -> int:
    context.out.line(script(args.shell, args.outlines()))
    return EXIT_OK
