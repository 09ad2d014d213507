"""run-loop: what ends it, what wakes it, and all that must not stop it."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from client import Client
from loops import MINUTE, PATIENCE_SECS, SteppedClock, loop, settings_for
from stores import blobs, clean_environment, command, event, events, leftovers, make_store, read_entries, run_tool

from storage_manager import config
from storage_manager.base.clock import Clock
from storage_manager.base.log import EventLog, build_logger
from storage_manager.base.process import ALIVE
from storage_manager.config import Fallback, Settings, read_settings
from storage_manager.loop import housekeeper
from storage_manager.loop.cycle import Manner
from storage_manager.loop.heartbeat import verdict
from storage_manager.loop.heartbeat_json import decode
from storage_manager.store import reading

pytestmark = pytest.mark.usefixtures("sleeps_in_one_go")


class Turns:
    """The loop run in this process, on a clock of our own."""

    def __init__(self, log_path: Path) -> None:
        self._path = log_path

    def run(
        self,
        load: Callable[[], tuple[Settings, list[Fallback]]],
        clock: Clock,
        once: bool = False,
        only_plan: bool = False,
    ) -> tuple[int, list[dict[str, Any]]]:
        with open(self._path, "w") as stream:
            log = EventLog(build_logger(stream, True, 10))
            exit_code = housekeeper.run_loop(load, clock, log, Manner(once, only_plan))
        return exit_code, events(self._path.read_text())


@pytest.fixture
def turns(tmp_path: Path) -> Turns:
    return Turns(tmp_path / "events.log")


def keys(found: list[dict[str, Any]]) -> list[str]:
    return [item["event"] for item in found]


# What ends it


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_ends_the_sleeping_loop_at_once_with_exit_code_0(storage: Path, signum: signal.Signals) -> None:
    make_store(storage, 2)
    with loop(storage) as tool:
        sleep = tool.wait_for("housekeeper.sleep")
        assert 3000 < sleep["sleep_seconds"] <= 3600
        asked = time.monotonic()
        tool.send(signum)
        stopping = tool.wait_for("housekeeper.stopping")
        assert tool.end() == 0
        assert time.monotonic() - asked < 5
        assert stopping["signal"] == signum


def test_a_stop_signal_at_the_very_start_ends_the_loop_with_exit_code_0(storage: Path) -> None:
    make_store(storage, 2)
    with loop(storage) as tool:
        tool.wait_for("storage_manager.command_start")
        tool.send(signal.SIGTERM)
        assert tool.end() == 0


def test_sigterm_in_the_middle_of_a_prune_commits_what_was_done_and_ends_with_exit_code_0(storage: Path) -> None:
    guids = make_store(storage, 600, size=1000)
    with loop(storage, env={"GOFR_DIG_MAX_STORAGE_MB": "1000B"}) as tool:
        # The pipe has no room for 599 events, so the prune cannot be over before they are read.
        tool.wait_for("storage_manager.prune.deleted")
        tool.send(signal.SIGTERM)
        assert tool.end() == 0
        deleted = tool.count("storage_manager.prune.deleted")
    assert 0 < deleted < 599
    assert set(read_entries(storage)) == blobs(storage) == set(guids[deleted:])
    assert leftovers(storage) == []


def test_a_loop_that_a_shell_started_in_the_background_ends_on_sigint_too(storage: Path) -> None:
    make_store(storage, 1)
    with loop(storage, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) as tool:
        tool.wait_for("housekeeper.sleep")
        tool.send(signal.SIGINT)
        assert tool.wait_for("housekeeper.stopping")["signal"] == signal.SIGINT
        assert tool.end() == 0


# What wakes it


def test_sigusr1_runs_a_cycle_now(storage: Path) -> None:
    make_store(storage, 2, size=1000)
    with loop(storage, env={"GOFR_DIG_MAX_STORAGE_MB": "2000B"}) as tool:
        tool.wait_for("housekeeper.sleep")
        newer = make_store(storage, 3, size=1000, seed=2)
        tool.send(signal.SIGUSR1)
        tool.wait_for("housekeeper.sleep")
        assert tool.count("housekeeper.cycle_start") == 2
        assert blobs(storage) == set(read_entries(storage))
        assert newer[-1] in blobs(storage) and len(blobs(storage)) == 2
        tool.send(signal.SIGTERM)
        assert tool.end() == 0


def test_cycles_begin_an_interval_apart(storage: Path, turns: Turns) -> None:
    make_store(storage, 1)
    clock = SteppedClock(cycles=3)
    exit_code, found = turns.run(lambda: settings_for(storage, HOUSEKEEPING_INTERVAL_MINS="7.5"), clock)
    assert exit_code == 0
    assert all(7.5 * MINUTE - 5 < secs <= 7.5 * MINUTE for secs in clock.slept_secs)
    assert keys(found).count("housekeeper.cycle_ok") == 3
    sleep = next(item for item in found if item["event"] == "housekeeper.sleep")
    assert sleep["sleep_seconds"] == pytest.approx(450, abs=5)
    assert sleep["next_wake_up"].endswith("Z") and "T" in sleep["next_wake_up"]


def test_the_time_that_a_cycle_took_is_not_slept_again(
    storage: Path, turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(storage, 1)
    clock = SteppedClock(cycles=2)
    real = housekeeper.run

    def run(*arguments: Any) -> Any:
        clock.step(100)
        return real(*arguments)

    monkeypatch.setattr(housekeeper, "run", run)
    turns.run(lambda: settings_for(storage, HOUSEKEEPING_INTERVAL_MINS="7.5"), clock)
    assert clock.slept_secs == [pytest.approx(350, abs=5)] * 2


def test_a_sleep_longer_than_select_takes_is_slept_in_full(storage: Path, turns: Turns) -> None:
    make_store(storage, 1)

    class InSlices(SteppedClock):
        def sleep(self, secs: float) -> None:
            super().sleep(min(secs, 86_400.0))

    clock = InSlices(cycles=100)
    _, found = turns.run(lambda: settings_for(storage, HOUSEKEEPING_INTERVAL_MINS=str(40 * 24 * 60)), clock)
    assert keys(found).count("housekeeper.cycle_start") == 3


def test_each_cycle_has_a_run_id_of_its_own(storage: Path, turns: Turns) -> None:
    make_store(storage, 1)
    _, found = turns.run(lambda: settings_for(storage), SteppedClock(cycles=3))
    starts = [item["run_id"] for item in found if item["event"] == "housekeeper.cycle_start"]
    ends = [item["run_id"] for item in found if item["event"] == "housekeeper.cycle_ok"]
    assert len(set(starts)) == 3
    assert starts == ends


# --once


def test_once_prunes_and_ends_with_0(storage: Path) -> None:
    guids = make_store(storage, 5, size=1000)
    done = run_tool("run-loop", "--once", "--storage-dir", storage, env={"GOFR_DIG_MAX_STORAGE_MB": "2000B"})
    assert done.returncode == 0
    assert done.stdout == ""
    assert blobs(storage) == set(read_entries(storage)) == set(guids[3:])
    assert [item["event"] for item in events(done.stderr) if item["event"].startswith("housekeeper.")] == [
        "housekeeper.started",
        "housekeeper.cycle_start",
        "housekeeper.cycle_ok",
    ]


def test_once_ends_with_1_when_the_directory_is_missing(tmp_path: Path) -> None:
    done = run_tool("run-loop", "--once", "--storage-dir", tmp_path / "absent")
    assert done.returncode == 1
    assert str(tmp_path / "absent") in event(done.stderr, "housekeeper.cycle_nonzero")["@m"]
    assert not (tmp_path / "absent").exists()


def test_once_ends_with_1_when_the_target_cannot_be_met(storage: Path) -> None:
    make_store(storage, 2, size=1000)
    orphan = storage / "11111111-1111-4111-8111-111111111111.json"
    orphan.write_bytes(b"x" * 9000)
    os.utime(orphan, (1, 1))
    done = run_tool("run-loop", "--once", "--storage-dir", storage, env={"GOFR_DIG_MAX_STORAGE_MB": "5000B"})
    assert done.returncode == 1
    assert event(done.stderr, "storage_manager.prune.target_unmet")["causes"] == {"orphan": 9000}
    assert event(done.stderr, "housekeeper.cycle_nonzero")["exit_code"] == 1
    assert orphan.exists()


def test_once_ends_with_2_when_another_prune_holds_the_lock(storage: Path) -> None:
    make_store(storage, 5, size=1000)
    with open(storage / ".prune_size.lock", "w") as lock:
        lock.write(json.dumps({"pid": 4711, "host": "elsewhere", "command": "purge"}) + "\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run_tool("run-loop", "--once", "--storage-dir", storage, env={"GOFR_DIG_MAX_STORAGE_MB": "2000B"})
    assert done.returncode == 2
    busy = event(done.stderr, "storage_manager.prune.lock_busy")
    assert (busy["holder_pid"], busy["holder_host"], busy["holder_command"]) == (4711, "elsewhere", "purge")
    assert event(done.stderr, "housekeeper.cycle_nonzero")["exit_code"] == 2
    assert len(blobs(storage)) == 5


def test_a_dry_run_deletes_nothing_and_says_what_would_go(storage: Path) -> None:
    guids = make_store(storage, 5, size=1000)
    before = (storage / "metadata.json").read_bytes()
    done = run_tool(
        "run-loop", "--once", "--dry-run", "--storage-dir", storage, env={"GOFR_DIG_MAX_STORAGE_MB": "2000B"}
    )
    assert done.returncode == 0
    summary = event(done.stderr, "storage_manager.prune.summary")
    assert summary["dry_run"] is True
    assert summary["deleted_count"] == 3
    assert (storage / "metadata.json").read_bytes() == before
    assert blobs(storage) == set(guids)
    assert sorted(os.listdir(storage)) == sorted(["metadata.json", *(f"{guid}.json" for guid in guids)])


# The environment


INVALID = [
    *(
        (variable, value)
        for variable in ("HOUSEKEEPING_INTERVAL_MINS", "MAX_STORAGE_MB")
        for value in ("ten", "nan", "inf", "-inf", "0", "0.0", "-5", "1e999", "1e300", "5_000", "٣", "0x10", "1,5")
    ),
    ("HOUSEKEEPER_LOCK_STALE_SECONDS", "soon"),
    ("HOUSEKEEPER_LOCK_STALE_SECONDS", "nan"),
    ("HOUSEKEEPER_LOCK_STALE_SECONDS", "inf"),
    ("HOUSEKEEPER_LOCK_STALE_SECONDS", "0"),
    ("HOUSEKEEPER_LOCK_STALE_SECONDS", "-60"),
    ("HOUSEKEEPER_LOCK_STALE_SECONDS", "29.9"),
    ("HOUSEKEEPER_LOCK_STALE_SECONDS", "1e15"),
    ("MAX_STORAGE_MB", "10 parsecs"),
    ("MAX_STORAGE_MB", "0.0000001"),
    ("LOG_LEVEL", "LOUD"),
    ("LOG_JSON", "perhaps"),
]


@pytest.mark.parametrize(("variable", "value"), INVALID)
def test_an_unusable_value_falls_back_to_the_default_with_a_warning(
    storage: Path, turns: Turns, variable: str, value: str
) -> None:
    make_store(storage, 1)
    exit_code, found = turns.run(lambda: settings_for(storage, **{variable: value}), SteppedClock(1), once=True)
    assert exit_code == 0
    [warning] = [item for item in found if item["event"] == "housekeeper.invalid_env"]
    # For a limit that cannot be understood nothing is deleted: somebody must act.
    assert warning["@l"] == ("Error" if variable == "MAX_STORAGE_MB" else "Warning")
    assert warning["variable"] == f"GOFR_DIG_{variable}"
    assert warning["value"] == value
    started = next(item for item in found if item["event"] == "housekeeper.started")
    assert started["interval_mins"] == 60
    assert started["max_storage_mb"] == 1024
    assert started["lock_stale_seconds"] == 3600


def test_all_variables_at_once_can_be_unusable_and_the_loop_still_works(storage: Path) -> None:
    make_store(storage, 3)
    unusable = {
        "GOFR_DIG_HOUSEKEEPING_INTERVAL_MINS": "often",
        "GOFR_DIG_MAX_STORAGE_MB": "\x1b[31mplenty",
        "GOFR_DIG_HOUSEKEEPER_LOCK_STALE_SECONDS": "nan",
        "GOFR_DIG_LOG_LEVEL": "x" * 5000,
        "GOFR_DIG_LOG_JSON": "maybe",
        "STORAGE_MANAGER_ENV_PREFIX": "GOFR DIG",
    }
    done = run_tool("run-loop", "--once", "--storage-dir", storage, env=unusable)
    assert done.returncode == 0
    warnings = {item["variable"]: item for item in events(done.stderr) if item["event"] == "housekeeper.invalid_env"}
    assert set(warnings) == set(unusable)
    assert len(warnings["GOFR_DIG_LOG_LEVEL"]["value"]) < 200
    assert "\x1b" not in warnings["GOFR_DIG_MAX_STORAGE_MB"]["value"]
    assert len(blobs(storage)) == 3


# A limit that nobody has set

NO_LIMITS = ["51,200", "50 %", "9OO", "nan", "-1", "0", "50 G B", '"512', "# 512", "none", "5.1.2", "12 apples"]


@pytest.fixture
def small_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default is 2 KB, so that a few sessions are beyond it."""
    monkeypatch.setattr(config, "DEFAULT_MAX_STORAGE_MB", 2)
    monkeypatch.setattr(config, "BYTES_PER_MB", 1000)


