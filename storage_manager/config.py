"""The environment as settings. A value that cannot be used falls back to the default, and comes back as data."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple, Optional, TypeVar

from storage_manager.logs import LEVELS
from storage_manager.model import BYTES_PER_MB
from storage_manager.quantity import parse_number, parse_positive, parse_size_bytes
from storage_manager.text import printable

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
    prefix: str
    """What the variables' names begin with."""


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
        prefix=reader.prefix,
    )
    return settings, reader.fallbacks


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

    def _fall_back(self, variable: str, value: str, default: str, reason: str) -> None:
        self.fallbacks.append(Fallback(variable, printable(value, 80), default, reason))


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
