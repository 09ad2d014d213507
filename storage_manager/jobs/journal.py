"""The journal: what a run deletes, told to a small file while it does. `history` reads it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from types import TracebackType
from typing import NamedTuple, Optional

from storage_manager.base.append import append_line
from storage_manager.base.clock import Clock
from storage_manager.base.errors import EXIT_FAILED, EXIT_OK, described, errno_name
from storage_manager.base.log import EventLog
from storage_manager.base.room import Room
from storage_manager.base.strict_json import compact
from storage_manager.base.times import utc_text
from storage_manager.store.snapshot import Session

# Two files of this size hold the guids of at least 200,000 sessions.
MOST_BYTES = 4 * 1024 * 1024

# So many guids share a line. Of a run that is killed, nobody knows what became of its last line; a line costs 20 us.
BATCH = 100

# What a run does to sessions.
DELETED, ADOPTED, REPAIRED = "deleted", "adopted", "repaired"


class HistoryFile(NamedTuple):
    """Where the runs on a store are told of."""

    path: str
    storage_dir: str
    """The store, by the one spelling that all runs use, printable."""
    variable: str
    """What names the file in the environment."""
    metadata: str
    """The store's metadata.json, which has to have room beside the file."""


class Journal:
    """The lines of one run; a context inside which the run does its work, and whose end is the last line.

    Sessions are announced in a line before the first of them goes, and the next such line names those that stayed: a
    run that is killed has told what it may have deleted. Nothing that is wrong with the file raises or ends a run;
    the first failure is an event. A run that does nothing leaves no line. Not guaranteed: speed on a file system that
    hangs, and that a line outlives a power cut.
    """

    def __init__(
        self, file: Optional[HistoryFile], command: str, what: str, clock: Clock, log: EventLog, why: str = ""
    ) -> None:
        """Without a file nothing is told."""
        self.why = why
        """In words, and known before anything is told."""
        self.exit_code = EXIT_OK
        """Of a run that nothing cuts short."""
        self.removed_count = 0
        """Files of unfinished metadata."""
        self._file = file
        self._room = None if file is None else Room(file.metadata)
        self._command = command
        self._what = what
        self._clock = clock
        self._log = log
        self._announced: Sequence[Session] = ()
        self._done: list[Session] = []
        """Of those announced."""
        self._count = 0
        self._size_bytes = 0
        self._oldest: Optional[datetime] = None
        self._newest: Optional[datetime] = None
        self._swept_count = 0
        self._has_begun = False
        self._has_failed = False

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        if self._has_begun or self.removed_count:
            code = self.exit_code if error is None else getattr(error, "exit_code", EXIT_FAILED)
            self._write(stayed=self._settle(), exit_code=code)

    def announced(self, sessions: Sequence[Session]) -> Iterator[Session]:
        """The sessions, oldest first, each after the line that announces it."""
        if self._file is None:
            yield from sessions
            return
        for start in range(0, len(sessions), BATCH):
            batch = sessions[start : start + BATCH]
            stayed = self._settle()
            self._announced = batch
            self._write(stayed=stayed, going=" ".join(session.guid for session in batch))
            yield from batch

    def announce(self, sessions: Sequence[Session]) -> None:
        """What happens to all of them at once."""
        self._announced = sessions
        for start in range(0, len(sessions), BATCH):
            self._write(going=" ".join(session.guid for session in sessions[start : start + BATCH]))

    def done(self, session: Session) -> None:
        """What was announced has been done to this one."""
        if self._file is not None:
            self._done.append(session)

    def swept(self, guids: Sequence[str]) -> None:
        """The entries of these, which had no blob, are gone."""
        self._swept_count += len(guids)
        for start in range(0, len(guids), BATCH):
            self._write(swept=" ".join(guids[start : start + BATCH]))

    def _settle(self) -> str:
        """Count what was done of the sessions announced, and forget them. Returns those that stayed."""
        announced, done = self._announced, self._done
        self._announced, self._done = (), []
        if done:
            self._count += len(done)
            self._size_bytes += sum(session.size_bytes for session in done)
            self._oldest = self._oldest or done[0].created_at
            self._newest = done[-1].created_at
        if len(done) == len(announced):
            return ""
        gone = {session.guid for session in done}
        return " ".join(session.guid for session in announced if session.guid not in gone)

    def _write(self, **told: object) -> None:
        self._has_begun = True
        if self._file is None:
            return
        line = {
            "time": utc_text(self._clock.now().replace(microsecond=0)),
            "run_id": self._log.run_id,
            "command": self._command,
            "storage_dir": self._file.storage_dir,
            "what": self._what,
            "why": self.why,
            "session_count": self._count,
            "size_bytes": self._size_bytes,
            "oldest": self._oldest and utc_text(self._oldest),
            "newest": self._newest and utc_text(self._newest),
            "swept_count": self._swept_count,
            "removed_count": self.removed_count,
            **told,
        }
        try:
            append_line(self._file.path, compact(line).encode() + b"\n", MOST_BYTES, self._room)
            return
        except Exception as error:  # noqa: BLE001  # telling of a deletion must never end one
            problem, number = described(error), errno_name(getattr(error, "errno", None))
        if self._has_failed:
            return
        self._has_failed = True
        self._log.warning(
            "storage_manager.history_failed",
            f"cannot write to the history {self._file.path}: {problem}; the run goes on, and `history` will not know "
            f"all of it. Mend it, or name another file: {self._file.variable}",
            file=self._file.path,
            errno=number,
        )
