"""What every test gets: a store of its own, and no way to touch the real default one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def away_from_the_default_store(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default store is ./data/storage: run in an empty directory, without variables that name another."""
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))
    for name in list(os.environ):
        if name.startswith(("GOFR_DIG", "STORAGE_MANAGER")):
            monkeypatch.delenv(name)


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """An empty storage directory."""
    directory = tmp_path / "storage"
    directory.mkdir()
    return directory