@pytest.mark.parametrize("only_plan", [False, True])
@pytest.mark.parametrize("value", NO_LIMITS)
def test_nothing_is_deleted_for_a_limit_that_nobody_has_set(
    storage: Path, turns: Turns, small_default: None, value: str, only_plan: bool
) -> None:
    make_store(storage, 5, size=1000)
    before = {path.name: path.read_bytes() for path in storage.iterdir()}
    load = lambda: settings_for(storage, MAX_STORAGE_MB=value)  # noqa: E731
    exit_code, found = turns.run(load, SteppedClock(1), once=True, only_plan=only_plan)
    assert exit_code == 1
    [told] = [item for item in found if item["event"] == "storage_manager.prune.held"]
    assert told["@l"] == "Error"
    assert (told["victim_count"], told["victim_bytes"], told["limit_bytes"]) == (3, 3000, 2000)
    assert told["variable"] == "GOFR_DIG_MAX_STORAGE_MB" and told["variable"] in told["@m"] and value in told["@m"]
    assert "storage_manager.prune.summary" not in keys(found)
    assert {path.name: path.read_bytes() for path in storage.iterdir()} == before


@pytest.mark.parametrize("value", NO_LIMITS)
def test_within_the_default_a_limit_that_cannot_be_understood_fails_nothing(
    storage: Path, turns: Turns, small_default: None, value: str
) -> None:
    make_store(storage, 2, size=1000)
    exit_code, found = turns.run(lambda: settings_for(storage, MAX_STORAGE_MB=value), SteppedClock(1), once=True)
    assert exit_code == 0
    assert "storage_manager.prune.held" not in keys(found)
    [started] = [item for item in found if item["event"] == "housekeeper.started"]
    assert (started["limit_source"], "(default)" in started["@m"]) == ("invalid", True)


