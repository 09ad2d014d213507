"""A slip of the keyboard is answered with what was meant, and with the usage of that command, once."""

from __future__ import annotations

import re

import pytest
from stores import event, run_tool

from storage_manager.usage.outline import Option, Outline
from storage_manager.usage.suggestion import find_slip


def answer(*arguments: str) -> tuple[str, str]:
    """(the command whose usage was shown, the sentence)."""
    done = run_tool(*arguments, env={"COLUMNS": "100"})
    assert (done.returncode, done.stdout) == (64, "")
    [usage] = re.findall(r"^usage: storage_manager ([a-z-]*)", done.stderr, re.MULTILINE)
    [sentence] = re.findall(r"^storage_manager(?: [a-z-]+)?: error: (.+)$", done.stderr, re.MULTILINE)
    [hint] = re.findall(r"^Try 'storage_manager ([a-z-]+ )?--help'\.$", done.stderr, re.MULTILINE)
    assert hint.strip() == usage
    return usage, sentence


@pytest.mark.parametrize(
    ("line", "command", "meant"),
    [
        ("lst", "list", "list"),
        ("prune", "prune-size", "prune-size"),
        ("prune_size --max-mb 3", "prune-size", "prune-size"),
        ("--storage-dir /x stat", "stats", "stats"),
        ("runloop --once", "run-loop", "run-loop"),
        ("help heath", "health", "health"),
        ("completion zhs", "completion", "zsh"),
        ("prune-size --max-gb 3", "prune-size", "--max-mb 3G"),
        ("prune-size --max-gb=1.5", "prune-size", "--max-mb 1.5G"),
        ("prune-size --max-mb 3G --target-kib 900", "prune-size", "--target-mb 900K"),
        ("prune-size --max-gb", "prune-size", "--max-mb"),
        ("prune-size --max-gb --json", "prune-size", "--max-mb"),
        ("prune-size --max-md 5", "prune-size", "--max-mb"),
        ("prune-size --max 5", "prune-size", "--max-mb"),
        ("prune-size --max-mb 5 --min-age-hours 2", "prune-size", "--min-age-mins 120"),
        ("purge --age-hours 12", "purge", "--age-days 0.5"),
        ("purge --age-days 3 --dryrun", "purge", "--dry-run"),
        ("list --storage x", "list", "--storage-dir"),
        ("check --addopt-orphans g", "check", "--adopt-orphans"),
        ("--storge-dir /x list", "", "--storage-dir"),
    ],
)
def test_the_near_one_is_suggested_with_the_usage_of_its_command(line: str, command: str, meant: str) -> None:
    usage, sentence = answer(*line.split())
    assert usage == command
    assert sentence.endswith(f": did you mean {meant}?")


@pytest.mark.parametrize(
    ("line", "command", "sentence"),
    [
        ("run-loop --max-mb 5", "run-loop", "--max-mb is an option of prune-size"),
        ("--once run-loop", "", "--once is an option of run-loop: it stands behind the command"),
        ("list --frobnicate", "list", "there is no option --frobnicate"),
        ("list extra", "list", "unrecognized arguments: extra"),
    ],
)
def test_where_nothing_is_near_the_sentence_says_what_is_wrong(line: str, command: str, sentence: str) -> None:
    assert answer(*line.split()) == (command, sentence)


def test_an_operand_is_compared_with_its_own_choices_and_shown_with_its_own_command() -> None:
    """Also where a choice is called as a command is."""
    flag = Option(("--json",), "", (), "", "", False)
    action, name = (
        Option((), value, choices, "", "", False) for value, choices in (("ACTION", ("check",)), ("NAME", ()))
    )
    outlines = [
        Outline("tool", command, "", own, [flag], (), "")
        for command, own in (("", []), ("check", []), ("config", [action, name]))
    ]
    assert find_slip(outlines, ["config", "chek"]) == (
        "config",
        "there is no action 'chek': did you mean check?",
        "config",
    )
    assert find_slip(outlines, ["config", "check", "chek", "--json"]) == ("config", None, "config")
    assert find_slip(outlines, ["chek"]) == ("", "there is no command 'chek': did you mean check?", "check")


def test_a_command_that_is_far_from_all_is_answered_with_all() -> None:
    usage, sentence = answer("frobnicate")
    assert usage == "" and "list, stats, check" in sentence


@pytest.mark.parametrize(
    "line",
    [
        "prune-size --max-mb 5 --group --max-gb",
        "purge --age-days -1",
        "purge --age-days soon",
        "list -- --max-gb",
        "list -",
    ],
)
def test_a_value_is_not_taken_for_an_option(line: str) -> None:
    assert "did you mean" not in answer(*line.split())[1]


def test_the_event_is_about_the_command_that_was_typed_and_not_about_the_one_that_was_meant() -> None:
    told = event(run_tool("prune-sze").stderr, "storage_manager.command_failed")
    assert told["command"] is None
    told = event(run_tool("prune-size", "--max-gb", "3").stderr, "storage_manager.prune.validation_failed")
    assert told["command"] == "prune-size" and "did you mean --max-mb 3G?" in told["@m"]
