"""`config`: the settings in force, and where each comes from. The first thing that anybody is asked for."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from storage_manager import __version__
from storage_manager.base.errors import EXIT_FAILED, EXIT_OK
from storage_manager.base.text import printable
from storage_manager.commands import Context
from storage_manager.commands.tables import table
from storage_manager.config import absolute
from storage_manager.store.names import METADATA_NAME


def run(args: argparse.Namespace, context: Context) -> int:
    settings, rows, unknown = context.explain()
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
    lines = table(("VARIABLE", "FROM", "VALUE"), [(row.variable, row.source, row.value) for row in rows])
    context.out.line(next(lines))
    for row, line in zip(rows, lines):
        context.out.line(line)
        if row.problem:
            context.out.line(f"    {row.problem}")
    for one in unknown:
        context.out.line(f"{one.variable} is not looked at: {one.reason} {one.default}?")
    if settings.held_by is not None:
        context.out.line(f"run-loop deletes nothing until {settings.held_by.variable} is corrected")
    return exit_code


def _state(storage_dir: str) -> str:
    """What is at the place of the store. Reads nothing in it."""
    if not os.path.isdir(storage_dir):
        return "not there"
    return "there" if os.path.exists(os.path.join(storage_dir, METADATA_NAME)) else "without a metadata.json"
