"""The verdict upon a loop, and its JSON."""

from __future__ import annotations

import json
import random
from datetime import datetime, timedelta
from typing import Any

import pytest

from storage_manager.base.process import ALIVE, ELSEWHERE, GONE, STOPPED, Process
from storage_manager.jobs.memory import Memory, Shown, Sighting
from storage_manager.loop import heartbeat
from storage_manager.loop.heartbeat import CYCLE, ENDED, SLEEPING, CycleResult, Heartbeat
from storage_manager.loop.heartbeat_json import LARGEST_BYTES, decode, encode

NOW = datetime(2026, 11, 24, 12, 0, 0)
HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)


def result(**changes: Any) -> CycleResult:
    return CycleResult(
        ended_at=NOW - 2 * MINUTE,
        exit_code=0,
        sentence="deleted 3 sessions",
        duration_secs=1.5,
        usage_bytes=10,
        limit_bytes=20,
        session_count=3,
        deleted_count=3,
        freed_bytes=7,
        anomalies={"orphan": 1},
        suggested_dirs=("/srv/store/sessions",),
        limit_source="set",
    )._replace(**changes)


def beat(**changes: Any) -> Heartbeat:
    """Of a healthy loop that fell asleep two minutes ago."""
    return Heartbeat(
        version="1.0.0",
        process=Process(4217, "app1", 4026531836, 99),
        storage_dir="/srv/store",
        interval_secs=3600.0,
        once=False,
        dry_run=False,
        max_failures=None,
        started_at=NOW - 3 * HOUR,
        state=SLEEPING,
        alive_at=NOW - 2 * MINUTE,
        cycle_started_at=NOW - 2 * MINUTE - SECOND,
        next_wake_up=NOW + 58 * MINUTE,
        last_cycle=result(),
        last_success_at=NOW - 2 * MINUTE,
        failures=0,
    )._replace(**changes)


def failing(failures: int, **changes: Any) -> Heartbeat:
    return beat(failures=failures, last_cycle=result(exit_code=2, sentence="the lock is busy"), **changes)


def verdict(one: Heartbeat, condition: str = ALIVE) -> str | None:
    return heartbeat.verdict(one, NOW, condition)


def at_work(**changes: Any) -> Heartbeat:
    return beat(state=CYCLE, next_wake_up=None, alive_at=NOW - SECOND, **changes)


HEALTHY = {
    "asleep": beat(),
    "about to wake up": beat(next_wake_up=NOW),
    "a little late": beat(next_wake_up=NOW - 59 * SECOND),
    "one cycle failed": failing(1, last_success_at=NOW - HOUR),
    "two cycles failed": failing(2, last_success_at=NOW - 2 * HOUR),
    "as many failed as may": failing(9, max_failures=10),
    "the success is just recent enough": beat(last_success_at=NOW - 2 * HOUR - 5 * MINUTE),
    "in a cycle": at_work(cycle_started_at=NOW - MINUTE),
    "in a long cycle that makes progress": at_work(cycle_started_at=NOW - 9 * HOUR, last_success_at=NOW - 10 * HOUR),
    "silent for a while": at_work(cycle_started_at=NOW - 9 * MINUTE)._replace(alive_at=NOW - 299 * SECOND),
    "clocks that differ a little": beat(alive_at=NOW + 59 * SECOND),
    "a timer's last run": beat(once=True, state=ENDED, next_wake_up=None),
    "a timer's run at work": beat(once=True, state=CYCLE, next_wake_up=None, alive_at=NOW - HOUR),
}
UNHEALTHY = {
    "no cycle has ended yet": beat(state=CYCLE, alive_at=NOW, last_success_at=None, last_cycle=None),
    "no cycle has succeeded yet, the last cycle failed, with exit code 2: the lock is busy": failing(
        1, last_success_at=None
    ),
    "the last 3 cycles failed (the last success was 2 min ago, 2026-11-24T11:58:00Z), with exit code 2: the lock is "
    "busy": failing(3),
    "the last 2 cycles failed (the last success": failing(2, max_failures=2),
    "the last 4 cycles failed": failing(4, once=True, state=ENDED),
    "the last successful cycle was 2 h ago, and none has ended since": beat(
        last_success_at=NOW - 2 * HOUR - 5 * MINUTE - SECOND
    ),
    "the last successful cycle was 3 h ago, and none": beat(once=True, state=ENDED, last_success_at=NOW - 3 * HOUR),
    "the loop should have woken up 61 s ago": beat(next_wake_up=NOW - 61 * SECOND),
    "a cycle has shown no progress for 5 min: it hangs": at_work()._replace(alive_at=NOW - 301 * SECOND),
    "the heartbeat is 3 h ahead of this clock": beat(alive_at=NOW + 3 * HOUR, next_wake_up=NOW + 4 * HOUR),
    "the heartbeat is 61 s ahead of this clock": beat(once=True, state=ENDED, alive_at=NOW + 61 * SECOND),
    "the loop ended 2 min ago": beat(state=ENDED),
    "the loop ended 2 min ago, with exit code 2: the lock": failing(0, state=ENDED),
}


