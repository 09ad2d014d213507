#!/usr/bin/env python3
"""Build dist/storage_manager.1, the manual page, from the grammar of the command line. The same bytes each time."""

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from storage_manager import __version__  # noqa: E402
from storage_manager.base.errors import EXIT_CODES  # noqa: E402
from storage_manager.grammar import outlines  # noqa: E402

VARIABLE = re.compile(r"^\| `([A-Z_]+)` \|(.*?)\| (.+) \|$", re.MULTILINE)
LINK = re.compile(r"\[([^]]+)\]\([^)]+\)")


def main():
    parser = argparse.ArgumentParser(description="Build the manual page of storage_manager.")
    parser.add_argument("--output", metavar="FILE", type=Path, default=ROOT / "dist" / "storage_manager.1")
    output = parser.parse_args().output
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text("\n".join(filter(None, manual())) + "\n", encoding="utf-8")
    except OSError as error:
        sys.stderr.write(f"build_manual: cannot write {output}: {error.strerror}\n")
        return 1
    print(output)
    return 0


def manual():
    tool, *commands = outlines()
    yield f'.TH STORAGE_MANAGER 1 "" "storage_manager {__version__}" "User Commands"'
    yield from (".nh", ".ad l")
    yield from (".SH NAME", f"{tool.prog} \\- {text(tool.help)}")
    yield from (
        ".SH SYNOPSIS",
        f".B {tool.prog}",
        text("[GLOBAL OPTION ...] COMMAND [ARGUMENT ...]"),
        ".SH DESCRIPTION",
    )
    yield from (line for paragraph in tool.note.split("\n\n")[1:] for line in (".PP", text(paragraph)))
    yield ".SH COMMANDS"
    for command in commands:
        yield from (f".SS {command.name}", text(f"{command.help[0].upper()}{command.help[1:]}."), text(command.note))
        yield from (line for option in command.own for line in described(option))
        if command.examples:
            yield from (".PP", "Examples:", ".nf", ".RS", *map(text, command.examples), ".RE", ".fi")
    yield from (".SH GLOBAL OPTIONS", "These stand before or after the command.")
    yield from (line for option in tool.everywhere for line in described(option))
    yield ".SH EXIT STATUS"
    yield from (line for code, meaning in EXIT_CODES.items() for line in (".TP", f".B {code}", text(meaning)))
    yield ".SH ENVIRONMENT"
    for name, default, meaning in VARIABLE.findall((ROOT / "docs" / "operations.md").read_text(encoding="utf-8")):
        yield from (".TP", rf"\fB{name}\fR" + f" (default: {text(plain(default.strip()))})" * bool(default.strip()))
        yield text(plain(meaning))
    yield from (
        ".SH SEE ALSO",
        text("docs/runbook.md: what to do when something is wrong"),
        ".br",
        text("docs/monitoring.md: health, metrics and logs"),
    )


def described(option):
    names = ", ".join(rf"\fB{text(name)}\fR" for name in option.names)
    yield from (
        ".TP",
        " ".join(filter(None, (names, option.value and rf"\fI{text(option.value)}\fR"))),
        text(option.help),
    )


def plain(markdown):
    return LINK.sub(r"\1", markdown).replace("`", "")


def text(words):
    """For troff: nothing in it is an instruction, and every hyphen is one that can be copied."""
    escaped = words.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


if __name__ == "__main__":
    sys.exit(main())
