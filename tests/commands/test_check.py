"""check: what is odd is named with its bytes and a remedy, and nothing changes without being asked for."""

from __future__ import annotations

import fcntl
import json
import os
import random
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from client import Client
from stores import (
    answered_late,
    blobs,
    event,
    events,
    hurried_command,
    leftovers,
    make_store,
    new_guid,
    read_entries,
    run_command,
    run_tool,
    write_entries,
)

ORPHAN = "44444444-4444-4444-8444-444444444444"
LOCK, PREV, DRAFT, TORN = ".prune_size.lock", ".metadata.json.prev", ".metadata.json.tmp", ".metadata.json.torn-2026-a"
LONG_AGO = 1_700_000_000


# An adoption waits for clients that might undo it. Here is none; test_repair.py has one.
HURRY = {"store.commit.WATCH_SECS": 0.0, "store.recovery.REWRITE_SECS": 0.0}


def check(storage: Path, *arguments: object, stdin: str | None = None) -> CompletedProcess[str]:
    return run_command(hurried_command(HURRY, "check", "--storage-dir", storage, *arguments), stdin=stdin)


def look(storage: Path, *arguments: object) -> dict[str, Any]:
    """The JSON of a check that does not fail."""
    done = check(storage, "--json", *arguments)
    assert "Traceback" not in done.stderr, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["exit_code"] == done.returncode == (0 if found["clean"] else 1), done.stderr
    return found


def kinds(found: dict[str, Any]) -> dict[str, int]:
    return {finding["kind"]: finding["count"] for finding in found["findings"]}


def put(storage: Path, name: str, data: bytes = b"x" * 7, mtime: float = LONG_AGO) -> Path:
    path = storage / name
    path.write_bytes(data)
    os.utime(path, (mtime, mtime))
    return path


def image(storage: Path) -> dict[str, bytes]:
    return {name: (storage / name).read_bytes() for name in os.listdir(storage) if (storage / name).is_file()}


# What it finds


def test_a_healthy_store_is_clean(storage: Path) -> None:
    make_store(storage, 3)
    done = check(storage)
    assert (done.returncode, done.stdout) == (0, "clean: 3 sessions\n")
    assert event(done.stderr, "storage_manager.check.summary")["@l"] == "Information"
    assert look(storage)["findings"] == []


@pytest.mark.parametrize("text", [None, "{}"])
def test_an_empty_store_is_clean(storage: Path, text: str | None) -> None:
    if text is not None:
        (storage / "metadata.json").write_text(text)
    assert check(storage).stdout == "clean: 0 sessions\n"


def make_orphan(storage: Path) -> tuple[str, int]:
    put(storage, f"{ORPHAN}.json")
    return "orphan", 7


def make_dangling(storage: Path) -> tuple[str, int]:
    (storage / f"{list(read_entries(storage))[0]}.json").unlink()
    return "dangling", 0


def make_corrupt(storage: Path) -> tuple[str, int]:
    entries = read_entries(storage)
    entries[list(entries)[0]]["created_at"] = "when?"
    write_entries(storage, entries)
    return "corrupt", 1000


def make_not_a_file(storage: Path) -> tuple[str, int]:
    (storage / f"{ORPHAN}.json").mkdir()
    return "not_a_file", 0


def make_link(storage: Path) -> tuple[str, int]:
    (storage / f"{ORPHAN}.json").symlink_to("/etc/passwd")
    return "not_a_file", 0


def make_draft(storage: Path) -> tuple[str, int]:
    put(storage, DRAFT)
    return "leftover", 7


def make_previous(storage: Path) -> tuple[str, int]:
    put(storage, f"{PREV}.3", b"{}")
    return "leftover", 2


def make_torn(storage: Path) -> tuple[str, int]:
    put(storage, TORN)
    return "leftover", 7


def make_odd_leftover(storage: Path) -> tuple[str, int]:
    """Every run would fail at it."""
    (storage / PREV).symlink_to("metadata.json")
    return "leftover", 0


def make_dead_lock(storage: Path) -> tuple[str, int]:
    put(storage, LOCK, json.dumps({"pid": 2**22 + 1, "host": socket.gethostname()}).encode())
    return "lock", os.path.getsize(storage / LOCK)


def make_foreign_lock(storage: Path) -> tuple[str, int]:
    put(storage, LOCK, b"pid=77 prune", time.time())
    return "lock", 12


