"""list and stats: what is there, in bytes that are really on disk."""

from __future__ import annotations

import json
import os
import re
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from client import Client
from stores import blobs, command, event, events, leftovers, make_store, read_entries, run_tool, write_entries
from terminals import Terminal

CORRUPT_GUID = "22222222-2222-4222-8222-222222222222"
DANGLING_GUID = "33333333-3333-4333-8333-333333333333"
ORPHAN_GUID = "44444444-4444-4444-8444-444444444444"
IN_FLIGHT_GUID = "55555555-5555-4555-8555-555555555555"
LINK_GUID = "66666666-6666-4666-8666-666666666666"


def ago(**age: float) -> str:
    """That long ago, as the client writes it."""
    return (datetime.now(timezone.utc) - timedelta(**age)).replace(tzinfo=None).isoformat()


def listed(storage: Path, *arguments: str) -> list[dict[str, Any]]:
    done = run_tool("list", "--json", "--storage-dir", storage, *arguments)
    assert done.returncode == 0
    return [json.loads(line) for line in done.stdout.splitlines()]


def counted(storage: Path, *arguments: str, **variables: str) -> dict[str, Any]:
    env = {f"GOFR_DIG_{name}": value for name, value in variables.items()}
    done = run_tool("stats", "--json", "--storage-dir", storage, *arguments, env=env)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 1
    facts = json.loads(done.stdout)
    assert isinstance(facts, dict)
    return facts


def add_anomalies(storage: Path) -> None:
    """One of each kind: 100 bytes of a corrupt entry, 200 of an orphan, 300 in flight, and two of no size."""
    entries = read_entries(storage)
    entries[CORRUPT_GUID] = {"format": "json", "size": 100, "created_at": "yesterday"}
    entries[DANGLING_GUID] = {"format": "json", "size": 9999, "created_at": "2025-12-31T00:00:00"}
    write_entries(storage, entries)
    for guid, size in ((CORRUPT_GUID, 100), (ORPHAN_GUID, 200), (IN_FLIGHT_GUID, 300)):
        (storage / f"{guid}.json").write_bytes(b"x" * size)
    os.utime(storage / f"{ORPHAN_GUID}.json", (1, 1))
    (storage / f"{LINK_GUID}.json").symlink_to("/etc/hostname")


# list


def test_list_is_one_guid_a_line_oldest_first(storage: Path) -> None:
    guids = make_store(storage, 5)
    write_entries(storage, dict(reversed(read_entries(storage).items())))
    done = run_tool("list", "--storage-dir", storage)
    assert done.returncode == 0
    assert done.stdout == "".join(f"{guid}\n" for guid in guids)


def test_list_sorts_by_the_moment_and_not_by_its_spelling(storage: Path) -> None:
    client = Client(storage)
    last = client.save(created_at="2026-01-01T12:00:00-05:00")
    first = client.save(created_at="2026-01-01T12:00:00+09:00")
    second = client.save(created_at="2026-01-01T12:00:00")
    third = client.save(created_at="2026-01-01T12:00:00.5Z")
    assert run_tool("list", "--storage-dir", storage).stdout.split() == [first, second, third, last]


def test_list_of_an_empty_store_is_empty(storage: Path) -> None:
    write_entries(storage, {})
    done = run_tool("list", "--storage-dir", storage)
    assert (done.returncode, done.stdout) == (0, "")
    assert event(done.stderr, "storage_manager.list.summary")["item_count"] == 0


def test_list_of_a_group_names_that_group_alone(storage: Path) -> None:
    make_store(storage, 3, group="a")
    mine = make_store(storage, 3, group="b", seed=2)
    make_store(storage, 3, seed=3)
    assert run_tool("list", "--group", "b", "--storage-dir", storage).stdout.split() == mine
    assert run_tool("list", "--group", "c", "--storage-dir", storage).stdout == ""
    assert run_tool("list", "--group", "", "--storage-dir", storage).stdout == ""


def test_list_as_json_tells_declared_and_real_size(storage: Path) -> None:
    [guid] = make_store(storage, 1, size=1000, group="research", url="https://example.org/")
    entries = read_entries(storage)
    entries[guid]["size"] = 7
    write_entries(storage, entries)
    assert listed(storage) == [
        {
            "guid": guid,
            "format": "json",
            "created_at": "2026-01-01T00:00:00Z",
            "group": "research",
            "size_bytes": 1000,
            "declared_bytes": 7,
            "state": "ok",
        }
    ]


