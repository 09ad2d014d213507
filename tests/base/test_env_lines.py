"""Environment files: whole or not at all, and nothing in them is executed."""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from storage_manager.base.clock import Clock
from storage_manager.base.env_file import MOST_BYTES, SETTLED_SECS, parse, read_env_file


class PausedClock(Clock):
    """A clock on which a pause passes at once; somebody may act in it."""

    def __init__(self, meanwhile: Callable[[int], None] = lambda number: None) -> None:
        super().__init__()
        self.pauses = 0
        self._meanwhile = meanwhile

    def pause(self, secs: float) -> None:
        self.pauses += 1
        self._meanwhile(self.pauses)


def settle(path: Path) -> None:
    """As if nobody had written to the file for a while."""
    then = time.time() - 60
    os.utime(path, (then, then))


def made(tmp_path: Path, data: bytes, mode: int = 0o644) -> Path:
    path = tmp_path / "settings.env"
    path.write_bytes(data)
    path.chmod(mode)
    settle(path)
    return path


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A=1\n", {"A": "1"}),
        ("\n# A=1\n;A=2\n  \t# x\nB=2\n\n", {"B": "2"}),
        ("  A=1  \n\tB= 2\n", {"A": "1", "B": "2"}),
        ("A=1\r\nB=\r\n", {"A": "1", "B": ""}),
        ("\ufeffA=1\n", {"A": "1"}),
        ("A=1\nA=2\n", {"A": "2"}),
        ("A=\"50 G\"\nB='x y'\nC=\"\"\nD=it's\n", {"A": "50 G", "B": "x y", "C": "", "D": "it's"}),
        ("A=\"it's\"\nB='say \"x\"'\n", {"A": "it's", "B": 'say "x"'}),
        ("A=b=c\n", {"A": "b=c"}),
        ("A=50G # the limit\nB=x#y\n", {"A": "50G # the limit", "B": "x#y"}),
        ("A=$HOME\nB=${X:-1}\nC=$(id)\nD=`id`\nE='$X'\n",
         {"A": "$HOME", "B": "${X:-1}", "C": "$(id)", "D": "`id`", "E": "$X"}),
        ("A=\\n\\x41\nB='end\\'\n", {"A": "\\n\\x41", "B": "end\\"}),
        ("A=1\x0bB=2\x85\u2028C=3\n", {"A": "1\x0bB=2\x85\u2028C=3"}),
        ("#\n", {}),
        ("_a1=\u00e4\n", {"_a1": "\u00e4"}),
    ],
)  # fmt: skip
def test_a_line_is_a_comment_or_a_name_and_a_value(text: str, found: dict[str, str]) -> None:
    assert parse(text.encode()) == found


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"A", "no `=`"),
        (b"export A=1", "`export` is for a shell"),
        (b"export\tA=1", "`export` is for a shell"),
        (b"set -e", "no `="),
        (b"A =1", "not a variable's name"),
        (b"1A=1", "not a variable's name"),
        (b"=1", "not a variable's name"),
        (b"A-B=1", "not a variable's name"),
        ("\u00c4=1".encode(), "not a variable's name"),
        (b'A="1', "begins with a quote"),
        (b'A="', "begins with a quote"),
        (b"A='1\"", "begins with a quote"),
        (b'A="1" # one', "begins with a quote"),
        (b'A="1""2"', "begins with a quote"),
        (b"A=1\\", "cannot be continued"),
        (b"A=\xff", "not UTF-8"),
        (b"# \xff", "not UTF-8"),
        (b"A=\0", "NUL"),
        (b"# \0", "NUL"),
    ],
)  # fmt: skip
def test_what_is_no_such_line_breaks_the_file_and_is_told_by_its_number(line: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match="^line 3: .*") as told:
        parse(b"B=1\n\n" + line + b"\nC=2\n")
    assert reason in str(told.value)


def test_the_reason_shows_nothing_of_the_line() -> None:
    for line in (b"s3cret", b"s3cret x=1", b'A="s3cret', b"A=s3cret\\", b"export A=s3cret"):
        with pytest.raises(ValueError, match="^line 1: ") as told:
            parse(line + b"\n")
        assert "s3cret" not in str(told.value)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"A=5", "cut off"),
        (b"A=50G\nB=", "cut off"),
        (b"#" * MOST_BYTES + b"\n", "larger than 64 KiB"),
    ],
)
def test_a_file_that_may_have_been_cut_off_is_broken(tmp_path: Path, data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_env_file(str(made(tmp_path, data)), PausedClock())


def test_the_largest_file_is_read(tmp_path: Path) -> None:
    path = made(tmp_path, b"#" * (MOST_BYTES - 5) + b"\nA=1\n")
    assert read_env_file(str(path), PausedClock()) == {"A": "1"}


def test_what_is_no_file_is_told_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ValueError, match="not a regular file"):
        read_env_file(str(tmp_path / "fifo"), PausedClock())
    with pytest.raises(ValueError, match="not a regular file"):
        read_env_file("/dev/zero", PausedClock())
    with pytest.raises(IsADirectoryError):
        read_env_file(str(tmp_path), PausedClock())
    with pytest.raises(FileNotFoundError):
        read_env_file(str(tmp_path / "none"), PausedClock())
    with pytest.raises(ValueError, match="null"):
        read_env_file("a\0b", PausedClock())


