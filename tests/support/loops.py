"""The loop, and other commands that are waited for: in processes of their own, or on a clock that steps."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from stores import clean_environment, command

from storage_manager.base.clock import Clock
from storage_manager.config import Fallback, Settings, read_settings

MINUTE = 60.0


# Nothing here takes a tenth of this; a tool that hangs is killed, and its test fails instead of hanging too.
PATIENCE_SECS = 30.0


class Running:
    """The tool in a process of its own, whose events are waited for one by one."""

    def __init__(self, arguments: list[str], env: dict[str, str] | None = None, **options: Any) -> None:
        self.seen: list[dict[str, Any]] = []
        options.setdefault("preexec_fn", signals_as_usual)
        options.setdefault("stdin", subprocess.DEVNULL)
        options.setdefault("stdout", subprocess.DEVNULL)
        self.process = subprocess.Popen(arguments, env=clean_environment(env), stderr=subprocess.PIPE, **options)
        self._alarm = threading.Timer(PATIENCE_SECS, self.process.kill)
        self._alarm.start()

    def wait_for(self, key: str) -> dict[str, Any]:
        """The next event with that key."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if line.startswith(b"{"):
                self.seen.append(json.loads(line))
                if self.seen[-1]["event"] == key:
                    return self.seen[-1]
        raise AssertionError(f"{key} never came; seen: {self.seen}")

    def send(self, signum: signal.Signals) -> None:
        self.process.send_signal(signum)

    def wake_up_until(self, key: str, count: int = 1) -> None:
        """Have a sleeping loop run cycles until an event has come `count` times more, and it sleeps again."""
        enough = self.count(key) + count
        while self.count(key) < enough:
            self.send(signal.SIGUSR1)
            self.wait_for("housekeeper.sleep")

    def end(self) -> int:
        """Read to the end; the exit code."""
        assert self.process.stderr is not None
        self.seen += [json.loads(line) for line in self.process.stderr if line.startswith(b"{")]
        return self.process.wait()

    def count(self, key: str) -> int:
        return sum(item["event"] == key for item in self.seen)

    def __enter__(self) -> Running:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._alarm.cancel()
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


def signals_as_usual() -> None:
    """A test run in the background has SIGINT ignored, one under nohup SIGHUP, and its children inherit that."""
    for signum in (signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_DFL)


def loop(storage: Path, *arguments: str, **options: Any) -> Running:
    return Running(command("run-loop", "--storage-dir", storage, *arguments), **options)


class SteppedClock(Clock):
    """A clock on which a sleep passes at once, and which asks to stop at the end of the last of `cycles`."""

    def __init__(self, cycles: int) -> None:
        super().__init__()
        self.slept_secs: list[float] = []
        self._cycles = cycles
        self._offset = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self._offset

    def step(self, secs: float) -> None:
        """Let time pass in which nobody sleeps."""
        self._offset += secs

    def sleep(self, secs: float) -> None:
        self.slept_secs.append(secs)
        self._offset += secs
        if len(self.slept_secs) >= self._cycles:
            self.stop_signal = int(signal.SIGTERM)


def settings_for(storage: Path, **variables: str) -> tuple[Settings, list[Fallback]]:
    named = {f"GOFR_DIG_{name}": value for name, value in variables.items()}
    return read_settings({"TMPDIR": os.environ["TMPDIR"], **named}, str(storage), None)
