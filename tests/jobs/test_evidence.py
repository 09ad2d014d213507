"""Why nothing is deleted: each check, and the order in which they win."""

from __future__ import annotations

import random
import re
from collections.abc import Set
from datetime import datetime, timedelta
from typing import Any

import pytest
import stores

from storage_manager.base.errors import StorageManagerError
from storage_manager.base.quantity import parse_share
from storage_manager.jobs import evidence
from storage_manager.jobs.evidence import (
    CHECKS,
    FEW_IN,
    FEW_MISSING,
    HANDFUL,
    HELD,
    Case,
    Held,
    Lost,
    Mandate,
    Reason,
    Unusable,
    asks_history,
    blobs_are_missing,
    brake_holds,
    clock_is_ahead,
    entries_are_lost,
    question_is_outgrown,
    setting_is_unusable,
    store_has_gone,
    why_not,
)
from storage_manager.jobs.memory import Found, Sighting
from storage_manager.jobs.plan import Deleted
from storage_manager.jobs.policy import Limits, first_of, plan_orphan_purge, plan_prune, plan_purge, plan_sweep
from storage_manager.store.snapshot import ORPHAN, Anomaly, Session, Snapshot

BEGIN = datetime(2026, 1, 1)
NOW = BEGIN + timedelta(days=400)


def sessions(ages: list[int]) -> list[Session]:
    """One for each number of days after BEGIN."""
    return sorted(Session(BEGIN + timedelta(days=age), f"{age:036}", "json", None, 10, 10) for age in ages)


def orphans(count: int) -> list[Anomaly]:
    return [Anomaly(ORPHAN, f"{n:036}.json", 10, "", BEGIN + timedelta(days=n)) for n in range(count)]


LIMITS = Limits(10, 10)
NOTHING = Deleted()


def case(snapshot: Snapshot, limits: Limits = LIMITS, *, planner: Any = plan_prune, **more: Any) -> Case:
    known = {"mandate": Mandate(), "storage_dir": "/srv/store", "now": NOW, "plan": planner(snapshot, limits, NOW)}
    return Case(limits=limits, snapshot=snapshot, **{**known, **more})


def missing(snapshot: Snapshot, group: str | None = None, deleted: Deleted = NOTHING) -> bool:
    return blobs_are_missing(case(snapshot, Limits(group=group), deleted=deleted)) is not None


def settings(**more: Any) -> Unusable:
    return Unusable("LIMIT", "LIMIT is 'x': no size", "Correct LIMIT", "1 GB", 1 << 30)._replace(**more)


def only(reason: Reason | None) -> Reason:
    assert reason is not None
    return reason


# --- All of them


def test_nothing_speaks_against_a_plan_that_nobody_doubts() -> None:
    assert why_not(case(Snapshot(sessions([1, 2, 3]), [], []))) is None


def everything_is_doubtful() -> Case:
    """Each check alone would hold it."""
    dangling = sessions(list(range(100, 200)))
    snapshot = Snapshot(sessions(list(range(HANDFUL + 1))), dangling, orphans(2 * HANDFUL))
    limits = Limits(max_age_days=1.0)
    plan = plan_orphan_purge(snapshot, limits, NOW)._replace(swept=dangling)
    mandate = Mandate(
        max_delete=parse_share("1"), if_clock_is_right="use --yes", unusable=settings(), lost=Lost("Ask.", None),
        asked_about=1,
    )  # fmt: skip
    return case(snapshot, limits, plan=plan, mandate=mandate, latest=BEGIN)


