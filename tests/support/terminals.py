"""A terminal of its own for the tool, as a person has it, and what stands on its screen in the end."""

from __future__ import annotations

import os
import pty
import select
import struct
import subprocess
import termios
import time
from fcntl import ioctl

from loops import signals_as_usual
from stores import clean_environment


class Terminal:
    """Runs a command line as the leader of a session on a terminal. `raw` is all that it was sent."""

    def __init__(
        self, words: list[str], env: dict[str, str] | None = None, columns: int = 80, stdout: int | None = None
    ) -> None:
        self._ours, theirs = pty.openpty()
        ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.raw = ""

        def lead() -> None:
            signals_as_usual()
            os.setsid()
            ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            words, env=clean_environment({"TERM": "xterm", "COLUMNS": "", **(env or {})}), stdin=theirs,
            stdout=theirs if stdout is None else stdout, stderr=theirs, preexec_fn=lead,
        )  # fmt: skip
        os.close(theirs)

    def read_until(self, text: str, secs: float = 30) -> None:
        deadline = time.monotonic() + secs
        while text not in self.raw:
            assert time.monotonic() < deadline and self._read(), f"{text!r} did not come: {self.raw!r}"

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def end(self) -> int:
        """Its exit code, once it has ended by itself."""
        while self._read():
            pass
        return self.process.wait(30)

    @property
    def screen(self) -> list[str]:
        """The lines that are left for a person to read."""
        return [rendered(line) for line in self.raw.split("\n")[:-1]] + [rendered(self.raw.rpartition("\n")[2])]

    def _read(self) -> bool:
        if not select.select([self._ours], [], [], 30)[0]:
            return False
        try:
            part = os.read(self._ours, 65536)
        except OSError:  # the last writer is gone
            return False
        self.raw += part.decode()
        return bool(part)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


def rendered(line: str) -> str:
    """What a terminal shows of a line, after returns to its beginning and erasures of the rest."""
    cells: list[str] = []
    column = 0
    while line:
        if line.startswith("\x1b[K"):
            del cells[column:]
            line = line[3:]
            continue
        if line[0] == "\r":
            column = 0
        else:
            cells[column : column + 1] = line[0]
            column += 1
        line = line[1:]
    return "".join(cells)
