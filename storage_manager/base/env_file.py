"""A file of `NAME=value` lines, as docker and systemd have them: read as a whole or not at all, and never executed."""

from __future__ import annotations

import os
import re
import stat
from datetime import timezone
from typing import Optional

from storage_manager.base.clock import Clock

MOST_BYTES = 64 * 1024

# Who writes a file in place empties it first: it is believed once it has been left alone for this long.
SETTLED_SECS = 1.0
_ATTEMPTS = 4

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_QUOTED = re.compile(r'"[^"]*"' + r"|'[^']*'")
_BLANKS = " \t\r"


def read_env_file(path: str, clock: Clock) -> dict[str, str]:
    """The variables that the file sets. Of two lines with one name, the last counts.

    Raises OSError, and ValueError with what is wrong and in which line, but never with what stands there: it may be
    secret. Waits while somebody writes to the file, for a few seconds at most. Not promised: that a writer is noticed
    who pauses for longer than SETTLED_SECS behind the end of a line, or whose clock is another one (NFS).
    """
    for _ in range(_ATTEMPTS):
        data, age_secs = _read(path, clock)
        if abs(age_secs) >= SETTLED_SECS:
            return parse(data)
        clock.pause(SETTLED_SECS)
    raise ValueError("it is written again and again")


def parse(data: bytes) -> dict[str, str]:
    """Raises ValueError for what is not such a file from its beginning to its end."""
    if len(data) > MOST_BYTES:
        raise ValueError(f"it is larger than {MOST_BYTES // 1024} KiB")
    if not data:
        raise ValueError("it is empty: if that is meant, write a comment (#) into it")
    if not data.endswith(b"\n"):
        raise ValueError("its last line has no end, so it may have been cut off: end it with a newline")
    found = {}
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            assignment = _assignment(line)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
        if assignment is not None:
            name, value = assignment
            found[name] = value
    return found


def _assignment(line: bytes) -> Optional[tuple[str, str]]:
    """(name, value); None for a comment or a blank line. Raises ValueError."""
    try:
        text = line.decode("utf-8").strip(_BLANKS)
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    if "\0" in text:
        raise ValueError("it has a NUL")
    if not text or text[0] in "#;":
        return None
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError("it has no `=`, and does not begin with `#` or `;`")
    if name.startswith(("export ", "export\t")):
        raise ValueError("`export` is for a shell: write NAME=value")
    if _NAME.fullmatch(name) is None:
        raise ValueError("what stands before the `=` is not a variable's name")
    value = value.strip(_BLANKS)
    if value[:1] in ("'", '"'):
        if _QUOTED.fullmatch(value) is None:
            raise ValueError("a value that begins with a quote ends with the same one, and has no other between")
        return name, value[1:-1]
    if value.endswith("\\"):
        raise ValueError("a line cannot be continued: no value may end with a backslash, but in quotes")
    return name, value


def _read(path: str, clock: Clock) -> tuple[bytes, float]:
    """(the content, how long ago it was written). Raises OSError, ValueError."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK | os.O_NOCTTY)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is not a regular file")
        data = file.read(MOST_BYTES + 1)
        status = os.fstat(file.fileno())
    if status.st_mode & stat.S_IWOTH:
        raise ValueError("everybody may write to it: chmod o-w")
    directory = os.stat(os.path.dirname(os.path.realpath(path)))
    if directory.st_mode & stat.S_IWOTH and status.st_uid not in (0, os.geteuid()):
        raise ValueError(f"it belongs to user {status.st_uid}, who may have made it up")
    return data, clock.now().replace(tzinfo=timezone.utc).timestamp() - status.st_mtime