def test_the_first_reason_counts_in_the_order_of_the_table() -> None:
    doubtful = everything_is_doubtful()
    assert [check(doubtful) is not None for check in CHECKS] == [True] * len(CHECKS)
    assert why_not(doubtful) == blobs_are_missing(doubtful)
    assert [check.__name__ for check in CHECKS] == [
        "blobs_are_missing", "setting_is_unusable", "entries_are_lost", "clock_is_ahead", "question_is_outgrown",
        "brake_holds",
    ]  # fmt: skip


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_reason_says_what_to_do_and_nobody_may_go_on(check: Any) -> None:
    reason = only(check(everything_is_doubtful()))
    assert reason.remedy or "again" in reason.why
    error = Held(reason)
    assert error.lacks_evidence and error.exit_code == 1
    assert str(error) == str(reason) and error.event == reason.event and error.fields == dict(reason.fields)
    assert error.ends_cycle == (check is not clock_is_ahead)
    assert reason.plan_is_sound == (check is brake_holds)


def test_every_check_of_the_module_is_in_the_table() -> None:
    made = {
        name
        for name, thing in vars(evidence).items()
        if getattr(thing, "__annotations__", {}).get("case") == "Case" and not name.startswith("_")
    }
    assert made - {"why_not"} == {check.__name__ for check in CHECKS}


