"""The environment as settings. A value that cannot be used falls back to the default, and comes back as data."""

from __future__ import annotations

import binascii
import logging
import os
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple, Optional, TypeVar

from storage_manager.base.log import LEVELS, EventLog
from storage_manager.base.quantity import BYTES_PER_MB, parse_number, parse_positive, parse_size_bytes, size
from storage_manager.base.text import printable
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
    "STORAGE", "STORAGE_DIR", "DATA_DIR", "ENV", "MAX_STORAGE_MB", "HOUSEKEEPING_INTERVAL_MINS",
    "HOUSEKEEPER_LOCK_STALE_SECONDS", "HOUSEKEEPER_HEARTBEAT_FILE", "LOG_LEVEL", "LOG_JSON", "LOG_FILE", "METRICS_FILE",
    "HISTORY_FILE", "SEQ_URL", "SEQ_API_KEY",
)  # fmt: skip
_LIMIT = "MAX_STORAGE_MB"

# How alike, of 1, two names are before one is taken for the other. STORAGE_URL is 0.82 like STORAGE_DIR.
_ALIKE = 0.85
# In any order, these words can only mean the limit.
_LIMIT_WORDS = ("MAX", "MAXIMUM", "LIMIT", "QUOTA", "SIZE")
_STORE_WORDS = ("STORAGE", "STORE")
_UNIT_WORDS = ("B", "BYTES", "KB", "KIB", "M", "MB", "MIB", "G", "GB", "GIB", "TB", "TIB")

# A value in quotes, which docker's --env-file keeps; then perhaps a comment.
_QUOTED = re.compile(r"""(?:"([^"]*)"|'([^']*)')(?:\s+#.*)?""", re.DOTALL)
_COMMENTED = re.compile(r"([^#\s].*?)\s+#.*", re.DOTALL)

_DEFAULT_HEARTBEAT = re.compile(r"(storage_manager-\d+-)[0-9a-f]{8}\.heartbeat", re.ASCII)

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
    limit_problem: Optional[Fallback]
    """Why nobody has set the limit, although somebody has tried to."""

    @property
    def limit_variable(self) -> str:
        return f"{self.prefix}_{_LIMIT}"


Load = Callable[[], "tuple[Settings, list[Fallback]]"]
"""Reads the environment anew: the loop does before each cycle."""


def read_settings(
    environ: Mapping[str, str], storage_dir: Optional[str], data_root: Optional[str]
) -> tuple[Settings, list[Fallback]]:
    """Settings from the environment, and from the two options that name the store; and what was unusable."""
    reader = _Reader(environ)
    directory, source = reader.storage(storage_dir, data_root)
    interval_mins = reader.value("HOUSEKEEPING_INTERVAL_MINS", DEFAULT_INTERVAL_MINS, _interval_mins)
    limit_bytes, limit_source, limit_problem = reader.limit()
    settings = Settings(
        storage_dir=directory,
        storage_source=source,
        environment=reader.text("ENV"),
        interval_secs=60.0 * interval_mins,
        max_storage_bytes=limit_bytes,
        lock_stale_secs=reader.value(
            "HOUSEKEEPER_LOCK_STALE_SECONDS",
            DEFAULT_LOCK_STALE_SECS,
            lambda text: parse_number(text, SHORTEST_LOCK_STALE_SECS, LONGEST_LOCK_STALE_SECS),
        ),
        log_level=reader.value("LOG_LEVEL", logging.INFO, _level, shown="INFO"),
        log_json=reader.value("LOG_JSON", None, _boolean, shown="decided by the terminal"),
        log_file=reader.text("LOG_FILE"),
        seq=reader.seq(),
        heartbeat_file=reader.text("HOUSEKEEPER_HEARTBEAT_FILE") or reader.heartbeat_file(directory),
        metrics_file=reader.text("METRICS_FILE"),
        history_file=reader.text("HISTORY_FILE"),
        temporary_dir=reader.temporary_dir(),
        notify_socket=environ.get("NOTIFY_SOCKET") or None,
        watchdog_secs=_watchdog_secs(environ),
        prefix=reader.prefix,
        limit_source=limit_source,
        limit_problem=limit_problem,
    )
    reader.look_for_slips()
    return settings, reader.fallbacks


def limit_text(limit_bytes: Optional[int], source: Optional[str] = None) -> str:
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


def heartbeats_beside(path: str) -> list[str]:
    """The heartbeats of this user's loops on other stores, where `path` is a default one. Raises OSError."""
    directory, name = os.path.split(path)
    default = _DEFAULT_HEARTBEAT.fullmatch(name)
    if default is None:
        return []
    others = (other for other in os.listdir(directory) if other != name and _DEFAULT_HEARTBEAT.fullmatch(other))
    return [os.path.join(directory, other) for other in others if other.startswith(default.group(1))]


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
            f"{fallback.variable} is {fallback.value!r}: {fallback.reason}; using {fallback.default}"
            + ("; nothing is deleted for its sake" if fallback.is_error else ""),
            variable=fallback.variable,
            value=fallback.value,
            default=fallback.default,
            reason=fallback.reason,
        )