def test_a_limit_under_a_prefix_that_cannot_be_used_is_one_that_nobody_has_set(
    storage: Path, turns: Turns, small_default: None
) -> None:
    guids = make_store(storage, 5, size=1000)
    environ = {**os.environ, "STORAGE_MANAGER_ENV_PREFIX": "MY-SERVICE", "MY-SERVICE_MAX_STORAGE_MB": "5"}
    exit_code, found = turns.run(lambda: read_settings(environ, str(storage), None), SteppedClock(1), once=True)
    assert exit_code == 1
    [told] = [item for item in found if item["event"] == "storage_manager.prune.held"]
    assert told["variable"] == "STORAGE_MANAGER_ENV_PREFIX"
    assert blobs(storage) == set(guids)


def test_a_loop_whose_prune_is_held_goes_on_unhealthy_and_prunes_when_the_limit_can_be_read(
    storage: Path, turns: Turns, small_default: None
) -> None:
    guids = make_store(storage, 5, size=1000)
    clock = SteppedClock(5)
    values = iter(["9OO"] * 5 + ["4000B"])  # the first look is at the start
    shown: list[str] = []

    def load() -> tuple[Settings, list[Fallback]]:
        found = settings_for(storage, MAX_STORAGE_MB=next(values))
        path = Path(found[0].heartbeat_file)
        if path.exists():
            shown.append(verdict(decode(path.read_bytes()), clock.now(), ALIVE) or "healthy")
        return found

    exit_code, found = turns.run(load, clock)
    assert exit_code == 0
    assert keys(found).count("storage_manager.prune.held") == 4
    assert len(shown) == 4 and all("nothing was deleted" in sentence for sentence in shown), shown
    assert blobs(storage) == set(guids[1:])


