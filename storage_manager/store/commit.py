"""Changing metadata.json beside a writer that takes no lock: the safe commit, and recovery after a crash.

The order of the steps is the protocol; docs/design.md tells why each is where it is. The guarantee: an entry
that the client has written is never lost, whatever interleaving, and wherever this process dies. What it
rests on: the client writes in place (it never renames over metadata.json), and an open() of the old file that
had begun before our rename gets as far as truncating it within SETTLE_SECS.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from typing import Optional

from storage_manager.base.clock import Clock, Patience
from storage_manager.base.errors import (
    CommitContended,
    NotWritable,
    StorageManagerError,
    StoreError,
    errno_name,
    failing_as,
)
from storage_manager.base.log import EventLog
from storage_manager.base.times import from_timestamp
from storage_manager.store.aside import (
    copy_aside,
    link_previous,
    move_aside,
    open_previous,
    restore_metadata,
    unlink_previous,
)
from storage_manager.store.directory import Store, close
from storage_manager.store.document import Document, Fingerprint, parse, reparse
from storage_manager.store.draft import DISK_FULL, Draft, access_list, remove_leftover
from storage_manager.store.edit import Edit, Editor, merge
from storage_manager.store.names import METADATA_NAME, MOST_PREVIOUS, previous_names
from storage_manager.store.reading import (
    LONGEST_PAUSE_SECS,
    READ_PATIENCE_SECS,
    Reading,
    is_named,
    read_descriptor,
    read_stable,
)

# How long to go on trying when the client changes the file under every attempt. Each attempt needs one quiet
# moment of some 100 ms at 100,000 sessions; a client at full speed leaves several a minute.
COMMIT_PATIENCE_SECS = 60.0

# In the middle of a long prune a commit can be put off: deleting on is worth more than waiting.
MEANWHILE_PATIENCE_SECS = 5.0

# Asked to stop, we have the 10 s that Docker grants by default: half for reading, half for the rest.
STOPPING_PATIENCE_SECS = 4.0

# An open() that looked the old file up before our rename truncates it microseconds later, unless its thread
# loses the processor in between: some scheduling rounds of a busy machine.
SETTLE_SECS = 0.05

# How long to watch for a client's write that shows whether what was put back stays. A client at work writes again
# within this, or nearly; one that is idle lets us wait in vain, and then the next run makes sure.
WATCH_SECS = 0.5

# From reading metadata.json to opening it for writing, a client takes this long at most: mostly for parsing it.
REWRITE_SECS = 1.0
REWRITE_SECS_PER_BYTE = 0.1 / (1 << 20)

# A client at full speed may undo it time and again; then the next run goes on.
PUT_BACK_PATIENCE_SECS = 10.0


class Committer:
    """Commits to one store's metadata.json. Use under the prune lock; close when done."""

    def __init__(self, store: Store, clock: Clock, log: EventLog) -> None:
        self._store = store
        self._clock = clock
        self._log = log
        self._draft: Optional[Draft] = None
        self._published: Optional[os.stat_result] = None
        self._most_previous = MOST_PREVIOUS

    def prepare(self, reading: Reading) -> None:
        """Make sure, before the first deletion, that a commit will be possible.

        Raises NotWritable or StoreError when it will not be. A full disk is no obstacle: deleting blobs is
        what will make room.
        """
        directory = self._store.path
        if not os.access(".", os.W_OK | os.X_OK, dir_fd=self._store.dir_fd, effective_ids=True):
            raise NotWritable(
                f"the storage directory {directory} is not writable for user {os.geteuid()} "
                f"(or its file system is read-only): nothing was deleted"
            )
        self._refuse_immutable()
        try:
            self._draft_like(reading)
            unlink_previous(self._store, link_previous(self._store, self._most_previous))
        except StoreError as error:
            if error.errno == errno.EXDEV:
                raise NotWritable(
                    f"{self._store.file(METADATA_NAME)} is a mount point and cannot be replaced: mount the "
                    f"directory instead. Nothing was deleted"
                ) from error
            if error.errno not in DISK_FULL:
                raise

    def commit(
        self, editor: Editor, known: Optional[Fingerprint], patience_secs: float = COMMIT_PATIENCE_SECS
    ) -> Optional[Fingerprint]:
        """Apply an edit so that no client's entry is lost. The next commit may be given what is returned.

        `known` is the fingerprint of an earlier version: what it knows is not decoded again. None is
        returned when there was nothing to change. Raises MetadataCorrupt, CommitContended, NotWritable or
        StoreError; the file is then as it was, or as intended, and never anything between.
        """
        patience = Patience(self._clock, patience_secs, STOPPING_PATIENCE_SECS)
        while True:
            done, fingerprint = self._attempt(editor, known)
            if done:
                return fingerprint
            known = fingerprint
            if patience.exhausted():
                raise CommitContended(
                    f"{self._store.file(METADATA_NAME)} changed during every attempt to commit. Entries of blobs that "
                    f"were deleted stay until the next prune removes them, and none was added; no session was lost"
                )

    def _attempt(self, editor: Editor, known: Optional[Fingerprint]) -> tuple[bool, Optional[Fingerprint]]:
        """(whether the edit is in place or was not needed, the fingerprint for whoever comes next)."""
        patience = Patience(self._clock, READ_PATIENCE_SECS, STOPPING_PATIENCE_SECS)
        found = read_stable(self._store, patience, lambda data: reparse(data, known) if known else parse(data))
        if found is None:
            return True, None
        reading, document = found
        with reading:
            edit = editor(document)
            if edit is None:
                return True, None
            done = self._replace(reading, document, edit)
            # A member that has changed since `known` goes on counting as changed.
            changed = {document.keys[index] for index in document.fresh} if known else set()
            return done, document.fingerprint(without=changed.union(edit.drop) if done else changed)

    def add(self, entries: Document) -> bool:
        """Add those entries that metadata.json lacks and whose blob is there. Whether they are there to stay.

        Not if a client at full speed, one that read before it and writes after it, undoes it time and again: then the
        blobs are without entries as before. Raises like commit(), and Interrupted.
        """
        patience = Patience(self._clock, PUT_BACK_PATIENCE_SECS, 0.0)
        while not self._put_back(entries, None, None):
            if patience.exhausted():
                return False
            self._await_rewrite()
        return True

    def create(self, like: os.stat_result, mode: int) -> None:
        """Make an empty metadata.json unless there is one by now: with the owner and group of `like`, and of its mode
        what `mode` has as well.

        Raises NotWritable, StoreError.
        """
        self.close()
        draft = Draft(self._store, like, None, mode)
        try:
            draft.write([b"{}"])
            draft.publish_new()
        finally:
            draft.discard()

    def recover(self) -> None:
        """Finish or undo what a process that died in the middle of a commit left. Raises like commit()."""
        if remove_leftover(self._store):
            self._log.info("storage_manager.recovered", "removed the unfinished draft of a run that died", what="draft")
        # One name more than commits may use: merging the last of them takes a commit, too.
        self._most_previous = MOST_PREVIOUS + 1
        for name in reversed(previous_names(self._most_previous)):
            status = self._store.status(name)
            if status is not None:
                self._recover_previous(name, status)
        self._most_previous = MOST_PREVIOUS

    def recover_torn(self, names: Sequence[str]) -> bool:
        """Merge what was kept aside as torn and has been finished by its writer after all; whether any was.

        Raises like commit().
        """
        merged = False
        for name in names:
            fd = open_previous(self._store, name)
            try:
                late = read_descriptor(self._store, fd, name, Patience(self._clock, 0.0, 0.0))
            finally:
                close(fd)
            if late is None:
                continue  # still torn
            merged = True
            self._await_rewrite()
            if self._put_back(late, None, "torn"):
                self._store.remove(name)
        return merged

    def close(self) -> None:
        """Give up a draft that was not needed."""
        if self._draft is not None:
            self._draft.discard()
            self._draft = None

    def _replace(self, reading: Reading, document: Document, edit: Edit) -> bool:
        """One attempt: True when the edited document is in place, False when the file changed meanwhile."""
        draft = self._draft_like(reading)
        try:
            draft.write(document.rendered(edit.drop, edit.replace, edit.add))
        except BaseException:
            # After a failed fsync the kernel takes the lost pages for clean: only a new file can be trusted.
            self.close()
            raise
        previous = link_previous(self._store, self._most_previous)
        try:
            self._published = draft.examine()
            # Nothing comes between the last look and the rename: whoever opens the file there has to be salvaged.
            if not (reading.unchanged() and is_named(self._store, METADATA_NAME, reading.status)):
                unlink_previous(self._store, previous)
                return False
            draft.publish()
        except BaseException:
            # The rename did not happen, or its failure is all we know: the old file keeps its second name
            # unless it certainly still has the first.
            with suppress(StorageManagerError):
                if is_named(self._store, METADATA_NAME, reading.status):
                    unlink_previous(self._store, previous)
                elif previous is None:  # renamed after all, and nobody else will ever see what is written to it
                    self._salvage_late_write(reading, document, None)
            raise
        self._draft = None
        sync_failure = self._sync_directory()
        self._salvage_late_write(reading, document, previous)
        if sync_failure is not None:
            raise StoreError("sync the directory", self._store.path, sync_failure)
        return True

    def _salvage_late_write(self, reading: Reading, document: Document, previous: Optional[str]) -> None:
        """Put back what a writer that had opened the old file before the rename has written to it since."""
        if self._left_alone(reading, previous):
            self._clock.pause(SETTLE_SECS)
            if self._left_alone(reading, previous):
                unlink_previous(self._store, previous)
                return
        # With a second name the next run can go on waiting; without one this is the only chance.
        stopping_secs = STOPPING_PATIENCE_SECS if previous else READ_PATIENCE_SECS
        patience = Patience(self._clock, READ_PATIENCE_SECS, stopping_secs)
        late = read_descriptor(self._store, reading.fd, previous or METADATA_NAME, patience)
        stays = False
        if late is not None:
            try:
                stays = self._put_back(late, document, "late_write")
            except StorageManagerError:
                if previous is None:
                    copy_aside(self._store, self._clock, self._log, reading.fd)
                raise
        if stays:
            unlink_previous(self._store, previous)
        elif previous is None:
            copy_aside(self._store, self._clock, self._log, reading.fd)
        else:
            self._log.warning(
                "storage_manager.recovered",
                f"a write that overlapped the commit may not be merged for good; {previous} is kept for the next run",
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

    def _recover_previous(self, name: str, status: os.stat_result) -> None:
        store = self._store
        if not stat.S_ISREG(status.st_mode):
            raise StorageManagerError(f"{store.file(name)} is not a regular file: move it away")
        fd = open_previous(store, name)
        try:
            current = store.status(METADATA_NAME)
            if current is None:
                restore_metadata(store, self._log, name)
            elif not os.path.samestat(current, status):
                patience = Patience(self._clock, READ_PATIENCE_SECS, 0.0)
                late = read_descriptor(store, fd, name, patience)
                if late is None:
                    self._clock.check()
                    move_aside(self._store, self._clock, self._log, name)
                    return
                self._await_rewrite()
                if not self._put_back(late, self._base_of(fd, name), "commit"):
                    return  # the next run looks again
        finally:
            close(fd)
        store.remove(name)

    def _await_rewrite(self) -> None:
        """Let a client write that read metadata.json before an earlier run put an entry back into it.

        That write undoes it, and must not come after the run that finds the entry in place and gives the old
        file up. Raises StoreError, Interrupted.
        """
        status = self._store.status(METADATA_NAME)
        if status is None:  # the merge says what is wrong
            return
        secs = REWRITE_SECS + REWRITE_SECS_PER_BYTE * status.st_size
        age_secs = (self._clock.now() - from_timestamp(status.st_mtime)).total_seconds()
        patience = Patience(self._clock, min(secs, secs - age_secs), 0.0)
        while not patience.exhausted() and is_named(self._store, METADATA_NAME, status):
            patience.pause(LONGEST_PAUSE_SECS)
        self._clock.check()

    def _base_of(self, fd: int, name: str) -> Optional[Document]:
        """What the writer of an old file started from, as far as that can be told.

        The current document still has it, unless a client has written that since. Raises like commit().
        """
        found = read_stable(self._store, Patience(self._clock, READ_PATIENCE_SECS, 0.0), parse)
        if found is None:
            return None
        reading, document = found
        with reading, failing_as("examine", self._store.file(name)):
            return document if reading.status.st_mtime_ns < os.fstat(fd).st_mtime_ns else None

    def _put_back(self, late: Document, base: Optional[Document], what: Optional[str]) -> bool:
        """Merge a document that a writer left in a replaced file. Whether the result is there to stay.

        Putting back is not like removing: a client that read before it and writes after it undoes it. So the
        result is watched, and merged again where it was undone, until a client's write shows that the client
        has seen it. Without such a write nothing is certain, and the caller must keep `late` for another run.
        Raises like commit().
        """
        total = added = self._merge(late, base)
        give_up = Patience(self._clock, PUT_BACK_PATIENCE_SECS, 0.0)
        quiet = Patience(self._clock, WATCH_SECS, 0.0)
        while added and not quiet.exhausted() and not give_up.exhausted():
            assert self._published is not None
            if is_named(self._store, METADATA_NAME, self._published):
                quiet.pause(LONGEST_PAUSE_SECS)
                continue
            added = self._merge(late, base)
            total += added
            quiet = Patience(self._clock, WATCH_SECS, 0.0)
        if total and what is not None:
            self._log.info(
                "storage_manager.recovered",
                f"what a client wrote during a commit was merged ({total} times an entry put back)",
                what=what,
                entries=total,
            )
        return not added

    def _merge(self, late: Document, base: Optional[Document]) -> int:
        """How many entries it took to make the current document have everything of `late` that it should."""
        count: Optional[int] = None

        def editor(current: Document) -> Optional[Edit]:
            nonlocal count
            edit = merge(current, late, base, self._store)
            count = len(edit.add) + len(edit.replace)
            return edit if count else None

        self.commit(editor, late.fingerprint())
        if count is None:
            raise StorageManagerError(
                f"{self._store.file(METADATA_NAME)} has disappeared while entries were put back into it; they are kept "
                f"for the next run"
            )
        return count

    def _draft_like(self, reading: Reading) -> Draft:
        acl = access_list(reading.fd, reading.path)
        if self._draft is not None and not self._draft.fits(reading.status, acl):
            self.close()
        if self._draft is None:
            self._draft = Draft(self._store, reading.status, acl)
        return self._draft

    def _refuse_immutable(self) -> None:
        """Find the immutable and append-only attributes, which let nobody rename over the file."""
        try:
            fd = self._store.open(METADATA_NAME, os.O_WRONLY)
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EROFS):
                raise NotWritable(
                    f"{self._store.file(METADATA_NAME)} cannot be replaced ({errno_name(error.errno)}; "
                    f"see lsattr): nothing was deleted"
                ) from error
            return  # a file without write permission can be replaced all the same
        close(fd)

    def _sync_directory(self) -> Optional[OSError]:
        try:
            os.fsync(self._store.dir_fd)
        except OSError as error:
            # EINVAL: a file system that has nothing to sync for a directory.
            return None if error.errno == errno.EINVAL else error
        return None
