"""What counts as clean, and what a run that comes and goes must not make of it."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from stores import make_store

from storage_manager.base.clock import Clock
from storage_manager.base.log import EventLog
from storage_manager.jobs import checkup
from storage_manager.jobs.checkup import NOUNS, REMEDIES, Checkup, Finding, check_up, summary
from storage_manager.store.holder import Holding
from storage_manager.store.names import ASIDE_PREFIX, MOST_PREVIOUS, TMP_NAME, is_commit_file, previous_names
from storage_manager.store.snapshot import ANOMALY_KINDS, DANGLING, IN_FLIGHT, ORPHAN
from storage_manager.store.survey import Totals

LOG = EventLog(logging.getLogger("checkups"))
logging.getLogger("checkups").addHandler(logging.NullHandler())


def found(*kinds: tuple[str, int, bool], suggested: tuple[str, ...] = ()) -> Checkup:
    findings = [Finding(kind, count, 0, [], "", needs_attention) for kind, count, needs_attention in kinds]
    return Checkup(findings, Totals(2, 2000, {}, suggested))


def test_every_kind_has_a_noun_and_a_remedy() -> None:
    kinds = {*ANOMALY_KINDS, checkup.LEFTOVER, checkup.LOCK, checkup.DRIFT}
    assert kinds == set(NOUNS) == set(REMEDIES) - {checkup.AHEAD} | {checkup.LOCK}
    assert set(checkup.LOCK_REMEDIES) == set(Holding)


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (found(), "clean: 2 sessions"),
        (found((IN_FLIGHT, 3, False)), "clean: 2 sessions"),
        (found((ORPHAN, 1, True), (DANGLING, 2, True), (IN_FLIGHT, 3, False)), "1 orphan, 2 dangling entries"),
        (found((IN_FLIGHT, 2, True)), "2 blobs in flight"),
        (found((checkup.DRIFT, 2, True)), "2 blobs of another size than declared"),
        (found(suggested=("/srv/store/sessions",)), "probably the wrong directory"),
    ],
)
def test_one_sentence_says_what_needs_attention(result: Checkup, text: str) -> None:
    assert summary(result) == text
    assert result.is_clean == text.startswith("clean")


@pytest.mark.parametrize(
    ("finding", "repairable"),
    [
        ((ORPHAN, 1, True), False),
        ((DANGLING, 1, True), True),
        ((DANGLING, 1, False), True),  # whether a run at work owns it, the lock tells
        ((checkup.LEFTOVER, 1, True), True),
        ((checkup.LOCK, 1, True), True),
        ((checkup.LOCK, 1, False), False),
    ],
)
def test_a_repair_is_for_what_refers_to_nothing(finding: tuple[str, int, bool], repairable: bool) -> None:
    assert found(finding).is_repairable == repairable


def test_the_names_that_commits_use_are_known() -> None:
    names = [TMP_NAME, *previous_names(MOST_PREVIOUS + 1), f"{ASIDE_PREFIX}20260101T000000Z-\n"]
    assert all(is_commit_file(name) for name in names)
    assert not any(map(is_commit_file, (".metadata.json.swp", ".metadata.json.prev.10", ".metadata.json.tmp2", "x")))


def test_files_of_a_run_that_has_ended_meanwhile_are_no_finding(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_store(storage, 1)
    (storage / TMP_NAME).write_text("{}")
    real = checkup.take_snapshot

    def take_snapshot(*arguments: object) -> object:
        result = real(*arguments)  # type: ignore[arg-type]
        os.unlink(storage / TMP_NAME)
        return result

    monkeypatch.setattr(checkup, "take_snapshot", take_snapshot)
    assert check_up(str(storage), 3600.0, Clock(), LOG).findings == []
