"""The journal: what runs tell of their deletions, whatever ends them, and how it is read again."""

from __future__ import annotations

import errno
import json
import logging
import os
import random
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from stores import make_store, new_guid

from storage_manager.base import append
from storage_manager.base.clock import Clock
from storage_manager.base.errors import Interrupted, StoreError
from storage_manager.base.log import EventLog
from storage_manager.jobs import journal as journal_module
from storage_manager.jobs import repair
from storage_manager.jobs.history import STAYED, SWEPT, UNCERTAIN, Fate, Line, decode, deleted_by, fates, runs
from storage_manager.jobs.journal import ADOPTED, BATCH, DELETED, REPAIRED, HistoryFile, Journal
from storage_manager.jobs.policy import Limits, plan_prune
from storage_manager.jobs.prune import Job, dry_run, run
from storage_manager.jobs.work import Terms
from storage_manager.loop.status_file import is_one_place
from storage_manager.store.directory import Store
from storage_manager.store.snapshot import Session

WHY = "oldest first, over the limit"
STORE = "/srv/store"


class Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[Any] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(record)


@pytest.fixture
def warnings() -> Warnings:
    return Warnings()


@pytest.fixture
def log(warnings: Warnings) -> EventLog:
    logger = logging.Logger("test")
    logger.addHandler(warnings)
    return EventLog(logger)


@pytest.fixture
def file(tmp_path: Path) -> HistoryFile:
    return HistoryFile(str(tmp_path / "history"), STORE, "GOFR_DIG_HISTORY_FILE", str(tmp_path / "metadata.json"))


@pytest.fixture
def journal(file: HistoryFile, log: EventLog) -> Journal:
    return Journal(file, "run-loop", DELETED, Clock(), log, WHY)


def sessions(count: int) -> list[Session]:
    rng = random.Random(count)
    begin = datetime(2026, 1, 1)
    return [Session(begin + timedelta(hours=n), new_guid(rng), "json", None, 10, 10) for n in range(count)]


def read(file: HistoryFile, is_this_store: Callable[[str], bool] = lambda directory: True) -> list[Line]:
    return decode(Path(file.path).read_bytes(), is_this_store)


def became(file: HistoryFile, session: Session) -> list[str]:
    return [fate.what for fate in fates(read(file), session.guid)]


# Writing


def test_a_run_tells_counts_bytes_times_and_how_it_ended(journal: Journal, file: HistoryFile) -> None:
    chosen = sessions(2 * BATCH + 50)
    with journal:
        for session in journal.announced(chosen):
            journal.done(session)
        journal.exit_code = 1
    (told,) = runs(read(file))
    last = told.last
    assert (last.command, last.what, last.why, last.exit_code) == ("run-loop", DELETED, WHY, 1)
    assert (last.session_count, last.size_bytes) == (len(chosen), 10 * len(chosen))
    assert (last.oldest, last.newest) == (chosen[0].created_at, chosen[-1].created_at)
    assert told.has_ended and {became(file, session)[0] for session in chosen} == {DELETED}


def test_a_session_is_told_before_it_goes(journal: Journal, file: HistoryFile) -> None:
    for session in journal.announced(sessions(2 * BATCH)):
        assert became(file, session) == [UNCERTAIN]


def test_a_run_that_is_killed_has_told_what_it_deleted(journal: Journal, file: HistoryFile) -> None:
    chosen = sessions(2 * BATCH)
    for number, session in enumerate(journal.announced(chosen)):
        if number == BATCH + 5:
            break
        journal.done(session)
    (told,) = runs(read(file))
    assert not told.has_ended and told.last.session_count == BATCH
    assert [became(file, session) for session in chosen] == [[DELETED]] * BATCH + [[UNCERTAIN]] * BATCH


