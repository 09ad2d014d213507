"""What every test gets: a store of its own, no way to touch the real default one, and seeds for random searches."""

from __future__ import annotations

import gc
import logging
import math
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from storage_manager.base.clock import HANDLED

Case = TypeVar("Case")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("searches")
    group.addoption("--seed", type=int, default=1, help="the first seed of every random search (default 1)")
    group.addoption(
        "--thorough", action="store_true", help="whole searches, not samples: every seed, and --exhaustive short"
    )
    group.addoption(
        "--exhaustive", choices=("none", "short", "all"),
        help="which of the exhaustive searches to run to their ends: all of them take long (default: a sample of each)",
    )  # fmt: skip
    group.addoption("--cases", type=int, help="how many seeds each random search tries (default: its own number)")


def pytest_collection_finish() -> None:
    """What pytest has made is no garbage, and takes long to look through: the loop does so after each cycle."""
    gc.freeze()


# Without --thorough: one seed or case in so many, and of an exhaustive search so many executions.
FEWER = 4
SAMPLE = 60


@pytest.fixture
def seeds(request: pytest.FixtureRequest) -> Callable[[int], range]:
    """The seeds of a random search, given how many it tries by default. `--seed S --cases 1` repeats case S."""
    first: int = request.config.getoption("--seed")
    cases: int | None = request.config.getoption("--cases")
    fewer = 1 if request.config.getoption("--thorough") else FEWER
    return lambda default: range(first, first + (-(-default // fewer) if cases is None else cases))


@pytest.fixture
def sample(request: pytest.FixtureRequest) -> Callable[[Iterable[Case]], list[Case]]:
    """All cases of an enumeration with --thorough, else one in so many; which ones, --seed says."""
    first: int = request.config.getoption("--seed")
    step = 1 if request.config.getoption("--thorough") else FEWER
    return lambda cases: list(cases)[first % step :: step]


@pytest.fixture
def exhaustive(request: pytest.FixtureRequest) -> Callable[[bool], int | None]:
    """The budget of an exhaustive search, given whether it is a short one: None is no limit.

    Skips a search that was not asked for.
    """
    wanted = request.config.getoption("--exhaustive")
    thorough = request.config.getoption("--thorough")

    def ask(short: bool) -> int | None:
        if wanted is None:
            return None if thorough and short else SAMPLE
        if wanted == "none" or wanted == "short" and not short:
            pytest.skip("an exhaustive search: with --exhaustive " + ("short" if short else "all"))
        return None

    return ask


@pytest.fixture(autouse=True)
def away_from_the_default_store(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default store is ./data/storage: run in an empty directory, without variables that name another."""
    directory = tmp_path_factory.mktemp("cwd")
    monkeypatch.chdir(directory)
    for name in list(os.environ):
        if name.startswith(("GOFR_DIG", "STORAGE_MANAGER", "NOTIFY_", "WATCHDOG_")):
            monkeypatch.delenv(name)
    (directory / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(directory / "tmp"))  # heartbeats of loops without a file named for them


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What main() does to a process it thinks is its own, undone."""
    monkeypatch.setattr(logging, "raiseExceptions", logging.raiseExceptions)
    handlers = [(number, signal.getsignal(number)) for number in HANDLED]
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    wakeup = signal.set_wakeup_fd(-1)
    yield
    for number, handler in handlers:
        signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    signal.set_wakeup_fd(wakeup)
    gc.enable()


@pytest.fixture
def sleeps_in_one_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sleep of the loop in this process is one call of the clock's, unless a watchdog wants to be fed."""
    monkeypatch.setattr("storage_manager.loop.status.LONGEST_NAP_SECS", math.inf)


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """An empty storage directory."""
    directory = tmp_path / "storage"
    directory.mkdir()
    return directory
