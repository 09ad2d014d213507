"""The vocabulary: what a store holds, what is to be done about it, and what came of it.

Values are NamedTuples rather than dataclasses: as immutable, but a tenth of the cost to create (a scan makes
one per session) and nothing to import.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple, Optional

BYTES_PER_MB = 1024 * 1024

ORPHAN = "orphan"
IN_FLIGHT = "in_flight"
DANGLING = "dangling"
CORRUPT = "corrupt"
NOT_A_FILE = "not_a_file"
UNREADABLE = "unreadable"
ANOMALY_KINDS = (ORPHAN, IN_FLIGHT, DANGLING, CORRUPT, NOT_A_FILE, UNREADABLE)


class Session(NamedTuple):
    """An entry and its blob. The field order is the sort order: oldest first, ties by guid."""

    created_at: datetime
    """Naive, in UTC, as the client writes it."""
    guid: str
    format: str
    """The blob's extension."""
    group: Optional[str]
    declared_bytes: Optional[int]
    """The size the entry claims; None when it claims none that makes sense."""
    size_bytes: int
    """What the blob really takes (st_size); 0 for a dangling entry."""

    @property
    def blob_name(self) -> str:
        return f"{self.guid}.{self.format}"


class Anomaly(NamedTuple):
    """Something in the store that is not a healthy session. Reported, never deleted by a prune."""

    kind: str
    name: str
    """The blob's file name, or the key of an entry that has no blob."""
    size_bytes: int
    detail: str
    modified_at: Optional[datetime] = None
    """Of a blob without an entry, the only time there is."""

    def as_session(self) -> Session:
        """What a blob without an entry tells of the session that it is or was."""
        guid, _, extension = self.name.partition(".")
        return Session(self.modified_at or datetime.max, guid, extension, None, None, self.size_bytes)


class Snapshot(NamedTuple):
    """One look at a store. Sessions and dangling entries are sorted oldest first."""

    sessions: Sequence[Session]
    dangling: Sequence[Session]
    anomalies: Sequence[Anomaly]
    """All anomalies but the dangling entries, which have a list of their own."""
    torn: Sequence[str] = ()
    """Unfinished metadata of writers that seemed dead, kept aside by earlier runs."""
    leftovers: Mapping[str, int] = {}
    """name -> bytes of what has the name of a file that commits make beside metadata.json, the torn ones among them."""

    def scoped(self, group: Optional[str]) -> Snapshot:
        """The store as a command with `--group` sees it: that group's sessions alone."""
        if group is None:
            return self
        return Snapshot(
            [session for session in self.sessions if session.group == group],
            [session for session in self.dangling if session.group == group],
            [],
        )

    @property
    def session_bytes(self) -> int:
        return sum(session.size_bytes for session in self.sessions)

    @property
    def anomaly_bytes(self) -> int:
        return sum(anomaly.size_bytes for anomaly in self.anomalies)

    @property
    def usage_bytes(self) -> int:
        return self.session_bytes + self.anomaly_bytes

    def anomaly_totals(self) -> dict[str, tuple[int, int]]:
        """kind -> (count, bytes), for the kinds that occur."""
        totals: dict[str, tuple[int, int]] = {}
        for anomaly in self.anomalies:
            count, size = totals.get(anomaly.kind, (0, 0))
            totals[anomaly.kind] = (count + 1, size + anomaly.size_bytes)
        if self.dangling:
            totals[DANGLING] = (len(self.dangling), 0)
        return {kind: totals[kind] for kind in ANOMALY_KINDS if kind in totals}


class Keep(NamedTuple):
    """A run of sessions that stay, and why."""

    cause: str
    """A stable key: not_needed, too_young, min_age or keep_last."""
    reason: str
    sessions: Sequence[Session]


class Plan(NamedTuple):
    """Who goes, who stays, and why. Dry run, JSON and the real run all use this one value.

    Together `victims` and `kept` are the sessions of the scope, oldest first.
    """

    victims: Sequence[Session]
    """Healthy sessions to delete, oldest first."""
    swept: Sequence[Session]
    """Dangling entries to remove along with them."""
    reason: str
    """Why the victims go."""
    kept: Sequence[Keep]
    current_bytes: int
    planned_bytes: int
    """Usage when every victim is gone."""
    target_bytes: Optional[int]
    """None for a purge, which has no target."""
    causes: dict[str, int]
    """What keeps the usage above the target, in bytes by cause; empty when the target is met."""
    are_orphans: bool = False
    """Whether the victims are blobs without entries, with their time of modification as that of their creation."""

    @property
    def noun(self) -> str:
        return "orphan" if self.are_orphans else "session"

    @property
    def target_met(self) -> bool:
        return not self.causes

    @property
    def freed_bytes(self) -> int:
        return self.current_bytes - self.planned_bytes

    def decisions(self) -> Iterator[tuple[str, Session, str]]:
        """(action, session, reason) of every session and dangling entry the plan speaks of."""
        for session in self.swept:
            yield "sweep", session, "entry without a blob"
        for session in self.victims:
            yield "delete", session, self.reason
        for keep in self.kept:
            for session in keep.sessions:
                yield "keep", session, keep.reason


class Outcome(NamedTuple):
    """What came of a plan."""

    plan: Plan
    dry_run: bool
    deleted_count: int
    freed_bytes: int
    failed: frozenset[str]
    """The names of the blobs that could not be deleted; their entries stay."""
    swept_count: int
    final_bytes: int
    exit_code: int
