"""Changing metadata.json beside a writer that takes no lock: the safe commit.

Steps 1 to 5 put another text in the place of the file [store/replace]; 6 and 7, here, put back what a client has
written to the old file meanwhile. That is a commit of its own, and may be overlapped again, within the bounds of a
PutBack. The order of the steps is the protocol; docs/design.md tells why each is where it is.

The guarantee: an entry that the client has written is never lost, whatever interleaving, and wherever this process
dies. What it rests on: the client writes in place (it never renames over metadata.json), and an open() of the old file
that had begun before our rename gets as far as truncating it within SETTLE_SECS.
"""

from __future__ import annotations

from typing import NamedTuple, Optional

from storage_manager.base.clock import Clock, Patience
from storage_manager.base.errors import CommitContended, StorageManagerError, StoreError
from storage_manager.base.log import EventLog
from storage_manager.store.aside import copy_aside, unlink_previous
from storage_manager.store.directory import Store
from storage_manager.store.document import Document, Fingerprint
from storage_manager.store.edit import Edit, Editor, merge
from storage_manager.store.names import METADATA_NAME, MOST_PREVIOUS
from storage_manager.store.reading import LONGEST_PAUSE_SECS, READ_PATIENCE_SECS, Reading, is_named, read_descriptor
from storage_manager.store.replace import STOPPING_PATIENCE_SECS, Old, Replacer, changed

# How long to go on trying when the client changes the file under every attempt. An attempt has to fit into a moment in
# which the client does not write: when it saves without a pause, that is while it reads. A save takes it 100 ns a byte.
# Entries that stay harm nobody, and such a client would bring them back with its next write.
COMMIT_PATIENCE_SECS = 5.0
COMMIT_PATIENCE_SECS_PER_BYTE = 4e-7

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


class PutBack(NamedTuple):
    """Within which bounds a run puts back: handed on to each commit that this takes."""

    give_up: Patience
    most_names: int
    """How many names it may take for old files."""