def test_an_unset_limit_is_the_default_and_is_said_to_be(storage: Path, turns: Turns, small_default: None) -> None:
    guids = make_store(storage, 5, size=1000)
    exit_code, found = turns.run(lambda: settings_for(storage), SteppedClock(1), once=True)
    assert exit_code == 0
    assert blobs(storage) == set(guids[3:])
    [started] = [item for item in found if item["event"] == "housekeeper.started"]
    [check] = [item for item in found if item["event"] == "storage_manager.prune.check"]
    assert started["limit_source"] == "default"
    assert "2.0 KB (default)" in started["@m"] and "2.0 KB (default)" in check["@m"]


@pytest.mark.parametrize("value", ["off", "OFF", ' "off" # for now'])
def test_deletion_can_be_switched_off_and_every_cycle_says_so(storage: Path, value: str) -> None:
    guids = make_store(storage, 5, size=1000)
    env = {"GOFR_DIG_MAX_STORAGE_MB": value, "GOFR_DIG_METRICS_FILE": str(storage.parent / "x.prom")}
    (storage.parent / "x.prom").write_text(f'storage_manager_limit_bytes{{storage_dir="{storage}"}} 7\n')
    for _ in range(2):
        done = run_tool("run-loop", "--once", "--storage-dir", storage, env=env)
        assert done.returncode == 0, done.stderr
        told = event(done.stderr, "housekeeper.deletion_off")
        assert (told["@l"], told["variable"]) == ("Information", "GOFR_DIG_MAX_STORAGE_MB")
        started = event(done.stderr, "housekeeper.started")
        assert (started["limit_source"], started["max_storage_mb"]) == ("off", None)
        summary = event(done.stderr, "storage_manager.prune.summary")
        assert (summary["deleted_count"], summary["final_bytes"], summary["item_count"]) == (0, 5000, 5)
    assert blobs(storage) == set(guids)
    assert "limit_bytes" not in (storage.parent / "x.prom").read_text()
    health = run_tool("health", "--storage-dir", storage, env=env)
    assert health.returncode == 0 and "4.9 KB of no limit" in health.stdout


# The other rules of what goes

RULES = ("TARGET_STORAGE_MB", "MAX_AGE_DAYS", "MAX_SESSIONS", "MIN_AGE_MINS", "KEEP_LAST", "MAX_DELETE")


@pytest.mark.parametrize("variable", RULES)
@pytest.mark.parametrize("value", ["ten", "-1", "nan", "1,5", "5 %%"])
def test_a_rule_that_cannot_be_read_holds_every_deletion(
    storage: Path, turns: Turns, variable: str, value: str
) -> None:
    guids = make_store(storage, 5, size=1000)
    load = lambda: settings_for(storage, MAX_STORAGE_MB="3000B", **{variable: value})  # noqa: E731
    exit_code, found = turns.run(load, SteppedClock(1), once=True)
    assert exit_code == 1
    [told] = [item for item in found if item["event"] == "storage_manager.prune.held"]
    assert (told["variable"], told["victim_count"]) == (f"GOFR_DIG_{variable}", 2)
    [invalid] = [item for item in found if item["event"] == "housekeeper.invalid_env"]
    assert (invalid["@l"], invalid["default"]) == ("Error", "none")
    assert "nothing is deleted until that is corrected" in invalid["@m"]
    assert blobs(storage) == set(guids)


