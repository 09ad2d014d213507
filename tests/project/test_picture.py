"""The picture of the README is what the tool shows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from xml.dom import minidom

from stores import ROOT

PICTURE = ROOT / "docs" / "picture.svg"
# What is another at each run.
MOVING = re.compile(
    r"\d{4}-\d\d-\d\d[T ][0-9:]+Z?|\b\d+ (?:d|h|min|s|days)\b|[\d.]+ [KM]?B a day|\d+\.\d %|█+|░+|(?<=By age     ).{30}"
)


def lines(path: Path) -> list[str]:
    texts = minidom.parse(str(path)).getElementsByTagName("text")
    return [text.firstChild.data.replace("\u00a0", " ") for text in texts]  # type: ignore[union-attr]


def test_the_picture_is_a_run_of_this_version(tmp_path: Path) -> None:
    """If not, run scripts/build_picture.py."""
    made = tmp_path / "picture.svg"
    subprocess.run([sys.executable, ROOT / "scripts" / "build_picture.py", "--output", made], check=True, timeout=120)
    kept, new = ([MOVING.sub("", line) for line in lines(path)] for path in (PICTURE, made))
    assert [line for line in new if line.startswith("$ ")] == [
        "$ storage_manager stats", "$ storage_manager prune-size --max-mb 9 --target-mb 8", "$ storage_manager history",
    ]  # fmt: skip
    assert kept == new
    assert all(len(line) <= 80 and line.isprintable() for line in lines(made))
    assert "(docs/picture.svg)" in (ROOT / "README.md").read_text()
