"""Ctrl-C at a terminal: a command ends with what was done, in one sentence, wherever it was."""

from __future__ import annotations

import os
import re
import signal
import uuid
from pathlib import Path

import pytest
from stores import blobs, command, hurried_command, make_store, read_entries, write_entries
from terminals import Terminal

from storage_manager.cli import main
from storage_manager.commands import check, outcome
from storage_manager.store import commit, recovery

CTRL_C = "\x03"
SENTENCE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ WARNING (.*)")


def odd_store(storage: Path) -> list[str]:
    """With an orphan and a dangling entry; returns the guids of the sessions."""
    guids = make_store(storage, 4)
    (storage / f"{guids.pop()}.json").unlink()
    orphan = storage / f"{uuid.uuid4()}.json"
    orphan.write_bytes(b"x")
    os.utime(orphan, (1, 1))
    return guids


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("purge", "--age-days", "0"), "nothing was deleted; interrupted by SIGINT"),
        (("check", "--repair"), "nothing was changed; interrupted by SIGINT"),
    ],
)
def test_at_the_question_nothing_has_been_done(storage: Path, words: tuple[str, ...], sentence: str) -> None:
    odd_store(storage)
    before = (blobs(storage), read_entries(storage))
    with Terminal(command("--storage-dir", storage, *words)) as terminal:
        terminal.read_until("(yes/no) ")
        terminal.type(CTRL_C)
        assert terminal.end() == 130
    told = SENTENCE.fullmatch(terminal.screen[-2])
    assert told and told.group(1) == sentence and terminal.screen[-1] == ""
    assert (blobs(storage), read_entries(storage)) == before


@pytest.mark.parametrize("words", [("list",), ("stats",), ("check",), ("purge", "--dry-run")], ids=" ".join)
def test_a_look_that_is_interrupted_is_a_sentence(storage: Path, words: tuple[str, ...]) -> None:
    odd_store(storage)
    write_entries(storage, {})
    (storage / "metadata.json").write_text("{")  # as if a client were writing it
    constants = {"base.meter.QUIET_SECS": 0.0}
    with Terminal(hurried_command(constants, "--storage-dir", storage, *words)) as terminal:
        terminal.read_until("looking at the store  0 s")
        terminal.type(CTRL_C)
        assert terminal.end() == 130
    [told, rest] = terminal.screen
    found = SENTENCE.fullmatch(told)
    assert found and found.group(1).endswith("interrupted by SIGINT") and rest == ""


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch, here: None) -> None:
    monkeypatch.setattr(commit, "WATCH_SECS", 0.0)
    monkeypatch.setattr(recovery, "REWRITE_SECS", 0.0)


def interrupt_at(monkeypatch: pytest.MonkeyPatch, place: object, name: str, call: int) -> None:
    """SIGINT comes right before a certain call of a function."""
    real, calls = getattr(place, name), []

    def interrupted(*arguments: object, **options: object) -> object:
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments, **options)

    monkeypatch.setattr(place, name, interrupted)


def told(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = main(["--log-format", "text", "--log-level", "WARNING", *words])
    return code, capfd.readouterr().err.splitlines()[-1].split(maxsplit=3)[3]


ADOPT = ("check", "--repair", "--yes", "--adopt-orphans", "back")


@pytest.mark.parametrize(
    ("name", "call", "done"),
    [
        ("_look", 1, "nothing was changed"),
        ("adopt", 1, "nothing was changed"),
        ("repair", 1, "1 orphan was adopted"),
        ("_look", 2, "1 orphan was adopted; 1 dangling entry was removed"),
    ],
)
def test_a_repair_and_an_adoption_tell_of_both(
    storage: Path, at_once: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
    name: str, call: int, done: str,
) -> None:  # fmt: skip
    odd_store(storage)
    interrupt_at(monkeypatch, check, name, call)
    assert told(capfd, *ADOPT, "--storage-dir", str(storage)) == (130, f"{done}; interrupted by SIGINT")


def test_a_signal_in_an_adoption_waits_for_its_end(
    storage: Path, at_once: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    guids = odd_store(storage)
    interrupt_at(monkeypatch, commit.Committer, "put_back", 1)
    code, sentence = told(capfd, *ADOPT, "--storage-dir", str(storage))
    assert code == 130 and len(read_entries(storage)) == len(guids) + 2
    assert sentence in [f"{upto}1 orphan was adopted; interrupted by SIGINT" for upto in ("", "up to ")]


def test_a_result_that_is_cut_off_is_told_in_a_sentence(
    storage: Path, at_once: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    make_store(storage, 3)
    interrupt_at(monkeypatch, outcome, "_show", 1)
    code, sentence = told(capfd, "prune-size", "--max-mb", "2000B", "--storage-dir", str(storage))
    assert (code, sentence) == (130, "deleted 1 session, 1000 B; 2.0 KB remain; interrupted by SIGINT")
    assert len(blobs(storage)) == 2


def test_a_failure_behind_an_adoption_tells_of_it(
    storage: Path, at_once: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    odd_store(storage)
    real, looks = check._look, []

    def look(*arguments: object) -> object:
        looks.append(1)
        if len(looks) == 2:
            os.rename(storage, storage.with_name("moved"))
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(check, "_look", look)
    code, sentence = told(capfd, *ADOPT, "--storage-dir", str(storage))
    assert code == 1 and sentence.endswith("; 1 orphan was adopted; 1 dangling entry was removed")
