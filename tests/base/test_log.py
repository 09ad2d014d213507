"""Events: strict JSON whatever the fields hold, and logging that neither raises nor blocks."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import re
import resource
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from stores import event, events, make_store, run_tool

from storage_manager import __version__
from storage_manager.base import log as log_module
from storage_manager.base import log_file
from storage_manager.base.log import EventLog, add_log_file, build_logger, close_logger


@pytest.fixture(autouse=True)
def logging_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """build_logger() sets this for the process it thinks is its own."""
    monkeypatch.setattr(logging, "raiseExceptions", logging.raiseExceptions)


class Recorder:
    """A log to a file, read back line by line."""

    def __init__(self, path: Path, as_json: bool = True, level: int = logging.DEBUG) -> None:
        self._path = path
        self._stream = open(path, "w")  # noqa: SIM115  # closed by the fixture
        self.logger = build_logger(self._stream, as_json, level)
        self.log = EventLog(self.logger)

    @property
    def text(self) -> str:
        return self._path.read_text()

    @property
    def events(self) -> list[dict[str, Any]]:
        found = events(self.text)
        assert len(found) == len(self.text.splitlines()), self.text
        return found

    def last(self) -> dict[str, Any]:
        return self.events[-1]

    def close(self) -> None:
        close_logger(self.logger)
        self._stream.close()


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    recorder = Recorder(tmp_path / "events")
    yield recorder
    recorder.close()


@pytest.fixture
def text_recorder(tmp_path: Path) -> Iterator[Recorder]:
    recorder = Recorder(tmp_path / "events", as_json=False)
    yield recorder
    recorder.close()


class Pipe:
    """A small pipe as standard error, read only when the test wants it."""

    ROOM_BYTES = 16_384

    def __init__(self) -> None:
        self.reader, writer = os.pipe()
        fcntl.fcntl(writer, 1031, self.ROOM_BYTES)  # F_SETPIPE_SZ
        os.set_blocking(self.reader, False)
        self.stream = os.fdopen(writer, "w")
        self.logger = build_logger(self.stream, True, logging.DEBUG)
        self.log = EventLog(self.logger)

    def read(self) -> str:
        found = b""
        while True:
            try:
                part = os.read(self.reader, 65536)
            except BlockingIOError:
                return found.decode()
            if not part:
                return found.decode()
            found += part

    def fill(self) -> None:
        os.set_blocking(self.stream.fileno(), False)
        try:
            while True:
                os.write(self.stream.fileno(), b"#" * 1023 + b"\n")
        except BlockingIOError:
            os.set_blocking(self.stream.fileno(), True)

    def close(self) -> None:
        close_logger(self.logger)
        self.stream.close()
        os.close(self.reader)


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipe]:
    monkeypatch.setattr(log_module, "STALL_SECS", 0.05)
    pipe = Pipe()
    yield pipe
    pipe.close()


class Unspeakable:
    def __str__(self) -> str:
        raise RuntimeError("no text for you")

    __repr__ = __str__


# The JSON formatter


def test_an_event_is_one_line_of_clef_with_its_own_fields(recorder: Recorder) -> None:
    recorder.log.warning("storage_manager.test", "a sentence", count=3, name="x")
    found = recorder.last()
    assert list(found)[:4] == ["@t", "@m", "@l", "event"]
    written = datetime.strptime(found.pop("@t"), "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc)
    assert abs((datetime.now(timezone.utc) - written).total_seconds()) < 60
    assert re.fullmatch("[0-9a-f]{16}", found.pop("run_id"))
    assert found == {
        "@m": "a sentence",
        "@l": "Warning",
        "event": "storage_manager.test",
        "logger": "storage_manager",
        "host": os.uname().nodename,
        "pid": os.getpid(),
        "version": __version__,
        "count": 3,
        "name": "x",
    }


def test_an_event_without_fields_of_its_own_is_whole(recorder: Recorder) -> None:
    recorder.log.info("storage_manager.test", "a sentence")
    assert recorder.last()["version"] == __version__


def test_the_levels_have_clefs_names(recorder: Recorder) -> None:
    for name in ("info", "warning", "error"):
        getattr(recorder.log, name)("storage_manager.test", name)
    assert [item["@l"] for item in recorder.events] == ["Information", "Warning", "Error"]


def test_a_new_run_has_a_new_identity(recorder: Recorder) -> None:
    recorder.log.info("storage_manager.test", "one")
    recorder.log.info("storage_manager.test", "two")
    recorder.log.begin_run()
    recorder.log.info("storage_manager.test", "three")
    first, second, third = (item["run_id"] for item in recorder.events)
    assert first == second != third
    assert third == recorder.log.run_id


def test_the_time_is_utc_whatever_the_time_zone(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        recorder.log.info("storage_manager.test", "now")
    finally:
        monkeypatch.delenv("TZ")
        time.tzset()
    written = datetime.strptime(recorder.last()["@t"], "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc)
    assert abs((datetime.now(timezone.utc) - written).total_seconds()) < 60


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (float("-inf"), "-inf"),
        (b"\xff\x00", "b'\\xff\\x00'"),
        ("lone \ud800", "lone \\ud800"),
        ("byte \udcff", "byte \\udcff"),
        ("größe 😀", "größe 😀"),
        (Unspeakable(), "<Unspeakable>"),
        ((1, (2, None)), [1, [2, None]]),
        ({"set"}, ["set"]),
        ({"deep": [float("nan"), {"\ud800": b"x"}]}, {"deep": ["nan", {"\\ud800": "b'x'"}]}),
        ({1: 2.5, None: True}, {"1": 2.5, "null": True}),
        (2**63, 2**63),
        (10**30, 10**30),
        ("x\ny\x1b[31m\x00", "x\ny\x1b[31m\x00"),
    ],
)
def test_whatever_a_field_holds_the_line_is_strict_json(recorder: Recorder, value: object, expected: object) -> None:
    recorder.log.info("storage_manager.test", "a sentence", value=value, other=1)
    found = recorder.last()
    assert found["value"] == expected
    assert found["other"] == 1
    assert recorder.text.isascii()


@pytest.mark.parametrize(
    "value", [10**5000, -(10**5000), [10**5000], {Unspeakable(): 1}], ids=lambda v: type(v).__name__
)
def test_a_field_that_cannot_be_said_does_not_cost_the_event(recorder: Recorder, value: object) -> None:
    recorder.log.info("storage_manager.test", "a sentence", value=value, other=1, nan=float("nan"))
    assert recorder.last()["other"] == 1


def test_a_field_that_contains_itself_does_not_cost_the_event(recorder: Recorder) -> None:
    endless: list[Any] = []
    endless.append(endless)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    recorder.log.info("storage_manager.test", "a sentence", endless=endless, deep=deep)
    assert recorder.last()["@m"] == "a sentence"
    assert len(recorder.text) < 10_000
    while deep:  # taken apart by hand: freeing it as a whole recurses, in an older Python, 100,000 deep
        deep = deep.pop()


def test_a_field_with_an_at_sign_in_front_is_not_taken_for_clefs_own(recorder: Recorder) -> None:
    recorder.log.info("storage_manager.test", "a sentence", **{"@t": "evil", "@x": 1, "plain": "@m"})
    found = recorder.last()
    assert found["@t"] != "evil" and "@x" not in found
    assert (found["@@t"], found["@@x"], found["plain"]) == ("evil", 1, "@m")


@pytest.mark.parametrize("message", ["100 %s %d %", "{braces}", "two\nlines", "\ud800", 'quote " and \\ backslash', ""])
def test_a_message_is_said_as_it_is(recorder: Recorder, message: str) -> None:
    recorder.log.info("storage_manager.test", message)
    assert recorder.last()["@m"] == message.replace("\ud800", "\\ud800")


def test_an_exception_comes_with_its_traceback(recorder: Recorder) -> None:
    try:
        raise ValueError("what \udcff happened")
    except ValueError as error:
        recorder.log.exception("storage_manager.test", "it failed", error, guid="x")
    found = recorder.last()
    assert found["@l"] == "Error"
    assert found["@x"].startswith("Traceback (most recent call last):\n")
    assert found["@x"].endswith("ValueError: what \\udcff happened")
    assert found["guid"] == "x"


def test_an_exception_without_text_does_not_cost_the_event(recorder: Recorder) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    recorder.log.exception("storage_manager.test", "it failed", Mute())
    assert "Mute" in recorder.last()["@x"]


def test_events_below_the_level_are_not_written(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "events", level=logging.WARNING)
    recorder.log.info("storage_manager.test", "quiet")
    recorder.log.warning("storage_manager.test", "loud")
    recorder.close()
    assert [item["@m"] for item in recorder.events] == ["loud"]


# The text formatter


def test_text_is_time_level_and_sentence(text_recorder: Recorder) -> None:
    text_recorder.log.warning("storage_manager.test", "a sentence", guid="x")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ WARNING a sentence\n", text_recorder.text)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"size_bytes": 1536, "group": "research"}, r" \(1.5 KB, \d+ d old, group research\)"),
        ({"size_bytes": 0, "group": None}, r" \(0 B, \d+ d old\)"),
        ({"size_bytes": 1, "group": "a\nb"}, r" \(1 B, \d+ d old, group a\\x0ab\)"),
        ({"size_bytes": 1, "group": None, "created_at": "9999-01-01T00:00:00Z"}, r" \(1 B, in the future\)"),
        ({"group": "research"}, ""),
        ({"size_bytes": 1, "created_at": "yesterday"}, ""),
    ],
)
def test_text_tells_size_age_and_group_of_a_session(text_recorder: Recorder, fields: dict[str, Any], told: str) -> None:
    text_recorder.log.info("storage_manager.test", "deleted x", **{"created_at": "2020-01-01T00:00:00Z", **fields})
    assert re.fullmatch(rf".* INFO    deleted x{told}\n", text_recorder.text)


def test_text_is_one_line_without_control_characters(text_recorder: Recorder) -> None:
    text_recorder.log.error("storage_manager.test", "a\nb\r\x1b[31m\x9b\u202e\u2028\udcff\ud800ö")
    assert text_recorder.text.endswith("a\\x0ab\\x0d\\x1b[31m\\x9b\\u202e\\u2028\\xff\\ud800ö\n")
    assert len(text_recorder.text.splitlines()) == 1


def test_text_is_of_bounded_length(text_recorder: Recorder) -> None:
    text_recorder.log.info("storage_manager.test", "x" * 1_000_000)
    assert len(text_recorder.text) < 10_000


# A standard error that nobody reads


def test_a_reader_that_has_stopped_costs_lines_and_little_time(pipe: Pipe) -> None:
    pipe.fill()
    started = time.monotonic()
    for number in range(50):
        pipe.log.info("storage_manager.test", "lost", number=number)
    assert time.monotonic() - started < 2


def test_lines_that_were_dropped_are_counted_when_the_reader_comes_back(pipe: Pipe) -> None:
    pipe.fill()
    for number in range(7):
        pipe.log.info("storage_manager.test", "lost", number=number)
    pipe.read()
    pipe.log.info("storage_manager.test", "found")
    pipe.log.info("storage_manager.test", "found")
    dropped, first, second = events(pipe.read())
    assert (dropped["event"], dropped["@l"]) == ("storage_manager.log_dropped", "Warning")
    assert dropped["dropped_count"] == 7
    assert dropped["run_id"] == first["run_id"]
    assert first["@m"] == second["@m"] == "found"


def test_each_run_is_as_patient_as_the_first(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe.fill()
    pipe.log.info("storage_manager.test", "waits its time")
    monkeypatch.setattr(log_module, "STALL_SECS", 0.3)
    started = time.monotonic()
    pipe.log.info("storage_manager.test", "does not wait again")
    assert time.monotonic() - started < 0.2
    pipe.log.begin_run()
    started = time.monotonic()
    pipe.log.info("storage_manager.test", "waits its time")
    assert time.monotonic() - started >= 0.3


def test_a_line_that_was_torn_spoils_no_other(pipe: Pipe) -> None:
    pipe.log.info("storage_manager.test", "torn", padding="x" * 3 * Pipe.ROOM_BYTES)
    pipe.log.info("storage_manager.test", "lost as a whole")
    shown = pipe.read()
    assert shown.count("\n") == 0  # the beginning of a line
    pipe.log.info("storage_manager.test", "after it")
    shown += pipe.read()
    fragment, *lines = [line for line in shown.split("\n") if line]
    assert fragment.startswith('{"@t"') and fragment.endswith("xxx")
    found = [json.loads(line) for line in lines]
    assert [item["event"] for item in found] == ["storage_manager.log_dropped", "storage_manager.test"]
    assert found[0]["dropped_count"] == 2
    assert found[1]["@m"] == "after it"


def test_a_line_that_was_torn_by_a_full_disk_spoils_no_other(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder.log.info("storage_manager.test", "before")
    real = os.write
    calls: list[int] = []

    def write(fd: int, data: Any) -> int:
        calls.append(fd)
        if len(calls) == 1:
            return real(fd, bytes(data)[:40])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(log_module.os, "write", write)
        recorder.log.info("storage_manager.test", "torn")
    recorder.log.info("storage_manager.test", "after")
    before, fragment, *lines = recorder.text.splitlines()
    assert json.loads(before)["@m"] == "before"
    assert len(fragment) == 40
    assert [json.loads(line)["@m"] for line in lines if line][-1] == "after"


def test_a_long_line_passes_through_a_small_pipe_to_a_reader_that_reads(pipe: Pipe) -> None:
    shown: list[bytes] = []
    os.set_blocking(pipe.reader, True)

    def read() -> None:
        while not b"".join(shown).endswith(b"\n"):
            shown.append(os.read(pipe.reader, 1000))

    reader = threading.Thread(target=read)
    reader.start()
    pipe.log.info("storage_manager.test", "long", padding="x" * 50_000)
    reader.join(timeout=20)
    assert json.loads(b"".join(shown))["padding"] == "x" * 50_000


def test_a_reader_that_has_gone_away_is_no_error(pipe: Pipe) -> None:
    os.close(pipe.reader)
    pipe.log.info("storage_manager.test", "to nobody")
    pipe.log.error("storage_manager.test", "to nobody")
    pipe.reader = os.open(os.devnull, os.O_RDONLY)


def test_a_closed_standard_error_is_no_error() -> None:
    logger = build_logger(None, True, logging.INFO)
    EventLog(logger).error("storage_manager.test", "to nobody")
    close_logger(logger)


# The log file


def test_the_log_file_gets_every_event_as_json_whatever_standard_error_shows(storage: Path, tmp_path: Path) -> None:
    make_store(storage, 2)
    log = tmp_path / "log"
    done = run_tool(
        "list", "--storage-dir", storage, "--log-level", "CRITICAL", "--log-format", "text",
        env={"GOFR_DIG_LOG_FILE": str(log)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert [item["event"] for item in events(log.read_text())] == [
        "storage_manager.command_start",
        "storage_manager.list.summary",
        "storage_manager.command_end",
    ]
    run_tool("list", "--storage-dir", storage, env={"GOFR_DIG_LOG_FILE": str(log)})
    assert len(log.read_text().splitlines()) == 6


def test_the_log_file_is_rotated_and_two_old_ones_are_kept(
    tmp_path: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_module, "LOG_FILE_BYTES", 5000)
    assert add_log_file(recorder.logger, str(tmp_path / "log")) is None
    for number in range(100):
        recorder.log.info("storage_manager.test", "a sentence", number=number)
    close_logger(recorder.logger)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["events", "log", "log.1", "log.2"]
    numbers = []
    for name in ("log.2", "log.1", "log"):
        path = tmp_path / name
        assert path.stat().st_size <= 5000
        numbers += [item["number"] for item in events(path.read_text())]
    assert numbers == list(range(100))[-len(numbers) :]
    assert len(numbers) > 20


def test_three_files_of_ten_megabytes_are_the_most_there_is() -> None:
    assert (log_module.LOG_FILE_BYTES, log_module.LOG_FILE_BACKUPS) == (10 * 1024 * 1024, 2)


def unusable_log_file(tmp_path: Path, kind: str) -> str:
    path = tmp_path / kind
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "below a file":
        (tmp_path / "file").write_text("")
        path = tmp_path / "file" / "log"
    elif kind == "in a missing directory":
        path = tmp_path / "absent" / "log"
    elif kind == "device":
        path = Path("/dev/full")
    else:
        path = tmp_path / ("x" * 300)
    return str(path)


@pytest.mark.parametrize(
    "kind", ["directory", "fifo", "below a file", "in a missing directory", "device", "too long a name"]
)
def test_a_log_file_that_cannot_be_used_is_reported_and_done_without(storage: Path, tmp_path: Path, kind: str) -> None:
    guids = make_store(storage, 2)
    path = unusable_log_file(tmp_path, kind)
    done = run_tool("list", "--storage-dir", storage, env={"GOFR_DIG_LOG_FILE": path})
    assert done.returncode == 0
    assert done.stdout.split() == guids
    told = event(done.stderr, "housekeeper.invalid_env")
    assert told["@l"] == "Warning"
    assert path[:60] in told["value"] and told["reason"]
    assert "[Errno" not in told["@m"]


@pytest.mark.parametrize("name", ["log", "metadata.json", ".prune_size.lock", "new.log"])
def test_a_log_file_in_the_storage_directory_is_reported_and_done_without(
    storage: Path, tmp_path: Path, name: str
) -> None:
    make_store(storage, 3, size=1000)
    (tmp_path / "link").symlink_to(storage / name)
    before = (storage / "metadata.json").read_bytes()
    for path in (storage / name, tmp_path / "link"):
        done = run_tool("list", "--storage-dir", storage, env={"GOFR_DIG_LOG_FILE": str(path)})
        assert done.returncode == 0
        assert event(done.stderr, "housekeeper.invalid_env")["variable"] == "GOFR_DIG_LOG_FILE"
    assert (storage / "metadata.json").read_bytes() == before
    assert len(list(storage.iterdir())) == 4


@pytest.mark.parametrize("kind", ["metadata.json", "blob", ".prune_size.lock"])
def test_a_log_file_that_is_named_like_a_part_of_a_store_is_done_without(
    storage: Path, tmp_path: Path, kind: str
) -> None:
    make_store(storage, 1)
    [guid] = make_store(tmp_path / "other", 1)
    file = tmp_path / "other" / (f"{guid}.json" if kind == "blob" else kind)
    file.touch()
    before = file.read_bytes()
    (tmp_path / "link").symlink_to(file)
    for path in (file, tmp_path / "link"):
        done = run_tool("list", "--storage-dir", storage, env={"GOFR_DIG_LOG_FILE": str(path)})
        assert done.returncode == 0
        assert event(done.stderr, "housekeeper.invalid_env")["variable"] == "GOFR_DIG_LOG_FILE"
    run_tool("list", "--frobnicate", env={"GOFR_DIG_LOG_FILE": str(file)})
    assert file.read_bytes() == before


def test_the_variable_of_an_unusable_log_file_is_called_by_its_name(storage: Path, tmp_path: Path) -> None:
    make_store(storage, 1)
    for prefix in ("GOFR_DIG", "OTHER"):
        env = {"STORAGE_MANAGER_ENV_PREFIX": prefix, f"{prefix}_LOG_FILE": str(tmp_path)}
        done = run_tool("list", "--storage-dir", storage, env=env)
        assert event(done.stderr, "housekeeper.invalid_env")["variable"] == f"{prefix}_LOG_FILE"


@pytest.mark.skipif(os.geteuid() == 0, reason="to root every file is writable")
def test_a_log_file_that_may_not_be_written_is_reported_and_done_without(storage: Path, tmp_path: Path) -> None:
    make_store(storage, 1)
    (tmp_path / "log").touch(mode=0o400)
    done = run_tool("list", "--storage-dir", storage, env={"GOFR_DIG_LOG_FILE": str(tmp_path / "log")})
    assert done.returncode == 0
    assert event(done.stderr, "housekeeper.invalid_env")


def test_a_log_file_that_cannot_grow_costs_lines_and_nothing_else(storage: Path, tmp_path: Path) -> None:
    guids = make_store(storage, 5, size=1000)
    log = tmp_path / "log"
    log.write_text("#" * 19_999 + "\n")

    def a_small_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = run_tool(
        "prune-size", "--max-mb", "2000B", "--storage-dir", storage,
        env={"GOFR_DIG_LOG_FILE": str(log)}, preexec_fn=a_small_disk,
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stdout == "deleted 3 sessions, 2.9 KB; 2.0 KB remain\n"
    assert len(events(done.stderr)) == len(done.stderr.splitlines()) == 8
    assert log.stat().st_size == 20_000
    assert {path.stem for path in storage.glob("*-*.json")} == set(guids[3:])


def test_a_log_file_whose_disk_has_room_again_gets_the_next_lines_whole(recorder: Recorder, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert add_log_file(recorder.logger, str(log)) is None
    recorder.log.info("storage_manager.test", "before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size + 20, hard))
    try:
        recorder.log.info("storage_manager.test", "on a full disk")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    recorder.log.info("storage_manager.test", "after")
    close_logger(recorder.logger)
    first, *_, last = log.read_text().splitlines()
    assert json.loads(first)["@m"] == "before"
    assert json.loads(last)["@m"] == "after"
    told = json.loads(log.read_text().splitlines()[-2])
    assert told["@m"] == "1 log line was dropped: the log file could not be written"


def renamed(log: Path) -> None:
    log.rename(log.with_name("log.old"))


def replaced(log: Path) -> None:
    renamed(log)
    log.touch()


def removed(log: Path) -> None:
    log.unlink()


def copied_over(log: Path) -> None:
    """The same name, another device's or inode's file under it."""
    log.with_name("log.new").touch()
    os.link(log, log.with_name("log.old"))
    log.with_name("log.new").replace(log)


def linked_elsewhere(log: Path) -> None:
    renamed(log)
    log.symlink_to(log.with_name("elsewhere"))


def logged(directory: Path) -> list[int]:
    """The numbers in all files of a log, in the order of the events."""
    texts = [path.read_text() for path in directory.iterdir() if path.is_file() and not path.is_symlink()]
    return sorted(item["number"] for text in texts for item in events(text) if "number" in item)


@pytest.mark.parametrize("happened", [renamed, replaced, removed, copied_over, linked_elsewhere])
@pytest.mark.parametrize("at_once", [False, True], ids=["within a second", "at once when asked"])
def test_lines_go_to_the_file_that_the_name_leads_to_and_none_is_lost(
    recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, happened: Callable[[Path], None], at_once: bool
) -> None:
    now = [1000.0]
    monkeypatch.setattr(log_file.time, "monotonic", lambda: now[0])
    log = tmp_path / "logs" / "log"
    log.parent.mkdir()
    assert add_log_file(recorder.logger, str(log)) is None
    recorder.log.info("storage_manager.test", "before", number=0)
    happened(log)
    recorder.log.info("storage_manager.test", "right after", number=1)
    if at_once:
        recorder.log.reopen()
    else:
        now[0] += log_file.LOOK_SECS
    recorder.log.info("storage_manager.test", "later", number=2)
    close_logger(recorder.logger)
    assert events(log.read_text())[-1]["number"] == 2
    assert logged(log.parent) == ([1, 2] if happened is removed else [0, 1, 2])


def test_the_name_is_not_looked_up_for_each_line(
    recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    opened: list[str] = []
    real = os.open
    monkeypatch.setattr(log_file.time, "monotonic", lambda: now[0])
    assert add_log_file(recorder.logger, str(tmp_path / "log")) is None
    monkeypatch.setattr(log_file.os, "open", lambda path, *rest: (opened.append(path), real(path, *rest))[1])
    for _ in range(3):
        for _ in range(100):
            recorder.log.info("storage_manager.test", "one of many")
        now[0] += log_file.LOOK_SECS
    assert len(opened) == 2
    close_logger(recorder.logger)


@pytest.mark.parametrize("kind", ["fifo", "directory", "directory gone"])
def test_where_no_new_file_can_be_opened_lines_are_kept_or_counted(
    recorder: Recorder, tmp_path: Path, kind: str
) -> None:
    log = tmp_path / "logs" / "log"
    log.parent.mkdir()
    assert add_log_file(recorder.logger, str(log)) is None
    recorder.log.info("storage_manager.test", "before", number=0)
    old = log.with_name("log.old")
    if kind == "directory gone":
        old = tmp_path / "away" / "log"
        log.parent.rename(old.parent)
    else:
        log.rename(old)
        os.mkfifo(log) if kind == "fifo" else log.mkdir()
    recorder.log.reopen()
    recorder.log.info("storage_manager.test", "to the old one", number=1)
    assert logged(old.parent) == [0, 1]
    old.unlink()
    for number in (2, 3):
        recorder.log.info("storage_manager.test", "nowhere to go", number=number)
    if kind == "directory gone":
        log.parent.mkdir()
    elif kind == "fifo":
        log.unlink()
    else:
        log.rmdir()
    recorder.log.info("storage_manager.test", "again", number=4)
    close_logger(recorder.logger)
    told, again = events(log.read_text())
    assert (told["event"], told["dropped_count"]) == ("storage_manager.log_dropped", 2)
    assert again["number"] == 4


@pytest.fixture
def somebody_elses_link(tmp_path: Path) -> Callable[[Path], Path]:
    """Puts a link of another user at a name; returns the file that it leads to, which is root's."""
    victim = tmp_path / "victim"

    def put(log: Path) -> Path:
        victim.write_text("precious")
        log.symlink_to(victim)
        try:
            os.lchown(log, 65534, 65534)
        except PermissionError:
            pytest.skip("only root can give a link away")
        return victim

    return put