def make_special_lock(storage: Path) -> tuple[str, int]:
    os.mkfifo(storage / LOCK)
    return "lock", 0


def make_drift(storage: Path) -> tuple[str, int]:
    put(storage, f"{list(read_entries(storage))[0]}.json", b"x" * 990)
    return "drift", 10


@pytest.mark.parametrize(
    "make",
    [make_orphan, make_dangling, make_corrupt, make_not_a_file, make_link, make_draft, make_previous, make_torn,
     make_odd_leftover, make_dead_lock, make_foreign_lock, make_special_lock, make_drift],
)  # fmt: skip
def test_each_oddity_is_told_with_its_bytes_and_a_remedy(storage: Path, make: Any) -> None:
    make_store(storage, 3)
    kind, size_bytes = make(storage)
    before = image(storage)
    found = look(storage)
    (finding,) = found["findings"]
    assert (finding["kind"], finding["count"], finding["size_bytes"]) == (kind, 1, size_bytes)
    assert finding["needs_attention"] and finding["remedy"] and len(finding["examples"]) == 1
    assert not found["clean"]
    done = check(storage)
    assert done.returncode == 1
    example = finding["examples"][0].partition(", last touched")[0]  # that was another second
    assert finding["remedy"] in done.stdout and example in done.stdout
    summary = event(done.stderr, "storage_manager.check.summary")
    assert (summary["kinds"], summary["exit_code"], summary["@l"]) == ({kind: 1}, 1, "Warning")
    assert image(storage) == before, "looking has changed something"


def test_a_save_under_way_is_everyday_life(storage: Path) -> None:
    make_store(storage, 1)
    put(storage, f"{ORPHAN}.json", mtime=time.time())
    found = look(storage)
    assert kinds(found) == {"in_flight": 1} and found["clean"]


def test_a_blob_from_the_future_is_none(storage: Path) -> None:
    """It would be in flight for years, and nobody would adopt it."""
    put(storage, f"{ORPHAN}.json", mtime=time.time() + 86_400)
    found = look(storage)
    assert kinds(found) == {"in_flight": 1} and not found["clean"]
    assert "clocks" in found["findings"][0]["remedy"] and "future" in found["findings"][0]["examples"][0]


def test_five_examples_are_enough(storage: Path) -> None:
    rng = random.Random(5)
    for _ in range(7):
        put(storage, f"{new_guid(rng)}.json")
    assert len(look(storage)["findings"][0]["examples"]) == 5
    assert "    ...\n" in check(storage).stdout


def test_files_of_others_are_none_of_ours(storage: Path) -> None:
    make_store(storage, 1)
    for name in (".metadata.json.swp", "metadata.json.bak", ".metadata.json.previous", "notes.txt"):
        put(storage, name)
    assert look(storage)["clean"]


def test_hostile_names_are_shown_escaped(storage: Path) -> None:
    put(storage, TORN + "\x1b[2J\n")
    done = check(storage)
    assert "\x1b" not in done.stdout and r"\x1b[2J\x0a" in done.stdout


def test_the_wrong_directory_is_not_clean(storage: Path) -> None:
    make_store(storage / "sessions", 2)
    done = check(storage)
    assert done.returncode == 1
    assert str(storage / "sessions") in done.stdout and done.stdout.endswith("probably the wrong directory\n")
    assert look(storage)["suggested_dirs"] == [str(storage / "sessions")]


