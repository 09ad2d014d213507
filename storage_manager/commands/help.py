"""`help`: what there is, or how a command is used."""

from __future__ import annotations

import argparse
from shutil import get_terminal_size

from storage_manager.base.errors import EXIT_OK
from storage_manager.commands import Context
from storage_manager.usage.outline import with_values
from storage_manager.usage.page import page


def run(args: argparse.Namespace, context: Context) -> int:
    tool, *commands = args.outlines()
    columns, rows = get_terminal_size()
    [about] = [outline for outline in (tool, *commands) if outline.name == (args.of or "")]
    about = with_values(about, args.variables())
    context.out.line(page(about, [] if args.of else commands, columns, rows))
    return EXIT_OK
