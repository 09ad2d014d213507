"""What a commit does to metadata.json: the removal of victims' entries, and the merge of a late write."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, Optional

from storage_manager.base.errors import StoreError
from storage_manager.store.directory import Store
from storage_manager.store.document import Document
from storage_manager.store.entry import blob_name
from storage_manager.store.names import is_guid


class Edit(NamedTuple):
    """What a commit does to the document."""

    drop: Collection[str] = ()
    replace: Mapping[str, bytes] = {}
    add: Sequence[bytes] = ()


Editor = Callable[[Document], Optional[Edit]]
"""Looks at the current document and says what to change; None for nothing."""


class Removal:
    """An editor that drops the entries of `deleted` blobs, and of `swept` dangling entries still without one.

    An entry that somebody changed meanwhile stays unless its blob is certainly gone: it may be another session.
    """

    def __init__(self, store: Store, deleted: Collection[str], swept: Collection[str]) -> None:
        self._store = store
        self._deleted = deleted
        self._swept = swept
        self.gone: set[str] = set()
        """The dangling entries that the last edit drops."""

    def __call__(self, current: Document) -> Optional[Edit]:
        """Raises StoreError where a blob can neither be seen nor certainly be missed."""
        drop = {key for key in current.keys if key in self._deleted}
        dangling = {key for key in current.keys if key in self._swept}
        unsure = dangling.union(drop.intersection(current.keys[index] for index in current.fresh))
        if unsure:
            on_disk = self._store.guids_on_disk()  # also under names that no entry can have
            present = {
                key
                for index, key in enumerate(current.keys)
                if key in unsure and (key in on_disk or _has_blob(self._store, key, current.value(index)))
            }
            dangling -= present
            drop -= present
        self.gone = dangling
        drop |= dangling
        return Edit(drop=drop) if drop else None


def _has_blob(store: Store, key: str, value: Any) -> bool:
    """Whether the blob of an entry is there, looked up by name, or nobody can say its name. Raises StoreError."""
    name = blob_name(key, value)
    return name is None or store.status(name) is not None


def _may_have_blob(store: Store, key: str, value: Any) -> bool:
    try:
        return _has_blob(store, key, value)
    except StoreError:  # only ENOENT is absence; the next look at the store tells of the rest
        return True


def merge(current: Document, late: Document, base: Optional[Document], store: Store) -> Edit:
    """What `current` lacks of a `late` document that somebody wrote from `base` or a version before it.

    Sessions that only `late` has come back unless their blob is certainly gone (as a victim's is); other members that
    only `late` has come back unless `base` had them. An entry that both have comes back when `late` changed it and
    `current` did not. Without a base, current entries win.
    """
    currently = {key: index for index, key in enumerate(current.keys)}
    originally = {key: index for index, key in enumerate(base.keys)} if base is not None else {}
    on_disk = store.guids_on_disk()  # also under other extensions than entries say; who is not listed is looked up
    replace: dict[str, bytes] = {}
    add: list[bytes] = []
    lately = {key: index for index, key in enumerate(late.keys)}  # of members with one key, the last counts
    for key, index in lately.items():
        if key not in currently:
            if (
                key in on_disk or _may_have_blob(store, key, late.value(index))
                if is_guid(key)
                else key not in originally
            ):
                add.append(late.piece(index))
        elif base is not None and key in originally:
            piece = late.piece(index)
            original = base.piece(originally[key]).strip()
            if piece.strip() != original and current.piece(currently[key]).strip() == original:
                replace[key] = piece
    return Edit(replace=replace, add=add)
