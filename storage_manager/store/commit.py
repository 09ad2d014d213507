"""Changing metadata.json beside a writer that takes no lock: the safe commit.

The order of the steps is the protocol; docs/design.md tells why each is where it is. The guarantee: an entry
that the client has written is never lost, whatever interleaving, and wherever this process dies. What it
rests on: the client writes in place (it never renames over metadata.json), and an open() of the old file that
had begun before our rename gets as far as truncating it within SETTLE_SECS.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import Optional

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
from storage_manager.base.log import EventLog
from storage_manager.base.times import from_timestamp
from storage_manager.store.aside import copy_aside, link_previous, unlink_previous
from storage_manager.store.directory import Store, close
from storage_manager.store.document import Document, Fingerprint, parse, reparse
from storage_manager.store.draft import DISK_FULL, Draft, vouches
from storage_manager.store.edit import Edit, Editor, merge
from storage_manager.store.likeness import likeness_of_blob, likeness_of_metadata
from storage_manager.store.names import METADATA_NAME, MOST_PREVIOUS
from storage_manager.store.reading import (
    LONGEST_PAUSE_SECS,
    READ_PATIENCE_SECS,
    Reading,
    is_named,
    read_descriptor,
    read_stable,
)
from storage_manager.store.snapshot import QUIET_AGE

# How long to go on trying when the client changes the file under every attempt. An attempt has to fit into a moment in
# which the client does not write: when it saves without a pause, that is while it reads. A save takes it 100 ns a byte.
# Entries that stay harm nobody, and such a client would bring them back with its next write.
COMMIT_PATIENCE_SECS = 5.0
COMMIT_PATIENCE_SECS_PER_BYTE = 4e-7

# Asked to stop, we have the 10 s that Docker grants by default: half for reading, half for the rest.
STOPPING_PATIENCE_SECS = 4.0

# An open() that looked the old file up before our rename truncates it microseconds later, unless its thread
# loses the processor in between: some scheduling rounds of a busy machine.
SETTLE_SECS = 0.05

# How long to watch for a client's write that shows whether what was put back stays. A client at work writes again
# within this, or nearly; one that is idle lets us wait in vain, and then the next run makes sure.
WATCH_SECS = 0.5

# A client at full speed may undo it time and again; then the next run goes on. This is for all that a run puts back.
PUT_BACK_PATIENCE_SECS = 4.0

# A removal takes one of the first so many names for the old file, or is put off: each may leave one that has to be put
# back, and what puts it back takes names, too.
MOST_WAITING = MOST_PREVIOUS // 2


class Committer:
    """Commits to one store's metadata.json. Under the prune lock: recover(), prepare, commit time and again, close."""

    def __init__(self, store: Store, clock: Clock, log: EventLog) -> None:
        self.store = store
        self.clock = clock
        self.log = log
        self._draft: Optional[Draft] = None
        self._published: Optional[os.stat_result] = None
        self.most_previous = MOST_PREVIOUS
        self._put_back_secs = PUT_BACK_PATIENCE_SECS
        """What is left of it for this run."""
        self._give_up: Optional[Patience] = None
        """Of the put_back() under way; None: what is committed is a removal."""

    def prepare(self, reading: Reading, blob_name: Optional[str] = None) -> None:
        """Make sure, before the first deletion, that a commit will be possible.

        Raises NotWritable or StoreError when it will not be. A disk with too little room is no obstacle: deleting blobs
        is what will make some. Nor is a quota, if it is charged for `blob_name`, one of those to be deleted, too; nor
        that no name is free for the old file: then the commit is put off.
        """
        directory = self.store.path
        if not os.access(".", os.W_OK | os.X_OK, dir_fd=self.store.dir_fd, effective_ids=True):
            raise NotWritable(
                f"the storage directory {directory} is not writable for user {os.geteuid()} "
                f"(or its file system is read-only)"
            )
        self._refuse_immutable()
        try:
            draft = self._draft_like(reading)
            with suppress(CommitContended):  # there are links, and when it comes to a commit, perhaps a name
                unlink_previous(self.store, link_previous(self.store, self.most_previous))
            draft.try_size(len(reading.data))
        except NoRoom as error:
            if error.is_quota:
                self._refuse_quota(reading.status, blob_name)
        except StoreError as error:
            if error.errno == errno.EFBIG:
                raise NotWritable(
                    f"{self.store.file(METADATA_NAME)} has {len(reading.data):,} bytes, and this process may not write "
                    f"a file as large: raise its limit (ulimit -f, LimitFSIZE=)"
                ) from error
            if error.errno == errno.EDQUOT:
                self._refuse_quota(reading.status, blob_name)
            if error.errno == errno.EXDEV:
                raise NotWritable(
                    f"{self.store.file(METADATA_NAME)} is a mount point and cannot be replaced: mount the "
                    f"directory instead"
                ) from error
            if error.errno not in DISK_FULL:
                raise

    def commit(
        self, editor: Editor, known: Optional[Fingerprint], patience_secs: float = COMMIT_PATIENCE_SECS
    ) -> Optional[Fingerprint]:
        """Apply an edit so that no client's entry is lost. The next commit may be given what is returned.

        `known` is the fingerprint of an earlier version: what it knows is not decoded again. None is
        returned when there was nothing to change. Raises CommitContended, also over a file that is torn for less than
        READ_PATIENCE_SECS, NoRoom at once, MetadataCorrupt, NotWritable or StoreError; the file is then as it was, or
        as intended, and never anything between.
        """
        try:
            return self._commit(editor, known, Patience(self.clock, patience_secs, STOPPING_PATIENCE_SECS))
        except BaseException:
            self.close()  # what is not published takes room
            raise

    def _commit(self, editor: Editor, known: Optional[Fingerprint], patience: Patience) -> Optional[Fingerprint]:
        while True:
            read_secs = min(READ_PATIENCE_SECS, patience.left_secs)
            try:
                done, fingerprint = self._attempt(editor, known, read_secs)
            except MetadataTorn as error:
                is_busy = isinstance(error, MetadataBusy)
                if not is_busy and (read_secs >= READ_PATIENCE_SECS or self.clock.stopping):
                    raise
                error.remedy = ""  # it is for a file that is damaged, which only the next look can tell
                what = "no session was lost" if is_busy else "a client may be writing it"
                raise CommitContended(f"{error}; {what}") from error
            if done:
                return fingerprint
            known = fingerprint
            if patience.exhausted():
                raise CommitContended(
                    f"{self.store.file(METADATA_NAME)} changed during every attempt to commit; no session was lost"
                )

    def _attempt(
        self, editor: Editor, known: Optional[Fingerprint], read_secs: float
    ) -> tuple[bool, Optional[Fingerprint]]:
        """The protocol, once: (whether the edit is in place or was not needed, the fingerprint for the next)."""
        # 1. What is read was in the file all at one time. The inode stays open: late writes go to it.
        patience = Patience(self.clock, read_secs, STOPPING_PATIENCE_SECS)
        found = read_stable(self.store, patience, lambda data: reparse(data, known) if known else parse(data))
        if found is None:
            return True, None
        reading, document = found
        with reading:
            edit = editor(document)
            if edit is None:
                return True, None
            # 2. The next file, durably, before anything leads to it.
            draft = self._draft_like(reading)
            size_bytes = len(reading.data) + sum(map(len, edit.add)) + sum(map(len, edit.replace.values()))
            try:
                text = document.rendered(edit.drop, edit.replace, edit.add)
                draft.write(text, size_bytes, self._is_recent(reading.status))
            except BaseException:
                # After a failed fsync the kernel takes the lost pages for clean: only a new file can be trusted.
                self.close()
                raise
            # 3. A second name: should we die after the rename, the next run finds what was written to the old file.
            most = MOST_WAITING if self._give_up is None else self.most_previous
            previous = link_previous(self.store, most)
            try:
                if previous is None:  # what is written to the old file may have to be copied
                    draft.require_room(size_bytes, size_bytes)
                self._published = draft.examine()
                # 4. The last look. Nothing comes between it and the rename: whoever opens the file there has to
                # be salvaged.
                done = reading.unchanged() and is_named(self.store, METADATA_NAME, reading.status, draft.like)
                if done:
                    # 5. From here on a client finds the new file, which is whole.
                    draft.publish()
                else:
                    unlink_previous(self.store, previous)
            except BaseException:
                self._doubt(reading, document, previous)
                raise
            if done:
                self._draft = None
                try:
                    sync_failure = self._sync_directory()
                    # 6., 7. Whoever had opened the old file before the rename may write to it only now.
                    self._salvage_late_write(reading, document, previous)
                    if sync_failure is not None:
                        raise StoreError("sync the directory", self.store.path, sync_failure)
                except StorageManagerError as error:
                    error.committed = True
                    raise
            # A member that has changed since `known` goes on counting as changed.
            changed = {document.keys[index] for index in document.fresh} if known else set()
            if done:
                return True, document.fingerprint(without=changed.union(edit.drop))
            return False, document.fingerprint(without=changed, is_current=True)

    def _is_recent(self, replaced: os.stat_result) -> bool:
        """Whether the file that is replaced shows that the clock is right, by which the new one is dated."""
        return vouches(replaced) and self.clock.now() - from_timestamp(replaced.st_mtime) <= QUIET_AGE

    def _doubt(self, reading: Reading, document: Document, previous: Optional[str]) -> None:
        """The rename did not happen, or its failure is all we know.

        The old file keeps its second name unless it certainly still has the first.
        """
        with suppress(StorageManagerError):
            if is_named(self.store, METADATA_NAME, reading.status):
                unlink_previous(self.store, previous)
            elif previous is None:  # renamed after all, and nobody else will ever see what is written to it
                self._salvage_late_write(reading, document, None)

    def create(self, blob_name: str, mode: int) -> None:
        """Make an empty metadata.json unless there is one by now: with the owner and group of a blob, and of its mode
        what `mode` has as well.

        Raises NotWritable, StoreError.
        """
        self.close()
        draft = Draft(self.store, likeness_of_blob(self.store, blob_name, mode))
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

    def _salvage_late_write(self, reading: Reading, document: Document, previous: Optional[str]) -> None:
        """Put back what a writer that had opened the old file before the rename has written to it since."""
        if self._left_alone(reading, previous):
            self.clock.pause(SETTLE_SECS)
            if self._left_alone(reading, previous):
                unlink_previous(self.store, previous)
                return
        # With a second name the next run can go on waiting; without one this is the only chance.
        stopping_secs = STOPPING_PATIENCE_SECS if previous else READ_PATIENCE_SECS
        patience = Patience(self.clock, READ_PATIENCE_SECS, stopping_secs)
        late = read_descriptor(self.store, reading.fd, previous or METADATA_NAME, patience)
        stays = False
        if late is not None:
            try:
                stays = self.put_back(late, document, "late_write")
            except CommitContended:
                pass
            except StorageManagerError:
                if previous is None:
                    copy_aside(self.store, self.clock, self.log, reading.fd, is_whole=True)
                raise
        if stays:
            unlink_previous(self.store, previous)
        elif previous is None:
            copy_aside(self.store, self.clock, self.log, reading.fd, late is not None)
        else:
            self.log.warning(
                "storage_manager.recovered",
                f"a write overlapped the commit, and it is not yet certain that the merge lasts; {previous} is kept "
                f"for the next run",
                what="pending",
                file=previous,
            )

    def _left_alone(self, reading: Reading, previous: Optional[str]) -> bool:
        """Whether nobody has written to the old file. Raises StoreError where the next run can look again."""
        try:
            return reading.unchanged()
        except StoreError:
            if previous is not None:
                raise
            return False

    def put_back(self, late: Document, base: Optional[Document], what: Optional[str]) -> bool:
        """Merge a document that a writer left in a replaced file. Whether the result is there to stay.

        Putting back is not like removing: a client that read before it and writes after it undoes it. So the
        result is watched, and merged again where it was undone, until a client's write shows that the client
        has seen it. Without such a write nothing is certain, and the caller must keep `late` for another run.
        Raises like commit(); after CommitContended, too, it must be kept.
        """
        if self._give_up is not None:  # what is put back overlaps a write itself
            return self._give_up.left_secs > 0 and self._put_back(late, base, what, self._give_up)
        self._give_up = Patience(self.clock, self._put_back_secs, 0.0)
        try:
            return self._put_back(late, base, what, self._give_up)
        finally:
            self._put_back_secs, self._give_up = self._give_up.left_secs, None

    def _put_back(self, late: Document, base: Optional[Document], what: Optional[str], give_up: Patience) -> bool:
        total = added = self._merge(late, base, give_up.left_secs)
        quiet = Patience(self.clock, WATCH_SECS, 0.0)
        while added and not quiet.exhausted() and not give_up.exhausted():
            assert self._published is not None
            if is_named(self.store, METADATA_NAME, self._published):
                quiet.pause(LONGEST_PAUSE_SECS)
                continue
            added = self._merge(late, base, give_up.left_secs)
            total += added
            quiet = Patience(self.clock, WATCH_SECS, 0.0)
        if total and what is not None:
            self.log.info(
                "storage_manager.recovered",
                f"what a client wrote during a commit was merged ({total} times an entry put back)",
                what=what,
                entries=total,
            )
        return not added

    def _merge(self, late: Document, base: Optional[Document], patience_secs: float) -> int:
        """How many entries it took to make the current document have everything of `late` that it should."""
        count: Optional[int] = None

        def editor(current: Document) -> Optional[Edit]:
            nonlocal count
            edit = merge(current, late, base, self.store)
            count = len(edit.add) + len(edit.replace)
            return edit if count else None

        self.commit(editor, late.fingerprint(), patience_secs)
        if count is None:
            raise StorageManagerError(
                f"{self.store.file(METADATA_NAME)} has disappeared while entries were put back into it; they are kept "
                f"for the next run"
            )
        return count

    def _draft_like(self, reading: Reading) -> Draft:
        like = likeness_of_metadata(self.store, reading.fd, reading.status)
        if self._draft is not None and self._draft.like != like:
            self.close()
        if self._draft is None:
            self._draft = Draft(self.store, like)
        return self._draft

    def _refuse_immutable(self) -> None:
        """Find the immutable and append-only attributes, which let nobody rename over the file."""
        try:
            fd = self.store.open(METADATA_NAME, os.O_WRONLY)
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EROFS):
                raise NotWritable(
                    f"{self.store.file(METADATA_NAME)} cannot be replaced ({errno_name(error.errno)}; see lsattr)"
                ) from error
            return  # a file without write permission can be replaced all the same
        close(fd)

    def _refuse_quota(self, like: os.stat_result, blob_name: Optional[str]) -> None:
        """A quota of the file's owner or group is used up: a blob of somebody else's makes no room in it."""
        blob = self.store.status(blob_name) if blob_name is not None else None
        if blob is None or (blob.st_uid, blob.st_gid) == (like.st_uid, like.st_gid):
            return
        raise NotWritable(
            f"the quota for {self.store.file(METADATA_NAME)} (user {like.st_uid}, group {like.st_gid}) is used up, and "
            f"{blob_name} belongs to user {blob.st_uid}, group {blob.st_gid}: deleting it would make no room. "
            f"Raise the quota"
        )

    def _sync_directory(self) -> Optional[OSError]:
        try:
            os.fsync(self.store.dir_fd)
        except OSError as error:
            # EINVAL: a file system that has nothing to sync for a directory.
            return None if error.errno == errno.EINVAL else error
        return None