def test_the_design_has_a_row_for_each_check_in_the_same_order() -> None:
    text = (stores.ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|", text.partition("## What holds a plan")[2].partition("\n## ")[0], re.MULTILINE)
    assert rows == [check.__name__ for check in (store_has_gone, *CHECKS)]


# --- What the store shows


def test_few_missing_blobs_are_everyday_life() -> None:
    for total in (1, FEW_MISSING, 100, FEW_IN * FEW_MISSING, FEW_IN * 50):
        few = max(FEW_MISSING, total // FEW_IN)
        for count in {0, 1, few, few + 1, total} - {total + 1}:
            if count > total:
                continue
            newest = range(total - count, total)
            store = Snapshot(sessions(list(range(total - count))), sessions(list(newest)), [])
            assert missing(store) == (count > few), (total, count)


def test_what_is_older_than_every_session_is_explained() -> None:
    rng = random.Random(7)
    for _ in range(300):
        ages = list(range(rng.randint(1, 200)))
        dangling = sessions([age for age in ages if rng.random() < 0.5])
        present = sessions([age for age in ages if age not in {(one.created_at - BEGIN).days for one in dangling}])
        unexplained = [one for one in dangling if not present or one > present[0]]
        expected = len(unexplained) > max(FEW_MISSING, len(ages) // FEW_IN)
        assert missing(Snapshot(present, dangling, [])) == expected


def test_the_history_is_asked_about_the_whole_store_and_whatever_the_case_of_a_guid() -> None:
    def snapshot(back: str) -> Snapshot:
        present = [one._replace(group="b" if one.guid.endswith("0") else back) for one in sessions([0, *range(50, 60)])]
        gone = [one._replace(group="b", guid=one.guid.replace("0", "A")) for one in sessions(list(range(20, 40)))]
        return Snapshot(present, gone, [])

    def suspects(group: str | None, certainly: Set[str], perhaps: Set[str]) -> bool:
        return missing(snapshot("a"), group, Deleted(certainly, perhaps))

    names = {one.guid.lower() for one in snapshot("a").dangling}
    there = snapshot("a").sessions[-1].guid
    for group in (None, "b"):
        assert not suspects(group, names, names)
        assert suspects(group, {there}, names | {there})
        assert not suspects(group, set(), names | {there})
        assert not suspects(group, set(), set(list(names)[10:]))
        assert suspects(group, set(), set(list(names)[11:]))
    gone = snapshot("a").dangling
    for group in (None, "b"):
        assert missing(Snapshot([], gone, []), group, Deleted(names, names))


def test_the_history_is_asked_only_where_it_can_explain_something() -> None:
    gone = sessions(list(range(20, 40)))
    assert asks_history(Snapshot(sessions([0]), gone, []), None)
    assert not asks_history(Snapshot([], gone, []), None)
    assert not asks_history(Snapshot(sessions([0]), gone[:FEW_MISSING], []), None)
    assert not asks_history(Snapshot(sessions([50]), gone, []), None)
    assert not asks_history(Snapshot(sessions([0]), gone, []), "another group")


def test_a_repair_sweeps_what_no_prune_would() -> None:
    gone = Snapshot([], sessions(list(range(100))), [])
    assert missing(gone)
    assert why_not(case(gone, Limits(), plan=plan_sweep(gone), mandate=Mandate(sweeps_all=True))) is None


@pytest.mark.parametrize(("count", "is_held"), [(3, False), (4, True)])
def test_orphans_beyond_the_number_of_sessions_may_be_sessions(count: int, is_held: bool) -> None:
    snapshot = Snapshot(sessions([1, 2, 3]), [], orphans(count))
    limits = Limits(max_age_days=1.0)
    asked = case(snapshot, limits, planner=plan_orphan_purge, mandate=Mandate(lost=Lost("Ask.", 7)))
    reason = entries_are_lost(asked)
    assert (reason is not None) == is_held
    if reason is not None:
        assert reason.why == "4 orphans, 40 B, would have to go, beside only 3 sessions"
        expected = {"variable": None, "limit_bytes": 7, "victim_count": 4, "victim_bytes": 40}
        assert (reason.event, reason.fields) == (HELD, expected)
    assert entries_are_lost(asked._replace(mandate=Mandate())) is None
    # What a later cycle takes counts, too.
    assert (entries_are_lost(asked._replace(plan=first_of(asked.plan, 1))) is not None) == is_held


@pytest.mark.parametrize(
    ("seen", "found", "what"),
    [
        (None, Found("/s/metadata.json", True, False, False), None),
        (Sighting(1, 1, True, 3), None, None),
        (Sighting(1, 1, True, 0), Found("/s/metadata.json", True, False, False), None),
        (Sighting(1, 1, True, 3), Found("/s/metadata.json", True, True, False), None),
        (Sighting(1, 1, True, 3), Found("/s/metadata.json", False, True, True), None),
        (Sighting(1, 1, False, 3), Found("/s/metadata.json", True, False, False), None),
        (Sighting(1, 1, True, 3), Found("/s/metadata.json", True, False, False), "/s/metadata.json has gone"),
        (Sighting(1, 1, True, 3), Found("/s/metadata.json", False, True, False), "another directory"),
        (Sighting(1, 1, False, 3), Found("/s/metadata.json", False, False, True), "another directory"),
    ],
)
def test_a_store_is_missed_only_where_sessions_were_seen(
    seen: Sighting | None, found: Found | None, what: str | None
) -> None:
    gone = store_has_gone("/s", seen, found, "/run/beat")
    assert (gone is None) == (what is None)
    if gone is not None and what is not None and found is not None:
        assert what in gone.why and "3 sessions had been seen there" in gone.why
        assert ("let the service create" in gone.remedy) == found.is_same_directory
        assert gone.event == "storage_manager.store_gone"


# --- What was asked for


def test_a_setting_that_cannot_be_used_holds_what_would_go() -> None:
    held = case(Snapshot(sessions([1, 2, 3]), [], []), mandate=Mandate(unusable=settings()))
    reason = only(setting_is_unusable(held))
    assert str(reason) == ("LIMIT is 'x': no size. With 1 GB, 2 sessions, 20 B, would have to go. Correct LIMIT")
    expected = {"variable": "LIMIT", "limit_bytes": 1 << 30, "victim_count": 2, "victim_bytes": 20}
    assert (reason.event, reason.fields) == (HELD, expected)
    nothing = case(Snapshot(sessions([1]), [], []), mandate=held.mandate)
    assert setting_is_unusable(nothing) is None


def test_where_no_rule_is_known_nothing_goes_whatever_the_plan() -> None:
    unknown = Mandate(unusable=settings(rule=None, remedy="Correct the file"))
    assert not unknown.has_rule and Mandate().has_rule and Mandate(unusable=settings()).has_rule
    for ages in ([1], [1, 2, 3]):
        reason = only(setting_is_unusable(case(Snapshot(sessions(ages), [], []), mandate=unknown)))
        assert str(reason) == "LIMIT is 'x': no size. Correct the file"
        assert (reason.fields["victim_count"], reason.fields["victim_bytes"]) == (0, 0)


@pytest.mark.parametrize(("most", "is_held"), [(None, False), (2, True), (3, False)])
def test_a_repair_removes_no_more_than_it_was_asked_about(most: int | None, is_held: bool) -> None:
    snapshot = Snapshot([], sessions([1, 2, 3]), [])
    asked = case(snapshot, Limits(), plan=plan_sweep(snapshot), mandate=Mandate(sweeps_all=True, asked_about=most))
    reason = question_is_outgrown(asked)
    assert (reason is not None) == is_held
    if reason is not None:
        assert str(reason) == "there are 3 dangling entries now, and the question was about 2: run it again"
        assert reason.event == StorageManagerError.event


@pytest.mark.parametrize(
    ("text", "count", "held"),
    [("5", 10, False), ("4", 10, True), ("0", 10, True), ("50%", 10, False), ("49.9 %", 10, True), ("100%", 5, False)],
)
def test_the_brake_counts_sessions_or_their_share(text: str, count: int, held: bool) -> None:
    limit = 10 * (count - 5) or 1
    braked = case(Snapshot(sessions(list(range(count))), [], []), Limits(limit, limit))
    assert len(braked.plan.victims) == 5
    reason = brake_holds(braked._replace(mandate=Mandate(parse_share(text), "Ask.")))
    assert (reason is not None) == held
    if reason is not None:
        assert (reason.remedy, reason.fields["limit_bytes"]) == ("Ask.", limit)
    assert brake_holds(braked) is None


# --- What time it is


def aged(count: int, age_days: float = 30.0, **more: Any) -> Case:
    doubted = Mandate(if_clock_is_right="use --yes")
    latest = NOW - timedelta(days=age_days, seconds=1)
    snapshot = Snapshot(sessions(list(range(count))), [], [])
    return case(
        snapshot, Limits(max_age_days=age_days), **{"mandate": doubted, "latest": latest, "planner": plan_purge, **more}
    )


def test_a_clock_far_ahead_of_the_store_is_doubted_where_everything_would_go() -> None:
    reason = only(clock_is_ahead(aged(HANDFUL + 1)))
    assert f"every session ({HANDFUL + 1}) would go" in reason.why and reason.remedy.endswith("use --yes")
    assert clock_is_ahead(aged(HANDFUL)) is None
    assert clock_is_ahead(aged(9, mandate=Mandate())) is None
    assert clock_is_ahead(aged(9, latest=None)) is None
    assert clock_is_ahead(aged(9, latest=NOW - timedelta(days=30))) is None
    assert clock_is_ahead(aged(9, 0.5, latest=NOW - timedelta(days=1))) is None  # a quiet day shows nothing
    assert clock_is_ahead(aged(9, 0.5, latest=NOW - timedelta(days=1, seconds=1))) is not None


def test_one_session_that_stays_vouches_for_the_clock_unless_it_is_of_the_future() -> None:
    old, known = list(range(9)), aged(9)
    for age, is_doubted in ((399, False), (401, True)):
        snapshot = Snapshot(sessions([*old, age]), [], [])
        plan = plan_purge(snapshot, known.limits, NOW)
        assert len(plan.victims) == 9
        assert (clock_is_ahead(known._replace(snapshot=snapshot, plan=plan)) is not None) == is_doubted


def test_a_prune_is_asked_about_what_its_protections_keep_as_well() -> None:
    """Only what the age alone would leave vouches for the clock."""
    limits = Limits(max_age_days=30.0, keep_last=3, min_age_mins=1.0)
    assert clock_is_ahead(aged(9)._replace(limits=limits, plan=plan_prune(aged(9).snapshot, limits, NOW))) is not None
