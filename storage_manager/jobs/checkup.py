"""Everything odd about a store: what, how much of it, and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple, Optional

from storage_manager.base import quantity
from storage_manager.base.clock import Clock
from storage_manager.base.log import EventLog
from storage_manager.base.text import printable
from storage_manager.base.times import later
from storage_manager.jobs import plan
from storage_manager.jobs.orphans import Adoptable, adoptable
from storage_manager.store.directory import Store, open_store
from storage_manager.store.holder import Holding, LockState, lock_state
from storage_manager.store.inventory import IN_FLIGHT_AGE
from storage_manager.store.names import ASIDE_PREFIX, LOCK_NAME
from storage_manager.store.snapshot import (
    ANOMALY_NOUNS,
    DANGLING,
    IN_FLIGHT,
    ORPHAN,
    Anomaly,
    Session,
    Snapshot,
)
from storage_manager.store.survey import EXAMPLES, Totals, examples_of, take_snapshot

LEFTOVER = "leftover"
LOCK = "lock"
DRIFT = "drift"
AHEAD = "ahead"
"""In flight by its time stamp alone, which is too far in the future for a save that is under way."""


NOUNS = {
    **ANOMALY_NOUNS,
    LEFTOVER: "left-over file",
    LOCK: "lock",
    DRIFT: "blob of another size than declared",
}

REMEDIES = {
    **plan.REMEDIES,
    AHEAD: "compare the clocks of the hosts; `touch` it, and after 10 minutes it counts as an orphan",
    LEFTOVER: "`check --repair` removes what tells of no session any more; the next prune all but unfinished metadata",
    DRIFT: "nothing, if the service changes blobs; a blob that is too short was damaged or never finished",
}

LOCK_REMEDIES = {
    Holding.HELD: "nothing: a run is at work",
    Holding.LEFT_OVER: "nothing: the next run takes it over",
    Holding.UNKNOWN: "see whether that process lives; if not, the next run takes the lock over (the previous "
    "housekeeper's when it is older than the stale time)",
}


class Finding(NamedTuple):
    """One kind of oddity."""

    kind: str
    item_count: int
    size_bytes: int
    """Of drift, the sum of the differences."""
    examples: list[str]
    remedy: str
    needs_attention: bool
    """False for what belongs to everyday life: a save under way, the files of a run that is at work."""


class Checkup(NamedTuple):
    """A store, looked at."""

    findings: list[Finding]
    totals: Totals
    orphans: Sequence[Anomaly] = ()
    """All of them, and the blobs in flight, oldest first."""

    @property
    def is_clean(self) -> bool:
        return not any(finding.needs_attention for finding in self.findings) and not self.totals.suggested_dirs

    @property
    def is_repairable(self) -> bool:
        """Whether there is anything that a repair might remove; what a run at work owns, it will find out."""
        return any(
            finding.kind in (DANGLING, LEFTOVER) or (finding.kind == LOCK and finding.needs_attention)
            for finding in self.findings
        )

    def count(self, kind: str) -> int:
        return sum(finding.item_count for finding in self.findings if finding.kind == kind)


def check_up(storage_dir: str, lock_stale_secs: float, clock: Clock, log: EventLog) -> Checkup:
    """Look at everything in a store. Takes no lock and changes nothing.

    Raises StoreMissing, StoreError, MetadataCorrupt, Interrupted.
    """
    return _judge(_look(storage_dir, lock_stale_secs, clock, log))


def foresee_adoption(
    storage_dir: str, lock_stale_secs: float, clock: Clock, log: EventLog
) -> tuple[Checkup, Adoptable]:
    """What an adoption would come to, and what check_up() would find after it. Otherwise like check_up().

    Not foreseen: a run that is at work, what the client does meanwhile, and calls that fail.
    """
    look = _look(storage_dir, lock_stale_secs, clock, log)
    # An orphan has no entry but, maybe, one that is about another blob of its guid: a session's.
    choice = adoptable(look.snapshot.anomalies, (session.guid for session in look.snapshot.sessions))
    if choice.orphans or choice.left:  # otherwise nothing would be locked, and nothing recovered
        look = _after(look, choice.orphans)
    return _judge(look), choice


class _Look(NamedTuple):
    """What the findings are made of."""

    snapshot: Snapshot
    totals: Totals
    lock: Optional[LockState]
    is_busy: bool
    """Whether a run was at work."""
    now: datetime


def _look(storage_dir: str, lock_stale_secs: float, clock: Clock, log: EventLog) -> _Look:
    with open_store(storage_dir) as store:
        before = lock_state(store, clock, lock_stale_secs)
        snapshot, totals = take_snapshot(storage_dir, clock, log)
        # A run that came and went between two looks at the lock has taken its files with it.
        leftovers = {name: size for name, size in snapshot.leftovers.items() if _is_there(store, name)}
        lock = lock_state(store, clock, lock_stale_secs)
    is_busy = any(state is not None and state.holding is Holding.HELD for state in (before, lock))
    return _Look(snapshot._replace(leftovers=leftovers), totals, lock, is_busy, clock.now())


def _after(look: _Look, adopted: Sequence[Session]) -> _Look:
    """The same after an adoption, which also recovers what dead runs have left, but for unfinished metadata."""
    snapshot, names = look.snapshot, {orphan.blob_name for orphan in adopted}
    is_taken_over = look.lock is not None and look.lock.holding is Holding.LEFT_OVER
    return look._replace(
        snapshot=snapshot._replace(
            anomalies=[anomaly for anomaly in snapshot.anomalies if anomaly.name not in names],
            leftovers={name: size for name, size in snapshot.leftovers.items() if name.startswith(ASIDE_PREFIX)},
        ),
        totals=look.totals._replace(session_count=look.totals.session_count + len(adopted)),
        lock=None if is_taken_over else look.lock,
    )


def _judge(look: _Look) -> Checkup:
    snapshot = look.snapshot
    findings = [
        *_anomalies(snapshot, look.now, look.is_busy),
        *_files(snapshot.leftovers, look.is_busy),
        *_drift(snapshot),
        *_lock(look.lock),
    ]
    orphans = [anomaly for anomaly in snapshot.anomalies if anomaly.kind in (ORPHAN, IN_FLIGHT)]
    orphans.sort(key=Anomaly.as_session)
    return Checkup(findings, look.totals, orphans)


def orphan_from(blob: Anomaly) -> datetime:
    """When a blob without an entry counts as an orphan: before, it may be in flight."""
    return later(blob.as_session().created_at, IN_FLIGHT_AGE)


def _is_there(store: Store, name: str) -> bool:
    try:
        store.stat(name)
    except FileNotFoundError:
        return False
    except OSError:  # it was listed; what is wrong with it, the next run tells
        return True
    return True


def _anomalies(snapshot: Snapshot, now: datetime, is_busy: bool) -> Iterator[Finding]:
    for kind, (count, size_bytes) in snapshot.anomaly_totals().items():
        remedy, needs_attention = REMEDIES[kind], kind != IN_FLIGHT
        if kind == IN_FLIGHT and any(_is_ahead(anomaly, now) for anomaly in snapshot.anomalies):
            newest_first = sorted(snapshot.anomalies, key=lambda anomaly: anomaly.modified_at or now, reverse=True)
            snapshot = snapshot._replace(anomalies=newest_first)
            remedy, needs_attention = REMEDIES[AHEAD], True
        if kind == DANGLING:
            needs_attention = not is_busy  # a run deletes blobs first
        yield Finding(kind, count, size_bytes, examples_of(kind, snapshot), remedy, needs_attention)


def _is_ahead(anomaly: Anomaly, now: datetime) -> bool:
    modified_at = anomaly.modified_at if anomaly.kind == IN_FLIGHT else None
    return modified_at is not None and modified_at - now > IN_FLIGHT_AGE


def _files(leftovers: Mapping[str, int], is_busy: bool) -> Iterator[Finding]:
    """Files of a run that died. While one is at work, they are its own, but for those kept aside."""
    names = sorted(leftovers)
    if names:
        needs_attention = not is_busy or any(name.startswith(ASIDE_PREFIX) for name in names)
        examples = [printable(name, 200) for name in names[:EXAMPLES]]
        yield Finding(LEFTOVER, len(names), sum(leftovers.values()), examples, REMEDIES[LEFTOVER], needs_attention)


def _drift(snapshot: Snapshot) -> Iterator[Finding]:
    drifted = [session for session in snapshot.sessions if session.declared_bytes not in (None, session.size_bytes)]
    if drifted:
        examples = [
            f"{session.blob_name} (declared {session.declared_bytes} bytes, has {session.size_bytes})"
            for session in drifted[:EXAMPLES]
        ]
        size_bytes = sum(abs(session.size_bytes - (session.declared_bytes or 0)) for session in drifted)
        yield Finding(DRIFT, len(drifted), size_bytes, examples, REMEDIES[DRIFT], True)


def _lock(state: Optional[LockState]) -> Iterator[Finding]:
    if state is not None:
        examples, needs_attention = [f"{LOCK_NAME} ({state.text})"], state.holding is not Holding.HELD
        yield Finding(LOCK, 1, state.size_bytes, examples, LOCK_REMEDIES[state.holding], needs_attention)


def summary(checkup: Checkup) -> str:
    """One sentence."""
    if checkup.is_clean:
        return f"clean: {quantity.counted(checkup.totals.session_count, 'session')}"
    odd = [finding for finding in checkup.findings if finding.needs_attention]
    parts = [quantity.counted(finding.item_count, NOUNS[finding.kind]) for finding in odd]
    if checkup.totals.suggested_dirs:
        parts.append("probably the wrong directory")
    return ", ".join(parts)
