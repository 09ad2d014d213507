"""`history`: what it says of runs and of sessions, and where it looks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from stores import event, events, hurried_command, make_store, run_command, run_tool

from storage_manager.base.log import EventLog, build_logger
from storage_manager.config import read_settings
from storage_manager.loop.history_file import history_file
from storage_manager.loop.own_files import writable_history_file

UNKNOWN = "11111111-aaaa-4bbb-8ccc-dddddddddddd"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


class Tool:
    """Commands on one store, with one history."""

    def __init__(self, storage: Path, path: Path) -> None:
        self.storage, self.path = storage, path
        self.env = {"GOFR_DIG_HISTORY_FILE": str(path)}

    def run(self, *arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
        return run_tool("--storage-dir", self.storage, "--log-format", "json", *arguments, env={**self.env, **env})

    def told(self, *arguments: object, **env: str) -> list[str]:
        done = self.run("history", *arguments, **env)
        assert (done.returncode, [item for item in events(done.stderr) if item["@l"] != "Information"]) == (0, [])
        return done.stdout.splitlines()

    def json(self, *arguments: object, **env: str) -> Any:
        (line,) = self.told("--json", *arguments, **env)
        return json.loads(line)


@pytest.fixture
def tool(storage: Path, tmp_path: Path) -> Tool:
    return Tool(storage, tmp_path / "history")


@pytest.fixture
def guids(storage: Path) -> list[str]:
    return make_store(storage, 6)


COMMANDS = [
    (("prune-size", "--max-mb", "4000B"), "prune-size", "oldest first, over the limit", 2),
    (("run-loop", "--once"), "run-loop", "oldest first, over the limit", 2),
    (("purge", "--age-days", "1"), "purge", "1 days or older", 6),
    (("purge", "--age-days", "0", "--yes"), "purge", "everything was asked for", 6),
]


@pytest.mark.parametrize(("words", "name", "why", "count"), COMMANDS, ids=[" ".join(case[0]) for case in COMMANDS])
def test_every_command_that_deletes_is_a_line(
    tool: Tool, guids: list[str], words: tuple[str, ...], name: str, why: str, count: int
) -> None:
    assert tool.run(*words, GOFR_DIG_MAX_STORAGE_MB="4000B").returncode == 0
    header, row = tool.told()
    assert header.split() == ["TIME", "(UTC)", "COMMAND", "SESSIONS", "SIZE", "WHY"]
    assert row.split()[2:4] == [name, str(count)] and row.endswith(f" KB  {why}")
    (session,) = tool.told("--session", guids[0])
    assert session.startswith("deleted 20") and session.endswith(f" UTC by {name}: {why}")


def test_orphans_repairs_and_adoptions_are_told_too(tool: Tool, guids: list[str]) -> None:
    entries = json.loads((tool.storage / "metadata.json").read_text())
    del entries[guids[0]]
    (tool.storage / "metadata.json").write_text(json.dumps(entries))
    os.utime(tool.storage / f"{guids[0]}.json", (1.7e9, 1.7e9))
    (tool.storage / f"{guids[1]}.json").unlink()
    tool.run("check", "--repair", "--adopt-orphans", "g", "--yes")
    tool.run("purge", "--age-days", "0", "--group", "g", "--yes")
    _, adopted, repaired, note, purged = tool.told()
    assert adopted.endswith("orphans given entries") and repaired.endswith("  repair") and " purge " in purged
    assert note == "    1 entry without blobs removed"
    adoption, deletion = tool.told("--session", guids[0])
    assert adoption.startswith("adopted ") and deletion.startswith("deleted ")
    (swept,) = tool.told("--session", guids[1])
    assert swept.startswith("its entry, which had no blob, was removed ") and swept.endswith(" UTC by check: repair")


def test_lines_fit_into_80_columns(tool: Tool) -> None:
    make_store(tool.storage, 1200, 1)
    for limit in ("200B", "100B"):
        tool.run("prune-size", "--max-mb", limit)
    assert max(map(len, tool.told())) <= 80


def test_json_has_all_of_a_run(tool: Tool, guids: list[str]) -> None:
    tool.run("prune-size", "--max-mb", "4000B")
    found = tool.json()
    assert (found["history_file"], found["other_files"], found["since"]) == (str(tool.path), [], None)
    assert (found["sentence"], found["fates"]) == (None, None)
    (run,) = found["runs"]
    assert run["session_count"] == 2 and run["size_bytes"] == 2000 and run["exit_code"] == 0
    assert (run["oldest_created_at"], run["newest_created_at"]) == (
        "2026-01-01T00:00:00Z", "2026-01-01T01:00:00.000001Z",
    )  # fmt: skip
    assert run["began_at"] <= run["ended_at"]
    found = tool.json("--session", guids[1])
    assert [(fate["what"], fate["run_id"]) for fate in found["fates"]] == [("deleted", run["run_id"])]
    assert found["runs"] is None and found["fates"][0]["at"] == run["began_at"]


def test_nothing_known_is_no_failure_and_says_where_it_looked(tool: Tool) -> None:
    assert tool.told() == [
        f"nothing that was deleted is known here: looked in {tool.path}, which no run has written yet"
    ]
    make_store(tool.storage, 6)
    tool.run("prune-size", "--max-mb", "4000B")
    assert tool.told("--session", UNKNOWN) == [f"session {UNKNOWN} is not known here: looked in {tool.path}"]
    assert tool.json("--session", UNKNOWN)["sentence"] == tool.told("--session", UNKNOWN)[0]
    assert tool.told(GOFR_DIG_HISTORY_FILE="Off") == ["no history is kept: GOFR_DIG_HISTORY_FILE is `off`"]


def test_since_leaves_out_what_is_older(tool: Tool, guids: list[str]) -> None:
    tool.run("prune-size", "--max-mb", "4000B")
    assert len(tool.told("--since", "1h")) == len(tool.told("--since", "2026-01-01")) == 2
    old = tool.path.read_text().replace('"time":"20', '"time":"19')
    tool.path.write_text(old)
    assert tool.told("--since", "7d")[0].startswith("nothing that was deleted is known here since 20")
    assert (
        "is not known here since 2026-01-01 00:00:00 UTC"
        in tool.told("--since", "2026-01-01", "--session", guids[0])[0]
    )


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--since", "7"), "'7': it has no unit: write s, m, h, d or w behind it, such as 7d"),
        (("--since", "7y"), "'7y': y is not a unit; use s, m, h, d or w, such as 7d"),
        (("--since", "soon"), "'soon': it is not a length of time such as 7d, 12h, 30m or 2w"),
        (("--since", "2026-13-01"), "'2026-13-01': it is no date; write 2026-11-20,"),
        (("--since", "0d"), "'0d': it must be greater than 0"),
        (("--since", "99999w"), "'99999w': it is longer than 100 years"),
        (("--session", "x"), "'x': it is not a guid such as "),
    ],
)
def test_a_value_that_makes_no_sense_is_named(tool: Tool, words: tuple[str, ...], why: str) -> None:
    done = tool.run("history", *words)
    assert done.returncode == 64 and why in done.stderr


def test_a_killed_run_has_told_what_it_deleted(tool: Tool) -> None:
    guids = make_store(tool.storage, 600, 10)
    # Killed by itself at its 150th blob.
    code = (
        "import os\nfrom storage_manager import cli\nfrom storage_manager.store import directory\n"
        "real, seen = directory.Store.unlink, []\n"
        "def unlink(store, name):\n    seen.append(name)\n"
        f"    if len(seen) == 150: os.kill(os.getpid(), {signal.SIGKILL})\n    return real(store, name)\n"
        "directory.Store.unlink = unlink\ncli.main()\n"
    )
    words = hurried_command({}, "--storage-dir", tool.storage, "prune-size", "--max-mb", "1000B")
    assert run_command([*words[:1], "-c", code, *words[3:]], tool.env).returncode == -signal.SIGKILL
    _, row, note = tool.told()
    assert row.split()[3] == "100+" and note == "    it has not told its end: it was killed, or is at work"
    assert tool.json()["runs"][0]["ended_at"] is None
    (sure,), (unsure,), (unknown,) = (tool.told("--session", guids[number]) for number in (99, 100, 200))
    assert sure.startswith("deleted ")
    assert unsure.startswith("about to be deleted ")
    assert unsure.endswith("; that run has not told more: `list` shows whether it is still there")
    assert "is not known here" in unknown
    tool.run("prune-size", "--max-mb", "1000B")
    assert [line.split()[0] for line in tool.told("--session", guids[120])] == ["about", "its"]


def test_a_full_file_is_continued_in_another_and_both_are_read(tool: Tool) -> None:
    guids = make_store(tool.storage, 400, 10)
    words = hurried_command(
        {"jobs.journal.MOST_BYTES": 10_000}, "--storage-dir", tool.storage, "prune-size", "--max-mb", "1000B"
    )
    assert run_command(words, tool.env).returncode == 0
    assert Path(f"{tool.path}.1").exists()
    assert tool.told("--session", guids[250])[0].startswith("deleted ")
    assert tool.told()[1].split()[3] == "300"


# Which file


def test_the_default_file_is_of_this_user_and_store_however_it_is_spelt(
    storage: Path, guids: list[str], tmp_path: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(storage)
    run_tool("--storage-dir", link, "prune-size", "--max-mb", "4000B")
    (name,) = os.listdir(os.environ["TMPDIR"])
    assert name.startswith(f"storage_manager-{os.geteuid()}-") and name.endswith(".history")
    done = run_tool("history", "--session", guids[0], cwd=storage, env={"GOFR_DIG_STORAGE": "."})
    assert done.stdout.startswith("deleted ")


def test_the_history_of_another_user_is_named(storage: Path, guids: list[str]) -> None:
    run_tool("--storage-dir", storage, "prune-size", "--max-mb", "4000B")
    (name,) = os.listdir(os.environ["TMPDIR"])
    _, uid, checksum = name.split("-")
    other = os.path.join(os.environ["TMPDIR"], f"storage_manager-{int(uid) + 1}-{checksum}")
    Path(other).write_text("")
    done = run_tool("--storage-dir", storage, "history")
    assert done.stdout.splitlines()[2:] == [f"another user's runs have written {other}: ask as that user, too"]
    assert json.loads(run_tool("--storage-dir", storage, "history", "--json").stdout)["other_files"] == [other]


@pytest.mark.parametrize("name", ["history", "a.1"])
def test_a_file_in_the_store_or_of_another_setting_is_refused_and_the_run_goes_on(
    tool: Tool, guids: list[str], name: str
) -> None:
    log_file = tool.storage.parent / "a"
    path = tool.storage / name if name == "history" else tool.storage.parent / name
    variables = {"GOFR_DIG_HISTORY_FILE": str(path), "GOFR_DIG_LOG_FILE": str(log_file)}
    done = tool.run("prune-size", "--max-mb", "4000B", **variables)
    told = event(done.stderr, "housekeeper.invalid_env")
    assert (done.returncode, told["variable"], told["default"]) == (0, "GOFR_DIG_HISTORY_FILE", "no history")
    assert not path.exists() and len(list(tool.storage.glob("*.json"))) == 5


def test_a_file_that_cannot_be_written_costs_a_warning_alone(tool: Tool, guids: list[str]) -> None:
    tool.path.symlink_to("/etc/passwd")
    done = tool.run("prune-size", "--max-mb", "4000B")
    assert done.returncode == 0
    told = event(done.stderr, "storage_manager.history_failed")
    assert (told["@l"], told["file"], told["errno"]) == ("Warning", str(tool.path), "ELOOP")


def test_a_dry_run_says_nothing_of_a_file_that_it_does_not_write(tool: Tool, guids: list[str]) -> None:
    done = tool.run("prune-size", "--max-mb", "4000B", "--dry-run", GOFR_DIG_HISTORY_FILE=str(tool.storage / "x"))
    assert "housekeeper.invalid_env" not in done.stderr


@pytest.mark.parametrize("kind", ["directory", "symlink"])
def test_a_file_that_cannot_be_read_is_a_failure_with_a_remedy(tool: Tool, kind: str) -> None:
    tool.path.mkdir() if kind == "directory" else tool.path.symlink_to("/etc/passwd")
    done = tool.run("history")
    assert (done.returncode, done.stdout) == (1, "")
    told = event(done.stderr, "storage_manager.command_failed")
    assert f"cannot read the history {tool.path}: " in told["@m"] and "GOFR_DIG_HISTORY_FILE" in told["@m"]


def test_what_a_line_claims_does_not_reach_the_terminal_raw(tool: Tool, guids: list[str]) -> None:
    tool.run("prune-size", "--max-mb", "4000B")
    tool.path.write_text(tool.path.read_text().replace("oldest first", r"\u001b[31m\u202eevil"))
    for words in ((), ("--session", guids[0]), ("--json",)):
        assert not set("\x1b\u202e") & set("\n".join(tool.told(*words)))


def test_the_history_outlives_its_store(tool: Tool, guids: list[str]) -> None:
    tool.run("prune-size", "--max-mb", "4000B")
    tool.storage.rename(tool.storage.with_name("elsewhere"))
    assert tool.told("--session", guids[0])[0].startswith("deleted ")


def test_the_settings_of_the_loop_name_the_same_file_as_those_of_history(storage: Path) -> None:
    settings, _ = read_settings({"TMPDIR": "/var/tmp"}, str(storage), None)
    found = writable_history_file(settings, EventLog(build_logger(None, True, 0)))
    assert found is not None and found == history_file(settings)
    assert found.path.startswith("/var/tmp/storage_manager-") and found.storage_dir == os.path.realpath(storage)
