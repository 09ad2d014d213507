"""What mends a store when it is asked to: entries for orphans, and the removal of what refers to nothing."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import nullcontext
from datetime import datetime
from typing import NamedTuple, Optional

from storage_manager.base import quantity
from storage_manager.base.clock import Clock
from storage_manager.base.errors import NoRoom
from storage_manager.base.log import EventLog
from storage_manager.base.times import utc_text
from storage_manager.jobs.evidence import Case, Held, Mandate, why_not
from storage_manager.jobs.orphans import Missed, adoptable, entries_text, missed
from storage_manager.jobs.policy import Limits, plan_sweep
from storage_manager.jobs.progress import Progress, report_swept
from storage_manager.jobs.work import Terms, Work, at_work
from storage_manager.store.aside import Told, told_by
from storage_manager.store.directory import Store
from storage_manager.store.inventory import IN_FLIGHT_AGE
from storage_manager.store.snapshot import ORPHAN, Session, Snapshot
from storage_manager.store.survey import report_findings, take_snapshot

# A store has a handful of formats. Text with more than this is not looked into by name, but kept.
_MOST_FORMATS = 16

# What a client creates metadata.json with, whatever else its umask leaves.
_FILE_MODE = 0o666


# What a repair or an adoption says that was ended before it had done anything.
NOTHING_CHANGED = "nothing was changed"


class Adoption(NamedTuple):
    """What came of giving orphans their entries back."""

    adopted: Sequence[Session]
    left_count: int
    """Orphans that have none."""
    later: Sequence[Session] = ()
    """Those of them that another run may adopt: they were more than it was to take, or a client has undone it."""
    undone_count: int = 0
    """What a client has undone."""

    @property
    def adopted_bytes(self) -> int:
        return sum(orphan.size_bytes for orphan in self.adopted)


def adopt(
    terms: Terms,
    group: str,
    clock: Clock,
    log: EventLog,
    progress: Optional[Progress] = None,
    most: Optional[int] = None,
) -> Adoption:
    """Give every orphan, or the oldest `most`, an entry: guid and format from its name, size and time from the file,
    and `group`.

    Left are orphans whose name no entry could have, and those whose guid has an entry or several blobs. Raises a
    StorageManagerError after the event that says so, and Interrupted; `progress` tells what was done even then.
    """
    with at_work("adopt", terms, clock, log, progress or Progress(nothing=NOTHING_CHANGED)) as work:
        return _adopt(work, group, most)


def foresee(terms: Terms, group: str, clock: Clock, log: EventLog, progress: Progress, most: int) -> Adoption:
    """What adopt() would come to. Takes no lock and changes nothing. Raises like take_snapshot()."""
    snapshot, progress.findings = take_snapshot(terms.storage_dir, clock, log)
    candidates, left = adoptable(snapshot.anomalies, (session.guid for session in snapshot.sessions))
    later = candidates[most:]
    adoption = Adoption(candidates[:most], len(later) + len(left), later)
    _report_adoption(adoption, group, terms.storage_dir, log, dry_run=True)
    return adoption


def _adopt(work: Work, group: str, most: Optional[int]) -> Adoption:
    locked, progress = work.locked, work.progress
    snapshot, reading = locked.look()
    findings = report_findings(snapshot, work.storage_dir, work.log)  # what is unreadable by now is not adopted
    has_metadata = reading is not None
    with reading or nullcontext():
        keys = locked.waiting_guids().union(reading.keys() if reading is not None else ())
        candidates, left = adoptable(snapshot.anomalies, keys)
        chosen = candidates[:most]
        if chosen and reading is not None:
            locked.prepare(reading)
    adopted: Sequence[Session] = ()
    no_room: Optional[NoRoom] = None
    if chosen:
        work.journal.announce(chosen)
        progress.adopting_count = len(chosen)
        try:
            if not has_metadata:
                locked.create_metadata(chosen[-1].blob_name, _FILE_MODE)
            locked.add_entries(entries_text(chosen, group))
        except NoRoom as error:
            no_room = error
        # A client at work may have undone it, or deleted one of them meanwhile.
        snapshot, reading = locked.settled()
        with reading or nullcontext():
            guids = {session.guid for session in snapshot.sessions}
            adopted = [orphan for orphan in chosen if orphan.guid in guids]
    progress.adopting_count, progress.adopted_count = 0, len(adopted)
    progress.findings = None if chosen else findings
    lost = {anomaly.name for anomaly in snapshot.anomalies if anomaly.kind == ORPHAN}
    later = [orphan for orphan in candidates if orphan.blob_name in lost]
    undone_count = 0 if no_room is not None else sum(orphan.blob_name in lost for orphan in chosen)
    adoption = Adoption(adopted, len(candidates) - len(adopted) + len(left), later, undone_count)
    _report_adopted(work, adopted, group)
    if no_room is not None:
        _report_no_room(work, no_room, len(chosen), group)
    _report_adoption(adoption, group, work.storage_dir, work.log)
    return adoption


def _report_adopted(work: Work, adopted: Sequence[Session], group: str) -> None:
    for orphan in adopted:
        work.journal.done(orphan)
        work.log.info(
            "storage_manager.adopt.adopted",
            f"gave {orphan.blob_name} an entry",
            guid=orphan.guid,
            size_bytes=orphan.size_bytes,
            created_at=utc_text(orphan.created_at),
            group=group,
        )


def _report_no_room(work: Work, no_room: NoRoom, orphan_count: int, group: str) -> None:
    work.log.warning(
        "storage_manager.adopt.deferred",
        f"{no_room}; {quantity.counted(orphan_count, 'orphan')} can be adopted once there is room",
        orphan_count=orphan_count,
        group=group,
        storage_dir=work.storage_dir,
        free_bytes=no_room.free_bytes,
        needed_bytes=no_room.needed_bytes,
    )


def _report_adoption(adoption: Adoption, group: str, storage_dir: str, log: EventLog, dry_run: bool = False) -> None:
    adopted = f"{quantity.counted(len(adoption.adopted), 'orphan')}, {quantity.size(adoption.adopted_bytes)}"
    log.info(
        "storage_manager.adopt.summary",
        f"{adopted}, {'would be ' if dry_run else ''}adopted; {adoption.left_count:,} left",
        adopted_count=len(adoption.adopted),
        adopted_bytes=adoption.adopted_bytes,
        left_count=adoption.left_count,
        group=group,
        storage_dir=storage_dir,
        dry_run=dry_run,
    )


class Repair(NamedTuple):
    """What came of a repair."""

    swept_count: int
    """Dangling entries removed."""
    removed: Sequence[str]
    """Files of unfinished metadata in which nothing was that is missing."""
    kept: Sequence[str]
    """Those that may tell of a blob without an entry."""


def repair(
    terms: Terms, clock: Clock, log: EventLog, progress: Optional[Progress] = None, most: Optional[int] = None
) -> Repair:
    """Remove dangling entries, and what runs and clients that died have left beside metadata.json.

    Unfinished metadata stays while it may tell of a blob that has no entry: nothing else does. Raises like adopt(), and
    before anything is removed if there are more than `most` dangling entries.
    """
    with at_work("repair", terms, clock, log, progress or Progress(nothing=NOTHING_CHANGED)) as work:
        return _repair(work, most)


def _repair(work: Work, most: Optional[int]) -> Repair:
    storage_dir, locked, journal, clock, log, progress = work
    snapshot, keys = _sweep(work, most)
    swept_count = progress.counts.swept_count
    report_findings(snapshot, storage_dir, log)
    blobs = missed(snapshot.anomalies)
    removed: list[str] = []
    kept: list[str] = []
    formats = {session.format for session in snapshot.sessions} if snapshot.torn else set()
    for name in snapshot.torn:
        told = told_by(locked.store, name)
        may_tell = (
            name in locked.unmerged or _is_young(told, blobs, clock.now()) or not told.guids.isdisjoint(blobs.guids)
        )
        may_tell = may_tell or _names_a_blob(locked.store, told.guids.difference(keys), told.formats | formats)
        (kept if may_tell else removed).append(name)
    for name in removed:
        locked.store.remove(name)
        progress.counts.removed_count += 1
        journal.removed_count += 1
        log.info("storage_manager.repair.removed", f"removed {locked.store.file(name)}", file=name)
    log.info(
        "storage_manager.repair.summary",
        f"removed {quantity.counted(swept_count, 'dangling entry')} and "
        f"{quantity.counted(len(removed), 'file')} of unfinished metadata",
        swept_count=swept_count,
        removed_count=len(removed),
        kept_count=len(kept),
        storage_dir=storage_dir,
    )
    return Repair(swept_count, removed, kept)


def _sweep(work: Work, most: Optional[int]) -> tuple[Snapshot, Collection[str]]:
    """What the store was before dangling entries were removed from it, and the keys of its entries."""
    locked = work.locked
    snapshot, reading = locked.settled()
    with reading or nullcontext():
        keys = set(reading.keys()) if reading is not None and snapshot.torn else set()
        if reading is None or not snapshot.dangling:
            return snapshot, keys
        mandate = Mandate(sweeps_all=True, asked_about=most)
        reason = why_not(Case(mandate, work.storage_dir, Limits(), snapshot, plan_sweep(snapshot), work.clock.now()))
        if reason is not None:
            raise Held(reason)
        locked.prepare(reading)
    dangling = {session.guid: session for session in snapshot.dangling}

    def tell(swept: Collection[str]) -> None:
        gone = (session for guid, session in dangling.items() if guid in swept)
        report_swept("repair", gone, work.progress, work.journal, work.log)

    locked.remove_entries((), dangling, tell)
    return snapshot, keys


def _is_young(told: Told, blobs: Missed, now: datetime) -> bool:
    """Whether the writer of unfinished metadata may yet tell of a blob without an entry.

    A writer that was stopped goes on some time. The blob of its save is there already, and was written within
    IN_FLIGHT_AGE before it began.
    """
    if now - told.modified_at < IN_FLIGHT_AGE:
        return True
    return blobs.newest is not None and told.modified_at - blobs.newest <= IN_FLIGHT_AGE


def _names_a_blob(store: Store, guids: Collection[str], formats: Collection[str]) -> bool:
    """Whether any of these guids without an entry has a blob that the listing may have lacked. Raises StoreError."""
    if guids and len(formats) > _MOST_FORMATS:
        return True
    return any(store.status(f"{guid}.{extension}") is not None for guid in guids for extension in formats)
