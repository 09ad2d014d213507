"""The composition: what every command is handed, and the one error boundary around it."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Optional

from storage_manager.base.clock import Clock
from storage_manager.base.colour import is_wanted
from storage_manager.base.errors import (
    EXIT_FAILED,
    EXIT_OK,
    EXIT_USAGE,
    Interrupted,
    StorageManagerError,
    UsageError,
    describe_errno,
    described,
)
from storage_manager.base.log import (
    LEVELS,
    EventLog,
    HeldBack,
    StderrHandler,
    add_log_file,
    build_logger,
    close_logger,
    standard_error,
)
from storage_manager.base.output import Output
from storage_manager.base.text import printable
from storage_manager.commands import Context
from storage_manager.config import (
    Fallback,
    Row,
    Settings,
    explain_settings,
    read_settings,
    report_fallbacks,
    shown_variables,
)
from storage_manager.grammar import WrongUsage, parse
from storage_manager.store.names import METADATA_NAME

if TYPE_CHECKING:
    from storage_manager.loop.env_file import EnvFile  # few runs have one

_LOOP = "run-loop"

Run = Callable[[argparse.Namespace, Context], int]


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run one command and return its exit code. The only function that the outside calls."""
    # A command is short-lived and makes millions of small objects that refer to nothing: collecting
    # garbage among them costs a tenth of the run and finds none. The loop collects between cycles.
    gc.disable()
    arguments = list(sys.argv[1:] if argv is None else argv)
    clock = Clock()
    try:
        _occupy_standard_descriptors()
        clock.install()
        exit_code = _main(arguments, clock)
        clock.retire()
        return exit_code
    except Interrupted as interrupted:  # before or after the command itself
        clock.retire()
        return EXIT_OK if _LOOP in arguments else interrupted.exit_code
    except (OSError, ImportError) as error:  # no descriptor left, for one: there is no log yet to tell it
        with suppress(OSError):
            os.write(2, f"storage_manager: cannot start: {described(error)}\n".encode("utf-8", "replace"))
        return EXIT_FAILED


def _main(arguments: list[str], clock: Clock) -> int:
    try:
        args = parse(arguments, lambda: shown_variables(os.environ))
    except WrongUsage as wrong:
        return _wrong_usage(wrong)
    except SystemExit as done:  # --help and --version
        return int(done.code or 0)

    env_file = _env_file(args, clock)

    def environ() -> Mapping[str, str]:
        return env_file.environ if env_file else os.environ

    def load() -> tuple[Settings, list[Fallback]]:
        settings, fallbacks = read_settings(environ(), args.storage_dir, args.data_root)
        settings = settings._replace(environment=args.gofr_dig_env or settings.environment)
        return env_file.bind(settings) if env_file else settings, fallbacks

    def explain_load() -> tuple[Settings, list[Row], list[Fallback]]:
        settings, rows, unknown = explain_settings(environ(), args.storage_dir, args.data_root)
        options = {"ENV": args.gofr_dig_env, "LOG_LEVEL": args.log_level, "LOG_JSON": args.log_format}
        flags = {"ENV": "--gofr-dig-env", "LOG_LEVEL": "--log-level", "LOG_JSON": "--log-format"}
        given = {f"{settings.prefix}_{name}": (value, flags[name]) for name, value in options.items() if value}
        rows = [Row(row.variable, *given[row.variable]) if row.variable in given else row for row in rows]
        return (env_file.bind(settings), env_file.explain(rows), unknown) if env_file else (settings, rows, unknown)

    # The one that was asked for: start-up is the import of what it needs.
    command = import_module(f"storage_manager.commands.{args.chosen.module}")
    settings, fallbacks = load()
    logger, log_fallbacks = _build_logger(args, settings)
    log = EventLog(logger)
    if not args.chosen.quiet:
        _ship(logger, log, settings)
    if args.command == _LOOP and settings.seq is not None:
        from storage_manager.seq import ingest  # noqa: F401  # later, the archive may be another one
    out = Output(sys.stdout, args.chosen.only_tells, lambda on_terminal: is_wanted(args.color, on_terminal, os.environ))
    held_back = _at_a_terminal(args, logger, clock)
    try:
        # The loop reports the environment itself, at each cycle; what asks about the loop need not repeat it.
        report_fallbacks(log_fallbacks + ([] if args.command == _LOOP or args.chosen.quiet else fallbacks), log)
        refresh = env_file.refresh if env_file else lambda log: False
        context = Context(settings, load, explain_load, refresh, sys.argv[0], clock, log, out)
        return _run(args, lambda: _answer(args, command.run, context, held_back), context)
    finally:
        close_logger(logger)


