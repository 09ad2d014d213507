"""The command line as a contract: options, exit codes, and what goes to which stream."""

from __future__ import annotations

import fcntl
import json
import os
import pkgutil
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from loops import Running, signals_as_usual
from stores import (
    ROOT,
    blobs,
    clean_environment,
    command,
    event,
    events,
    leftovers,
    make_store,
    read_entries,
    run_tool,
    write_entries,
)

import storage_manager.commands
from storage_manager import __version__, cli
from storage_manager.base.errors import EXIT_CODES
from storage_manager.commands import stats
from storage_manager.grammar import COMMANDS

ONE_SHOTS = [
    ("list",),
    ("stats",),
    ("purge", "--age-days", "1"),
    ("prune-size", "--max-mb", "1"),
    ("run-loop", "--once"),
]

FLAGS = {
    "list": [
        "--group", "-v", "--verbose", "--json", "--sort", "--reverse", "--limit", "--older-than", "--larger-than",
    ],
    "stats": ["--group", "--json"],
    "check": [
        "--json", "--repair", "--adopt-orphans", "--yes", "--dry-run", "-v", "--verbose", "--lock-timeout",
        "--lock-stale-seconds",
    ],
    "purge": [
        "--age-days", "--group", "--orphans", "--max-delete", "--yes", "--dry-run", "--json", "-v", "--verbose",
        "--lock-timeout",
        "--lock-stale-seconds",
    ],
    "prune-size": [
        "--max-mb", "--target-mb", "--max-sessions", "--max-delete", "--min-age-mins", "--keep-last", "--group",
        "--dry-run", "--json", "--verbose", "--yes", "--lock-timeout", "--lock-stale-seconds",
    ],
    "run-loop": ["--once", "--dry-run", "--max-failures", "--env-file"],
    "history": ["--since", "--session", "--json"],
    "health": ["--json"],
    "config": ["--json", "--env-file"],
    "completion": [],
    "help": [],
}  # fmt: skip
GLOBAL_FLAGS = [
    "--storage-dir", "--data-root", "--gofr-dig-env", "--log-format", "--log-level", "--color", "--quiet", "--help",
]  # fmt: skip

HOSTILE = "\x1b[31m\x07\r\x9b2J\x7f\u202eevil\u2028\ud800\udcff"
"""What a name may hold and a terminal must not get."""

RAW = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def strict(stderr: str) -> list[dict[str, Any]]:
    """Standard error, every line of which must be an event: strict JSON, with no member twice."""

    def refuse(text: str) -> None:
        raise AssertionError(f"not strict JSON: {text}")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({key for key, _ in pairs}) == len(pairs), f"a member comes twice: {pairs}"
        return dict(pairs)

    return [json.loads(line, parse_constant=refuse, object_pairs_hook=once) for line in stderr.splitlines()]


def complains(stderr: str) -> bool:
    return any(item["@l"] in ("Warning", "Error", "Fatal") for item in events(stderr))


def on_terminal(*arguments: object, env: dict[str, str] | None = None, both: bool = False) -> tuple[int, str, str]:
    """(exit code, standard output, what the terminal was sent that is standard error, or `both`)."""
    terminal, stderr = pty.openpty()
    process = subprocess.Popen(
        command(*arguments),
        env=clean_environment(env),
        stdin=subprocess.DEVNULL,
        stdout=stderr if both else subprocess.PIPE,
        stderr=stderr,
    )
    os.close(stderr)
    shown = b""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and select.select([terminal], [], [], 30)[0]:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # the last writer is gone
            break
        if not part:
            break
        shown += part
    os.close(terminal)
    stdout, _ = process.communicate(timeout=30)
    return process.returncode, (stdout or b"").decode(), shown.decode().replace("\r\n", "\n")


