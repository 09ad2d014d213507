"""Where the loop tells of itself: two files, and the service manager's socket.

Guarantees: nothing in here raises, and what fails is told once, not at each turn. Not guaranteed: speed on a file
system that hangs; keep the files on a local one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Optional, TypeVar

from storage_manager.base.errors import described, errno_name
from storage_manager.base.log import EventLog
from storage_manager.config import Fallback, Settings
from storage_manager.loop.notify import notify
from storage_manager.loop.own_files import HEARTBEAT, METRICS, refused_files
from storage_manager.loop.status_file import read_file, replace_file

Content = TypeVar("Content")


class Outlets:
    """The files and the socket that the first settings name."""

    def __init__(self, settings: Settings, log: EventLog) -> None:
        self._settings = settings
        self._log = log
        self._files: dict[str, str] = {}
        self._problems: dict[tuple[str, str], str] = {}
        """(what was tried, file) -> what was wrong with it the last time."""
        self._has_told_of_others = False
        self.are_closed = False
        """True: the files belong to somebody else. The service manager is told all the same."""

    def choose_files(self) -> list[Fallback]:
        """Use no file that could be a part of the store, or belong to another setting. Returns the refused ones."""
        named = {HEARTBEAT: self._settings.heartbeat_file, METRICS: self._settings.metrics_file}
        refused = refused_files(self._settings)
        self._files = {name: path for name, path in named.items() if path is not None and name not in refused}
        return [refused[name] for name in named if name in refused]

    def write(self, name: str, content: Callable[[], bytes]) -> None:
        path = self._path(name)
        if path is not None:
            self._attempt("replace", path, lambda: replace_file(path, content()), name)

    def is_missing(self, name: str) -> bool:
        """Whether the file was chosen, and is not there."""
        path = self._path(name)
        return path is not None and not os.path.lexists(path)

    def read(self, name: str, most_bytes: int, parse: Callable[[bytes], Content]) -> Optional[Content]:
        """None for a file that is not there, or cannot be used; then there was an event."""
        path = self._path(name)

        def content(path: str) -> Optional[Content]:
            try:
                return parse(read_file(path, most_bytes))
            except FileNotFoundError:
                return None

        return None if path is None else self._attempt("read", path, lambda: content(path), name)

    def look_for_others(self, most_bytes: int, other_store: Callable[[bytes], Optional[str]]) -> None:
        """Tell, once, of a loop on another store that writes the same file of metrics."""
        other = None if self._has_told_of_others else self.read(METRICS, most_bytes, other_store)
        if other is not None:
            self._has_told_of_others = True
            file = self._files[METRICS]
            self._log.warning(
                "housekeeper.metrics_shared",
                f"{file} was written by a loop on {other} in the meantime: each replaces the metrics of the other. "
                f"Give each loop a file of its own: {self._settings.prefix}_{METRICS}",
                file=file,
                other_dir=other,
            )

    def tell(self, *lines: str) -> None:
        address = self._settings.notify_socket
        if address is not None:
            self._attempt("notify", address, lambda: notify(address, *lines))

    def _path(self, name: str) -> Optional[str]:
        return None if self.are_closed else self._files.get(name)

    def _attempt(
        self, verb: str, file: str, action: Callable[[], Optional[Content]], name: Optional[str] = None
    ) -> Optional[Content]:
        """Do what may fail; an event when it fails in another way than the last time. `name` is what names the file."""
        try:
            done = action()
        except Exception as error:  # noqa: BLE001  # telling of the loop must never end it
            problem, number = described(error), errno_name(getattr(error, "errno", None))
        else:
            self._problems.pop((verb, file), None)
            return done
        if self._problems.get((verb, file)) != problem:
            self._problems[(verb, file)] = problem
            remedy = f" Mend it, or name another file: {self._settings.prefix}_{name}" if name is not None else ""
            self._log.warning(
                "housekeeper.status_failed",
                f"cannot {verb} {file}: {problem}; the loop goes on.{remedy}",
                file=file,
                errno=number,
            )
        return None