class Committer:
    """Commits to one store's metadata.json. Under the prune lock: recover(), prepare, commit time and again, close."""

    def __init__(self, store: Store, clock: Clock, log: EventLog) -> None:
        self.store = store
        self.clock = clock
        self.log = log
        self._replacer = Replacer(store, clock)
        self._put_back_secs = PUT_BACK_PATIENCE_SECS
        """What this run has left of it."""

    def prepare(self, reading: Reading, blob_name: Optional[str] = None) -> None:
        """Like Replacer.prepare()."""
        self._replacer.prepare(reading, blob_name)

    def create(self, blob_name: str, mode: int) -> None:
        """Like Replacer.create()."""
        self._replacer.create(blob_name, mode)

    def close(self) -> None:
        """Give up a draft that was not needed."""
        self._replacer.close()

    def commit(
        self, editor: Editor, known: Optional[Fingerprint], patience_secs: float = COMMIT_PATIENCE_SECS
    ) -> Optional[Fingerprint]:
        """Remove entries so that no client's entry is lost. The next commit may be given what is returned, as `known`.

        None is returned when there was nothing to change. Raises like Replacer.replace(); and a StorageManagerError
        that is `committed`, where the entries are gone all the same.
        """
        return self._commit(editor, known, patience_secs, None)

    def put_back(
        self, late: Document, base: Optional[Document], what: Optional[str], most_names: int = MOST_PREVIOUS
    ) -> bool:
        """Merge a document that a writer left in a replaced file. Whether the result is there to stay.

        Putting back is not like removing: a client that read before it and writes after it undoes it. So the
        result is watched, and merged again where it was undone, until a client's write shows that the client
        has seen it. Without such a write nothing is certain, and the caller must keep `late` for another run.
        Raises like commit(); after CommitContended, too, it must be kept.
        """
        give_up = Patience(self.clock, self._put_back_secs, 0.0)
        try:
            return self._put_back(late, base, what, PutBack(give_up, most_names))
        finally:
            self._put_back_secs = give_up.left_secs

    def _commit(
        self, editor: Editor, known: Optional[Fingerprint], patience_secs: float, within: Optional[PutBack]
    ) -> Optional[Fingerprint]:
        """`within` is the put-back that this is a part of; None for a removal."""
        most_names = MOST_WAITING if within is None else within.most_names
        done = self._replacer.replace(editor, known, patience_secs, most_names)  # 1. to 5.
        if done.old is None:
            return None
        with done.old.reading:
            try:
                self._settle(done.old, within)  # 6., 7.
                if done.sync_failure is not None:
                    raise StoreError("sync the directory", self.store.path, done.sync_failure)
            except StorageManagerError as error:
                error.committed = done.is_done
                if done.doubt is None:
                    raise
        if done.doubt is not None:
            raise done.doubt
        document = done.old.document
        return document.fingerprint(without=changed(document, known).union(done.old.dropped))

    def _settle(self, old: Old, within: Optional[PutBack]) -> None:
        """Steps 6 and 7: put back what a writer that had opened the old file before the rename writes to it, and give
        its name up."""
        # 6. An open() that had begun before the rename may empty the file only now.
        if self._left_alone(old):
            self.clock.pause(SETTLE_SECS)
            if self._left_alone(old):
                unlink_previous(self.store, old.previous)  # 7.
                return
        # With a second name the next run can go on waiting; without one this is the only chance.
        stopping_secs = STOPPING_PATIENCE_SECS if old.previous else READ_PATIENCE_SECS
        patience = Patience(self.clock, READ_PATIENCE_SECS, stopping_secs)
        late = read_descriptor(self.store, old.reading.fd, old.previous or METADATA_NAME, patience)
        stays = False
        if late is not None:
            try:
                stays = self._put_back_late(late, old.document, within)
            except CommitContended:
                pass
            except StorageManagerError:
                if old.previous is None:
                    copy_aside(self.store, self.clock, self.log, old.reading.fd, is_whole=True)
                raise
        if stays:
            unlink_previous(self.store, old.previous)  # 7.
        elif old.previous is None:
            copy_aside(self.store, self.clock, self.log, old.reading.fd, late is not None)
        else:
            self.log.warning(
                "storage_manager.recovered",
                f"a write overlapped the commit, and it is not yet certain that the merge lasts; {old.previous} is "
                f"kept for the next run",
                what="pending",
                file=old.previous,
            )

    def _left_alone(self, old: Old) -> bool:
        """Whether nobody has written to the old file. Raises StoreError where the next run can look again."""
        try:
            return old.reading.unchanged()
        except StoreError:
            if old.previous is not None:
                raise
            return False

    def _put_back_late(self, late: Document, base: Document, within: Optional[PutBack]) -> bool:
        if within is None:
            return self.put_back(late, base, "late_write")
        # What is put back overlaps a write itself.
        return within.give_up.left_secs > 0 and self._put_back(late, base, "late_write", within)

    def _put_back(self, late: Document, base: Optional[Document], what: Optional[str], within: PutBack) -> bool:
        total = added = self._merge(late, base, within)
        quiet = Patience(self.clock, WATCH_SECS, 0.0)
        while added and not quiet.exhausted() and not within.give_up.exhausted():
            assert self._replacer.published is not None
            if is_named(self.store, METADATA_NAME, self._replacer.published):
                quiet.pause(LONGEST_PAUSE_SECS)
                continue
            added = self._merge(late, base, within)
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

    def _merge(self, late: Document, base: Optional[Document], within: PutBack) -> int:
        """How many entries it took to make the current document have everything of `late` that it should."""
        count: Optional[int] = None

        def editor(current: Document) -> Optional[Edit]:
            nonlocal count
            edit = merge(current, late, base, self.store)
            count = len(edit.add) + len(edit.replace)
            return edit if count else None

        self._commit(editor, late.fingerprint(), within.give_up.left_secs, within)
        if count is None:
            raise StorageManagerError(
                f"{self.store.file(METADATA_NAME)} has disappeared while entries were put back into it; they are kept "
                f"for the next run"
            )
        return count
