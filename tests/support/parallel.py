"""The whole suite in two pytest processes for each processor, and one line that shows how far it is.

    python parallel.py [ARGUMENT FOR PYTEST ...]

Each process collects all tests and claims one after the other, by making a file that nobody else has made.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

CLAIMS = "STORAGE_MANAGER_TEST_CLAIMS"
SUMMARY = re.compile(r"(\d+) (passed|failed|skipped|errors?)\b")

# On a terminal often enough to be seen moving; in a log now and then.
TERMINAL_SECS, LOG_SECS = 0.5, 30.0


# --- In each pytest process: a plugin


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """pytest's own loop, but for the tests that another process has claimed."""
    claims = os.environ.get(CLAIMS)
    if claims is None or session.testsfailed or session.config.option.collectonly:
        return None  # pytest's own says so
    (Path(claims) / "total").write_text(str(len(session.items)))
    chosen = _claimed(session.items, claims)
    item = next(chosen, None)
    while item is not None:
        following = next(chosen, None)
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        if session.shouldstop:
            raise session.Interrupted(session.shouldstop)
        item = following
    return True


def _claimed(items: list[pytest.Item], claims: str) -> Iterator[pytest.Item]:
    for number, item in enumerate(items):
        try:
            os.close(os.open(os.path.join(claims, f"{number}.claim"), os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        yield item


# --- The one that starts them


def main(arguments: list[str]) -> int:
    # Ends the workers, too, as ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    started = time.monotonic()
    # A third of the time the tests wait for something: with one process each, processors would idle.
    count = 2 * len(os.sched_getaffinity(0))
    directory = Path(tempfile.mkdtemp(prefix="suite-"))
    try:
        reports = [directory / f"report.{number}" for number in range(count)]
        workers = [_start(directory, report, arguments) for report in reports]
        try:
            _watch(directory, workers, started)
        finally:
            for worker in workers:
                worker.terminate()
                worker.wait()
        return _conclude(directory, reports, [worker.returncode for worker in workers], started)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _start(directory: Path, report: Path, arguments: list[str]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, CLAIMS: str(directory)}
    # Each has temporary files of its own: pytest's common directory is cleared up by each of them, at the same time.
    temporary = ["--basetemp", str(report) + ".files"]
    options = ["-p", "parallel", "-q", "-rs", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, *temporary, *arguments]
    with open(report, "wb") as file:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment)


def _watch(directory: Path, workers: list[subprocess.Popen[bytes]], started: float) -> None:
    on_terminal = sys.stdout.isatty()
    told_at = 0.0
    while any(worker.poll() is None for worker in workers):
        time.sleep(TERMINAL_SECS)
        if on_terminal or time.monotonic() >= told_at + LOG_SECS:
            told_at = time.monotonic()
            line = _progress(directory, told_at - started)
            print(f"\r\x1b[K{line}" if on_terminal else line, end="" if on_terminal else "\n", flush=True)
    if on_terminal:
        print("\r\x1b[K", end="", flush=True)


def _progress(directory: Path, secs: float) -> str:
    done = len(list(directory.glob("*.claim")))
    try:
        total = (directory / "total").read_text()
    except OSError:
        total = ""
    clock = f"{int(secs) // 60}:{int(secs) % 60:02}"
    return f"{done} of {total} tests begun, {clock}" if total else f"collecting tests, {clock}"


def _conclude(directory: Path, reports: list[Path], codes: list[int], started: float) -> int:
    """What each process said but for its dots, and one sum. pytest's exit codes: 0 passed, 1 failed, more: worse."""
    sums = {"passed": 0, "failed": 0, "skipped": 0, "error": 0}
    for report in reports:
        lines = report.read_text(errors="replace").splitlines()
        told = [line for line in lines if not re.fullmatch(r"[.sxFE]*\s*\[\s*\d+%\]", line)]
        for number, kind in SUMMARY.findall(told[-1] if told else ""):
            sums[kind.removesuffix("s") if kind.startswith("error") else kind] += int(number)
        print("\n".join(told[:-1]).strip())
    worst = max(codes, key=abs)
    failed = sums["failed"] + sums["error"]
    lost = len(list(directory.glob("*.claim"))) - sums["passed"] - sums["skipped"] - failed
    if lost > 0 and worst == 0:  # a test took its process with it
        worst = 1
        print(f"{lost} tests were begun and have no result")
    print(f"in {time.monotonic() - started:.0f} s")
    print(f"{sums['passed']} passed, {failed} failed, {sums['skipped']} skipped")
    return 1 if worst < 0 else worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
