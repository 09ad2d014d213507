"""Help: what there is to say about a command, on one screen."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
from pathlib import Path

import pytest
from stores import ROOT, clean_environment, command, make_store, run_tool

from storage_manager.config import DEFAULT_PREFIX, NAMES
from storage_manager.grammar import COMMANDS, outlines
from storage_manager.usage.outline import Outline, read_options
from storage_manager.usage.page import page, synopsis

NAMES_OF_COMMANDS = [each.name for each in COMMANDS]
EXAMPLES = [(each, example) for each in COMMANDS for example in each.examples]
TOOL, *_ = OUTLINES = outlines()

each_command = pytest.mark.parametrize("name", NAMES_OF_COMMANDS)


def shown(*arguments: str, columns: int = 80, rows: int = 24, **env: str) -> str:
    done = run_tool(*arguments, env={"COLUMNS": str(columns), "LINES": str(rows), **env})
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@each_command
def test_a_commands_help_is_one_screen_with_a_line_to_type_in(name: str) -> None:
    lines = shown(name, "--help").splitlines()
    assert len(lines) < 24
    assert max(map(len, lines)) <= 80


def test_the_list_of_commands_is_one_screen() -> None:
    lines = shown("help").splitlines()
    assert len(lines) < 24
    assert max(map(len, lines)) <= 80
    assert {words[0] for line in lines if (words := line.split())} >= set(NAMES_OF_COMMANDS)


@each_command
def test_help_of_a_command_is_its_own_help(name: str) -> None:
    assert shown("help", name) == shown(name, "--help")


def test_a_large_terminal_is_told_everything_and_a_narrow_one_is_not_overrun() -> None:
    assert shown("help", rows=60) == shown("--help", rows=60) == shown("--help")
    large = shown("help", "prune-size", columns=200, rows=50)
    assert f"[{DEFAULT_PREFIX}_STORAGE]" in large
    assert max(map(len, large.splitlines())) <= 100
    for line in shown("help", "prune-size", columns=50).splitlines():
        assert len(line) <= 50 or " storage_manager" in line or "usage:" in line  # those are to be copied


def test_usage_has_what_must_be_given_first_and_each_thing_once() -> None:
    parser = argparse.ArgumentParser(prog="tool config")
    parser.add_argument("action", choices=("show", "check"), nargs="?", help="50 %% of %(prog)s")
    parser.add_argument("files", metavar="FILE", nargs="*")
    parser.add_argument("--from", metavar="FILE")
    parser.add_argument("--to", metavar="FILE", required=True)
    parser.add_argument("--hidden", help=argparse.SUPPRESS)
    own = [option for option in read_options(parser, {}) if "--help" not in option.names]
    assert own[0].help == "50 % of tool config"
    outline = Outline(parser.prog, "config", "configure", own, [], (), "")
    assert synopsis(outline, 200) == (
        "usage: tool config [show|check] [FILE] --to FILE [--from FILE] [GLOBAL OPTION ...]"
    )
    assert page(outline, [], 80, 24).startswith("usage: tool config [show|check] [FILE] --to FILE [OPTION ...]\n")


def test_help_needs_no_locale_and_no_terminal() -> None:
    plain = shown("--help")
    assert plain.isascii()
    assert shown("--help", LANG="C", LC_ALL="C", PYTHONUTF8="0", TERM="dumb") == plain


@pytest.mark.parametrize("outline", OUTLINES, ids=lambda outline: outline.name or "tool")
def test_help_says_something_about_each_option(outline) -> None:
    text = shown(*filter(None, [outline.name]), "--help", columns=100, rows=99)
    for option in (*outline.own, *outline.everywhere):
        assert option.help and option.heading in text, option


def test_the_variable_behind_an_option_stands_beside_it() -> None:
    named = {option.names[-1]: re.findall(rf"\[{DEFAULT_PREFIX}_(\w+)\]", option.help) for option in TOOL.everywhere}
    assert {name: variables for name, variables in named.items() if variables} == {
        "--storage-dir": ["STORAGE"],
        "--data-root": ["DATA_DIR"],
        "--gofr-dig-env": ["ENV"],
        "--log-format": ["LOG_JSON"],
        "--log-level": ["LOG_LEVEL"],
    }


@pytest.mark.parametrize("prefix", [DEFAULT_PREFIX, "SHOP"])
def test_a_variable_stands_there_with_its_name_and_value_of_now(prefix: str) -> None:
    def shown_with(*words: str, **values: str) -> str:
        env = {f"{prefix}_{name}": value for name, value in values.items()}
        return " ".join(shown(*words, STORAGE_MANAGER_ENV_PREFIX=prefix, **env).split())

    plain = shown_with("--help")
    assert f"[{prefix}_STORAGE] --data-root DIR" in plain and f"[{prefix}_LOG_LEVEL=INFO]" in plain
    assert f"by terminal [{prefix}_LOG_JSON] --log-level" in plain  # its default is no value
    told = shown_with("--help", STORAGE="/srv/one\n", LOG_LEVEL="debug", LOG_JSON="no")
    assert f"[{prefix}_STORAGE=/srv/one] --data-root DIR" in told
    assert f"[{prefix}_LOG_LEVEL=debug]" in told and f"[{prefix}_LOG_JSON=no]" in told
    for words in (("run-loop", "--help"), ("help", "run-loop")):
        told = shown_with(*words, MAX_STORAGE_MB="20G", HOUSEKEEPING_INTERVAL_MINS="soon", ENV_FILE="/etc/a b")
        assert f"The limit is {prefix}_MAX_STORAGE_MB=20G, the interval" in told
        assert f"{prefix}_HOUSEKEEPING_INTERVAL_MINS (not as it is set: see `config`)." in told
        assert f"[{prefix}_ENV_FILE=/etc/a b]" in told and "GOFR_DIG_MAX_STORAGE_MB=10G storage_manager" in told
    assert "_MINS=60 (not as it is set" in shown_with("help", "run-loop", HOUSEKEEPING_INTERVAL_MINS="soon")
    assert f"without a limit takes {prefix}_MAX_STORAGE_MB=1024." in shown_with("help", "prune-size")


@each_command
def test_values_leave_help_on_one_screen_and_out_of_what_is_kept(name: str) -> None:
    env = {f"{DEFAULT_PREFIX}_{each}": "12345678" for each in NAMES}
    assert len(shown("help", name, **env).splitlines()) < 24
    assert "12345678" not in shown("completion", "fish", **env)


def test_help_names_no_variable_that_is_not_read() -> None:
    text = shown("--help") + "".join(shown("help", name, columns=100, rows=99) for name in NAMES_OF_COMMANDS)
    assert set(re.findall(rf"{DEFAULT_PREFIX}_(\w+)", text)) <= set(NAMES)


def test_help_says_once_what_a_megabyte_is() -> None:
    text = shown("--help") + "".join(shown("help", name) for name in NAMES_OF_COMMANDS)
    assert text.count("MiB:") == 1
    assert re.search(r"1 MB is 1 MiB:\s1,048,576\sbytes", text)


def test_the_documents_show_what_is_shown() -> None:
    readme, operations = ((ROOT / path).read_text() for path in ("README.md", "docs/operations.md"))
    assert f"$ storage_manager help run-loop\n{shown('help', 'run-loop')}```\n" in readme
    slip = run_tool("prune-size", "--max-gb", "3").stderr.partition("{")[0]
    assert f"$ storage_manager prune-size --max-gb 3\n{slip}```\n" in operations


@each_command
def test_a_command_has_two_examples_of_its_own(name: str) -> None:
    examples = next(each.examples for each in COMMANDS if each.name == name)
    assert len(examples) == 2
    for example in examples:
        assert re.search(rf"\bstorage_manager {name}\b", example)
        assert len(example) <= 77 and f"  {example}\n" in shown("help", name)


@pytest.mark.parametrize(("each", "example"), EXAMPLES, ids=[example for _, example in EXAMPLES])
def test_an_example_runs(storage: Path, tmp_path: Path, each, example: str) -> None:
    """As a shell takes it. A loop is stopped; the exit codes of `check` and `health` tell about the store."""
    make_store(storage, 3, group="weekly")
    tool = tmp_path / "bin" / "storage_manager"
    tool.parent.mkdir()
    patience = "timeout --preserve-status --signal=TERM 3 " if each.name == "run-loop" else ""
    tool.write_text(f'#!/bin/sh\nexec {patience}{" ".join(command())} "$@"\n')
    tool.chmod(0o755)
    env = clean_environment({"GOFR_DIG_STORAGE": str(storage), "PATH": f"{tool.parent}:{os.environ['PATH']}"})
    done = subprocess.run(
        ["bash", "-c", example], env=env, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode in ((0, 1) if each.name in ("check", "health") else (0,)), done.stderr
    assert "usage:" not in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [["help"], ["help", "list"], ["completion", "bash"]], ids=" ".join)
def test_neither_help_nor_completion_leaves_a_trace(tmp_path: Path, words: list[str]) -> None:
    log = tmp_path / "log"
    assert shown(*words, GOFR_DIG_LOG_FILE=str(log), GOFR_DIG_STORAGE="/nowhere", GOFR_DIG_MAX_STORAGE_MB="plenty")
    assert not log.exists()


def test_an_ordinary_command_loads_nothing_that_only_help_and_slips_need(storage: Path) -> None:
    make_store(storage, 1)
    code = "import sys; from storage_manager.cli import main; main(sys.argv[1:]); print(*sys.modules)"
    done = subprocess.run(
        [command()[0], "-c", code, "list", "--storage-dir", str(storage)],
        env=clean_environment(), capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    loaded = done.stdout.splitlines()[-1].split()
    assert "storage_manager.grammar" in loaded
    assert not [name for name in loaded if name.startswith(("storage_manager.usage", "difflib", "shlex"))]
