"""What somebody has probably meant by a command line that cannot be parsed."""

from __future__ import annotations

from typing import NamedTuple, Optional

from storage_manager.base.quantity import parse_number
from storage_manager.base.text import nearest, printable
from storage_manager.usage.outline import Option, Outline

# Units in the names of options. A size may have its unit with it, a time may not.
_SIZES = ("b", "kb", "kib", "mb", "mib", "gb", "gib", "tb", "tib")
_SECS = {"secs": 1, "seconds": 1, "mins": 60, "minutes": 60, "hours": 3600, "days": 86400, "weeks": 604800}
_COMMAND = "command"


class Slip(NamedTuple):
    """The first word that is not in the grammar."""

    command: str
    """The command of the line; empty as long as none is known."""
    message: Optional[str] = None
    """None: the parser's own says it better."""
    shown: str = ""
    """The command whose usage helps."""


def find_slip(outlines: list[Outline], arguments: list[str]) -> Slip:
    """Look for it from the left. `outlines` begins with the tool itself."""
    commands = {outline.name: outline for outline in outlines}
    chosen = commands[""]
    operands = iter(chosen.operands)
    words = iter(arguments)
    for word in words:
        if word == "--":
            break
        if not word.startswith("-") or word == "-" or word[1].isdigit():
            if chosen.name:
                operand = next(operands, None)
                if operand is not None and operand.choices and word not in operand.choices:
                    return _no_choice(operand.value.lower(), word, operand.choices, chosen.name)
            elif word and word in commands:
                chosen = commands[word]
                operands = iter(chosen.operands)
            else:
                return _no_choice(_COMMAND, word, tuple(filter(None, commands)), "")
            continue
        name, equals, value = word.partition("=")
        known = {each: option for option in chosen.options for each in option.names}
        option = known.get(name) or (None if word.startswith("--") else known.get(word[:2]))
        if option is None:
            value = value if equals else next(words, "")
            return Slip(chosen.name, _no_option(name, value, known, chosen.name, outlines), chosen.name)
        if option.value and not equals:
            next(words, None)
    return Slip(chosen.name, None, chosen.name)


def _no_choice(kind: str, word: str, choices: tuple[str, ...], command: str) -> Slip:
    meant = nearest(word, choices)
    rest = f"choose from {', '.join(choices)}" if meant is None else f"did you mean {meant}?"
    shown = meant if meant is not None and kind == _COMMAND else command
    return Slip(command, f"there is no {kind} {printable(word, 80)!r}: {rest}", shown)


def _no_option(name: str, value: str, known: dict[str, Option], command: str, outlines: list[Outline]) -> str:
    others = [outline.name for outline in outlines if any(name in option.names for option in outline.own)]
    if others:
        return f"{name} is an option of {', '.join(others)}" + ("" if command else ": it stands behind the command")
    meant = _in_our_unit(name, value, known) or nearest(name, list(known))
    return f"there is no option {printable(name, 80)}" + (f": did you mean {meant}?" if meant else "")


def _in_our_unit(name: str, value: str, known: dict[str, Option]) -> Optional[str]:
    """The same option with the unit that we have, and the value in it."""
    stem, _, unit = name.rpartition("-")
    for option in known:
        our_stem, _, our_unit = option.rpartition("-")
        if our_stem != stem or not (unit in _SIZES and our_unit in _SIZES or unit in _SECS and our_unit in _SECS):
            continue
        try:
            number = parse_number(value)
        except ValueError:
            return option
        if unit in _SIZES:
            return f"{option} {value}{unit[0].upper()}"
        return f"{option} {number * _SECS[unit] / _SECS[our_unit]:g}"
    return None