@pytest.mark.parametrize(
    "rules",
    [
        {"TARGET_STORAGE_MB": "4000B"},
        {"KEEP_LAST": "4", "MAX_SESSIONS": "3"},
        {"MIN_AGE_MINS": "2881", "MAX_AGE_DAYS": "2"},
    ],
)
def test_rules_that_contradict_each_other_hold_every_deletion(
    storage: Path, turns: Turns, rules: dict[str, str]
) -> None:
    guids = make_store(storage, 5, size=1000)
    load = lambda: settings_for(storage, MAX_STORAGE_MB="3000B", **rules)  # noqa: E731
    exit_code, found = turns.run(load, SteppedClock(1), once=True)
    assert (exit_code, blobs(storage)) == (1, set(guids))
    [told] = [item for item in found if item["event"] == "storage_manager.prune.held"]
    assert told["variable"] == f"GOFR_DIG_{next(iter(rules))}"


def test_off_is_no_rule(storage: Path, turns: Turns) -> None:
    guids = make_store(storage, 5, size=1000)
    load = lambda: settings_for(storage, MAX_STORAGE_MB="3000B", **dict.fromkeys(RULES, "off"))  # noqa: E731
    exit_code, found = turns.run(load, SteppedClock(1), once=True)
    assert (exit_code, blobs(storage)) == (0, set(guids[2:]))
    assert "housekeeper.invalid_env" not in keys(found)


def test_a_cycle_purges_by_age_then_prunes_to_the_target_and_the_number(storage: Path, turns: Turns) -> None:
    client = Client(storage)
    now = datetime.now(timezone.utc).replace(tzinfo=None)
    guids = [
        client.save(b"x" * 1000, created_at=(now - timedelta(hours=hours)).isoformat())
        for hours in (100, 90, 50, 40, 30, 20, 10, 9)
    ]
    rules = {"MAX_AGE_DAYS": "3", "MAX_STORAGE_MB": "5500B", "TARGET_STORAGE_MB": "5000B", "MAX_SESSIONS": "4"}
    exit_code, found = turns.run(lambda: settings_for(storage, **rules), SteppedClock(1), once=True)
    assert (exit_code, blobs(storage)) == (0, set(guids[4:]))
    deleted = [item["reason"] for item in found if item["event"] == "storage_manager.prune.deleted"]
    over, many = "oldest first, over the limit", "oldest first, more than 4 sessions"
    assert deleted == ["3 days or older", "3 days or older", over, many]
    assert keys(found).count("storage_manager.prune.summary") == 1
    [started] = [item for item in found if item["event"] == "housekeeper.started"]
    assert (started["max_sessions"], started["max_age_days"], started["keep_last"]) == (4, 3, 0)


def test_what_is_young_or_among_the_newest_stays(storage: Path, turns: Turns) -> None:
    client = Client(storage)
    now = datetime.now(timezone.utc).replace(tzinfo=None)
    guids = [
        client.save(b"x" * 1000, created_at=(now - timedelta(hours=hours)).isoformat()) for hours in (100, 90, 80, 1)
    ]
    rules = {"MAX_AGE_DAYS": "3", "MAX_STORAGE_MB": "1500B", "KEEP_LAST": "2", "MIN_AGE_MINS": "120"}
    exit_code, found = turns.run(lambda: settings_for(storage, **rules), SteppedClock(1), once=True)
    assert (exit_code, blobs(storage)) == (1, set(guids[2:]))
    [told] = [item for item in found if item["event"] == "storage_manager.prune.target_unmet"]
    assert set(told["causes"]) == {"keep_last", "min_age"}


def test_a_clock_that_is_far_ahead_purges_nothing_by_age(storage: Path, turns: Turns) -> None:
    guids = make_store(storage, 10, size=100)
    os.utime(storage / "metadata.json", (1_767_600_000, 1_767_600_000))
    rules = {"MAX_AGE_DAYS": "30", "MAX_STORAGE_MB": "1G"}
    exit_code, found = turns.run(lambda: settings_for(storage, **rules), SteppedClock(1), once=True)
    assert (exit_code, blobs(storage)) == (1, set(guids))
    [failed] = [item for item in found if item["event"] == "storage_manager.prune.failed"]
    assert failed["@m"].endswith("run `purge --age-days 30 --yes`; nothing was deleted")
    rules["KEEP_LAST"] = "2"
    exit_code, found = turns.run(lambda: settings_for(storage, **rules), SteppedClock(1), once=True)
    [failed] = [item for item in found if item["event"] == "storage_manager.prune.failed"]
    assert "--yes`, which keeps nothing for GOFR_DIG_KEEP_LAST or" in failed["@m"]
    os.utime(storage / "metadata.json")  # somebody who knows says that the clock is right
    exit_code, found = turns.run(lambda: settings_for(storage, **rules), SteppedClock(1), once=True)
    assert (exit_code, blobs(storage)) == (0, set(guids[8:]))


