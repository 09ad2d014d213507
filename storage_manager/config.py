"""The environment as settings. A value that cannot be used falls back to the default, and comes back as data."""

from __future__ import annotations

import binascii
import logging
import os
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple, Optional, TypeVar

from storage_manager.base.log import LEVELS, EventLog
from storage_manager.base.quantity import (
    BYTES_PER_MB,
    Share,
    parse_count,
    parse_number,
    parse_positive,
    parse_share,
    parse_size_bytes,
    size,
)
from storage_manager.base.text import is_name, nearest, printable
from storage_manager.seq.server import Secret, SeqServer, seq_server

PREFIX_VARIABLE = "STORAGE_MANAGER_ENV_PREFIX"
DEFAULT_PREFIX = "GOFR_DIG"
DEFAULT_STORAGE_DIR = os.path.join(".", "data", "storage")
DEFAULT_INTERVAL_MINS = 60.0
DEFAULT_MAX_STORAGE_MB = 1024
DEFAULT_LOCK_STALE_SECS = 3600.0

# A year between two cycles is a typing error, not a plan.
LONGEST_INTERVAL_MINS = 366 * 24 * 60.0

# A lock is young while its holder writes its line; treating one as stale within seconds would break it.
SHORTEST_LOCK_STALE_SECS = 30.0
LONGEST_LOCK_STALE_SECS = 366 * 24 * 3600.0

# Every variable of ours, without the prefix: what nearly is one of these is a slip of the keyboard.
NAMES = (
    "STORAGE", "STORAGE_DIR", "DATA_DIR", "ENV", "MAX_STORAGE_MB", "TARGET_STORAGE_MB", "MIN_AGE_MINS", "KEEP_LAST",
    "MAX_AGE_DAYS", "MAX_SESSIONS", "MAX_DELETE", "HOUSEKEEPING_INTERVAL_MINS", "HOUSEKEEPER_LOCK_STALE_SECONDS",
    "ORPHANS", "HOUSEKEEPER_HEARTBEAT_FILE", "LOG_LEVEL", "LOG_JSON", "LOG_FILE", "METRICS_FILE", "HISTORY_FILE",
    "SEQ_URL", "SEQ_API_KEY", "ENV_FILE",
)  # fmt: skip
_LIMIT = "MAX_STORAGE_MB"

# Below a minute an age means everything, which nobody asks a loop for.
SHORTEST_MAX_AGE_DAYS = 1 / (24 * 60)

# How alike, of 1, two names are before one is taken for the other. STORAGE_URL is 0.82 like STORAGE_DIR.
_ALIKE = 0.85
# In any order, these words can only mean the limit.
_LIMIT_WORDS = ("MAX", "MAXIMUM", "LIMIT", "QUOTA", "SIZE")
_STORE_WORDS = ("STORAGE", "STORE")
_UNIT_WORDS = ("B", "BYTES", "KB", "KIB", "M", "MB", "MIB", "G", "GB", "GIB", "TB", "TIB")

# A value in quotes, which docker's --env-file keeps; then perhaps a comment. Few runs have to compile this.
_QUOTED = r"""(?s)(?:"([^"]*)"|'([^']*)')(?:\s+#.*)?"""
_COMMENTED = r"(?s)([^#\s].*?)\s+#.*"

_DEFAULT_FILE = r"(?a)storage_manager-(?P<user>\d+)-(?P<store>[0-9a-f]{8})\.(?P<kind>heartbeat|history)"

# What stands for a limit that is not set.
NONE = "none"
# What is done with orphans unless something else is asked for.
KEEP = "keep"
# Where a limit comes from.
SET, DEFAULT, OFF, INVALID = "set", "default", "off", "invalid"
Value = TypeVar("Value")


class Fallback(NamedTuple):
    """A variable whose value could not be used, or which is none of ours but was probably meant to be."""

    variable: str
    value: str
    """Shortened and printable."""
    default: str
    """What is used instead; of a name that is none of ours, the name that was probably meant."""
    reason: str
    is_error: bool = False
    """Whether somebody must act: nothing is deleted until then."""
    is_unknown: bool = False
    """Whether it is the name that is wrong."""
    remedy: str = ""
    """What to do, where every deletion is held whatever the other settings say; empty: correct the variable."""


