"""What a commit drops and puts back: an entry goes only when its blob is certainly gone."""

from __future__ import annotations

import errno
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storage_manager.base.clock import Clock
from storage_manager.base.errors import StoreError
from storage_manager.store.directory import Store, open_store
from storage_manager.store.document import parse
from storage_manager.store.edit import Removal, merge

GUID = "11111111-2222-4333-8444-555555555555"
PRESENT, ABSENT, UNKNOWN = "present", "absent", "unknown"
ENTRIES: list[tuple[Any, str | None]] = [  # and the extension that the entry gives its blob
    ({"format": "json"}, "json"),
    ({"format": "png", "group": "g"}, "png"),
    ({"format": "../x"}, None),
    ({"format": "JSON"}, None),
    ({"format": 1}, None),
    ({}, None),
    (None, None),
    ("json", None),
    ([{"format": "json"}], None),
]


@pytest.fixture
def store(storage: Path) -> Iterator[Store]:
    with open_store(str(storage)) as opened:
        yield opened


@pytest.fixture
def unlisted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Listings that lack everything."""
    monkeypatch.setattr(os, "listdir", lambda where: [])


def arrange(storage: Path, patch: pytest.MonkeyPatch, extension: str | None, state: str) -> None:
    """A blob that is there, or is not, or of which nobody can say."""
    if state == PRESENT:
        (storage / f"{GUID}.{extension}").touch()
    if state == UNKNOWN:
        real = os.stat

        def stat(name: Any, **options: Any) -> os.stat_result:
            if name == f"{GUID}.{extension}":
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(name, **options)

        patch.setattr(os, "stat", stat)


CASES = list(itertools.product(ENTRIES, [PRESENT, ABSENT, UNKNOWN]))


@pytest.mark.usefixtures("unlisted")
@pytest.mark.parametrize("is_swept", [True, False])
@pytest.mark.parametrize(("entry", "state"), CASES)
def test_an_entry_that_was_changed_goes_only_without_its_blob(
    storage: Path, store: Store, monkeypatch: pytest.MonkeyPatch, entry: Any, state: str, is_swept: bool
) -> None:
    """Of a blob that cannot be examined, the run says so instead."""
    value, extension = entry
    arrange(storage, monkeypatch, extension, state)
    removal = Removal(store, Clock(), () if is_swept else {GUID}, {GUID} if is_swept else ())
    document = parse(json.dumps({GUID: value}).encode())  # all of it counts as changed
    if extension and state == UNKNOWN:
        with pytest.raises(StoreError, match=f"{GUID}.{extension}"):
            removal(document)
        return
    edit = removal(document)
    goes = extension is not None and state == ABSENT
    assert (set(edit.drop) if edit else set()) == ({GUID} if goes else set())
    assert len(removal.gone) == (goes and is_swept)


@pytest.mark.usefixtures("unlisted")
def test_of_several_members_with_one_key_each_must_be_without_a_blob(storage: Path, store: Store) -> None:
    text = b'{"%b": {"format": "png"}, "%b": {"format": "json"}}'.replace(b"%b", GUID.encode())
    removal = Removal(store, Clock(), (), {GUID})
    assert removal(parse(text)) is not None
    for extension in ("png", "json"):
        (storage / f"{GUID}.{extension}").touch()
        assert removal(parse(text)) is None
        (storage / f"{GUID}.{extension}").unlink()


@pytest.mark.usefixtures("unlisted")
@pytest.mark.parametrize("base", [b"{}", None, "late"])
@pytest.mark.parametrize(("entry", "state"), CASES)
def test_an_entry_in_the_late_document_alone_comes_back_unless_its_blob_is_gone(
    storage: Path, store: Store, monkeypatch: pytest.MonkeyPatch, entry: Any, state: str, base: Any
) -> None:
    value, extension = entry
    arrange(storage, monkeypatch, extension, state)
    late = parse(json.dumps({GUID: value}).encode())
    edit = merge(parse(b"{}"), late, late if base == "late" else base and parse(base), store)
    assert list(edit.add) == ([] if extension and state == ABSENT else [late.piece(0)])


def test_an_entry_whose_blob_has_another_extension_comes_back(storage: Path, store: Store) -> None:
    (storage / f"{GUID}.png").touch()
    late = parse(json.dumps({GUID: {"format": "json"}}).encode())
    assert list(merge(parse(b"{}"), late, late, store).add) == [late.piece(0)]
