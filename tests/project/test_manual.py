"""storage_manager.1, the manual page: everything that the grammar has, in a form that man takes without a warning."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from stores import ROOT, clean_environment

from storage_manager import __version__
from storage_manager.base.errors import EXIT_CODES
from storage_manager.config import DEFAULT_PREFIX, NAMES
from storage_manager.grammar import outlines


def build(output: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "build_manual.py"), "--output", str(output)],
        env=clean_environment({"PYTHONPATH": "", **env}), cwd="/", capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def manual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("manual") / "man1" / "storage_manager.1"
    done = build(path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{path}\n", "")
    return path


def run(*words: object) -> subprocess.CompletedProcess[str]:
    if shutil.which(str(words[0])) is None:
        pytest.skip(f"{words[0]} is not installed")
    env = {**os.environ, "MANWIDTH": "200", "LC_ALL": "C.UTF-8", "MAN_KEEP_FORMATTING": "", "PAGER": "cat"}
    return subprocess.run([*map(str, words)], env=env, capture_output=True, text=True, timeout=60, check=False)


def test_man_shows_all_of_it_and_warns_of_nothing(manual: Path) -> None:
    done = run("man", "--warnings=w", "-l", manual)
    assert (done.returncode, done.stderr) == (0, "")
    if not done.stdout.strip():  # systems without documentation have a man that shows nothing
        pytest.skip("this man shows no pages")
    shown = re.sub(".\b", "", done.stdout)
    assert f"storage_manager {__version__}" in shown
    for outline in outlines():
        assert re.search(rf"^ +{outline.name}$", shown, re.MULTILINE) or not outline.name
        for option in outline.options:
            assert re.search(rf"^ +{re.escape(option.heading)}( |$)", shown, re.MULTILINE), option
        for example in outline.examples:
            assert f" {example}\n" in shown
    for code, meaning in EXIT_CODES.items():
        assert re.search(rf"^ +{code} +{re.escape(meaning)}$", shown, re.MULTILINE)
    for name in NAMES:
        assert re.search(rf"^ +{DEFAULT_PREFIX}_{name}( |$)", shown, re.MULTILINE)
    assert "1 MB is 1 MiB: 1,048,576 bytes" in shown


def test_groff_warns_of_nothing(manual: Path) -> None:
    done = run("groff", "-man", "-ww", "-z", "-Tutf8", manual)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_index_of_manual_pages_understands_its_name(manual: Path) -> None:
    done = run("lexgrog", manual)
    assert done.returncode == 0
    assert re.search(r'"storage_manager - keep a session store under its size limit', done.stdout)


def test_it_is_the_same_each_time_wherever_it_is_built(manual: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.1"
    assert build(again, PYTHONHASHSEED="1", COLUMNS="20", LC_ALL="C", TZ="Asia/Tokyo").returncode == 0
    assert again.read_bytes() == manual.read_bytes()
    assert manual.read_bytes().isascii()


def test_an_output_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    done = build(tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"build_manual: cannot write .*: Is a directory\n", done.stderr)