class Row(NamedTuple):
    """One setting, explained."""

    variable: str
    value: str
    """In force. Printable, and without secrets."""
    source: str
    """What named it: `default`, `environment`, `file` or an option."""
    problem: str = ""
    """Why that is not what was asked for."""


class Orphans(NamedTuple):
    """What each cycle does with orphans, which are no longer in flight. With neither, it keeps them."""

    group: Optional[str] = None
    """They are given entries in it."""
    age_days: Optional[float] = None
    """Those that were last modified so long ago are purged."""

    def __str__(self) -> str:
        if self.group is not None:
            return f"adopt:{self.group}"
        return KEEP if self.age_days is None else f"purge:{self.age_days:g}"


class Settings(NamedTuple):
    """What the environment asks for."""

    storage_dir: str
    storage_source: str
    """Where the storage directory was named, for messages."""
    environment: Optional[str]
    """PROD, TEST, or None when nobody says."""
    interval_secs: float
    max_storage_bytes: Optional[int]
    """None: deletion is switched off."""
    lock_stale_secs: float
    log_level: int
    log_json: Optional[bool]
    """None: JSON unless standard error is a terminal."""
    log_file: Optional[str]
    seq: Optional[SeqServer]
    """None: nothing is shipped."""
    heartbeat_file: str
    """What the loop replaces at each turn, and `health` reads."""
    metrics_file: Optional[str]
    history_file: Optional[str]
    """As it is set: `off`, a file, or None for one in the temporary directory."""
    temporary_dir: str
    notify_socket: Optional[str]
    """Where a service manager wants to be told, as systemd names it."""
    watchdog_secs: Optional[float]
    """A service manager restarts the loop when it hears nothing for this long."""
    prefix: str
    """What the variables' names begin with."""
    limit_source: str
    """SET, DEFAULT, OFF or INVALID: set but not understood, so that the default is in force for the check alone."""
    held_by: Optional[Fallback]
    """What of the settings that say what goes cannot be used: nothing is deleted until somebody has corrected it."""
    target_storage_bytes: Optional[int] = None
    """Beyond the limit, sessions go until this is reached; None: the limit itself."""
    min_age_mins: float = 0.0
    """Younger sessions stay."""
    keep_last: int = 0
    """So many of the newest stay."""
    max_age_days: Optional[float] = None
    """Sessions of that age go, whatever the usage."""
    max_sessions: Optional[int] = None
    max_delete: Optional[Share] = None
    """A cycle that would delete more deletes nothing."""
    orphans: Orphans = Orphans()
    env_file: Optional[str] = None
    """A file with more settings, which run-loop and config read."""
    from_file: frozenset[str] = frozenset()
    """The variables that are set there, and count."""

    @property
    def limit_variable(self) -> str:
        return f"{self.prefix}_{_LIMIT}"


Load = Callable[[], "tuple[Settings, list[Fallback]]"]
"""Makes settings of the environment, and of what is known of the settings file."""
Refresh = Callable[[EventLog], bool]
"""Reads the settings file anew, as the loop does before each cycle, and tells what has changed. Returns whether that
changes what a cycle does. Raises nothing."""
Explain = Callable[[], "tuple[Settings, list[Row], list[Fallback]]"]
"""As explain_settings()."""


def read_settings(
    environ: Mapping[str, str], storage_dir: Optional[str], data_root: Optional[str]
) -> tuple[Settings, list[Fallback]]:
    """Settings from the environment, and from the two options that name the store; and what was unusable."""
    settings, reader = _read(environ, storage_dir, data_root)
    return settings, reader.fallbacks