class Elapsing(SteppedClock):
    """A clock on which a sleep takes days, and the wall clock makes of each of them as many."""

    def __init__(self, days_a_day: float) -> None:
        super().__init__(2)
        self._days_a_day = days_a_day

    def now(self) -> datetime:
        return super().now() + timedelta(seconds=sum(self.slept_secs) * self._days_a_day)


@pytest.mark.parametrize(("days_a_day", "is_believed"), [(1, True), (0.99, True), (100, False)])
def test_a_clock_that_was_right_is_believed_after_days_in_which_nobody_used_the_store(
    storage: Path, turns: Turns, days_a_day: float, is_believed: bool
) -> None:
    client = Client(storage)
    guids = {client.save(b"x") for _ in range(10)}
    rules = {"MAX_AGE_DAYS": "2", "MAX_STORAGE_MB": "1G", "HOUSEKEEPING_INTERVAL_MINS": str(3 * 24 * 60)}
    exit_code, found = turns.run(lambda: settings_for(storage, **rules), Elapsing(days_a_day))
    assert (exit_code, blobs(storage)) == (0, set() if is_believed else guids)
    assert ("storage_manager.prune.failed" in keys(found)) is not is_believed


@pytest.mark.parametrize("brake", ["2", "40%", "0"])
@pytest.mark.parametrize("only_plan", [False, True])
def test_the_brake_lets_nothing_through_beyond_it(storage: Path, turns: Turns, brake: str, only_plan: bool) -> None:
    guids = make_store(storage, 5, size=1000)
    load = lambda: settings_for(storage, MAX_STORAGE_MB="2000B", MAX_DELETE=brake)  # noqa: E731
    exit_code, found = turns.run(load, SteppedClock(1), once=True, only_plan=only_plan)
    assert (exit_code, blobs(storage)) == (1, set(guids))
    [told] = [item for item in found if item["event"] == "storage_manager.prune.held"]
    assert (told["victim_count"], told["victim_bytes"], told["variable"]) == (3, 3000, None)
    assert "run `run-loop --once` with GOFR_DIG_MAX_DELETE=off" in told["@m"]
    health = run_tool("health", "--storage-dir", storage)
    assert health.returncode == 1 and "3 sessions of 5" in health.stdout
    let = run_tool(
        "run-loop", "--once", "--storage-dir", storage,
        env={"GOFR_DIG_MAX_STORAGE_MB": "2000B", "GOFR_DIG_MAX_DELETE": "off"},
    )  # fmt: skip
    assert (let.returncode, blobs(storage)) == (0, set(guids[3:]))


@pytest.mark.parametrize(("limit", "level"), [("2000B", "Warning"), ("3000B", "Information")])
def test_a_cycle_that_deletes_more_than_half_is_a_warning(storage: Path, turns: Turns, limit: str, level: str) -> None:
    make_store(storage, 5, size=1000)
    _, found = turns.run(lambda: settings_for(storage, MAX_STORAGE_MB=limit), SteppedClock(1), once=True)
    [started] = [item for item in found if item["event"] == "storage_manager.prune.started"]
    assert started["@l"] == level


def test_the_text_log_of_a_cycle_says_each_thing_once(storage: Path) -> None:
    guids = make_store(storage, 5, size=1000, group="research")
    env = {"GOFR_DIG_MAX_STORAGE_MB": "3000B"}
    done = run_tool("run-loop", "--once", "--log-format", "text", "--storage-dir", storage, env=env)
    lines = [line[21:].split(maxsplit=1)[1] for line in done.stderr.splitlines()]
    assert len(set(lines)) == len(lines)
    assert [line for line in lines if line.startswith(f"deleted {guids[0]}.json (1000 B, ")]
    assert lines.count("deleted 2 sessions, 2.0 KB; 2.9 KB remain") == 1
    assert "prune.summary" in run_tool("run-loop", "--once", "--storage-dir", storage).stderr


def test_the_text_log_of_a_cycle_that_is_cut_short_has_its_summary(storage: Path) -> None:
    make_store(storage, 600, size=1000)
    words = ("run-loop", "--once", "--log-format", "text", "--storage-dir", str(storage))
    env = clean_environment({"GOFR_DIG_MAX_STORAGE_MB": "1000B"})
    with subprocess.Popen(command(*words), stderr=subprocess.PIPE, env=env, text=True) as process:
        assert process.stderr is not None
        # The pipe has no room for 599 lines, so the prune cannot be over before they are read.
        next(line for line in process.stderr if ".json (" in line)
        process.send_signal(signal.SIGTERM)
        lines = process.stderr.read().splitlines()
    deleted = 1 + sum(".json (" in line for line in lines)
    assert 0 < deleted < 599
    told = f"deleted {deleted} session{'s' if deleted > 1 else ''}, "
    assert sum(told in line for line in lines) == 1