def with_redirection(redirection: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The tool with a descriptor closed or sent elsewhere, as a shell does it."""
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirection}', "sh", *command(*arguments)],
        # Buffered output fails at other moments than unbuffered output does, and is what everybody has.
        env=clean_environment({"PYTHONUNBUFFERED": ""}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def gone_reader() -> int:
    """The writing end of a pipe without a reader."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


# Help and version


def test_version_is_the_packages_version() -> None:
    done = run_tool("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"storage_manager {__version__}\n", "")


def test_help_names_every_command_and_every_exit_code() -> None:
    done = run_tool("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for name in FLAGS:
        assert re.search(rf"^ +{name} ", done.stdout, re.MULTILINE), name
    for code, meaning in EXIT_CODES.items():
        assert re.search(rf"^ +{code} +{re.escape(meaning)}$", done.stdout, re.MULTILINE), code
    for flag in [*GLOBAL_FLAGS, "--version"]:
        assert flag in done.stdout


def test_the_exit_codes_are_those_of_the_contract() -> None:
    assert set(EXIT_CODES) == {0, 1, 2, 64, 129, 130, 143}


@pytest.mark.parametrize("name", FLAGS)
def test_the_help_of_a_command_names_all_its_flags(name: str) -> None:
    done = run_tool(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    for flag in FLAGS[name] + GLOBAL_FLAGS:
        assert re.search(rf"(?<![\w-]){flag}(?![\w-])", done.stdout), flag


def test_the_help_of_prune_size_says_that_yes_changes_nothing() -> None:
    assert re.search(r"--yes\s+changes nothing", run_tool("prune-size", "--help").stdout)


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("prune-size", "--help")])
def test_help_to_a_reader_that_has_gone_away_is_no_error(arguments: tuple[str, ...]) -> None:
    writer = gone_reader()
    done = subprocess.run(
        command(*arguments),
        env=clean_environment({"PYTHONUNBUFFERED": ""}),
        stdout=writer,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_help_that_cannot_be_written_ends_with_a_code_of_the_contract() -> None:
    assert with_redirection(">/dev/full", "--help").returncode == 1


# Global options


@pytest.mark.parametrize("name", [words[0] for words in ONE_SHOTS])
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_global_options_are_taken_before_and_after_the_subcommand(storage: Path, name: str, before: bool) -> None:
    make_store(storage, 1)
    words = next(words for words in ONE_SHOTS if words[0] == name)
    options = ["--storage-dir", storage, "--gofr-dig-env", "PROD", "--log-format", "json", "--log-level", "debug"]
    done = run_tool(*options, *words) if before else run_tool(*words, *options)
    assert done.returncode == 0
    start = event(done.stderr, "storage_manager.command_start")
    assert (start["storage_dir"], start["environment"]) == (str(storage), "PROD")


def test_some_options_before_and_others_after_the_subcommand_add_up(storage: Path, tmp_path: Path) -> None:
    make_store(storage, 1)
    done = run_tool("--gofr-dig-env", "TEST", "list", "--data-root", tmp_path)
    start = event(done.stderr, "storage_manager.command_start")
    assert (start["storage_dir"], start["environment"]) == (str(storage), "TEST")
    assert start["storage_source"] == "--data-root"


def test_an_option_after_the_subcommand_wins_over_the_same_before_it(storage: Path) -> None:
    make_store(storage, 1)
    done = run_tool("--storage-dir", "/nowhere", "list", "--storage-dir", storage)
    assert event(done.stderr, "storage_manager.command_start")["storage_dir"] == str(storage)


VARIABLES = {"GOFR_DIG_STORAGE": "/a", "GOFR_DIG_STORAGE_DIR": "/b", "GOFR_DIG_DATA_DIR": "/c"}


@pytest.mark.parametrize(
    ("options", "variables", "expected"),
    [
        (["--storage-dir", "/x", "--data-root", "/y"], VARIABLES, "/x"),
        (["--data-root", "/y"], VARIABLES, "/y/storage"),
        ([], VARIABLES, "/a"),
        ([], {**VARIABLES, "GOFR_DIG_STORAGE": ""}, "/b"),
        ([], {"GOFR_DIG_DATA_DIR": "/c"}, "/c/storage"),
        ([], {}, "./data/storage"),
        ([], {**VARIABLES, "STORAGE_MANAGER_ENV_PREFIX": "OTHER", "OTHER_STORAGE": "/d"}, "/d"),
        ([], {**VARIABLES, "STORAGE_MANAGER_ENV_PREFIX": "OTHER"}, "./data/storage"),
    ],
)
def test_the_storage_directory_comes_from_the_first_that_names_it(
    options: list[str], variables: dict[str, str], expected: str
) -> None:
    done = run_tool("list", *options, env=variables)
    assert event(done.stderr, "storage_manager.command_start")["storage_dir"] == expected


def test_the_log_level_decides_what_standard_error_shows(storage: Path) -> None:
    make_store(storage / "below", 1)  # which is worth a warning
    assert {item["@l"] for item in events(run_tool("list", "--storage-dir", storage).stderr)} == {
        "Information",
        "Warning",
    }
    for level, expected in (("WARNING", {"Warning"}), ("error", set()), ("CRITICAL", set())):
        done = run_tool("list", "--storage-dir", storage, "--log-level", level)
        assert {item["@l"] for item in events(done.stderr)} == expected


@pytest.mark.parametrize("words", [*ONE_SHOTS, ("check",)], ids=lambda words: words[0])
def test_quiet_leaves_warnings_and_errors(storage: Path, words: tuple[str, ...]) -> None:
    make_store(storage, 1)
    found = [
        run_tool(*(("-q",) if before else ()), *words, *(() if before else ("--quiet",)), "--storage-dir", storage)
        for before in (True, False)
    ]
    assert [(done.returncode, done.stderr) for done in found] == [(0, ""), (0, "")]
    write_entries(storage, {})
    os.utime(next(storage.glob("*.json")), (1, 1))
    (storage / f"{uuid.uuid4()}.json").symlink_to("x")
    told = strict(run_tool("-q", *words, "--storage-dir", storage).stderr)
    assert told and {item["@l"] for item in told} == {"Warning"}


def test_quiet_and_a_level_show_what_both_do(storage: Path) -> None:
    make_store(storage / "below", 1)
    for level, expected in (("DEBUG", {"Warning"}), ("ERROR", set())):
        done = run_tool("-q", "list", "--storage-dir", storage, "--log-level", level)
        by_variable = run_tool("-q", "list", "--storage-dir", storage, env={"GOFR_DIG_LOG_LEVEL": level})
        for found in (done, by_variable):
            assert {item["@l"] for item in events(found.stderr)} == expected
    log = storage.parent / "log"
    run_tool("-q", "list", "--storage-dir", storage, env={"GOFR_DIG_LOG_FILE": str(log)})
    assert {"Information", "Warning"} == {item["@l"] for item in events(log.read_text())}


def test_the_level_of_the_option_wins_over_that_of_the_environment(storage: Path) -> None:
    make_store(storage, 1)
    env = {"GOFR_DIG_LOG_LEVEL": "ERROR"}
    assert run_tool("list", "--storage-dir", storage, env=env).stderr == ""
    assert events(run_tool("list", "--storage-dir", storage, "--log-level", "INFO", env=env).stderr)


def test_the_log_format_of_the_option_wins_over_that_of_the_environment(storage: Path) -> None:
    make_store(storage, 1)
    text = run_tool("list", "--storage-dir", storage, env={"GOFR_DIG_LOG_JSON": "false"}).stderr
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ INFO ", text)
    done = run_tool("list", "--storage-dir", storage, "--log-format", "json", env={"GOFR_DIG_LOG_JSON": "false"})
    assert strict(done.stderr)
    done = run_tool("list", "--storage-dir", storage, "--log-format", "text")
    assert done.stderr and not events(done.stderr)


# Wrong usage

WRONG = [
    [],
    ["frobnicate"],
    ["list", "extra"],
    ["list", "--frobnicate"],
    ["list", "--storage", "x"],  # no abbreviations: a new flag must not change what an old one means
    ["--log-format", "xml", "list"],
    ["--log-level", "LOUD", "list"],
    ["--gofr-dig-env", "STAGING", "list"],
    ["list", "--storage-dir"],
    ["stats", "--verbose"],
    ["run-loop", "--json"],
    ["run-loop", "--max-mb", "5"],
    *(["purge", "--age-days", value] for value in ("-1", "nan", "inf", "soon", "", "1e999", "5_000", "٣")),
    *(["purge", flag, "nan"] for flag in ("--lock-timeout", "--lock-stale-seconds")),
    *([name, "--lock-stale-seconds", secs] for name in ("purge", "check") for secs in ("0", "29.9", "1e-300")),
]
WRONG_PRUNE = [
    ["prune-size", "--max", "5"],
    *(
        ["prune-size", "--max-mb", value]
        for value in ("0", "-5", "nan", "inf", "-inf", "many", "", "5X", "5_000", "٣", "0x10", "1e999", "9999P", "0.1B")
    ),
    ["prune-size", "--max-mb", "5", "--target-mb", "0"],
    ["prune-size", "--max-mb", "5", "--target-mb", "nan"],
    ["prune-size", "--max-mb", "5", "--min-age-mins", "-1"],
    ["prune-size", "--max-mb", "5", "--min-age-mins", "nan"],
    ["prune-size", "--max-mb", "5", "--keep-last", "-1"],
    ["prune-size", "--max-mb", "5", "--keep-last", "1.5"],
    ["prune-size", "--max-mb", "5", "--lock-timeout", "inf"],
    *(["prune-size", "--max-mb", "5", "--lock-stale-seconds", secs] for secs in ("-1", "0", "29.9", "1e-300")),
]


@pytest.mark.parametrize("arguments", WRONG + WRONG_PRUNE, ids=" ".join)
def test_wrong_usage_ends_with_64_a_message_a_hint_and_an_event(
    here: None, capfd: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert cli.main(arguments) == 64
    stdout, stderr = capfd.readouterr()
    assert stdout == ""
    assert stderr.startswith("usage: storage_manager")
    assert re.search(r"^storage_manager( [a-z-]+)?: error: .", stderr, re.MULTILINE)
    assert re.search(r"^Try 'storage_manager( [a-z-]+)? --help'\.$", stderr, re.MULTILINE)
    [told] = events(stderr)
    kind = "prune.validation_failed" if arguments in WRONG_PRUNE else "command_failed"
    assert told["event"] == f"storage_manager.{kind}"
    assert (told["@l"], told["exit_code"]) == ("Error", 64)


def test_wrong_usage_of_a_real_process_ends_with_64(storage: Path) -> None:
    guids = make_store(storage, 3)
    done = run_tool("prune-size", "--storage-dir", storage, "--max-mb", "0")
    assert done.returncode == 64
    assert "'0': it must be greater than 0" in done.stderr
    assert blobs(storage) == set(guids)


def test_the_usage_event_is_that_of_the_command_and_not_of_a_word_that_looks_like_one(
    here: None, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["prune-size", "--group", "purge"]) == 64
    told = event(capfd.readouterr().err, "storage_manager.prune.validation_failed")
    assert told["command"] == "prune-size"


def test_a_target_above_the_limit_is_wrong_usage(storage: Path) -> None:
    guids = make_store(storage, 3)
    done = run_tool("prune-size", "--storage-dir", storage, "--max-mb", "1000B", "--target-mb", "2000B")
    assert done.returncode == 64
    assert done.stdout == ""
    failed = event(done.stderr, "storage_manager.prune.validation_failed")
    assert "--target-mb" in failed["@m"]
    assert blobs(storage) == set(guids)


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_wrong_usage_ends_with_64_even_if_nothing_can_be_said(redirection: str) -> None:
    assert with_redirection(redirection, "frobnicate").returncode == 64


def test_wrong_usage_ends_with_64_even_if_nobody_listens() -> None:
    writer = gone_reader()
    done = subprocess.run(command("frobnicate"), env=clean_environment(), stderr=writer, timeout=60, check=False)
    os.close(writer)
    assert done.returncode == 64


def test_wrong_usage_is_told_the_log_file_too(tmp_path: Path) -> None:
    run_tool("list", "--frobnicate", env={"GOFR_DIG_LOG_FILE": str(tmp_path / "log")})
    assert event((tmp_path / "log").read_text(), "storage_manager.command_failed")["exit_code"] == 64


def test_wrong_usage_on_a_terminal_is_a_message_for_people_only() -> None:
    exit_code, stdout, shown = on_terminal("prune-size", "--max-mb", "\x1b[31mfive")
    assert (exit_code, stdout) == (64, "")
    assert "Try 'storage_manager prune-size --help'." in shown
    assert not events(shown) and not RAW.search(shown)


def test_wrong_usage_shows_no_control_character() -> None:
    hostile = "\x1b[31m\x07\r\x9b\u202e".encode() + b"\xff"
    for arguments in ([b"prune-size", b"--max-mb", hostile], [hostile], [b"list", hostile]):
        done = subprocess.run(
            [*command(), *arguments], env=clean_environment(), capture_output=True, timeout=60, check=False
        )
        assert done.returncode == 64
        assert not RAW.search(done.stderr.decode().replace("\n", "")), arguments


# Streams


@pytest.mark.parametrize("words", ONE_SHOTS, ids=lambda words: words[0])
def test_standard_error_is_strict_json_with_the_fields_of_every_event(storage: Path, words: tuple[str, ...]) -> None:
    make_store(storage, 3)
    done = run_tool(*words, "--storage-dir", storage)
    found = strict(done.stderr)
    assert [found[0]["event"], found[-1]["event"]] == ["storage_manager.command_start", "storage_manager.command_end"]
    assert found[-1]["exit_code"] == done.returncode == 0
    assert isinstance(found[-1]["duration_ms"], int)
    for item in found:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", item["@t"])
        assert item["@m"] and item["@l"] in ("Debug", "Information", "Warning", "Error", "Fatal")
        assert re.fullmatch(r"(storage_manager|housekeeper)(\.[a-z_]+)+", item["event"])
        assert item["logger"] == "storage_manager"
        assert item["version"] == __version__
        assert item["host"] == os.uname().nodename
        assert isinstance(item["pid"], int)
        assert re.fullmatch(r"[0-9a-f]{16}", item["run_id"])


def test_a_command_has_one_run_id_and_another_command_another(storage: Path) -> None:
    make_store(storage, 1)
    runs = [{item["run_id"] for item in events(run_tool("list", "--storage-dir", storage).stderr)} for _ in range(2)]
    assert len(runs[0]) == len(runs[1]) == 1
    assert runs[0] != runs[1]


def test_results_go_to_standard_output_and_nothing_else_does(storage: Path) -> None:
    guids = make_store(storage, 3)
    done = run_tool("list", "--storage-dir", storage, "--log-level", "DEBUG")
    assert done.stdout.splitlines() == guids
    assert run_tool("run-loop", "--once", "--storage-dir", storage).stdout == ""


def test_on_a_terminal_a_one_shot_command_shows_warnings_only_and_as_text(storage: Path) -> None:
    make_store(storage, 2)
    exit_code, stdout, shown = on_terminal("list", "--storage-dir", storage)
    assert (exit_code, shown) == (0, "")
    assert len(stdout.splitlines()) == 2
    make_store(storage / "empty" / "sessions", 1)
    exit_code, stdout, shown = on_terminal("list", "--storage-dir", storage / "empty")
    assert (exit_code, stdout) == (0, "")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ WARNING .*sessions\?\n", shown)


SHOWN = "\x1b[31m"  # what is over a limit, and an unhealthy verdict


@pytest.mark.parametrize(
    ("words", "variables", "is_coloured"),
    [
        ((), {}, True),
        (("--color", "auto"), {}, True),
        ((), {"NO_COLOR": "1"}, False),
        (("--color", "always"), {"NO_COLOR": "1"}, True),
        (("--color", "never"), {}, False),
        ((), {"TERM": "dumb"}, False),
        ((), {"TERM": ""}, False),
    ],
)
def test_a_terminal_is_shown_colours_unless_somebody_does_not_want_them(
    storage: Path, words: tuple[str, ...], variables: dict[str, str], is_coloured: bool
) -> None:
    make_store(storage, 2, size=1000)
    orphan = storage / f"{uuid.uuid4()}.json"
    orphan.write_bytes(b"x")
    os.utime(orphan, (0, 0))
    env = {"GOFR_DIG_MAX_STORAGE_MB": "1000B", "TERM": "xterm", "NO_COLOR": "", **variables}
    for command_name in ("stats", "health"):
        _, _, shown = on_terminal(command_name, *words, "--storage-dir", storage, env=env, both=True)
        assert (SHOWN in shown) is is_coloured, shown
        assert is_coloured or "\x1b" not in shown
    _, _, warned = on_terminal("list", *words, "--storage-dir", storage, env=env)
    assert ("\x1b[33mWARNING\x1b[0m " in warned) is is_coloured


def test_nothing_is_coloured_where_no_terminal_is_but_on_request(storage: Path) -> None:
    make_store(storage, 2, size=1000)
    env = {"GOFR_DIG_MAX_STORAGE_MB": "1000B", "TERM": "xterm", "NO_COLOR": ""}
    plain = run_tool("stats", "--storage-dir", storage, env=env)
    assert "\x1b" not in plain.stdout + plain.stderr
    asked = run_tool("stats", "--color", "always", "--log-format", "text", "--storage-dir", storage, env=env).stdout
    assert SHOWN in asked
    assert asked.replace(SHOWN, "").replace("\x1b[0m", "") == plain.stdout
    assert SHOWN not in run_tool("stats", "--color", "always", "--storage-dir", storage).stdout, "below its limit"
    for words in (["stats", "--json"], ["list", "--json"], ["health", "--json"], ["check", "--json"]):
        done = run_tool(*words, "--color", "always", "--storage-dir", storage, env=env)
        assert "\x1b" not in done.stdout and "\x1b" not in done.stderr


ODD = (["list"], ["purge", "--dry-run"], ["purge"], ["prune-size", "--max-mb", "1500B"])


@pytest.mark.parametrize("words", ODD, ids=" ".join)
def test_on_a_terminal_what_is_odd_stands_once_and_behind_the_answer(storage: Path, words: list[str]) -> None:
    make_store(storage, 2)
    for _ in range(2):
        (storage / f"{uuid.uuid4()}.json").symlink_to("x")
    exit_code, _, shown = on_terminal(*words, "--storage-dir", storage, both=True)
    assert exit_code == 0 and shown.count("WARNING") == 1
    assert " WARNING 2 blobs of the wrong type, 0 B: " in shown.splitlines()[-1]
    exit_code, stdout, shown = on_terminal(*words, "--storage-dir", storage)
    assert exit_code == 0 and shown.count("WARNING") == 1 and stdout
    assert " WARNING 2 blobs of the wrong type, 0 B: " in shown


def test_on_a_terminal_the_table_of_stats_tells_what_is_odd(storage: Path) -> None:
    make_store(storage, 2)
    (storage / f"{uuid.uuid4()}.json").symlink_to("x")
    asked = ("stats", "--storage-dir", storage)
    exit_code, _, shown = on_terminal(*asked, both=True)
    assert exit_code == 0 and "WARNING" not in shown
    assert re.search(r"^not a file +1 +0 B$", shown.replace("\r", ""), re.MULTILINE)
    for exit_code, _, shown in (on_terminal(*asked), on_terminal(*asked, "--group", "public", both=True)):
        assert exit_code == 0 and " WARNING 1 blob of the wrong type, 0 B: " in shown


def test_on_a_terminal_why_a_command_failed_stands_behind_what_is_odd(storage: Path) -> None:
    guids = make_store(storage, 40)
    for guid in guids[5:]:
        (storage / f"{guid}.json").unlink()
    (storage / f"{uuid.uuid4()}.json").symlink_to("x")
    exit_code, _, shown = on_terminal("prune-size", "--max-mb", "1500B", "--storage-dir", storage, both=True)
    odd, why = shown.splitlines()
    assert exit_code == 1 and " WARNING 1 blob of the wrong type" in odd and " have no blob" in why


def test_a_table_with_a_limit_says_on_a_terminal_alone_how_many_are_not_shown(storage: Path) -> None:
    make_store(storage, 5, size=1000)
    asked = ("list", "-v", "--limit", "2", "--storage-dir", storage)
    assert on_terminal(*asked, both=True)[2].splitlines()[-1] == "3 more, 2.9 KB, are not shown (--limit)"
    assert len(run_tool(*asked).stdout.splitlines()) == 3
    for more in ("--json", "--limit=5"):
        assert "not shown" not in on_terminal(*asked, more, both=True)[2]


def test_on_a_terminal_a_failure_is_one_line_of_text(tmp_path: Path) -> None:
    exit_code, _, shown = on_terminal("prune-size", "--max-mb", "5", "--storage-dir", tmp_path / "absent")
    assert exit_code == 1
    [line] = shown.splitlines()
    assert " ERROR " in line and str(tmp_path / "absent") in line and "--storage-dir" in line


def test_on_a_terminal_the_loop_shows_its_events_as_text(storage: Path) -> None:
    make_store(storage, 1)
    exit_code, _, shown = on_terminal("run-loop", "--once", "--storage-dir", storage)
    assert exit_code == 0
    assert " INFO " in shown and not events(shown)


def test_options_override_what_a_terminal_decides(storage: Path) -> None:
    make_store(storage, 1)
    assert strict(on_terminal("list", "--storage-dir", storage, "--log-level", "INFO", "--log-format", "json")[2])
    assert " INFO " in on_terminal("list", "--storage-dir", storage, "--log-level", "INFO")[2]
    make_store(storage / "empty" / "sessions", 1)
    shown = on_terminal("list", "--storage-dir", storage / "empty", env={"GOFR_DIG_LOG_JSON": "true"})[2]
    assert [item["@l"] for item in strict(shown)] == ["Warning"]


def test_nothing_raw_from_a_directorys_name_reaches_a_terminal(tmp_path: Path) -> None:
    absent = str(tmp_path / "\x1b]0;evil\x07\r\u202e")
    _, _, shown = on_terminal("stats", "--storage-dir", absent)
    assert "does not exist" in shown
    assert not RAW.search(shown)


# Readers that go away, disks that are full, descriptors that are closed


@pytest.mark.parametrize("words", [["list"], ["list", "-v"], ["list", "--json"], ["stats"], ["stats", "--json"]])
def test_a_reader_that_has_gone_away_is_no_error(storage: Path, words: list[str]) -> None:
    make_store(storage, 3)
    writer = gone_reader()
    done = subprocess.run(
        command(*words, "--storage-dir", storage),
        env=clean_environment({"PYTHONUNBUFFERED": ""}),
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    os.close(writer)
    assert done.returncode == 0
    assert not complains(done.stderr)
    assert strict(done.stderr)[-1]["exit_code"] == 0


def test_a_reader_that_takes_the_first_line_only_is_no_error(storage: Path) -> None:
    guids = make_store(storage, 1)
    entries = read_entries(storage)
    for number in range(3000):  # more than a pipe holds; entries suffice
        entries[f"ffffffff-ffff-4fff-8fff-{number:012}"] = {"format": "json", "created_at": "2026-06-01T00:00:00"}
    write_entries(storage, entries)
    with subprocess.Popen(
        command("list", "--json", "--storage-dir", storage),
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as tool:
        assert tool.stdout is not None and tool.stderr is not None
        assert json.loads(tool.stdout.readline())["guid"] == guids[0]
        tool.stdout.close()
        stderr = tool.stderr.read()
        assert tool.wait(timeout=30) == 0
    assert strict(stderr)[-1]["exit_code"] == 0


def test_a_prune_whose_reader_has_gone_away_is_done_all_the_same(storage: Path) -> None:
    guids = make_store(storage, 5, size=1000)
    writer = gone_reader()
    done = subprocess.run(
        command("prune-size", "--max-mb", "2000B", "--verbose", "--storage-dir", storage),
        env=clean_environment(),
        stdout=writer,
        stderr=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )
    os.close(writer)
    assert done.returncode == 0
    assert blobs(storage) == set(read_entries(storage)) == set(guids[3:])


@pytest.mark.parametrize("words", [["list"], ["stats", "--json"], ["prune-size", "--max-mb", "9"], ["purge"]])
def test_a_result_that_cannot_be_written_is_a_failure(storage: Path, words: list[str]) -> None:
    make_store(storage, 1)
    done = with_redirection(">/dev/full", *words, "--storage-dir", storage)
    assert done.returncode == 1
    failed = [item for item in strict(done.stderr) if item["event"] == "storage_manager.command_failed"]
    assert len(failed) == 1
    assert "ENOSPC" in failed[0]["@m"]


def test_a_prune_whose_result_cannot_be_written_has_pruned_all_the_same(storage: Path) -> None:
    guids = make_store(storage, 5, size=1000)
    done = with_redirection(">/dev/full", "prune-size", "--max-mb", "2000B", "--storage-dir", storage)
    assert done.returncode == 1
    assert blobs(storage) == set(read_entries(storage)) == set(guids[3:])


def test_a_standard_error_that_is_full_changes_nothing(storage: Path) -> None:
    guids = make_store(storage, 3)
    done = with_redirection("2>/dev/full", "list", "--storage-dir", storage)
    assert done.returncode == 0
    assert done.stdout.splitlines() == guids


@pytest.mark.parametrize("redirection", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_closed_descriptors_neither_fail_a_prune_nor_harm_the_store(storage: Path, redirection: str) -> None:
    guids = make_store(storage, 5, size=1000)
    done = with_redirection(redirection, "prune-size", "--max-mb", "2000B", "--verbose", "--storage-dir", storage)
    assert done.returncode == 0
    assert blobs(storage) == set(read_entries(storage)) == set(guids[3:])
    assert leftovers(storage) == []


def test_a_question_that_cannot_be_asked_is_not_answered(storage: Path) -> None:
    guids = make_store(storage, 2)
    done = with_redirection("2>/dev/full", "purge", "--age-days", "0", "--storage-dir", storage)
    assert (done.returncode, done.stdout) == (1, "")
    assert blobs(storage) == set(guids)


@pytest.mark.parametrize(("words", "code"), [(["list"], 1), (["stats", "--json"], 1), (["check"], 0)])
def test_what_only_tells_fails_where_nobody_can_be_told(storage: Path, words: list[str], code: int) -> None:
    make_store(storage, 2)
    done = with_redirection(">&-", *words, "--storage-dir", storage)
    assert done.returncode == code
    end = strict(done.stderr)[-1]
    assert end["exit_code"] == code
    assert ("cannot write the result: standard output is closed (EBADF)" in end["@m"]) == (code == 1)


# Failures


@pytest.mark.parametrize("words", ONE_SHOTS, ids=lambda words: words[0])
def test_a_missing_directory_is_named_with_the_remedy_and_not_created(tmp_path: Path, words: tuple[str, ...]) -> None:
    absent = tmp_path / "absent" / "storage"
    done = run_tool(*words, "--storage-dir", absent)
    assert (done.returncode, done.stdout) == (1, "")
    assert any(
        str(absent) in item["@m"] and "--storage-dir" in item["@m"] and item["@l"] in ("Warning", "Error")
        for item in strict(done.stderr)
    )
    assert not (tmp_path / "absent").exists()


def test_a_storage_directory_that_is_a_file_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run_tool("list", "--storage-dir", tmp_path / "file")
    assert done.returncode == 1
    assert "is not a directory" in event(done.stderr, "storage_manager.command_failed")["@m"]


def test_on_a_terminal_check_tells_each_thing_once(storage: Path) -> None:
    """Elsewhere the events are not to be missed."""
    make_store(storage, 2)
    orphan = storage / f"{uuid.uuid4()}.json"
    orphan.write_bytes(b"x")
    os.utime(orphan, (1e9, 1e9))
    exit_code, _, shown = on_terminal("check", "--storage-dir", storage, both=True)
    assert (exit_code, shown.count(orphan.name), shown.count("1 orphan")) == (1, 1, 1)
    exit_code, stdout, shown = on_terminal("check", "--storage-dir", storage)
    assert exit_code == 1 and orphan.name in stdout and orphan.name in shown
    (storage / ".prune_size.lock").write_text("pid=1 started_at=1\n")
    exit_code, _, shown = on_terminal("check", "--adopt-orphans", "back", "--storage-dir", storage, both=True)
    assert exit_code == 2 and "another prune holds" in shown


def test_a_directory_without_metadata_is_an_empty_store(storage: Path) -> None:
    for words in ONE_SHOTS:
        done = run_tool(*words, "--storage-dir", storage)
        assert done.returncode == 0
        assert not complains(done.stderr)
    assert os.listdir(storage) == []


@pytest.mark.parametrize("words", ONE_SHOTS, ids=lambda words: words[0])
def test_a_store_one_level_below_is_pointed_out(storage: Path, words: tuple[str, ...]) -> None:
    guids = make_store(storage / "sessions", 3)
    done = run_tool(*words, "--storage-dir", storage)
    suspect = event(done.stderr, "storage_manager.storage_suspect")
    assert suspect["@l"] == "Warning"
    assert str(storage / "sessions") in suspect["@m"]
    assert blobs(storage / "sessions") == set(guids)


def test_the_lock_of_another_ends_prunes_with_2_and_lets_the_rest_pass(storage: Path) -> None:
    guids = make_store(storage, 3, size=1000)
    with open(storage / ".prune_size.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for words, expected in (
            (["prune-size", "--max-mb", "1000B"], 2),
            (["purge", "--age-days", "0", "--yes"], 2),
            (["run-loop", "--once"], 2),
            (["prune-size", "--max-mb", "1000B", "--dry-run"], 0),
            (["purge", "--age-days", "0", "--dry-run"], 0),
            (["list"], 0),
            (["stats"], 0),
        ):
            done = run_tool(*words, "--storage-dir", storage)
            assert done.returncode == expected, words
            assert complains(done.stderr) == (expected == 2), words
    assert blobs(storage) == set(guids)


@pytest.mark.parametrize(("signum", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_waiting_for_the_lock_ends_the_command(
    storage: Path, signum: signal.Signals, expected: int
) -> None:
    guids = make_store(storage, 3, size=1000)
    with open(storage / ".prune_size.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        arguments = command("prune-size", "--max-mb", "1000B", "--lock-timeout", "60", "--storage-dir", storage)
        with Running(arguments) as tool:
            tool.wait_for("storage_manager.command_start")
            tool.send(signum)
            assert tool.end() == expected
    failed = next(item for item in tool.seen if item["event"] == "storage_manager.command_failed")
    assert (failed["@l"], failed["exit_code"]) == ("Warning", expected)
    assert tool.seen[-1]["exit_code"] == expected
    assert blobs(storage) == set(guids)


@pytest.mark.parametrize(("signum", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_the_middle_of_a_prune_ends_it_after_committing(
    storage: Path, signum: signal.Signals, expected: int
) -> None:
    guids = make_store(storage, 600, size=1000)
    with Running(command("prune-size", "--max-mb", "1000B", "--storage-dir", storage)) as tool:
        # The pipe has no room for 599 events, so the prune cannot be over before they are read.
        tool.wait_for("storage_manager.prune.deleted")
        tool.send(signum)
        assert tool.end() == expected
    deleted = tool.count("storage_manager.prune.deleted")
    assert 0 < deleted < 599
    assert set(read_entries(storage)) == blobs(storage) == set(guids[deleted:])
    assert leftovers(storage) == []
    summary = next(item for item in tool.seen if item["event"] == "storage_manager.prune.summary")
    assert (summary["deleted_count"], summary["exit_code"]) == (deleted, expected)


def test_a_signal_while_metadata_stays_torn_ends_a_reader_at_once(storage: Path) -> None:
    make_store(storage, 3)
    (storage / "metadata.json").write_bytes((storage / "metadata.json").read_bytes()[:-20])
    with Running(command("list", "--storage-dir", storage), preexec_fn=signals_as_usual) as tool:
        tool.wait_for("storage_manager.command_start")
        asked = time.monotonic()
        tool.send(signal.SIGTERM)
        assert tool.end() == 143
        assert time.monotonic() - asked < 5


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (RuntimeError("unforeseen"), "RuntimeError: unforeseen"),
        (MemoryError(), "not enough memory"),
        (OSError(5, "Input/output error", "/some/file"), "Input/output error (EIO): /some/file"),
    ],
)
def test_whatever_goes_wrong_is_one_sentence_an_event_and_exit_code_1(
    here: None,
    storage: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    fault: Exception,
    sentence: str,
) -> None:
    def run(*arguments: Any) -> int:
        raise fault

    monkeypatch.setattr(stats, "run", run)
    assert cli.main(["stats", "--storage-dir", str(storage)]) == 1
    stdout, stderr = capfd.readouterr()
    assert stdout == ""
    strict(stderr)
    failed = event(stderr, "storage_manager.command_failed")
    assert failed["@l"] == "Error"
    assert sentence in failed["@m"] and "\n" not in failed["@m"]
    assert ("@x" in failed) == isinstance(fault, RuntimeError)
    assert event(stderr, "storage_manager.command_end")["exit_code"] == 1


def test_corrupt_metadata_is_one_event_exit_code_1_and_no_word_of_its_contents(
    here: None, storage: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("commit", "reading", "recovery", "survey"):
        monkeypatch.setattr(f"storage_manager.store.{module}.READ_PATIENCE_SECS", 0.01)
    make_store(storage, 3, url="https://example.org/?token=SECRET")
    torn = (storage / "metadata.json").read_bytes()[:-30]
    for spoiled in (torn, torn + b"SECRET}", b"[]", b"", b'{"SECRET": }'):
        (storage / "metadata.json").write_bytes(spoiled)
        for words in (*ONE_SHOTS, ("purge", "--age-days", "0", "--yes"), ("prune-size", "--max-mb", "1B", "--dry-run")):
            assert cli.main([*words, "--storage-dir", str(storage)]) == 1
            stdout, stderr = capfd.readouterr()
            assert stdout == ""
            assert "SECRET" not in stderr
            assert len([item for item in strict(stderr) if item["event"] == "storage_manager.metadata_corrupt"]) == 1
            assert (storage / "metadata.json").read_bytes() == spoiled
            assert len(blobs(storage)) == 3


def test_unusable_variables_are_reported_by_one_shot_commands_too(storage: Path) -> None:
    make_store(storage, 1)
    done = run_tool("stats", "--json", "--storage-dir", storage, env={"GOFR_DIG_MAX_STORAGE_MB": "plenty"})
    assert done.returncode == 0
    told = event(done.stderr, "housekeeper.invalid_env")
    assert (told["variable"], told["value"]) == ("GOFR_DIG_MAX_STORAGE_MB", "plenty")
    assert json.loads(done.stdout)["limit_mb"] == 1024


# What must never be shown


def test_no_control_character_or_lone_surrogate_of_a_store_is_shown_or_logged(tmp_path: Path) -> None:
    storage = tmp_path / "\x1b]0;x\x07\u202e"
    make_store(storage, 3, group=HOSTILE)
    entries = read_entries(storage)
    entries[HOSTILE] = {"format": "json"}
    entries["22222222-2222-4222-8222-222222222222"] = {"format": HOSTILE, "created_at": HOSTILE, "group": HOSTILE}
    entries["33333333-3333-4333-8333-333333333333"] = {
        "format": "json",
        "created_at": "2026-01-01T00:00:00",
        "group": HOSTILE,
    }
    write_entries(storage, entries)
    for words in (
        ["list"],
        ["list", "-v"],
        ["list", "--json"],
        ["stats"],
        ["stats", "--json"],
        ["prune-size", "--max-mb", "1B", "--dry-run", "--verbose"],
        ["prune-size", "--max-mb", "1B", "--dry-run", "--json"],
        ["run-loop", "--once", "--dry-run"],
        ["prune-size", "--max-mb", "1500B", "--verbose", "--json"],
        ["purge", "--age-days", "0", "--yes"],
    ):
        for log_format in ("json", "text"):
            done = run_tool(*words, "--log-format", log_format, "--storage-dir", storage)  # decoded as strict UTF-8
            assert done.returncode in (0, 1)
            for text in (done.stdout, done.stderr):
                assert not RAW.search(text.replace("\n", "")), (words, log_format)
                if text.startswith("{"):
                    # An escaped lone surrogate is raw again in whoever parses the line.
                    parsed = "".join(str(json.loads(line)) for line in text.splitlines())
                    assert not re.search("[\ud800-\udfff]", parsed)
    assert blobs(storage) == set()


def test_a_group_on_the_command_line_that_is_not_utf_8_is_harmless(storage: Path) -> None:
    guids = make_store(storage, 2)
    for words in (["list"], ["stats"], ["stats", "--json"], ["purge", "--age-days", "0", "--yes", "--json"]):
        done = subprocess.run(
            [*command(*words, "--storage-dir", storage, "--group"), b"\xff\x1b[31m"],
            env=clean_environment(),
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0
        strict(done.stderr.decode())
        assert not RAW.search(done.stdout.decode().replace("\n", ""))
    assert blobs(storage) == set(guids)


def test_extra_keys_of_entries_are_never_logged_or_shown(storage: Path, tmp_path: Path) -> None:
    make_store(storage, 3, url="https://example.org/?token=SECRET", aliases=["SECRET"], SECRET=1)
    entries = read_entries(storage)
    corrupt = {"format": "../SECRET", "size": "SECRET", "created_at": "SECRET", "url": "SECRET", "group": ["SECRET"]}
    entries["22222222-2222-4222-8222-222222222222"] = corrupt
    entries["33333333-3333-4333-8333-333333333333"] = "SECRET"
    entries["44444444-4444-4444-8444-444444444444"] = {**corrupt, "format": "json", "created_at": "2026-01-01T00:00:00"}
    write_entries(storage, entries)
    log = tmp_path / "log"
    for words in (
        ["list", "--json"],
        ["list", "-v"],
        ["stats"],
        ["stats", "--json"],
        ["prune-size", "--max-mb", "1B", "--dry-run", "--json", "--verbose"],
        ["run-loop", "--once"],
        ["purge", "--age-days", "0", "--yes"],
    ):
        done = run_tool(*words, "--log-level", "DEBUG", "--storage-dir", storage, env={"GOFR_DIG_LOG_FILE": str(log)})
        assert done.returncode == 0
        assert "SECRET" not in done.stdout + done.stderr
    assert len(log.read_text().splitlines()) > 20
    assert "SECRET" not in log.read_text()


def test_main_takes_arguments_and_returns_the_exit_code(
    here: None, storage: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    guids = make_store(storage, 2)
    monkeypatch.setattr("sys.argv", ["storage_manager", "list", "--storage-dir", str(storage)])
    assert cli.main() == 0
    assert capfd.readouterr().out.splitlines() == guids
    assert cli.main(["list", "--storage-dir", "/nowhere/at/all"]) == 1


def test_a_program_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "storage_manager", tmp_path / "storage_manager")
    (tmp_path / "storage_manager" / "store" / "inventory.py").unlink()
    done = run_tool("list", env={"PYTHONPATH": str(tmp_path)}, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch("storage_manager: cannot start: .*inventory.*\n", done.stderr)


def test_a_late_import_that_fails_is_one_sentence(
    here: None, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOFR_DIG_LOG_FILE", str(tmp_path / "log"))
    monkeypatch.setitem(sys.modules, "storage_manager.loop.own_files", None)
    assert cli.main(["list"]) == 1
    assert re.fullmatch("storage_manager: cannot start: .*own_files.*\n", capfd.readouterr().err)


def test_every_command_module_is_on_the_command_line() -> None:
    assert [command.name for command in COMMANDS] == list(FLAGS)
    modules = {module.name for module in pkgutil.iter_modules(storage_manager.commands.__path__)}
    assert {command.module for command in COMMANDS} == modules - {"outcome", "preview", "tables"}
