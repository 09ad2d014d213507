"""Why nothing is deleted: the checks between a plan and its deletions.

A check is handed values, asks nobody, and gives the reason for which nothing may go, or None. Whoever makes the `Case`
has asked files, clocks and the history before. The first reason counts, in the order of CHECKS: a plan is no evidence
of anything while the store, the settings or the clock that it was made from are in doubt.

A new check is a function, its place in CHECKS, its cases in tests/jobs/test_evidence.py, and a row of the table in
docs/design.md.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple, Optional

from storage_manager.base.errors import StorageManagerError
from storage_manager.base.quantity import Share, counted, size
from storage_manager.base.times import utc_text
from storage_manager.jobs.memory import Found, Sighting
from storage_manager.jobs.plan import Deleted, Plan
from storage_manager.jobs.policy import Limits, count_aged
from storage_manager.store.snapshot import AFTER_EVERY_GUID, QUIET_AGE, Session, Snapshot

HELD = "storage_manager.prune.held"

# What the deletions of a client leave that is at work, or two that raced each other: so many entries without a blob, or
# one in so many.
FEW_MISSING = 10
FEW_IN = 100

# So few sessions may all be old, or have been saved again, by chance.
HANDFUL = 5


class Reason(NamedTuple):
    """Why nothing may go."""

    why: str
    remedy: str = ""
    """What to do; empty where `why` has said so."""
    event: str = StorageManagerError.event
    fields: Mapping[str, object] = {}
    ends_cycle: bool = True
    """Whether nothing else may go in the same cycle, either."""
    plan_is_sound: bool = False
    """Whether the plan itself may be told of."""

    def __str__(self) -> str:
        return f"{self.why}{self.remedy and '. ' + self.remedy}"


class Held(StorageManagerError):
    """Nothing is deleted, because evidence is missing or contradicts itself, or nobody may want what would go."""

    lacks_evidence = True

    def __init__(self, reason: Reason) -> None:
        super().__init__(str(reason))
        self.event = reason.event
        self.ends_cycle = reason.ends_cycle
        self._fields = dict(reason.fields)

    @property
    def fields(self) -> dict[str, object]:
        return self._fields


class Unusable(NamedTuple):
    """A setting that says what goes, and cannot be used."""

    variable: str
    trouble: str
    """The variable, what it says, and what is wrong with that."""
    remedy: str
    rule: Optional[str]
    """What a plan was made by instead; None: nobody knows of any rule, and nothing goes whatever the plan."""
    limit_bytes: Optional[int]


class Lost(NamedTuple):
    """That orphans beyond the number of sessions are doubted."""

    remedy: str
    limit_bytes: Optional[int]


class Mandate(NamedTuple):
    """What whoever started a job says about doubts."""

    max_delete: Optional[Share] = None
    """A plan that deletes more sessions than that deletes none."""
    let_through: str = "To let it through, use --max-delete off"
    """What to do when that is right all the same."""
    if_clock_is_right: str = ""
    """What to do where everything is to go by its age, and that is right; empty: the clock is not doubted."""
    unusable: Optional[Unusable] = None
    lost: Optional[Lost] = None
    """None: orphans are deleted whatever their number."""
    sweeps_all: bool = False
    """Whether entries without blobs are to go, however many there are."""
    asked_about: Optional[int] = None
    """How many of them somebody has agreed to."""

    @property
    def has_rule(self) -> bool:
        """Whether anybody knows what may go. If not, a loop does not even adopt orphans."""
        return self.unusable is None or self.unusable.rule is not None


class Case(NamedTuple):
    """What is known before the first deletion."""

    mandate: Mandate
    storage_dir: str
    limits: Limits
    """What the plan was made by."""
    snapshot: Snapshot
    plan: Plan
    now: datetime
    latest: Optional[datetime] = None
    """The latest moment that the store has shown; None: it shows none, or nobody has asked."""
    deleted: Deleted = Deleted()
    """What earlier runs have deleted, where asks_history()."""


Check = Callable[[Case], Optional[Reason]]


def why_not(case: Case) -> Optional[Reason]:
    """The first reason for which nothing may go; None: nothing speaks against the plan."""
    return next(filter(None, (check(case) for check in CHECKS)), None)


# What the store shows


def blobs_are_missing(case: Case) -> Optional[Reason]:
    """More entries have no blob than is explained.

    A run that was interrupted deletes oldest first, and a client that writes an older text brings just those entries
    back: they are older than every session that is left. A client's own deletions leave few. Where a session is older,
    because its entry was put back late, or only other groups have any, what earlier runs have deleted is asked for.
    That explains nothing where no session is left at all, or one of those is there again: then the store is being
    restored.
    """
    group, sessions = case.limits.group, case.snapshot.sessions
    if case.mandate.sweeps_all or not _unexplained(case.snapshot, group):
        return None
    scope = case.snapshot.scoped(group)
    if sessions and case.deleted.certainly.isdisjoint(session.guid.lower() for session in sessions):
        left = [one for one in _unexplained(case.snapshot, group) if one.guid.lower() not in case.deleted.perhaps]
        if _are_few(len(left), len(left) + len(scope.sessions)):
            return None
    missing_count, entry_count = len(scope.dangling), len(scope.dangling) + len(scope.sessions)
    return Reason(
        f"{missing_count:,} of {entry_count:,} entries in {case.storage_dir} have no blob, and neither an interrupted "
        f"run, the history, nor a few deletions of the service explain that",
        "Is the store being restored, or a volume not mounted? If the blobs are gone for good, `check --repair` "
        "removes their entries",
        "storage_manager.storage_suspect",
        {"missing_count": missing_count, "entry_count": entry_count},
    )


def asks_history(snapshot: Snapshot, group: Optional[str]) -> bool:
    """Whether what earlier runs have deleted can explain what is missing."""
    return bool(snapshot.sessions and _unexplained(snapshot, group))


def _unexplained(snapshot: Snapshot, group: Optional[str]) -> Sequence[Session]:
    """The entries without blobs that are not older than every session; empty if they are few."""
    scope = snapshot.scoped(group)
    dangling, sessions = scope.dangling, scope.sessions
    newer = dangling[bisect_left(dangling, sessions[0]) if sessions else 0 :]
    return () if _are_few(len(newer), len(dangling) + len(sessions)) else newer


def _are_few(count: int, entry_count: int) -> bool:
    return count <= max(FEW_MISSING, entry_count // FEW_IN)


def entries_are_lost(case: Case) -> Optional[Reason]:
    """A purge of orphans is so large that they may have been sessions a moment ago."""
    count, _ = case.plan.wanted
    lost, session_count = case.mandate.lost, len(case.snapshot.sessions)
    if lost is None or count <= session_count:
        return None
    return _held(
        f"{_gone(case.plan)}, would have to go, beside only {counted(session_count, 'session')}",
        f"Has the service lost its metadata.json, or is the store being restored? {lost.remedy}",
        None,
        lost.limit_bytes,
        case.plan.wanted,
    )


# What was asked for


def setting_is_unusable(case: Case) -> Optional[Reason]:
    """Something would go while a setting that says what goes cannot be used."""
    setting, plan = case.mandate.unusable, case.plan
    if setting is None:
        return None
    if not case.mandate.has_rule:
        return _held(setting.trouble, setting.remedy, setting.variable, setting.limit_bytes, (0, 0))
    if not plan.victims:
        return None
    why = f"{setting.trouble}. With {setting.rule}, {_gone(plan)}, would have to go"
    return _held(why, setting.remedy, setting.variable, setting.limit_bytes, plan.wanted)


def question_is_outgrown(case: Case) -> Optional[Reason]:
    """More would go than somebody was asked about."""
    most, count = case.mandate.asked_about, len(case.plan.swept)
    if most is None or count <= most:
        return None
    now = counted(count, "dangling entry")
    return Reason(f"there are {now} now, and the question was about {most:,}: run it again")


def brake_holds(case: Case) -> Optional[Reason]:
    """More would go than the brake lets through."""
    plan, mandate, victim_count = case.plan, case.mandate, len(case.plan.victims)
    if mandate.max_delete is None:
        return None
    session_count = len(case.snapshot.scoped(case.limits.group).sessions)
    if victim_count <= mandate.max_delete.of(session_count):
        return None
    beside = f" beside {counted(session_count, 'session')}" if plan.are_orphans else f" of {session_count:,}"
    why = (
        f"{counted(victim_count, plan.noun)}{beside}, {size(plan.freed_bytes)}, would have to go ({plan.why}), more "
        f"than {mandate.max_delete}"
    )
    victims = victim_count, plan.freed_bytes
    return _held(why, mandate.let_through, None, case.limits.limit_bytes, victims)._replace(plan_is_sound=True)


# What time it is


def clock_is_ahead(case: Case) -> Optional[Reason]:
    """A purge by age would delete everything only because the clock is far ahead of all that the store shows.

    Sessions of the future stay whatever the clock says, and prove nothing.
    """
    now, latest, age_days = case.now, case.latest, case.limits.max_age_days
    if not case.mandate.if_clock_is_right or latest is None or age_days is None:
        return None
    parts = [case.plan.victims, *(keep.sessions for keep in case.plan.kept)]
    aged_count = sum(count_aged(part, now, days=age_days) for part in parts)
    past_count = sum(bisect_right(part, (now, AFTER_EVERY_GUID)) for part in parts)
    if aged_count < past_count or aged_count <= HANDFUL:
        return None
    if (now - latest).total_seconds() <= max(age_days * 86_400, QUIET_AGE.total_seconds()):
        return None
    return Reason(
        f"refused: every {case.plan.noun} ({aged_count:,}) would go, but this clock says {utc_text(now)[:19]} UTC, and "
        f"by what the store has shown it is {utc_text(latest)[:19]} UTC or later",
        f"Correct the clock; if it is right, and nobody has used the store since, {case.mandate.if_clock_is_right}",
        ends_cycle=False,
    )


CHECKS: Sequence[Check] = (
    blobs_are_missing,
    setting_is_unusable,
    entries_are_lost,
    clock_is_ahead,
    question_is_outgrown,
    brake_holds,
)
"""In the order in which they win."""


# Before there is a plan


def store_has_gone(
    storage_dir: str, seen: Optional[Sighting], found: Optional[Found], heartbeat_file: str
) -> Optional[Reason]:
    """What is no longer there of a store that had sessions: it was unmounted, moved away, or deleted.

    A service that empties its store leaves a metadata.json that says so. A store that has gone leaves nothing, or an
    empty directory, and that is no evidence that its sessions were deleted. An empty metadata.json says nothing in a
    new directory: a service makes one wherever it starts.
    """
    if seen is None or found is None or not seen.session_count:
        return None
    if found.has_metadata and (found.is_same_directory or found.has_blobs):
        return None
    if not found.is_same_directory:
        what = f"another directory is in the place of {storage_dir}, and it holds no store: is a volume not mounted?"
    elif seen.had_metadata:
        what = f"{found.metadata_file} has gone."
    else:
        return None
    or_else = ", or let the service create metadata.json" if found.is_same_directory else ""
    return Reason(
        f"{what} {counted(seen.session_count, 'session')} had been seen there; nothing more is deleted",
        f"If this is meant, remove {heartbeat_file} while no loop runs{or_else}",
        "storage_manager.store_gone",
    )


# In words


def _gone(plan: Plan) -> str:
    count, size_bytes = plan.wanted
    return f"{counted(count, plan.noun)}, {size(size_bytes)}"


def _held(
    why: str, remedy: str, variable: Optional[str], limit_bytes: Optional[int], victims: tuple[int, int]
) -> Reason:
    """`variable` is the one to correct; `victims` are a count and bytes."""
    return Reason(
        why,
        remedy,
        HELD,
        {
            "variable": variable,
            "limit_bytes": limit_bytes,
            "victim_count": victims[0],
            "victim_bytes": victims[1],
        },
    )