@pytest.mark.parametrize("words", [("list",), ("run-loop", "--once"), ("list", "--frobnicate")])
def test_a_log_file_is_not_reached_through_somebody_elses_link(
    storage: Path, tmp_path: Path, somebody_elses_link: Callable[[Path], Path], words: tuple[str, ...]
) -> None:
    make_store(storage, 1)
    victim = somebody_elses_link(tmp_path / "log")
    done = run_tool(*words, "--storage-dir", storage, env={"GOFR_DIG_LOG_FILE": str(tmp_path / "log")})
    assert victim.read_text() == "precious"
    if "--frobnicate" not in words:  # wrong usage is told before any setting is
        assert done.returncode == 0
        assert "symbolic link of user 65534" in event(done.stderr, "housekeeper.invalid_env")["@m"]


def test_a_link_of_our_own_is_followed(recorder: Recorder, tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to(tmp_path / "elsewhere")
    assert add_log_file(recorder.logger, str(tmp_path / "log")) is None
    recorder.log.info("storage_manager.test", "through the link")
    close_logger(recorder.logger)
    assert len(events((tmp_path / "elsewhere").read_text())) == 1


@pytest.mark.parametrize("happened", [renamed, removed], ids=["the old file has a name", "the old file is gone"])
def test_a_name_that_becomes_somebody_elses_link_is_not_followed(
    recorder: Recorder,
    tmp_path: Path,
    somebody_elses_link: Callable[[Path], Path],
    happened: Callable[[Path], None],
) -> None:
    log = tmp_path / "logs" / "log"
    log.parent.mkdir()
    assert add_log_file(recorder.logger, str(log)) is None
    happened(log)
    victim = somebody_elses_link(log)
    recorder.log.reopen()
    recorder.log.info("storage_manager.test", "not into the victim", number=1)
    log.unlink()
    recorder.log.reopen()
    recorder.log.info("storage_manager.test", "again", number=2)
    close_logger(recorder.logger)
    assert victim.read_text() == "precious"
    assert logged(log.parent) == ([1, 2] if happened is renamed else [2])
    dropped_counts = [item.get("dropped_count") for item in events(log.read_text())]
    assert dropped_counts == ([None] if happened is renamed else [1, None])


def test_two_processes_that_rotate_one_file_push_out_no_more_than_one_would(
    recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_module, "LOG_FILE_BYTES", 5000)
    log = tmp_path / "logs" / "log"
    log.parent.mkdir()
    other = Recorder(tmp_path / "other")
    for each in (recorder, other):
        assert add_log_file(each.logger, str(log)) is None
    for number in range(150):
        (recorder, other)[number % 2].log.info("storage_manager.test", "a sentence", number=number)
    for each in (recorder, other):
        close_logger(each.logger)
    other.close()
    numbers = logged(log.parent)
    assert numbers == list(range(150))[-len(numbers) :]
    assert all(log.with_name(f"log.{number}").stat().st_size > 4500 for number in (1, 2)), "rotated before it was full"