def _env_file(args: argparse.Namespace, clock: Clock) -> Optional[EnvFile]:
    """For the commands that have the option."""
    if not hasattr(args, "env_file"):
        return None
    settings, _ = read_settings(os.environ, None, None)
    path = args.env_file or settings.env_file
    if path is None:
        return None
    from storage_manager.loop.env_file import EnvFile

    source = "--env-file" if args.env_file else f"{settings.prefix}_ENV_FILE"
    return EnvFile(path, source, os.environ, settings.prefix, clock)


def _run(args: argparse.Namespace, answer: Callable[[], int], context: Context) -> int:
    """The error boundary: every failure becomes an event and an exit code."""
    log, command = context.log, args.command
    started = context.clock.monotonic()
    problem: Optional[str] = None
    try:
        log.info(
            "storage_manager.command_start",
            f"{command} on {context.settings.storage_dir}",
            command=command,
            storage_dir=context.settings.storage_dir,
            storage_source=context.settings.storage_source,
            environment=context.settings.environment,
        )
        context.clock.accept_hangups(to_stop=command != _LOOP)
        exit_code = answer()
    except StorageManagerError as error:
        exit_code, problem = error.exit_code, str(error)
        if not error.reported:
            emit = log.error if error.exit_code in (EXIT_FAILED, EXIT_USAGE) else log.warning
            event = _usage_event(command) if isinstance(error, UsageError) else error.event
            emit(event, problem, command=command, exit_code=exit_code, **error.fields)
    except Interrupted as interrupted:
        exit_code, problem = EXIT_OK if command == _LOOP else interrupted.exit_code, str(interrupted)
        log.warning("storage_manager.command_failed", problem, command=command, exit_code=exit_code)
    except OSError as error:
        exit_code = EXIT_FAILED
        problem = describe_errno(error) + (f": {error.filename}" if error.filename else "")
        log.error("storage_manager.command_failed", problem, command=command, exit_code=exit_code)
    except MemoryError:
        exit_code, problem = EXIT_FAILED, "not enough memory for a store of this size"
        log.error("storage_manager.command_failed", problem, command=command, exit_code=exit_code)
    except Exception as error:  # a fault of ours: the log gets the traceback, the user a sentence
        exit_code, problem = EXIT_FAILED, f"internal error, please report it: {type(error).__name__}: {error}"
        log.exception("storage_manager.command_failed", problem, error, command=command, exit_code=exit_code)
    context.out.flush()
    if context.out.failure is not None and exit_code == EXIT_OK:
        exit_code, problem = EXIT_FAILED, f"cannot write the result: {describe_errno(context.out.failure)}"
        log.error("storage_manager.command_failed", problem, command=command, exit_code=exit_code)
    log.info(
        "storage_manager.command_end",
        f"{command} ended with exit code {exit_code}" + (f": {problem}" if problem else ""),
        command=command,
        exit_code=exit_code,
        duration_ms=round((context.clock.monotonic() - started) * 1000),
    )
    return exit_code


def _build_logger(args: argparse.Namespace, settings: Settings) -> tuple[logging.Logger, list[Fallback]]:
    stream = standard_error()
    on_terminal = stream is not None and stream.isatty()
    chosen_format = args.log_format
    if chosen_format is not None:
        as_json = chosen_format == "json"
    else:
        as_json = not on_terminal if settings.log_json is None else settings.log_json
    chosen_level = args.log_level
    if args.quiet:
        level = max(logging.WARNING, LEVELS[chosen_level] if chosen_level is not None else settings.log_level)
    elif chosen_level is not None:
        level = LEVELS[chosen_level]
    else:
        # A person at a terminal reads the result; the loop has no other result than its events.
        level = logging.WARNING if args.chosen.quiet or on_terminal and args.command != _LOOP else settings.log_level
    logger = build_logger(stream, as_json, level, is_wanted(args.color, on_terminal, os.environ))
    is_seen = on_terminal and sys.stdout is not None and sys.stdout.isatty()
    told = args.chosen.told_in_result if is_seen and not getattr(args, "group", None) else ()
    if args.command == _LOOP and not as_json:
        for handler in logger.handlers:
            handler.addFilter(_without_repetition())
    if told:
        for handler in logger.handlers:
            handler.addFilter(lambda record: getattr(record, "event", None) not in told)
    return logger, [] if args.chosen.quiet else _add_log_file(logger, settings)