@pytest.mark.parametrize("arguments", [[], ["--repair", "--yes"], ["--adopt-orphans", "lost"]])
def test_damaged_metadata_is_an_error_and_stays(storage: Path, arguments: list[str]) -> None:
    (storage / "metadata.json").mkdir()  # unlike torn text, nobody waits for it to become whole
    put(storage, f"{ORPHAN}.json")
    done = check(storage, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert event(done.stderr, "storage_manager.metadata_corrupt")
    assert blobs(storage) == {ORPHAN}


def test_a_missing_directory_is_an_error(storage: Path) -> None:
    done = check(storage / "nowhere")
    assert (done.returncode, done.stdout) == (1, "")


# Every orphan


def test_verbose_names_every_orphan_with_date_age_and_size_oldest_first(storage: Path) -> None:
    rng = random.Random(5)
    made = [put(storage, f"{new_guid(rng)}.json", b"x" * 2048, LONG_AGO + 60 * number).name for number in range(7)]
    shown = check(storage, "--verbose").stdout
    start = shown.splitlines().index("")
    header, *rows, end, sentence = shown.splitlines()[start + 1 :]
    assert header.split() == ["BLOB", "WITHOUT", "AN", "ENTRY", "MODIFIED", "(UTC)", "AGE", "SIZE"]
    assert [row.split()[0] for row in rows] == made and (end, sentence) == ("", "7 orphans")
    assert rows[1].split()[1:3] == ["2023-11-14", "22:14"] and rows[1].split()[4:] == ["d", "2.0", "KB"]
    assert all(len(line) <= 80 for line in [header, *rows])
    assert [shown.count(name) for name in made] == [1] * 7 and "    ..." not in shown
    assert shown == check(storage, "-v").stdout


def test_verbose_says_of_a_young_one_from_when_it_counts(storage: Path) -> None:
    now = time.time()
    put(storage, f"{ORPHAN}.json", mtime=now - 300)
    put(storage, f"{ORPHAN}.md", mtime=now + 86_400)
    done = check(storage, "--verbose")
    for name, modified, age in ((f"{ORPHAN}.json", now - 300, "5 min"), (f"{ORPHAN}.md", now + 86_400, "future")):
        counts_from = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(modified + 600))
        [place] = [number for number, line in enumerate(done.stdout.splitlines()) if line.startswith(name)]
        row, young = done.stdout.splitlines()[place : place + 2]
        assert f" {age}  " in row and young == f"    in flight: counts as an orphan from {counts_from} UTC"


def test_verbose_of_a_store_without_orphans_says_no_more(storage: Path) -> None:
    make_store(storage, 1)
    make_dangling(storage)
    assert check(storage, "--verbose").stdout == check(storage).stdout


def test_as_json_every_orphan_is_named_where_it_is_asked_for(storage: Path) -> None:
    put(storage, f"{ORPHAN}.json")
    assert look(storage)["orphans"] is None
    assert look(storage, "--verbose")["orphans"] == [
        {
            "name": f"{ORPHAN}.json",
            "state": "orphan",
            "modified_at": "2023-11-14T22:13:20Z",
            "orphan_from": "2023-11-14T22:23:20Z",
            "size_bytes": 7,
        }
    ]


@pytest.mark.parametrize("mtime", [-62_135_596_800, 253_402_300_799, 1e17])
def test_verbose_bears_the_ends_of_the_calendar(storage: Path, mtime: float) -> None:
    try:
        put(storage, f"{ORPHAN}.json", mtime=mtime)
    except OSError:
        pytest.skip("this file system cannot keep such a time")
    assert f"{ORPHAN}.json" in check(storage, "--verbose").stdout
    assert len(look(storage, "--verbose")["orphans"]) == 1


# Beside a run


