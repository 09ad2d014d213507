"""The plan: who goes, who stays and why. Invariants on random snapshots first, then the edges one by one."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import NamedTuple, Optional

import pytest
from stores import new_guid

from storage_manager.jobs.plan import Plan, unmet
from storage_manager.jobs.policy import Limits, plan_orphan_purge, plan_prune, plan_purge
from storage_manager.store.snapshot import (
    ANOMALY_KINDS,
    CORRUPT,
    DANGLING,
    IN_FLIGHT,
    NOT_A_FILE,
    ORPHAN,
    Anomaly,
    Session,
    Snapshot,
)

NOW = datetime(2026, 6, 1, 12, 0, 0)
GROUPS = (None, None, "research", "café")


class Case(NamedTuple):
    seed: int
    snapshot: Snapshot
    limits: Limits

    @property
    def sessions(self) -> list[Session]:
        """The healthy sessions that the command is about, oldest first."""
        return in_scope(self.snapshot.sessions, self.limits.group)

    @property
    def dangling(self) -> list[Session]:
        return in_scope(self.snapshot.dangling, self.limits.group)

    @property
    def anomaly_bytes(self) -> int:
        return 0 if self.limits.group is not None else total(self.snapshot.anomalies)

    @property
    def usage(self) -> int:
        return total(self.sessions) + self.anomaly_bytes

    @property
    def eligible(self) -> list[Session]:
        """What may be deleted: old enough, and not among the newest ones to be kept."""
        sessions = self.sessions
        older = sessions[: max(0, len(sessions) - self.limits.keep_last)]
        if self.limits.min_age_mins == 0:
            return older
        return [s for s in older if NOW - s.created_at >= timedelta(minutes=self.limits.min_age_mins)]

    @property
    def crowded(self) -> bool:
        """Anomalies take more than half of the target: sessions do not make room for all of them."""
        return 2 * self.anomaly_bytes > self.limits.target_bytes

    @property
    def allowed_bytes(self) -> int:
        """What the sessions may hold once pruned."""
        return max(self.limits.target_bytes - self.anomaly_bytes, self.limits.target_bytes // 2)


def in_scope(sessions: object, group: Optional[str]) -> list[Session]:
    assert isinstance(sessions, (list, tuple))
    return [session for session in sessions if group is None or session.group == group]


def total(things: object) -> int:
    assert isinstance(things, (list, tuple))
    return sum(thing.size_bytes for thing in things)


def random_session(rng: random.Random, dangling: bool = False) -> Session:
    # Few distinct moments, some in the future, so that ties and all protections occur.
    created = NOW + timedelta(minutes=rng.randrange(-40, 4) * 30, microseconds=rng.choice((0, 0, 1)))
    size = 0 if dangling else rng.choice((0, 1, 10, rng.randrange(1000), rng.randrange(100_000)))
    return Session(created, new_guid(rng), rng.choice(("json", "png")), rng.choice(GROUPS), rng.choice((None, 7)), size)


def random_snapshot(rng: random.Random) -> Snapshot:
    anomalies = [
        Anomaly(rng.choice((ORPHAN, IN_FLIGHT, CORRUPT, NOT_A_FILE)), f"{new_guid(rng)}.json", size, "")
        for size in (rng.choice((0, rng.randrange(200_000))) for _ in range(rng.choice((0, 0, 1, 5))))
    ]
    return Snapshot(
        sorted(random_session(rng) for _ in range(rng.choice((0, 1, 2, rng.randrange(60))))),
        sorted(random_session(rng, dangling=True) for _ in range(rng.choice((0, 0, 1, 10)))),
        anomalies,
    )


def random_limits(rng: random.Random, snapshot: Snapshot, more: bool = False) -> Limits:
    group = rng.choice((None, None, None, "research", "nobody's"))
    usage = snapshot.scoped(group).usage_bytes
    limit = max(1, rng.choice((usage, usage - 1, usage + 1, usage // 2, usage // 2, rng.randrange(usage + 1))))
    return Limits(
        limit,
        target_bytes=rng.choice((limit, limit, rng.randrange(1, limit + 1))),
        min_age_mins=rng.choice((0.0, 0.0, 0.0, 30.0, 300.0, 1e12)),
        keep_last=rng.choice((0, 0, 0, 1, 5, 1000)),
        group=group,
        max_sessions=rng.choice((None, None, None, 1, 5, 20)) if more else None,
        max_age_days=rng.choice((None, None, 0.25, 0.5, 30.0)) if more else None,
    )


def cases(count: int = 600) -> Iterator[Case]:
    for seed in range(count):
        rng = random.Random(seed)
        snapshot = random_snapshot(rng)
        yield Case(seed, snapshot, random_limits(rng, snapshot))


def plan_of(case: Case) -> Plan:
    return plan_prune(case.snapshot, case.limits, NOW)


def kept_sessions(plan: Plan) -> list[Session]:
    return [session for keep in plan.kept for session in keep.sessions]


def aged(days: float, number: int = 0, size: int = 10, group: Optional[str] = None) -> Session:
    """A session so many days old; `number` makes its guid, and so the order of sessions of one age."""
    guid = f"00000000-0000-4000-8000-{number:012d}"
    return Session(NOW - timedelta(days=days), guid, "json", group, size, size)


def a_line_of(count: int, size: int = 10) -> list[Session]:
    """Sessions a day apart, oldest first, the youngest one day old."""
    return [aged(count - number, number, size) for number in range(count)]


# --- Invariants


def test_the_random_cases_cover_what_they_are_meant_to_cover() -> None:
    seen = {"noop": 0, "pruned": 0, "crowded": 0, "unmet": 0, "swept": 0, "min_age": 0, "keep_last": 0, "group": 0}
    for case in cases():
        plan = plan_of(case)
        over = case.usage > case.limits.limit_bytes
        seen["noop"] += not over
        seen["pruned"] += bool(plan.victims)
        seen["crowded"] += over and case.crowded
        seen["unmet"] += not plan.target_met
        seen["swept"] += bool(plan.swept)
        seen["group"] += case.limits.group is not None and bool(plan.victims)
        for keep in plan.kept:
            seen[keep.cause] = seen.get(keep.cause, 0) + bool(plan.victims)
    assert all(count >= 15 for count in seen.values()), seen


def test_no_newer_session_goes_while_an_older_one_stays() -> None:
    for case in cases():
        plan = plan_of(case)
        if plan.victims:
            newest_victim = max((s.created_at, s.guid) for s in plan.victims)
            stay = set(case.sessions) - set(plan.victims)
            assert all((s.created_at, s.guid) > newest_victim for s in stay), case.seed


def test_victims_and_kept_are_all_the_sessions_of_the_scope_in_order() -> None:
    for case in cases():
        plan = plan_of(case)
        assert [*plan.victims, *kept_sessions(plan)] == case.sessions, case.seed
        assert all(keep.sessions for keep in plan.kept), case.seed


def test_only_what_is_eligible_goes() -> None:
    for case in cases():
        assert set(plan_of(case).victims) <= set(case.eligible), case.seed


def test_usage_comes_down_to_the_target_or_everything_eligible_is_gone() -> None:
    for case in cases():
        plan = plan_of(case)
        if case.usage <= case.limits.limit_bytes or case.crowded:
            continue
        everything = list(plan.victims) == case.eligible
        assert plan.planned_bytes <= case.limits.target_bytes or everything, case.seed
        assert plan.target_met == (plan.planned_bytes <= case.limits.target_bytes), case.seed


def test_when_anomalies_take_more_than_half_of_the_target_half_of_it_is_left_to_the_sessions() -> None:
    crowded = 0
    for case in cases():
        plan = plan_of(case)
        if case.usage <= case.limits.limit_bytes or not case.crowded:
            continue
        crowded += 1
        assert total(kept_sessions(plan)) <= case.allowed_bytes or list(plan.victims) == case.eligible, case.seed
        assert plan.target_met == (plan.planned_bytes <= case.limits.target_bytes), case.seed
        if not plan.target_met:
            told = sum(size for kind, size in plan.causes.items() if kind in ANOMALY_KINDS)
            assert told == case.anomaly_bytes, case.seed
    assert crowded > 50


def test_anomalies_never_cost_more_than_half_of_the_target_and_a_little_more_of_them_never_much_more() -> None:
    """No cliff: of a thousand sessions, a byte of orphans costs one more session at most, and none ever comes back."""
    sessions = a_line_of(1000, size=1)
    for target in (1000, 999, 2, 1):
        before = None
        for size in range(2 * target + 3):
            plan = plan_prune(Snapshot(sessions, [], [orphan(size)]), Limits(target, target), NOW)
            count = len(plan.victims)
            assert 1000 - count >= min(1000, target // 2)
            assert before is None or before <= count <= before + 1, (target, size)
            assert plan.target_met == (2 * size <= target + target % 2)
            before = count


def test_the_victims_are_the_shortest_prefix_that_does() -> None:
    for case in cases():
        plan = plan_of(case)
        if not plan.victims:
            continue
        one_fewer = total(case.sessions) - total(plan.victims[:-1])
        assert one_fewer > case.allowed_bytes, case.seed


def test_nothing_goes_within_the_limit() -> None:
    for case in cases():
        if case.usage <= case.limits.limit_bytes:
            plan = plan_of(case)
            assert (list(plan.victims), list(plan.swept), plan.causes) == ([], [], {}), case.seed
            assert plan.current_bytes == plan.planned_bytes == case.usage, case.seed


def test_the_bytes_add_up() -> None:
    for case in cases():
        plan = plan_of(case)
        assert plan.current_bytes == case.usage, case.seed
        assert plan.freed_bytes == total(plan.victims), case.seed
        assert plan.planned_bytes == total(kept_sessions(plan)) + case.anomaly_bytes, case.seed
        assert plan.target_bytes == case.limits.target_bytes, case.seed


def test_the_causes_of_an_unmet_target_account_for_every_byte_that_stays() -> None:
    for case in cases():
        plan = plan_of(case)
        if not plan.target_met and not case.crowded:
            assert sum(plan.causes.values()) == plan.planned_bytes, case.seed


def test_dangling_entries_older_than_the_last_victim_are_swept_and_newer_ones_stay() -> None:
    for case in cases():
        plan = plan_of(case)
        last = plan.victims[-1] if plan.victims else None
        older = [d for d in case.dangling if last and (d.created_at, d.guid) < (last.created_at, last.guid)]
        assert list(plan.swept) == older, case.seed


def test_the_plan_does_not_depend_on_the_order_in_which_the_store_was_read() -> None:
    for case in cases(200):
        rng = random.Random(-case.seed)
        sessions, dangling, anomalies = (rng.sample(list(part), len(part)) for part in case.snapshot[:3])
        again = plan_prune(Snapshot(sorted(sessions), sorted(dangling), anomalies), case.limits, NOW)
        before = plan_of(case)
        assert again == before, case.seed
        assert list(again.causes) == list(before.causes), case.seed


def test_planning_changes_nothing_that_it_was_given() -> None:
    for case in cases(200):
        before = tuple(tuple(part) for part in case.snapshot[:3])
        plan_of(case)
        plan_purge(case.snapshot, Limits(max_age_days=1.0, group=case.limits.group), NOW)
        assert tuple(tuple(part) for part in case.snapshot[:3]) == before, case.seed


def test_every_session_of_the_scope_is_decided_on_once_with_a_reason() -> None:
    for case in cases(200):
        plan = plan_of(case)
        decisions = list(plan.decisions())
        assert sorted(s for action, s, _ in decisions if action != "sweep") == case.sessions, case.seed
        assert [s for action, s, _ in decisions if action == "delete"] == list(plan.victims), case.seed
        assert [s for action, s, _ in decisions if action == "sweep"] == list(plan.swept), case.seed
        assert all(reason for _, _, reason in decisions), case.seed


# --- The limit and the target


def test_usage_exactly_at_the_limit_is_within_it() -> None:
    sessions = a_line_of(5)
    assert not plan_prune(Snapshot(sessions, [], []), Limits(50, 50), NOW).victims


def test_one_byte_over_the_limit_costs_one_session() -> None:
    sessions = a_line_of(5)
    plan = plan_prune(Snapshot(sessions, [], []), Limits(49, 49), NOW)
    assert list(plan.victims) == sessions[:1]
    assert plan.planned_bytes == 40
    assert plan.target_met


def test_over_the_limit_sessions_go_down_to_the_lower_target() -> None:
    sessions = a_line_of(5)
    assert list(plan_prune(Snapshot(sessions, [], []), Limits(49, 20), NOW).victims) == sessions[:3]


def test_within_the_limit_but_over_the_target_nothing_goes() -> None:
    plan = plan_prune(Snapshot(a_line_of(5), [], []), Limits(50, 20), NOW)
    assert not plan.victims
    assert plan.target_met


def test_empty_sessions_go_only_in_their_turn() -> None:
    sessions = [aged(4, 0, 0), aged(3, 1, 30), aged(2, 2, 0), aged(1, 3, 30)]
    assert list(plan_prune(Snapshot(sessions, [], []), Limits(40, 40), NOW).victims) == sessions[:2]


def test_sessions_of_one_moment_go_in_the_order_of_their_guids() -> None:
    sessions = sorted([aged(1, 3), aged(1, 1), aged(1, 2)])
    plan = plan_prune(Snapshot(sessions, [], []), Limits(15, 15), NOW)
    assert [s.guid[-1] for s in plan.victims] == ["1", "2"]


def test_an_empty_store_needs_no_plan() -> None:
    plan = plan_prune(Snapshot([], [], []), Limits(1, 1), NOW)
    assert (list(plan.victims), plan.current_bytes, plan.target_met) == ([], 0, True)


# --- Anomalies


def orphan(size: int) -> Anomaly:
    return Anomaly(ORPHAN, "x.json", size, "no entry")


def test_anomalies_count_as_usage_and_sessions_make_room_for_them() -> None:
    sessions = a_line_of(5)
    plan = plan_prune(Snapshot(sessions, [], [orphan(30)]), Limits(50, 50), NOW)
    assert list(plan.victims) == sessions[:3]
    assert plan.planned_bytes == 50


def test_anomalies_of_half_the_target_still_let_it_be_met() -> None:
    sessions = a_line_of(5)
    plan = plan_prune(Snapshot(sessions, [], [orphan(20)]), Limits(40, 40), NOW)
    assert list(plan.victims) == sessions[:3]
    assert plan.target_met


@pytest.mark.parametrize("more", [1, 10, 19, 20, 21, 1000])
def test_beyond_that_no_more_sessions_go_and_the_target_is_unmet(more: int) -> None:
    sessions = a_line_of(7)
    anomalies = [orphan(10 + more), Anomaly(CORRUPT, "y.json", 10, ""), Anomaly(CORRUPT, "z.json", 0, "")]
    plan = plan_prune(Snapshot(sessions, [], anomalies), Limits(40, 40), NOW)
    assert list(plan.victims) == sessions[:5]
    assert not plan.target_met
    assert plan.causes == {ORPHAN: 10 + more, CORRUPT: 10}


def test_anomalies_over_the_target_with_few_sessions_cost_none_and_are_reported() -> None:
    plan = plan_prune(Snapshot(a_line_of(2), [], [orphan(1000)]), Limits(50, 50), NOW)
    assert not plan.victims
    assert plan.causes == {ORPHAN: 1000}


def test_anomalies_are_never_chosen() -> None:
    plan = plan_prune(Snapshot([], [], [orphan(1000)]), Limits(1, 1), NOW)
    assert list(plan.decisions()) == []
    assert plan.planned_bytes == 1000


# --- Protections


def test_a_session_exactly_as_old_as_the_minimum_age_may_go_and_a_younger_one_may_not() -> None:
    exact, younger = aged(2, 0), aged(2, 1)._replace(created_at=NOW - timedelta(days=2) + timedelta(microseconds=1))
    plan = plan_prune(Snapshot([exact, younger], [], []), Limits(1, 1, min_age_mins=2 * 24 * 60), NOW)
    assert list(plan.victims) == [exact]
    assert plan.causes == {"min_age": 10}


@pytest.mark.parametrize("min_age_mins", [1.1e9, 1e15, 1e300, 1.7e308, math.inf])
def test_a_minimum_age_beyond_the_calendar_protects_everything(min_age_mins: float) -> None:
    first = aged(1)._replace(created_at=datetime.min)
    plan = plan_prune(Snapshot([first], [], []), Limits(1, 1, min_age_mins=min_age_mins), NOW)
    assert not plan.victims
    assert plan.causes == {"min_age": 10}


def test_a_session_from_the_future_is_too_young_under_a_minimum_age_and_eligible_without_one() -> None:
    future = aged(-400)
    snapshot = Snapshot([future], [], [])
    assert not plan_prune(snapshot, Limits(1, 1, min_age_mins=0.001), NOW).victims
    assert list(plan_prune(snapshot, Limits(1, 1), NOW).victims) == [future]


def test_the_newest_sessions_are_kept_and_said_to_be() -> None:
    sessions = a_line_of(5)
    plan = plan_prune(Snapshot(sessions, [], []), Limits(1, 1, keep_last=2), NOW)
    assert list(plan.victims) == sessions[:3]
    assert plan.causes == {"keep_last": 20}
    assert [keep.cause for keep in plan.kept] == ["keep_last"]


def test_keeping_more_than_there_are_keeps_all() -> None:
    plan = plan_prune(Snapshot(a_line_of(3), [], []), Limits(1, 1, keep_last=10**18), NOW)
    assert not plan.victims


def test_both_protections_hold_at_once_and_no_session_is_counted_twice() -> None:
    sessions = a_line_of(6)
    plan = plan_prune(Snapshot(sessions, [], []), Limits(1, 1, min_age_mins=2 * 24 * 60 + 1, keep_last=4), NOW)
    assert list(plan.victims) == sessions[:2]
    assert plan.causes == {"keep_last": 20, "min_age": 20}
    stricter = plan_prune(Snapshot(sessions, [], []), Limits(1, 1, min_age_mins=5 * 24 * 60, keep_last=1), NOW)
    assert list(stricter.victims) == sessions[:2]
    assert stricter.causes == {"min_age": 40}


def test_protections_that_do_not_stand_in_the_way_are_no_cause() -> None:
    plan = plan_prune(Snapshot(a_line_of(5), [], []), Limits(30, 30, keep_last=1), NOW)
    assert plan.target_met
    assert [(keep.cause, len(keep.sessions)) for keep in plan.kept] == [("not_needed", 2), ("keep_last", 1)]


# --- Groups


def test_a_group_is_measured_and_pruned_alone() -> None:
    mine = [aged(9, 1, 10, "mine"), aged(7, 3, 10, "mine"), aged(5, 5, 10, "mine")]
    others = [aged(8, 2, 1000, "other"), aged(6, 4, 1000)]
    plan = plan_prune(Snapshot(sorted(mine + others), [], [orphan(5000)]), Limits(20, 20, group="mine"), NOW)
    assert list(plan.victims) == mine[:1]
    assert plan.current_bytes == 30
    assert plan.target_met
    assert not set(kept_sessions(plan)) & set(others)


def test_the_newest_of_a_group_are_counted_in_the_group() -> None:
    mine = [aged(9, 1, 10, "mine"), aged(8, 2, 10, "mine")]
    others = [aged(1, 3, 10), aged(1, 4, 10)]
    plan = plan_prune(Snapshot(mine + others, [], []), Limits(1, 1, keep_last=1, group="mine"), NOW)
    assert list(plan.victims) == mine[:1]


def test_dangling_entries_of_other_groups_stay() -> None:
    dangling = [aged(20, 7, 0, "mine"), aged(20, 8, 0, "other"), aged(20, 9, 0)]
    snapshot = Snapshot([aged(9, 1, 10, "mine")], dangling, [])
    assert list(plan_prune(snapshot, Limits(1, 1, group="mine"), NOW).swept) == dangling[:1]
    assert list(plan_purge(snapshot, Limits(max_age_days=1.0, group="mine"), NOW).swept) == dangling[:1]


# --- Dangling entries


def test_a_dangling_entry_of_the_last_victims_moment_is_swept_only_when_its_guid_is_lower() -> None:
    dangling = [aged(3, 1, 0), aged(3, 3, 0)]
    plan = plan_prune(Snapshot([aged(3, 2)], dangling, []), Limits(1, 1), NOW)
    assert list(plan.swept) == dangling[:1]


def test_dangling_entries_free_nothing_and_are_not_swept_without_a_victim() -> None:
    dangling = [aged(900, 1, 0)]
    plan = plan_prune(Snapshot([aged(3, 2)], dangling, []), Limits(10, 10), NOW)
    assert (list(plan.victims), list(plan.swept), plan.current_bytes) == ([], [], 10)


# --- Purge


def purged(sessions: list[Session], age_days: float, now: datetime = NOW) -> list[Session]:
    return list(plan_purge(Snapshot(sessions, [], []), Limits(max_age_days=age_days), now).victims)


def test_purge_takes_exactly_what_has_the_age() -> None:
    for seed in range(300):
        rng = random.Random(seed)
        snapshot, group = random_snapshot(rng), rng.choice((None, None, "research"))
        age_days = rng.choice((0.125, 0.25, 0.5, 1 / 24, 1.0, 30.0))
        plan = plan_purge(snapshot, Limits(max_age_days=age_days, group=group), NOW)
        old = [s for s in in_scope(snapshot.sessions, group) if NOW - s.created_at >= timedelta(days=age_days)]
        old_dangling = [s for s in in_scope(snapshot.dangling, group) if NOW - s.created_at >= timedelta(days=age_days)]
        assert list(plan.victims) == old, seed
        assert list(plan.swept) == old_dangling, seed
        assert [*plan.victims, *kept_sessions(plan)] == in_scope(snapshot.sessions, group), seed
        assert plan.freed_bytes == total(old), seed
        assert plan.target_met, seed


@pytest.mark.parametrize("days", [1, 2, 30, 365, 730_000])
def test_a_session_exactly_n_days_old_goes_and_one_a_microsecond_younger_stays(days: int) -> None:
    exact = aged(days, 0)
    younger = exact._replace(created_at=exact.created_at + timedelta(microseconds=1))
    assert purged([exact, younger], days) == [exact]


def test_a_day_is_24_hours_whatever_the_date() -> None:
    created = datetime(2026, 3, 28, 12, 0)
    session = aged(1)._replace(created_at=created)
    assert purged([session], 1, created + timedelta(hours=24)) == [session]
    assert purged([session], 1, created + timedelta(hours=24, microseconds=-1)) == []


def test_age_zero_is_everything_even_what_comes_from_the_future() -> None:
    sessions = [aged(1, 0), aged(-1, 1), aged(0, 2)._replace(created_at=datetime.max)]
    dangling = [aged(5, 3, 0), aged(-5, 4, 0)]
    plan = plan_purge(Snapshot(sessions, dangling, [orphan(7)]), Limits(max_age_days=0), NOW)
    assert list(plan.victims) == sessions
    assert list(plan.swept) == dangling
    assert plan.planned_bytes == 7


def test_the_smallest_age_above_zero_spares_the_future() -> None:
    past, future = aged(1, 0), aged(-1, 1)
    assert purged([past, future], 1e-300) == [past]


def test_the_years_1_and_9999_have_ages_too() -> None:
    first, last = aged(0, 0)._replace(created_at=datetime.min), aged(0, 1)._replace(created_at=datetime.max)
    assert purged([first, last], 700_000) == [first]
    assert purged([first, last], 1, datetime.max) == [first]
    assert purged([first, last], 1, datetime.min) == []
    assert purged([first, last], 3_652_058, datetime.max) == [first]


@pytest.mark.parametrize("age_days", [1e6, 999_999_999.0, 999_999_999.99, 1e10, 1e300, math.inf])
def test_an_age_beyond_the_calendar_chooses_nothing(age_days: float) -> None:
    first = aged(0)._replace(created_at=datetime.min)
    plan = plan_purge(Snapshot([first], [first._replace(size_bytes=0)], []), Limits(max_age_days=age_days), NOW)
    assert (list(plan.victims), list(plan.swept)) == ([], [])
    assert kept_sessions(plan) == [first]


def test_a_purge_of_a_group_spares_the_others() -> None:
    mine, other, nobodys = aged(9, 1, 10, "mine"), aged(9, 2, 10, "other"), aged(9, 3, 10)
    plan = plan_purge(Snapshot([mine, other, nobodys], [], [orphan(70)]), Limits(max_age_days=0, group="mine"), NOW)
    assert list(plan.victims) == [mine]
    assert (plan.current_bytes, plan.planned_bytes) == (10, 0)


def test_a_purge_sweeps_old_dangling_entries_without_a_victim() -> None:
    dangling = [aged(40, 1, 0), aged(20, 2, 0)]
    plan = plan_purge(Snapshot([], dangling, []), Limits(max_age_days=30), NOW)
    assert list(plan.swept) == dangling[:1]


# --- The snapshot itself


def test_anomaly_totals_are_by_kind_in_a_fixed_order_and_count_dangling_entries() -> None:
    anomalies = [Anomaly(CORRUPT, "c", 1, ""), orphan(2), Anomaly(IN_FLIGHT, "i", 3, ""), orphan(4)]
    totals = Snapshot([], [aged(1, 0, 0)], anomalies).anomaly_totals()
    assert totals == {ORPHAN: (2, 6), IN_FLIGHT: (1, 3), DANGLING: (1, 0), CORRUPT: (1, 1)}
    assert list(totals) == [kind for kind in ANOMALY_KINDS if kind in totals]


def test_the_whole_store_is_its_own_scope_and_a_group_has_no_anomalies() -> None:
    snapshot = Snapshot([aged(1, 1, 10, "mine"), aged(1, 2, 10)], [], [orphan(3)])
    assert snapshot.scoped(None) == snapshot
    assert snapshot.scoped("mine").usage_bytes == 10
    assert snapshot.scoped("").usage_bytes == 0
    assert snapshot.usage_bytes == 23


# Orphans


def test_orphans_are_chosen_by_age_and_nothing_else_is() -> None:
    now = datetime(2026, 3, 1)
    ages = {"a": 40, "b": 30, "c": 29}
    anomalies = [
        Anomaly(ORPHAN, f"{letter * 8}-4444-4444-8444-444444444444.json", 10, "", now - timedelta(days=days))
        for letter, days in ages.items()
    ]
    young = Anomaly(IN_FLIGHT, "dddddddd-4444-4444-8444-444444444444.json", 5, "", now - timedelta(days=99))
    session = Session(datetime(2020, 1, 1), "e" * 36, "json", None, None, 100)
    snapshot = Snapshot([session], [session._replace(guid="f" * 36)], [*anomalies, young])
    for days, letters in ((30, "ab"), (0, "abc"), (1e300, ""), (40.5, "")):
        plan = plan_orphan_purge(snapshot, Limits(max_age_days=days), now)
        assert [victim.guid[0] for victim in plan.victims] == list(letters)
        kept = [orphan.guid[0] for keep in plan.kept for orphan in keep.sessions]
        assert sorted(kept + list(letters)) == list("abc")
        assert (plan.current_bytes, plan.freed_bytes) == (135, 10 * len(letters))
        assert plan.are_orphans and plan.noun == "orphan" and not plan.swept


# Limits of age and of number


def combined_cases(count: int = 600) -> Iterator[Case]:
    for seed in range(count):
        rng = random.Random(seed)
        snapshot = random_snapshot(rng)
        yield Case(seed, snapshot, random_limits(rng, snapshot, more=True))


def test_a_plan_with_every_limit_deletes_no_more_and_no_less_than_they_ask_for() -> None:
    seen = set()
    for case in combined_cases():
        plan, limits = plan_of(case), case.limits
        sessions, eligible = case.sessions, case.eligible
        aged_count = 0
        if limits.max_age_days is not None:
            aged_count = sum(1 for s in eligible if NOW - s.created_at >= timedelta(days=limits.max_age_days))
        assert limits.limit_bytes is not None and limits.target_bytes is not None
        expected = aged_count
        if case.usage - total(sessions[:expected]) > limits.limit_bytes:
            while expected < len(eligible) and total(sessions[expected:]) > case.allowed_bytes:
                expected += 1
        sized_count = expected
        if limits.max_sessions is not None:
            expected = max(expected, min(len(eligible), len(sessions) - limits.max_sessions))
            assert plan.surplus_count == max(0, len(sessions) - expected - limits.max_sessions), case.seed
        assert list(plan.victims) == sessions[:expected], case.seed
        assert list(plan.victims) + kept_sessions(plan) == sessions, case.seed
        why = [reason for _, reason in plan.chosen()]
        by_age, by_size = f"{limits.max_age_days or 0:g} days or older", "oldest first, over the limit"
        by_count = f"oldest first, more than {limits.max_sessions} sessions"
        parts = [by_age] * aged_count + [by_size] * (sized_count - aged_count) + [by_count] * (expected - sized_count)
        assert why == parts, case.seed
        assert plan.why == "; ".join(dict.fromkeys(parts or [by_size])), case.seed
        seen.add((aged_count > 0, sized_count > aged_count, expected > sized_count, plan.surplus_count > 0))
    assert len(seen) >= 10


def test_a_number_alone_is_a_limit() -> None:
    sessions = a_line_of(5)
    plan = plan_prune(Snapshot(sessions, [], []), Limits(None, None, max_sessions=3), NOW)
    assert list(plan.victims) == sessions[:2]
    assert (plan.target_met, plan.target_bytes, plan.why) == (True, None, "oldest first, more than 3 sessions")
    assert unmet(plan, plan.planned_bytes) == ""


def test_a_number_that_protections_keep_from_being_reached_is_told() -> None:
    snapshot = Snapshot(a_line_of(5), [], [])
    plan = plan_prune(snapshot, Limits(None, None, keep_last=4, max_sessions=2), NOW)
    assert (len(plan.victims), plan.surplus_count, plan.target_met) == (1, 2, False)
    assert unmet(plan, plan.planned_bytes).startswith("2 sessions more stay than may, because")
    plan = plan_prune(snapshot, Limits(20, 20, keep_last=4, max_sessions=2), NOW)
    assert "above the target of 20 B; 2 sessions more stay" in unmet(plan, plan.planned_bytes)


def test_what_age_frees_may_be_enough() -> None:
    """Hysteresis begins at the limit, and what is too old is gone by then."""
    sessions = a_line_of(10)
    limits = Limits(80, 20, max_age_days=(NOW - sessions[2].created_at).total_seconds() / 86_400)
    assert list(plan_prune(Snapshot(sessions, [], []), limits, NOW).victims) == sessions[:3]
    assert len(plan_prune(Snapshot(sessions, [], []), limits._replace(max_age_days=None), NOW).victims) == 8