@pytest.mark.parametrize("case", HEALTHY)
def test_a_loop_is_healthy(case: str) -> None:
    assert verdict(HEALTHY[case]) is None
    assert verdict(HEALTHY[case], ELSEWHERE) is None


@pytest.mark.parametrize("sentence", UNHEALTHY)
def test_a_loop_is_unhealthy(sentence: str) -> None:
    said = verdict(UNHEALTHY[sentence], ELSEWHERE)
    assert said is not None and said.startswith(sentence)


@pytest.mark.parametrize(("condition", "sentence"), [(GONE, "process 4217 is gone"), (STOPPED, "kill -CONT 4217")])
def test_a_process_that_does_not_run_is_unhealthy_unless_nobody_expects_it(condition: str, sentence: str) -> None:
    for one in (beat(), at_work()):
        assert sentence in str(verdict(one, condition))
    assert verdict(beat(once=True), condition) is None


def test_a_young_loop_is_in_no_trouble_until_it_has_failed_often() -> None:
    young = failing(0, last_success_at=None)
    for failures in range(3):
        assert heartbeat.trouble(young._replace(failures=failures), NOW, ALIVE) is None
    assert heartbeat.trouble(young._replace(failures=3), NOW, ALIVE) is not None


def test_no_restart_helps_a_loop_that_lacks_evidence_unless_it_hangs() -> None:
    old = failing(9, last_success_at=NOW - 30 * HOUR)
    assert old.last_cycle is not None
    held = old._replace(last_cycle=old.last_cycle._replace(lacks_evidence=True))
    assert verdict(held) == held.last_cycle.sentence
    for asks in (heartbeat.trouble, heartbeat.stuck):
        assert asks(old, NOW, ALIVE) is not None and asks(held, NOW, ALIVE) is None
        assert "should have woken up" in str(asks(held._replace(next_wake_up=NOW - HOUR), NOW, ALIVE))


def test_no_heartbeat_stays_healthy_for_ever() -> None:
    for one in HEALTHY.values():
        late = NOW + timedelta(days=30)
        assert heartbeat.verdict(one, late, ALIVE) is not None
        assert heartbeat.verdict(one, late, ELSEWHERE) is not None


def test_the_ends_of_the_calendar_break_nothing() -> None:
    for one in (*HEALTHY.values(), *UNHEALTHY.values()):
        for now in (datetime.min, datetime.max):
            assert heartbeat.verdict(one, now, ALIVE)
            assert heartbeat.verdict(one._replace(alive_at=now, next_wake_up=now, last_success_at=now), NOW, ALIVE)


# A wall clock that is set

BOOT = "6ad0b9f2/4026531834"
STEPS = [timedelta(seconds=90), HOUR, timedelta(days=400), timedelta(days=9000)]
STEPS = [*STEPS, *(-step for step in STEPS)]


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_a_clock_that_is_set_changes_no_verdict_on_the_same_boot(step: timedelta) -> None:
    for one in (*HEALTHY.values(), *UNHEALTHY.values()):
        if one.alive_at > NOW:
            continue
        written = one._replace(boot=BOOT, monotonic_secs=1000.0)
        read_secs = 1000.0 + (NOW - one.alive_at).total_seconds()
        assert heartbeat.present(written, NOW + step, BOOT, read_secs) == NOW
        for unknown in (written._replace(boot=None), written._replace(monotonic_secs=None)):
            assert heartbeat.present(unknown, NOW + step, BOOT, read_secs) == NOW + step
        for boot, secs in (("another", read_secs), (None, read_secs), (BOOT, 999.0)):
            assert heartbeat.present(written, NOW + step, boot, secs) == NOW + step


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_the_past_is_told_by_the_clock_as_it_is_now(step: timedelta) -> None:
    for one in HEALTHY.values():
        told = heartbeat.reset_clock(one, NOW, NOW + step)
        told = told._replace(alive_at=one.alive_at + step, next_wake_up=one.next_wake_up and one.next_wake_up + step)
        assert heartbeat.verdict(told, NOW + step, ALIVE) is None
        assert told.last_cycle is None or told.last_cycle.ended_at == result().ended_at + step


