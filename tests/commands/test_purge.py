"""purge: what is old enough goes, and everything only after asking."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from client import Client
from loops import Running, signals_as_usual
from stores import (
    answered_late,
    blobs,
    clean_environment,
    command,
    event,
    events,
    leftovers,
    make_store,
    read_entries,
    run_tool,
)  # fmt: skip

from storage_manager.jobs.evidence import HANDFUL

DAY_SECS = 86_400


def purge(storage: Path, *arguments: object, stdin: str | None = None) -> CompletedProcess[str]:
    return run_tool("purge", "--storage-dir", storage, *arguments, stdin=stdin)


def left(storage: Path) -> set[str]:
    """The sessions that are left, which must have both an entry and a blob."""
    assert set(read_entries(storage)) == blobs(storage)
    assert leftovers(storage) == []
    return blobs(storage)


def save(storage: Path, secs: float, **options: Any) -> str:
    """A session that is `secs` old; older than that when somebody looks."""
    created = datetime.now(timezone.utc).replace(tzinfo=None) - timedelta(seconds=secs)
    return Client(storage).save(created_at=created.isoformat(), **options)


# Who goes


@pytest.mark.parametrize(("options", "days"), [([], 30), (["--age-days", "7"], 7), (["--age-days", "0.5"], 0.5)])
def test_an_age_of_n_times_24_hours_is_old_enough(storage: Path, options: list[str], days: float) -> None:
    save(storage, days * DAY_SECS * 3)
    save(storage, days * DAY_SECS)
    young = save(storage, days * DAY_SECS - 60)
    assert purge(storage, *options).returncode == 0
    assert left(storage) == {young}


def test_time_zones_are_honoured(storage: Path) -> None:
    day_ago = datetime.now(timezone.utc) - timedelta(days=1)
    client = Client(storage)
    east, west = timezone(timedelta(hours=14)), timezone(timedelta(hours=-12))
    for zone in (timezone.utc, east, west):
        client.save(created_at=(day_ago - timedelta(minutes=1)).astimezone(zone).isoformat())
    young = {
        client.save(created_at=(day_ago + timedelta(minutes=1)).astimezone(zone).isoformat())
        for zone in (timezone.utc, east, west)
    }
    young.add(client.save(created_at=(day_ago + timedelta(minutes=1)).replace(tzinfo=None).isoformat() + "Z"))
    assert purge(storage, "--age-days", "1").returncode == 0
    assert left(storage) == young


@pytest.mark.parametrize("days", ["1e300", "999999999", "4000000"])
def test_an_absurd_age_deletes_nothing(storage: Path, days: str) -> None:
    guids = make_store(storage, 3)
    assert purge(storage, "--age-days", days).returncode == 0
    assert left(storage) == set(guids)


def test_a_group_is_purged_by_itself(storage: Path) -> None:
    mine = [save(storage, 40 * DAY_SECS, group="a"), save(storage, 20 * DAY_SECS, group="a")]
    other = save(storage, 40 * DAY_SECS, group="b")
    loner = save(storage, 40 * DAY_SECS)
    done = purge(storage, "--group", "a")
    assert done.returncode == 0
    assert left(storage) == {mine[1], other, loner}
    assert event(done.stderr, "storage_manager.purge.summary")["group"] == "a"
    assert purge(storage, "--group", "a", "--age-days", "0", "--yes").returncode == 0
    assert left(storage) == {other, loner}


def test_orphans_stay_and_old_dangling_entries_go(storage: Path) -> None:
    old, dangling = save(storage, 40 * DAY_SECS), save(storage, 35 * DAY_SECS)
    young = save(storage, DAY_SECS)
    (storage / f"{dangling}.json").unlink()
    (storage / f"{young}.json").unlink()
    orphan = storage / "44444444-4444-4444-8444-444444444444.json"
    orphan.write_bytes(b"x")
    os.utime(orphan, (1, 1))
    done = purge(storage)
    assert done.returncode == 0
    summary = event(done.stderr, "storage_manager.purge.summary")
    assert (summary["deleted_count"], summary["swept_count"]) == (1, 1)
    assert set(read_entries(storage)) == {young}
    assert orphan.exists() and old not in blobs(storage)


def test_everything_includes_sessions_of_the_future(storage: Path) -> None:
    save(storage, -10 * DAY_SECS)
    save(storage, 0)
    assert purge(storage, "--age-days", "0", "--yes").returncode == 0
    assert left(storage) == set()
    assert json.loads((storage / "metadata.json").read_text()) == {}


# Asking


@pytest.mark.parametrize("answer", ["yes\n", "YES\n", " Yes \n", "yes"])
def test_yes_deletes_everything(storage: Path, answer: str) -> None:
    make_store(storage, 3)
    done = purge(storage, "--age-days", "0", stdin=answer)
    assert done.returncode == 0
    assert "Are you sure? (yes/no)" in done.stderr
    assert str(storage) in done.stderr.split("Are you sure?")[0].splitlines()[-1]
    assert done.stdout == "deleted 3 sessions, 2.9 KB; 0 B remain\n"
    assert left(storage) == set()


def test_yes_deletes_no_more_than_was_asked_about(storage: Path) -> None:
    asked = make_store(storage, 2)
    new: list[str] = []
    words = "purge", "--age-days", "0", "--storage-dir", storage
    code, out, _ = answered_late(lambda: new.append(save(storage, 0)), *words)
    assert (code, left(storage), len(asked)) == (0, set(new), 2)
    assert out.startswith("deleted 2 sessions")
    other = storage.with_name("other")
    make_store(other, 4, seed=9)

    def swap() -> None:
        storage.rename(storage.with_name("aside"))
        other.rename(storage)

    code, out, _ = answered_late(swap, *words)
    assert code == 0 and len(left(storage)) == 4 and out.startswith("deleted 0 sessions")


@pytest.mark.parametrize("answer", ["no\n", "\n", "n\n", "y\n", "maybe\n", "yes please\n", "\x00\n"])
def test_any_other_answer_cancels(storage: Path, answer: str) -> None:
    guids = make_store(storage, 3)
    done = purge(storage, "--age-days", "0", stdin=answer)
    assert done.returncode == 0
    assert done.stdout == "cancelled; nothing was deleted\n"
    assert left(storage) == set(guids)


def test_the_question_shows_what_would_go(storage: Path) -> None:
    make_store(storage, 2, group="a")
    make_store(storage, 3, group="b", seed=2)
    done = purge(storage, "--age-days", "0", stdin="no\n")
    assert "5 sessions, 4.9 KB, from 2026-01-01T00:00:00 to 2026-01-01T02:00:00 UTC, of 2 groups\n" in done.stderr
    done = purge(storage, "--age-days", "0", "--group", "a", stdin="no\n")
    assert "2 sessions, 2.0 KB, from 2026-01-01T00:00:00 to 2026-01-01T01:00:00 UTC\n" in done.stderr
    assert f"This deletes every session of group a in {storage}." in done.stderr
    (storage / "77777777-7777-4777-8777-777777777777.json").touch()
    os.utime(storage / "77777777-7777-4777-8777-777777777777.json", (1, 1))
    done = purge(storage, "--orphans", "--age-days", "0", stdin="no\n")
    assert "1 orphan, 0 B, from 1970-01-01T00:00:01 to 1970-01-01T00:00:01 UTC\n" in done.stderr


def test_a_store_that_is_not_there_is_told_before_anything_is_asked(storage: Path) -> None:
    done = purge(storage / "absent", "--age-days", "0", stdin="yes\n")
    assert done.returncode == 1
    assert "sure" not in done.stderr and "does not exist" in done.stderr


def test_the_output_of_a_cancelled_purge_is_json_too_where_json_was_asked_for(storage: Path) -> None:
    make_store(storage, 1)
    done = purge(storage, "--age-days", "0", "--json", stdin="no\n")
    assert done.returncode == 0
    for line in done.stdout.splitlines():
        assert isinstance(json.loads(line), dict)


@pytest.mark.parametrize(
    ("answer", "told"), [("no\n", "storage_manager.purge.cancelled"), ("yes\n", "storage_manager.purge.started")]
)
def test_the_event_after_the_question_is_on_a_line_of_its_own(storage: Path, answer: str, told: str) -> None:
    make_store(storage, 3)
    assert event(purge(storage, "--age-days", "0", stdin=answer).stderr, told)["@l"] == "Information"


def test_no_answer_is_an_error_that_names_the_remedy(storage: Path) -> None:
    guids = make_store(storage, 3)
    done = purge(storage, "--age-days", "0", stdin="")
    assert (done.returncode, done.stdout) == (1, "")
    assert left(storage) == set(guids)
    assert "--yes" in done.stderr and "Traceback" not in done.stderr
    assert "--yes" in event(done.stderr, "storage_manager.command_failed")["@m"]


@pytest.mark.parametrize("redirection", ["<&-", "</proc/self/mem", ">&- <&-"])
def test_an_input_that_cannot_be_read_is_no_answer(storage: Path, redirection: str) -> None:
    guids = make_store(storage, 3)
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirection}', "sh", *command("purge", "--age-days", "0", "--storage-dir", storage)],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "--yes" in done.stderr
    assert left(storage) == set(guids)


def test_an_answer_that_is_not_text_is_no_yes(storage: Path) -> None:
    guids = make_store(storage, 3)
    done = subprocess.run(
        command("purge", "--age-days", "0", "--storage-dir", storage),
        env=clean_environment(),
        input=b"\xff\xfeyes\n",
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode in (0, 1)
    assert b"Traceback" not in done.stderr
    assert left(storage) == set(guids)


@pytest.mark.parametrize(
    "options", [["--age-days", "0", "--yes"], ["--age-days", "0", "--dry-run"], ["--age-days", "1"], []]
)
def test_there_is_no_question_where_none_is_needed(storage: Path, options: list[str]) -> None:
    make_store(storage, 3)
    done = purge(storage, *options, stdin="")
    assert done.returncode == 0
    assert "sure" not in done.stderr


def test_a_question_that_cannot_be_shown_is_not_answered(storage: Path) -> None:
    guids = make_store(storage, 3)
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" 2>/dev/full', "sh", *command("purge", "--age-days", "0", "--storage-dir", storage)],
        env=clean_environment(),
        input=b"yes\n",
        stdout=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert left(storage) == set(guids)


@pytest.mark.parametrize("zero", ["0", "0.0", "00", "0e5", "+0", "1e-300", "1e-400", "1e-9", "0.0006"])
def test_every_spelling_of_zero_asks(storage: Path, zero: str) -> None:
    guids = make_store(storage, 3)
    assert purge(storage, "--age-days", zero, stdin="no\n").returncode == 0
    assert left(storage) == set(guids)


def test_the_question_names_the_group_without_its_control_characters(storage: Path) -> None:
    make_store(storage, 3, group="a\x1b[31m")
    done = purge(storage, "--age-days", "0", "--group", "a\x1b[31m", stdin="no\n")
    assert "group a\\x1b[31m in " in done.stderr
    assert "\x1b" not in done.stderr


@pytest.mark.parametrize(("signum", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_at_the_question_ends_it_and_deletes_nothing(
    storage: Path, signum: signal.Signals, expected: int
) -> None:
    guids = make_store(storage, 3)
    with Running(
        command("purge", "--age-days", "0", "--storage-dir", storage),
        stdin=subprocess.PIPE,
        preexec_fn=signals_as_usual,
    ) as tool:
        assert tool.process.stderr is not None
        shown = b""
        while b"(yes/no) " not in shown:
            part = os.read(tool.process.stderr.fileno(), 65536)
            assert part, shown
            shown += part
        tool.send(signum)
        assert tool.end() == expected
        assert not tool.process.stderr.read()
    assert left(storage) == set(guids)


# What is said


def test_a_dry_run_chooses_whom_the_real_run_deletes_and_touches_nothing(storage: Path) -> None:
    guids = [save(storage, days * DAY_SECS) for days in (50, 40, 20, 10)]
    before = (storage / "metadata.json").read_bytes()
    planned = json.loads(purge(storage, "--dry-run", "--json").stdout)
    assert (storage / "metadata.json").read_bytes() == before
    assert left(storage) == set(guids)
    done = json.loads(purge(storage, "--json").stdout)
    assert (planned.pop("dry_run"), done.pop("dry_run")) == (True, False)
    assert planned == done
    assert [item["guid"] for item in done["plan"]] == guids[:2]
    assert left(storage) == set(guids[2:])


def test_a_dry_run_in_text_names_each_victim_and_why(storage: Path) -> None:
    old = save(storage, 40 * DAY_SECS)
    save(storage, 20 * DAY_SECS)
    sentence, *_, line = purge(storage, "--dry-run").stdout.splitlines()
    assert sentence == "would delete 1 session, 100 B; 100 B would remain"
    assert line.startswith(f"delete  {old}  ") and line.endswith("30 days or older")


def test_verbose_names_those_that_stay_too(storage: Path) -> None:
    old, young = save(storage, 40 * DAY_SECS), save(storage, 20 * DAY_SECS)
    planned = purge(storage, "--dry-run", "--verbose").stdout.splitlines()
    *done, sentence = purge(storage, "--verbose").stdout.splitlines()
    assert planned[-2:] == done and sentence == "deleted 1 session, 100 B; 100 B remain"
    assert [line.split()[:2] for line in done] == [["delete", old], ["keep", young]]
    assert done[1].endswith("younger than 30 days")


def test_json_tells_the_outcome(storage: Path) -> None:
    make_store(storage, 3, size=1000)
    done = purge(storage, "--age-days", "0", "--yes", "--json")
    found = json.loads(done.stdout)
    assert len(found.pop("plan")) == 3
    assert found == {
        "command": "purge",
        "dry_run": False,
        "storage_dir": str(storage),
        "group": None,
        "limit_bytes": None,
        "target_bytes": None,
        "target_met": True,
        "causes": {},
        "current_bytes": 3000,
        "final_bytes": 0,
        "deleted_count": 3,
        "freed_bytes": 3000,
        "swept_count": 0,
        "deferred_count": 0,
        "failed_count": 0,
        "exit_code": 0,
    }


def test_the_events_of_a_purge_carry_the_facts(storage: Path) -> None:
    guids = make_store(storage, 3, size=1000)
    done = purge(storage, "--age-days", "0", "--yes")
    assert [item["event"].split(".", 1)[1] for item in events(done.stderr)] == [
        "command_start",
        "purge.started",
        *["purge.deleted"] * 3,
        "purge.summary",
        "command_end",
    ]
    assert [item["guid"] for item in events(done.stderr) if item["event"].endswith("purge.deleted")] == guids
    summary = event(done.stderr, "storage_manager.purge.summary")
    expected = {"deleted_count": 3, "freed_bytes": 3000, "final_bytes": 0, "exit_code": 0, "group": None}
    assert {name: summary[name] for name in expected} == expected


def test_the_lock_is_waited_for_or_left_alone(storage: Path) -> None:
    make_store(storage, 3)
    with open(storage / ".prune_size.lock", "w") as lock:
        lock.write('{"pid": 4711}\n')  # of a lock file without its line we would be patient for a second
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = purge(storage, "--age-days", "0", "--yes")
        assert done.returncode == 2
        assert event(done.stderr, "storage_manager.prune.lock_busy")
        assert len(blobs(storage)) == 3
        arguments = command("purge", "--age-days", "0", "--yes", "--lock-timeout", "25", "--storage-dir", storage)
        with Running(arguments) as tool:
            tool.wait_for("storage_manager.command_start")
            fcntl.flock(lock, fcntl.LOCK_UN)
            assert tool.end() == 0
    assert left(storage) == set()


# Orphans

ORPHANS = [f"{digit * 8}-4444-4444-8444-444444444444" for digit in "456"]


def orphan(storage: Path, guid: str, secs: float, extension: str = "json") -> Path:
    path = storage / f"{guid}.{extension}"
    path.write_bytes(b"x" * 100)
    moment = datetime.now().timestamp() - secs
    os.utime(path, (moment, moment))
    return path


def test_orphans_go_by_the_time_they_were_written(storage: Path) -> None:
    guids = make_store(storage, 2)
    text = (storage / "metadata.json").read_bytes()
    for guid, days in zip(ORPHANS, (50, 40, 20)):
        orphan(storage, guid, days * DAY_SECS)
    done = purge(storage, "--orphans", "--age-days", "30")
    assert done.returncode == 0
    assert done.stdout == "deleted 2 orphans, 200 B; 2.1 KB remain\n"
    assert blobs(storage) == {*guids, ORPHANS[2]}
    assert (storage / "metadata.json").read_bytes() == text and leftovers(storage) == []
    deleted = [item for item in events(done.stderr) if item["event"] == "storage_manager.purge.deleted"]
    assert [item["guid"] for item in deleted] == ORPHANS[:2]
    assert deleted[0]["reason"] == "an orphan, 30 days or older"


def test_every_orphan_goes_but_none_in_flight(storage: Path) -> None:
    guids = make_store(storage, 2)
    for guid, secs in zip(ORPHANS, (DAY_SECS, 590, -DAY_SECS)):
        orphan(storage, guid, secs)
    (storage / f"{guids[0]}.json").unlink()  # dangling entries stay: they are no orphans
    assert purge(storage, "--orphans", "--age-days", "0", "--yes").returncode == 0
    assert blobs(storage) == {guids[1], *ORPHANS[1:]}
    assert set(read_entries(storage)) == set(guids)


def test_every_orphan_is_asked_about(storage: Path) -> None:
    orphan(storage, ORPHANS[0], DAY_SECS)
    done = purge(storage, "--orphans", "--age-days", "0", stdin="no\n")
    assert "This deletes every orphan in " in done.stderr and blobs(storage) == {ORPHANS[0]}


def test_a_dry_run_names_the_orphans_and_leaves_them(storage: Path) -> None:
    orphan(storage, ORPHANS[0], 40 * DAY_SECS)
    done = purge(storage, "--orphans", "--dry-run")
    assert ORPHANS[0] in done.stdout and "would delete 1 orphan, 100 B" in done.stdout
    assert blobs(storage) == {ORPHANS[0]}


def test_two_orphans_with_one_guid_are_two(storage: Path) -> None:
    for extension in ("json", "md"):
        orphan(storage, ORPHANS[0], 40 * DAY_SECS, extension)
    found = json.loads(purge(storage, "--orphans", "--json").stdout)
    assert (found["deleted_count"], found["freed_bytes"], len(found["plan"])) == (2, 200, 2)


@pytest.mark.parametrize(("brake", "code"), [("1", 1), ("66%", 1), ("67%", 0), ("2", 0), ("off", 0)])
def test_the_brake_counts_orphans_and_compares_them_with_the_sessions(storage: Path, brake: str, code: int) -> None:
    make_store(storage, 3)
    for guid, days in zip([*ORPHANS, ORPHANS[0].replace("4", "7")], (40, 50, 10, 20)):
        orphan(storage, guid, days * DAY_SECS)
    before = blobs(storage)
    done = purge(storage, "--orphans", "--max-delete", brake)
    assert done.returncode == code
    assert len(before - blobs(storage)) == (0 if code else 2)
    if code:
        told = event(done.stderr, "storage_manager.prune.held")
        assert told["@m"].startswith(
            "2 orphans beside 3 sessions, 200 B, would have to go (an orphan, 30 days or older), more than "
        )


def test_orphans_have_no_group(storage: Path) -> None:
    done = purge(storage, "--orphans", "--group", "a")
    assert done.returncode == 64 and "group is not known" in done.stderr


# A clock that is wrong


def age_store(storage: Path, count: int, days: float, group: str | None = None) -> set[str]:
    """A store that nobody has used for so many days: to it, this clock is that far ahead."""
    guids = {save(storage, (days + number / 100) * DAY_SECS, group=group) for number in range(count)}
    moment = time.time() - days * DAY_SECS
    for path in storage.iterdir():
        os.utime(path, (moment, moment))
    return guids


@pytest.mark.parametrize("days", [40, 3650])
@pytest.mark.parametrize("options", [[], ["--age-days", "0.1"], ["--group", "a"], ["--json"]])
def test_a_clock_far_ahead_of_the_store_deletes_not_everything_without_yes(
    storage: Path, days: int, options: list[str]
) -> None:
    guids = age_store(storage, 6, days, group="a")
    for _ in range(2):  # being refused must leave nothing that makes the clock plausible
        done = purge(storage, *options)
        assert done.returncode == 1 and done.stdout == ""
        told = event(done.stderr, "storage_manager.purge.failed")["@m"]
        moments = re.findall(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d UTC", told)
        assert len(moments) == 2 and moments[0] > moments[1] and "--yes" in told
        assert left(storage) == guids
    assert purge(storage, *options, "--dry-run").returncode == 0
    assert purge(storage, *options, "--yes").returncode == 0
    assert left(storage) == set()


@pytest.mark.parametrize("is_in_use", [True, False])
def test_what_a_run_writes_vouches_for_a_clock_only_if_the_store_did_before(storage: Path, is_in_use: bool) -> None:
    guids = age_store(storage, 10, 40)
    if is_in_use:
        Client(storage).write(read_entries(storage))
    most = sum(path.stat().st_size for path in storage.glob("*-*.*")) - 1
    for size in (most, most - 10):
        assert run_tool("--storage-dir", storage, "prune-size", "--max-mb", f"{size}B").returncode == 0
    stay = left(storage)
    assert HANDFUL < len(stay) < len(guids)
    assert purge(storage).returncode == (0 if is_in_use else 1)
    assert left(storage) == (set() if is_in_use else stay)


def test_orphans_are_not_all_purged_by_such_a_clock_either(storage: Path) -> None:
    guids = age_store(storage, 6, 40)
    (storage / "metadata.json").unlink()
    assert purge(storage, "--orphans").returncode == 1
    assert blobs(storage) == guids
    assert purge(storage, "--orphans", "--yes").returncode == 0
    assert blobs(storage) == set()


def test_a_clock_is_believed_when_the_store_shows_a_time_near_it(storage: Path) -> None:
    age_store(storage, 6, 40)
    os.utime(storage / "metadata.json")
    assert purge(storage).returncode == 0
    assert left(storage) == set()


def test_a_clock_is_believed_when_it_leaves_something_or_deletes_a_handful(storage: Path) -> None:
    age_store(storage, 5, 40)
    assert purge(storage).returncode == 0
    assert left(storage) == set()
    age_store(storage, 6, 40)
    young = save(storage, DAY_SECS)
    os.utime(storage / "metadata.json", (1e9, 1e9))
    assert purge(storage).returncode == 0
    assert left(storage) == {young}


def test_a_session_of_the_future_does_not_vouch_for_the_clock(storage: Path) -> None:
    guids = age_store(storage, 6, 40)
    ahead = save(storage, -DAY_SECS)
    os.utime(storage / "metadata.json", (1e9, 1e9))
    assert purge(storage, "--age-days", "30").returncode == 1
    assert left(storage) == {ahead, *guids}
    assert purge(storage, "--age-days", "30", "--yes").returncode == 0
    assert left(storage) == {ahead}


# Sessions of the future


def test_sessions_of_the_future_are_named_and_go_last(storage: Path) -> None:
    near = save(storage, -300)  # clocks differ by that much
    ahead = {save(storage, -DAY_SECS * (number + 1), data=b"x" * 1000) for number in range(2)}
    old = [save(storage, DAY_SECS * (9 - number), data=b"x" * 1000) for number in range(3)]
    for words in (["stats"], ["list"], ["check"], ["prune-size", "--max-mb", "2500B"]):
        done = run_tool(*words, "--storage-dir", storage)
        found = [item for item in events(done.stderr) if item["event"] == "storage_manager.anomaly"]
        [told] = [item for item in found if item["kind"] == "future"]
        assert (told["@l"], told["count"], told["size_bytes"]) == ("Warning", 2, 2000)
        assert {example[:36] for example in told["examples"]} == ahead
        assert near not in str(told)
        if words == ["check"]:
            assert done.returncode == 1 and "session" in done.stdout and "compare the clocks" in done.stdout
        if words == ["stats"]:
            assert "future" in done.stdout
    assert done.returncode == 0
    assert left(storage) == {near, *ahead}, "never ahead of older ones"
    assert run_tool("prune-size", "--max-mb", "1000B", "--storage-dir", storage).returncode == 0
    assert not set(old) & blobs(storage) and len(left(storage)) == 1