def explain_settings(
    environ: Mapping[str, str], storage_dir: Optional[str], data_root: Optional[str]
) -> tuple[Settings, list[Row], list[Fallback]]:
    """The same, one row for each setting, and the names that are none of ours but nearly."""
    settings, reader = _read(environ, storage_dir, data_root)
    problems = {one.variable: explained(one) for one in reader.fallbacks}
    rows = [row._replace(problem=problems.get(row.variable, "")) for row in reader.rows]
    return settings, rows, [one for one in reader.fallbacks if one.is_unknown]


def shown_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Each variable, by its name with the default prefix: its name in force, and its value where that is known."""
    settings, rows, _ = explain_settings(environ, None, None)
    found = {}
    for row in rows:
        # A default may be said in words, and a settings file may say otherwise.
        is_open = row.source == DEFAULT and (" " in row.value or settings.env_file is not None)
        value = "" if row.value == NONE or is_open else f"={row.value}"
        doubt = " (not as it is set: see `config`)" if row.problem else ""
        if row.variable != PREFIX_VARIABLE:
            found[DEFAULT_PREFIX + row.variable[len(settings.prefix) :]] = f"{row.variable}{value}{doubt}"
    return found


def _read(environ: Mapping[str, str], storage_dir: Optional[str], data_root: Optional[str]) -> tuple[Settings, _Reader]:
    reader = _Reader(environ)
    directory, source = reader.storage(storage_dir, data_root)
    limit_bytes, limit_source = reader.limit()
    settings = Settings(
        storage_dir=directory,
        storage_source=source,
        environment=reader.text("ENV", NONE),
        max_storage_bytes=limit_bytes,
        limit_source=limit_source,
        target_storage_bytes=reader.rule("TARGET_STORAGE_MB", parse_size_bytes),
        max_age_days=reader.rule("MAX_AGE_DAYS", lambda text: parse_number(text, SHORTEST_MAX_AGE_DAYS)),
        max_sessions=reader.rule("MAX_SESSIONS", lambda text: parse_count(text, 1)),
        min_age_mins=reader.rule("MIN_AGE_MINS", parse_number) or 0.0,
        keep_last=reader.rule("KEEP_LAST", parse_count) or 0,
        max_delete=reader.rule("MAX_DELETE", parse_share),
        orphans=reader.rule("ORPHANS", _orphans, KEEP) or Orphans(),
        interval_secs=60.0 * reader.value("HOUSEKEEPING_INTERVAL_MINS", DEFAULT_INTERVAL_MINS, _interval_mins),
        lock_stale_secs=reader.value(
            "HOUSEKEEPER_LOCK_STALE_SECONDS",
            DEFAULT_LOCK_STALE_SECS,
            lambda text: parse_number(text, SHORTEST_LOCK_STALE_SECS, LONGEST_LOCK_STALE_SECS),
        ),
        log_level=reader.value("LOG_LEVEL", logging.INFO, _level, shown="INFO"),
        log_json=reader.value("LOG_JSON", None, _boolean, shown="decided by the terminal"),
        log_file=reader.text("LOG_FILE", NONE),
        seq=reader.seq(),
        heartbeat_file=reader.heartbeat_file(directory),
        metrics_file=reader.text("METRICS_FILE", NONE),
        history_file=reader.text("HISTORY_FILE", "in the temporary directory"),
        temporary_dir=reader.temporary_dir(),
        notify_socket=environ.get("NOTIFY_SOCKET") or None,
        watchdog_secs=_watchdog_secs(environ),
        env_file=reader.text("ENV_FILE", NONE),
        prefix=reader.prefix,
        held_by=None,
    )
    reader.look_for_contradictions(settings)
    reader.look_for_slips()
    return settings._replace(held_by=reader.held_by), reader


def limit_text(limit_bytes: Optional[int], source: Optional[str]) -> str:
    """A limit as people are shown it: one that nobody has set is said to be the default."""
    if limit_bytes is None:
        return "no limit"
    return size(limit_bytes) + (" (default)" if source in (DEFAULT, INVALID) else "")


def absolute(path: str) -> str:
    """A path as others find it, too; as it is, when the current directory is gone."""
    try:
        return os.path.abspath(path)
    except OSError:
        return path


def default_file(directory: str, storage_dir: str, kind: str) -> str:
    """A name of its own for each user, store and kind of file."""
    checksum = binascii.crc32(storage_dir.encode("utf-8", "surrogatepass"))
    return os.path.join(directory, f"storage_manager-{os.geteuid()}-{checksum:08x}.{kind}")


def default_files_beside(path: str, *shared: str) -> list[str]:
    """The files that default_file() has named, too, if it has named `path`, and that share these parts of its name:
    `user`, `store`, `kind`. Raises OSError.
    """
    directory, name = os.path.split(path)
    own = re.fullmatch(_DEFAULT_FILE, name)
    if own is None:
        return []
    found = ((other, re.fullmatch(_DEFAULT_FILE, other)) for other in sorted(os.listdir(directory)) if other != name)
    return [os.path.join(directory, other) for other, its in found if its and its.group(*shared) == own.group(*shared)]


def report_fallbacks(fallbacks: list[Fallback], log: EventLog) -> None:
    for fallback in fallbacks:
        if fallback.is_unknown:
            log.warning(
                "housekeeper.unknown_env",
                f"{fallback.variable} is not looked at: {fallback.reason} {fallback.default}?",
                variable=fallback.variable,
                suggestion=fallback.default,
            )
            continue
        emit = log.error if fallback.is_error else log.warning
        emit(
            "housekeeper.invalid_env",
            f"{fallback.variable} is {explained(fallback)}",
            variable=fallback.variable,
            value=fallback.value,
            default=fallback.default,
            reason=fallback.reason,
        )


def explained(fallback: Fallback) -> str:
    """What is wrong with a value, and what is done instead."""
    return f"{fallback.value!r}: {fallback.reason}; {_what_then(fallback)}"


def _what_then(fallback: Fallback) -> str:
    if fallback.is_error and fallback.default == NONE:
        return "nothing is deleted until that is corrected"
    return f"using {fallback.default}" + ("; nothing is deleted for its sake" if fallback.is_error else "")


class _Reader:
    """Reads one variable after the other, and keeps what there is to say of each."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.fallbacks: list[Fallback] = []
        self.rows: list[Row] = []
        self.held_by: Optional[Fallback] = None
        given = environ.get(PREFIX_VARIABLE, "").strip()
        self.prefix = given or DEFAULT_PREFIX
        if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.prefix, re.ASCII) is None:
            # The limit is looked for under another name than the one that somebody has given it.
            is_error = f"{DEFAULT_PREFIX}_{_LIMIT}" not in environ
            self._fall_back(PREFIX_VARIABLE, self.prefix, DEFAULT_PREFIX, "it cannot begin a variable's name", is_error)
            self.prefix, self.held_by = DEFAULT_PREFIX, self.fallbacks[-1] if is_error else None
        shorter = self.prefix.rstrip("_")
        if shorter and shorter != self.prefix and not any(f"{self.prefix}_{name}" in environ for name in NAMES):
            self._fall_back(PREFIX_VARIABLE, self.prefix, shorter, "the _ behind it is added anyway")
            self.prefix = shorter
        self.rows.append(Row(PREFIX_VARIABLE, self.prefix, "environment" if given == self.prefix else "default"))

    def text(self, name: str, default: str) -> Optional[str]:
        """A variable's value; None when it is unset or blank."""
        text = self._given(name)
        self._explain(name, default if text is None else printable(text, 200), text is not None)
        return text

    def value(self, name: str, default: Value, parse: Callable[[str], Value], shown: Optional[str] = None) -> Value:
        shown = shown or f"{default:g}"
        text = _bare(self._given(name))
        value = default
        if text is not None:
            try:
                value = parse(text)
            except ValueError as error:
                self._fall_back(f"{self.prefix}_{name}", self._given(name) or "", shown, str(error))
                text = None
        self._explain(name, shown if text is None else printable(text, 200), text is not None)
        return value

    def rule(self, name: str, parse: Callable[[str], Value], shown: str = NONE) -> Optional[Value]:
        """What says what goes, and has no default: None when it is unset or `off`, which is shown as `shown`, and when
        it cannot be used, which holds every deletion.
        """
        text = _bare(self._given(name))
        value = None
        if text is not None and text.lower() != OFF:
            try:
                value = parse(text)
            except ValueError as error:
                self._hold(name, str(error))
        self._explain(name, shown if value is None else printable(text, 200), value is not None)
        return value

    def limit(self) -> tuple[Optional[int], str]:
        """(bytes, where they come from)."""
        default = DEFAULT_MAX_STORAGE_MB * BYTES_PER_MB
        text = _bare(self._given(_LIMIT))
        found: tuple[Optional[int], str] = default, INVALID if self.held_by else DEFAULT
        if text is not None and text.lower() == OFF:
            found = None, OFF
        elif text is not None:
            try:
                found = parse_size_bytes(text), SET
            except ValueError as error:
                reason = f"{error} (`off` switches deletion off)"
                self._hold(_LIMIT, reason, str(DEFAULT_MAX_STORAGE_MB))
                found = default, INVALID
        is_given = found[1] in (SET, OFF)
        self._explain(_LIMIT, printable(text, 200) if is_given else str(DEFAULT_MAX_STORAGE_MB), is_given)
        return found

    def look_for_contradictions(self, settings: Settings) -> None:
        """Settings that cannot all be meant: nobody can know which of them is wrong."""
        limit, target = settings.max_storage_bytes, settings.target_storage_bytes
        if limit is not None and target is not None and target > limit:
            self._hold("TARGET_STORAGE_MB", f"it is above the limit, {limit_text(limit, settings.limit_source)}")
        if settings.max_sessions is not None and settings.keep_last > settings.max_sessions:
            self._hold("KEEP_LAST", f"it is above {self.prefix}_MAX_SESSIONS, {settings.max_sessions:,}")
        if settings.max_age_days is not None and settings.min_age_mins > settings.max_age_days * 24 * 60:
            days = f"{settings.max_age_days:g}"
            self._hold("MIN_AGE_MINS", f"it is longer than {self.prefix}_MAX_AGE_DAYS, {days}")

    def _hold(self, name: str, reason: str, default: str = NONE) -> None:
        self._fall_back(f"{self.prefix}_{name}", self._given(name) or "", default, reason, is_error=True)
        self.held_by = self.held_by or self.fallbacks[-1]

    def _given(self, name: str) -> Optional[str]:
        return self._environ.get(f"{self.prefix}_{name}", "").strip() or None

    def _explain(self, name: str, shown: str, is_given: bool) -> None:
        self.rows.append(Row(f"{self.prefix}_{name}", shown, "environment" if is_given else "default"))

    def look_for_slips(self) -> None:
        """Tell of variables that are none of ours, but nearly."""
        start = f"{self.prefix}_"
        for variable in sorted(self._environ):
            if variable.startswith(start) and variable[len(start) :] not in NAMES:
                meant = _meant(variable[len(start) :])
                if meant is not None:
                    slip = Fallback(printable(variable, 80), "", start + meant, "did you mean", is_unknown=True)
                    self.fallbacks.append(slip)

    def storage(self, storage_dir: Optional[str], data_root: Optional[str]) -> tuple[str, str]:
        """(directory, where it was named)."""
        for name in ("STORAGE", "STORAGE_DIR", "DATA_DIR"):
            self.text(name, NONE)
        if storage_dir:
            return storage_dir, "--storage-dir"
        if data_root:
            return os.path.join(data_root, "storage"), "--data-root"
        for name in ("STORAGE", "STORAGE_DIR", "DATA_DIR"):
            value = self._environ.get(f"{self.prefix}_{name}", "")
            if value.strip():
                return os.path.join(value, "storage") if name == "DATA_DIR" else value, f"{self.prefix}_{name}"
        return DEFAULT_STORAGE_DIR, "the default"

    def seq(self) -> Optional[SeqServer]:
        url, key = self._given("SEQ_URL"), self._given("SEQ_API_KEY")
        server = None
        if url is not None:
            try:
                server = seq_server(url)
            except ValueError as error:
                # What is wrong with it may be where its password is: it is not shown.
                self._fall_back(f"{self.prefix}_SEQ_URL", repr(Secret(url)), "no shipping", str(error))
        self._explain("SEQ_URL", NONE if server is None else printable(server.url, 200), server is not None)
        if server is not None and key is not None and not (key.isascii() and key.isprintable()):
            reason = "it has characters that no header can carry"
            self._fall_back(f"{self.prefix}_SEQ_API_KEY", repr(Secret(key)), "no key", reason)
            key = None
        self._explain("SEQ_API_KEY", NONE if key is None else repr(Secret(key)), key is not None)
        return server if server is None or key is None else server._replace(api_key=Secret(key))

    def heartbeat_file(self, storage_dir: str) -> str:
        """By default a name of its own for each user and store, which `health` finds again."""
        default = default_file(self.temporary_dir(), absolute(storage_dir), "heartbeat")
        return self.text("HOUSEKEEPER_HEARTBEAT_FILE", printable(default)) or default

    def temporary_dir(self) -> str:
        directory = self._environ.get("TMPDIR", "")
        return directory if os.path.isabs(directory) else "/tmp"

    def _fall_back(self, variable: str, value: str, default: str, reason: str, is_error: bool = False) -> None:
        self.fallbacks.append(Fallback(variable, printable(value, 80), default, reason, is_error))


