"""What is to be done about a store, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Optional

from storage_manager.base.quantity import counted, size
from storage_manager.store.snapshot import Session


class Keep(NamedTuple):
    """A run of sessions that stay, and why."""

    cause: str
    """A stable key: not_needed, too_young, min_age or keep_last."""
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
    reason: str
    """Why the victims go."""
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

    @property
    def noun(self) -> str:
        return "orphan" if self.are_orphans else "session"

    @property
    def target_met(self) -> bool:
        return not self.causes

    @property
    def freed_bytes(self) -> int:
        return self.current_bytes - self.planned_bytes

    def decisions(self) -> Iterator[tuple[str, Session, str]]:
        """(action, session, reason) of every session and dangling entry the plan speaks of."""
        for session in self.swept:
            yield "sweep", session, "entry without a blob"
        for session in self.victims:
            yield "delete", session, self.reason
        for keep in self.kept:
            for session in keep.sessions:
                yield "keep", session, keep.reason


class Outcome(NamedTuple):
    """What came of a plan."""

    plan: Plan
    dry_run: bool
    deleted_count: int
    freed_bytes: int
    failed: frozenset[str]
    """The names of the blobs that could not be deleted; their entries stay."""
    swept_count: int
    final_bytes: int
    exit_code: int


def sentence(outcome: Outcome) -> str:
    """What came of a prune or a purge, in one sentence."""
    verb = "would delete" if outcome.dry_run else "deleted"
    text = f"{verb} {counted(outcome.deleted_count, outcome.plan.noun)}, {size(outcome.freed_bytes)}"
    if outcome.swept_count:
        text += f", and {counted(outcome.swept_count, 'dangling entry')}"
    text += f"; {size(outcome.final_bytes)} {'would remain' if outcome.dry_run else 'remain'}"
    if outcome.failed:
        text += f"; {counted(len(outcome.failed), 'blob')} could not be deleted"
    return text