def _without_repetition() -> Callable[[logging.LogRecord], bool]:
    """For the loop's text log: the end of a cycle is left out if it only says what the summary has just said.

    Not the other way round: a cycle that a signal cuts short has a summary alone.
    """
    said = ""

    def passes(record: logging.LogRecord) -> bool:
        nonlocal said
        event = getattr(record, "event", None)
        if event == "storage_manager.prune.summary":
            said = record.getMessage()
        return event != "housekeeper.cycle_ok" or record.getMessage() != said

    return passes


def _at_a_terminal(args: argparse.Namespace, logger: logging.Logger, clock: Clock) -> Optional[HeldBack]:
    """For a person who waits for the answer: see what takes long, and then the answer before what is odd."""
    held_back = None
    for handler in logger.handlers:
        if not (isinstance(handler, StderrHandler) and handler.is_for_people):
            continue
        if args.chosen.told_behind:
            held_back = HeldBack(handler, args.chosen.told_behind)
        is_waited_for = not (args.quiet or args.chosen.quiet or args.command == _LOOP)
        if is_waited_for and os.environ.get("TERM", "dumb") not in ("", "dumb"):
            from storage_manager.base.meter import Meter  # a run by a timer has no use for it

            clock.meter = Meter(handler.fd, handler.show, clock.monotonic)
            handler.addFilter(clock.meter.make_way)
    return held_back


def _answer(args: argparse.Namespace, run: Run, context: Context, held_back: Optional[HeldBack]) -> int:
    """The result, and behind it the events that were held back."""
    try:
        return run(args, context)
    finally:
        if held_back is not None:
            context.out.flush()
            held_back.tell()


def _add_log_file(logger: logging.Logger, settings: Settings) -> list[Fallback]:
    """If the settings name one. Returns what is wrong with it."""
    if settings.log_file is None:
        return []
    from storage_manager.loop.own_files import LOG, refused_files  # few runs have a log file

    refused = refused_files(settings).get(LOG)
    if refused is None:
        problem = add_log_file(logger, settings.log_file, os.path.join(settings.storage_dir, METADATA_NAME))
        if problem is None:
            return []
        path = printable(settings.log_file, 200)
        refused = Fallback(f"{settings.prefix}_{LOG}", path, "no log file", problem)
    return [refused]


def _ship(logger: logging.Logger, log: EventLog, settings: Settings) -> None:
    if settings.seq is not None:
        from storage_manager.seq.handler import ship  # few runs need it

        ship(logger, log, settings.seq, settings.prefix)


def _wrong_usage(wrong: WrongUsage) -> int:
    """argparse's message and a hint for people; the event for whoever reads logs."""
    stream = standard_error()
    if stream is not None:
        text = f"{wrong.shown.format_usage()}{wrong.parser.prog}: error: {printable(wrong)}\n"
        text += f"Try '{wrong.shown.prog} --help'.\n"
        with suppress(OSError):  # nobody listens; the exit code says it
            os.write(stream.fileno(), text.encode("utf-8", "backslashreplace"))
    settings, _ = read_settings(os.environ, None, None)
    # On a terminal the sentence stands there already.
    show = stream is not None and not stream.isatty()
    logger = build_logger(stream if show else None, settings.log_json is not False, logging.INFO)
    _add_log_file(logger, settings)
    log = EventLog(logger)
    _ship(logger, log, settings)
    command = wrong.parser.prog.partition(" ")[2] or None
    log.error(_usage_event(command), f"wrong usage: {wrong}", command=command, exit_code=EXIT_USAGE)
    close_logger(logger)
    return EXIT_USAGE


def _usage_event(command: Optional[str]) -> str:
    return f"storage_manager.{'prune.validation_failed' if command == 'prune-size' else 'command_failed'}"


def _occupy_standard_descriptors() -> None:
    """Make sure that 0, 1 and 2 are open: a file of the store must never become somebody's standard error."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
