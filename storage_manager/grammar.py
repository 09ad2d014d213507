"""The grammar of the command line: every command and every option, in one place.

Nothing of a command itself is imported here: cli.py loads the one that was asked for. Help, completion, suggestions and
the manual read what is said here, by way of outlines(): a command or an option is said once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from math import inf
from typing import TYPE_CHECKING, NamedTuple, NoReturn, Optional, TypeVar

from storage_manager import __version__
from storage_manager.base.errors import EXIT_CODES, EXIT_FAILED
from storage_manager.base.log import LEVELS
from storage_manager.base.output import Output
from storage_manager.base.quantity import parse_count, parse_duration_secs, parse_number, parse_share, parse_size_bytes
from storage_manager.base.text import printable
from storage_manager.base.times import parse_since
from storage_manager.config import (
    DEFAULT_LOCK_STALE_SECS,
    DEFAULT_PREFIX,
    DEFAULT_STORAGE_DIR,
    OFF,
    SHORTEST_LOCK_STALE_SECS,
)
from storage_manager.store.names import is_guid

if TYPE_CHECKING:
    from storage_manager.usage.outline import Outline  # few runs show help

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
    """Events that a person at a terminal need not see, because the result (but one of a group) says the same."""
    only_tells: bool = False
    """Whether it is of no use without its output."""
    told_behind: tuple[str, ...] = ()
    """Events that a person at a terminal is told of behind the result."""
    examples: tuple[str, ...] = ()
    """Two command lines, as a shell takes them; a test runs them."""
    note: str = ""
    """What else its help says."""


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
        help="how long to wait for another prune (default: 0)",
    )
    parser.add_argument(
        "--lock-stale-seconds",
        metavar="SECS",
        type=_by(lambda text: parse_number(text, SHORTEST_LOCK_STALE_SECS)),
        default=DEFAULT_LOCK_STALE_SECS,
        help="stale age of the previous housekeeper's lock (3600)",
    )


def _list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--group", metavar="G", help="only this group's sessions")
    parser.add_argument("-v", "--verbose", action="store_true", help="a table: created (UTC), age, size, state, group")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument(
        "--sort",
        choices=("age", "size", "group", "name"),
        default="age",
        help="the oldest first (age, the default), the smallest first (size), or from A to Z (group; name, the guid)",
    )
    parser.add_argument("--reverse", action="store_true", help="the newest or largest first, or from Z to A")
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


def _brake_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-delete",
        metavar="N",
        type=_by(lambda text: None if text.strip().lower() == OFF else parse_share(text)),
        help="delete none if more would go (50, 20%%, or off)",
    )


def _purge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--age-days",
        metavar="N",
        type=_by(parse_number),
        default=30.0,
        help="days of 24 hours (default: 30); 0 is everything, and asks first, as any age below a minute",
    )
    parser.add_argument("--group", metavar="G", help="only this group's sessions")
    parser.add_argument(
        "--orphans",
        action="store_true",
        help="orphans instead of sessions, by the time they were last modified (`check --adopt-orphans` keeps them)",
    )
    _brake_option(parser)
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--dry-run", action="store_true", help="say what would go; delete nothing")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("-v", "--verbose", action="store_true", help="name each session that goes or stays, and why")
    _lock_options(parser)


def _prune_size(parser: argparse.ArgumentParser) -> None:
    size = _by(parse_size_bytes)
    parser.add_argument("--max-mb", metavar="X", type=size, help="the limit: MB, or with a unit (512M, 10GB, 1.5GiB)")
    parser.add_argument("--target-mb", metavar="Y", type=size, help="prune down to this once over the limit")
    parser.add_argument(
        "--min-age-mins", metavar="M", type=_by(parse_number), default=0.0, help="keep sessions younger than this"
    )
    parser.add_argument("--keep-last", metavar="N", type=_by(parse_count), default=0, help="keep the newest N sessions")
    parser.add_argument(
        "--max-sessions",
        metavar="N",
        type=_by(_at_least_one),
        help="keep at most N sessions, whatever their size",
    )
    _brake_option(parser)
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
    _env_file_option(parser)


def _env_file_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--env-file", metavar="FILE", type=_file, help=f"more settings, read at each cycle [{DEFAULT_PREFIX}_ENV_FILE]"
    )


def _at_least_one(text: str) -> int:
    return parse_count(text, 1)


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


def _config(parser: argparse.ArgumentParser) -> None:
    _env_file_option(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object")


def _completion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", metavar="SHELL", choices=("bash", "zsh", "fish"), help="bash, zsh or fish")


def _help(parser: argparse.ArgumentParser) -> None:
    names = [command.name for command in COMMANDS]
    parser.add_argument("of", metavar="COMMAND", nargs="?", choices=names, help="the command that it is about")


_TOLD_BY_CHECK = ("storage_manager.anomaly", "storage_manager.storage_suspect", "storage_manager.check.summary")

_ANOMALIES = ("storage_manager.anomaly",)

COMMANDS = (
    Command("list", "list the sessions, oldest first: one guid a line", _list, "list", only_tells=True,
            told_behind=_ANOMALIES,
            examples=("storage_manager list --verbose --group weekly",
                      "storage_manager list --json > sessions.jsonl")),
    Command("stats", "totals, groups, anomalies, and how full the store is", _stats, "stats", only_tells=True,
            told_in_result=_ANOMALIES, told_behind=_ANOMALIES,
            examples=("storage_manager stats",
                      "GOFR_DIG_MAX_STORAGE_MB=10G storage_manager stats --json"),
            note="The limit is GOFR_DIG_MAX_STORAGE_MB."),
    Command("check", "what is odd about the store, and what to do; repairs when asked to", _check, "check",
            told_in_result=_TOLD_BY_CHECK,
            examples=("storage_manager check",
                      "storage_manager check --repair --yes")),
    Command("purge", "delete the sessions of an age and older", _purge, "purge", told_behind=_ANOMALIES,
            examples=("storage_manager purge --age-days 14 --dry-run",
                      "storage_manager purge --age-days 0.5 --group weekly")),
    Command("prune-size", "delete the oldest sessions until the store is within a size", _prune_size, "prune_size",
            told_in_result=("storage_manager.prune.target_unmet",), told_behind=_ANOMALIES,
            examples=("storage_manager prune-size --max-mb 10G --dry-run",
                      "storage_manager prune-size --max-mb 512 --target-mb 400 --keep-last 20"),
            note="A dry run without a limit takes GOFR_DIG_MAX_STORAGE_MB."),
    Command("run-loop", "keep the store within its limit until it is stopped", _run_loop, "run_loop",
            examples=("GOFR_DIG_MAX_STORAGE_MB=10G storage_manager run-loop",
                      "storage_manager run-loop --once --dry-run"),
            note="The limit is GOFR_DIG_MAX_STORAGE_MB, the interval GOFR_DIG_HOUSEKEEPING_INTERVAL_MINS."),
    Command("history", "what was deleted, when and why, also of one session", _history, "history", only_tells=True,
            examples=("storage_manager history --since 7d",
                      "storage_manager history --session 0b9e2f6c-8d0c-4a53-9f0e-3c1d6a7b5e42")),
    Command("health", "whether run-loop does its work: one sentence, exit code 0 or 1", _health, "health", quiet=True,
            told_in_result=("storage_manager.health.unhealthy",),
            examples=("storage_manager health",
                      "storage_manager health --json")),
    Command("config", "the settings in force, where each comes from, and what is wrong", _config, "config",
            quiet=True, only_tells=True,
            examples=("storage_manager config",
                      "GOFR_DIG_MAX_STORAGE_MB=10G storage_manager config --json")),
    Command("completion", "print what makes a shell complete commands and options", _completion, "completion",
            quiet=True, only_tells=True,
            examples=("source <(storage_manager completion bash)",
                      "storage_manager completion fish > storage_manager.fish")),
    Command("help", "explain a command, or list them", _help, "help", quiet=True, only_tells=True,
            examples=("storage_manager help",
                      "storage_manager help prune-size")),
)  # fmt: skip

_CODES = "\n".join(f"  {code:<4} {meaning}" for code, meaning in EXIT_CODES.items())
_TOOL = Command(
    "",
    "keep a session store under its size limit while the service goes on writing",
    lambda parser: None,
    "",
    note=f"exit codes:\n{_CODES}\n\n"
    "A size is in MB, or has a unit (512M, 10GB, 1.5GiB). 1 MB is 1 MiB: 1,048,576 bytes.\n\n"
    "The store is --storage-dir, else --data-root/storage, else GOFR_DIG_STORAGE, GOFR_DIG_STORAGE_DIR or "
    f"GOFR_DIG_DATA_DIR/storage from the environment, else {DEFAULT_STORAGE_DIR}. Variables begin with what "
    f"STORAGE_MANAGER_ENV_PREFIX says ({DEFAULT_PREFIX}).",
)
_EVERYWHERE = "global options"
# The groups of options in help, but for those that decide what is done.
_TITLES = dict.fromkeys(("--dry-run", "--yes", "--json", "--verbose"), "questions and output")


class _Parser(argparse.ArgumentParser):
    variables: Callable[[], Mapping[str, str]] = dict
    """How help shall show the variables that it names, with their values; cli.py knows them."""

    def error(self, message: str) -> NoReturn:
        raise WrongUsage(self, message)

    def format_usage(self) -> str:
        from shutil import get_terminal_size

        from storage_manager.usage.page import synopsis

        return synopsis(_outline(self), get_terminal_size().columns) + "\n"

    def format_help(self) -> str:
        from shutil import get_terminal_size

        from storage_manager.usage.outline import with_values
        from storage_manager.usage.page import page

        columns, rows = get_terminal_size()
        # `help` is one screen. `--help` of the tool is all there is to say.
        is_tool = self.get_default("chosen") is _TOOL
        about = with_values(_outline(self), self.variables())
        return page(about, outlines()[1:] if is_tool else [], columns, inf if is_tool else rows) + "\n"

    def _print_message(self, message: str, file: object = None) -> None:
        """Help and version, to a reader that may have gone away."""
        out = Output(sys.stdout)
        out.line(message.rstrip("\n"))
        out.flush()
        if out.failure is not None:
            raise SystemExit(EXIT_FAILED)


class WrongUsage(Exception):
    """What the command line asks for is not in the grammar of `parser`. People are shown the usage of `shown`."""

    def __init__(
        self, parser: argparse.ArgumentParser, message: str, shown: Optional[argparse.ArgumentParser] = None
    ) -> None:
        self.parser = parser
        self.shown = shown or parser
        super().__init__(message)


def parse(arguments: list[str], variables: Callable[[], Mapping[str, str]]) -> argparse.Namespace:
    """The command line as its command takes it; `variables` are for help, see _Parser.

    Raises WrongUsage, with what was probably meant, and SystemExit after --help and --version.
    """
    try:
        # A grammar costs a start as much as argparse itself: only what is named here can be what is asked for.
        parser = build_parser(tuple(command for command in COMMANDS if command.name in arguments))
        parser.variables = variables
        return parser.parse_args(arguments)
    except WrongUsage:
        parser = build_parser()
    try:
        return parser.parse_args(arguments)
    except WrongUsage as wrong:
        raise _explained(wrong, parser, arguments) from None


def build_parser(commands: tuple[Command, ...] = COMMANDS) -> _Parser:
    """The grammar of these commands. Global options are taken before and after the subcommand."""
    parser = _Parser(prog="storage_manager", allow_abbrev=False, add_help=False)
    parser.set_defaults(chosen=_TOOL)
    everywhere = parser.add_argument_group(_EVERYWHERE)
    everywhere.add_argument(
        "--version", action="version", version=f"storage_manager {__version__}", help="say which version this is"
    )
    _add_global_options(everywhere, None)

    def variables() -> Mapping[str, str]:
        return parser.variables()

    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in commands:
        subparser = subparsers.add_parser(command.name, allow_abbrev=False, add_help=False)
        subparser.variables = variables
        command.add_options(subparser)
        # Without a default of its own: it must not overwrite what was given before the command.
        _add_global_options(subparser.add_argument_group(_EVERYWHERE), argparse.SUPPRESS)
        subparser.set_defaults(chosen=command, outlines=outlines, variables=variables)
    return parser


def outlines() -> list[Outline]:
    """What help and completion read, of the whole grammar: the tool itself comes first."""
    parser = build_parser()
    return [_outline(parser), *map(_outline, _subparsers(parser).values())]


def _subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    [choices] = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return choices


def _outline(parser: argparse.ArgumentParser) -> Outline:
    from storage_manager.usage.outline import Outline, read_options  # few runs show it

    command: Command = parser.get_default("chosen")
    options = read_options(parser, _TITLES)
    own = [option for option in options if option.title != _EVERYWHERE]
    everywhere = [option for option in options if option.title == _EVERYWHERE]
    return Outline(parser.prog, command.name, command.help, own, everywhere, command.examples, command.note)


def _explained(wrong: WrongUsage, parser: argparse.ArgumentParser, arguments: list[str]) -> WrongUsage:
    """The same for people: what was probably meant, and with the usage of the command that was meant."""
    from storage_manager.usage.suggestion import find_slip

    slip = find_slip(outlines(), arguments)
    parsers = {"": parser, **_subparsers(parser)}
    return WrongUsage(parsers[slip.command], slip.message or str(wrong), parsers[slip.shown])


def _add_global_options(parser: argparse._ActionsContainer, default: Optional[str]) -> None:
    parser.add_argument(
        "--storage-dir", metavar="DIR", type=_directory, default=default,
        help=f"the directory of the store [{DEFAULT_PREFIX}_STORAGE]",
    )  # fmt: skip
    parser.add_argument(
        "--data-root", metavar="DIR", type=_directory, default=default,
        help=f"the store is DIR/storage [{DEFAULT_PREFIX}_DATA_DIR]",
    )  # fmt: skip
    parser.add_argument(
        "--gofr-dig-env", choices=("PROD", "TEST"), default=default,
        help=f"which environment, for the log [{DEFAULT_PREFIX}_ENV]",
    )  # fmt: skip
    parser.add_argument(
        "--log-format", choices=("json", "text"), default=default,
        help=f"of stderr; default: by terminal [{DEFAULT_PREFIX}_LOG_JSON]",
    )  # fmt: skip
    parser.add_argument(
        "--log-level", metavar="LEVEL", type=str.upper, choices=tuple(LEVELS), default=default,
        help=f"of stderr: {', '.join(LEVELS)} [{DEFAULT_PREFIX}_LOG_LEVEL]",
    )  # fmt: skip
    parser.add_argument(
        "--color", choices=("auto", "always", "never"), default=default,
        help="auto: on a terminal, unless NO_COLOR is set",
    )  # fmt: skip
    parser.add_argument(
        "-q", "--quiet", action="store_true", default=False if default is None else default,
        help="only warnings and errors on stderr",
    )  # fmt: skip
    parser.add_argument("-h", "--help", action="help", help="show this help")


def _directory(text: str) -> str:
    if not text:
        # An unset variable in a script must not turn into the default store.
        raise argparse.ArgumentTypeError("it is empty: name a directory")
    return text


def _file(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("it is empty: name a file")
    return text
