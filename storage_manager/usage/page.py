"""Help as text: one screen where that is enough."""

from __future__ import annotations

import textwrap

from storage_manager.usage.outline import Outline

# Longer lines are hard to read, however wide the terminal is.
_WIDEST = 100
# A longer heading has a line of its own.
_LONGEST_HEADING = 25


def synopsis(outline: Outline, columns: int) -> str:
    """How a command is written, with all options of its own."""
    parts = [*outline.required, *(part for part in outline.own if part not in outline.required)]
    words = [part.synopsis for part in parts] if outline.name else ["[GLOBAL OPTION ...] COMMAND [ARGUMENT ...]"]
    head = f"usage: {outline.prog} "
    # An option and its value stay on one line.
    text = " ".join([word.replace(" ", "\0") for word in words] + ["[GLOBAL\0OPTION\0...]"] * bool(outline.name))
    lines = _wrap(text, max(columns - len(head), _LONGEST_HEADING))
    return (head + f"\n{' ' * len(head)}".join(lines)).replace("\0", " ")


def page(outline: Outline, commands: list[Outline], columns: int, rows: float) -> str:
    """Help, and room for a prompt. The global options are explained, and the groups set apart, where that fits."""
    columns = max(40, min(columns, _WIDEST))
    whole, brief = (_page(outline, commands, columns, is_whole) for is_whole in (True, False))
    dense = [line for line in brief if line]
    return "\n".join(next((lines for lines in (whole, brief) if len(lines) < rows), dense))


def _page(outline: Outline, commands: list[Outline], columns: int, whole: bool) -> list[str]:
    words = [part.synopsis for part in outline.required] + ["[OPTION ...]"]
    lines = [f"usage: {outline.prog} {' '.join(words)}"] if outline.name else [synopsis(outline, columns)]
    lines += ["", *_wrap(f"{outline.help[0].upper()}{outline.help[1:]}.", columns)]
    if commands:
        rows = [(command.name, command.help) for command in commands]
        lines += ["", f"commands, explained by `{outline.prog} help COMMAND`:", *_table(rows, columns)]
    shown = [*outline.own, *outline.everywhere] if whole else outline.own
    longest = max((len(part.heading) for part in shown), default=0)
    for title in sorted(dict.fromkeys(part.title for part in shown), key=lambda title: title != "options"):
        rows = [(part.heading, part.help) for part in shown if part.title == title]
        lines += ["", f"{title}:", *_table(rows, columns, longest)]
    if not whole:
        names = ", ".join(part.names[-1] for part in outline.everywhere)
        tool = outline.prog.partition(" ")[0]
        lines += ["", *_wrap(f"global options, see `{tool} --help`: {names}", columns, "  ")]
    if outline.examples:
        lines += ["", "examples:", *(f"  {example}" for example in outline.examples)]
    if outline.note and (outline.name or whole):
        lines.append("")
        for line in outline.note.splitlines():
            lines += [line] if line.startswith(" ") else _wrap(line, columns) or [""]
    return lines


def _table(rows: list[tuple[str, str]], columns: int, longest: int = 0) -> list[str]:
    longest = min(max([longest, *(len(left) for left, _ in rows)]), _LONGEST_HEADING)
    lines = []
    for left, right in rows:
        text = _wrap(right, columns - longest - 4) or [""]
        if len(left) > longest:
            lines.append(f"  {left}")
            left = ""
        lines.append(f"  {left:{longest}}  {text[0]}".rstrip())
        lines += [" " * (longest + 4) + more for more in text[1:]]
    return lines


def _wrap(text: str, columns: int, indent: str = "") -> list[str]:
    return textwrap.wrap(text, columns, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
