"""`completion`: real shells complete what the grammar has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from shells import Shell
from stores import run_tool

from storage_manager.grammar import outlines

TOOL, *COMMANDS = outlines()


@pytest.fixture(scope="module", params=["bash", "zsh", "fish"])
def shell(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    directory = tmp_path_factory.mktemp(request.param)
    (directory / "a directory" / "below").mkdir(parents=True)
    (directory / "settings.env").touch()
    done = run_tool("completion", request.param)
    assert (done.returncode, done.stderr) == (0, "")
    shell = Shell(request.param, done.stdout, directory)
    yield shell
    shell.end()


@pytest.mark.parametrize("program", ["storage_manager", "storage_manager.pyz", "./storage_manager.sh"])
@pytest.mark.parametrize(
    ("typed", "becomes"),
    [
        ("sta", "stats "),
        ("run", "run-loop "),
        ("--storage-dir /nowhere sta", "stats "),
        ("--storage-dir=/nowhere sta", "stats "),
        ("--log-l", "--log-level "),
        ("--log-level W", "WARNING "),
        ("list --log-level=W", "--log-level=WARNING "),
        ("purge --gofr-dig-env P", "PROD "),
        ("prune-size --max-m", "--max-mb "),
        ("prune-size --max-mb 3 --target-mb 2 --keep-l", "--keep-last "),
        ("help prune", "prune-size "),
        ("completion f", "fish "),
        ("stats --verb", "--verb"),  # that is an option of others
        ("list --group sta", "sta"),  # that is a value
        ("frobnicate --js", "--js"),
    ],
)
def test_commands_options_and_choices_are_completed(shell: Shell, program: str, typed: str, becomes: str) -> None:
    before = f"{program} {typed}".rpartition(" ")[0]
    assert shell.complete(f"{program} {typed}") == f"{before} {becomes}"


@pytest.mark.parametrize("command", [TOOL, *COMMANDS], ids=lambda command: command.name or "tool")
def test_each_option_and_operand_of_the_grammar_is_known(shell: Shell, command) -> None:
    line = f"storage_manager {command.name}".rstrip()
    names = [name for option in command.options for name in option.names if name.startswith("--")]
    words = [*names, *(choice for operand in command.operands for choice in operand.choices)]
    words += [] if command.name else [each.name for each in COMMANDS]
    for word in words:
        others = [other for other in words if other.startswith(word) and other != word]
        assert shell.complete(f"{line} {word}") == f"{line} {word}{'' if others else ' '}"


@pytest.mark.parametrize("option", ["--storage-dir ", "--data-root ", "--storage-dir="])
def test_a_directory_is_completed_and_a_file_in_its_place_is_not(shell: Shell, option: str) -> None:
    line = f"storage_manager list {option}"
    assert shell.complete(f"{line}a") in (f"{line}a\\ directory/", f"{line}'a directory/", f"{line}a directory/")
    assert shell.complete(f"{line}settings") == f"{line}settings"


def test_the_wrappers_own_options_are_completed_for_the_wrapper_alone(shell: Shell) -> None:
    assert shell.complete("storage_manager.sh --env-f") == "storage_manager.sh --env-file "
    assert shell.complete("storage_manager.sh --env-file sett") == "storage_manager.sh --env-file settings.env "
    assert shell.complete("storage_manager.sh --env P") == "storage_manager.sh --env PROD "
    assert shell.complete("storage_manager.sh --env PROD sta") == "storage_manager.sh --env PROD stats "
    assert shell.complete("storage_manager.sh list --env-f") == "storage_manager.sh list --env-f"
    assert shell.complete("storage_manager.pyz --env-f") == "storage_manager.pyz --env-f"


def test_without_a_letter_the_commands_alone_are_offered(tmp_path: Path) -> None:
    shell = Shell("fish", run_tool("completion", "fish").stdout, tmp_path)
    assert sorted(shell.choices("storage_manager ")) == sorted(command.name for command in COMMANDS)
    assert sorted(shell.choices("storage_manager completion ")) == ["bash", "fish", "zsh"]
    assert "--verbose" in shell.choices("storage_manager list ")
    shell.end()


def test_zsh_finds_it_in_its_path_of_functions(tmp_path: Path) -> None:
    (tmp_path / "functions").mkdir()
    (tmp_path / "functions" / "_storage_manager").write_text(run_tool("completion", "zsh").stdout)
    shell = Shell("zsh", "fpath=(./functions $fpath); compinit -D -u", tmp_path)
    assert shell.complete("storage_manager.pyz sta") == "storage_manager.pyz stats "
    assert shell.complete("storage_manager.pyz sta") == "storage_manager.pyz stats "  # the second time it is loaded
    shell.end()


def test_the_script_is_the_same_whatever_the_terminal_and_the_settings() -> None:
    env = {"COLUMNS": "30", "LANG": "C", "GOFR_DIG_STORAGE": "/nowhere"}
    for name in ("bash", "zsh", "fish"):
        assert run_tool("completion", name, env=env).stdout == run_tool("completion", name).stdout