def test_decimals_and_units_are_usable(storage: Path) -> None:
    make_store(storage, 1)
    usable = {
        "GOFR_DIG_HOUSEKEEPING_INTERVAL_MINS": "0.5",
        "GOFR_DIG_MAX_STORAGE_MB": "1.5 GiB",
        "GOFR_DIG_HOUSEKEEPER_LOCK_STALE_SECONDS": "45.5",
    }
    done = run_tool("run-loop", "--once", "--storage-dir", storage, env=usable)
    started = event(done.stderr, "housekeeper.started")
    assert started["interval_mins"] == 0.5
    assert started["max_storage_mb"] == 1536
    assert started["lock_stale_seconds"] == 45.5
    assert "housekeeper.invalid_env" not in keys(events(done.stderr))


def test_an_empty_variable_counts_as_unset(storage: Path) -> None:
    make_store(storage, 1)
    done = run_tool(
        "run-loop", "--once", "--storage-dir", storage, env={"GOFR_DIG_MAX_STORAGE_MB": "", "GOFR_DIG_LOG_LEVEL": " "}
    )
    assert event(done.stderr, "housekeeper.started")["max_storage_mb"] == 1024
    assert "housekeeper.invalid_env" not in keys(events(done.stderr))


def test_the_prefix_of_the_variables_can_be_changed(storage: Path) -> None:
    guids = make_store(storage, 3, size=1000)
    done = run_tool(
        "run-loop",
        "--once",
        env={
            "STORAGE_MANAGER_ENV_PREFIX": "OTHER_SERVICE",
            "OTHER_SERVICE_STORAGE": str(storage),
            "OTHER_SERVICE_MAX_STORAGE_MB": "1000B",
            "GOFR_DIG_STORAGE": "/nowhere",
        },
    )
    assert done.returncode == 0
    assert blobs(storage) == {guids[2]}


def test_the_environment_is_read_again_at_each_cycle(storage: Path, tmp_path: Path, turns: Turns) -> None:
    make_store(storage, 5, size=1000)
    other = tmp_path / "other"
    make_store(other, 5, size=1000, seed=2)
    asked: list[int] = []

    def load() -> tuple[Settings, list[Fallback]]:
        asked.append(1)
        if len(asked) <= 2:  # once for the first event, once for the first cycle
            return settings_for(storage, MAX_STORAGE_MB="4000B", HOUSEKEEPING_INTERVAL_MINS="10")
        return settings_for(other, MAX_STORAGE_MB="2000B", HOUSEKEEPING_INTERVAL_MINS="20", LOG_LEVEL="LOUD")

    clock = SteppedClock(cycles=2)
    _, found = turns.run(load, clock)
    assert len(blobs(storage)) == 4
    assert len(blobs(other)) == 2
    assert clock.slept_secs == [pytest.approx(600, abs=5), pytest.approx(1200, abs=5)]
    assert [item["storage_dir"] for item in found if item["event"] == "housekeeper.cycle_start"] == [
        str(storage),
        str(other),
    ]
    assert keys(found).count("housekeeper.invalid_env") == 1


# What must not stop it


def test_a_missing_directory_ends_the_cycle_and_not_the_loop(tmp_path: Path, turns: Turns) -> None:
    storage = tmp_path / "later"
    cycles: list[int] = []

    def load() -> tuple[Settings, list[Fallback]]:
        cycles.append(1)
        if len(cycles) == 3:
            make_store(storage, 3, size=1000)
        return settings_for(storage, MAX_STORAGE_MB="1000B")

    exit_code, found = turns.run(load, SteppedClock(cycles=2))
    assert exit_code == 0
    assert [key for key in keys(found) if key.startswith("housekeeper.cycle_")] == [
        "housekeeper.cycle_start",
        "housekeeper.cycle_nonzero",
        "housekeeper.cycle_start",
        "housekeeper.cycle_ok",
    ]
    assert len(blobs(storage)) == 1


def test_a_missing_directory_is_not_created(tmp_path: Path, turns: Turns) -> None:
    turns.run(lambda: settings_for(tmp_path / "absent" / "storage"), SteppedClock(cycles=2))
    assert not (tmp_path / "absent").exists()


