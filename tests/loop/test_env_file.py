"""Settings that change while the loop runs: one version a cycle, and in doubt nothing is deleted."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from loops import Running, SteppedClock, loop
from stores import blobs, command, event, events, make_store, run_tool

from storage_manager.base.clock import Clock
from storage_manager.base.log import EventLog, build_logger
from storage_manager.config import DEFAULT_PREFIX, PREFIX_VARIABLE, Settings, read_settings
from storage_manager.loop.cycle import Manner
from storage_manager.loop.env_file import EnvFile
from storage_manager.loop.housekeeper import run_loop

LIMIT, KEEP = f"{DEFAULT_PREFIX}_MAX_STORAGE_MB", f"{DEFAULT_PREFIX}_KEEP_LAST"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "limits.env"


def write(path: Path, *lines: str, text: str | None = None) -> None:
    """Replace the file, as if a while ago: nobody has to wait until it is left alone."""
    draft = path.with_name("draft")
    draft.write_text("".join(f"{line}\n" for line in lines) if text is None else text)
    then = time.time() - 60
    os.utime(draft, (then, then))
    draft.rename(path)


def env_file(path: Path, **environ: str) -> EnvFile:
    named = {"TMPDIR": os.environ["TMPDIR"], **{f"{DEFAULT_PREFIX}_{name}": value for name, value in environ.items()}}
    return EnvFile(str(path), "--env-file", named, DEFAULT_PREFIX, Clock())


def settings_of(file: EnvFile, storage: Path | None = None) -> Settings:
    return file.bind(read_settings(file.environ, storage and str(storage), None)[0])


@pytest.fixture
def log_path(tmp_path: Path) -> Path:
    return tmp_path / "events.log"


def told(file: EnvFile, log_path: Path) -> tuple[bool, list[dict[str, Any]]]:
    with open(log_path, "w") as stream:
        differs = file.refresh(EventLog(build_logger(stream, True, 10)))
    return differs, events(log_path.read_text())


def keys(found: list[dict[str, Any]]) -> list[str]:
    return [item["event"].partition(".")[2] for item in found]


# What counts


def test_the_file_adds_to_the_environment_which_wins_unless_it_is_blank(path: Path, log_path: Path) -> None:
    write(path, f"{LIMIT}=5G", f"{KEEP}=7", f"{DEFAULT_PREFIX}_MAX_SESSIONS=9", "TMPDIR=/elsewhere", "PATH=/x")
    file = env_file(path, MAX_STORAGE_MB="6G", KEEP_LAST=" ")
    settings = settings_of(file)
    assert (settings.max_storage_bytes, settings.keep_last, settings.max_sessions) == (6 << 30, 7, 9)
    assert settings.from_file == {KEEP, f"{DEFAULT_PREFIX}_MAX_SESSIONS"}
    assert settings.temporary_dir == os.environ["TMPDIR"] and settings.held_by is None
    differs, found = told(file, log_path)
    assert not differs and keys(found) == ["setting_overruled"] and found[0]["variables"] == [LIMIT]
    assert told(file, log_path) == (False, [])


def test_a_store_of_the_environment_wins_over_every_name_of_one_in_the_file(path: Path, log_path: Path) -> None:
    write(path, f"{DEFAULT_PREFIX}_STORAGE=/of/the/file", f"{DEFAULT_PREFIX}_DATA_DIR=/data")
    file = env_file(path, STORAGE_DIR="/mine")
    assert settings_of(file).storage_dir == "/mine"
    assert told(file, log_path)[1][0]["variables"] == [f"{DEFAULT_PREFIX}_STORAGE", f"{DEFAULT_PREFIX}_DATA_DIR"]


def test_the_prefix_and_the_name_of_the_file_are_the_environments(path: Path, log_path: Path) -> None:
    write(
        path, "STORAGE_MANAGER_ENV_PREFIX=OTHER", "OTHER_KEEP_LAST=1", f"{DEFAULT_PREFIX}_ENV_FILE=/other", f"{KEEP}=2"
    )
    file = env_file(path)
    assert (settings_of(file).prefix, settings_of(file).keep_last) == (DEFAULT_PREFIX, 2)
    [one] = told(file, log_path)[1]
    assert one["variables"] == ["STORAGE_MANAGER_ENV_PREFIX", f"{DEFAULT_PREFIX}_ENV_FILE"]


def test_another_prefix_is_looked_for_in_the_file(path: Path) -> None:
    write(path, "GOFR_DOC_KEEP_LAST=3", f"{KEEP}=4")
    file = EnvFile(str(path), "--env-file", {"STORAGE_MANAGER_ENV_PREFIX": "GOFR_DOC"}, "GOFR_DOC", Clock())
    assert settings_of(file).keep_last == 3


def test_a_slip_in_the_file_is_told_as_one_in_the_environment_is(path: Path) -> None:
    write(path, f"{DEFAULT_PREFIX}_MAX_STORAGE_GB=5")
    _, fallbacks = read_settings(env_file(path).environ, None, None)
    assert [one.default for one in fallbacks] == [LIMIT]


# What has changed


def test_each_change_is_told_with_name_old_and_new(path: Path, log_path: Path) -> None:
    write(path, f"{LIMIT}=50G", f"{KEEP}=1")
    file = env_file(path)
    assert told(file, log_path) == (False, [])
    write(path, f"{LIMIT}='60 G'", f"{DEFAULT_PREFIX}_MAX_DELETE=20%")
    differs, found = told(file, log_path)
    assert differs and keys(found) == ["setting_changed"] * 3
    assert [(one["variable"], one["old"], one["new"]) for one in found] == [
        (LIMIT, "50G", "60 G"),
        (KEEP, "1", None),
        (f"{DEFAULT_PREFIX}_MAX_DELETE", None, "20%"),
    ]
    assert found[0]["file"] == str(path)
    write(path, f"{LIMIT}=60 G", f"{DEFAULT_PREFIX}_MAX_DELETE=20%", "# the same", f"{KEEP}=")
    assert told(file, log_path) == (False, [])


def test_secrets_are_in_no_event_and_no_row(path: Path, log_path: Path) -> None:
    url, key = f"{DEFAULT_PREFIX}_SEQ_URL", f"{DEFAULT_PREFIX}_SEQ_API_KEY"
    write(path, f"{url}=http://u:s3cret@seq:5341")
    file = env_file(path)
    for lines in ([f"{url}=http://u:s3cret2@seq:5341", f"{key}=s3cret3"], [f"{key}=s3cret4"], [f"{key}s3cret5"], []):
        write(path, *lines)
        told(file, log_path)
        assert "s3cret" not in log_path.read_text() and log_path.read_text()
    assert "s3cret" not in repr(file.trouble)


def test_what_was_fixed_at_the_start_stays_until_a_restart_and_that_is_told_once(path: Path, log_path: Path) -> None:
    write(path, f"{DEFAULT_PREFIX}_LOG_LEVEL=WARNING", f"{KEEP}=1")
    file = env_file(path)
    first = settings_of(file)
    write(path, f"{DEFAULT_PREFIX}_LOG_LEVEL=ERROR", f"{DEFAULT_PREFIX}_METRICS_FILE=/m.prom", f"{KEEP}=1")
    differs, found = told(file, log_path)
    assert not differs and keys(found) == ["setting_changed", "setting_changed", "restart_needed"]
    assert set(found[-1]["variables"]) == {f"{DEFAULT_PREFIX}_LOG_LEVEL", f"{DEFAULT_PREFIX}_METRICS_FILE"}
    assert settings_of(file)._replace(from_file=first.from_file) == first
    assert told(file, log_path) == (False, [])
    write(path, f"{DEFAULT_PREFIX}_LOG_LEVEL=WARNING", f"{KEEP}=1")
    assert keys(told(file, log_path)[1]) == ["setting_changed", "setting_changed"], "nothing is left to restart for"


# What is gone or broken

BROKEN = {
    "gone": None, "empty": "", "cut off": f"{LIMIT}=5", "no assignment": f"{KEEP}=1\nlimit 5G\n",
    "too large": "#" * 70_000,
}  # fmt: skip


def breaks(path: Path, text: str | None) -> None:
    path.unlink(missing_ok=True)
    if text is not None:
        write(path, text=text)


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_a_file_that_is_gone_or_broken_keeps_the_last_good_settings(
    path: Path, log_path: Path, text: str | None
) -> None:
    write(path, f"{LIMIT}=50G")
    file = env_file(path)
    good = settings_of(file)
    for _ in range(2):
        breaks(path, text)
        differs, found = told(file, log_path)
        assert not differs and keys(found) == ["invalid_env"]
        assert (found[0]["@l"], found[0]["variable"], found[0]["value"]) == ("Warning", "--env-file", str(path))
        assert found[0]["@m"].endswith("using the last good settings")
        assert settings_of(file) == good
    write(path, f"{LIMIT}=50G")
    assert told(file, log_path) == (False, [])


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_without_any_good_settings_every_deletion_is_held(path: Path, log_path: Path, text: str | None) -> None:
    breaks(path, text)
    file = env_file(path)
    held = settings_of(file).held_by
    assert held is not None and held.variable == "--env-file" and "SIGHUP" in held.remedy
    differs, [one] = told(file, log_path)
    assert not differs and one["@l"] == "Error" and "nothing is deleted" in one["@m"]
    write(path, f"{LIMIT}=50G")
    assert told(file, log_path)[0], "a cycle would do something else now"
    assert settings_of(file).held_by is None and settings_of(file).max_storage_bytes == 50 << 30


def test_a_limit_that_is_gone_from_the_file_is_not_the_default_without_a_restart(path: Path, log_path: Path) -> None:
    write(path, f"{LIMIT}=50G")
    file = env_file(path)
    assert settings_of(file).held_by is None
    write(path, f"{KEEP}=1")
    for _ in range(2):
        told(file, log_path)
        settings = settings_of(file)
        assert settings.held_by is not None and settings.held_by.variable == LIMIT and not settings.held_by.remedy
        assert settings.held_by.reason == f"{path} had set it"
    write(path, f"{LIMIT}=40G")
    told(file, log_path)
    assert settings_of(file).held_by is None
    write(path, f"{KEEP}=1")
    assert settings_of(env_file(path)).held_by is None  # there is no heartbeat, and nobody remembers


def test_a_limit_that_is_gone_from_the_file_is_not_the_default_after_a_restart_either(
    storage: Path, path: Path, tmp_path: Path
) -> None:
    guids = make_store(storage, 3, size=1000)
    heartbeat = tmp_path / "heartbeat"
    env = {f"{DEFAULT_PREFIX}_HOUSEKEEPER_HEARTBEAT_FILE": str(heartbeat)}
    words = "--storage-dir", storage, "--env-file", path

    def once(*lines: str) -> tuple[int, int]:
        write(path, *lines)
        return run_tool("run-loop", "--once", *words, env=env).returncode, len(blobs(storage))

    rule = f"{DEFAULT_PREFIX}_MAX_SESSIONS=2"
    assert once(f"{LIMIT}=50G") == (0, 3)
    assert once(rule) == once(rule) == (1, 3)
    shown = run_tool("config", *words, env=env).stdout
    assert f"deletes nothing until {LIMIT} is corrected" in shown
    for aside in ((), ("--env-file", path)):  # whoever only asks changes nothing
        asked = {**env, LIMIT: "20G"} if aside else env
        assert run_tool("run-loop", "--once", "--dry-run", *words[:2], *aside, env=asked).returncode == 0
    assert once(rule) == (1, 3)
    assert once(f"{LIMIT}=1024", rule) == (0, 2)
    assert once(f"{DEFAULT_PREFIX}_MAX_SESSIONS=1") == (1, 2)
    heartbeat.unlink()
    assert once(f"{DEFAULT_PREFIX}_MAX_SESSIONS=1") == (0, 1) and guids[2] in blobs(storage)


@pytest.mark.parametrize(
    "line", ["MAX_STORAGE_MB=50G", f"{LIMIT.lower()}=50G", f"{PREFIX_VARIABLE}=GOFR_NP", "max_storage_mb=50G"]
)
def test_a_limit_with_a_slip_in_its_name_is_not_the_default(path: Path, log_path: Path, line: str) -> None:
    write(path, line, "GOFR_NP_MAX_STORAGE_MB=50G")
    file = env_file(path)
    held = settings_of(file).held_by
    assert held is not None and held.variable == LIMIT
    assert held.reason == f"{path} says {line.partition('=')[0]}, which does not count"
    write(path, line, f"{LIMIT}=1G")
    told(file, log_path)
    assert settings_of(file).held_by is None
    others = "GOFR_NP_MAX_STORAGE_MB=50G", "SERVICE_MAX_STORAGE_MB=5"
    write(path, f"{PREFIX_VARIABLE}={DEFAULT_PREFIX}_", f"{LIMIT}=", "MAX_STORAGE_MB=", *others)
    assert settings_of(env_file(path)).held_by is None


def test_another_store_in_the_file_holds_every_deletion(tmp_path: Path, path: Path) -> None:
    store, limit = f"{DEFAULT_PREFIX}_STORAGE", f"{LIMIT}=1B"
    write(path, f"{store}={tmp_path}/a", limit)
    file = env_file(path)
    assert settings_of(file).held_by is None
    with open(os.devnull, "w") as stream:
        log = EventLog(build_logger(stream, True, 10))
        for lines, is_held in (
            ([f"{store}={tmp_path}/b", limit], True),
            ([limit], True),
            ([f"{store}={tmp_path}/a/", limit], False),
            ([f"{DEFAULT_PREFIX}_STORAGE_DIR={tmp_path}/./a", limit], False),
        ):
            write(path, *lines)
            file.refresh(log)
            settings = settings_of(file)
            assert settings.storage_dir == f"{tmp_path}/a"
            assert (settings.held_by is not None) == is_held, lines
            if settings.held_by is not None:
                assert f"{tmp_path}/a" in settings.held_by.remedy and settings.held_by.variable == store


def test_random_files_never_raise_and_count_whole_or_not_at_all(
    path: Path, log_path: Path, seeds: Callable[[int], range]
) -> None:
    names = ["STORAGE", "MAX_STORAGE_MB", "KEEP_LAST", "SEQ_URL", "LOG_LEVEL", "NONSENSE", "ENV_FILE", "MAX_STORAGE_GB"]
    values = ["5G", "", "off", '"1"', "'", "\x1b[31m", "\u202e", "-1", "9" * 400, "http://u:p@h", "$(reboot)", "a\\"]
    write(path, f"{KEEP}=1")
    file = env_file(path)
    settings_of(file)
    for seed in seeds(800):
        rng = random.Random(seed)
        lines = [f"{DEFAULT_PREFIX}_{rng.choice(names)}={rng.choice(values)}" for _ in range(rng.randrange(4))]
        noise = rng.choice([[], [], ["#"], ["no"], ["\udcff"], ["A=\0"]])
        text = "".join(f"{line}\n" for line in rng.sample([*lines, *noise], len(lines) + len(noise)))
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        os.utime(path, (1, 1))
        before = settings_of(file)
        told(file, log_path)
        after = settings_of(file)
        assert (file.trouble is None) or after == before, (seed, text)
        whole = bool(lines or noise) and noise in ([], ["#"]) and not any(line.endswith(("'", "\\")) for line in lines)
        assert (file.trouble is None) == whole, (seed, text, file.trouble)


# The loop


def test_a_cycle_reads_the_file_once(
    storage: Path, path: Path, log_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage_manager.loop.status.LONGEST_NAP_SECS", 1e9)
    make_store(storage, 1)
    write(path, f"{LIMIT}=50G")
    file, opened = env_file(path), []
    read = file._read
    monkeypatch.setattr(file, "_read", lambda: (opened.append(1), read()))
    with open(log_path, "w") as stream:
        log = EventLog(build_logger(stream, True, 10))
        load = lambda: (settings_of(file, storage), [])  # noqa: E731
        assert run_loop(load, SteppedClock(3), log, Manner(), file.refresh) == 0
    assert keys(events(log_path.read_text())).count("cycle_ok") == 3 == len(opened)


def with_file(storage: Path, path: Path, **options: Any) -> Running:
    return loop(storage, "--env-file", str(path), **options)


def hang_up(tool: Running, *awaited: str) -> list[dict[str, Any]]:
    tool.send(signal.SIGHUP)
    tool.wait_for("housekeeper.log_reopened")
    return [tool.wait_for(f"housekeeper.{key}") for key in awaited]


def test_a_loop_whose_file_changes_breaks_goes_and_comes_back(storage: Path, path: Path) -> None:
    make_store(storage, 10, size=1000)
    write(path, f"{LIMIT}=8000B")
    with with_file(storage, path) as tool:
        tool.wait_for("housekeeper.sleep")
        assert len(blobs(storage)) == 8
        # Policy: a SIGHUP is enough.
        write(path, f"{LIMIT}=5000B")
        [changed, _] = hang_up(tool, "setting_changed", "sleep")
        assert (changed["variable"], changed["old"], changed["new"]) == (LIMIT, "8000B", "5000B")
        assert len(blobs(storage)) == 5 and tool.count("housekeeper.cycle_start") == 2
        # Nothing has changed: no cycle.
        for text in (None, "", f"{LIMIT}=3", f"{LIMIT}=1B\nand"):
            breaks(path, text)
            [problem] = hang_up(tool, "invalid_env")
            assert problem["@l"] == "Warning"
            tool.send(signal.SIGUSR1)
            assert tool.wait_for("housekeeper.invalid_env")
            tool.wait_for("housekeeper.sleep")
            assert len(blobs(storage)) == 5
        assert tool.count("housekeeper.cycle_start") == 6
        # Without SIGHUP, the next cycle reads it.
        write(path, f"{LIMIT}=3000B")
        tool.send(signal.SIGUSR1)
        tool.wait_for("housekeeper.sleep")
        assert len(blobs(storage)) == 3
        tool.send(signal.SIGTERM)
        assert tool.end() == 0
    assert tool.count("housekeeper.cycle_ok") == 7 and tool.count("housekeeper.setting_changed") == 2


def test_a_sighup_that_changes_nothing_of_the_policy_starts_no_cycle(storage: Path, path: Path) -> None:
    make_store(storage, 1)
    write(path, f"{LIMIT}=50G")
    with with_file(storage, path) as tool:
        tool.wait_for("housekeeper.sleep")
        write(path, f"{LIMIT}=50G", f"{DEFAULT_PREFIX}_LOG_JSON=false")
        [needed] = hang_up(tool, "restart_needed")
        assert needed["variables"] == [f"{DEFAULT_PREFIX}_LOG_JSON"]
        hang_up(tool)
        tool.send(signal.SIGTERM)
        assert tool.end() == 0
    assert tool.count("housekeeper.cycle_start") == 1


def test_a_loop_that_begins_without_its_file_holds_until_it_can_be_read(storage: Path, path: Path) -> None:
    make_store(storage, 4, size=1000)
    with with_file(storage, path, env={LIMIT: "", KEEP: "2"}) as tool:
        held = tool.wait_for("storage_manager.prune.held")
        assert held["variable"] == "--env-file" and held["@m"].endswith("; nothing was deleted")
        assert "restart" not in held["@m"]
        assert tool.wait_for("housekeeper.cycle_nonzero")["exit_code"] == 1
        tool.wait_for("housekeeper.sleep")
        write(path, f"{LIMIT}=1B", f"{KEEP}=0")
        hang_up(tool, "setting_overruled", "sleep")
        assert len(blobs(storage)) == 2, "the environment wins"
        tool.send(signal.SIGTERM)
        assert tool.end() == 0


def test_a_file_that_names_another_store_holds_the_loop(storage: Path, path: Path, tmp_path: Path) -> None:
    make_store(storage, 4, size=1000)
    write(path, f"{DEFAULT_PREFIX}_STORAGE={storage}", f"{LIMIT}=50G")
    done = run_tool("run-loop", "--once", env={f"{DEFAULT_PREFIX}_ENV_FILE": str(path)})
    assert done.returncode == 0 and event(done.stderr, "storage_manager.command_start")["storage_dir"] == str(storage)
    with Running(command("run-loop", "--env-file", path)) as tool:
        tool.wait_for("housekeeper.sleep")
        write(path, f"{DEFAULT_PREFIX}_STORAGE={tmp_path}/other", f"{LIMIT}=1B")
        hang_up(tool, "restart_needed")
        held = tool.wait_for("storage_manager.prune.held")
        assert held["variable"] == f"{DEFAULT_PREFIX}_STORAGE" and "Restart the loop" in held["@m"]
        tool.wait_for("housekeeper.sleep")
        write(path, f"{DEFAULT_PREFIX}_STORAGE={storage}", f"{LIMIT}=2000B")
        hang_up(tool, "sleep")
        tool.send(signal.SIGTERM)
        assert tool.end() == 0
    assert len(blobs(storage)) == 2


def test_an_option_does_not_make_the_settings_of_another_store_those_of_this_one(
    storage: Path, path: Path, tmp_path: Path
) -> None:
    make_store(storage, 4, size=1000)
    words = "run-loop", "--once", "--storage-dir", storage, "--env-file", path
    write(path, f"{DEFAULT_PREFIX}_STORAGE={tmp_path}/other", f"{LIMIT}=1B")
    done = run_tool(*words)
    held = event(done.stderr, "storage_manager.prune.held")
    assert (done.returncode, len(blobs(storage)), held["variable"]) == (1, 4, f"{DEFAULT_PREFIX}_STORAGE")
    assert f"name {storage} in {path}" in held["@m"]
    write(path, f"{DEFAULT_PREFIX}_STORAGE={storage}", f"{LIMIT}=2000B")
    assert run_tool(*words).returncode == 0 and len(blobs(storage)) == 2


@pytest.mark.parametrize("name", ["METRICS_FILE", "HOUSEKEEPER_HEARTBEAT_FILE", "HISTORY_FILE", "LOG_FILE"])
def test_no_other_setting_may_name_the_file(storage: Path, path: Path, name: str) -> None:
    make_store(storage, 2)
    write(path, f"{LIMIT}=1B")
    before = path.read_bytes()
    env = {f"{DEFAULT_PREFIX}_{name}": str(path)}
    done = run_tool("run-loop", "--once", "--storage-dir", storage, "--env-file", path, env=env)
    assert (done.returncode, path.read_bytes()) == (0, before)
    told = [item for item in events(done.stderr) if item["event"] == "housekeeper.invalid_env"]
    assert {(one["variable"], one["reason"]) for one in told} == {
        (f"{DEFAULT_PREFIX}_{name}", "another setting names the same file")
    }


def test_a_file_that_is_written_in_place_is_read_when_it_is_finished(storage: Path, path: Path) -> None:
    """Every state in between would let the default or a smaller limit delete something."""
    make_store(storage, 3, size=800_000)
    write(path, f"{LIMIT}=1M", f"{KEEP}=3")
    with with_file(storage, path) as tool:
        tool.wait_for("housekeeper.sleep")
        with open(path, "w") as file:
            tool.send(signal.SIGHUP)
            for part in (f"{LIMIT}=2", "M\n", f"{KEEP}=", "2\n"):
                time.sleep(0.3)
                file.write(part)
                file.flush()
        changed = [tool.wait_for("housekeeper.setting_changed") for _ in range(2)]
        assert {(one["variable"], one["new"]) for one in changed} == {(LIMIT, "2M"), (KEEP, "2")}
        tool.wait_for("housekeeper.sleep")
        assert len(blobs(storage)) == 2
        tool.send(signal.SIGTERM)
        assert tool.end() == 0
    assert tool.count("housekeeper.setting_changed") == 2


@pytest.mark.parametrize("where", ["file", "environment"])
def test_the_remedy_of_a_limit_that_cannot_be_read_says_where_it_is(storage: Path, path: Path, where: str) -> None:
    make_store(storage, 2, size=1000)
    name = f"{DEFAULT_PREFIX}_MAX_SESSIONS"
    write(path, f"{LIMIT}=1B", *([f"{name}=many"] if where == "file" else []))
    env = {name: "many"} if where == "environment" else {}
    done = run_tool("run-loop", "--once", "--storage-dir", storage, "--env-file", path, env=env)
    said = event(done.stderr, "storage_manager.prune.held")["@m"]
    assert done.returncode == 1 and len(blobs(storage)) == 2
    assert (f"Correct {name} in {path}; " in said) == (where == "file")
    assert (f"Correct {name}, and restart the loop; " in said) == (where == "environment")


def test_an_empty_name_of_a_file_is_wrong_usage_and_an_empty_variable_is_none(storage: Path) -> None:
    make_store(storage, 1)
    assert run_tool("run-loop", "--once", "--env-file", "", "--storage-dir", storage).returncode == 64
    env = {f"{DEFAULT_PREFIX}_ENV_FILE": " "}
    assert run_tool("run-loop", "--once", "--storage-dir", storage, env=env).returncode == 0