@pytest.mark.parametrize("declared", [None, "1000", -5, 1.5, True, [], 10**400], ids=lambda value: repr(value)[:9])
def test_a_declared_size_that_makes_no_sense_harms_nobody(storage: Path, declared: object) -> None:
    [guid] = make_store(storage, 1, size=1000)
    entries = read_entries(storage)
    entries[guid]["size"] = declared
    write_entries(storage, entries)
    for words in (["list", "--json"], ["stats"]):
        done = run_tool(*words, "--storage-dir", storage)
        assert done.returncode == 0, words
        assert not [item for item in events(done.stderr) if item["@l"] != "Information"]
    assert counted(storage)["session_bytes"] == 1000


def test_list_shows_dangling_entries_as_such(storage: Path) -> None:
    guids = make_store(storage, 2, size=1000)
    (storage / f"{guids[0]}.json").unlink()
    states = [(item["guid"], item["state"], item["size_bytes"]) for item in listed(storage)]
    assert states == [(guids[0], "dangling", 0), (guids[1], "ok", 1000)]


def test_list_verbose_is_a_table_with_age_size_state_and_group(storage: Path) -> None:
    client = Client(storage)
    old = client.save(b"x" * 2048, group="research", created_at=ago(days=40))
    middle = client.save(b"x", created_at=ago(hours=5))
    new = client.save(b"x" * (3 << 20), created_at=ago(minutes=30))
    future = client.save(b"x", created_at=ago(days=-2))
    (storage / f"{middle}.json").unlink()
    done = run_tool("list", "--verbose", "--storage-dir", storage)
    header, *rows = done.stdout.splitlines()
    assert header.split() == ["GUID", "CREATED", "(UTC)", "AGE", "SIZE", "STATE", "GROUP"]
    assert [row.split()[0] for row in rows] == [old, middle, new, future]
    assert rows[0].split()[3:] == ["40", "d", "2.0", "KB", "ok", "research"]
    assert rows[1].split()[3:] == ["5", "h", "0", "B", "dangling", "-"]
    assert rows[2].split()[3:] == ["30", "min", "3.0", "MB", "ok", "-"]
    assert rows[3].split()[3:6] == ["in", "the", "future"]
    assert done.stdout == run_tool("list", "-v", "--storage-dir", storage).stdout


@pytest.mark.parametrize("created_at", ["0001-01-01T00:00:00", "9999-12-31T23:59:59.999999"])
def test_list_and_stats_bear_the_ends_of_the_calendar(storage: Path, created_at: str) -> None:
    guid = Client(storage).save(created_at=created_at)
    for words in (["list", "--json"], ["stats"]):
        assert run_tool(*words, "--storage-dir", storage).returncode == 0
    assert created_at[:19].replace("T", " ") in run_tool("list", "-v", "--storage-dir", storage).stdout
    assert guid in run_tool("list", "--storage-dir", storage).stdout


def test_list_summary_counts_real_bytes(storage: Path) -> None:
    guids = make_store(storage, 3, size=1000)
    (storage / f"{guids[0]}.json").unlink()
    summary = event(run_tool("list", "--storage-dir", storage).stderr, "storage_manager.list.summary")
    assert (summary["item_count"], summary["dangling_count"], summary["total_bytes"]) == (2, 1, 2000)
    assert (summary["storage_dir"], summary["group"]) == (str(storage), None)


# list: which sessions, in which order


def make_mixed(storage: Path) -> dict[str, str]:
    """Five sessions of different age, size and group, and a dangling entry, by a name for each."""
    client = Client(storage)
    guids = {}
    for name, days, size, group in (
        ("oldest", 40, 300, "b"), ("gone", 30, 1, "a"), ("large", 20, 3000, None), ("twin", 10, 300, "a"),
        ("small", 5, 10, "b"), ("new", 1, 2000, "a"),
    ):  # fmt: skip
        guids[name] = client.save(b"x" * size, group, ago(days=days))
    (storage / f"{guids['gone']}.json").unlink()
    return guids


