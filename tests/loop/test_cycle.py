"""When the loop wakes up next."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from storage_manager.loop.cycle import SHORTEST_SLEEP_SECS, sleep_secs, wake_up_at


def test_cycles_begin_an_interval_apart() -> None:
    for cycle in (0.0, 0.5, 30.0, 59.0):
        assert cycle + sleep_secs(cycle, 60.0) == pytest.approx(60.0)


@pytest.mark.parametrize("cycle", [60.0, 61.0, 3600.0, 1e12])
def test_a_cycle_longer_than_the_interval_is_followed_by_the_next_almost_at_once(cycle: float) -> None:
    assert sleep_secs(cycle, 60.0) == SHORTEST_SLEEP_SECS


def test_however_short_the_interval_there_is_a_pause() -> None:
    assert sleep_secs(0.0, 1e-300) == SHORTEST_SLEEP_SECS > 0
    assert sleep_secs(59.99, 60.0) == SHORTEST_SLEEP_SECS


def test_a_clock_that_went_back_does_not_lengthen_the_sleep() -> None:
    assert sleep_secs(-1e9, 60.0) == 60.0


def test_the_wake_up_is_that_much_later() -> None:
    now = datetime(2026, 2, 28, 23, 59, 59)
    assert wake_up_at(now, 1.5) == datetime(2026, 3, 1, 0, 0, 0, 500_000)
    assert wake_up_at(now, 0.0) == now


@pytest.mark.parametrize("secs", [1.0, 1e15, 1e300, float("inf")])
def test_a_wake_up_beyond_the_calendar_is_its_end(secs: float) -> None:
    assert wake_up_at(datetime.max - timedelta(microseconds=1), secs) == datetime.max
