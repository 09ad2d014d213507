"""The dry run in text: the sum comes first, and the list does not scroll it away."""

from __future__ import annotations

import os
import subprocess
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from stores import clean_environment, command, make_store, run_tool
from terminals import Terminal

from storage_manager.commands.preview import preview
from storage_manager.jobs.plan import Keep, Plan
from storage_manager.store.snapshot import Session

NOW = datetime(2026, 3, 1, 12)


def session(number: int, days: float, size_bytes: int, group: str | None = None) -> Session:
    guid = f"00000000-0000-4000-8000-{number:012}"
    return Session(NOW - timedelta(days=days), guid, "json", group, None, size_bytes)


def plan(victims: list[Session], kept: list[Session], **more: object) -> Plan:
    keeps = [Keep("not_needed", "within the limit", kept)] if kept else []
    return Plan(victims, (), "too old", keeps, 0, 0, None, {})._replace(**more)


def lines(plan: Plan, verbose: bool = False, screen: os.terminal_size | None = None) -> list[str]:
    listed = (f"delete  {victim.guid}" for victim in plan.victims)
    return list(preview(plan, listed, NOW, verbose, screen))


def test_each_group_is_summed_up_with_its_first_and_last_and_the_largest_comes_first() -> None:
    victims = [session(1, 40, 100, "a"), session(2, 30, 5000), session(3, 20, 300, "a")]
    assert lines(plan(victims, [session(4, 10, 100)])) == [
        "",
        "GROUP  SESSIONS    SIZE  FROM (UTC)        TO (UTC)",
        "-             1  4.9 KB  2026-01-30 12:00  2026-01-30 12:00",
        "a             2   400 B  2026-01-20 12:00  2026-02-09 12:00",
        "",
        "The oldest session is 40 d old; the oldest that would remain is 10 d old.",
        "",
        *(f"delete  {victim.guid}" for victim in victims),
    ]


def test_the_oldest_that_stays_need_not_be_younger_than_what_goes() -> None:
    kept = plan([session(1, 40, 1)], [session(2, 90, 1), session(3, 1, 1)])
    assert "The oldest session is 90 d old; the oldest that would remain is 90 d old." in lines(kept)


def test_when_nothing_would_remain_it_says_so() -> None:
    assert "The oldest session is 40 d old; no session would remain." in lines(plan([session(1, 40, 1)], []))
    future = lines(plan([session(1, 40, 1)], [session(2, -9, 1)]))
    assert "The oldest session is 40 d old; the oldest that would remain is dated in the future." in future


def test_many_groups_share_a_row_unless_all_are_asked_for() -> None:
    victims = [session(number, 50 - number, 100 - number, f"g{number:02}") for number in range(30)]
    shown = lines(plan(victims, []))
    assert len(shown) == 1 + 10 + 3 + 20 + 1
    assert shown[10].split() == ["(22", "more)", "22", "1.8", "KB", "2026-01-18", "12:00", "2026-02-08", "12:00"]
    assert sum(line.startswith("g") for line in lines(plan(victims, []), verbose=True)) == 30


def test_orphans_have_no_retention() -> None:
    shown = lines(plan([session(1, 40, 1)], [], are_orphans=True))
    assert shown[1].split()[:2] == ["GROUP", "ORPHANS"] and not any("oldest" in line for line in shown)


def test_the_list_ends_after_20_lines_unless_all_are_asked_for(storage: Path) -> None:
    guids = make_store(storage, 3000, size=1)
    words = ("--storage-dir", storage, "purge", "--age-days", "0", "--dry-run")
    short, long = (run_tool(*words, *more).stdout.splitlines() for more in ([], ["--verbose"]))
    assert short[0] == long[0] == "would delete 3,000 sessions, 2.9 KB; 0 B would remain"
    assert short[-1] == "... and 2,980 more (--verbose shows all)"
    assert [line.split()[1] for line in short[-21:-1]] == guids[:20]
    assert [line.split()[1] for line in long if line.startswith("delete")] == guids


def test_what_is_swept_counts_among_the_20(storage: Path) -> None:
    guids = make_store(storage, 30, size=1)
    for guid in guids[:5]:
        (storage / f"{guid}.json").unlink()
    lines = run_tool("--storage-dir", storage, "purge", "--age-days", "0", "--dry-run").stdout.splitlines()
    assert [line.split()[0] for line in lines[-21:-1]] == ["sweep"] * 5 + ["delete"] * 15
    assert lines[-1] == "... and 10 more (--verbose shows all)"