def names(storage: Path, guids: dict[str, str], *arguments: str) -> str:
    done = run_tool("list", "--storage-dir", storage, *arguments)
    assert done.returncode == 0
    called = {guid: name for name, guid in guids.items()}
    return " ".join(called[guid] for guid in done.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ("", "oldest gone large twin small new"),
        ("--sort age", "oldest gone large twin small new"),
        ("--reverse", "new small twin large gone oldest"),
        ("--sort size", "gone small oldest twin new large"),
        ("--sort size --reverse", "large new oldest twin small gone"),
        ("--sort group", "gone twin new oldest small large"),
        ("--sort size --reverse --limit 2", "large new"),
        ("--limit 99", "oldest gone large twin small new"),
        ("--older-than 10d", "oldest gone large twin"),
        ("--older-than 239h", "oldest gone large twin"),
        ("--older-than 41d", ""),
        ("--larger-than 300B", "oldest large twin new"),
        ("--larger-than 0.5K --older-than 2w", "large"),
        ("--larger-than 301B", "large new"),
        ("--group a --sort size", "gone twin new"),
        ("--group a --older-than 5d --limit 1 --reverse", "twin"),
    ],
)
def test_list_in_the_order_and_with_the_limits_that_are_asked_for(storage: Path, arguments: str, shown: str) -> None:
    assert names(storage, make_mixed(storage), *arguments.split()) == shown


def test_list_by_name_is_in_the_order_of_the_guids(storage: Path) -> None:
    guids = make_mixed(storage).values()
    assert run_tool("list", "--sort", "name", "--storage-dir", storage).stdout.split() == sorted(guids)


def test_list_in_another_order_is_the_same_as_json_and_as_a_table(storage: Path) -> None:
    make_mixed(storage)
    asked = ("--sort", "size", "--limit", "3", "--larger-than", "5B")
    guids = run_tool("list", "--storage-dir", storage, *asked).stdout.split()
    assert [item["guid"] for item in listed(storage, *asked)] == guids and len(guids) == 3
    rows = run_tool("list", "-v", "--storage-dir", storage, *asked).stdout.splitlines()
    assert [row.split()[0] for row in rows] == ["GUID", *guids]


def test_list_older_than_names_what_a_purge_of_that_age_would_delete(storage: Path) -> None:
    make_mixed(storage)
    Client(storage).save(created_at=ago(days=-5))
    purged = run_tool("purge", "--age-days", "10", "--dry-run", "--json", "--storage-dir", storage)
    planned = {item["guid"] for item in json.loads(purged.stdout)["plan"]}
    assert {item["guid"] for item in listed(storage, "--older-than", "10d")} == planned and len(planned) == 4


def test_list_summary_counts_what_matches_whether_it_is_shown_or_not(storage: Path) -> None:
    make_mixed(storage)
    done = run_tool("list", "--older-than", "20d", "--limit", "1", "--storage-dir", storage)
    summary = event(done.stderr, "storage_manager.list.summary")
    assert (summary["item_count"], summary["dangling_count"], summary["total_bytes"]) == (2, 1, 3300)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("--older-than 7", "'7': it has no unit: write s, m, h, d or w behind it, such as 7d"),
        ("--larger-than 7x", "'7x': x is not a unit"),
        ("--limit 0", "'0': it must be at least 1"),
        ("--sort date", "invalid choice: 'date'"),
    ],
)
def test_list_says_what_is_wrong_with_a_limit_and_how_it_is_written(storage: Path, arguments: str, told: str) -> None:
    done = run_tool("list", *arguments.split(), "--storage-dir", storage)
    assert (done.returncode, done.stdout) == (64, "") and told in done.stderr


# stats


def test_stats_counts_real_bytes_and_shows_the_drift(storage: Path) -> None:
    make_store(storage, 4, size=1000)
    entries = read_entries(storage)
    for entry in entries.values():
        entry["size"] = 10
    write_entries(storage, entries)
    facts = counted(storage)
    assert (facts["session_count"], facts["session_bytes"], facts["usage_bytes"]) == (4, 4000, 4000)
    assert (facts["declared_bytes"], facts["drift_bytes"]) == (40, 3960)
    shown = run_tool("stats", "--storage-dir", storage).stdout
    assert "Declared   40 B; on disk there is 3.9 KB more" in shown


def test_stats_says_nothing_of_declared_sizes_that_are_right(storage: Path) -> None:
    make_store(storage, 2)
    assert "Declared" not in run_tool("stats", "--storage-dir", storage).stdout


