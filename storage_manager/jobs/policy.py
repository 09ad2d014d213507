"""Pure policy: a Snapshot and limits in, a Plan out. No clock, no file system, no logging."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence, Set
from datetime import datetime, timedelta
from typing import NamedTuple, Optional

from storage_manager.jobs.plan import TOO_MANY, Keep, Plan
from storage_manager.store.snapshot import AFTER_EVERY_GUID, FUTURE, ORPHAN, UNREADABLE, Session, Snapshot


class Limits(NamedTuple):
    """What goes, and what is out of bounds."""

    limit_bytes: Optional[int] = None
    """Nothing happens up to here; None: whatever the usage."""
    target_bytes: Optional[int] = None
    """Beyond the limit, sessions go until usage is down to this. None where there is no limit."""
    min_age_mins: float = 0.0
    """Younger sessions are protected."""
    keep_last: int = 0
    """The newest N sessions of the scope are protected."""
    group: Optional[str] = None
    max_sessions: Optional[int] = None
    """Beyond so many, the oldest go."""
    max_age_days: Optional[float] = None
    """Sessions of that age go first, whatever the usage."""
    later_bytes: int = 0
    """Of orphans that a later cycle takes: no session makes room for them."""


def plan_prune(snapshot: Snapshot, limits: Limits, now: datetime) -> Plan:
    """Choose the shortest run of oldest sessions whose deletion leaves none that is too old, brings usage down to the
    target, and leaves no more than may be.

    The victims are always a prefix of the sessions in age order, so no newer session goes while an older one
    of the scope stays. Anomalies are never chosen. Sessions make room for them, down to half of the target: anomalies
    that take more than the other half leave it unmet, and somebody has to look after them.
    """
    scope = snapshot.scoped(limits.group)
    sessions, anomaly_bytes = scope.sessions, scope.anomaly_bytes
    usage = scope.session_bytes + anomaly_bytes
    protected_from, protections = _protected(sessions, limits, now)

    days = limits.max_age_days
    aged = 0 if days is None else min(protected_from, count_aged(sessions, now, days=days))
    freed = sum(session.size_bytes for session in sessions[:aged])
    count, excess, target = aged, 0, limits.target_bytes
    if limits.limit_bytes is None or usage - freed <= limits.limit_bytes + limits.later_bytes:
        target = None  # nothing is asked for
    if target is not None:
        target += limits.later_bytes
        excess = scope.session_bytes - freed - max(target - anomaly_bytes, target // 2)
        while excess > 0 and count < protected_from:
            excess -= sessions[count].size_bytes
            freed += sessions[count].size_bytes
            count += 1
    sized, surplus = count, 0
    if limits.max_sessions is not None:
        surplus = max(0, len(sessions) - count - limits.max_sessions)
        count = min(protected_from, count + surplus)
        freed += sum(session.size_bytes for session in sessions[sized:count])
        surplus -= count - sized

    causes = _unknown(snapshot)
    if target is not None and usage - freed > target:
        causes |= _sizes_of_anomalies(scope)
    if excess > 0 or surplus:  # the protections have stopped it, too
        causes.update((keep.cause, sum(s.size_bytes for s in keep.sessions)) for keep in protections if keep.sessions)
    kept = [Keep("not_needed", "within the limit", sessions[count:protected_from]), *protections]
    return Plan(
        victims=sessions[:count],
        swept=_older_dangling(scope, sessions[:count]),
        reasons=_reasons(limits, aged, sized, count),
        kept=[keep for keep in kept if keep.sessions],
        current_bytes=usage,
        planned_bytes=usage - freed,
        target_bytes=limits.target_bytes,
        causes=causes,
        surplus_count=surplus,
    )


def _sizes_of_anomalies(scope: Snapshot) -> dict[str, int]:
    totals = scope.anomaly_totals()
    totals.pop(FUTURE, None)  # sessions like others: what stays of them is protected
    return {kind: size for kind, (_, size) in totals.items() if size}


def _reasons(limits: Limits, aged: int, sized: int, count: int) -> list[tuple[int, str]]:
    """Why the victims up to each of these numbers go; where none does, why some would have gone."""
    reasons = [
        (aged, f"{limits.max_age_days or 0:g} days or older"),
        (sized - aged, "oldest first, over the limit"),
        (count - sized, f"oldest first, more than {limits.max_sessions or 0:,} sessions"),
    ]
    return [(chosen, reason) for chosen, reason in reasons if chosen] or reasons[1:2]


def plan_nothing(snapshot: Snapshot, limits: Limits, now: datetime) -> Plan:
    """Delete nothing, whatever there is."""
    usage = snapshot.usage_bytes
    kept = [Keep("not_needed", "deletion is switched off", snapshot.sessions)] if snapshot.sessions else []
    return Plan((), (), (), kept, usage, usage, None, {})


def plan_purge(snapshot: Snapshot, limits: Limits, now: datetime) -> Plan:
    """Choose every session and dangling entry whose age is at least `max_age_days` times 24 hours; 0 chooses all."""
    scope, age_days = snapshot.scoped(limits.group), limits.max_age_days or 0.0
    reason = f"{age_days:g} days or older" if age_days > 0 else "everything was asked for"
    plan = _plan_by_age(scope.sessions, scope.usage_bytes, age_days, reason, now)
    return plan._replace(swept=_aged(scope.dangling, age_days, now), causes=_unknown(snapshot))


def plan_orphan_purge(snapshot: Snapshot, limits: Limits, now: datetime) -> Plan:
    """Choose every orphan that was last modified at least `max_age_days` times 24 hours ago; never one in flight."""
    age_days = limits.max_age_days or 0.0
    orphans = sorted(anomaly.as_session() for anomaly in snapshot.anomalies if anomaly.kind == ORPHAN)
    reason = f"an orphan, {age_days:g} days or older" if age_days > 0 else "every orphan was asked for"
    plan = _plan_by_age(orphans, snapshot.usage_bytes, age_days, reason, now)
    return plan._replace(are_orphans=True, causes=_unknown(snapshot))


def plan_sweep(snapshot: Snapshot) -> Plan:
    """Remove every dangling entry, and delete nothing."""
    usage = snapshot.usage_bytes
    return Plan((), snapshot.dangling, (), (), usage, usage, None, {})


def first_of(plan: Plan, most: int) -> Plan:
    """The same plan for its oldest `most` victims alone."""
    later = plan.victims[most:]
    if not later:
        return plan
    return plan._replace(
        victims=plan.victims[:most],
        reasons=[(most, plan.why)],
        kept=[Keep(TOO_MANY, f"more than {most:,}", later), *plan.kept],
        planned_bytes=plan.planned_bytes + sum(session.size_bytes for session in later),
    )


def confirmed_of(plan: Plan, guids: Set[str]) -> Plan:
    """The same plan without what is not among these: somebody was asked about them alone."""
    later = [session for session in plan.victims if session.guid not in guids]
    return plan._replace(
        victims=[session for session in plan.victims if session.guid in guids],
        swept=[session for session in plan.swept if session.guid in guids],
        kept=[*plan.kept, Keep("not_confirmed", "it was not there when that was asked", later)] if later else plan.kept,
        planned_bytes=plan.planned_bytes + sum(session.size_bytes for session in later),
    )


def _plan_by_age(sessions: Sequence[Session], usage_bytes: int, age_days: float, reason: str, now: datetime) -> Plan:
    victims = _aged(sessions, age_days, now)
    rest = sessions[len(victims) :]
    return Plan(
        victims=victims,
        swept=(),
        reasons=[(len(victims), reason)],
        kept=[Keep("too_young", f"younger than {age_days:g} days", rest)] if rest else [],
        current_bytes=usage_bytes,
        planned_bytes=usage_bytes - sum(session.size_bytes for session in victims),
        target_bytes=None,
        causes={},
    )


def _aged(sessions: Sequence[Session], age_days: float, now: datetime) -> Sequence[Session]:
    """The sessions of this age or more; of 0 days, all, even those that are dated in the future."""
    return sessions[: count_aged(sessions, now, days=age_days)] if age_days > 0 else sessions


def _unknown(snapshot: Snapshot) -> dict[str, int]:
    """A blob of unknown size: nobody can say whether a target is met, or whether it is old enough to go."""
    return {UNREADABLE: 0} if any(anomaly.kind == UNREADABLE for anomaly in snapshot.anomalies) else {}


def _protected(sessions: Sequence[Session], limits: Limits, now: datetime) -> tuple[int, list[Keep]]:
    """Index of the first protected session, and the protections from there on."""
    total = len(sessions)
    newest = max(0, total - limits.keep_last)
    young = total
    if limits.min_age_mins > 0:
        young = count_aged(sessions, now, minutes=limits.min_age_mins)
    first = min(newest, young)
    return first, [
        Keep("keep_last", f"among the newest {limits.keep_last}", sessions[newest:young]),
        Keep("min_age", f"younger than {limits.min_age_mins:g} minutes", sessions[young:]),
    ]


def _older_dangling(scope: Snapshot, victims: Sequence[Session]) -> Sequence[Session]:
    if not victims:
        return ()
    return scope.dangling[: bisect_left(scope.dangling, victims[-1])]


def count_aged(sessions: Sequence[Session], now: datetime, **age: float) -> int:
    """How many sessions are of this age, as timedelta() takes it, or more."""
    try:
        moment = now - timedelta(**age)
    except OverflowError:  # before the calendar begins
        return 0
    return bisect_right(sessions, (moment, AFTER_EVERY_GUID))