def test_what_stayed_is_told_so(journal: Journal, file: HistoryFile) -> None:
    chosen = sessions(BATCH + 10)
    stays = {chosen[3], chosen[BATCH + 1]}
    with journal:
        for session in journal.announced(chosen):
            if session not in stays:
                journal.done(session)
    assert {session for session in chosen if became(file, session) == [STAYED]} == stays
    assert runs(read(file))[0].last.session_count == len(chosen) - 2


def test_a_run_that_breaks_off_tells_what_it_did_not_reach(journal: Journal, file: HistoryFile) -> None:
    chosen = sessions(BATCH)
    with pytest.raises(Interrupted), journal:
        for session in journal.announced(chosen):
            if session is chosen[5]:
                raise Interrupted(15)
            journal.done(session)
    assert [became(file, session) for session in chosen] == [[DELETED]] * 5 + [[STAYED]] * (BATCH - 5)
    assert runs(read(file))[0].last.exit_code == 143


@pytest.mark.parametrize(
    ("error", "exit_code"), [(StoreError("read", "x", OSError(errno.EIO, "")), 1), (ZeroDivisionError(), 1)]
)
def test_an_error_is_an_end(journal: Journal, file: HistoryFile, error: Exception, exit_code: int) -> None:
    with pytest.raises(type(error)), journal:
        journal.swept(["a"])
        raise error
    assert runs(read(file))[0].last.exit_code == exit_code


def test_a_run_that_does_nothing_leaves_no_file(journal: Journal, file: HistoryFile) -> None:
    with journal:
        assert list(journal.announced([])) == []
        journal.swept([])
    assert not os.path.exists(file.path)


def test_without_a_file_nothing_is_told_and_all_is_done(log: EventLog) -> None:
    chosen = sessions(3)
    with Journal(None, "purge", DELETED, Clock(), log) as journal:
        journal.swept(["a"])
        assert list(journal.announced(chosen)) == chosen


def test_swept_entries_are_told_in_lines_of_a_bounded_length(journal: Journal, file: HistoryFile) -> None:
    swept = sessions(3 * BATCH)
    with journal:
        journal.swept([session.guid for session in swept])
    assert len(read(file)) == 4 and runs(read(file))[0].last.swept_count == len(swept)
    assert became(file, swept[-1]) == [SWEPT]


def test_a_file_that_cannot_be_written_is_one_warning_and_the_run_goes_on(
    journal: Journal, file: HistoryFile, warnings: Warnings
) -> None:
    os.mkdir(file.path)
    chosen = sessions(3 * BATCH)
    with journal:
        assert list(journal.announced(chosen)) == chosen
    (found,) = warnings.found
    assert found.event == "storage_manager.history_failed"
    assert found.fields == {"file": file.path, "errno": "EISDIR"}
    assert "; the run goes on" in found.getMessage() and file.variable in found.getMessage()


def test_whatever_fails_when_telling_does_not_end_a_run(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, warnings: Warnings
) -> None:
    def fail(*arguments: object) -> None:
        raise ValueError("embedded null byte")

    monkeypatch.setattr(journal_module, "append_line", fail)
    with journal:
        assert len(list(journal.announced(sessions(2)))) == 2
    assert warnings.found[0].fields["errno"] is None


def test_a_disk_that_has_room_again_gets_the_next_lines(
    journal: Journal, file: HistoryFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = sessions(2 * BATCH)
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:100]))
    with journal:
        for session in journal.announced(chosen):
            monkeypatch.setattr(os, "write", real)
            journal.done(session)
    assert [became(file, session) for session in chosen] == [[]] * BATCH + [[DELETED]] * BATCH
    assert runs(read(file))[0].last.session_count == len(chosen)


def test_no_more_than_guids_times_and_counts_is_in_a_line(journal: Journal, file: HistoryFile) -> None:
    with journal:
        for session in journal.announced([sessions(1)[0]._replace(group="secret-group", format="secretformat")]):
            journal.done(session)
    assert "secret" not in Path(file.path).read_text()


# Reading


