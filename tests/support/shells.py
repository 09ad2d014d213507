"""Shells that complete a command line, as they do for a person: bash and zsh at a terminal, fish by its own command."""

from __future__ import annotations

import os
import pty
import select
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from stores import clean_environment

# A shell that hangs fails its test.
PATIENCE_SECS = 30.0

# The key ^T sends the line as it stands to a pipe, and a menu of choices is no question. The prompt is spelled so that
# the line that sets it does not show it.
PROMPT = b"what next? "
SETUP = {
    "bash": "bind 'set completion-query-items 0' 'set page-completions off'; "
    """bind -x '"\\C-t": printf "%s\\n" "$READLINE_LINE" >told'""",
    "zsh": "autoload -U compinit && compinit -D -u; LISTMAX=0; tell() { print -r -- $BUFFER >told }; zle -N tell; "
    "bindkey '^T' tell",
}
START = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i"],
    "fish": ["fish", "--no-config", "-c", "source script; while read line; complete -C $line >told; echo >told; end"],
}


def socket_pair() -> tuple[int, int]:
    """What a shell reads lines from without editing them."""
    ours, theirs = socket.socketpair()
    return ours.detach(), theirs.detach()


class Shell:
    """One that has read a script of ours, in a directory of its own. Skips the test if it is not installed."""

    def __init__(self, name: str, script: str, directory: Path) -> None:
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed")
        self.name, self._directory = name, directory
        self._script = directory / "script"
        self._script.write_text(script)
        self._env = clean_environment({"HOME": str(directory), "TERM": "dumb"})
        self._start()

    def complete(self, line: str) -> str:
        """What a line becomes at a TAB; of several choices that have no more in common, nothing comes of it."""
        if self.name == "fish":
            choices = self.choices(line)
            before, _, word = line.rpartition(" ")
            longer = os.path.commonprefix(choices) if choices else word
            return f"{before} {longer}{' ' * (len(choices) == 1 and longer[-1] != '/')}"
        os.write(self._terminal, f"{line}\t\x14\x15".encode())
        return self._told()

    def choices(self, line: str) -> list[str]:
        """What fish offers."""
        os.write(self._terminal, f"{line}\n".encode())
        told = self._read_until(lambda told, shown: told.endswith(b"\n\n") or told == b"\n")
        return [each.partition("\t")[0] for each in told.decode().splitlines() if each]

    def end(self) -> None:
        os.close(self._terminal)
        self._process.kill()
        self._process.wait()
        os.close(self._pipe)

    def _start(self) -> None:
        os.mkfifo(self._directory / "told")
        self._pipe = os.open(self._directory / "told", os.O_RDWR | os.O_NONBLOCK)
        self._terminal, theirs = pty.openpty() if self.name in SETUP else socket_pair()
        self._process = subprocess.Popen(
            START[self.name], env=self._env, cwd=self._directory, stdin=theirs, stdout=theirs, stderr=theirs,
            start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        if self.name in SETUP:
            os.write(self._terminal, f"{SETUP[self.name]}; source ./script; PS1=$'what ne\\x78t? '\n".encode())
            self._read_until(lambda told, shown: PROMPT in shown)

    def _told(self) -> str:
        """The next line from the pipe."""
        return self._read_until(lambda told, shown: told.endswith(b"\n")).decode().rstrip("\n")

    def _read_until(self, enough: Callable[[bytes, bytes], bool]) -> bytes:
        """What comes from the pipe. What the terminal shows meanwhile is read, or the shell would wait."""
        told, shown, deadline = b"", b"", time.monotonic() + PATIENCE_SECS
        while not enough(told, shown):
            ready, _, _ = select.select([self._pipe, self._terminal], [], [], max(deadline - time.monotonic(), 0))
            assert ready, f"{self.name} does not answer: {shown!r}"
            told += os.read(self._pipe, 65536) if self._pipe in ready else b""
            shown += os.read(self._terminal, 65536) if self._terminal in ready else b""
        return told
