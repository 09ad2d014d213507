"""`health` beside a real loop, and everything that it may find instead of one."""

from __future__ import annotations

import ast
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from loops import loop
from stores import ROOT, blobs, clean_environment, event, events, make_store, run_tool

from storage_manager.base.process import this_boot
from storage_manager.base.times import later, parse_time, utc_text
from storage_manager.config import read_settings
from storage_manager.loop.heartbeat import reset_clock
from storage_manager.loop.heartbeat_json import as_json, decode

Asked = subprocess.CompletedProcess[str]


@pytest.fixture
def path(storage: Path) -> Path:
    """Where the heartbeat of a loop on `storage` is by default."""
    settings, _ = read_settings({"TMPDIR": os.environ["TMPDIR"]}, str(storage), None)
    return Path(settings.heartbeat_file)


@pytest.fixture
def health(storage: Path) -> Callable[..., Asked]:
    def ask(*arguments: object, **env: str) -> Asked:
        return run_tool("health", "--storage-dir", storage, *arguments, env=env)

    return ask


def unhealthy(asked: Asked) -> str:
    """The sentence, which must be on standard output and in the one event, with exit code 1."""
    assert asked.returncode == 1
    [warning] = events(asked.stderr)
    assert (warning["event"], warning["@l"]) == ("storage_manager.health.unhealthy", "Warning")
    [line] = asked.stdout.splitlines()
    assert line == warning["@m"] and line.startswith("unhealthy: ")
    return line


def healthy(asked: Asked) -> str:
    assert (asked.returncode, asked.stderr) == (0, "")
    [line] = asked.stdout.splitlines()
    assert line.startswith("healthy: ")
    return line


def test_a_loop_that_does_its_work_is_healthy(storage: Path, health: Callable[..., Asked]) -> None:
    make_store(storage, 12, size=1 << 20)
    with loop(storage, env={"GOFR_DIG_MAX_STORAGE_MB": "10"}) as tool:
        tool.wait_for("housekeeper.sleep")
        line = healthy(health())
        assert "10.0 MB of 10.0 MB in 10 sessions" in line and "next in 60 min" in line
        tool.send(signal.SIGTERM)
        assert tool.end() == 0
    assert "the loop ended" in unhealthy(health())


def test_it_says_the_same_as_json(storage: Path, health: Callable[..., Asked], path: Path) -> None:
    make_store(storage, 2)
    run_tool("run-loop", "--once", "--storage-dir", storage)
    said = json.loads(health("--json").stdout)
    assert said["healthy"] is True and said["sentence"].startswith("healthy: ")
    assert said["heartbeat_file"] == str(path)
    assert said["heartbeat"]["last_cycle"]["session_count"] == 2
    path.unlink()
    said = json.loads(health("--json").stdout)
    assert said["healthy"] is False and str(path) in said["sentence"] and said["heartbeat"] is None


@pytest.mark.parametrize("hours", [9000, 5, -5, -9000])
def test_a_clock_that_was_set_alarms_nobody_on_this_boot(
    storage: Path, health: Callable[..., Asked], path: Path, hours: int
) -> None:
    """The heartbeat's times are moved, which is the same and needs no privilege."""
    by = timedelta(hours=hours)
    if this_boot() is None:
        pytest.skip("the boot cannot be seen here")
    make_store(storage, 1)
    with loop(storage) as tool:
        tool.wait_for("housekeeper.sleep")
        facts = as_json(reset_clock(decode(path.read_bytes()), datetime(2026, 1, 1), datetime(2026, 1, 1) + by))
        for name in ("alive_at", "next_wake_up"):
            facts[name] = utc_text(later(parse_time(facts[name]) or datetime.max, by))
        path.write_text(json.dumps(facts))
        assert "next in 60 min" in healthy(health())
        path.write_text(json.dumps({**facts, "boot": "an earlier one"}))
        unhealthy(health())
        path.write_text(json.dumps({name: value for name, value in facts.items() if name != "monotonic_secs"}))
        unhealthy(health())


def test_a_loop_that_was_killed_is_unhealthy(storage: Path, health: Callable[..., Asked]) -> None:
    make_store(storage, 1)
    with loop(storage) as tool:
        tool.wait_for("housekeeper.sleep")
        tool.send(signal.SIGKILL)
        tool.process.wait()
        assert f"process {tool.process.pid} is gone" in unhealthy(health())