def line(**values: Any) -> bytes:
    told = {
        "time": "2026-11-20T03:00:00Z", "run_id": "1", "command": "purge", "storage_dir": STORE, "what": DELETED,
        "why": "30 days or older", "session_count": 0, "size_bytes": 0, "oldest": None, "newest": None,
        "swept_count": 0, "removed_count": 0, **values,
    }  # fmt: skip
    return json.dumps({key: value for key, value in told.items() if value is not ...}).encode() + b"\n"


@pytest.mark.parametrize(
    "garbage",
    [
        b"", b"\n\n", b"garbage\n", b"\x00\xff\xfe\n", b"{}\n", b"[]\n", b'{"time":\n', b"null\n", line()[:-30] + b"\n",
        line(time="yesterday"), line(time=5), line(run_id=None), line(what="burnt"), line(what=[1]), line(why=3),
        line(session_count=-1), line(session_count=True), line(size_bytes="5"), line(oldest=[]), line(going=5),
        line(stayed=None), line(swept={}), line(exit_code="0"), line(storage_dir=...), b'{"a":' * 100_000 + b"\n",
        b'{"time":' + b"9" * 5000 + b"}\n", line(size_bytes=10**400),
    ],
    ids=range(27),
)  # fmt: skip
def test_garbage_is_passed_over(garbage: bytes) -> None:
    assert len(decode(line() + garbage + line(run_id="2"), lambda directory: True)) == 2


def test_lines_of_other_stores_are_passed_over() -> None:
    data = line(run_id="1") + line(run_id="2", storage_dir="/srv/other")
    assert [found.run_id for found in decode(data, STORE.__eq__)] == ["1"]
    data += line(run_id="3", storage_dir="\x00") + line(run_id="4", storage_dir="\ud800")
    assert [found.run_id for found in decode(data, lambda place: is_one_place(place, STORE))] == ["1"]


def test_a_run_whose_beginning_was_rotated_away_keeps_its_totals() -> None:
    data = line(time="2026-11-20T03:05:00Z", session_count=900, stayed="", exit_code=0)
    (told,) = runs(decode(data, STORE.__eq__))
    assert (told.last.session_count, told.began_at.minute) == (900, 5)


def test_a_check_that_adopts_and_repairs_is_two_runs() -> None:
    data = line(what=ADOPTED, exit_code=0) + line(what=REPAIRED, exit_code=0)
    assert [told.last.what for told in runs(decode(data, STORE.__eq__))] == [ADOPTED, REPAIRED]


def deleted(*lines: bytes) -> tuple[str, str]:
    found = deleted_by(decode(b"".join(lines), STORE.__eq__))
    return " ".join(sorted(found.certainly)), " ".join(sorted(found.perhaps - found.certainly))


def test_what_runs_have_deleted_is_certain_where_all_is_told() -> None:
    begin, middle = line(going="A b"), line(stayed="B", going="c d", session_count=1)
    end = line(stayed="", session_count=3, exit_code=0)
    assert deleted(begin, middle, end) == ("a c d", "")
    assert deleted(begin, line(swept="x y"), middle, line(run_id="2", going="e"), end) == ("a c d", "e")
    assert deleted(begin, middle) == ("a", "c d")
    assert deleted(middle, end) == ("c d", ""), "the beginning was rotated away"
    assert deleted(begin, end) == ("", "a b"), "a line is lost"
    adopted = line(what=ADOPTED, going="a"), line(what=ADOPTED, stayed="", session_count=1, exit_code=0)
    assert deleted(*adopted) == ("", "")
    assert deleted(line(storage_dir="/srv/other", going="a")) == ("", "")


def test_all_that_became_of_a_session_is_told_in_order() -> None:
    guid = sessions(1)[0].guid
    data = line(run_id="1", what=ADOPTED, going=guid) + line(run_id="1", what=ADOPTED, stayed="", exit_code=0)
    data += line(run_id="2", going=f"a {guid.upper()} b") + line(run_id="3", swept=guid, exit_code=0)
    found = fates(decode(data, STORE.__eq__), guid.upper())
    assert [(fate.what, fate.line.run_id) for fate in found] == [(ADOPTED, "1"), (UNCERTAIN, "2"), (SWEPT, "3")]


