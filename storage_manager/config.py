"""The environment as settings. A value that cannot be used falls back to the default, and comes back as data."""

from __future__ import annotations

import binascii
import logging
import os
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple, Optional, TypeVar

from storage_manager.base.log import LEVELS, EventLog
from storage_manager.base.quantity import BYTES_PER_MB, parse_number, parse_positive, parse_size_bytes
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
Value = TypeVar("Value")


class Fallback(NamedTuple):
    """A variable whose value could not be used."""

    variable: str
    value: str
    """Shortened and printable."""
    default: str
    reason: str


class Settings(NamedTuple):
    """What the environment asks for."""

    storage_dir: str
    storage_source: str
    """Where the storage directory was named, for messages."""
    environment: Optional[str]
    """PROD, TEST, or None when nobody says."""
    interval_secs: float
    max_storage_bytes: int
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
    notify_socket: Optional[str]
    """Where a service manager wants to be told, as systemd names it."""
    watchdog_secs: Optional[float]
    """A service manager restarts the loop when it hears nothing for this long."""
    prefix: str
    """What the variables' names begin with."""


Load = Callable[[], "tuple[Settings, list[Fallback]]"]
"""Reads the environment anew: the loop does before each cycle."""


def read_settings(
    environ: Mapping[str, str], storage_dir: Optional[str], data_root: Optional[str]
) -> tuple[Settings, list[Fallback]]:
    """Settings from the environment, and from the two options that name the store; and what was unusable."""
    reader = _Reader(environ)
    directory, source = reader.storage(storage_dir, data_root)
    settings = Settings(
        storage_dir=directory,
        storage_source=source,
        environment=reader.text("ENV"),
        interval_secs=60.0 * reader.value("HOUSEKEEPING_INTERVAL_MINS", DEFAULT_INTERVAL_MINS, _interval_mins),
        max_storage_bytes=reader.value(
            "MAX_STORAGE_MB", DEFAULT_MAX_STORAGE_MB * BYTES_PER_MB, parse_size_bytes, shown=str(DEFAULT_MAX_STORAGE_MB)
        ),
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
        notify_socket=environ.get("NOTIFY_SOCKET") or None,
        watchdog_secs=_watchdog_secs(environ),
        prefix=reader.prefix,
    )
    return settings, reader.fallbacks


def absolute(path: str) -> str:
    """A path as others find it, too; as it is, when the current directory is gone."""
    try:
        return os.path.abspath(path)
    except OSError:
        return path


def report_fallbacks(fallbacks: list[Fallback], log: EventLog) -> None:
    for fallback in fallbacks:
        log.warning(
            "housekeeper.invalid_env",
            f"{fallback.variable} is {fallback.value!r}: {fallback.reason}; using {fallback.default}",
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
        if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.prefix, re.ASCII) is None:
            self._fall_back(PREFIX_VARIABLE, self.prefix, DEFAULT_PREFIX, "it cannot begin a variable's name")
            self.prefix = DEFAULT_PREFIX

    def text(self, name: str) -> Optional[str]:
        """A variable's value; None when it is unset or blank."""
        return self._environ.get(f"{self.prefix}_{name}", "").strip() or None

    def value(self, name: str, default: Value, parse: Callable[[str], Value], shown: Optional[str] = None) -> Value:
        text = self.text(name)
        if text is None:
            return default
        try:
            return parse(text)
        except ValueError as error:
            self._fall_back(f"{self.prefix}_{name}", text, shown or f"{default:g}", str(error))
            return default

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
        directory = self._environ.get("TMPDIR", "")
        checksum = binascii.crc32(absolute(storage_dir).encode("utf-8", "surrogatepass"))
        name = f"storage_manager-{os.geteuid()}-{checksum:08x}.heartbeat"
        return os.path.join(directory if os.path.isabs(directory) else "/tmp", name)

    def _fall_back(self, variable: str, value: str, default: str, reason: str) -> None:
        self.fallbacks.append(Fallback(variable, printable(value, 80), default, reason))


def _watchdog_secs(environ: Mapping[str, str]) -> Optional[float]:
    """What the service manager says, if it says it to this process."""
    if environ.get("WATCHDOG_PID", "").strip() not in ("", str(os.getpid())):
        return None
    try:
        return parse_positive(environ.get("WATCHDOG_USEC", ""), LONGEST_INTERVAL_MINS * 60e6) / 1e6
    except ValueError:  # none, or none that makes sense; it is not ours to complain about
        return None


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
