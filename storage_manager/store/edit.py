"""What a commit does to metadata.json: the removal of victims' entries, and the merge of a late write."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple, Optional

from storage_manager.store.directory import Store
from storage_manager.store.document import Document
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

    An entry that somebody changed meanwhile stays if a blob of its own is on disk: then it is another session.
    """

    def __init__(self, store: Store, deleted: Collection[str], swept: Collection[str]) -> None:
        self._store = store
        self._deleted = deleted
        self._swept = swept
        self.swept_count = 0
        """How many dangling entries the last edit drops."""

    def __call__(self, current: Document) -> Optional[Edit]:
        drop = {key for key in current.keys if key in self._deleted}
        dangling = {key for key in current.keys if key in self._swept}
        changed = drop.intersection(current.keys[index] for index in current.fresh)
        if dangling or changed:
            on_disk = self._store.guids_on_disk()
            dangling -= on_disk
            drop -= changed & on_disk
        self.swept_count = len(dangling)
        drop |= dangling
        return Edit(drop=drop) if drop else None


def merge(current: Document, late: Document, base: Optional[Document], store: Store) -> Edit:
    """What `current` lacks of a `late` document that somebody wrote from `base` or a version before it.

    Sessions that only `late` has come back when they have a blob (a victim has none); other members that only
    `late` has come back unless `base` had them. An entry that both have comes back when `late` changed it and
    `current` did not. Without a base, current entries win.
    """
    currently = {key: index for index, key in enumerate(current.keys)}
    originally = {key: index for index, key in enumerate(base.keys)} if base is not None else {}
    on_disk = store.guids_on_disk()
    replace: dict[str, bytes] = {}
    add: list[bytes] = []
    lately = {key: index for index, key in enumerate(late.keys)}  # of members with one key, the last counts
    for key, index in lately.items():
        if key not in currently:
            if key in on_disk if is_guid(key) else key not in originally:
                add.append(late.piece(index))
        elif base is not None and key in originally:
            piece = late.piece(index)
            original = base.piece(originally[key]).strip()
            if piece.strip() != original and current.piece(currently[key]).strip() == original:
                replace[key] = piece
    return Edit(replace=replace, add=add)
