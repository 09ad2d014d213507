"""A store that has gone is a failed cycle; a store that its service has emptied is not."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from loops import settings_for
from stores import event, events, make_store, run_tool

from storage_manager.base.clock import Clock
from storage_manager.base.errors import StoreGone
from storage_manager.base.log import EventLog, build_logger
from storage_manager.jobs import prune
from storage_manager.jobs.evidence import Reason, store_has_gone
from storage_manager.jobs.memory import Sighting
from storage_manager.jobs.policy import Limits, plan_prune
from storage_manager.jobs.work import Terms
from storage_manager.loop.sighting import look_for, sight
from storage_manager.store.directory import Store


def emptied_in_place(storage: Path) -> None:
    for name in os.listdir(storage):
        os.unlink(storage / name)


def unmounted(storage: Path) -> None:
    os.rename(storage, f"{storage}.aside")
    storage.mkdir()


def unmounted_and_the_service_started(storage: Path) -> None:
    unmounted(storage)
    (storage / "metadata.json").write_text("{}")


def unmounted_and_orphans_below(storage: Path) -> None:
    unmounted(storage)
    (storage / "11111111-1111-4111-8111-111111111111.json").write_text("x")


def metadata_removed(storage: Path) -> None:
    (storage / "metadata.json").unlink()


def restored_elsewhere(storage: Path) -> None:
    shutil.copytree(storage, f"{storage}.copy")
    os.rename(storage, f"{storage}.aside")
    os.rename(f"{storage}.copy", storage)


def emptied_by_the_service(storage: Path) -> None:
    emptied_in_place(storage)
    (storage / "metadata.json").write_text("{}")


def not_there(storage: Path) -> None:
    os.rename(storage, f"{storage}.aside")


def waiting_for_recovery(storage: Path) -> None:
    os.rename(storage / "metadata.json", storage / ".metadata.json.prev.3")


GONE = [emptied_in_place, unmounted, unmounted_and_the_service_started, unmounted_and_orphans_below, metadata_removed]
NOT_GONE = [restored_elsewhere, emptied_by_the_service, not_there, waiting_for_recovery]


def what_has_gone(storage: Path, seen: Sighting | None) -> Reason | None:
    assert seen is not None
    return store_has_gone(str(storage), seen, look_for(seen, str(storage)), "/run/beat")


@pytest.mark.parametrize("happened", GONE)
def test_a_store_that_has_gone_is_seen(storage: Path, happened: Callable[[Path], None]) -> None:
    make_store(storage, 3)
    seen = sight(str(storage), 3)
    assert what_has_gone(storage, seen) is None
    happened(storage)
    said = what_has_gone(storage, seen)
    assert said is not None and "3 sessions" in said.why and "remove /run/beat" in said.remedy


@pytest.mark.parametrize("happened", NOT_GONE)
def test_a_store_that_is_there_is_none_that_has_gone(storage: Path, happened: Callable[[Path], None]) -> None:
    make_store(storage, 3)
    seen = sight(str(storage), 3)
    happened(storage)
    assert what_has_gone(storage, seen) is None


@pytest.mark.parametrize("happened", [*GONE, emptied_by_the_service])
def test_a_store_without_sessions_has_nothing_to_lose(storage: Path, happened: Callable[[Path], None]) -> None:
    make_store(storage, 0)
    seen = sight(str(storage), 0)
    happened(storage)
    assert what_has_gone(storage, seen) is None


@pytest.mark.parametrize("happened", GONE)
def test_the_failure_lasts_until_a_store_is_seen_again(storage: Path, happened: Callable[[Path], None]) -> None:
    """Over restarts: each of these cycles is a process of its own."""
    make_store(storage, 3)
    assert run_tool("run-loop", "--once", "--storage-dir", storage).returncode == 0
    shutil.copytree(storage, f"{storage}.backup")
    happened(storage)
    before = sorted(os.listdir(storage))
    for _ in range(2):
        done = run_tool("run-loop", "--once", "--storage-dir", storage)
        assert done.returncode == 1
        gone = event(done.stderr, "storage_manager.store_gone")
        assert gone["@l"] == "Error" and "3 sessions" in gone["@m"]
        assert event(done.stderr, "housekeeper.cycle_nonzero")["exit_code"] == 1
        assert sorted(os.listdir(storage)) == before
        asked = run_tool("health", "--storage-dir", storage)
        assert asked.returncode == 1 and gone["@m"] in asked.stdout
    shutil.rmtree(storage)
    os.rename(f"{storage}.backup", storage)
    assert run_tool("run-loop", "--once", "--storage-dir", storage).returncode == 0
    assert run_tool("health", "--storage-dir", storage).returncode == 0


def test_removing_the_heartbeat_confirms_that_it_is_meant(storage: Path) -> None:
    make_store(storage, 3)
    run_tool("run-loop", "--once", "--storage-dir", storage)
    unmounted(storage)
    assert run_tool("run-loop", "--once", "--storage-dir", storage).returncode == 1
    os.unlink(settings_for(storage)[0].heartbeat_file)
    assert run_tool("run-loop", "--once", "--storage-dir", storage).returncode == 0


def test_a_store_that_was_restored_elsewhere_is_told_once(storage: Path) -> None:
    make_store(storage, 3)
    run_tool("run-loop", "--once", "--storage-dir", storage)
    restored_elsewhere(storage)
    counts = []
    for _ in range(2):
        done = run_tool("run-loop", "--once", "--storage-dir", storage)
        assert done.returncode == 0
        counts.append(sum(item["event"] == "housekeeper.store_moved" for item in events(done.stderr)))
    assert counts == [1, 0]


@pytest.mark.parametrize("with_store", [False, True], ids=["of an older version", "of a newer version"])
def test_other_versions_heartbeats_are_readable(storage: Path, with_store: bool) -> None:
    make_store(storage, 3)
    run_tool("run-loop", "--once", "--storage-dir", storage)
    path = Path(settings_for(storage)[0].heartbeat_file)
    beat = json.loads(path.read_bytes())
    assert beat["store"]["session_count"] == 3
    if with_store:
        beat["store"]["colour"] = "red"
    else:
        del beat["store"], beat["last_cycle"]["lacks_evidence"]
    path.write_text(json.dumps(beat))
    assert run_tool("health", "--storage-dir", storage).returncode == 0
    assert run_tool("run-loop", "--once", "--storage-dir", storage).returncode == 0


@pytest.mark.parametrize("happened", [shutil.rmtree, metadata_removed, emptied_in_place, not_there, unmounted])
@pytest.mark.parametrize("after", [1, 3, 8])
def test_a_store_that_goes_in_the_middle_of_a_prune_fails_it(
    storage: Path, monkeypatch: pytest.MonkeyPatch, happened: Callable[[Path], None], after: int
) -> None:
    make_store(storage, 10, size=1000)
    log, clock = _quiet()
    real = Store.unlink
    calls: list[bool] = []

    def unlink(store: Store, name: str) -> bool:
        calls.append(name.endswith(".json"))
        if sum(calls) == after:
            happened(storage)
        return real(store, name)

    monkeypatch.setattr(Store, "unlink", unlink)
    job = prune.Job("prune", Terms(str(storage), "prune-size", 0.0, 3600.0), plan_prune, Limits(1000, 1000))
    with pytest.raises(StoreGone, match="disappeared in the middle of the run"):
        prune.run(job, clock, log)


def _quiet() -> tuple[EventLog, Clock]:
    return EventLog(build_logger(None, True, 10)), Clock()
