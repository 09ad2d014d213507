"""config: the settings in force, and where each comes from."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from stores import command, make_store, run_tool
from terminals import Terminal

from storage_manager.config import NAMES


def explained(*arguments: object, env: dict[str, str] | None = None, exit_code: int = 0) -> dict[str, Any]:
    done = run_tool("config", "--json", *arguments, env=env)
    assert done.returncode == exit_code, done.stdout
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["exit_code"] == exit_code
    return found


def row(found: dict[str, Any], name: str) -> tuple[str, str, str]:
    [one] = [one for one in found["settings"] if one["variable"] == f"GOFR_DIG_{name}"]
    return one["value"], one["source"], one["problem"]


def test_every_variable_is_there_once_with_its_default(storage: Path) -> None:
    found = explained("--storage-dir", storage)
    variables = [one["variable"] for one in found["settings"]]
    assert sorted(variables) == sorted(["STORAGE_MANAGER_ENV_PREFIX", *(f"GOFR_DIG_{name}" for name in NAMES)])
    assert {one["source"] for one in found["settings"]} == {"default"}
    assert all(one["value"] and not one["problem"] for one in found["settings"])
    assert row(found, "MAX_STORAGE_MB")[0] == "1024" and row(found, "MAX_AGE_DAYS")[0] == "none"
    assert (found["storage_dir"], found["storage_source"]) == (str(storage), "--storage-dir")


@pytest.mark.parametrize(("make", "state"), [(False, "without a metadata.json"), (True, "there"), (None, "not there")])
def test_the_store_and_the_program_are_named(tmp_path: Path, make: bool | None, state: str) -> None:
    storage = tmp_path / "store"
    if make is not None:
        storage.mkdir()
    if make:
        make_store(storage, 1)
    found = explained(env={"GOFR_DIG_STORAGE_DIR": str(storage)})
    assert (found["store"], found["storage_source"]) == (state, "GOFR_DIG_STORAGE_DIR")
    assert Path(found["python"]).exists() and Path(found["program"]).exists()


def test_what_is_set_comes_from_the_environment_and_what_is_given_from_the_option() -> None:
    env = {"GOFR_DIG_MAX_STORAGE_MB": '"50Gi"', "GOFR_DIG_KEEP_LAST": "5", "GOFR_DIG_MAX_DELETE": "20%"}
    found = explained("--log-level", "debug", "--gofr-dig-env", "TEST", env=env)
    assert row(found, "MAX_STORAGE_MB") == ("50Gi", "environment", "")
    assert row(found, "KEEP_LAST") == ("5", "environment", "")
    assert row(found, "MAX_DELETE") == ("20%", "environment", "")
    assert row(found, "LOG_LEVEL") == ("DEBUG", "--log-level", "")
    assert row(found, "ENV") == ("TEST", "--gofr-dig-env", "")


def test_what_cannot_be_used_is_told_with_what_is_used_instead(storage: Path) -> None:
    env = {
        "GOFR_DIG_MAX_STORAGE_MB": "50 %", "GOFR_DIG_HOUSEKEEPING_INTERVAL_MINS": "often",
        "GOFR_DIG_MAX_STORAGE_GB": "5", "GOFR_DIG_MAX_SESSIONS": "3", "GOFR_DIG_KEEP_LAST": "4",
    }  # fmt: skip
    found = explained("--storage-dir", storage, env=env, exit_code=1)
    value, source, problem = row(found, "MAX_STORAGE_MB")
    assert (value, source) == ("1024", "default") and "50 %" in problem and "nothing is deleted for its sake" in problem
    value, source, problem = row(found, "HOUSEKEEPING_INTERVAL_MINS")
    assert (value, source) == ("60", "default") and problem.endswith("using 60")
    assert "it is above GOFR_DIG_MAX_SESSIONS" in row(found, "KEEP_LAST")[2]
    assert found["unknown"] == [{"variable": "GOFR_DIG_MAX_STORAGE_GB", "suggestion": "GOFR_DIG_MAX_STORAGE_MB"}]
    text = run_tool("config", "--storage-dir", storage, env=env).stdout
    assert "run-loop deletes nothing until GOFR_DIG_MAX_STORAGE_MB is corrected" in text
    assert "GOFR_DIG_MAX_STORAGE_GB is not looked at: did you mean GOFR_DIG_MAX_STORAGE_MB?" in text


def test_files_that_must_not_be_written_are_problems_and_health_says_so(storage: Path, tmp_path: Path) -> None:
    make_store(storage, 1)
    log = str(tmp_path / "log")
    files = {
        "LOG_FILE": log, "METRICS_FILE": f"{tmp_path}/link/log", "HISTORY_FILE": f"{log}.1",
        "HOUSEKEEPER_HEARTBEAT_FILE": str(storage / "heartbeat"),
    }  # fmt: skip
    (tmp_path / "link").symlink_to(tmp_path)
    env = {f"GOFR_DIG_{name}": path for name, path in files.items()}
    found = explained("--storage-dir", storage, env=env, exit_code=1)
    assert row(found, "LOG_FILE") == (log, "environment", "")
    assert "another setting names the same file; using no metrics" in row(found, "METRICS_FILE")[2]
    assert "another setting names the same file; using no history" in row(found, "HISTORY_FILE")[2]
    assert "in the storage directory" in row(found, "HOUSEKEEPER_HEARTBEAT_FILE")[2]
    done = run_tool("health", "--storage-dir", storage, env=env)
    assert done.returncode == 1
    said = f"unhealthy: run-loop does not write the heartbeat file {storage}/heartbeat: in the storage directory"
    assert done.stdout.startswith(said)


def test_secrets_are_not_shown() -> None:
    env = {"GOFR_DIG_SEQ_URL": "http://user:password@seq:5341", "GOFR_DIG_SEQ_API_KEY": "the-key"}
    for words in (("config",), ("config", "--json")):
        done = run_tool(*words, env=env)
        assert "http://seq:5341" in done.stdout
        assert not any(secret in done.stdout + done.stderr for secret in ("password", "the-key"))


def test_another_prefix_is_the_one_that_is_explained() -> None:
    found = explained(env={"STORAGE_MANAGER_ENV_PREFIX": "GOFR_DOC", "GOFR_DOC_KEEP_LAST": "7"})
    assert {"variable": "GOFR_DOC_KEEP_LAST", "value": "7", "source": "environment", "problem": ""} in found["settings"]


def test_what_the_environment_file_sets_comes_from_there(tmp_path: Path) -> None:
    path = tmp_path / "limits.env"
    path.write_text("GOFR_DIG_MAX_STORAGE_MB='5G'\nGOFR_DIG_KEEP_LAST=7\nGOFR_DIG_SEQ_API_KEY=the-key\n")
    env = {"GOFR_DIG_KEEP_LAST": "8"}
    found = explained("--env-file", path, env=env)
    assert found["env_file"] == str(path)
    assert row(found, "MAX_STORAGE_MB") == ("5G", "file", "")
    assert row(found, "KEEP_LAST") == ("8", "environment, not file", "")
    assert row(found, "SEQ_API_KEY") == ("(not shown)", "file", "")
    assert row(found, "ENV_FILE") == (str(path), "--env-file", "")
    text = run_tool("config", env={**env, "GOFR_DIG_ENV_FILE": str(path)}).stdout
    assert f"file     {path}\n" in text and "the-key" not in text
    assert re.search(r"^GOFR_DIG_ENV_FILE +environment +/", text, re.MULTILINE)


def test_an_environment_file_that_cannot_be_used_is_a_problem(tmp_path: Path) -> None:
    found = explained("--env-file", tmp_path / "none", exit_code=1)
    assert "ENOENT" in row(found, "ENV_FILE")[2] and "nothing is deleted" in row(found, "ENV_FILE")[2]
    text = run_tool("config", "--env-file", tmp_path / "none").stdout
    assert "run-loop deletes nothing until --env-file is corrected" in text
    assert explained()["env_file"] is None


def test_on_a_low_terminal_what_is_not_set_is_only_named(storage: Path) -> None:
    with Terminal(command("config", "--storage-dir", storage), {"GOFR_DIG_MAX_STORAGE_MB": "7"}) as terminal:
        assert terminal.end() == 0
    shown = "\n".join(terminal.screen)
    assert terminal.screen[0].startswith("store  ") and len(terminal.screen) < 24
    assert "GOFR_DIG_MAX_STORAGE_MB                  environment  7" in shown and "GOFR_DIG_ORPHANS " in shown
    named = " ".join(shown.partition("not set: ")[2].split()).split(", ")
    elsewhere = run_tool("config", "--storage-dir", storage, env={"GOFR_DIG_MAX_STORAGE_MB": "7"}).stdout
    assert "not set: " not in elsewhere
    tables = [{line.split()[0] for line in text.splitlines() if "default  " in line} for text in (shown, elsewhere)]
    assert tables[0] | set(named) == tables[1] and not tables[0] & set(named)


def test_on_a_narrow_terminal_names_stay_whole(storage: Path) -> None:
    with Terminal(command("config", "--storage-dir", storage), columns=1) as terminal:
        assert terminal.end() == 0
    assert "\r\n  GOFR_DIG_MIN_AGE_MINS,\r\n" in terminal.raw
