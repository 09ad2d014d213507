"""What every test gets: a store of its own, no way to touch the real default one, and seeds for random searches."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("searches")
    group.addoption("--seed", type=int, default=1, help="the first seed of every random search (default 1)")
    group.addoption(
        "--exhaustive", choices=("none", "short", "all"), default="short",
        help="which of the exhaustive searches to run: all of them take some minutes (default: short)",
    )  # fmt: skip
    group.addoption("--cases", type=int, help="how many seeds each random search tries (default: its own number)")


@pytest.fixture
def seeds(request: pytest.FixtureRequest) -> Callable[[int], range]:
    """The seeds of a random search, given how many it tries by default. `--seed S --cases 1` repeats case S."""
    first: int = request.config.getoption("--seed")
    cases: int | None = request.config.getoption("--cases")
    return lambda default: range(first, first + (default if cases is None else cases))


@pytest.fixture
def exhaustive(request: pytest.FixtureRequest) -> Callable[[bool], None]:
    """Skips an exhaustive search that was not asked for, given whether it is a short one."""
    wanted = request.config.getoption("--exhaustive")

    def ask(short: bool) -> None:
        if wanted == "none" or wanted == "short" and not short:
            pytest.skip("an exhaustive search: with --exhaustive " + ("short" if short else "all"))

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
def storage(tmp_path: Path) -> Path:
    """An empty storage directory."""
    directory = tmp_path / "storage"
    directory.mkdir()
    return directory