def test_usage_is_sessions_and_anomalies_but_no_other_file(storage: Path) -> None:
    make_store(storage, 2, size=1000)
    add_anomalies(storage)
    (storage / "notes.txt").write_bytes(b"x" * 5000)
    (storage / ".prune_size.lock").write_bytes(b"x" * 5000)
    (storage / "sub").mkdir()
    (storage / "sub" / f"{ORPHAN_GUID}.json").write_bytes(b"x" * 5000)
    facts = counted(storage)
    assert facts["session_bytes"] == 2000
    assert facts["usage_bytes"] == 2600
    assert facts["anomalies"] == {
        "orphan": {"count": 1, "size_bytes": 200},
        "in_flight": {"count": 1, "size_bytes": 300},
        "dangling": {"count": 1, "size_bytes": 0},
        "corrupt": {"count": 1, "size_bytes": 100},
        "not_a_file": {"count": 1, "size_bytes": 0},
    }


def test_each_kind_of_anomaly_is_one_event_with_examples(storage: Path) -> None:
    make_store(storage, 1)
    add_anomalies(storage)
    for number in range(20):
        orphan = storage / f"77777777-7777-4777-8777-7777777777{number:02}.json"
        orphan.write_bytes(b"x")
        os.utime(orphan, (1, 1))
    done = run_tool("stats", "--storage-dir", storage)
    found = {item["kind"]: item for item in events(done.stderr) if item["event"] == "storage_manager.anomaly"}
    assert set(found) == {"orphan", "in_flight", "dangling", "corrupt", "not_a_file"}
    assert found["orphan"]["count"] == 21
    assert found["orphan"]["size_bytes"] == 220
    assert 1 <= len(found["orphan"]["examples"]) <= 10
    assert {kind: item["@l"] for kind, item in found.items()} == {
        "orphan": "Warning",
        "corrupt": "Warning",
        "not_a_file": "Warning",
        "in_flight": "Information",
        "dangling": "Information",
    }
    assert CORRUPT_GUID in found["corrupt"]["examples"][0]


def test_stats_of_a_group_counts_that_group_alone(storage: Path) -> None:
    make_store(storage, 3, size=1000, group="a")
    make_store(storage, 2, size=500, group="b", seed=2)
    add_anomalies(storage)
    facts = counted(storage, "--group", "b")
    assert (facts["group"], facts["session_count"], facts["usage_bytes"]) == ("b", 2, 1000)
    assert facts["anomalies"] == {}
    assert facts["groups"] == [{"group": "b", "session_count": 2, "session_bytes": 1000}]
    shown = run_tool("stats", "--group", "b", "--storage-dir", storage).stdout
    assert "Group      b\n" in shown
    assert "SESSIONS" not in shown


def test_stats_lists_groups_largest_first_and_sessions_without_one(storage: Path) -> None:
    make_store(storage, 1, size=1000, group="small")
    make_store(storage, 3, size=1000, group="large", seed=2)
    make_store(storage, 2, size=1000, seed=3)
    assert counted(storage)["groups"] == [
        {"group": "large", "session_count": 3, "session_bytes": 3000},
        {"group": None, "session_count": 2, "session_bytes": 2000},
        {"group": "small", "session_count": 1, "session_bytes": 1000},
    ]
    shown = run_tool("stats", "--storage-dir", storage).stdout.splitlines()
    start = next(number for number, line in enumerate(shown) if line.startswith("GROUP"))
    assert [line.split()[:-1] for line in shown[start:]] == [
        ["GROUP", "SESSIONS", "SIZE"],
        ["large", "3", "2.9", "KB", "50.0", "%"],
        ["-", "2", "2.0", "KB", "33.3", "%"],
        ["small", "1", "1000", "B", "16.7", "%"],
    ]


def test_a_group_that_is_no_text_is_none(storage: Path) -> None:
    guids = make_store(storage, 3, size=1000)
    entries = read_entries(storage)
    for guid, group in zip(guids, ([1], 5, None)):
        entries[guid]["group"] = group
    write_entries(storage, entries)
    assert counted(storage)["groups"] == [{"group": None, "session_count": 3, "session_bytes": 3000}]


