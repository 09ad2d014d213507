"""What is to be done about a store, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from typing import NamedTuple, Optional

from storage_manager.base.quantity import counted, size
from storage_manager.store.snapshot import (
    CORRUPT,
    DANGLING,
    FUTURE,
    IN_FLIGHT,
    NOT_A_FILE,
    ORPHAN,
    UNREADABLE,
    Session,
)

REMEDIES = {
    ORPHAN: "`check --adopt-orphans GROUP` makes sessions of them; `purge --orphans --age-days N` deletes them",
    IN_FLIGHT: "nothing: a save may be under way; after 10 minutes it counts as an orphan",
    DANGLING: "`check --repair` removes them; so does a prune that comes to their age",
    CORRUPT: "mend the entry by hand while the service is stopped, or leave it: it stays, and its blob counts",
    NOT_A_FILE: "look what it is, and move it away",
    UNREADABLE: "check the permissions and the disk",
    FUTURE: "compare the clocks of the hosts; if they are right, correct created_at while the service is stopped "
    "(until then it counts as the newest, and goes last)",
}
"""What to do about a kind of anomaly."""

HELP = {
    **REMEDIES,
    "keep_last": "protect fewer with --keep-last, or raise the target",
    "min_age": "protect less with --min-age-mins, or raise the target",
}
"""What to do about a cause of an unmet target."""


TOO_MANY = "too_many"
"""The cause for which a victim is left to a later run."""


class Keep(NamedTuple):
    """A run of sessions that stay, and why."""

    cause: str
    """A stable key: not_needed, too_young, TOO_MANY, not_confirmed, min_age or keep_last."""
    reason: str
    sessions: Sequence[Session]


class Plan(NamedTuple):
    """Who goes, who stays, and why. Dry run, JSON and the real run all use this one value.

    Together `victims` and `kept` are the sessions of the scope, oldest first.
    """

    victims: Sequence[Session]
    """Healthy sessions to delete, oldest first."""
    swept: Sequence[Session]
    """Dangling entries to remove along with them."""
    reasons: Sequence[tuple[int, str]]
    """(how many of them, why they go), in their order; of a plan without victims, why some would have gone."""
    kept: Sequence[Keep]
    current_bytes: int
    planned_bytes: int
    """Usage when every victim is gone."""
    target_bytes: Optional[int]
    """None for a purge, which has no target."""
    causes: dict[str, int]
    """What keeps the usage above the target, in bytes by cause; empty when the target is met."""
    are_orphans: bool = False
    """Whether the victims are blobs without entries, with their time of modification as that of their creation."""
    surplus_count: int = 0
    """How many more sessions stay than may, because they are protected."""

    @property
    def noun(self) -> str:
        return "orphan" if self.are_orphans else "session"

    @property
    def item_count(self) -> int:
        """How many sessions, or orphans, the plan is about."""
        return len(self.victims) + sum(len(keep.sessions) for keep in self.kept)

    @property
    def target_met(self) -> bool:
        return not self.causes

    @property
    def freed_bytes(self) -> int:
        return self.current_bytes - self.planned_bytes

    @property
    def later_bytes(self) -> int:
        """Of the victims that are left to a later run."""
        return sum(session.size_bytes for session in self._later)

    @property
    def wanted(self) -> tuple[int, int]:
        """(count, bytes) of the victims, and of those that are left to a later run."""
        return len(self.victims) + len(self._later), self.freed_bytes + self.later_bytes

    @property
    def _later(self) -> Sequence[Session]:
        return [session for keep in self.kept if keep.cause == TOO_MANY for session in keep.sessions]

    def chosen(self) -> Iterator[tuple[Session, str]]:
        """The victims, each with why it goes."""
        start = 0
        for count, reason in self.reasons:
            for session in self.victims[start : start + count]:
                yield session, reason
            start += count

    @property
    def why(self) -> str:
        """Every reason, in the order of the victims."""
        return "; ".join(reason for _, reason in self.reasons)

    def decisions(self) -> Iterator[tuple[str, Session, str]]:
        """(action, session, reason) of every session and dangling entry the plan speaks of."""
        for session in self.swept:
            yield "sweep", session, "entry without a blob"
        for session, reason in self.chosen():
            yield "delete", session, reason
        for keep in self.kept:
            for session in keep.sessions:
                yield "keep", session, keep.reason


class Deleted(NamedTuple):
    """The sessions that runs have deleted, by their guids in lower case."""

    certainly: Set[str] = frozenset()
    perhaps: Set[str] = frozenset()
    """With those that a run had announced, and did not tell of any more."""


class Counts:
    """What has come of a run so far."""

    def __init__(self, deleted_count: int = 0, freed_bytes: int = 0, swept_count: int = 0) -> None:
        self.deleted_count = deleted_count
        """Sessions, or orphans."""
        self.freed_bytes = freed_bytes
        self.gone_count = deleted_count
        """With those whose owner has deleted the blob meanwhile."""
        self.gone_bytes = freed_bytes
        self.swept_count = swept_count
        """Dangling entries removed."""
        self.returned_count = 0
        """Of those swept, what the cycle before had swept, too, and the client has brought back since."""
        self.deferred_count = 0
        """Entries without blobs that wait for the next run, because the client left no moment for a commit."""
        self.removed_count = 0
        """Files of unfinished metadata."""
        self.failed: set[str] = set()
        """The names of the blobs that could not be deleted; their entries stay."""
        self.changed: set[str] = set()
        """The names of the blobs that stay because they were saved again after the plan was made."""


class Outcome(NamedTuple):
    """What came of a plan."""

    plan: Plan
    dry_run: bool
    counts: Counts
    """Of a dry run, as they would be."""
    final_bytes: int
    exit_code: int


def unmet(plan: Plan, final_bytes: int) -> str:
    """Why a limit is not kept, and what helps most; empty when all are."""
    stays = overrun(plan, final_bytes)
    if not stays:
        return ""
    causes = ", ".join(f"{cause} {size(size_bytes)}" for cause, size_bytes in plan.causes.items())
    largest = max(plan.causes, key=lambda cause: plan.causes[cause])
    return f"{stays}, because of what may not be deleted: {causes} ({HELP[largest]})"


def overrun(plan: Plan, final_bytes: int) -> str:
    """By how much a limit is not kept; empty when all are."""
    if plan.target_met:
        return ""
    stays = []
    if plan.target_bytes is not None and (final_bytes > plan.target_bytes or not plan.surplus_count):
        stays.append(f"usage stays at {size(final_bytes)}, above the target of {size(plan.target_bytes)}")
    if plan.surplus_count:
        stays.append(f"{counted(plan.surplus_count, 'session')} more stay than may")
    return "; ".join(stays)


def sentence(outcome: Outcome) -> str:
    """What came of a prune or a purge, in one sentence."""
    counts, noun = outcome.counts, outcome.plan.noun
    verb = "would delete" if outcome.dry_run else "deleted"
    text = f"{verb} {counted(counts.deleted_count, noun)}, {size(counts.freed_bytes)}"
    if counts.swept_count:
        text += f", and {counted(counts.swept_count, 'dangling entry')}"
    text += f"; {size(outcome.final_bytes)} {'would remain' if outcome.dry_run else 'remain'}"
    if counts.failed:
        text += f"; {counted(len(counts.failed), 'blob')} could not be deleted"
    if counts.changed:
        text += f"; {counted(len(counts.changed), noun)} saved again in the meantime"
    if counts.deferred_count:
        waits = "waits" if counts.deferred_count == 1 else "wait"
        text += f"; {counted(counts.deferred_count, 'entry')} {waits} for a quieter moment of the service"
    return text