def test_a_symbolic_link_is_followed(tmp_path: Path) -> None:
    """Kubernetes mounts a ConfigMap as links."""
    (tmp_path / "link").symlink_to(made(tmp_path, b"A=1\n").name)
    assert read_env_file(str(tmp_path / "link"), PausedClock()) == {"A": "1"}


def test_a_file_that_everybody_may_write_to_is_broken(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="chmod o-w"):
        read_env_file(str(made(tmp_path, b"A=1\n", 0o666)), PausedClock())
    assert read_env_file(str(made(tmp_path, b"A=1\n", 0o664)), PausedClock()) == {"A": "1"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_somebody_elses_file_in_a_directory_where_everybody_may_write_is_broken(tmp_path: Path) -> None:
    path = made(tmp_path, b"A=1\n")
    os.chown(path, 12345, 12345)
    assert read_env_file(str(path), PausedClock()) == {"A": "1"}
    tmp_path.chmod(0o1777)
    with pytest.raises(ValueError, match="user 12345"):
        read_env_file(str(path), PausedClock())
    os.chown(path, os.geteuid(), 12345)
    assert read_env_file(str(path), PausedClock()) == {"A": "1"}


# While it is written


def test_a_file_that_was_just_written_is_believed_once_it_is_left_alone(tmp_path: Path) -> None:
    path = made(tmp_path, b"")

    def write_on(number: int) -> None:
        path.write_bytes(b"A=1\nB=2\n"[: 4 * number])
        if number == 2:
            settle(path)

    path.write_bytes(b"")
    clock = PausedClock(write_on)
    assert read_env_file(str(path), clock) == {"A": "1", "B": "2"}
    assert clock.pauses == 2


def test_a_file_that_is_always_being_written_is_broken_after_some_seconds(tmp_path: Path) -> None:
    path = made(tmp_path, b"A=1\n")
    clock = PausedClock(lambda number: path.touch())
    path.touch()
    with pytest.raises(ValueError, match="again and again"):
        read_env_file(str(path), clock)
    assert 1 < clock.pauses * SETTLED_SECS < 10


def test_a_date_far_ahead_or_long_ago_is_no_reason_to_wait(tmp_path: Path) -> None:
    path = made(tmp_path, b"A=1\n")
    for then in (0, time.time() + 86_400, 2**40):
        os.utime(path, (then, then))
        clock = PausedClock()
        assert read_env_file(str(path), clock) == {"A": "1"}
        assert clock.pauses == 0


# Anything at all

PIECES = [
    b"A", b"GOFR_DIG_X", b"=", b"=", b"\n", b"\n", b"\r\n", b'"',
    b"'", b"#", b";", b" ", b"\t", b"\\", b"\0", b"\xff", b"$",
    b"`", b"export ", b"50G", "\u00e4\u2028".encode(), b"\xef\xbb\xbf", b"\x1b[31m", b"A=1\n", b"B='x'\n",
]  # fmt: skip
VALUE = r'"[^"]*"|\'[^\']*\'|(?!["\']).*?'
LINE = re.compile(rf"[ \t\r]*(?:[#;].*|[A-Za-z_][A-Za-z0-9_]*=[ \t\r]*(?:{VALUE})[ \t\r]*)?".encode(), re.DOTALL)


def test_of_random_bytes_every_line_counts_or_none(seeds: Callable[[int], range]) -> None:
    whole = 0
    for seed in seeds(8000):
        rng = random.Random(seed)
        data = b"".join(rng.choice(PIECES) for _ in range(rng.randrange(12))) + rng.choice([b"", b"\n", b"\n"])
        try:
            found = parse(data)
        except ValueError as error:
            assert re.match(r"line \d+: |it is |its last line ", str(error)), (seed, data)
            continue
        whole += 1
        assert data.endswith(b"\n"), (seed, data)
        lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
        assert all(LINE.fullmatch(line) for line in lines), (seed, data)
        named = [line.strip(b" \t\r").partition(b"=")[0].decode() for line in lines if line.strip(b" \t\r")]
        assert set(found) == {name for name in named if name[0] not in "#;"}, (seed, data)
        assert not any("\0" in value or "\n" in value for value in found.values()), (seed, data)
    assert whole > 20, "nearly nothing was read"


def test_a_file_that_is_replaced_or_cut_at_any_byte_is_read_whole_or_not(tmp_path: Path) -> None:
    data = b"GOFR_DIG_MAX_STORAGE_MB=50G\nGOFR_DIG_KEEP_LAST=100\n"
    for length in range(len(data) + 1):
        path = made(tmp_path, data[:length])
        try:
            found = read_env_file(str(path), PausedClock())
        except ValueError:
            continue
        # Only at the end of a line; there, only the settling can tell.
        assert data[:length].endswith(b"\n") and found["GOFR_DIG_MAX_STORAGE_MB"] == "50G"