def test_corrupt_metadata_ends_the_cycle_and_not_the_loop_and_touches_nothing(
    storage: Path, turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("commit", "reading", "recovery", "survey"):
        monkeypatch.setattr(f"storage_manager.store.{module}.READ_PATIENCE_SECS", 0.01)
    assert reading.READ_PATIENCE_SECS == 0.01
    make_store(storage, 3, size=1000)
    torn = (storage / "metadata.json").read_bytes()[:-20]
    (storage / "metadata.json").write_bytes(torn)
    exit_code, found = turns.run(lambda: settings_for(storage, MAX_STORAGE_MB="1000B"), SteppedClock(cycles=2))
    assert exit_code == 0
    assert keys(found).count("storage_manager.metadata_corrupt") == 2
    assert keys(found).count("housekeeper.cycle_nonzero") == 2
    assert (storage / "metadata.json").read_bytes() == torn
    assert len(blobs(storage)) == 3


def test_a_busy_lock_ends_the_cycle_and_not_the_loop(storage: Path, turns: Turns) -> None:
    make_store(storage, 5, size=1000)
    with open(storage / ".prune_size.lock", "w") as lock:
        lock.write('{"pid": 4711}\n')  # of a lock file without its line we would be patient for a second
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        loads: list[int] = []

        def load() -> tuple[Settings, list[Fallback]]:
            loads.append(1)
            if len(loads) == 3:
                fcntl.flock(lock, fcntl.LOCK_UN)
            return settings_for(storage, MAX_STORAGE_MB="2000B")

        exit_code, found = turns.run(load, SteppedClock(cycles=2))
    assert exit_code == 0
    assert [item["exit_code"] for item in found if item["event"].startswith("housekeeper.cycle_n")] == [2]
    assert len(blobs(storage)) == 2


def test_a_lock_left_by_a_holder_that_died_is_taken_over(storage: Path) -> None:
    make_store(storage, 3, size=1000)
    (storage / ".prune_size.lock").write_text(json.dumps({"pid": 4711, "host": "x", "command": "run-loop"}) + "\n")
    done = run_tool("run-loop", "--once", "--storage-dir", storage, env={"GOFR_DIG_MAX_STORAGE_MB": "1000B"})
    assert done.returncode == 0
    assert event(done.stderr, "housekeeper.lock_stale")["@l"] == "Warning"
    assert len(blobs(storage)) == 1
    assert leftovers(storage) == []


def test_an_unexpected_exception_is_logged_with_its_traceback_and_the_loop_goes_on(
    storage: Path, turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(storage, 3, size=1000)
    real = housekeeper.run
    calls: list[int] = []

    def run(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("the sky is falling")
        return real(*arguments)

    monkeypatch.setattr(housekeeper, "run", run)
    exit_code, found = turns.run(lambda: settings_for(storage, MAX_STORAGE_MB="1000B"), SteppedClock(cycles=2))
    assert exit_code == 0
    [failed] = [item for item in found if item["event"] == "housekeeper.cycle_failed"]
    assert failed["@l"] == "Error"
    assert "Traceback" in failed["@x"] and "RuntimeError: the sky is falling" in failed["@x"]
    assert keys(found).count("housekeeper.cycle_ok") == 1
    assert len(blobs(storage)) == 1


def test_once_with_an_unexpected_exception_ends_with_1(
    storage: Path, turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*arguments: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(housekeeper, "run", run)
    exit_code, found = turns.run(lambda: settings_for(storage), SteppedClock(1), once=True)
    assert exit_code == 1
    assert "housekeeper.cycle_failed" in keys(found)


def test_the_loop_says_loudly_that_the_store_lies_one_level_below(storage: Path) -> None:
    make_store(storage / "sessions", 3)
    done = run_tool("run-loop", "--once", "--storage-dir", storage)
    assert done.returncode == 0
    suspect = event(done.stderr, "storage_manager.storage_suspect")
    assert suspect["@l"] == "Warning"
    assert suspect["suggested_dirs"] == [str(storage / "sessions")]


def test_a_closed_standard_error_does_not_stop_it(storage: Path) -> None:
    make_store(storage, 5, size=1000)
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" 2>&-', "sh", *command("run-loop", "--once", "--storage-dir", storage)],
        env=clean_environment({"GOFR_DIG_MAX_STORAGE_MB": "2000B"}),
        timeout=PATIENCE_SECS,
        check=False,
    )
    assert done.returncode == 0
    assert len(blobs(storage)) == len(read_entries(storage)) == 2


def test_a_reader_of_standard_error_that_has_gone_away_does_not_stop_it(storage: Path, tmp_path: Path) -> None:
    make_store(storage, 5, size=1000)
    log = tmp_path / "log"
    with loop(storage, env={"GOFR_DIG_MAX_STORAGE_MB": "2000B", "GOFR_DIG_LOG_FILE": str(log)}) as tool:
        tool.wait_for("housekeeper.started")
        assert tool.process.stderr is not None
        tool.process.stderr.close()
        while "housekeeper.sleep" not in log.read_text():  # ends at the latest with the process, which is killed then
            assert tool.process.poll() is None
            time.sleep(0.01)
        tool.send(signal.SIGTERM)
        assert tool.process.wait() == 0
    assert len(blobs(storage)) == 2


def test_a_standard_error_that_nobody_reads_does_not_block_it(storage: Path) -> None:
    make_store(storage, 40, size=1000)
    reader, writer = os.pipe()
    try:
        os.set_blocking(writer, False)
        try:
            while True:
                os.write(writer, b"#" * 4096)
        except BlockingIOError:
            os.set_blocking(writer, True)
        done = subprocess.run(
            command("run-loop", "--once", "--storage-dir", storage),
            env=clean_environment({"GOFR_DIG_MAX_STORAGE_MB": "2000B"}),
            stderr=writer,
            timeout=PATIENCE_SECS,
            check=False,
        )
    finally:
        os.close(reader)
        os.close(writer)
    assert done.returncode == 0
    assert len(blobs(storage)) == len(read_entries(storage)) == 2
