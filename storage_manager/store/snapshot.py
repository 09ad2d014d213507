"""What a store holds: sessions, dangling entries, anomalies, and the sums of them.

Values are NamedTuples rather than dataclasses: as immutable, several times cheaper to create (a look makes one for
each session), and nothing to import.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple, Optional

ORPHAN = "orphan"
IN_FLIGHT = "in_flight"
DANGLING = "dangling"
CORRUPT = "corrupt"
NOT_A_FILE = "not_a_file"
UNREADABLE = "unreadable"
FUTURE = "future"
ANOMALY_NOUNS = {
    ORPHAN: "orphan",
    IN_FLIGHT: "blob in flight",
    DANGLING: "dangling entry",
    CORRUPT: "corrupt entry",
    NOT_A_FILE: "blob of the wrong type",
    UNREADABLE: "unreadable blob",
    FUTURE: "session of the future",
}
"""What people call one of a kind, in the order in which the kinds are told."""
ANOMALY_KINDS = tuple(ANOMALY_NOUNS)

# Clocks of hosts that share a store differ by less.
FUTURE_AGE = timedelta(minutes=10)

# A store at work shows a later time than this.
QUIET_AGE = timedelta(days=1)


# A guid is hexadecimal in either case: of sessions created at the same moment, all sort before this.
AFTER_EVERY_GUID = "g"


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
    """All anomalies but the dangling entries and the sessions of the future, which have lists of their own."""
    torn: Sequence[str] = ()
    """Unfinished metadata of writers that seemed dead, kept aside by earlier runs."""
    leftovers: Mapping[str, int] = {}
    """name -> bytes of what has the name of a file that commits make beside metadata.json, the torn ones among them."""
    marks: Sequence[int] = ()
    """The inventory.mark() of every file, as it was listed."""
    future: Sequence[Session] = ()
    """Those of the sessions that are dated in the future of the clock. They stand last: they go when all others have
    gone."""

    def seen_at(self, now: datetime) -> Snapshot:
        """The same, with the sessions that are of the future by this clock."""
        try:
            latest = now + FUTURE_AGE
        except OverflowError:  # at the end of the calendar nothing is ahead
            return self._replace(future=())
        return self._replace(future=self.sessions[bisect_right(self.sessions, (latest, AFTER_EVERY_GUID)) :])

    def latest(self, now: datetime, others: Sequence[datetime]) -> Optional[datetime]:
        """The latest moment up to now that the store shows: of a session, an orphan, or one of `others`."""
        moments = [*others, *(anomaly.modified_at for anomaly in self.anomalies if anomaly.modified_at)]
        count = bisect_right(self.sessions, (now, AFTER_EVERY_GUID))
        if count:
            moments.append(self.sessions[count - 1].created_at)
        return max((moment for moment in moments if moment <= now), default=None)

    def scoped(self, group: Optional[str]) -> Snapshot:
        """The store as a command with `--group` sees it: that group's sessions alone."""
        if group is None:
            return self
        return Snapshot(
            [session for session in self.sessions if session.group == group],
            [session for session in self.dangling if session.group == group],
            [],
            future=[session for session in self.future if session.group == group],
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
        if self.future:
            totals[FUTURE] = (len(self.future), sum(session.size_bytes for session in self.future))
        return {kind: totals[kind] for kind in ANOMALY_KINDS if kind in totals}
