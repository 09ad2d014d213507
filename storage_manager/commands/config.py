"""`config`: the settings in force, and where each comes from. The first thing that anybody is asked for."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from textwrap import fill
from typing import Any, Optional

from storage_manager import __version__
from storage_manager.base.errors import EXIT_FAILED, EXIT_OK
from storage_manager.base.text import printable
from storage_manager.commands import Context
from storage_manager.commands.tables import table
from storage_manager.config import NONE, Row, absolute, explained
from storage_manager.loop.own_files import refused_files
from storage_manager.store.names import METADATA_NAME

# The store, the settings file, the programs, the table's header, what is only named, and a prompt.
_OTHER_LINES = 7
# A paragraph is not made narrower.
_NARROWEST = 20


def run(args: argparse.Namespace, context: Context) -> int:
    settings, rows, unknown = context.explain()
    refused = {fallback.variable: explained(fallback) for fallback in refused_files(settings).values()}
    rows = [row._replace(problem=row.problem or refused.get(row.variable, "")) for row in rows]
    storage_dir = absolute(settings.storage_dir)
    has_problem = bool(unknown) or any(row.problem for row in rows)
    exit_code = EXIT_FAILED if has_problem else EXIT_OK
    facts: dict[str, Any] = {
        "storage_dir": storage_dir,
        "storage_source": settings.storage_source,
        "store": _state(storage_dir),
        "env_file": settings.env_file,
        "heartbeat_file": settings.heartbeat_file,
        "program": absolute(context.program),
        "version": __version__,
        "python": sys.executable,
        "python_version": sys.version.split()[0],
    }
    if args.json:
        named = [{"variable": one.variable, "suggestion": one.default} for one in unknown]
        context.out.json(
            {**facts, "settings": [row._asdict() for row in rows], "unknown": named, "exit_code": exit_code}
        )
        return exit_code
    context.out.line(f"store    {printable(storage_dir)} ({facts['store']}; from {settings.storage_source})")
    if settings.env_file is not None:
        context.out.line(f"file     {printable(settings.env_file)}")
    context.out.line(f"program  {printable(facts['program'])}, version {__version__}")
    context.out.line(f"python   {printable(sys.executable)}, version {facts['python_version']}")
    context.out.line("")
    screen = context.out.terminal_size
    shown, unset = _fitting(rows, screen)
    lines = table(("VARIABLE", "FROM", "VALUE"), [(row.variable, row.source, row.value) for row in shown])
    context.out.line(next(lines))
    for row, line in zip(shown, lines):
        context.out.line(line)
        if row.problem:
            context.out.line(f"    {row.problem}")
    if screen is not None and unset:
        names = f"not set: {', '.join(row.variable for row in unset)}"
        width = max(_NARROWEST, screen.columns - 1)
        context.out.line(fill(names, width, subsequent_indent="  ", break_long_words=False))
    for one in unknown:
        context.out.line(f"{one.variable} is not looked at: {one.reason} {one.default}?")
    if settings.held_by is not None:
        context.out.line(f"run-loop deletes nothing until {settings.held_by.variable} is corrected")
    return exit_code


def _fitting(rows: Sequence[Row], screen: Optional[os.terminal_size]) -> tuple[list[Row], list[Row]]:
    """(what the table shows, what is only named below it): on a low terminal, what is not set and has no default."""
    if screen is None or len(rows) + _OTHER_LINES <= screen.lines:
        return list(rows), []
    unset = [row for row in rows if (row.value, row.source, row.problem) == (NONE, "default", "")]
    return [row for row in rows if row not in unset], unset


def _state(storage_dir: str) -> str:
    """What is at the place of the store. Reads nothing in it."""
    if not os.path.isdir(storage_dir):
        return "not there"
    return "there" if os.path.exists(os.path.join(storage_dir, METADATA_NAME)) else "without a metadata.json"
