"""The file with settings beside the environment: what of it counts, and what has changed since it was read last."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Optional

from storage_manager.base.clock import Clock
from storage_manager.base.env_file import read_env_file
from storage_manager.base.errors import described
from storage_manager.base.log import EventLog
from storage_manager.base.text import printable
from storage_manager.config import (
    DEFAULT,
    DEFAULT_MAX_STORAGE_MB,
    NAMES,
    NONE,
    PREFIX_VARIABLE,
    Fallback,
    Row,
    Settings,
    absolute,
    explained,
    read_settings,
    report_fallbacks,
)
from storage_manager.loop.heartbeat_json import LARGEST_BYTES, decode
from storage_manager.loop.status_file import is_one_place, read_file

# What a loop keeps as it began with it, by name and as settings: what it tells of itself is about one store.
_STORE = ("STORAGE", "STORAGE_DIR", "DATA_DIR")
_SECRET = ("SEQ_URL", "SEQ_API_KEY")
_KEPT = (
    *_STORE, *_SECRET, "ENV", "LOG_LEVEL", "LOG_JSON", "LOG_FILE", "HOUSEKEEPER_HEARTBEAT_FILE", "METRICS_FILE",
)  # fmt: skip
_KEPT_FIELDS = (
    "storage_dir", "storage_source", "environment", "log_level", "log_json", "log_file", "seq", "heartbeat_file",
    "metrics_file",
)  # fmt: skip


class EnvFile:
    """What a file adds to the environment, which wins. While it is gone or broken, its last whole version counts.

    It is read when this is made, and by refresh(): between the two, everybody sees one version. Raises nothing.
    """

    def __init__(self, path: str, source: str, environ: Mapping[str, str], prefix: str, clock: Clock) -> None:
        """`source` is the option or the variable that names the file."""
        self._path = absolute(path)
        self._source = source
        self._environ = environ
        self._prefix = prefix
        self._ours = {f"{prefix}_{name}": name for name in NAMES}
        self._clock = clock
        self._found: Mapping[str, str] = {}
        """All that the file says."""
        self._values: Optional[dict[str, str]] = None
        """None: it has never been whole."""
        self._first: Optional[Settings] = None
        self._has_set_limit = False
        self._told: list[str] = []
        self.overruled: list[str] = []
        """Names in it that the environment decides about."""
        self.trouble: Optional[Fallback] = None
        self._read()
        self._at_start: dict[str, str] = self._values or {}

    @property
    def environ(self) -> dict[str, str]:
        """Both together."""
        return {**self._environ, **(self._values or {})}

    def bind(self, settings: Settings) -> Settings:
        """What was read from `environ`, as it may be used: some settings stay as they were the first time, and all
        deletions are held if it is not known what may go, or from which store.
        """
        if self._first is None:
            self._has_set_limit = _had_set_limit(settings)
        first = self._first = self._first or settings
        held = settings.held_by
        named = settings
        if any(self._ours.get(name) in _STORE for name in self._values or ()):
            named, _ = read_settings(self.environ, None, None)  # an option has another one, perhaps
        if self._values is None:
            held = self.trouble
        elif not is_one_place(named.storage_dir, first.storage_dir):
            held = Fallback(
                named.storage_source if named.storage_source in self._ours else f"{self._prefix}_STORAGE",
                printable(named.storage_dir, 200),
                NONE,
                f"the loop looks after {first.storage_dir}, and the other settings may be meant for that store",
                is_error=True,
                remedy=f"Restart the loop for that one, or name {first.storage_dir} in {self._path}",
            )
        elif settings.limit_source == DEFAULT and held is None:
            # A line that was deleted by mistake, or has a slip in its name, must not make a limit of 50 GB one of 1 GB.
            reason = f"{self._path} had set it" if self._has_set_limit else self._slip(settings)
            if reason:
                held = Fallback(settings.limit_variable, "not set", str(DEFAULT_MAX_STORAGE_MB), reason, is_error=True)
        self._has_set_limit = self._has_set_limit or settings.limit_variable in (self._values or ())
        kept = {field: getattr(first, field) for field in _KEPT_FIELDS}
        from_file = frozenset(self._values or ())
        return settings._replace(**kept, env_file=self._path, from_file=from_file, held_by=held)

    def _slip(self, settings: Settings) -> str:
        """What in the file is probably meant as the limit that is not set; empty if nothing is."""
        limit = settings.limit_variable
        meant = (limit.upper(), limit[len(self._prefix) + 1 :])
        for name, value in self._found.items():
            if not value.strip():
                continue
            if (
                name.upper() in meant
                or name == PREFIX_VARIABLE
                and value.strip().rstrip("_") != self._prefix.rstrip("_")
            ):
                return f"{self._path} says {name}, which does not count"
        return ""

    def explain(self, rows: list[Row]) -> list[Row]:
        """The same, where it is told what comes from the file, and what is wrong with it."""
        named, found = f"{self._prefix}_ENV_FILE", []
        for row in rows:
            if row.variable in (self._values or ()) and row.source == "environment":
                row = row._replace(source="file")
            elif row.variable in self.overruled and row.source == "environment":
                row = row._replace(source="environment, not file")
            elif row.variable == named:
                problem = "" if self.trouble is None else explained(self.trouble)
                source = "environment" if self._source == named else self._source
                row = Row(named, printable(self._path, 200), source, problem)
            found.append(row)
        return found

    def refresh(self, log: EventLog) -> bool:
        """Read the file, and tell what is wrong with it and what has changed. Returns whether a cycle would differ."""
        before = self._values
        self._read()
        if self.trouble is not None:
            report_fallbacks([self.trouble], log)
        old, new = before or {}, self._values or {}
        changed = [name for name in self._ours if old.get(name) != new.get(name)]
        for name in changed:
            was, now = (self._shown(name, values) for values in (old, new))
            log.info(
                "housekeeper.setting_changed",
                f"{name} has changed from {was or 'nothing'} to {now or 'nothing'}",
                variable=name,
                old=was,
                new=now,
                file=self._path,
            )
        self._tell_of_no_effect(log, any(self._ours[name] in _KEPT for name in changed), new)
        return any(self._ours[name] not in _KEPT for name in changed) or before is None and self._values is not None

    def _tell_of_no_effect(self, log: EventLog, is_changed: bool, new: Mapping[str, str]) -> None:
        late = [name for name in self._ours if self._ours[name] in _KEPT and self._at_start.get(name) != new.get(name)]
        if is_changed and late:
            log.warning(
                "housekeeper.restart_needed",
                f"what {self._path} says now of {', '.join(late)} takes effect when the loop is restarted",
                variables=late,
                file=self._path,
            )
        if self.overruled and self.overruled != self._told:
            log.warning(
                "housekeeper.setting_overruled",
                f"what {self._path} says of {', '.join(self.overruled)} does not count: the environment decides",
                variables=self.overruled,
                file=self._path,
            )
        self._told = self.overruled

    def _read(self) -> None:
        try:
            found = self._found = read_env_file(self._path, self._clock)
        except (OSError, ValueError) as error:
            path = printable(self._path, 200)
            self.trouble = Fallback(self._source, path, "the last good settings", described(error))
            if self._values is None:
                remedy = "Correct the file: the next cycle reads it, or SIGHUP makes the loop read it at once"
                self.trouble = self.trouble._replace(default=NONE, is_error=True, remedy=remedy)
            return
        self.trouble = None
        there = {name for name, value in self._environ.items() if value.strip()}
        stores = {f"{self._prefix}_{name}" for name in _STORE}
        there |= {PREFIX_VARIABLE, f"{self._prefix}_ENV_FILE"} | (stores if there & stores else set())
        ours = [name for name in found if name.startswith(f"{self._prefix}_") or name == PREFIX_VARIABLE]
        self.overruled = [name for name in ours if name in there]
        self._values = {name: found[name] for name in ours if name not in there and found[name].strip()}

    def _shown(self, name: str, values: Mapping[str, str]) -> Optional[str]:
        if name not in values:
            return None
        return "(not shown)" if self._ours[name] in _SECRET else printable(values[name], 80)


def _had_set_limit(settings: Settings) -> bool:
    """Whether the settings file of the loop that was there before had set the limit, as far as its heartbeat tells."""
    with suppress(OSError, ValueError):
        before = decode(read_file(settings.heartbeat_file, LARGEST_BYTES))
        return bool(before.limit_from_file) and is_one_place(before.storage_dir, settings.storage_dir)
    return False
