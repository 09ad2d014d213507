"""Steps 1 to 5 of a commit: metadata.json is replaced by another text, unless a client writes to it meanwhile."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection
from contextlib import ExitStack, suppress
from typing import NamedTuple, Optional

from storage_manager.base.clock import Clock, Patience
from storage_manager.base.errors import (
    CommitContended,
    MetadataBusy,
    MetadataTorn,
    NoRoom,
    NotWritable,
    StorageManagerError,
    StoreError,
    errno_name,
)
from storage_manager.base.times import from_timestamp
from storage_manager.store.aside import link_previous, unlink_previous
from storage_manager.store.directory import Store, close
from storage_manager.store.document import Document, Fingerprint, parse, reparse
from storage_manager.store.draft import DISK_FULL, Draft, vouches
from storage_manager.store.edit import Edit, Editor
from storage_manager.store.likeness import likeness_of_blob, likeness_of_metadata
from storage_manager.store.names import METADATA_NAME, MOST_PREVIOUS
from storage_manager.store.reading import READ_PATIENCE_SECS, Reading, is_named, read_stable
from storage_manager.store.snapshot import QUIET_AGE

# Asked to stop, we have the 10 s that Docker grants by default: half for reading, half for the rest.
STOPPING_PATIENCE_SECS = 4.0


class Old(NamedTuple):
    """A file that was replaced, and that a client which had opened it may be writing to."""

    reading: Reading
    """Open."""
    document: Document
    """What it held."""
    previous: Optional[str]
    """Its second name; None where the file system has no hard links."""
    dropped: Collection[str]
    """What of it the new file lacks."""


class Attempt(NamedTuple):
    """What came of one."""

    is_done: bool
    """Whether the edit is in place, or was not needed."""
    fingerprint: Optional[Fingerprint] = None
    """Of what was there, where it is not done: the next attempt may be given it."""
    old: Optional[Old] = None
    """What was replaced. Whoever gets it settles and closes it."""
    sync_failure: Optional[OSError] = None
    """Why the name may not outlive a power cut."""
    doubt: Optional[BaseException] = None
    """What failed although `old` may have been replaced. It has no second name: only now can it be settled."""


def changed(document: Document, known: Optional[Fingerprint]) -> set[str]:
    """The members that have changed since `known`: they go on counting as changed."""
    return {document.keys[index] for index in document.fresh} if known else set()


class Replacer:
    """Replaces one store's metadata.json, as often as needed. Under the prune lock: prepare, replace, close."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._draft: Optional[Draft] = None
        self.published: Optional[os.stat_result] = None
        """The file that was put in place last."""

    def prepare(self, reading: Reading, blob_name: Optional[str] = None) -> None:
        """Make sure, before the first deletion, that a commit will be possible.

        Raises NotWritable or StoreError when it will not be. A disk with too little room is no obstacle: deleting blobs
        is what will make some. Nor is a quota, if it is charged for `blob_name`, one of those to be deleted, too; nor
        that no name is free for the old file: then the commit is put off.
        """
        directory = self._store.path
        if not os.access(".", os.W_OK | os.X_OK, dir_fd=self._store.dir_fd, effective_ids=True):
            raise NotWritable(
                f"the storage directory {directory} is not writable for user {os.geteuid()} "
                f"(or its file system is read-only)"
            )
        self._refuse_immutable()
        try:
            draft = self._draft_like(reading)
            with suppress(CommitContended):  # there are links, and when it comes to a commit, perhaps a name
                unlink_previous(self._store, link_previous(self._store, MOST_PREVIOUS))
            draft.try_size(len(reading.data))
        except NoRoom as error:
            if error.is_quota:
                self._refuse_quota(reading.status, blob_name)
        except StoreError as error:
            if error.errno == errno.EFBIG:
                raise NotWritable(
                    f"{self._store.file(METADATA_NAME)} has {len(reading.data):,} bytes, and this process may not "
                    f"write a file as large: raise its limit (ulimit -f, LimitFSIZE=)"
                ) from error
            if error.errno == errno.EDQUOT:
                self._refuse_quota(reading.status, blob_name)
            if error.errno == errno.EXDEV:
                raise NotWritable(
                    f"{self._store.file(METADATA_NAME)} is a mount point and cannot be replaced: mount the "
                    f"directory instead"
                ) from error
            if error.errno not in DISK_FULL:
                raise

    def replace(self, editor: Editor, known: Optional[Fingerprint], patience_secs: float, most_names: int) -> Attempt:
        """Put the edited text in the place of metadata.json, with as many attempts as that takes.

        `known` is the fingerprint of an earlier version: what it knows is not decoded again. The old file takes one of
        the first `most_names` names. Raises CommitContended, also over a file that is torn for less than
        READ_PATIENCE_SECS, NoRoom at once, MetadataCorrupt, NotWritable or StoreError; the file is then as it was, or
        as intended, and never anything between.
        """
        try:
            patience = Patience(self._clock, patience_secs, STOPPING_PATIENCE_SECS)
            return self._replace(editor, known, patience, most_names)
        except BaseException:
            self.close()  # what is not published takes room
            raise

    def _replace(self, editor: Editor, known: Optional[Fingerprint], patience: Patience, most_names: int) -> Attempt:
        while True:
            read_secs = min(READ_PATIENCE_SECS, patience.left_secs)
            try:
                attempt = self._attempt(editor, known, read_secs, most_names)
            except MetadataTorn as error:
                is_busy = isinstance(error, MetadataBusy)
                if not is_busy and (read_secs >= READ_PATIENCE_SECS or self._clock.stopping):
                    raise
                # Its remedy is for a file that is damaged, which only the next look can tell.
                what = "no session was lost" if is_busy else "a client may be writing it"
                raise CommitContended(f"{error.problem}; {what}") from error
            if attempt.is_done or attempt.doubt is not None:
                return attempt
            known = attempt.fingerprint
            if patience.exhausted():
                raise CommitContended(
                    f"{self._store.file(METADATA_NAME)} changed during every attempt to commit; no session was lost"
                )

    def _attempt(self, editor: Editor, known: Optional[Fingerprint], read_secs: float, most_names: int) -> Attempt:
        """Steps 1 to 5, once."""
        # 1. What is read was in the file all at one time. The inode stays open: late writes go to it.
        patience = Patience(self._clock, read_secs, STOPPING_PATIENCE_SECS)
        found = read_stable(self._store, patience, lambda data: reparse(data, known) if known else parse(data))
        if found is None:
            return Attempt(True)
        reading, document = found
        with ExitStack() as until_replaced:
            until_replaced.enter_context(reading)
            edit = editor(document)
            if edit is None:
                return Attempt(True)
            # 2. The next file, durably, before anything leads to it.
            draft = self._drafted(reading, document, edit)
            # 3. A second name: should we die after the rename, the next run finds what was written to the old file.
            previous = link_previous(self._store, most_names)
            old = Old(reading, document, previous, edit.drop)
            try:
                if previous is None:  # what is written to the old file may have to be copied
                    draft.require_room(len(reading.data), len(reading.data))
                self.published = draft.examine()
                # 4. The last look. Nothing comes between it and the rename: whoever opens the file there has to
                # be salvaged.
                is_done = reading.unchanged() and is_named(self._store, METADATA_NAME, reading.status, draft.like)
                if is_done:
                    # 5. From here on a client finds the new file, which is whole.
                    draft.publish()
                else:
                    unlink_previous(self._store, previous)
            except BaseException as error:
                if not self._may_be_replaced(old):
                    raise
                self.close()  # it may be metadata.json by now: nothing more is written to it
                until_replaced.pop_all()
                return Attempt(False, old=old, doubt=error)
            if not is_done:
                return Attempt(False, document.fingerprint(without=changed(document, known), is_current=True))
            self._draft = None
            sync_failure = self._sync_directory()
            until_replaced.pop_all()
            return Attempt(True, None, old, sync_failure)

    def _drafted(self, reading: Reading, document: Document, edit: Edit) -> Draft:
        draft = self._draft_like(reading)
        size_bytes = len(reading.data) + sum(map(len, edit.add)) + sum(map(len, edit.replace.values()))
        is_recent = vouches(reading.status) and self._clock.now() - from_timestamp(reading.status.st_mtime) <= QUIET_AGE
        try:
            # The new file is dated by this clock, which the old one vouches for, or does not.
            draft.write(document.rendered(edit.drop, edit.replace, edit.add), size_bytes, is_recent)
        except BaseException:
            # After a failed fsync the kernel takes the lost pages for clean: only a new file can be trusted.
            self.close()
            raise
        return draft

    def _may_be_replaced(self, old: Old) -> bool:
        """Whether the old file, without a second name, may have been replaced by a rename that failed.

        It keeps a second name unless it certainly still has the first.
        """
        with suppress(StorageManagerError):
            if is_named(self._store, METADATA_NAME, old.reading.status):
                unlink_previous(self._store, old.previous)
            else:
                return old.previous is None  # nobody else will ever see what is written to it
        return False

    def create(self, blob_name: str, mode: int) -> None:
        """Make an empty metadata.json unless there is one by now: with the owner and group of a blob, and of its mode
        what `mode` has as well.

        Raises NotWritable, NoRoom, StoreError.
        """
        self.close()
        draft = Draft(self._store, likeness_of_blob(self._store, blob_name, mode))
        try:
            draft.write([b"{}"], 2)
            draft.publish_new()
        finally:
            draft.discard()

    def close(self) -> None:
        """Give up a draft that was not needed."""
        if self._draft is not None:
            self._draft.discard()
            self._draft = None

    def _draft_like(self, reading: Reading) -> Draft:
        like = likeness_of_metadata(self._store, reading.fd, reading.status)
        if self._draft is not None and self._draft.like != like:
            self.close()
        if self._draft is None:
            self._draft = Draft(self._store, like)
        return self._draft

    def _refuse_immutable(self) -> None:
        """Find the immutable and append-only attributes, which let nobody rename over the file."""
        try:
            fd = self._store.open(METADATA_NAME, os.O_WRONLY)
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EROFS):
                raise NotWritable(
                    f"{self._store.file(METADATA_NAME)} cannot be replaced ({errno_name(error.errno)}; see lsattr)"
                ) from error
            return  # a file without write permission can be replaced all the same
        close(fd)

    def _refuse_quota(self, like: os.stat_result, blob_name: Optional[str]) -> None:
        """A quota of the file's owner or group is used up: a blob of somebody else's makes no room in it."""
        blob = self._store.status(blob_name) if blob_name is not None else None
        if blob is None or (blob.st_uid, blob.st_gid) == (like.st_uid, like.st_gid):
            return
        raise NotWritable(
            f"the quota for {self._store.file(METADATA_NAME)} (user {like.st_uid}, group {like.st_gid}) is used up, "
            f"and {blob_name} belongs to user {blob.st_uid}, group {blob.st_gid}: deleting it would make no room. "
            f"Raise the quota"
        )

    def _sync_directory(self) -> Optional[OSError]:
        try:
            os.fsync(self._store.dir_fd)
        except OSError as error:
            # EINVAL: a file system that has nothing to sync for a directory.
            return None if error.errno == errno.EINVAL else error
        return None
