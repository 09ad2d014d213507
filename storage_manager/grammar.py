"""The grammar of the command line: every command and every option, in one place.

Nothing of a command itself is imported here: cli.py loads the one that was asked for.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NamedTuple, NoReturn, Optional, TypeVar

from storage_manager import __version__
from storage_manager.base.errors import EXIT_CODES, EXIT_FAILED
from storage_manager.base.log import LEVELS
from storage_manager.base.output import Output
from storage_manager.base.quantity import parse_count, parse_duration_secs, parse_number, parse_size_bytes
from storage_manager.base.text import printable
from storage_manager.base.times import parse_since
from storage_manager.config import (
    DEFAULT_LOCK_STALE_SECS,
    DEFAULT_PREFIX,
    DEFAULT_STORAGE_DIR,
    SHORTEST_LOCK_STALE_SECS,
)
from storage_manager.store.names import is_guid

Value = TypeVar("Value")


class Command(NamedTuple):
    """One command: what it is called, its options, and where its code is."""

    name: str
    help: str
    add_options: Callable[[argparse.ArgumentParser], None]
    module: str
    """In storage_manager.commands; it has `run(args, context)`, which returns the exit code."""
    quiet: bool = False
    """Asked twice a minute by a probe: a line only when something is wrong, and never one in the log file."""
    told_in_result: tuple[str, ...] = ()
    """Events that a person at a terminal need not see, because the result says the same."""
    only_tells: bool = False
    """Whether it is of no use without its output."""
    examples: str = ""
    """Lines for the end of its help."""


def _by(parse: Callable[[str], Value]) -> Callable[[str], Value]:
    """A parser of ours as argparse's `type`: what is wrong with a value is told together with the value."""

    def convert(text: str) -> Value:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{printable(text, 80)!r}: {error}") from None

    return convert


def _lock_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--lock-timeout",
        metavar="SECS",
        type=_by(parse_number),
        default=0.0,
        help="wait this long for another prune to finish (default: 0, do not wait)",
    )
    parser.add_argument(
        "--lock-stale-seconds",
        metavar="SECS",
        type=_by(lambda text: parse_number(text, SHORTEST_LOCK_STALE_SECS)),
        default=DEFAULT_LOCK_STALE_SECS,
        help="age from which a lock file of the previous housekeeper counts as left behind, from 30 (default: 3600)",
    )


def _list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--group", metavar="G", help="only this group's sessions")
    parser.add_argument("-v", "--verbose", action="store_true", help="a table: created (UTC), age, size, state, group")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument(
        "--sort",
        choices=("age", "size", "group", "name"),
        default="age",
        help="the oldest first (age, the default), the largest first (size), or from A to Z (group; name, the guid)",
    )
    parser.add_argument("--reverse", action="store_true", help="the other way round")
    parser.add_argument("--limit", metavar="N", type=_by(_at_least_one), help="only the first N")
    parser.add_argument(
        "--older-than", metavar="AGE", type=_by(parse_duration_secs), help="only what is as old or older (7d, 12h, 30m)"
    )
    parser.add_argument(
        "--larger-than", metavar="SIZE", type=_by(parse_size_bytes), help="only what is as large or larger (10M, 2GB)"
    )


