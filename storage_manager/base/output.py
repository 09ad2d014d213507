"""Standard output: results and nothing else, to a reader that may go away at any moment."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import Any, Optional, TextIO

from storage_manager.base.colour import painted
from storage_manager.base.strict_json import json_text


class Output:
    """Lines of results. A reader that has gone away is no error; a disk that is full is one, told at the end.

    So is a standard output that was closed from the start (`stream` is None), where the result `is_all` that there is:
    a list. Who closes it for a command that deletes does not want to read what was deleted.
    """

    def __init__(
        self, stream: Optional[TextIO], is_all: bool = False, wants_colour: Callable[[bool], bool] = lambda _: False
    ) -> None:
        """`wants_colour` is given whether `stream` is a terminal."""
        self._stream = stream
        self._has_colour = wants_colour(self._is_terminal)
        self.failure: Optional[OSError] = None
        """Why a line could not be written; None for a reader that has gone away."""
        if stream is None and is_all:
            self.failure = OSError(errno.EBADF, "standard output is closed")
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")

    @property
    def is_open(self) -> bool:
        """False once writing has no more sense."""
        return self._stream is not None

    @property
    def encoding(self) -> str:
        return getattr(self._stream, "encoding", None) or "ascii"

    @property
    def columns(self) -> Optional[int]:
        """The width of the terminal; None where it is none."""
        size = self.terminal_size
        return None if size is None else size.columns

    @property
    def terminal_size(self) -> Optional[os.terminal_size]:
        """None where it is no terminal."""
        if not self._is_terminal:
            return None
        from shutil import get_terminal_size  # with all compressions: a probe, and what has no terminal, needs none

        size = get_terminal_size()
        # A terminal that was given no size has none.
        return size if size.columns > 0 and size.lines > 0 else os.terminal_size((80, 24))

    @property
    def _is_terminal(self) -> bool:
        try:
            return self._stream is not None and self._stream.isatty()
        except ValueError:  # it has been closed
            return False

    def paint(self, text: str, colour: Optional[str]) -> str:
        """`text` in a colour, where colours are wanted."""
        return painted(text, colour) if self._has_colour and colour is not None else text

    def line(self, text: str) -> None:
        self._write(text + "\n")

    def json(self, value: Any) -> None:
        """One strict JSON value on a line of its own."""
        self._write(json_text(value) + "\n")

    def flush(self) -> None:
        self._write("", flush=True)

    def _write(self, text: str, flush: bool = False) -> None:
        if self._stream is None:
            return
        try:
            if text:  # even nothing cannot be written to a terminal that has been closed
                self._stream.write(text)
            if flush:
                self._stream.flush()
        except BrokenPipeError:
            self._give_up()
        except OSError as error:
            self.failure = error
            self._give_up()

    def _give_up(self) -> None:
        self._stream = None
        # What is still buffered would fail once more when Python closes the stream.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.__stdout__.fileno() if sys.__stdout__ is not None else 1)
        os.close(null)
