"""<P>_ORPHANS: what each cycle does with orphans before it prunes, and what must not keep it from pruning."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from client import Client
from loops import SteppedClock, settings_for
from stores import blobs, event, events, leftovers, make_store, read_entries, run_tool, write_entries

from storage_manager.base.log import EventLog, build_logger
from storage_manager.config import Orphans
from storage_manager.loop import housekeeper, orphans
from storage_manager.loop.cycle import Manner
from storage_manager.store import commit, recovery
from storage_manager.store.reading import Reading

pytestmark = pytest.mark.usefixtures("sleeps_in_one_go")

DAY_SECS = 86_400.0
Found = list[dict[str, Any]]


def lose(storage: Path, guids: list[str], days: float = 100.0) -> None:
    """These sessions lose their entries; the blob of the first was written `days` ago, each other a minute later."""
    entries = read_entries(storage)
    for number, guid in enumerate(guids):
        del entries[guid]
        moment = time.time() - days * DAY_SECS + 60 * number
        os.utime(storage / f"{guid}.json", (moment, moment))
    write_entries(storage, entries)


@pytest.fixture
def cycles(storage: Path, tmp_path: Path) -> Callable[..., tuple[int, Found]]:
    def run(count: int = 1, only_plan: bool = False, **variables: str) -> tuple[int, Found]:
        """One cycle and its exit code, or `count` of a loop; with all events."""
        with open(tmp_path / "events.log", "w") as stream:
            log = EventLog(build_logger(stream, True, 10))
            load = lambda: settings_for(storage, **variables)  # noqa: E731
            code = housekeeper.run_loop(load, SteppedClock(count), log, Manner(count == 1, only_plan))
        return code, events((tmp_path / "events.log").read_text())

    return run


Cycles = Callable[..., tuple[int, Found]]


def only(found: Found, key: str) -> dict[str, Any]:
    (item,) = [item for item in found if item["event"] == key]
    return item


def count(found: Found, key: str) -> int:
    return sum(item["event"] == key for item in found)


# The setting


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("keep", Orphans()),
        ("KEEP", Orphans()),
        ("off", Orphans()),
        ("", Orphans()),
        ("adopt:lost", Orphans(group="lost")),
        (' "adopt: lost & found " # for now', Orphans(group="lost & found")),
        ("adopt:a:b", Orphans(group="a:b")),
        ("purge:30", Orphans(age_days=30.0)),
        ("Purge: 0.5", Orphans(age_days=0.5)),
    ],
)
def test_what_is_understood(storage: Path, text: str, expected: Orphans) -> None:
    settings, fallbacks = settings_for(storage, ORPHANS=text)
    assert (settings.orphans, settings.held_by, fallbacks) == (expected, None, [])


UNREADABLE = [
    "adopt", "adopt:", "adopt: ", "adopt:a\tb", "adopt:a\u202eb", "purge", "purge:", "purge:ten", "purge:-1", "purge:0",
    "purge:0.0001", "purge:nan", "purge:30d", "delete", "keep:all", "30",
]  # fmt: skip


@pytest.mark.parametrize("text", UNREADABLE)
def test_what_is_not_understood_holds_every_deletion_and_leaves_the_orphans(
    storage: Path, cycles: Cycles, text: str
) -> None:
    guids = make_store(storage, 6, size=1000)
    lose(storage, guids[:1])
    code, found = cycles(MAX_STORAGE_MB="3000B", ORPHANS=text)
    assert (code, blobs(storage), len(read_entries(storage))) == (1, set(guids), 5)
    assert only(found, "storage_manager.prune.held")["variable"] == "GOFR_DIG_ORPHANS"
    assert only(found, "housekeeper.invalid_env")["@l"] == "Error"


def test_another_rule_that_is_not_understood_holds_a_purge_of_orphans_too(storage: Path, cycles: Cycles) -> None:
    guids = make_store(storage, 6, size=1000)
    lose(storage, guids[:2])
    code, found = cycles(ORPHANS="purge:30", MAX_SESSIONS="many")
    assert (code, blobs(storage)) == (1, set(guids))
    held = only(found, "storage_manager.prune.held")
    assert (held["variable"], held["victim_count"]) == ("GOFR_DIG_MAX_SESSIONS", 2)
    assert "With purge:30, 2 orphans, 2.0 KB, would have to go" in held["@m"]


def test_by_default_orphans_stay(storage: Path, cycles: Cycles) -> None:
    guids = make_store(storage, 6, size=1000)
    lose(storage, guids[:2])
    code, found = cycles()
    assert (code, blobs(storage), len(read_entries(storage))) == (0, set(guids), 4)
    assert only(found, "housekeeper.started")["orphans"] == "keep"


# Adoption


def test_adopted_orphans_are_sessions_and_pruned_in_the_same_cycle(storage: Path, cycles: Cycles) -> None:
    guids = make_store(storage, 8, size=1000)
    lose(storage, guids[4:7], days=900)
    os.utime(storage / f"{guids[6]}.json")  # a save may be under way
    code, found = cycles(MAX_STORAGE_MB="7000B", ORPHANS="adopt:lost")
    assert code == 0
    assert blobs(storage) == set(guids) - {guids[4]}  # the oldest by its blob's time
    entries = read_entries(storage)
    assert set(entries) == set(guids) - {guids[4], guids[6]}
    assert entries[guids[5]]["group"] == "lost"
    summary = only(found, "storage_manager.adopt.summary")
    assert (summary["adopted_count"], summary["dry_run"]) == (2, False)
    assert only(found, "storage_manager.prune.deleted")["guid"] == guids[4]
    end = only(found, "housekeeper.cycle_ok")["@m"]
    assert end == "adopted 2 orphans, 2.0 KB; deleted 1 session, 1000 B; 6.8 KB remain"
    assert only(found, "housekeeper.started")["orphans"] == "adopt:lost"
    assert leftovers(storage) == []


def test_metrics_and_the_history_tell_of_it(storage: Path, tmp_path: Path) -> None:
    guids = make_store(storage, 9, size=1000)
    lose(storage, guids[:2])
    env = {
        "GOFR_DIG_METRICS_FILE": str(tmp_path / "x.prom"),
        "GOFR_DIG_HISTORY_FILE": str(tmp_path / "history"),
        "GOFR_DIG_MAX_STORAGE_MB": "6500B",
    }
    purged = run_tool("run-loop", "--once", "--storage-dir", storage, env={**env, "GOFR_DIG_ORPHANS": "purge:30"})
    assert purged.returncode == 0, purged.stderr
    lose(storage, guids[3:5])
    adopted = run_tool("run-loop", "--once", "--storage-dir", storage, env={**env, "GOFR_DIG_ORPHANS": "adopt:g"})
    assert adopted.returncode == 0, adopted.stderr
    told = {line.split("{")[0]: line.split()[-1] for line in (tmp_path / "x.prom").read_text().splitlines()}
    names = ("adopted_orphans", "purged_orphans", "purged_orphan_bytes", "deleted_sessions", "freed_bytes")
    assert [told[f"storage_manager_{name}_total"] for name in names] == ["2", "2", "2000", "1", "1000"]
    runs = json.loads(run_tool("history", "--json", "--storage-dir", storage, env=env).stdout)["runs"]
    assert [(run["what"], run["session_count"], run["why"], run["exit_code"]) for run in runs] == [
        ("deleted", 2, "an orphan, 30 days or older", 0),
        ("deleted", 1, "oldest first, over the limit", 0),
        ("adopted", 2, "orphans given entries", 0),
    ]
    health = run_tool("health", "--storage-dir", storage, env=env)
    assert "healthy" in health.stdout and health.returncode == 0


def test_an_orphan_that_cannot_be_adopted_fails_nothing_and_is_told_of_once(storage: Path, cycles: Cycles) -> None:
    guids = make_store(storage, 5, size=1000)
    (storage / f"{guids[4]}.md").write_bytes(b"x")
    os.utime(storage / f"{guids[4]}.md", (1, 1))
    code, found = cycles(MAX_STORAGE_MB="3500B", ORPHANS="adopt:lost")
    assert (code, blobs(storage)) == (0, set(guids[2:]))
    assert only(found, "storage_manager.adopt.summary")["left_count"] == 1
    assert only(found, "storage_manager.anomaly")["kind"] == "orphan"
    assert only(found, "housekeeper.cycle_ok")["@m"].startswith("deleted 2 sessions")


def test_a_cycle_adopts_so_many_and_no_session_makes_room_for_the_others_meanwhile(
    storage: Path, cycles: Cycles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orphans, "MOST", 2)
    guids = make_store(storage, 10, size=1000)
    lose(storage, guids[:6], days=900)  # all of them older than what has an entry
    rule = {"MAX_STORAGE_MB": "4000B", "ORPHANS": "adopt:lost"}
    code, found = cycles(**rule)
    # As if the four others were not there: the limit is for six.
    assert (code, blobs(storage)) == (0, set(guids[2:]))
    assert only(found, "storage_manager.adopt.summary")["left_count"] == 4
    for _ in range(2):
        assert cycles(**rule)[0] == 0
    assert blobs(storage) == set(read_entries(storage)) == set(guids[6:])


def test_an_adoption_that_a_client_undoes_is_tried_again_and_told_of_when_it_lasts(
    storage: Path, cycles: Cycles, monkeypatch: pytest.MonkeyPatch
) -> None:
    guids = make_store(storage, 6, size=1000)
    lose(storage, guids[:2])
    with monkeypatch.context() as patch:
        patch.setattr(Reading, "unchanged", lambda self: False)
        for module in (commit, recovery):
            patch.setattr(module, "PUT_BACK_PATIENCE_SECS", 0.05)
        code, found = cycles(4, ORPHANS="adopt:lost", MAX_STORAGE_MB="4500B", MIN_AGE_MINS="1e9", MAX_SESSIONS="9")
    assert code == 0
    told = [item for item in found if item["event"] == "storage_manager.adopt.deferred"]
    assert [(item["@l"], item["orphan_count"]) for item in told] == [
        ("Information", 2), ("Information", 2), ("Warning", 2), ("Warning", 2),
    ]  # fmt: skip
    # Only then do the limit and the target count them: it is by then that somebody has to look.
    assert [item["event"].rpartition("_")[2] for item in found if "housekeeper.cycle_" in item["event"]] == [
        "start", "ok", "start", "ok", "start", "nonzero", "start", "nonzero",
    ]  # fmt: skip
    assert (cycles(ORPHANS="adopt:lost")[0], set(read_entries(storage))) == (0, set(guids))


# A purge


def test_purged_bytes_count_for_the_limit(storage: Path, cycles: Cycles) -> None:
    guids = make_store(storage, 8, size=1000)
    lose(storage, guids[:2], days=31)
    lose(storage, guids[2:3], days=29)
    code, found = cycles(MAX_STORAGE_MB="5000B", ORPHANS="purge:30")
    assert (code, blobs(storage), set(read_entries(storage))) == (0, {guids[2], *guids[4:]}, set(guids[4:]))
    deleted = [item["guid"] for item in found if item["event"] == "storage_manager.purge.deleted"]
    assert deleted == guids[:2]
    end = only(found, "housekeeper.cycle_ok")["@m"]
    assert end == "purged 2 orphans, 2.0 KB; deleted 1 session, 1000 B; 4.9 KB remain"


def test_the_brake_counts_orphans_and_then_nothing_goes(storage: Path, cycles: Cycles) -> None:
    guids = make_store(storage, 10, size=1000)
    lose(storage, guids[:4])
    code, found = cycles(MAX_STORAGE_MB="8000B", ORPHANS="purge:30", MAX_DELETE="50%")
    assert (code, blobs(storage)) == (1, set(guids))
    held = only(found, "storage_manager.prune.held")
    assert (held["variable"], held["victim_count"]) == (None, 4)
    assert "4 orphans beside 6 sessions" in held["@m"] and "run `purge --orphans --age-days 30`" in held["@m"]


def test_more_orphans_than_sessions_are_not_purged(storage: Path, cycles: Cycles) -> None:
    """A client that has read a torn metadata.json writes one with its own session alone."""
    guids = make_store(storage, 7, size=1000)
    lose(storage, guids[:4])
    code, found = cycles(ORPHANS="purge:30", MAX_STORAGE_MB="1000B")
    assert (code, blobs(storage)) == (1, set(guids))
    held = only(found, "storage_manager.prune.held")
    assert "4 orphans, 3.9 KB, would have to go, beside only 3 sessions" in held["@m"]
    assert "GOFR_DIG_ORPHANS=adopt:GROUP" in held["@m"] and "nothing was deleted" in held["@m"]


def test_a_cycle_purges_so_many(storage: Path, cycles: Cycles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orphans, "MOST", 2)
    guids = make_store(storage, 8, size=1000)
    lose(storage, guids[:4])
    rule = {"ORPHANS": "purge:30", "MAX_STORAGE_MB": "4000B", "MAX_DELETE": "2"}
    code, found = cycles(**rule)
    assert (code, blobs(storage)) == (0, set(guids[2:]))  # no session makes room for what goes in the next cycle
    assert only(found, "storage_manager.prune.noop")["@m"] == "nothing to do"
    assert (cycles(**rule)[0], blobs(storage)) == (0, set(guids[4:]))


def test_a_doubtful_clock_purges_no_orphan_and_the_prune_goes_on(storage: Path, cycles: Cycles) -> None:
    guids = make_store(storage, 20, size=1000)
    lose(storage, guids[:8], days=300)
    os.utime(storage / "metadata.json", (1_767_600_000, 1_767_600_000))
    code, found = cycles(ORPHANS="purge:30", MAX_STORAGE_MB="19000B")
    assert (code, blobs(storage)) == (1, set(guids) - {guids[8]})
    assert "run `purge --orphans --age-days 30 --yes`" in only(found, "storage_manager.purge.failed")["@m"]
    end = only(found, "housekeeper.cycle_nonzero")["@m"]
    assert "orphans: refused: every orphan (8)" in end and "; deleted 1 session" in end
    health = run_tool("health", "--storage-dir", storage)
    assert health.returncode == 1 and "every orphan (8)" in health.stdout
    # That prune has written metadata.json by the same clock, which says nothing about it.
    assert cycles(ORPHANS="purge:30", MAX_STORAGE_MB="18000B")[0] == 1
    assert blobs(storage) == set(guids) - set(guids[8:10])
    Client(storage).delete(guids[10])  # but a client has it right
    code, _ = cycles(ORPHANS="purge:30", MAX_STORAGE_MB="18000B")
    assert (code, blobs(storage)) == (0, set(guids[11:]))


# Whatever is asked for


@pytest.mark.parametrize("rule", ["adopt:lost", "purge:30"])
def test_without_deletion_orphans_are_adopted_and_not_purged(storage: Path, cycles: Cycles, rule: str) -> None:
    guids = make_store(storage, 6, size=1000)
    lose(storage, guids[:2])
    code, found = cycles(MAX_STORAGE_MB="off", ORPHANS=rule)
    assert (code, blobs(storage)) == (0, set(guids))
    assert len(read_entries(storage)) == (6 if rule.startswith("adopt") else 4)


@pytest.mark.parametrize("rule", ["adopt:lost", "purge:30"])
def test_a_dry_run_says_what_would_be_done_and_changes_nothing(storage: Path, cycles: Cycles, rule: str) -> None:
    guids = make_store(storage, 8, size=1000)
    lose(storage, guids[4:6], days=900)
    before = {path.name: path.read_bytes() for path in storage.iterdir()}
    _, foreseen = cycles(only_plan=True, MAX_STORAGE_MB="5000B", ORPHANS=rule)
    assert {path.name: path.read_bytes() for path in storage.iterdir()} == before
    _, found = cycles(MAX_STORAGE_MB="5000B", ORPHANS=rule)
    kind, figure = ("adopt", "adopted_count") if rule.startswith("adopt") else ("purge", "deleted_count")
    for key, field in ((f"storage_manager.{kind}.summary", figure), ("storage_manager.prune.summary", "deleted_count")):
        would, did = only(foreseen, key), only(found, key)
        assert (would["dry_run"], did["dry_run"]) == (True, False)
        assert would[field] == did[field] > 0
    assert only(foreseen, "housekeeper.cycle_ok")["@m"].startswith(f"would {kind} 2 orphans, 2.0 KB; would delete")


@pytest.mark.parametrize("rule", ["adopt:lost", "purge:30"])
def test_a_text_kept_aside_that_cannot_be_read_keeps_no_prune_from_its_work(
    storage: Path, cycles: Cycles, rule: str
) -> None:
    guids = make_store(storage, 9, size=1000)
    lose(storage, guids[:2])
    (storage / ".metadata.json.torn-20260101T000000Z-aaaaaaaa").touch()
    os.truncate(storage / ".metadata.json.torn-20260101T000000Z-aaaaaaaa", 3 << 30)
    code, found = cycles(MAX_STORAGE_MB="8000B", ORPHANS=rule)
    assert code == 1
    assert blobs(storage) == set(guids) - {guids[2]}
    assert "orphans: " in only(found, "housekeeper.cycle_nonzero")["@m"]


@pytest.mark.parametrize("rule", ["adopt:lost", "purge:30"])
def test_missing_evidence_ends_the_cycle(storage: Path, cycles: Cycles, rule: str) -> None:
    guids = make_store(storage, 40, size=1000)
    lose(storage, guids[:2])
    for guid in guids[20:32]:
        (storage / f"{guid}.json").unlink()
    code, found = cycles(MAX_STORAGE_MB="8000B", ORPHANS=rule)
    assert (code, blobs(storage)) == (1, {*guids[:20], *guids[32:]})
    assert count(found, "storage_manager.storage_suspect") == count(found, "housekeeper.cycle_nonzero") == 1


@pytest.mark.parametrize("rule", ["adopt:lost", "purge:30"])
def test_a_busy_lock_is_told_of_once(storage: Path, rule: str) -> None:
    make_store(storage, 3)
    with open(storage / ".prune_size.lock", "w") as lock:
        lock.write('{"pid": 4711}\n')
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run_tool("run-loop", "--once", "--storage-dir", storage, env={"GOFR_DIG_ORPHANS": rule})
    assert done.returncode == 2
    assert event(done.stderr, "storage_manager.prune.lock_busy")["holder_pid"] == 4711


def test_a_prune_that_fails_after_a_purge_says_what_was_purged(storage: Path, cycles: Cycles) -> None:
    guids = make_store(storage, 9, size=1000)
    lose(storage, guids[:2])
    code, found = cycles(ORPHANS="purge:30", MAX_STORAGE_MB="3000B", MAX_DELETE="3")
    assert (code, blobs(storage)) == (1, set(guids[2:]))
    assert only(found, "storage_manager.prune.held")["@m"].endswith("; 2 orphans were purged")
