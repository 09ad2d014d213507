"""What a commit does to metadata.json: the removal of victims' entries, and the merge of a late write."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, Optional

from storage_manager.base.clock import Clock
from storage_manager.base.errors import StoreError
from storage_manager.store.directory import Store
from storage_manager.store.document import Document
from storage_manager.store.entry import blob_name
from storage_manager.store.names import is_guid

# For how long a blob that was looked up is known to be absent. A commit beside a busy client takes many attempts, which
# have to be quick, and looking up thousands of blobs is not.
LOOK_UP_LASTS_SECS = 1.0


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

    def __init__(self, store: Store, clock: Clock, deleted: Collection[str], swept: Collection[str]) -> None:
        self._store = store
        self._clock = clock
        self._deleted = frozenset(deleted)
        self._swept = frozenset(swept)
        self._missed: frozenset[str] = frozenset()
        """Dangling entries whose blob was looked up less than LOOK_UP_LASTS_SECS ago, and was not there."""
        self._missed_at = clock.monotonic()
        self.gone: set[str] = set()
        """The dangling entries that the last edit drops."""

    def __call__(self, current: Document) -> Optional[Edit]:
        """Raises StoreError where a blob can neither be seen nor certainly be missed."""
        drop = set(self._deleted.intersection(current.keys))
        dangling = set(self._swept.intersection(current.keys))
        changed = {current.keys[index] for index in current.fresh}
        now = self._clock.monotonic()
        if now - self._missed_at >= LOOK_UP_LASTS_SECS:
            self._missed = frozenset()
        unsure = (dangling - self._missed) | ((drop | dangling) & changed)
        if unsure:
            on_disk = self._store.guids_on_disk()  # also under names that no entry can have
            present = {
                key
                for index, key in enumerate(current.keys)
                if key in unsure and (key in on_disk or self._has_blob(key, current.value(index)))
            }
            dangling -= present
            drop -= present
            self._missed_at = now if not self._missed else self._missed_at
            self._missed = self._missed.union(dangling)
        self.gone = dangling
        drop |= dangling
        return Edit(drop=drop) if drop else None

    def _has_blob(self, key: str, value: Any) -> bool:
        self._clock.progress()  # on a slow network file system, thousands of these take long
        return _has_blob(self._store, key, value)


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
