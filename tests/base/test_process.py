"""What has become of a process that left its number somewhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from stores import ROOT

from storage_manager.base import process
from storage_manager.base.process import ALIVE, ELSEWHERE, GONE, STOPPED, Process, condition, this_process


@pytest.fixture
def other() -> Iterator[tuple[subprocess.Popen[bytes], Process]]:
    """A process that waits, under a name that reads like a dead one's line in /proc, and its identity."""
    code = (
        "import sys; from storage_manager.base.process import this_process;"
        "open('/proc/self/comm', 'w').write('a) Z 1 (b');"
        "print(this_process().pid, this_process().started_ticks, flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None and child.stdout is not None
    pid, ticks = map(int, child.stdout.readline().split())
    yield child, this_process()._replace(pid=pid, started_ticks=ticks)
    child.kill()
    child.wait()
    child.stdin.close()
    child.stdout.close()


@pytest.fixture(autouse=True)
def sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def test_this_process_is_alive() -> None:
    assert this_process().pid == os.getpid()
    assert this_process().started_ticks is not None
    assert condition(this_process()) == ALIVE


def test_a_process_is_alive_then_stopped_then_gone(other: tuple[subprocess.Popen[bytes], Process]) -> None:
    child, identity = other
    assert condition(identity) == ALIVE
    child.send_signal(signal.SIGSTOP)
    os.waitpid(child.pid, os.WUNTRACED)
    assert condition(identity) == STOPPED
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert condition(identity) == GONE  # a zombie
    child.wait()
    assert condition(identity) == GONE


def test_a_number_that_has_passed_to_another_process_is_gone(other: tuple[subprocess.Popen[bytes], Process]) -> None:
    _, identity = other
    assert identity.started_ticks is not None
    assert condition(identity._replace(started_ticks=identity.started_ticks - 1)) == GONE
    assert condition(identity._replace(started_ticks=None)) == ALIVE


def test_of_another_host_or_container_nothing_is_known() -> None:
    here = this_process()
    assert condition(here._replace(host="elsewhere")) == ELSEWHERE
    assert condition(here._replace(pid_namespace=1)) == ELSEWHERE
    assert condition(here._replace(pid_namespace=None)) == ELSEWHERE


@pytest.mark.parametrize("pid", [1 << 22, 1 << 31, 1 << 62])
def test_a_number_that_no_process_can_have_is_gone(pid: int) -> None:
    assert condition(this_process()._replace(pid=pid)) == GONE


def test_without_proc_a_process_that_answers_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_fields", lambda pid: None)
    here = this_process()
    assert here.started_ticks is None
    assert condition(here) == ALIVE
    assert condition(here._replace(pid=1 << 22)) == GONE

    def kill(pid: int, signum: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", kill)
    assert condition(here._replace(pid=1)) == ALIVE