def test_stats_shows_the_limit_and_how_full_the_store_is(storage: Path) -> None:
    make_store(storage, 3, size=1000)
    facts = counted(storage, MAX_STORAGE_MB="12000B")
    assert (facts["limit_bytes"], facts["used_percent"]) == (12000, 25.0)
    assert counted(storage)["limit_mb"] == 1024
    over = counted(storage, MAX_STORAGE_MB="1000B")
    assert over["used_percent"] == 300.0


@pytest.mark.parametrize(
    ("limit", "source", "shown"),
    [
        ("", "default", "2.9 KB of 1.0 GB (default)"), ("9OO", "invalid", "2.9 KB of 1.0 GB (default)"),
        ("6000B", "set", "2.9 KB of 5.9 KB, 50"), ("off", "off", "2.9 KB; no limit: deletion is switched off"),
    ],
)  # fmt: skip
def test_stats_says_where_the_limit_comes_from(storage: Path, limit: str, source: str, shown: str) -> None:
    make_store(storage, 3, size=1000)
    done = run_tool("stats", "--storage-dir", storage, env={"GOFR_DIG_MAX_STORAGE_MB": limit})
    assert done.returncode == 0
    assert shown in done.stdout
    facts = counted(storage, MAX_STORAGE_MB=limit)
    assert facts["limit_source"] == source
    assert (facts["limit_bytes"] is None) == (facts["used_percent"] is None) == (limit == "off")


@pytest.mark.parametrize(("encoding", "full", "empty"), [("utf-8", "█", "░"), ("ascii", "#", "-")])
def test_the_bar_is_drawn_with_what_the_output_can_show(storage: Path, encoding: str, full: str, empty: str) -> None:
    make_store(storage, 3, size=1000, group="größe")
    env = {"PYTHONIOENCODING": encoding, "GOFR_DIG_MAX_STORAGE_MB": "6000B"}
    done = run_tool("stats", "--storage-dir", storage, env=env)
    assert done.returncode == 0
    assert full * 15 + empty * 15 in done.stdout
    assert ("größe" if encoding == "utf-8" else "gr\\xf6\\xdfe") in done.stdout


def test_the_bar_of_an_overfull_store_stays_in_its_place(storage: Path) -> None:
    make_store(storage, 3, size=1000)
    env = {"PYTHONIOENCODING": "ascii", "GOFR_DIG_MAX_STORAGE_MB": "1B"}
    assert "#" * 30 + "\n" in run_tool("stats", "--storage-dir", storage, env=env).stdout


def test_stats_tells_the_oldest_and_the_newest(storage: Path) -> None:
    make_store(storage, 25)
    facts = counted(storage)
    assert facts["oldest_created_at"] == "2026-01-01T00:00:00Z"
    assert facts["newest_created_at"] == "2026-01-02T00:00:00Z"
    empty = counted(storage, "--group", "nobody")
    assert (empty["oldest_created_at"], empty["newest_created_at"], empty["used_percent"]) == (None, None, 0.0)


def test_stats_json_and_the_event_agree(storage: Path) -> None:
    make_store(storage, 3)
    add_anomalies(storage)
    done = run_tool("stats", "--json", "--storage-dir", storage)
    facts = json.loads(done.stdout)
    summary = event(done.stderr, "storage_manager.stats.summary")
    for name in ("ages", "groups", "growth", "deleted", "next", "lock"):
        del facts[name]
    assert {name: summary[name] for name in facts} == facts


def test_looking_changes_nothing(storage: Path) -> None:
    make_store(storage, 3)
    add_anomalies(storage)
    before = {path.name: path.lstat().st_mtime_ns for path in storage.iterdir()}
    directory = storage.stat().st_mtime_ns
    for words in (["list"], ["list", "-v"], ["list", "--json"], ["stats"], ["stats", "--json"]):
        assert run_tool(*words, "--storage-dir", storage).returncode == 0
    assert {path.name: path.lstat().st_mtime_ns for path in storage.iterdir()} == before
    assert storage.stat().st_mtime_ns == directory
    assert leftovers(storage) == []
    assert len(blobs(storage)) == 7


# A group that nobody has


