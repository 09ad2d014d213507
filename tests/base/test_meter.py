"""The line that shows what takes long: gone before anything else, and nowhere but on a terminal."""

from __future__ import annotations

import os
import pty
import re
import signal
import struct
import termios
import time
from collections.abc import Iterator
from fcntl import ioctl
from pathlib import Path
from subprocess import DEVNULL

import pytest
from stores import blobs, hurried_command, make_store, read_entries
from terminals import Terminal, rendered

from storage_manager.base import quantity
from storage_manager.base.clock import Clock
from storage_manager.base.log import EventLog, build_logger
from storage_manager.base.meter import Meter
from storage_manager.store.directory import open_store
from storage_manager.store.lock import acquire_lock

AT_ONCE = {"base.meter.QUIET_SECS": 0.0, "base.meter.REDRAW_SECS": 0.0}
PRUNE = ("prune-size", "--max-mb", "500B")


class Watched:
    """A meter on a terminal of which the columns are known, with a clock that is set by hand."""

    def __init__(self, columns: int) -> None:
        self.ours, theirs = pty.openpty()
        self.fd = theirs
        ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.now = 100.0
        self.written: list[str] = []
        self.meter = Meter(theirs, lambda text: self.written.append(text.decode("ascii")), lambda: self.now)
        self.clock = Clock()
        self.clock.meter = self.meter

    @property
    def screen(self) -> str:
        return rendered("".join(self.written))

    def pass_secs(self, secs: float, steps: int = 0) -> str:
        self.now += secs
        self.clock.progress(steps)
        return self.screen

    def close(self) -> None:
        os.close(self.ours)
        os.close(self.fd)


@pytest.fixture
def watched() -> Iterator[Watched]:
    watched = Watched(80)
    yield watched
    watched.close()


def test_what_is_done_within_a_second_is_not_shown(watched: Watched) -> None:
    with watched.clock.doing("deleting sessions", 10):
        for _ in range(9):
            watched.pass_secs(0.1, 1)
    watched.pass_secs(5, 1)
    assert watched.written == []


def test_what_takes_longer_is_shown_with_share_rest_and_rate_and_erased_at_the_end(watched: Watched) -> None:
    with watched.clock.doing("deleting sessions", 50_000):
        shown = watched.pass_secs(2, 12_345)
        assert shown == "deleting sessions  12,345 of 50,000  24 %  6 s left  6,172/s"
    assert watched.screen == "" and watched.written[-1] == "\r\x1b[K"


def test_without_a_total_there_is_no_share_and_before_the_first_step_only_the_time(watched: Watched) -> None:
    with watched.clock.doing("listing the files"):
        assert watched.pass_secs(3) == "listing the files  3 s"
        assert watched.pass_secs(1, 2000) == "listing the files  2,000  500/s"
    with watched.clock.doing("reading metadata.json", 4 << 20, quantity.size):
        assert watched.pass_secs(2, 1 << 20).startswith("reading metadata.json  1.0 MB of 4.0 MB  25 %  6 s left")


def test_it_is_drawn_ten_times_a_second_at_most(watched: Watched) -> None:
    with watched.clock.doing("deleting sessions", 10_000):
        for _ in range(4000):
            watched.pass_secs(0.001, 1)
        assert 28 <= len(watched.written) <= 31


def test_a_task_within_another_stands_for_it_until_it_is_done(watched: Watched) -> None:
    with watched.clock.doing("deleting sessions", 10):
        watched.pass_secs(2, 5)
        with watched.clock.doing("removing entries"):
            assert watched.screen == "removing entries  0 s"
            assert watched.pass_secs(4) == "removing entries  4 s"
        assert watched.screen.startswith("deleting sessions  5 of 10")


def test_an_exception_erases_it(watched: Watched) -> None:
    with pytest.raises(KeyError), watched.clock.doing("deleting sessions"):
        watched.pass_secs(2)
        raise KeyError
    assert watched.screen == ""


@pytest.mark.parametrize("columns", [80, 40, 20, 10, 2, 1])
def test_it_is_shorter_than_the_terminal_is_wide(columns: int) -> None:
    watched = Watched(columns)
    with watched.clock.doing("deleting sessions", 1_000_000):
        shown = watched.pass_secs(2, 123_456)
    watched.close()
    assert len(shown) < columns and shown.startswith("deleting sessions"[: columns - 1])


def test_a_width_that_nobody_knows_is_80(watched: Watched) -> None:
    ioctl(watched.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 0, 0, 0, 0))
    with watched.clock.doing("x" * 100):
        assert watched.pass_secs(2) == "x" * 79


def test_nobody_watching_costs_next_to_nothing_and_somebody_watching_little(watched: Watched) -> None:
    def secs_for(clock: Clock, count: int) -> float:
        best = 1.0
        for _ in range(5):
            began = time.perf_counter()
            for _ in range(count):
                clock.progress(1)
            best = min(best, (time.perf_counter() - began) / count)
        return best

    assert secs_for(Clock(), 20_000) < 1e-6  # a tenth of that; machines are busy
    watched.meter._monotonic = time.monotonic
    with watched.clock.doing("deleting sessions", 100_000):
        assert secs_for(watched.clock, 20_000) < 1e-5