def _watchdog_secs(environ: Mapping[str, str]) -> Optional[float]:
    """What the service manager says, if it says it to this process."""
    if environ.get("WATCHDOG_PID", "").strip() not in ("", str(os.getpid())):
        return None
    try:
        return parse_positive(environ.get("WATCHDOG_USEC", ""), LONGEST_INTERVAL_MINS * 60e6) / 1e6
    except ValueError:  # none, or none that makes sense; it is not ours to complain about
        return None


def _bare(text: Optional[str]) -> Optional[str]:
    """A value without the quotes and the comment that some readers of environment files leave in it."""
    if text is None or not (text[:1] in "\"'" or "#" in text):
        return text
    quoted = re.fullmatch(_QUOTED, text)
    if quoted is not None:
        return (quoted.group(1) or quoted.group(2) or "").strip() or None
    commented = re.fullmatch(_COMMENTED, text)
    return text if commented is None else commented.group(1)


def _meant(name: str) -> Optional[str]:
    """The name of ours that somebody has probably meant."""
    words = set(name.strip("_").split("_"))
    names_both = words.intersection(_STORE_WORDS) and words.intersection(_LIMIT_WORDS)
    if names_both and not words.difference(_STORE_WORDS, _LIMIT_WORDS, _UNIT_WORDS):
        return _LIMIT
    for known in NAMES:
        if known.startswith("HOUSEKEEP") and known.endswith("_" + name) and "_" in name:
            return known
    if not any(name[:1] == known[:1] and abs(len(name) - len(known)) <= 4 for known in NAMES):
        return None
    return nearest(name, NAMES, _ALIKE)


def _interval_mins(text: str) -> float:
    return parse_positive(text, LONGEST_INTERVAL_MINS)


def _orphans(text: str) -> Orphans:
    verb, _, what = (part.strip() for part in text.partition(":"))
    verb = verb.lower()
    if verb == "purge" and what:
        return Orphans(age_days=parse_number(what, SHORTEST_MAX_AGE_DAYS))
    if verb == "adopt" and is_name(what):
        return Orphans(group=what)
    if text.lower() != KEEP:
        raise ValueError("it is none of keep, adopt:GROUP (without control characters) and purge:DAYS")
    return Orphans()


def _level(text: str) -> int:
    try:
        return LEVELS[text.upper()]
    except KeyError:
        raise ValueError(f"it is none of {', '.join(LEVELS)}") from None


def _boolean(text: str) -> Optional[bool]:
    lowered = text.lower()
    if lowered in ("1", "true", "yes", "on", "json"):
        return True
    if lowered in ("0", "false", "no", "off", "text"):
        return False
    raise ValueError("it is neither true nor false")
