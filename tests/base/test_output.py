"""Standard output: strict JSON, and a stream that may fail at any moment."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage_manager.base.output import Output


class Failing(io.StringIO):
    """A stream that takes `good` writes and then fails."""

    def __init__(self, error: OSError, good: int = 0) -> None:
        super().__init__()
        self.error = error
        self.good = good
        self.tries = 0

    def write(self, text: str) -> int:
        self.tries += 1
        if self.tries > self.good:
            raise self.error
        return super().write(text)


@pytest.fixture
def kept_descriptor() -> Iterator[None]:
    """Giving up replaces the process's own standard output; put it back."""
    saved = os.dup(1)
    yield
    os.dup2(saved, 1)
    os.close(saved)


def test_lines_and_json_values_end_in_a_newline() -> None:
    stream = io.StringIO()
    out = Output(stream)
    out.line("one")
    out.json({"two": 2})
    out.flush()
    assert stream.getvalue() == 'one\n{"two": 2}\n'
    assert out.is_open
    assert out.failure is None


def test_what_the_encoding_lacks_is_escaped(tmp_path: Path) -> None:
    with open(tmp_path / "out", "w", encoding="ascii") as stream:
        out = Output(stream)
        assert out.encoding == "ascii"
        out.line("größe \udcff")
        out.flush()
    assert (tmp_path / "out").read_text() == "gr\\xf6\\xdfe \\udcff\n"


def test_a_closed_standard_output_takes_everything_and_fails_nothing() -> None:
    out = Output(None)
    out.line("x")
    out.json({})
    out.flush()
    assert not out.is_open
    assert out.failure is None
    assert out.encoding == "ascii"


def test_a_reader_that_has_gone_away_ends_the_writing_without_a_failure(kept_descriptor: None) -> None:
    stream = Failing(BrokenPipeError(errno.EPIPE, "Broken pipe"), good=1)
    out = Output(stream)
    for _ in range(5):
        out.line("x")
    out.flush()
    assert stream.getvalue() == "x\n"
    assert stream.tries == 2
    assert not out.is_open
    assert out.failure is None


def test_a_full_disk_ends_the_writing_and_is_remembered(kept_descriptor: None) -> None:
    error = OSError(errno.ENOSPC, "No space left on device")
    stream = Failing(error)
    out = Output(stream)
    out.line("x")
    out.line("y")
    assert stream.tries == 1
    assert not out.is_open
    assert out.failure is error


def test_a_failure_that_shows_at_the_end_only_is_remembered(kept_descriptor: None) -> None:
    with open("/dev/full", "w") as stream:
        out = Output(stream)
        out.line("x")
        assert out.failure is None
        out.flush()
        assert out.failure is not None and out.failure.errno == errno.ENOSPC
        # What could not be written must not fail once more when the stream is closed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