@contextmanager
def running(storage: Path) -> Iterator[None]:
    """A run at work, as others see it: its lock, its files, and a blob that it has just deleted."""
    with open(storage / LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        json.dump({"pid": os.getpid(), "host": socket.gethostname(), "command": "run-loop"}, lock)
        lock.flush()
        put(storage, DRAFT, mtime=time.time())
        os.link(storage / "metadata.json", storage / PREV)
        (storage / f"{list(read_entries(storage))[0]}.json").unlink()
        yield


def test_a_store_that_is_being_pruned_is_clean(storage: Path) -> None:
    make_store(storage, 3)
    with running(storage):
        found = look(storage)
        assert found["clean"]
        assert kinds(found) == {"dangling": 1, "leftover": 2, "lock": 1}
        assert not any(finding["needs_attention"] for finding in found["findings"])
        assert "a run is at work" in check(storage).stdout


def test_what_earlier_runs_kept_aside_is_told_beside_a_run_too(storage: Path) -> None:
    make_store(storage, 3)
    put(storage, TORN)
    with running(storage):
        assert not look(storage)["clean"]


@pytest.mark.parametrize("arguments", [["--repair", "--yes"], ["--adopt-orphans", "lost"]])
def test_changes_wait_for_their_turn(storage: Path, arguments: list[str]) -> None:
    make_store(storage, 3)
    put(storage, f"{ORPHAN}.json")
    with running(storage):
        before = image(storage)
        done = check(storage, *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert event(done.stderr, "storage_manager.prune.lock_busy")["holder_pid"] == os.getpid()
        assert image(storage) == before


# Repair


def test_a_repair_removes_what_refers_to_nothing(storage: Path) -> None:
    make_store(storage, 3)
    make_dangling(storage)
    for make in (make_draft, make_previous, make_torn, make_dead_lock):
        make(storage)
    found = look(storage, "--repair", "--yes")
    assert found["clean"] and found["findings"] == []
    assert (found["swept_count"], found["removed_files"], found["kept_files"]) == (1, [TORN], [])
    assert leftovers(storage) == []
    assert set(read_entries(storage)) == blobs(storage) and len(blobs(storage)) == 2


def test_a_repair_removes_no_more_entries_than_was_asked_about(storage: Path) -> None:
    guids = make_store(storage, 6)

    def lose(count: int) -> None:
        for guid in guids[:count]:
            (storage / f"{guid}.json").unlink(missing_ok=True)

    lose(1)
    words = "check", "--repair", "--storage-dir", storage
    code, _, err = answered_late(lambda: lose(3), *words)
    assert code == 1 and len(read_entries(storage)) == 6
    assert "there are 3 dangling entries now, and the question was about 1: run it again; nothing was changed" in err
    assert answered_late(lambda: None, *words)[0] == 0
    assert set(read_entries(storage)) == set(guids[3:])


def test_a_repair_leaves_the_rest_and_the_exit_code_tells(storage: Path) -> None:
    make_store(storage, 3)
    make_dangling(storage)
    orphan = put(storage, f"{ORPHAN}.json")
    found = look(storage, "--repair", "--yes")
    assert (kinds(found), found["exit_code"], found["swept_count"]) == ({"orphan": 1}, 1, 1)
    assert orphan.exists()


def test_a_repair_of_a_clean_store_takes_no_lock_and_asks_nothing(storage: Path) -> None:
    make_store(storage, 1)
    before = image(storage)
    done = check(storage, "--repair", stdin="")
    assert (done.returncode, image(storage)) == (0, before)
    assert "sure" not in done.stderr


def test_yes_is_needed(storage: Path) -> None:
    make_store(storage, 2)
    make_dangling(storage)
    done = check(storage, "--repair", stdin="no\n")
    assert done.returncode == 1 and "cancelled; nothing was removed" in done.stdout
    assert event(done.stderr, "storage_manager.repair.cancelled")
    assert "This removes 1 dangling entry and 0 left-over files" in done.stderr
    assert len(read_entries(storage)) == 2
    assert check(storage, "--repair", stdin="yes\n").returncode == 0
    assert len(read_entries(storage)) == 1


def test_where_nobody_answers_nothing_is_done(storage: Path) -> None:
    make_store(storage, 2)
    make_dangling(storage)
    put(storage, f"{ORPHAN}.json")
    done = check(storage, "--repair", "--adopt-orphans", "lost", stdin="")
    assert (done.returncode, done.stdout) == (1, "")
    assert "--yes" in event(done.stderr, "storage_manager.command_failed")["@m"]
    assert ORPHAN not in read_entries(storage) and len(read_entries(storage)) == 2


# Adoption


def test_orphans_are_sessions_again(storage: Path) -> None:
    guids = make_store(storage, 2)
    text = (storage / "metadata.json").read_bytes()
    put(storage, f"{ORPHAN}.md", b"hello")
    done = check(storage, "--adopt-orphans", "lost & found")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "adopted 1 orphan, 5 B\nclean: 3 sessions\n"
    entries = read_entries(storage)
    assert list(entries) == [*guids, ORPHAN]
    assert entries[ORPHAN] == {
        "format": "md", "size": 5, "created_at": "2023-11-14T22:13:20", "group": "lost & found"
    }  # fmt: skip
    assert (storage / "metadata.json").read_bytes().startswith(text[:-2]), "the others keep their bytes"
    told = event(done.stderr, "storage_manager.adopt.adopted")
    assert (told["guid"], told["size_bytes"], told["created_at"]) == (ORPHAN, 5, "2023-11-14T22:13:20Z")
    assert event(done.stderr, "storage_manager.adopt.summary")["adopted_count"] == 1
    assert Client(storage).get(ORPHAN) == b"hello"
    assert ORPHAN in run_tool("list", "--storage-dir", storage).stdout
    assert run_tool("prune-size", "--max-mb", "2000B", "--storage-dir", storage).returncode == 0
    assert blobs(storage) == set(guids), "it was the oldest"


def test_without_orphans_there_is_nothing_to_adopt(storage: Path) -> None:
    make_store(storage, 1)
    before = image(storage)
    found = look(storage, "--adopt-orphans", "lost")
    assert (found["adopted_count"], found["left_count"]) == (0, 0)
    assert image(storage) == before


def test_metadata_that_is_missing_is_created(storage: Path) -> None:
    blob = put(storage, f"{ORPHAN}.json")
    blob.chmod(0o664)
    assert look(storage, "--adopt-orphans", "lost")["adopted_count"] == 1
    assert read_entries(storage)[ORPHAN]["group"] == "lost"
    assert (storage / "metadata.json").stat().st_mode & 0o7777 == 0o664
    assert leftovers(storage) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_metadata_that_is_created_belongs_to_the_client(storage: Path) -> None:
    blob = put(storage, f"{ORPHAN}.json")
    blob.chmod(0o4755)
    os.chown(blob, 1234, 1235)
    assert look(storage, "--adopt-orphans", "lost")["clean"]
    status = (storage / "metadata.json").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (1234, 1235, 0o644)


def test_what_no_entry_can_name_is_left(storage: Path) -> None:
    make_store(storage, 1)
    twin = "55555555-5555-4555-8555-555555555555"
    for name in (f"{ORPHAN}.JSON", f"{twin}.json", f"{twin}.md", f"{twin[:-1]}6.tar.gz"):
        put(storage, name)
    done = check(storage, "--adopt-orphans", "lost")
    assert done.returncode == 1
    assert done.stdout.startswith("adopted 0 orphans, 0 B; 4 could not be\n")
    assert len(read_entries(storage)) == 1


def test_upper_case_guids_are_adopted_as_they_are(storage: Path) -> None:
    upper, lower = "ABCDEFAB-ABCD-4BCD-8BCD-ABCDEFABCDEF", "abcdefab-abcd-4bcd-8bcd-abcdefabcdef"
    put(storage, f"{upper}.json")
    put(storage, f"{lower}.json")
    assert look(storage, "--adopt-orphans", "lost")["adopted_count"] == 2
    assert set(read_entries(storage)) == {upper, lower}


@pytest.mark.parametrize("mtime", [-62_135_596_800, -1, 0])
def test_odd_times_are_adopted_as_they_are(storage: Path, mtime: float) -> None:
    path = put(storage, f"{ORPHAN}.json", mtime=mtime)
    if path.stat().st_mtime != mtime:
        pytest.skip("this file system cannot keep such a time")
    assert look(storage, "--adopt-orphans", "lost")["clean"]
    assert "corrupt" not in run_tool("list", "--verbose", "--storage-dir", storage).stdout


@pytest.mark.parametrize("group", ["", "  ", "a\nb", "\x1b[2J", "\u202e", b"\xff\xfe"])
def test_a_group_that_cannot_be_shown_is_refused(storage: Path, group: str | bytes) -> None:
    put(storage, f"{ORPHAN}.json")
    name = os.fsdecode(group) if isinstance(group, bytes) else group
    done = check(storage, f"--adopt-orphans={name}")
    assert (done.returncode, done.stdout) == (64, "")
    assert "Traceback" not in done.stderr and not (storage / "metadata.json").exists()


def test_a_group_may_have_any_letters(storage: Path) -> None:
    put(storage, f"{ORPHAN}.json")
    assert look(storage, "--adopt-orphans", 'Größe "1" \\ 漢字')["clean"]
    assert read_entries(storage)[ORPHAN]["group"] == 'Größe "1" \\ 漢字'


def test_adoption_comes_before_the_repair(storage: Path) -> None:
    """Unfinished text that names an orphan is of no more use once the orphan has an entry."""
    make_store(storage, 2)
    put(storage, TORN, f'{{"{ORPHAN}": {{"format'.encode())
    put(storage, f"{ORPHAN}.json")
    found = look(storage, "--repair", "--yes", "--adopt-orphans", "lost")
    assert found["clean"] and (found["adopted_count"], found["removed_files"]) == (1, [TORN])


def test_text_that_is_kept_is_named(storage: Path) -> None:
    put(storage, TORN, f'{{"{ORPHAN}": {{"format'.encode())
    put(storage, f"{ORPHAN}.json")
    done = check(storage, "--repair", "--yes")
    assert done.returncode == 1 and f"kept {TORN}: " in done.stdout
    assert event(done.stderr, "storage_manager.repair.summary")["kept_count"] == 1


# Its dry run

TWIN = "55555555-5555-4555-8555-555555555555"


def test_a_dry_run_names_what_would_be_adopted_and_changes_nothing(storage: Path) -> None:
    guids = make_store(storage, 1)
    for name in (f"{ORPHAN}.json", f"{TWIN}.json", f"{TWIN}.md", f"{guids[0]}.md", f"{TWIN[:-1]}6.JSON"):
        put(storage, name)
    before = image(storage), os.stat(storage).st_mtime_ns
    done = check(storage, "--adopt-orphans", "lost", "--dry-run")
    assert (image(storage), os.stat(storage).st_mtime_ns) == before
    first, *rest = done.stdout.splitlines()
    assert first == f"adopt   {ORPHAN}.json  2023-11-14 22:13        7 B"
    left = dict(zip((line.split()[1] for line in rest[:8:2]), map(str.strip, rest[1:8:2])))
    assert left == {
        f"{TWIN}.json": "several blobs have this guid",
        f"{TWIN}.md": "several blobs have this guid",
        f"{guids[0]}.md": "this guid has an entry already",
        f"{TWIN[:-1]}6.JSON": "no entry can have this name",
    }
    assert rest[8] == "would adopt 1 orphan, 7 B; 4 would be left"
    assert (done.returncode, rest[-1]) == (1, "would remain: 4 orphans")
    told = event(done.stderr, "storage_manager.check.summary")
    assert (told["dry_run"], told["kinds"], told["@m"]) == (True, {"orphan": 4}, "would remain: 4 orphans")
    assert not [item for item in events(done.stderr) if "adopt" in item["event"]]


def test_a_dry_run_of_a_store_that_would_be_clean_ends_with_0(storage: Path) -> None:
    make_store(storage, 2)
    put(storage, f"{ORPHAN}.json")
    done = check(storage, "--adopt-orphans", "lost", "--dry-run")
    assert done.returncode == 0 and done.stdout.endswith("would adopt 1 orphan, 7 B\nwould be clean: 3 sessions\n")


def adoption(found: dict[str, Any]) -> dict[str, Any]:
    """What a dry run has to foresee."""
    keys = ("clean", "exit_code", "session_count", "usage_bytes", "adopted_count", "adopted_bytes", "left_count")
    return {**{key: found[key] for key in keys}, "kinds": kinds(found)}


@pytest.mark.parametrize("orphan", ["json", "JSON", None])
@pytest.mark.parametrize(
    "make",
    [None, make_dangling, make_corrupt, make_draft, make_previous, make_torn, make_dead_lock, make_drift],
)  # fmt: skip
def test_a_dry_run_foresees_what_the_adoption_comes_to(storage: Path, make: Any, orphan: str | None) -> None:
    make_store(storage, 3)
    if make is not None:
        make(storage)
    if orphan is not None:
        put(storage, f"{ORPHAN}.{orphan}")
    put(storage, f"{TWIN}.json", mtime=time.time())
    foreseen = look(storage, "--adopt-orphans", "lost", "--dry-run")
    done = look(storage, "--adopt-orphans", "lost")
    assert adoption(foreseen) == adoption(done)
    assert (foreseen["dry_run"], done["dry_run"], done["plan"]) == (True, False, None)
    assert len(foreseen["plan"]) == done["adopted_count"] + done["left_count"]


def test_a_dry_run_can_be_made_beside_a_run(storage: Path) -> None:
    make_store(storage, 3)
    put(storage, f"{ORPHAN}.json")
    with running(storage):
        before = image(storage)
        assert look(storage, "--adopt-orphans", "lost", "--dry-run")["adopted_count"] == 1
        assert image(storage) == before


def test_a_repair_has_no_dry_run(storage: Path) -> None:
    make_store(storage, 2)
    make_dangling(storage)
    done = check(storage, "--repair", "--yes", "--dry-run")
    assert (done.returncode, done.stdout) == (64, "")
    assert "`check` shows" in event(done.stderr, "storage_manager.command_failed")["@m"]
    assert len(read_entries(storage)) == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_is_not_writable_is_told(storage: Path) -> None:
    make_store(storage, 1)
    put(storage, f"{ORPHAN}.json")
    storage.chmod(0o555)
    done = check(storage, "--adopt-orphans", "lost")
    storage.chmod(0o755)
    assert done.returncode == 1 and events(done.stderr)[-2]["event"] == "storage_manager.adopt.failed"
