"""A commit that a busy client leaves no moment for: nothing fails, the entries wait, and the next run goes on."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from stores import blobs, event, events, make_store, read_entries

from storage_manager.base.clock import Clock
from storage_manager.base.log import EventLog, build_logger
from storage_manager.cli import main
from storage_manager.jobs.plan import Outcome
from storage_manager.jobs.policy import Limits, plan_prune
from storage_manager.jobs.progress import Progress
from storage_manager.jobs.prune import Job, run
from storage_manager.jobs.work import Terms
from storage_manager.store import locked
from storage_manager.store.reading import Reading


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A client that writes during each attempt to commit; undo the patch, and it is idle."""
    with monkeypatch.context() as patch:
        patch.setattr(locked, "COMMIT_PATIENCE_SECS", 0.05)
        patch.setattr(Reading, "unchanged", lambda self: False)
        yield patch


def prune(storage: Path, limit_bytes: int, before: Progress | None = None) -> tuple[Outcome, Progress]:
    """A cycle of a loop."""
    terms = Terms(str(storage), "run-loop", 0.0, 3600.0)
    job = Job("prune", terms, plan_prune, Limits(limit_bytes, limit_bytes))
    progress = Progress() if before is None else Progress(before.memory)
    return run(job, Clock(), EventLog(build_logger(sys.stderr, True, 20)), progress), progress


def deferrals(text: str) -> list[dict[str, Any]]:
    return [item for item in events(text) if item["event"] == "storage_manager.commit_deferred"]


@pytest.mark.parametrize("words", [("prune-size", "--max-mb", "2500B"), ("purge", "--age-days", "1", "--yes")])
def test_a_commit_that_cannot_be_had_is_no_failure(
    storage: Path,
    busy: pytest.MonkeyPatch,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    words: tuple[str, ...],
) -> None:
    monkeypatch.setattr(Clock, "install", lambda self: None)
    guids = make_store(storage, 5)
    command = ["--storage-dir", str(storage), "--log-format", "json", *words]
    assert main([*command, "--json"]) == 0
    said = capfd.readouterr()
    gone = set(guids) - blobs(storage)
    assert gone
    assert list(read_entries(storage)) == guids
    [deferred] = deferrals(said.err)
    assert (deferred["@l"], deferred["entry_count"]) == ("Information", len(gone))
    summary = event(said.err, f"storage_manager.{words[0].partition('-')[0]}.summary")
    assert (summary["exit_code"], summary["deferred_count"]) == (0, len(gone))
    assert f"{len(gone)} entries wait" in summary["@m"]
    assert json.loads(said.out)["deferred_count"] == len(gone)
    busy.undo()
    if words[0] == "prune-size":  # with nothing to delete, entries of one-shot commands wait on
        command[-1] = "1500B"
    assert main(command) == 0
    assert set(read_entries(storage)) == blobs(storage)
    assert deferrals(capfd.readouterr().err) == []


def test_a_loop_warns_from_the_third_cycle_in_a_row_on(
    storage: Path, busy: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    make_store(storage, 5)
    progress: Progress | None = None
    levels = []
    for cycle in range(4):
        outcome, progress = prune(storage, 4500 - 1000 * cycle, progress)
        assert outcome.exit_code == 0
        assert outcome.counts.deferred_count == len(progress.memory.deferred) == cycle + 1
        levels.append(deferrals(capfd.readouterr().err)[-1]["@l"])
    assert levels == ["Information", "Information", "Warning", "Warning"]
    busy.undo()
    outcome, progress = prune(storage, 5000, progress)
    assert (outcome.counts.deferred_count, outcome.counts.swept_count, progress.memory.deferrals) == (0, 4, 0)


def test_entries_that_a_client_brings_back_are_counted_and_no_news(
    storage: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    guids = make_store(storage, 5)
    text = (storage / "metadata.json").read_bytes()
    (storage / f"{guids[0]}.json").unlink()
    progress: Progress | None = None
    for cycle in range(3):
        outcome, progress = prune(storage, 3000 - 1000 * cycle, progress)
        assert (outcome.counts.swept_count, outcome.counts.returned_count) == (cycle + 1, cycle)
        swept = [item["guid"] for item in events(capfd.readouterr().err) if item["event"].endswith(".swept")]
        assert swept == [guids[cycle]]
        (storage / "metadata.json").write_bytes(text)


def test_the_trial_of_a_run_does_not_wait_long_for_a_busy_client(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(Reading, "unchanged", lambda self: False)
    monkeypatch.setattr(Clock, "monotonic", lambda self: sum(waited))
    monkeypatch.setattr(Clock, "pause", lambda self, secs: waited.append(secs))
    real = Reading.__enter__

    def enter(self: Reading) -> Reading:
        waited.append(0.1)
        return real(self)

    monkeypatch.setattr(Reading, "__enter__", enter)
    guids = make_store(storage, 5)
    (storage / f"{guids[0]}.json").unlink()
    outcome, _ = prune(storage, 2500)
    assert (outcome.exit_code, outcome.counts.deferred_count, outcome.counts.deleted_count) == (0, 3, 2)
    assert 5.0 < sum(waited) < 8.0
