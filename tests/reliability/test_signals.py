"""A signal at each step of a run, and of the loop: the right exit code, nothing lost, every deletion committed."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from fcntl import ioctl
from pathlib import Path
from typing import Any, NamedTuple

import faults
import pytest
from faults import METADATA, Call, Pauses, check, clone, intercepted, made, run_main
from loops import Running, loop, signals_as_usual
from stores import blobs, clean_environment, command, event, events, leftovers, make_store, read_entries

from storage_manager.base.clock import HANDLED, STOPPING, Clock
from storage_manager.jobs import prune as prune_job
from storage_manager.store.directory import Store

pauses, room = faults.pauses, faults.room

LIMIT = {"GOFR_DIG_MAX_STORAGE_MB": "5500B"}  # that of faults.PRUNE
LOOP = ("run-loop",)
ENDS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGUSR1: 0}
INSTALL = Clock.install


class Ended(NamedTuple):
    """How a run ended into which a signal came."""

    where: str
    code: int
    events: list[dict[str, Any]]

    def sentences(self, key: str) -> list[str]:
        return [item["@m"] for item in self.events if item["event"] == key]


class Trial:
    """Runs of one command on copies of one store, in this process, with its real signal handlers."""

    def __init__(self, room: Path, arguments: tuple[str, ...], capfd: pytest.CaptureFixture[str]) -> None:
        self.scene = made(faults.plain, room / "template")._replace(arguments=arguments)
        self.storage = room / "work"
        self.clocks: list[Clock] = []
        self.template = room / "template"
        self._capfd = capfd

    def run(self, where: str, step: Callable[[], None]) -> Ended:
        """`step` is called before each system call on the store."""
        clone(self.template, self.storage)

        def handler(call: Call, go: Callable[..., Any]) -> Any:
            step()
            return go()

        with intercepted(self.storage, handler):
            code = run_main(self.storage, self.scene.arguments, "INFO")
        for clock in self.clocks:
            for fd in clock._pipe or ():
                os.close(fd)
        self.clocks.clear()
        signal.set_wakeup_fd(-1)
        err = self._capfd.readouterr().err
        assert "Traceback" not in err and "ignored" not in err and '"@x"' not in err, f"{where}: {err}"
        return Ended(where, code, events(err))

    def at_each_step(self, signum: signal.Signals, sample: Callable[[Any], list[int]] = list) -> Iterator[Ended]:
        steps = Countdown(signum, -1)
        self.run("undisturbed", steps)
        for at in sample(range(-1 - steps.left)):
            countdown = Countdown(signum, at)
            ended = self.run(f"{signum.name} at call {at}", countdown)
            assert countdown.left < 0, ended.where
            yield ended

    def gone(self, where: str) -> int:
        """How many sessions went. Whatever else holds, however a run ended, is checked."""
        check(self.storage, self.scene, where)
        found = blobs(self.storage)
        gone = [guid for guid in self.scene.order if guid not in found]
        assert gone == self.scene.order[: len(gone)], f"{where}: not the oldest went"
        assert set(read_entries(self.storage)) == found, f"{where}: not all that was deleted is committed"
        assert leftovers(self.storage) == [], f"{where}: the lock, or a file, was left"
        return len(gone)


class Countdown:
    """Sends this process a signal at the step of a certain number, once; never at that of a negative number."""

    def __init__(self, signum: signal.Signals, at: int) -> None:
        self.left = at
        self._signum = signum

    def __call__(self) -> None:
        self.left -= 1
        if self.left == -1:
            os.kill(os.getpid(), self._signum)


MakeTrial = Callable[[tuple[str, ...]], Trial]


@pytest.fixture
def trial(
    room: Path, pauses: Pauses, here: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> MakeTrial:
    def make(arguments: tuple[str, ...]) -> Trial:
        made = Trial(room, arguments, capfd)

        def install(clock: Clock) -> None:
            for signum in HANDLED:
                signal.signal(signum, signal.SIG_DFL)
            INSTALL(clock)
            made.clocks.append(clock)

        monkeypatch.setattr(Clock, "install", install)
        return made

    return make


@pytest.mark.parametrize("signum", HANDLED)
@pytest.mark.parametrize("arguments", [faults.PRUNE, faults.PURGE], ids=lambda arguments: arguments[0])
def test_a_signal_at_each_call_of_a_prune(trial: MakeTrial, arguments: tuple[str, ...], signum: signal.Signals) -> None:
    prune = trial(arguments)
    seen = set()
    for ended in prune.at_each_step(signum):
        gone = prune.gone(ended.where)
        assert ended.code == ENDS[signum] and (gone == 3 or ended.code), ended
        said = ended.sentences("storage_manager.command_failed")
        assert len(said) == (ended.code != 0) and all(signum.name in sentence for sentence in said), ended
        seen.add(gone)
    assert seen == ({3} if signum == signal.SIGUSR1 else {0, 1, 2, 3})


@pytest.mark.parametrize("signum", HANDLED)
def test_a_signal_at_each_call_of_a_cycle(
    trial: MakeTrial, monkeypatch: pytest.MonkeyPatch, sample: Callable[[Any], list[int]], signum: signal.Signals
) -> None:
    """With a commit after each blob. The loop goes on after SIGHUP and SIGUSR1; when it sleeps, a SIGTERM ends it."""
    for name, value in LIMIT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(prune_job, "COMMIT_EVERY_SECS", 0.0)
    monkeypatch.setattr(Clock, "sleep", lambda clock, secs: os.kill(os.getpid(), signal.SIGTERM))
    looping = trial(LOOP)
    seen = set()
    cycles = []
    for ended in looping.at_each_step(signum, sample):
        gone = looping.gone(ended.where)
        seen.add(gone)
        keys = [item["event"] for item in ended.events]
        assert ended.code == 0 and keys[-1] == "storage_manager.command_end", ended
        by = signum if signum in STOPPING else signal.SIGTERM
        assert ended.sentences("housekeeper.stopping") == [f"stopping on {by.name}"], ended
        cycles.append(keys.count("housekeeper.cycle_start"))
        assert keys.count("housekeeper.log_reopened") == (signum == signal.SIGHUP), ended
        assert "housekeeper.sleep" in keys or signum in STOPPING, ended
    assert seen == ({0, 1, 2, 3} if signum in STOPPING else {3})
    # A wake-up before the first cycle is answered by that cycle, and from its beginning on by another one.
    assert cycles == sorted(cycles) and cycles[-1] == 1 + (signum == signal.SIGUSR1) and cycles[9] == cycles[-1]


@pytest.mark.parametrize("signum", HANDLED)
@pytest.mark.parametrize("arguments", [faults.PRUNE, LOOP], ids=lambda arguments: arguments[0])
def test_a_signal_at_any_step_of_the_whole_command(
    trial: MakeTrial, monkeypatch: pytest.MonkeyPatch, sample: Callable[[Any], list[int]],
    arguments: tuple[str, ...], signum: signal.Signals,
) -> None:  # fmt: skip
    """Each call of a function of ours is a step, from the first to the last, not only those on the store."""
    for name, value in LIMIT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Clock, "sleep", lambda clock, secs: os.kill(os.getpid(), signal.SIGTERM))
    command = trial(arguments)

    def run(where: str, step: Callable[[], None]) -> Ended:
        def profile(frame: Any, kind: str, argument: Any) -> None:
            if kind == "call" and command.clocks and "storage_manager" in frame.f_code.co_filename:
                step()

        sys.setprofile(profile)
        try:
            return command.run(where, lambda: None)
        finally:
            sys.setprofile(None)

    steps = Countdown(signum, -1)
    run("undisturbed", steps)
    for at in sample(range(0, -1 - steps.left, 7)):
        ended = run(f"{signum.name} at step {at}", Countdown(signum, at))
        gone = command.gone(ended.where)
        allowed = {0} if arguments == LOOP else {ENDS[signum], 0} if gone == 3 else {ENDS[signum]}
        assert ended.code in allowed, ended
        assert gone == 3 or signum in STOPPING or (arguments != LOOP and signum == signal.SIGHUP), ended


# --- Processes


def started_with(signum: signal.Signals, handler: Any) -> Callable[[], None]:
    def prepare() -> None:
        signals_as_usual()
        signal.signal(signum, handler)

    return prepare


def test_sighup_under_nohup_does_not_stop_a_prune_and_still_reaches_the_loop(storage: Path) -> None:
    make_store(storage, 600, size=100)
    words = command("--storage-dir", storage, "prune-size", "--max-mb", "100B")
    ignored = started_with(signal.SIGHUP, signal.SIG_IGN)
    with Running(words, preexec_fn=ignored) as tool:
        # The pipe has no room for 599 events, so the prune cannot be over before they are read.
        tool.wait_for("storage_manager.prune.deleted")
        tool.send(signal.SIGHUP)
        assert tool.end() == 0
    assert len(blobs(storage)) == 1
    with loop(storage, preexec_fn=ignored) as tool:
        tool.wait_for("housekeeper.sleep")
        tool.send(signal.SIGHUP)
        tool.wait_for("housekeeper.log_reopened")


def test_sighup_to_a_loop_that_sleeps_opens_the_log_file_anew(storage: Path, tmp_path: Path) -> None:
    make_store(storage, 1)
    log = tmp_path / "log"
    with loop(storage, env={"GOFR_DIG_LOG_FILE": str(log)}) as tool:
        for number, awaited in enumerate(("sleep", "log_reopened", "log_reopened")):
            wait_until(lambda: log.exists() and f"housekeeper.{awaited}" in log.read_text())  # noqa: B023
            log.rename(tmp_path / f"log.old{number}")
            tool.send(signal.SIGHUP)
        wait_until(log.exists)
        tool.send(signal.SIGTERM)
        assert tool.end() == 0
    assert tool.count("housekeeper.cycle_start") == 1 and tool.count("housekeeper.sleep") == 1
    assert events(log.read_text())[0]["event"] == "housekeeper.log_reopened"
    written = [item for path in (*sorted(tmp_path.glob("log.old*")), log) for item in events(path.read_text())]
    assert written == tool.seen, "a line was lost"


EARLY = """
import builtins, os, signal, sys
from storage_manager.__main__ import _run
real = builtins.__import__
def importing(name, *rest, **more):
    if name.startswith("storage_manager"):
        os.kill(os.getpid(), {signum})
    return real(name, *rest, **more)