class _Reader:
    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.fallbacks: list[Fallback] = []
        self.prefix = environ.get(PREFIX_VARIABLE, "").strip() or DEFAULT_PREFIX
        self._wrong_prefix: Optional[Fallback] = None
        if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.prefix, re.ASCII) is None:
            # The limit is looked for under another name than the one that somebody has given it.
            is_error = f"{DEFAULT_PREFIX}_{_LIMIT}" not in environ
            self._fall_back(PREFIX_VARIABLE, self.prefix, DEFAULT_PREFIX, "it cannot begin a variable's name", is_error)
            self.prefix, self._wrong_prefix = DEFAULT_PREFIX, self.fallbacks[-1] if is_error else None
        shorter = self.prefix.rstrip("_")
        if shorter and shorter != self.prefix and not any(f"{self.prefix}_{name}" in environ for name in NAMES):
            self._fall_back(PREFIX_VARIABLE, self.prefix, shorter, "the _ behind it is added anyway")
            self.prefix = shorter

    def text(self, name: str) -> Optional[str]:
        """A variable's value; None when it is unset or blank."""
        return self._environ.get(f"{self.prefix}_{name}", "").strip() or None

    def value(self, name: str, default: Value, parse: Callable[[str], Value], shown: Optional[str] = None) -> Value:
        text = _bare(self.text(name))
        if text is None:
            return default
        try:
            return parse(text)
        except ValueError as error:
            self._fall_back(f"{self.prefix}_{name}", self.text(name) or "", shown or f"{default:g}", str(error))
            return default

    def limit(self) -> tuple[Optional[int], str, Optional[Fallback]]:
        """(bytes, where they come from, why they are not what somebody wanted)."""
        default = DEFAULT_MAX_STORAGE_MB * BYTES_PER_MB
        text = _bare(self.text(_LIMIT))
        if text is None:
            return default, INVALID if self._wrong_prefix else DEFAULT, self._wrong_prefix
        if text.lower() == "off":
            return None, OFF, None
        try:
            return parse_size_bytes(text), SET, None
        except ValueError as error:
            reason = f"{error} (`off` switches deletion off)"
            given = self.text(_LIMIT) or ""
            self._fall_back(f"{self.prefix}_{_LIMIT}", given, str(DEFAULT_MAX_STORAGE_MB), reason, is_error=True)
            return default, INVALID, self.fallbacks[-1]

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
        if storage_dir:
            return storage_dir, "--storage-dir"
        if data_root:
            return os.path.join(data_root, "storage"), "--data-root"
        for name in ("STORAGE", "STORAGE_DIR"):
            value = self._environ.get(f"{self.prefix}_{name}", "")
            if value.strip():
                return value, f"{self.prefix}_{name}"
        value = self._environ.get(f"{self.prefix}_DATA_DIR", "")
        if value.strip():
            return os.path.join(value, "storage"), f"{self.prefix}_DATA_DIR"
        return DEFAULT_STORAGE_DIR, "the default"

    def seq(self) -> Optional[SeqServer]:
        url, key = self.text("SEQ_URL"), self.text("SEQ_API_KEY")
        if url is None:
            return None
        try:
            server = seq_server(url)
        except ValueError as error:
            # What is wrong with it may be where its password is: it is not shown.
            self._fall_back(f"{self.prefix}_SEQ_URL", repr(Secret(url)), "no shipping", str(error))
            return None
        if key is None:
            return server
        if not (key.isascii() and key.isprintable()):
            reason = "it has characters that no header can carry"
            self._fall_back(f"{self.prefix}_SEQ_API_KEY", repr(Secret(key)), "no key", reason)
            return server
        return server._replace(api_key=Secret(key))

    def heartbeat_file(self, storage_dir: str) -> str:
        """A name of its own for each user and store, which `health` finds again."""
        return default_file(self.temporary_dir(), absolute(storage_dir), "heartbeat")

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
    if text is None:
        return None
    quoted = _QUOTED.fullmatch(text)
    if quoted is not None:
        return (quoted.group(1) or quoted.group(2) or "").strip() or None
    commented = _COMMENTED.fullmatch(text)
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
    from difflib import get_close_matches  # few environments have a name that comes so near

    return next(iter(get_close_matches(name, NAMES, 1, _ALIKE)), None)


def _interval_mins(text: str) -> float:
    return parse_positive(text, LONGEST_INTERVAL_MINS)


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
