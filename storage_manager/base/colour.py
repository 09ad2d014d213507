"""Colour, for verdicts and levels. It repeats what the words say: nothing is told by colour alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Optional

GOOD: Final = "32"
DOUBTFUL: Final = "33"
BAD: Final = "31"


def is_wanted(choice: Optional[str], is_terminal: bool, environ: Mapping[str, str]) -> bool:
    """What --color says: `always`, `never`, or (`auto`, None) on a terminal that knows it, unless NO_COLOR is set."""
    if choice in ("always", "never"):
        return choice == "always"
    return is_terminal and not environ.get("NO_COLOR") and environ.get("TERM", "") not in ("", "dumb")


def painted(text: str, colour: str) -> str:
    return f"\x1b[{colour}m{text}\x1b[0m"