def test_a_clock_that_is_set_beyond_the_calendar_breaks_nothing() -> None:
    for now in (datetime.min, datetime.max):
        heartbeat.reset_clock(beat(), NOW, now)
        heartbeat.present(beat(boot=BOOT, monotonic_secs=0.0, alive_at=now), NOW, BOOT, 1e9)


# JSON


@pytest.mark.parametrize("case", [*HEALTHY, *UNHEALTHY])
def test_what_is_written_is_read_back(case: str) -> None:
    one = {**HEALTHY, **UNHEALTHY}[case]
    assert decode(encode(one)) == one
    one = one._replace(boot="6ad0b9f2/4026531834", monotonic_secs=1.5)
    assert decode(encode(one)) == one
    assert len(encode(one)) < LARGEST_BYTES


def test_of_what_a_loop_remembers_the_heartbeat_keeps_what_outlives_a_process() -> None:
    memory = Memory(Sighting(1, 2, True, 3), True, Shown(NOW, 5.0), frozenset("a"), 1, frozenset("b"), 2)
    kept = decode(encode(beat().with_memory(memory))).memory
    assert kept == Memory(store=Sighting(1, 2, True, 3), limit_from_file=True)
    assert beat().memory == Memory()


def test_members_that_another_version_adds_are_passed_over() -> None:
    facts = json.loads(encode(beat()))
    facts["mood"] = "serene"
    facts["last_cycle"]["mood"] = ["serene"]
    assert decode(json.dumps(facts).encode()) == beat()


ODD = [None, True, -1, 1.5, 1e999, 10**30, "", "soon", "2026-13-01T00:00:00", [], [1], {}, {"a": -1}, "9" * 5000]


def test_every_member_that_is_missing_or_odd_is_named() -> None:
    plain = json.loads(encode(beat()))
    for name in plain:
        if plain[name] is None:
            continue
        fine = 0
        for value in ODD:
            try:
                decode(json.dumps({**plain, name: value}).replace("Infinity", "1e999").encode())
                fine += 1
            except ValueError as error:
                assert name in str(error) or name == "last_cycle"
        assert fine <= 8, f"{name} takes anything"
    for name in plain["last_cycle"]:
        short = {key: value for key, value in plain["last_cycle"].items() if key != name}
        if name not in ("usage_bytes", "session_count", "limit_bytes", "limit_source", "lacks_evidence"):
            with pytest.raises(ValueError, match="last_cycle"):
                decode(json.dumps({**plain, "last_cycle": short}).encode())


@pytest.mark.parametrize(
    "data",
    [b"", b"\0", b"null", b"[]", b"{}", b'"x"', b"\xff\xfe", b"{", b"[" * 60_000, b'{"pid": NaN}', b"9" * 60_000],
    ids=lambda data: repr(data[:12]),
)
def test_what_is_no_heartbeat_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="it is not"):
        decode(data)


def test_damaged_heartbeats_are_refused_or_understood(seeds: Any) -> None:
    whole = encode(beat())
    refused = 0
    for seed in seeds(2000):
        rng = random.Random(seed)
        data = bytearray(whole)
        for _ in range(rng.choice([1, 2, 20])):
            data[rng.randrange(len(data))] = rng.choice(b'0-9"{}[],:.enull\x00\xff')
        data = data[: rng.choice([len(data), rng.randrange(len(data))])]
        try:
            heartbeat.verdict(decode(bytes(data)), NOW, ALIVE)
        except ValueError:
            refused += 1
    assert refused


def test_texts_from_a_heartbeat_are_fit_to_show() -> None:
    facts = json.loads(encode(beat()))
    facts["last_cycle"].update(sentence="\x1b[31m\n", exit_code=1)
    facts["failures"] = 3
    said = verdict(decode(json.dumps(facts).encode()))
    assert said is not None and said.isprintable()