@pytest.mark.parametrize(
    "words",
    [["list"], ["stats"], ["stats", "--json"], ["purge"], ["purge", "--dry-run"], ["prune-size", "--max-mb", "1B"],
     ["prune-size", "--max-mb", "1B", "--dry-run"]],
    ids=" ".join,
)  # fmt: skip
def test_a_group_that_nobody_has_is_told_with_those_that_exist(storage: Path, words: list[str]) -> None:
    guids = make_store(storage, 2, group="research") + make_store(storage, 2, group="a\x1b[31m", seed=2)
    (storage / f"{guids[0]}.json").unlink()
    done = run_tool(*words, "--group", "reserch", "--storage-dir", storage)
    assert done.returncode == 0
    told = event(done.stderr, "storage_manager.unknown_group")
    assert (told["@l"], told["group"], told["groups"]) == ("Warning", "reserch", ["a\x1b[31m", "research"])
    assert "did you mean research? there are " in told["@m"] and "\x1b" not in told["@m"]
    for known in ("research", None):
        group = [] if known is None else ["--group", known]
        assert "unknown_group" not in run_tool(*words, *group, "--storage-dir", storage).stderr


def test_of_many_groups_some_are_named_and_of_none_that_there_is_none(storage: Path) -> None:
    make_store(storage, 1)
    done = run_tool("list", "--group", "x", "--storage-dir", storage)
    assert "no session has a group" in event(done.stderr, "storage_manager.unknown_group")["@m"]
    for number in range(30):
        make_store(storage, 1, seed=100 + number, group=f"g{number:02}")
    told = event(run_tool("list", "--group", "x", "--storage-dir", storage).stderr, "storage_manager.unknown_group")
    assert told["groups"] == [f"g{number:02}" for number in range(20)] and told["@m"].endswith("g19, ...")


# What the disk says


def test_stats_says_that_sparse_blobs_take_less_on_the_disk_than_their_size(storage: Path) -> None:
    guids = make_store(storage, 3, size=1000)
    assert "On disk" not in run_tool("stats", "--storage-dir", storage).stdout
    os.truncate(storage / f"{guids[0]}.json", 50 << 20)
    done = run_tool("stats", "--storage-dir", storage)
    [line] = [line for line in done.stdout.splitlines() if line.startswith("On disk")]
    assert "sparse" in line
    assert counted(storage)["allocated_bytes"] < 1 << 20 < counted(storage)["usage_bytes"]


def test_stats_counts_the_blobs_with_another_hard_link(storage: Path) -> None:
    guids = make_store(storage, 3, size=1000, group="a")
    for guid in guids[:2]:
        os.link(storage / f"{guid}.json", storage.parent / f"{guid}.kept")
    assert counted(storage)["linked_count"] == 2
    assert counted(storage, "--group", "nobody")["linked_count"] == 0
    assert "2 blobs with another hard link" in run_tool("stats", "--storage-dir", storage).stdout


def test_what_is_no_blob_takes_nothing_on_the_disk_wherever_its_key_leads(storage: Path) -> None:
    make_store(storage, 1, size=1000)
    before = counted(storage)["allocated_bytes"]
    (storage / f"{ORPHAN_GUID}.json").mkdir()  # with two links, as every directory
    (storage.parent / "outside").write_bytes(b"x" * 100_000)
    os.link(storage.parent / "outside", storage.parent / "too")
    entries = read_entries(storage)
    for key in ("../outside", "\x00", "/etc/passwd", "\udcff"):
        entries[key] = {}
    write_entries(storage, entries)
    facts = counted(storage)
    assert (facts["allocated_bytes"], facts["linked_count"]) == (before, 0)
    assert facts["anomalies"]["corrupt"]["count"] == 4


# what comes


def test_stats_tells_when_the_store_is_full_and_how_long_the_limit_keeps_a_session(storage: Path) -> None:
    client = Client(storage)
    for days in (30, 20, 6, 3, 1):
        client.save(b"x" * 700, created_at=ago(days=days))
    facts = counted(storage, MAX_STORAGE_MB="5000B")
    growth = facts["growth"]
    assert (growth["days"], growth["session_count"], growth["size_bytes"]) == (7.0, 3, 2100)
    assert (growth["full_in_days"], growth["keeps_days"]) == (5.0, 16.7)  # 300 bytes a day
    shown = run_tool("stats", "--storage-dir", storage, env={"GOFR_DIG_MAX_STORAGE_MB": "5000B"}).stdout
    assert "Growth     300 B a day over the last 7 days\n" in shown
    assert "at this rate full in 5 d; the limit keeps 17 d of sessions\n" in shown


