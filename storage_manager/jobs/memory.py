"""What a loop remembers from one cycle to the next. A command remembers nothing."""

from __future__ import annotations

from collections.abc import Set
from datetime import datetime
from typing import NamedTuple, Optional


class Sighting(NamedTuple):
    """A store as a cycle left it. Another device or inode: another directory, or another mount, under its name."""

    device: int
    inode: int
    had_metadata: bool
    session_count: int

    def is_same_directory(self, other: Sighting) -> bool:
        return (self.device, self.inode) == (other.device, other.inode)


class Found(NamedTuple):
    """What is in the place of a store that was seen before."""

    metadata_file: str
    is_same_directory: bool
    has_metadata: bool
    """Or an old file of it, from which the run itself restores it."""
    has_blobs: bool
    """This is asked of another directory alone."""


class Shown(NamedTuple):
    """The latest moment that a store has shown."""

    moment: datetime
    monotonic_secs: float
    """When that was, by the monotonic clock."""


class Memory(NamedTuple):
    """All that a cycle knows of those before it."""

    store: Optional[Sighting] = None
    """The store that a cycle saw last, also before a restart. It is kept while the store is gone."""
    limit_from_file: bool = False
    """Whether the settings file has set the limit; also after that was taken out, until somebody says what it is."""
    shown: Optional[Shown] = None
    deferred: Set[str] = frozenset()
    """Entries without blobs that the cycle before has left, because the client left no moment for a commit."""
    deferrals: int = 0
    """Cycles in a row that had to leave some."""
    swept: Set[str] = frozenset()
    """Entries that the cycle before has removed: those that are there again, the client has brought back."""
    adoptions_undone: int = 0
    """Cycles in a row whose adoption a client has undone."""


NOTHING = Memory()