def test_a_loop_that_is_stopped_is_unhealthy_until_it_goes_on(storage: Path, health: Callable[..., Asked]) -> None:
    make_store(storage, 1)
    with loop(storage) as tool:
        tool.wait_for("housekeeper.sleep")
        tool.send(signal.SIGSTOP)
        os.waitpid(tool.process.pid, os.WUNTRACED)
        assert f"kill -CONT {tool.process.pid}" in unhealthy(health())
        tool.send(signal.SIGCONT)
        os.waitpid(tool.process.pid, os.WCONTINUED)
        healthy(health())


def test_a_loop_that_fails_is_unhealthy_until_it_succeeds(storage: Path, health: Callable[..., Asked]) -> None:
    make_store(storage, 1)
    with open(storage / ".prune_size.lock", "w") as lock, loop(storage) as tool:
        lock.write('{"pid": 4711}\n')
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        tool.wait_for("housekeeper.sleep")
        tool.wake_up_until("housekeeper.cycle_nonzero", 2)
        said = unhealthy(health())
        assert "cycles failed, with exit code 2: another prune holds" in said
        fcntl.flock(lock, fcntl.LOCK_UN)
        tool.wake_up_until("housekeeper.cycle_ok")
        healthy(health())


def test_one_failed_cycle_is_told_but_not_held_against_the_loop(storage: Path, health: Callable[..., Asked]) -> None:
    make_store(storage, 1)
    with loop(storage) as tool:
        tool.wait_for("housekeeper.sleep")
        os.rename(storage, f"{storage}.aside")
        tool.wake_up_until("housekeeper.cycle_nonzero")
        assert "with exit code 1 (the storage directory" in healthy(health())


def test_without_a_heartbeat_it_says_what_is_missing(health: Callable[..., Asked], path: Path) -> None:
    said = unhealthy(health())
    assert str(path) in said and "run-loop" in said