def _stats(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--group", metavar="G", help="only this group's sessions")
    parser.add_argument("--json", action="store_true", help="one JSON object")


def _check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--repair", action="store_true", help="remove dangling entries and left-over files; asks first")
    parser.add_argument(
        "--adopt-orphans", metavar="GROUP", help="give orphans entries again, in this group, so that they are sessions"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask before a repair")
    parser.add_argument("--dry-run", action="store_true", help="with --adopt-orphans: say what it would do; do nothing")
    parser.add_argument("-v", "--verbose", action="store_true", help="name every orphan, with date, age and size")
    _lock_options(parser)


def _purge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--age-days",
        metavar="N",
        type=_by(parse_number),
        default=30.0,
        help="age in days of 24 hours (default: 30); 0 is everything, and asks first, as any age below a minute",
    )
    parser.add_argument("--group", metavar="G", help="only this group's sessions")
    parser.add_argument(
        "--orphans",
        action="store_true",
        help="orphans instead of sessions, by the time they were last modified (`check --adopt-orphans` keeps them)",
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--dry-run", action="store_true", help="say what would go; delete nothing")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    _lock_options(parser)


def _prune_size(parser: argparse.ArgumentParser) -> None:
    size = _by(parse_size_bytes)
    parser.add_argument(
        "--max-mb", metavar="X", type=size, required=True, help="the limit, in MB or with a unit (512M, 10GB, 1.5GiB)"
    )
    parser.add_argument("--target-mb", metavar="Y", type=size, help="prune down to this once over the limit")
    parser.add_argument(
        "--min-age-mins", metavar="M", type=_by(parse_number), default=0.0, help="keep sessions younger than this"
    )
    parser.add_argument("--keep-last", metavar="N", type=_by(parse_count), default=0, help="keep the newest N sessions")
    parser.add_argument("--group", metavar="G", help="only this group's sessions count, and go")
    parser.add_argument("--dry-run", action="store_true", help="say what would go, and why; delete nothing")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("-v", "--verbose", action="store_true", help="name each session that goes or stays, and why")
    parser.add_argument("--yes", action="store_true", help="changes nothing: prune-size never asks")
    _lock_options(parser)


def _run_loop(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--once", action="store_true", help="one cycle, ending with its exit code (for timers)")
    parser.add_argument("--dry-run", action="store_true", help="say what would go; delete nothing")
    parser.add_argument(
        "--max-failures",
        metavar="N",
        type=_by(_at_least_one),
        help="end with 1 after N failed cycles in a row, for a restart policy (default: go on for ever)",
    )


def _at_least_one(text: str) -> int:
    if parse_count(text) < 1:
        raise ValueError("it must be at least 1")
    return parse_count(text)


def _health(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object")


def _history(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--since",
        metavar="WHEN",
        type=_by(parse_since),
        help="only what a run did since then: 7d, 12h, 30m, 2w, or a date",
    )
    parser.add_argument("--session", metavar="GUID", type=_by(_guid), help="what became of this session")
    parser.add_argument("--json", action="store_true", help="one JSON object")


def _guid(text: str) -> str:
    if is_guid(text) is None:
        raise ValueError("it is not a guid such as 0b9e2f6c-8d0c-4a53-9f0e-3c1d6a7b5e42")
    return text


_HISTORY_EXAMPLES = """\
examples:
  history                      every run that deleted something, one a line
  history --since 7d           those of the last seven days (also 12h, 30m, 2w)
  history --since 2026-11-20   those since that day began, in UTC
  history --session 0b9e2f6c-8d0c-4a53-9f0e-3c1d6a7b5e42
                               what became of that session, and why
"""

_TOLD_BY_CHECK = ("storage_manager.anomaly", "storage_manager.storage_suspect", "storage_manager.check.summary")

COMMANDS = (
    Command("list", "list the sessions, oldest first: one guid a line", _list, "list", only_tells=True),
    Command("stats", "totals, groups, anomalies, and how full the store is", _stats, "stats", only_tells=True),
    Command(
        "check",
        "what is odd about the store, with bytes and what to do; repairs when asked to",
        _check,
        "check",
        told_in_result=_TOLD_BY_CHECK,
    ),
    Command("purge", "delete the sessions of an age and older", _purge, "purge"),
    Command("prune-size", "delete the oldest sessions until the store is within a size", _prune_size, "prune_size"),
    Command(
        "run-loop", "keep the store within its limit for ever, configured by the environment", _run_loop, "run_loop"
    ),
    Command(
        "history",
        "what was deleted, when, and why: one run a line, or what became of one session",
        _history,
        "history",
        only_tells=True,
        examples=_HISTORY_EXAMPLES,
    ),
    Command("health", "whether run-loop does its work: one sentence, exit code 0 or 1", _health, "health", quiet=True),
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise WrongUsage(self, message)

    def _print_message(self, message: str, file: object = None) -> None:
        """Help and version, to a reader that may have gone away."""
        out = Output(sys.stdout)
        out.line(message.rstrip("\n"))
        out.flush()
        if out.failure is not None:
            raise SystemExit(EXIT_FAILED)


class WrongUsage(Exception):
    """What the command line asks for is not in the grammar."""

    def __init__(self, parser: argparse.ArgumentParser, message: str) -> None:
        self.parser = parser
        super().__init__(message)


def build_parser() -> argparse.ArgumentParser:
    """The grammar. Global options are taken before and after the subcommand."""
    parser = _Parser(
        prog="storage_manager",
        description="Keep a session store under its size limit, oldest sessions first, beside a live writer.",
        epilog="exit codes:\n"
        + "\n".join(f"  {code:<4} {meaning}" for code, meaning in EXIT_CODES.items())
        + f"\n\nThe storage directory: --storage-dir, else --data-root/storage, else <P>_STORAGE, <P>_STORAGE_DIR or\n"
        f"<P>_DATA_DIR/storage from the environment, else {DEFAULT_STORAGE_DIR}. <P> is STORAGE_MANAGER_ENV_PREFIX,\n"
        f"by default {DEFAULT_PREFIX}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"storage_manager {__version__}")
    _add_global_options(parser, None)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        subparser = subparsers.add_parser(
            command.name,
            help=command.help,
            description=command.help.capitalize() + ".",
            epilog=command.examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.add_options(subparser)
        # Without a default of its own: it must not overwrite what was given before the command.
        _add_global_options(subparser.add_argument_group("global options"), argparse.SUPPRESS)
        subparser.set_defaults(chosen=command)
    return parser


def _add_global_options(parser: argparse._ActionsContainer, default: Optional[str]) -> None:
    parser.add_argument(
        "--storage-dir", metavar="DIR", type=_directory, default=default, help="the directory of the session store"
    )
    parser.add_argument("--data-root", metavar="DIR", type=_directory, default=default, help="the store is DIR/storage")
    parser.add_argument(
        "--gofr-dig-env", choices=("PROD", "TEST"), default=default, help="which environment this is, for the log"
    )
    parser.add_argument(
        "--log-format", choices=("json", "text"), default=default, help="of standard error (default: by terminal)"
    )
    parser.add_argument(
        "--log-level", metavar="LEVEL", type=str.upper, choices=tuple(LEVELS), default=default,
        help=f"of standard error: {', '.join(LEVELS)}",
    )  # fmt: skip


def _directory(text: str) -> str:
    if not text:
        # An unset variable in a script must not turn into the default store.
        raise argparse.ArgumentTypeError("it is empty: name a directory")
    return text
