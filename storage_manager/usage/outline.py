"""What a command line offers, as values: read from argparse, for help, completion, suggestions and the manual."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from typing import NamedTuple

_VARIABLE = re.compile(r"\b[A-Z]+(?:_[A-Z]+)+\b")


class Option(NamedTuple):
    """An option, or an operand, which has no names."""

    names: tuple[str, ...]
    value: str
    """What stands for its value; empty where it takes none. DIR and FILE are what their names say."""
    choices: tuple[str, ...]
    help: str
    title: str
    """Of the group that help shows it in."""
    is_required: bool

    @property
    def heading(self) -> str:
        return " ".join(filter(None, (", ".join(self.names), self.value)))

    @property
    def synopsis(self) -> str:
        text = " ".join(filter(None, (*self.names[-1:], self.value)))
        return text if self.is_required else f"[{text}]"


class Outline(NamedTuple):
    """One command; or, without a name, the tool itself."""

    prog: str
    name: str
    help: str
    own: list[Option]
    """Its options and operands, in their order."""
    everywhere: list[Option]
    """The options that every command has."""
    examples: tuple[str, ...]
    note: str
    """What help says at the end. Lines that begin with a blank are not wrapped."""

    @property
    def options(self) -> list[Option]:
        return [part for part in (*self.own, *self.everywhere) if part.names]

    @property
    def operands(self) -> list[Option]:
        return [part for part in self.own if not part.names]

    @property
    def required(self) -> list[Option]:
        """What short usage shows: what must be given, and operands."""
        return [part for part in self.own if part.is_required or not part.names]


def with_values(outline: Outline, shown: Mapping[str, str]) -> Outline:
    """The same, with the variables that it names as they are `shown` now."""

    def told(text: str) -> str:
        return _VARIABLE.sub(lambda match: shown.get(match[0], match[0]), text)

    own, everywhere = (
        [part._replace(help=told(part.help)) for part in parts] for parts in (outline.own, outline.everywhere)
    )
    return outline._replace(own=own, everywhere=everywhere, note=told(outline.note) if outline.name else outline.note)


def read_options(parser: argparse.ArgumentParser, titles: dict[str, str]) -> list[Option]:
    """Operands and options, without sub-commands. `titles` has the groups of options that argparse knows in none."""
    found = []
    for group in parser._action_groups:
        default = "options" if group in (parser._optionals, parser._positionals) else group.title or ""
        for action in group._group_actions:
            if action.help == argparse.SUPPRESS or isinstance(action, argparse._SubParsersAction):
                continue
            names = tuple(action.option_strings)
            found.append(
                Option(
                    names=names,
                    value="" if action.nargs == 0 else _value(action),
                    choices=tuple(map(str, action.choices or ())),
                    help=(action.help or "") % {**vars(action), "prog": parser.prog},
                    title=titles.get(names[-1] if names else "", default),
                    is_required=action.required and action.nargs != "*",
                )
            )
    return found


def _value(action: argparse.Action) -> str:
    if action.metavar is not None:
        return action.metavar if isinstance(action.metavar, str) else " ".join(action.metavar)
    return "|".join(map(str, action.choices)) if action.choices else action.dest.upper()
