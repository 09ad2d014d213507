"""What the documents say in tables, commands and links is what is there."""

from __future__ import annotations

import argparse
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import stores

from storage_manager.base.errors import EXIT_CODES
from storage_manager.config import DEFAULT_PREFIX, read_settings
from storage_manager.grammar import build_parser

ROOT = stores.ROOT
OPERATIONS, MONITORING = ((ROOT / "docs" / f"{name}.md").read_text() for name in ("operations", "monitoring"))
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
DEPLOYMENTS = sorted(path for path in (ROOT / "docs" / "deploy").rglob("*") if path.is_file())
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def section(text: str, heading: str) -> str:
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"no section {heading}"
    return found.group(1)


def variables() -> list[str]:
    """Every variable that the settings are made of, as config.py asks for them."""
    asked: dict[str, None] = {}

    class Environment(dict):
        def get(self, name, default=None):
            asked[name] = None
            return "http://seq" if name == "GOFR_DIG_SEQ_URL" else default

    read_settings(Environment(), None, None)
    return list(asked)


def options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                yield from options(subparser)


def readme_commands() -> list[str]:
    """The lines of README's shell blocks that begin with a prompt, without it."""
    blocks = re.findall(r"^```(?:sh|console)\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    return [line[2:] for block in blocks for line in block.replace("\\\n", "").splitlines() if line.startswith("$ ")]


def anchors(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", document.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def linked_from(document: Path) -> set[Path]:
    return {(document.parent / target.partition("#")[0]).resolve() for target in LINK.findall(document.read_text())}


def test_exit_codes_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", section(OPERATIONS, "Exit codes"), re.MULTILINE)
    assert {int(code): meaning for code, meaning in rows} == EXIT_CODES


@pytest.mark.parametrize("variable", variables())
def test_a_variable_is_in_operations_and_in_both_environment_files(variable: str) -> None:
    assert re.search(rf"^\| `{variable}` \|", section(OPERATIONS, "Environment"), re.MULTILINE)
    if not variable.startswith(DEFAULT_PREFIX):  # others' variables; and the prefix decides which of a file are read
        return
    for name in ("project.env", "project.env.example"):
        assert re.search(rf"\b{variable}\b", (ROOT / "scripts" / name).read_text()), name


def test_operations_names_no_variable_that_is_not_read() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \|", section(OPERATIONS, "Environment"), re.MULTILINE)
    assert sorted(rows) == sorted(variables())


def test_the_defaults_in_operations_are_those_of_the_code() -> None:
    settings, _ = read_settings({}, None, None)
    rows = dict(re.findall(r"^\| `GOFR_DIG_([A-Z_]+)` \| (\d+) \|", section(OPERATIONS, "Environment"), re.MULTILINE))
    assert {name: float(value) for name, value in rows.items()} == {
        "MAX_STORAGE_MB": settings.max_storage_bytes / (1 << 20),
        "HOUSEKEEPING_INTERVAL_MINS": settings.interval_secs / 60,
        "HOUSEKEEPER_LOCK_STALE_SECONDS": settings.lock_stale_secs,
    }


def test_every_option_is_in_operations() -> None:
    missing = {option for option in options(build_parser()) if not re.search(rf"(?<![\w-]){option}\b", OPERATIONS)}
    assert not missing


@pytest.mark.parametrize("path", DEPLOYMENTS, ids=lambda path: path.name)
def test_deployments_set_variables_that_are_read(path: Path) -> None:
    assert set(re.findall(r"\bGOFR_DIG_[A-Z_]+\b", path.read_text())) <= set(variables())


def test_the_events_that_old_ones_become_exist_with_their_fields() -> None:
    events = (ROOT / "docs" / "events.md").read_text()
    fields = {
        key: set(re.findall(r"`(\w+)`", text))
        for key, text in re.findall(
            r"^### `([\w.]+)`\n.*?^- Fields: (.*?)(?=^- |^\n|^```)", events, re.MULTILINE | re.DOTALL
        )
    }
    table = section((ROOT / "docs" / "migration.md").read_text(), "Old events and new ones")
    rows = re.findall(r"^\|(.+)\|(.*)\| `([\w.]+)` \|(.*)\|$", table, re.MULTILINE)
    assert len(rows) >= 30
    for _, _, key, named in rows:
        assert set(re.findall(r"`(\w+)`", named)) <= fields[key], key


def test_the_runbook_is_the_first_link_of_the_readme() -> None:
    assert LINK.findall((ROOT / "README.md").read_text())[0] == "docs/runbook.md"


def test_readme_has_the_two_commands() -> None:
    commands = readme_commands()
    assert "./scripts/storage_manager.sh run-loop" in commands
    assert "./scripts/run_tests.sh" in commands


@pytest.mark.parametrize("command", readme_commands())
def test_a_command_of_readme_exists(command: str) -> None:
    words = shlex.split(command, comments=True)
    while "=" in words[0]:  # NAME=value in front
        del words[0]
    if words[0] == "storage_manager" or words[:2] == ["python3", "storage_manager.pyz"]:
        build_parser().parse_args(words[1 if words[0] == "storage_manager" else 2 :])
    elif words[:2] == ["docker", "build"]:
        assert words[-1] == "."  # COPY begins at the top level
    elif words[0].startswith("./"):
        assert os.access(ROOT / words[0], os.X_OK)
    elif words[0] == "python3":
        assert (ROOT / words[1]).is_file()
    for word in words[1:]:
        if word.startswith(("scripts/", "docs/")):
            assert (ROOT / word).is_file(), word


def test_every_shell_script_is_linted() -> None:
    [line] = re.findall(r'^"\$shellcheck" -x (.+)$', (ROOT / "scripts" / "lint.sh").read_text(), re.MULTILINE)
    linted = {path for pattern in line.split() for path in ROOT.glob(pattern)}
    files = [path for directory in (".ci", "scripts", "docs", "tests") for path in (ROOT / directory).rglob("*")]
    scripts = {path for path in files if path.is_file() and re.match(rb"#!.*sh\b", path.read_bytes())}
    assert scripts and scripts <= linted


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_relative_links_resolve(document: Path) -> None:
    for target in LINK.findall(FENCE.sub("", document.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path), target


def test_every_document_is_reachable_from_the_index() -> None:
    """The files to deploy also by way of their own page."""
    index, deploy = ROOT / "docs" / "index.md", ROOT / "docs" / "deploy.md"
    assert {path for path in DOCUMENTS if path != index} <= linked_from(index)
    assert set(DEPLOYMENTS) <= linked_from(index) | linked_from(deploy)


def test_the_seq_queries_ask_for_events_and_fields_that_exist() -> None:
    events = (ROOT / "docs" / "events.md").read_text()
    queries = re.findall(r"^    (.+)$", section(MONITORING, "Seq queries"), re.MULTILINE)
    assert len(queries) >= 8
    for query in queries:
        for text in re.findall(r"'((?:storage_manager|housekeeper)\.[a-z_.]+)", query):
            assert f"### `{text}" in events, query
        # What is neither quoted nor a name that the query makes itself.
        words = re.sub(r"'[^']*'|as \w+|\w+\(\*\)|@\w+", " ", query)
        fields = set(re.findall(r"[a-z]+_[a-z_]+|\bcauses\b|\bguid\b", words))
        assert all(f"`{field}`" in events for field in fields), query