builtins.__import__ = importing
sys.exit(_run())
"""


@pytest.mark.parametrize("signum", [signal.SIGUSR1, signal.SIGHUP])
@pytest.mark.parametrize("disposition", ["default", "ignored", "blocked"])
def test_a_signal_while_the_tool_is_imported_does_not_kill_it(
    storage: Path, signum: signal.Signals, disposition: str
) -> None:
    make_store(storage, 1)

    def prepare() -> None:
        signals_as_usual()
        if disposition == "ignored":
            signal.signal(signum, signal.SIG_IGN)
        elif disposition == "blocked":
            signal.pthread_sigmask(signal.SIG_BLOCK, {*HANDLED})

    words = [sys.executable, "-c", EARLY.format(signum=int(signum)), "--storage-dir", str(storage)]
    with Running([*words, "run-loop"], preexec_fn=prepare) as tool:
        tool.wait_for("housekeeper.sleep")
        tool.send(signal.SIGTERM)
        assert tool.end() == 0
    with Running([*words, "list"], preexec_fn=prepare) as tool:
        assert tool.end() == (129 if signum == signal.SIGHUP and disposition != "ignored" else 0)


class Terminal:
    """A terminal of its own, whose session the tool leads, as under a shell that runs nothing else."""

    def __init__(self, *arguments: object, env: dict[str, str] | None = None) -> None:
        self._ours, theirs = pty.openpty()

        def lead() -> None:
            signals_as_usual()
            os.setsid()
            ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            command(*arguments), env=clean_environment(env), stdin=theirs, stdout=theirs, stderr=theirs,
            preexec_fn=lead,
        )  # fmt: skip
        os.close(theirs)

    def read_until(self, text: bytes) -> None:
        shown = b""
        while text not in shown:
            shown += os.read(self._ours, 1)

    def hang_up(self) -> None:
        os.close(self._ours)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.wait()


def test_a_terminal_that_is_closed_ends_a_prune_after_committing(storage: Path, tmp_path: Path) -> None:
    guids = make_store(storage, 600, size=100)
    log = tmp_path / "log"
    words = ("--storage-dir", storage, "--log-level", "INFO", "prune-size", "--max-mb", "100B", "--verbose")
    with Terminal(*words, env={"GOFR_DIG_LOG_FILE": str(log)}) as terminal:
        terminal.read_until(b"deleted ")  # and the terminal has no room for all the others
        terminal.hang_up()
        assert terminal.process.wait(30) == 129
    found = blobs(storage)
    assert 1 < len(found) < 600 and set(read_entries(storage)) == found == set(guids[-len(found) :])
    assert leftovers(storage) == []
    assert event(log.read_text(), "storage_manager.command_failed")["@m"].endswith("interrupted by SIGHUP")
    assert '"@x"' not in log.read_text()


def test_a_terminal_that_is_closed_at_the_question_ends_the_command(storage: Path, tmp_path: Path) -> None:
    guids = make_store(storage, 3)
    log = tmp_path / "log"
    words = ("--storage-dir", storage, "purge", "--age-days", "0")
    with Terminal(*words, env={"GOFR_DIG_LOG_FILE": str(log)}) as terminal:
        terminal.read_until(b"(yes/no) ")
        terminal.hang_up()
        assert terminal.process.wait(30) == 129
    assert blobs(storage) == set(guids)
    assert '"@x"' not in log.read_text()


def test_a_terminal_that_is_closed_does_not_end_the_loop(storage: Path, tmp_path: Path) -> None:
    make_store(storage, 3, size=1000)
    log = tmp_path / "log"
    env = {"GOFR_DIG_LOG_FILE": str(log), "GOFR_DIG_MAX_STORAGE_MB": "2000B"}
    with Terminal("--storage-dir", storage, "run-loop", env=env) as terminal:
        terminal.read_until(b"sleeping until")
        terminal.hang_up()
        wait_until(lambda: "housekeeper.log_reopened" in log.read_text())
        make_store(storage, 1, size=1000, seed=2)
        terminal.process.send_signal(signal.SIGUSR1)
        wait_until(lambda: log.read_text().count("housekeeper.sleep") == 2)
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.process.wait(30) == 0, log.read_text()
    assert len(blobs(storage)) == 2


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- Metadata that is torn


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("often", [False, True], ids=["one commit", "a commit after each blob"])
def test_a_signal_while_metadata_stays_torn_says_what_was_done_and_accuses_nobody(
    trial: MakeTrial, monkeypatch: pytest.MonkeyPatch, signum: signal.Signals, number: int, often: bool
) -> None:
    """The client begins to write when `number` blobs are gone, and never ends; the signal comes with the next blob."""
    monkeypatch.setattr(prune_job, "COMMIT_EVERY_SECS", 0.0 if often else 5.0)
    prune = trial(faults.PRUNE)
    whole = b""
    real = Store.unlink
    left = number + 1

    def unlink(store: Store, name: str) -> bool:
        nonlocal left, whole
        if name.endswith(".json"):
            left -= 1
            if not left:
                whole = (prune.storage / METADATA).read_bytes()
                (prune.storage / METADATA).write_bytes(whole[:-20])
                os.kill(os.getpid(), signum)
        return real(store, name)

    monkeypatch.setattr(Store, "unlink", unlink)
    ended = prune.run("torn", lambda: None)
    assert ended.code == ENDS[signum]
    [said] = ended.sentences("storage_manager.command_failed")
    deleted = "1 session was deleted; its entry stays until a later run removes it"
    if number:
        deleted = f"{number + 1} sessions were deleted; " + (
            "1 entry stays until a later run removes it" if often else
            "their entries stay until a later run removes them"
        )  # fmt: skip
    assert said == f"{deleted}; interrupted by {signum.name}"
    assert {item["@l"] for item in ended.events} <= {"Information", "Warning"}
    assert not any(word in item["@m"] for item in ended.events for word in ("backup", "repair", "corrupt"))
    (prune.storage / METADATA).write_bytes(whole)
    monkeypatch.setattr(Store, "unlink", real)
    assert run_main(prune.storage, faults.PRUNE) == 0
    assert prune.gone("the next run") == 3


def test_a_signal_while_a_dry_run_of_the_loop_reads_a_torn_file_is_no_failure(
    trial: MakeTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    dry_run = trial(("run-loop", "--dry-run"))
    torn = (dry_run.template / METADATA).read_bytes()[:-20]
    (dry_run.template / METADATA).write_bytes(torn)
    for at in range(30):
        countdown = Countdown(signal.SIGTERM, at)
        ended = dry_run.run(f"call {at}", countdown)
        assert countdown.left < 0 and ended.code == 0, ended
        assert {item["@l"] for item in ended.events} == {"Information"}, ended