def test_in_a_directory_that_is_gone_it_says_what_is_missing(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    start = ["sh", "-c", 'rmdir "$PWD" && exec "$@"', "sh", sys.executable, "-m", "storage_manager", "health"]
    done = subprocess.run(start, cwd=gone, env=clean_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "there is no heartbeat file" in done.stdout


def test_a_heartbeat_that_cannot_be_used_is_unhealthy(health: Callable[..., Asked], path: Path, tmp_path: Path) -> None:
    for data in (b"", b"{}", b"\xff", b"x" * 100_000):
        path.write_bytes(data)
        assert f"{path} cannot be used" in unhealthy(health())
    path.unlink()
    (tmp_path / "target").write_text("{}")
    path.symlink_to(tmp_path / "target")
    assert "symbolic link" in unhealthy(health())
    path.unlink()
    os.mkfifo(path)
    assert "not a regular file" in unhealthy(health())
    assert "Not a directory" in unhealthy(health(GOFR_DIG_HOUSEKEEPER_HEARTBEAT_FILE=str(path / "below")))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_heartbeat_that_somebody_else_may_have_made_up_is_not_believed(
    storage: Path, health: Callable[..., Asked], path: Path
) -> None:
    make_store(storage, 1)
    run_tool("run-loop", "--once", "--storage-dir", storage)
    healthy(health())
    path.parent.chmod(0o1777)
    os.chown(path, 12345, 12345)
    assert "belongs to user 12345" in unhealthy(health())


def test_a_heartbeat_of_another_store_is_not_taken_for_this_one(
    storage: Path, health: Callable[..., Asked], tmp_path: Path
) -> None:
    file = str(tmp_path / "heartbeat")
    make_store(tmp_path / "other", 1)
    run_tool(
        "run-loop", "--once", "--storage-dir", tmp_path / "other", env={"GOFR_DIG_HOUSEKEEPER_HEARTBEAT_FILE": file}
    )
    said = unhealthy(health(GOFR_DIG_HOUSEKEEPER_HEARTBEAT_FILE=file))
    assert f"of a loop on {tmp_path / 'other'}, not on {storage}" in said


@pytest.mark.parametrize("is_named", [False, True])
def test_another_spelling_of_the_directory_finds_the_loop(storage: Path, tmp_path: Path, is_named: bool) -> None:
    make_store(storage, 1)
    (tmp_path / "link").symlink_to(storage)
    (tmp_path / "elsewhere").mkdir()
    env = {"GOFR_DIG_HOUSEKEEPER_HEARTBEAT_FILE": str(tmp_path / "beat")} if is_named else {}
    with loop(storage, env=env) as tool:
        tool.wait_for("housekeeper.sleep")
        for spelling in (tmp_path / "link", f"{storage}/", storage.parent / "." / "x" / ".." / storage.name):
            healthy(run_tool("health", "--storage-dir", spelling, env=env))
        healthy(run_tool("health", "--storage-dir", storage.name, env=env, cwd=storage.parent))
        asked = run_tool("health", "--storage-dir", tmp_path / "elsewhere", env=env)
        assert ("is of a loop on" if is_named else "there is no heartbeat file") in unhealthy(asked)
        tool.send(signal.SIGTERM)
        assert tool.end() == 0


def test_a_store_in_the_wrong_place_is_pointed_out(storage: Path, health: Callable[..., Asked]) -> None:
    make_store(storage / "sessions", 3)
    run_tool("run-loop", "--once", "--storage-dir", storage)
    asked = health()
    assert asked.returncode == 0 and str(storage / "sessions") in asked.stdout
    [suspect] = events(asked.stderr)
    assert suspect["event"] == "storage_manager.storage_suspect"
    assert suspect["suggested_dirs"] == [str(storage / "sessions")]


def test_a_probe_leaves_no_trace(storage: Path, health: Callable[..., Asked], tmp_path: Path) -> None:
    """Neither in the log file nor on standard error, whatever else is wrong with the settings."""
    make_store(storage, 1)
    run_tool("run-loop", "--once", "--storage-dir", storage)
    log = tmp_path / "log"
    healthy(health(GOFR_DIG_LOG_FILE=str(log), GOFR_DIG_LOG_LEVEL="DEBUG", GOFR_DIG_MAX_STORAGE_MB="plenty"))
    assert not log.exists()
    loud = health("--log-level", "INFO")
    assert event(loud.stderr, "storage_manager.command_end")["exit_code"] == 0


def test_it_looks_at_no_store_and_takes_no_lock(storage: Path, health: Callable[..., Asked]) -> None:
    make_store(storage, 1)
    run_tool("run-loop", "--once", "--storage-dir", storage)
    with open(storage / ".prune_size.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        healthy(health())
    (storage / "metadata.json").write_text("{")
    healthy(health())
    os.rename(storage, f"{storage}.aside")
    healthy(health())


def test_it_starts_without_what_only_prunes_need(storage: Path) -> None:
    code = (
        "import sys; from storage_manager.cli import main; main(sys.argv[1:]);"
        "print(sorted(name for name in sys.modules if name.startswith('storage_manager.')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "health", "--storage-dir", str(storage)],
        env=clean_environment(), cwd=ROOT, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    loaded = {name.partition(".")[2] for name in ast.literal_eval(done.stdout.splitlines()[-1])}
    assert {"cli", "loop.heartbeat", "commands.health"} <= loaded
    assert {name for name in loaded if name.startswith(("jobs.", "seq.handler"))} == {"jobs.memory"}
    assert not loaded & {"loop.housekeeper", "loop.status"}
    assert not {name for name in loaded if name.startswith("store.")} - {"store.names", "store.snapshot"}


# Timers


def once(storage: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return run_tool("run-loop", "--once", "--storage-dir", storage, *arguments, env=env)


def test_a_timers_failures_are_counted_over_its_runs(storage: Path, health: Callable[..., Asked]) -> None:
    make_store(storage, 1)
    assert once(storage).returncode == 0
    aside = storage.with_name("aside")
    os.rename(storage, aside)
    for _ in range(2):
        assert once(storage).returncode == 1
        healthy(health())
    assert once(storage).returncode == 1
    assert "the last 3 cycles failed" in unhealthy(health())
    os.rename(aside, storage)
    assert once(storage).returncode == 0
    healthy(health())


def test_a_cycle_run_by_hand_beside_a_loop_tells_nothing(
    storage: Path, health: Callable[..., Asked], path: Path, tmp_path: Path
) -> None:
    make_store(storage, 1)
    metrics = {"GOFR_DIG_METRICS_FILE": str(tmp_path / "metrics")}
    with loop(storage, env=metrics) as tool:
        tool.wait_for("housekeeper.sleep")
        before = path.read_bytes(), (tmp_path / "metrics").read_bytes()
        assert once(storage, **metrics).returncode == 0
        with loop(storage, "--dry-run", env={**metrics, "GOFR_DIG_MAX_STORAGE_MB": "5"}) as asked:
            asked.wait_for("housekeeper.sleep")
            asked.send(signal.SIGTERM)
            assert asked.end() == 0
        assert (path.read_bytes(), (tmp_path / "metrics").read_bytes()) == before
        tool.send(signal.SIGTERM)
        assert tool.end() == 0
    assert once(storage, **metrics).returncode == 0
    healthy(health())
    assert b'cycles_total{storage_dir="%s"} 2\n' % bytes(storage) in (tmp_path / "metrics").read_bytes()


# --max-failures


def test_after_as_many_failures_in_a_row_the_loop_gives_up(tmp_path: Path) -> None:
    env = {"GOFR_DIG_HOUSEKEEPING_INTERVAL_MINS": "0.0001"}
    with loop(tmp_path / "absent", "--max-failures", "3", env=env) as tool:
        given_up = tool.wait_for("housekeeper.giving_up")
        assert tool.end() == 1
        assert tool.count("housekeeper.cycle_nonzero") == 3
        assert tool.count("housekeeper.stopping") == 0
    assert (given_up["@l"], given_up["failures"], given_up["exit_code"]) == ("Error", 3, 1)
    assert str(tmp_path / "absent") in given_up["@m"]


def test_a_success_in_between_begins_the_count_again(storage: Path) -> None:
    make_store(storage, 1)
    aside = storage.with_name("aside")
    with loop(storage, "--max-failures", "2") as tool:
        tool.wait_for("housekeeper.sleep")
        for _ in range(3):
            os.rename(storage, aside)
            tool.wake_up_until("housekeeper.cycle_nonzero")
            os.rename(aside, storage)
            tool.wake_up_until("housekeeper.cycle_ok")
        tool.send(signal.SIGTERM)
        assert tool.end() == 0


def test_a_loop_gives_up_over_nothing_that_only_somebody_can_mend(storage: Path) -> None:
    """What starts it anew would have it forget what it has seen, and delete."""
    make_store(storage, 3)
    aside, path = storage.with_name("aside"), storage.with_name("settings.env")
    path.write_text("GOFR_DIG_MAX_STORAGE_MB=50G\n")
    with loop(storage, "--max-failures", "2", "--env-file", str(path)) as tool:
        tool.wait_for("housekeeper.sleep")
        path.write_text("GOFR_DIG_MAX_SESSIONS=1\n")
        tool.wake_up_until("storage_manager.prune.held", 3)
        held = [item["@m"] for item in tool.seen if item["event"] == "storage_manager.prune.held"]
        assert all(f"Correct GOFR_DIG_MAX_STORAGE_MB in {path}; " in said for said in held)
        os.rename(storage, aside)
        storage.mkdir()
        tool.wake_up_until("storage_manager.store_gone", 3)
        storage.rmdir()
        tool.wake_up_until("housekeeper.cycle_nonzero")  # one failure of another kind is the first one
        storage.mkdir()
        tool.wake_up_until("storage_manager.store_gone")
        tool.send(signal.SIGTERM)
        assert tool.end() == 0
    assert len(blobs(aside)) == 3


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "many", "", "nan", "٣"])
def test_a_number_of_failures_that_is_none_is_wrong_usage(storage: Path, value: str) -> None:
    guids = make_store(storage, 3)
    done = run_tool("run-loop", "--once", f"--max-failures={value}", "--storage-dir", storage)
    assert done.returncode == 64
    assert "--max-failures" in event(done.stderr, "storage_manager.command_failed")["@m"]
    assert blobs(storage) == set(guids)


def test_once_has_its_own_exit_code_whatever_the_number_of_failures(storage: Path, tmp_path: Path) -> None:
    make_store(storage, 1)
    assert once(storage, "--max-failures", "1").returncode == 0
    done = once(tmp_path / "absent", "--max-failures", "1")
    assert done.returncode == 1
    assert not [item for item in events(done.stderr) if item["event"] == "housekeeper.giving_up"]