def test_a_store_above_its_limit_keeps_what_the_limit_lets_it(storage: Path) -> None:
    Client(storage).save(b"x" * 1000, created_at=ago(days=2))
    facts = counted(storage, MAX_STORAGE_MB="500B")
    assert (facts["growth"]["days"], facts["growth"]["full_in_days"]) == (pytest.approx(2.0, abs=0.01), 0.0)
    shown = run_tool("stats", "--storage-dir", storage, env={"GOFR_DIG_MAX_STORAGE_MB": "500B"}).stdout
    assert "at this rate the limit keeps 24 h of sessions\n" in shown


@pytest.mark.parametrize("ages", [[], [0.5], [-9000]])
def test_a_store_without_a_day_of_sessions_foretells_nothing(storage: Path, ages: list[float]) -> None:
    write_entries(storage, {})
    for days in ages:
        Client(storage).save(created_at=ago(days=days))
    assert counted(storage)["growth"] is None
    assert "Growth" not in run_tool("stats", "--storage-dir", storage).stdout


@pytest.mark.parametrize(("days", "limit"), [(9, "1G"), (2, "off")])
def test_without_saves_or_without_a_limit_a_store_is_never_full(storage: Path, days: float, limit: str) -> None:
    Client(storage).save(created_at=ago(days=days))
    growth = counted(storage, MAX_STORAGE_MB=limit)["growth"]
    assert (growth["full_in_days"], growth["keeps_days"]) == (None, None)
    shown = run_tool("stats", "--storage-dir", storage, env={"GOFR_DIG_MAX_STORAGE_MB": limit}).stdout
    assert "Growth" in shown and "at this rate" not in shown


def test_stats_names_the_sessions_that_go_next(storage: Path) -> None:
    guids = make_store(storage, 5, size=1000, group="research")
    facts = counted(storage)
    assert [item["guid"] for item in facts["next"]] == guids[:3]
    shown = run_tool("stats", "--storage-dir", storage).stdout
    assert f"Goes next  {guids[0]}  1000 B  research\n           {guids[1]}" in shown
    assert counted(storage, MAX_STORAGE_MB="off")["next"] == []


def test_stats_shows_the_groups_that_take_most_and_the_others_in_one_row(storage: Path) -> None:
    for number in range(12):
        make_store(storage, 1, size=1000 * (number + 1), seed=number, group=f"group-{number:02}")
    assert len(counted(storage)["groups"]) == 12
    lines = run_tool("stats", "--storage-dir", storage).stdout.splitlines()
    rows = lines[lines.index("") + 1 :]
    assert [row.split()[0] for row in rows[1:9]] == [f"group-{number:02}" for number in range(11, 3, -1)]
    assert rows[1].split()[1:6] == ["1", "11.7", "KB", "15.4", "%"]
    assert rows[9].startswith("(4 more; --json names them)") and " 9.8 KB " in rows[9]
    assert len(rows) == 10