# On a terminal


def frames(raw: str) -> list[str]:
    return re.findall(r"\r([^\r\n\x1b]+)\x1b\[K", raw)


def test_a_prune_shows_each_thing_that_it_does_and_leaves_only_its_result(storage: Path) -> None:
    make_store(storage, 20, size=100)
    with Terminal(hurried_command(AT_ONCE, "--storage-dir", storage, *PRUNE)) as terminal:
        assert terminal.end() == 0
    for what in ("listing the files", "reading metadata.json", "deleting sessions  7 of 15", "removing entries"):
        assert what in terminal.raw
    assert terminal.screen == ["deleted 15 sessions, 1.5 KB; 500 B remain", ""]
    assert terminal.raw.isascii()


def test_events_stand_on_lines_of_their_own(storage: Path) -> None:
    make_store(storage, 20, size=100)
    words = hurried_command(AT_ONCE, "--storage-dir", storage, "--log-level", "INFO", *PRUNE)
    with Terminal(words, columns=60) as terminal:
        assert terminal.end() == 0
    assert "deleting sessions" in terminal.raw
    assert all(len(frame) < 60 for frame in frames(terminal.raw))
    *lines, rest = terminal.screen
    [result] = [line for line in lines if not re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ INFO ", line)]
    assert result.startswith("deleted 15 sessions") and rest == ""
    assert sum(".json" in line for line in lines) == 15


NOT_SHOWN = {
    "a terminal that can do nothing": ({"TERM": "dumb"}, PRUNE),
    "a terminal of no kind": ({"TERM": ""}, PRUNE),
    "JSON": ({}, ("--log-format", "json", *PRUNE)),
    "JSON by the environment": ({"GOFR_DIG_LOG_JSON": "1"}, PRUNE),
    "the loop": ({"GOFR_DIG_MAX_STORAGE_MB": "500B"}, ("run-loop", "--once")),
    "health": ({}, ("health",)),
}


@pytest.mark.parametrize("why", NOT_SHOWN)
def test_it_is_not_shown_where_it_would_disturb(storage: Path, why: str) -> None:
    make_store(storage, 20, size=100)
    env, words = NOT_SHOWN[why]
    with Terminal(hurried_command(AT_ONCE, "--storage-dir", storage, *words), env=env) as terminal:
        terminal.end()
    assert "\r\x1b" not in terminal.raw and not frames(terminal.raw)
    assert why == "health" or len(blobs(storage)) == 5


def test_the_question_stands_on_a_line_of_its_own(storage: Path) -> None:
    make_store(storage, 5, size=100)
    words = hurried_command(AT_ONCE, "--storage-dir", storage, "purge", "--age-days", "0")
    with Terminal(words) as terminal:
        terminal.read_until("(yes/no) ")
        assert "listing the files" in terminal.raw
        assert terminal.screen[0].startswith("5 sessions, 500 B, from ")
        assert terminal.screen[-1] == "Are you sure? (yes/no) "
        terminal.type("no\n")
        assert terminal.end() == 0
    assert terminal.screen[-2:] == ["cancelled; nothing was deleted", ""]


def test_a_wait_for_the_lock_is_shown_and_interrupted_with_a_sentence(storage: Path) -> None:
    make_store(storage, 3, size=100)
    log = EventLog(build_logger(None, True, 10))
    words = hurried_command(AT_ONCE, "--storage-dir", storage, *PRUNE, "--lock-timeout", "60")
    with open_store(str(storage)) as store, acquire_lock(store, log, Clock(), "test", 0.0, 60.0):
        with Terminal(words) as terminal:
            terminal.read_until("waiting for another prune, up to 60 s  0 s")
            terminal.type("\x03")
            assert terminal.end() == 130
    *_, told, rest = terminal.screen
    assert told.endswith("WARNING nothing was deleted; interrupted by SIGINT") and rest == ""


def test_an_interrupted_prune_says_in_one_sentence_what_was_done(storage: Path) -> None:
    guids = make_store(storage, 3000, size=100)
    with Terminal(hurried_command(AT_ONCE, "--storage-dir", storage, *PRUNE)) as terminal:
        terminal.read_until("deleting sessions  50 of")
        os.kill(terminal.process.pid, signal.SIGINT)
        assert terminal.end() == 130
    [told, rest] = terminal.screen
    left = blobs(storage)
    assert left == set(guids[-len(left) :]) == set(read_entries(storage))
    assert f"WARNING deleted {3000 - len(left):,} sessions, " in told and told.endswith("; interrupted by SIGINT")
    assert rest == ""


def test_a_job_in_the_background_draws_nothing(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "tcgetpgrp", lambda fd: os.getpgrp() + 1)
    with watched.clock.doing("deleting sessions"):
        watched.pass_secs(2, 1)
    assert watched.written == []


def test_a_terminal_that_nobody_reads_holds_nothing_up(storage: Path) -> None:
    make_store(storage, 3000, size=100)
    with Terminal(hurried_command(AT_ONCE, "--storage-dir", storage, *PRUNE), stdout=DEVNULL) as terminal:
        assert terminal.process.wait(30) == 0
    assert len(blobs(storage)) == 5
