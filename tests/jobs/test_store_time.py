"""What time it is at least, by all that a store shows, and showed to the cycle before."""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from storage_manager.jobs.memory import Shown
from storage_manager.jobs.store_time import latest_moment
from storage_manager.store.snapshot import Session, Snapshot

NOW = datetime(2026, 6, 1, 12, 0, 0)
DAY = timedelta(days=1)
NOTHING = Snapshot([], [], [])


def latest(storage: Path, snapshot: Snapshot = NOTHING, before: Shown | None = None) -> datetime | None:
    return latest_moment(snapshot, str(storage), before, NOW, 1000.0)


def test_a_store_that_is_not_there_shows_nothing(tmp_path: Path) -> None:
    assert latest(tmp_path / "nothing") is None


def test_the_latest_of_sessions_and_metadata_counts_up_to_now(tmp_path: Path) -> None:
    ages = (10, 5, -1)
    sessions = [Session(NOW - age * DAY, "a", "json", None, 1, 1) for age in ages]
    assert latest(tmp_path, Snapshot(sessions, [], [])) == NOW - 5 * DAY
    (tmp_path / "metadata.json").write_text("{}")
    mark, written = 0, 1_000  # what the tool itself writes has the mark, and shows nothing
    for age, odd_ns, expected in ((3, written, 3), (3, mark, 5), (7, written, 5), (-1, written, 5)):
        moment_ns = int((NOW - age * DAY).replace(tzinfo=timezone.utc).timestamp()) * 10**9 + odd_ns
        os.utime(tmp_path / "metadata.json", ns=(moment_ns, moment_ns))
        found = latest(tmp_path, Snapshot(sessions, [], []))
        assert found is not None and abs(found - (NOW - expected * DAY)) < timedelta(seconds=1)


@pytest.mark.parametrize(
    ("moment", "gone_secs", "expected"),
    [
        (NOW - DAY, 3600.0, NOW - DAY + timedelta(hours=1)),
        (NOW - DAY, 86_400.0, NOW),
        (NOW - DAY, 99_999.0, NOW),
        (NOW - DAY, -5.0, NOW - DAY),
        (NOW + DAY, 0.0, NOW),
    ],
)
def test_what_a_loop_remembers_goes_on_with_the_monotonic_clock(
    tmp_path: Path, moment: datetime, gone_secs: float, expected: datetime
) -> None:
    assert latest(tmp_path, before=Shown(moment, 1000.0 - gone_secs)) == expected