def test_on_a_terminal_the_groups_leave_room_for_the_rest_of_stats(storage: Path) -> None:
    for number in range(12):
        make_store(storage, 1, size=1000 * (number + 1), seed=number, group=f"group-{number:02}")
    (storage / f"{LINK_GUID}.json").symlink_to("/etc/hostname")
    with Terminal(command("stats", "--storage-dir", storage)) as terminal:
        assert terminal.end() == 0
    screen = terminal.screen
    assert screen[0].startswith("Store ") and sum(max(1, -(-len(line) // 80)) for line in screen) == 24
    shown = [line for line in screen if line.startswith("group-")]
    assert len(shown) > 3 and any(line.startswith(f"({12 - len(shown)} more; --json names them) ") for line in screen)


def test_stats_shows_where_the_store_is(storage: Path) -> None:
    make_store(storage, 1)
    done = run_tool("stats", "--storage-dir", storage.name, cwd=storage.parent)
    assert done.stdout.startswith(f"Store      {storage}\n")


def test_stats_says_who_holds_the_lock(storage: Path) -> None:
    make_store(storage, 1)
    assert json.loads(run_tool("stats", "--json", "--storage-dir", storage).stdout)["lock"] is None
    line = {"pid": os.getpid(), "host": os.uname().nodename, "command": "purge", "started_at": "2026-11-27T03:00:00Z"}
    (storage / ".prune_size.lock").write_text(json.dumps(line))
    told = run_tool("stats", "--storage-dir", storage).stdout
    assert re.search(rf"^Lock +process {os.getpid()} on .* \(purge\), since 2026-11-27T03:00:00Z", told, re.MULTILINE)
    (storage / ".prune_size.lock").write_text(json.dumps({**line, "pid": 2**22 + 1}))
    assert "Lock" not in run_tool("stats", "--storage-dir", storage).stdout


@pytest.mark.parametrize(("columns", "fits"), [(80, True), (72, True), (120, False)])
def test_on_a_narrow_terminal_the_table_of_list_fits(storage: Path, columns: int, fits: bool) -> None:
    guids = make_store(storage, 3, group="a group with a very long name")
    (storage / f"{guids[0]}.json").unlink()
    with Terminal(command("list", "--verbose", "--storage-dir", storage), columns=columns) as terminal:
        assert terminal.end() == 0
    lines = [line for line in terminal.screen if any(guid in line for guid in guids)]
    assert len(lines) == 3 and all(len(line) <= columns for line in lines) is fits
    assert ("a group with a very long name" in lines[1]) is not fits and "dangling" in lines[0]


# how old they are


def test_stats_shows_how_many_sessions_are_of_each_age(storage: Path) -> None:
    client = Client(storage)
    for days in [60] * 4 + [31] + [0] * 2:
        client.save(b"x", created_at=ago(days=days))
    ages = counted(storage)["ages"]
    assert ages["session_counts"] == [4, *[0] * 13, 1, *[0] * 14, 2]
    assert ages["slice_secs"] == pytest.approx(2 * 86_400, abs=1)
    shown = run_tool("stats", "--storage-dir", storage, env={"PYTHONUTF8": "1"}).stdout
    assert f"By age     █{' ' * 13}▂{' ' * 14}▄  oldest first, 2 d each\n" in shown


@pytest.mark.parametrize("count", [0, 1, 3])
def test_sessions_of_one_moment_have_no_ages_to_show(storage: Path, count: int) -> None:
    client, moment = Client(storage), ago(days=1)
    for _ in range(count):
        client.save(b"x", created_at=moment)
    assert counted(storage)["ages"] is None
    assert "By age" not in run_tool("stats", "--storage-dir", storage).stdout


def test_stats_tells_what_was_deleted_of_late(storage: Path, tmp_path: Path) -> None:
    make_store(storage, 9, size=1000)
    history = tmp_path / "history"
    env = {"GOFR_DIG_HISTORY_FILE": str(history)}

    def shown(*words: object) -> str:
        return run_tool("stats", "--storage-dir", storage, *words, env=env).stdout

    assert json.loads(shown("--json"))["deleted"] is None and "Deleted" not in shown()
    told, expected = "", ["", "2 sessions, 2.0 KB over the last 30 days", "1 session, 1000 B over the last 7 days"]
    for days, left, line in zip((31, 8, 6), (5, 3, 2), expected):
        done = run_tool("prune-size", "--max-mb", f"{1000 * left}B", "--storage-dir", storage, env=env)
        assert done.returncode == 0
        new = history.read_text()[len(told) :]
        told += re.sub(r'"time":"[^"]+"', f'"time":"{ago(days=days)[:19]}Z"', new)
        history.write_text(told)
        text = shown()
        assert f"Deleted    {line}\n" in text if line else "Deleted" not in text
    assert "           3 sessions, 2.9 KB over the last 30 days\n" in text
    assert json.loads(shown("--json"))["deleted"] == [
        {"days": 7, "session_count": 1, "size_bytes": 1000}, {"days": 30, "session_count": 3, "size_bytes": 3000}
    ]  # fmt: skip
    assert json.loads(shown("--json", "--group", "g"))["deleted"] is None
    history.write_text(re.sub(r'"time":"[^"]+"', f'"time":"{ago(days=1)[:19]}Z"', told))
    assert re.findall("(?m)^.* sessions?, .* over the last .*$", shown()) == [
        "Deleted    7 sessions, 6.8 KB over the last 7 days"
    ]
    history.write_bytes(b"")
    assert "Deleted" not in shown()
    history.unlink()
    history.symlink_to("/etc/passwd")
    assert json.loads(shown("--json"))["deleted"] is None