def test_the_end_of_another_run_settles_nothing() -> None:
    guid = sessions(1)[0].guid
    data = line(run_id="1", going=guid) + line(run_id="2", stayed="", exit_code=0)
    assert [fate.what for fate in fates(decode(data, STORE.__eq__), guid)] == [UNCERTAIN]


# The jobs


def prune_job(storage: Path, file: HistoryFile | None, limit: int) -> Job:
    terms = Terms(str(storage), "prune-size", 0.0, 3600.0, file)
    return Job("prune", terms, plan_prune, Limits(limit, limit))


def all_fates(file: HistoryFile, guids: list[str]) -> list[list[Fate]]:
    return [fates(read(file), guid) for guid in guids]


def test_a_prune_tells_of_its_victims_alone(storage: Path, file: HistoryFile, log: EventLog) -> None:
    guids = make_store(storage, 6)
    run(prune_job(storage, file, 4000), Clock(), log)
    assert [[fate.what for fate in found] for found in all_fates(file, guids)] == [[DELETED]] * 2 + [[]] * 4
    (told,) = runs(read(file))
    assert (told.last.why, told.last.size_bytes, told.last.exit_code) == (WHY, 2000, 0)


def test_a_dry_run_and_a_run_within_the_limit_tell_nothing(storage: Path, file: HistoryFile, log: EventLog) -> None:
    make_store(storage, 6)
    dry_run(prune_job(storage, file, 4000), Clock(), log)
    run(prune_job(storage, file, 6000), Clock(), log)
    assert not os.path.exists(file.path)


def test_a_blob_that_cannot_be_deleted_is_told_to_have_stayed(
    storage: Path, file: HistoryFile, log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    guids = make_store(storage, 4)
    real = Store.unlink

    def unlink(store: Store, name: str) -> bool:
        if name.startswith(guids[0]):
            raise OSError(errno.EPERM, "Operation not permitted")
        return real(store, name)

    monkeypatch.setattr(Store, "unlink", unlink)
    run(prune_job(storage, file, 2000), Clock(), log)
    assert [[fate.what for fate in found] for found in all_fates(file, guids[:2])] == [[STAYED], [DELETED]]
    assert runs(read(file))[0].last.exit_code == 1


def test_a_full_disk_of_the_history_costs_no_deletion(
    storage: Path, file: HistoryFile, log: EventLog, warnings: Warnings, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(storage, 6)

    def full(path: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(append, "_open", full)
    outcome = run(prune_job(storage, file, 4000), Clock(), log)
    assert (outcome.counts.deleted_count, outcome.exit_code) == (2, 0)
    assert [found.event for found in warnings.found] == ["storage_manager.history_failed"]


def test_an_adoption_and_a_repair_tell_what_they_did(storage: Path, file: HistoryFile, log: EventLog) -> None:
    guids = make_store(storage, 3)
    metadata = json.loads((storage / "metadata.json").read_text())
    orphan = metadata.pop(guids[0])
    assert orphan
    (storage / "metadata.json").write_text(json.dumps(metadata))
    os.utime(storage / f"{guids[0]}.json", (1.7e9, 1.7e9))
    (storage / f"{guids[1]}.json").unlink()
    terms = Terms(str(storage), "check", 0.0, 3600.0, file)
    repair.adopt(terms, "g", Clock(), log)
    repair.repair(terms, Clock(), log)
    assert [[fate.what for fate in found] for found in all_fates(file, guids)] == [[ADOPTED], [SWEPT], []]
    adopted, repaired = runs(read(file))
    assert (adopted.last.session_count, adopted.last.exit_code) == (1, 0)
    assert (repaired.last.swept_count, repaired.last.why, repaired.last.exit_code) == (1, "repair", 0)
