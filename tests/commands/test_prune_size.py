"""prune-size: the oldest go until the store is within a size, and nothing else goes."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from client import Client
from loops import Running
from stores import blobs, command, event, events, leftovers, make_store, read_entries, run_tool, write_entries

ORPHAN_GUID = "44444444-4444-4444-8444-444444444444"


def prune(storage: Path, *arguments: object) -> CompletedProcess[str]:
    return run_tool("prune-size", "--storage-dir", storage, *arguments)


def outcome(storage: Path, *arguments: object, exit_code: int = 0) -> dict[str, Any]:
    done = prune(storage, "--json", *arguments)
    assert done.returncode == exit_code
    found = json.loads(done.stdout)
    assert len(done.stdout.splitlines()) == 1
    assert isinstance(found, dict)
    return found


def victims(found: dict[str, Any]) -> list[str]:
    return [item["guid"] for item in found["plan"] if item["action"] == "delete"]


def left(storage: Path) -> set[str]:
    """The sessions that are left, which must have both an entry and a blob."""
    assert set(read_entries(storage)) == blobs(storage)
    assert leftovers(storage) == []
    return blobs(storage)


def add_orphan(storage: Path, size: int) -> Path:
    orphan = storage / f"{ORPHAN_GUID}.json"
    orphan.write_bytes(b"o" * size)
    os.utime(orphan, (1, 1))
    return orphan


@contextmanager
def held_lock(storage: Path, line: str = '{"pid": 4711}\n') -> Iterator[Any]:
    with open(storage / ".prune_size.lock", "w") as lock:
        lock.write(line)
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


# Who goes


@pytest.mark.parametrize(
    ("limit", "deleted"),
    [("10000B", 0), ("10001B", 0), ("9999B", 1), ("9000B", 1), ("8999B", 2), ("5000B", 5), ("1000B", 9), ("1B", 10)],
)
def test_the_oldest_go_until_usage_is_within_the_limit(storage: Path, limit: str, deleted: int) -> None:
    guids = make_store(storage, 10, size=1000)
    assert prune(storage, "--max-mb", limit).returncode == 0
    assert left(storage) == set(guids[deleted:])


def test_a_plain_number_is_mb_and_units_are_powers_of_1024(storage: Path) -> None:
    make_store(storage, 1)
    for text, expected in (
        ("1", 1 << 20),
        ("0.5", 1 << 19),
        ("512M", 512 << 20),
        ("10GB", 10 << 30),
        ("1.5 GiB", 1536 << 20),
        ("1kb", 1 << 10),
        ("2T", 2 << 40),
    ):
        assert outcome(storage, "--max-mb", text)["limit_bytes"] == expected


def test_real_bytes_count_and_declared_sizes_do_not(storage: Path) -> None:
    guids = make_store(storage, 4, size=1000)
    entries = read_entries(storage)
    for guid, lie in zip(guids, (10**12, 0, -1, "huge")):
        entries[guid]["size"] = lie
    write_entries(storage, entries)
    assert outcome(storage, "--max-mb", "4000B")["deleted_count"] == 0
    found = outcome(storage, "--max-mb", "3000B")
    assert (found["current_bytes"], found["final_bytes"], found["freed_bytes"]) == (4000, 3000, 1000)
    assert left(storage) == set(guids[1:])


def test_over_the_limit_the_target_is_pruned_to(storage: Path) -> None:
    guids = make_store(storage, 10, size=1000)
    assert prune(storage, "--max-mb", "10000B", "--target-mb", "3000B").returncode == 0
    assert len(left(storage)) == 10
    assert prune(storage, "--max-mb", "9000B", "--target-mb", "3000B").returncode == 0
    assert left(storage) == set(guids[7:])


def test_the_newest_are_kept_and_the_target_is_reported_unmet(storage: Path) -> None:
    guids = make_store(storage, 10, size=1000)
    done = prune(storage, "--max-mb", "3000B", "--keep-last", "5")
    assert done.returncode == 1
    assert left(storage) == set(guids[5:])
    unmet = event(done.stderr, "storage_manager.prune.target_unmet")
    assert (unmet["@l"], unmet["final_bytes"], unmet["target_bytes"]) == ("Warning", 5000, 3000)
    assert unmet["causes"] == {"keep_last": 5000}
    assert "    because of 4.9 KB keep last" in done.stdout


def test_young_sessions_are_kept_and_the_target_is_reported_unmet(storage: Path) -> None:
    client = Client(storage)
    now = datetime.now(timezone.utc).replace(tzinfo=None)
    old, _, young = (
        client.save(b"x" * 1000, created_at=(now - timedelta(minutes=age)).isoformat()) for age in (90, 61, 59)
    )
    found = outcome(storage, "--max-mb", "500B", "--min-age-mins", "60", exit_code=1)
    assert found["deleted_count"] == 2
    assert found["causes"] == {"min_age": 1000}
    assert left(storage) == {young}
    assert old not in left(storage)


def test_protections_that_are_not_needed_leave_the_target_met(storage: Path) -> None:
    guids = make_store(storage, 10, size=1000)
    found = outcome(storage, "--max-mb", "3000B", "--keep-last", "3", "--min-age-mins", "0")
    assert found["target_met"] is True
    assert left(storage) == set(guids[7:])


def test_a_group_is_counted_and_pruned_by_itself(storage: Path) -> None:
    others = make_store(storage, 5, size=1000, group="a")
    mine = make_store(storage, 5, size=1000, group="b", seed=2)
    loners = make_store(storage, 5, size=1000, seed=3)
    orphan = add_orphan(storage, 50_000)
    done = prune(storage, "--max-mb", "5000B", "--group", "b")
    assert done.returncode == 0
    assert event(done.stderr, "storage_manager.prune.noop")["group"] == "b"
    done = prune(storage, "--max-mb", "2000B", "--group", "b")
    assert done.returncode == 0
    check = event(done.stderr, "storage_manager.prune.check")
    assert (check["current_bytes"], check["item_count"], check["group"]) == (5000, 5, "b")
    orphan.unlink()
    assert left(storage) == {*others, *mine[3:], *loners}


def test_an_unknown_group_is_nothing_to_do(storage: Path) -> None:
    guids = make_store(storage, 3, size=1000)
    done = prune(storage, "--max-mb", "1B", "--group", "nobody")
    assert done.returncode == 0
    assert left(storage) == set(guids)


def test_orphans_count_but_stay_and_do_not_empty_the_store(storage: Path) -> None:
    guids = make_store(storage, 5, size=1000)
    orphan = add_orphan(storage, 10_000)
    done = prune(storage, "--max-mb", "3000B")
    assert done.returncode == 1
    unmet = event(done.stderr, "storage_manager.prune.target_unmet")
    assert unmet["causes"] == {"orphan": 10_000}
    assert unmet["final_bytes"] == 11_000
    assert "orphan 9.8 KB" in unmet["@m"] and "check --adopt-orphans" in unmet["@m"]
    assert orphan.exists()
    assert set(read_entries(storage)) == set(guids[4:])  # half of the limit is theirs, whatever the orphans take
    assert "    because of 9.8 KB orphan\n    to do: `check --adopt-orphans GROUP`" in done.stdout


def test_orphans_below_the_target_are_made_room_for(storage: Path) -> None:
    guids = make_store(storage, 5, size=1000)
    orphan = add_orphan(storage, 1000)
    assert prune(storage, "--max-mb", "3000B").returncode == 0
    assert orphan.exists()
    assert set(read_entries(storage)) == set(guids[3:])


def test_dangling_entries_older_than_the_last_victim_go_along(storage: Path) -> None:
    guids = make_store(storage, 6, size=1000)
    for guid in (guids[0], guids[4]):
        (storage / f"{guid}.json").unlink()
    found = outcome(storage, "--max-mb", "3000B")
    assert victims(found) == [guids[1]]
    assert [(item["action"], item["guid"]) for item in found["plan"]][0] == ("sweep", guids[0])
    assert (found["swept_count"], found["deleted_count"], found["final_bytes"]) == (1, 1, 3000)
    assert set(read_entries(storage)) == set(guids[2:])


def test_within_the_limit_nothing_changes_at_all(storage: Path) -> None:
    guids = make_store(storage, 3, size=1000)
    (storage / f"{guids[0]}.json").unlink()
    before = (storage / "metadata.json").stat()
    done = prune(storage, "--max-mb", "1")
    assert done.returncode == 0
    assert event(done.stderr, "storage_manager.prune.noop")
    after = (storage / "metadata.json").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert leftovers(storage) == []


def test_files_that_are_no_blobs_are_neither_counted_nor_touched(storage: Path, tmp_path: Path) -> None:
    guids = make_store(storage, 3, size=1000)
    (tmp_path / "outside.json").write_bytes(b"x" * 9000)
    (storage / f"{ORPHAN_GUID}.json").symlink_to(tmp_path / "outside.json")
    (storage / "README.txt").write_bytes(b"x" * 9000)
    (storage / "sub").mkdir()
    (storage / "sub" / f"{guids[0]}.json").write_bytes(b"x" * 9000)
    found = outcome(storage, "--max-mb", "1000B")
    assert (found["current_bytes"], found["deleted_count"]) == (3000, 2)
    assert sorted(os.listdir(storage)) == sorted(
        ["README.txt", "sub", "metadata.json", f"{ORPHAN_GUID}.json", f"{guids[2]}.json"]
    )
    assert (storage / "sub" / f"{guids[0]}.json").exists()
    assert (tmp_path / "outside.json").exists()


def test_what_the_entries_that_stay_hold_stays_byte_for_byte(storage: Path) -> None:
    guids = make_store(storage, 3, size=1000, url="https://example.org/?a=1", score=1.10)
    text = (storage / "metadata.json").read_text().replace("1.1", "1.10e0").replace("https:", "\\u0068ttps:")
    (storage / "metadata.json").write_text(text)
    assert prune(storage, "--max-mb", "1000B").returncode == 0
    kept = (storage / "metadata.json").read_text()
    assert "\\u0068ttps:" in kept and "1.10e0" in kept
    assert text[text.index(f'"{guids[2]}"') :] in kept
    assert left(storage) == {guids[2]}


# What is said


def test_a_dry_run_chooses_whom_the_real_run_deletes_and_touches_nothing(storage: Path) -> None:
    guids = make_store(storage, 12, size=1000, group="a")
    make_store(storage, 12, size=777, group="b", seed=2)
    (storage / f"{guids[0]}.json").unlink()
    add_orphan(storage, 300)
    options = ["--max-mb", "12000B", "--target-mb", "9000B", "--keep-last", "2"]
    before = {path.name: path.stat().st_mtime_ns for path in storage.iterdir()}
    planned = outcome(storage, *options, "--dry-run")
    assert {path.name: path.stat().st_mtime_ns for path in storage.iterdir()} == before
    done = outcome(storage, *options)
    assert planned.pop("dry_run") is True
    assert done.pop("dry_run") is False
    assert planned == done
    assert len(victims(done)) > 5
    assert blobs(storage) - {ORPHAN_GUID} == set(read_entries(storage))
    assert not blobs(storage) & set(victims(done))


def test_a_dry_run_in_text_names_each_victim_and_why(storage: Path) -> None:
    guids = make_store(storage, 5, size=1000)
    done = prune(storage, "--max-mb", "3000B", "--dry-run")
    sentence, *_, blank, first, second = done.stdout.splitlines()
    assert [line.split()[:2] for line in (first, second)] == [["delete", guid] for guid in guids[:2]]
    assert "over the limit" in first and "over the limit" in second and blank == ""
    assert sentence == "would delete 2 sessions, 2.0 KB; 2.9 KB would remain"


def test_a_dry_run_tells_by_its_exit_code_that_the_target_cannot_be_met(storage: Path) -> None:
    make_store(storage, 5, size=1000)
    assert prune(storage, "--max-mb", "1000B", "--keep-last", "4", "--dry-run").returncode == 1


def test_verbose_tells_of_those_that_stay_too_and_why(storage: Path) -> None:
    guids = make_store(storage, 5, size=1000)
    done = prune(storage, "--max-mb", "3500B", "--keep-last", "1", "--verbose")
    lines = [line.split(maxsplit=5) for line in done.stdout.splitlines()[:-1]]
    assert [(line[0], line[1]) for line in lines] == [
        ("delete", guids[0]),
        ("delete", guids[1]),
        ("keep", guids[2]),
        ("keep", guids[3]),
        ("keep", guids[4]),
    ]
    assert "newest 1" in lines[-1][-1]
    assert done.stdout.splitlines()[-1] == "deleted 2 sessions, 2.0 KB; 2.9 KB remain"


def test_without_verbose_a_real_run_is_one_sentence(storage: Path) -> None:
    make_store(storage, 2, size=1000)
    assert prune(storage, "--max-mb", "1000B").stdout == "deleted 1 session, 1000 B; 1000 B remain\n"
    assert prune(storage, "--max-mb", "1000B").stdout == "deleted 0 sessions, 0 B; 1000 B remain\n"


def test_json_tells_the_plan_and_the_outcome(storage: Path) -> None:
    guids = make_store(storage, 3, size=1000, group="a")
    found = outcome(storage, "--max-mb", "2500B", "--target-mb", "2000B")
    plan = found.pop("plan")
    assert found == {
        "command": "prune-size",
        "dry_run": False,
        "storage_dir": str(storage),
        "group": None,
        "limit_bytes": 2500,
        "target_bytes": 2000,
        "target_met": True,
        "causes": {},
        "current_bytes": 3000,
        "final_bytes": 2000,
        "deleted_count": 1,
        "freed_bytes": 1000,
        "swept_count": 0,
        "deferred_count": 0,
        "failed_count": 0,
        "exit_code": 0,
    }
    assert plan == [
        {
            "action": "delete",
            "guid": guids[0],
            "created_at": "2026-01-01T00:00:00Z",
            "group": "a",
            "size_bytes": 1000,
            "reason": "oldest first, over the limit",
        }
    ]


def test_json_with_verbose_has_those_that_stay_in_the_plan(storage: Path) -> None:
    guids = make_store(storage, 3, size=1000)
    plan = outcome(storage, "--max-mb", "2000B", "--verbose")["plan"]
    assert [(item["action"], item["guid"]) for item in plan] == [
        ("delete", guids[0]),
        ("keep", guids[1]),
        ("keep", guids[2]),
    ]


def test_the_events_of_a_prune_carry_the_facts(storage: Path) -> None:
    guids = make_store(storage, 5, size=1000)
    add_orphan(storage, 500)
    done = prune(storage, "--max-mb", "1", "--target-mb", "1")
    assert [item["event"].split(".", 1)[1] for item in events(done.stderr)] == [
        "command_start",
        "anomaly",
        "prune.check",
        "prune.noop",
        "prune.summary",
        "command_end",
    ]
    done = prune(storage, "--max-mb", "3000B")
    assert [item["event"].split(".", 1)[1] for item in events(done.stderr)] == [
        "command_start",
        "anomaly",
        "prune.check",
        "prune.started",
        *["prune.deleted"] * 3,
        "prune.summary",
        "command_end",
    ]
    check = event(done.stderr, "storage_manager.prune.check")
    expected = {
        "current_bytes": 5500,
        "current_mb": 0.005,
        "target_mb": 0.003,
        "item_count": 5,
        "anomalies": 1,
        "anomaly_mb": 0.0,
        "storage_dir": str(storage),
        "group": None,
    }
    assert {name: check[name] for name in expected} == expected
    deleted = [item["guid"] for item in events(done.stderr) if item["event"] == "storage_manager.prune.deleted"]
    assert deleted == guids[:3]
    summary = event(done.stderr, "storage_manager.prune.summary")
    expected.update(
        deleted_count=3, freed_bytes=3000, freed_mb=0.003, final_bytes=2500, final_mb=0.002, exit_code=0, dry_run=False
    )
    assert {name: summary[name] for name in expected} == expected
    assert isinstance(summary["duration_ms"], int)


def test_an_empty_store_is_said_to_be_empty(storage: Path) -> None:
    write_entries(storage, {})
    done = prune(storage, "--max-mb", "1")
    assert done.returncode == 0
    assert event(done.stderr, "storage_manager.prune.empty_storage")["storage_dir"] == str(storage)


def test_it_never_asks_and_yes_changes_nothing(storage: Path) -> None:
    guids = make_store(storage, 4, size=1000)
    assert run_tool("prune-size", "--storage-dir", storage, "--max-mb", "3000B", stdin="no\n").returncode == 0
    assert left(storage) == set(guids[1:])
    done = prune(storage, "--max-mb", "2000B", "--yes")
    assert done.returncode == 0
    assert "sure" not in done.stderr + done.stdout
    assert left(storage) == set(guids[2:])


# The lock


def test_a_live_holder_is_named_and_left_alone(storage: Path) -> None:
    make_store(storage, 3, size=1000)
    holder = {"pid": 4711, "host": "elsewhere", "command": "purge", "started_at": "2026-01-01T00:00:00Z"}
    with held_lock(storage, json.dumps(holder) + "\n"):
        hour_ago = time.time() - 3600
        os.utime(storage / ".prune_size.lock", (hour_ago, hour_ago))
        done = prune(storage, "--max-mb", "1000B", "--lock-stale-seconds", "60")
        assert (storage / ".prune_size.lock").read_text() == json.dumps(holder) + "\n"
    assert done.returncode == 2
    assert done.stdout == ""
    busy = event(done.stderr, "storage_manager.prune.lock_busy")
    assert busy["@l"] == "Warning"
    assert {f"holder_{name}": value for name, value in holder.items()}.items() <= busy.items()
    assert event(done.stderr, "housekeeper.lock_stale")["action"] == "left"
    assert len(blobs(storage)) == 3


def test_it_waits_for_the_lock_as_long_as_it_is_told_to(storage: Path) -> None:
    make_store(storage, 3, size=1000)
    with held_lock(storage):
        started = time.monotonic()
        assert prune(storage, "--max-mb", "1000B", "--lock-timeout", "0.5").returncode == 2
        assert 0.5 <= time.monotonic() - started < 20
    assert len(blobs(storage)) == 3


def test_it_goes_on_as_soon_as_the_holder_lets_go(storage: Path) -> None:
    guids = make_store(storage, 3, size=1000)
    with held_lock(storage) as lock:
        arguments = command("prune-size", "--max-mb", "1000B", "--lock-timeout", "25", "--storage-dir", storage)
        with Running(arguments) as tool:
            tool.wait_for("storage_manager.command_start")
            fcntl.flock(lock, fcntl.LOCK_UN)
            tool.wait_for("storage_manager.prune.summary")
            assert tool.end() == 0
    assert left(storage) == {guids[2]}


def test_a_lock_of_the_previous_generation_is_busy_until_it_is_stale(storage: Path) -> None:
    make_store(storage, 3, size=1000)
    lock = storage / ".prune_size.lock"
    lock.write_text("pid=4711 started_at=1767000000\n")
    done = prune(storage, "--max-mb", "1000B")
    assert done.returncode == 2
    assert event(done.stderr, "storage_manager.prune.lock_busy")["holder_pid"] == 4711
    assert lock.read_text() == "pid=4711 started_at=1767000000\n"
    an_hour_ago = time.time() - 3700
    os.utime(lock, (an_hour_ago, an_hour_ago))
    assert prune(storage, "--max-mb", "1000B", "--lock-stale-seconds", "7200").returncode == 2
    done = prune(storage, "--max-mb", "1000B")
    assert done.returncode == 0
    assert event(done.stderr, "housekeeper.lock_stale")["action"] == "taken_over"
    assert len(left(storage)) == 1


def test_a_dry_run_needs_no_lock(storage: Path) -> None:
    make_store(storage, 3, size=1000)
    with held_lock(storage):
        assert outcome(storage, "--max-mb", "1000B", "--dry-run")["deleted_count"] == 2


def too_large(aside: Path) -> None:
    aside.touch()
    os.truncate(aside, 1 << 40)


def locked_away(aside: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    aside.touch(0)


@pytest.mark.parametrize("make", [too_large, locked_away])
def test_what_was_kept_aside_and_cannot_be_read_stops_no_prune_but_a_purge_of_orphans(
    storage: Path, make: Callable[[Path], None]
) -> None:
    guids = make_store(storage, 5, size=1000)
    orphan = storage / "00000000-0000-4000-8000-000000000000.json"
    orphan.touch()
    os.utime(orphan, (1, 1))
    make(storage / ".metadata.json.torn-x")
    purge = run_tool("purge", "--orphans", "--yes", "--storage-dir", storage)
    assert purge.returncode == 1 and ".metadata.json.torn-x" in purge.stderr and orphan.exists()
    prune = run_tool("prune-size", "--max-mb", "2000B", "--storage-dir", storage)
    assert prune.returncode == 0, prune.stderr
    assert set(read_entries(storage)) == set(guids[3:])
    [warning] = [one for one in events(prune.stderr) if one.get("what") == "passed_over"]
    assert (warning["@l"], warning["file"]) == ("Warning", ".metadata.json.torn-x")


# A number of sessions, and the brake


def test_a_number_of_sessions_is_a_limit_of_its_own(storage: Path) -> None:
    guids = make_store(storage, 5, size=1000)
    found = outcome(storage, "--max-sessions", 3)
    assert victims(found) == guids[:2]
    assert (found["limit_bytes"], found["target_bytes"], found["target_met"]) == (None, None, True)
    assert blobs(storage) == set(guids[2:])


def test_the_stricter_of_two_limits_counts(storage: Path) -> None:
    guids = make_store(storage, 5, size=1000)
    assert victims(outcome(storage, "--max-sessions", 3, "--max-mb", "4000B", "--dry-run")) == guids[:2]
    assert victims(outcome(storage, "--max-sessions", 3, "--max-mb", "1000B", "--dry-run")) == guids[:4]


@pytest.mark.parametrize("brake", ["1", "39%"])
def test_the_brake_deletes_none_rather_than_some(storage: Path, brake: str) -> None:
    guids = make_store(storage, 5, size=1000)
    for more in ((), ("--dry-run",)):
        done = prune(storage, "--max-mb", "3000B", "--max-delete", brake, *more)
        assert done.returncode == 1
        told = event(done.stderr, "storage_manager.prune.held")
        assert (told["victim_count"], told["@l"]) == (2, "Error") and "use --max-delete off" in told["@m"]
    assert blobs(storage) == set(guids)
    assert len(victims(outcome(storage, "--max-mb", "3000B", "--max-delete", "off"))) == 2


@pytest.mark.parametrize("value", ["", "many", "-1", "1.5", "101%", "%", "nan%"])
def test_a_brake_that_makes_no_sense_is_wrong_usage(storage: Path, value: str) -> None:
    assert prune(storage, "--max-mb", 1, f"--max-delete={value}").returncode == 64


def test_a_dry_run_takes_the_limit_of_the_loop(storage: Path) -> None:
    guids = make_store(storage, 5, size=1000)
    env = {"GOFR_DIG_MAX_STORAGE_MB": "3000B"}
    done = run_tool("prune-size", "--storage-dir", storage, "--dry-run", env=env)
    assert done.returncode == 0
    assert "the limit is 2.9 KB, from GOFR_DIG_MAX_STORAGE_MB; " in done.stdout and guids[1] in done.stdout
    done = run_tool("prune-size", "--storage-dir", storage, "--dry-run", "--json")
    assert json.loads(done.stdout)["limit_bytes"] == 1024 * 1024 * 1024
    assert "1.0 GB (default)" in run_tool("prune-size", "--storage-dir", storage, "--dry-run").stdout
    env = {"GOFR_DIG_MAX_STORAGE_MB": "off"}
    assert run_tool("prune-size", "--storage-dir", storage, "--dry-run", env=env).returncode == 64


def test_without_a_limit_nothing_is_deleted(storage: Path) -> None:
    guids = make_store(storage, 5, size=1000)
    for words in ((), ("--target-mb", "1000B"), ("--target-mb", "1000B", "--max-sessions", "2")):
        done = prune(storage, *words)
        assert done.returncode == 64 and "--max-mb" in done.stderr
    assert blobs(storage) == set(guids)