def test_a_dry_run_of_which_nothing_comes_is_a_sentence(storage: Path) -> None:
    make_store(storage, 3)
    done = run_tool("--storage-dir", storage, "prune-size", "--max-mb", "1", "--dry-run")
    assert done.stdout == "would delete 0 sessions, 0 B; 2.9 KB would remain\n"


def test_what_keeps_the_target_from_being_met_stands_at_the_end(storage: Path) -> None:
    make_store(storage, 3, size=1000)
    done = run_tool("--storage-dir", storage, "prune-size", "--max-mb", "1000B", "--keep-last", "2", "--dry-run")
    *_, victim, stays, cause, remedy = done.stdout.splitlines()
    assert victim.startswith("delete")
    assert stays == "target not met: usage stays at 2.0 KB, above the target of 1000 B"
    assert cause == "    because of 2.0 KB keep last" and remedy.startswith("    to do: ")


@pytest.mark.parametrize(("rows", "shown"), [(50, 20), (24, 12), (10, 3)])
def test_on_a_terminal_the_sentence_stays_on_the_screen(rows: int, shown: int) -> None:
    """With it, the limit, a warning of two lines and a prompt, there are as many lines as the terminal has."""
    victims = [session(number, 50 - number, 1) for number in range(30)]
    found = lines(plan(victims, []), screen=os.terminal_size((80, rows)))
    assert sum(line.startswith("delete") for line in found) == shown
    assert found[-1] == f"... and {30 - shown} more (--verbose shows all)" and len(found) + 5 <= max(rows, 17)


@pytest.mark.parametrize(("rows", "groups", "shown"), [(40, 8, 20), (24, 8, 4), (20, 6, 3), (10, 3, 3)])
def test_many_groups_leave_room_for_the_list(rows: int, groups: int, shown: int) -> None:
    victims = [session(number, 50 - number, 1, f"g{number:02}") for number in range(30)]
    found = lines(plan(victims, []), screen=os.terminal_size((80, rows)))
    assert sum(line.startswith("g") for line in found) == groups
    assert sum(line.startswith("delete") for line in found) == shown
    assert rows == 10 or len(found) + 4 <= rows


def test_on_a_narrow_terminal_a_line_is_a_line(storage: Path) -> None:
    make_store(storage, 30, size=1, group="a group with a name that is not short at all")
    with Terminal(command("--storage-dir", storage, "purge", "--age-days", "0", "--dry-run")) as terminal:
        assert terminal.end() == 0
    assert max(map(len, terminal.screen)) == 80 and len(terminal.screen) == 21
    rows = [line for line in terminal.screen if line.startswith("delete")]
    assert len(rows) > 5 and all(line.endswith(" 1 B...") for line in rows), "the size is seen, too"


@pytest.mark.parametrize("columns", [80, 0], ids=["80 columns", "a size of 0"])
def test_on_a_terminal_the_sentence_stays_also_where_a_target_is_not_met(storage: Path, columns: int) -> None:
    make_store(storage, 30, size=1000)
    for number in range(9):
        orphan = storage / f"00000000-0000-4000-8000-{number:012}.json"
        orphan.write_bytes(bytes(1000))
        os.utime(orphan, (0, 0))
    env = {"GOFR_DIG_MAX_STORAGE_MB": "6000B"}
    with Terminal(command("--storage-dir", storage, "prune-size", "--dry-run"), env, columns) as terminal:
        assert terminal.end() == 1
    screen = terminal.screen
    assert screen[0].startswith("the limit is 5.9 KB, from ") and screen[1].startswith("would delete 27 sessions")
    wrapped = sum(-(-max(1, len(line)) // 80) for line in screen)
    assert wrapped == 24 and any(line.startswith("target not met: ") for line in screen)


def test_a_reader_that_goes_away_ends_the_list(storage: Path) -> None:
    make_store(storage, 3000, size=1)
    words = command("--storage-dir", storage, "purge", "--age-days", "0", "--dry-run", "-v")
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=clean_environment())
    assert process.stdout is not None and process.stdout.readline().startswith(b"would delete 3,000")
    process.stdout.close()
    assert process.wait(30) == 0
