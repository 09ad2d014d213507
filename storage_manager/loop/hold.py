"""Why a cycle deletes nothing: a setting that nobody can have meant, or more orphans than there are sessions."""

from __future__ import annotations

from storage_manager.base import quantity
from storage_manager.base.errors import Held
from storage_manager.config import DEFAULT, Settings, limit_text
from storage_manager.jobs.plan import Plan
from storage_manager.store.snapshot import Snapshot


def require_file(settings: Settings) -> None:
    """Raises Held while nobody knows what the file of settings asks for: then every cycle is held."""
    problem = settings.held_by
    if problem is not None and problem.remedy:
        why = f"{problem.variable} is {problem.value!r}: {problem.reason}. {problem.remedy}"
        raise Held(why, problem.variable, settings.max_storage_bytes, 0, 0)


def require_settings(settings: Settings, plan: Plan) -> None:
    """Raises Held when something would go while a setting that says what goes cannot be used."""
    problem = settings.held_by
    if problem is None or not plan.victims:
        return
    limit_bytes = settings.max_storage_bytes
    rule = str(settings.orphans) if plan.are_orphans else limit_text(limit_bytes, settings.limit_source)
    # A limit that nobody sets can be held for the sake of the file alone.
    has_gone = problem.variable == settings.limit_variable and settings.limit_source == DEFAULT
    in_file = problem.variable in settings.from_file or has_gone
    then = f" in {settings.env_file}" if in_file else ", and restart the loop"
    raise Held(
        f"{problem.variable} is {problem.value!r}: {problem.reason}. With {rule}, {_gone(plan)}, would have to go. "
        f"Correct {problem.variable}{then}",
        problem.variable,
        limit_bytes,
        len(plan.victims),
        plan.freed_bytes,
    )


def require_entries(settings: Settings, plan: Plan, snapshot: Snapshot) -> None:
    """Raises Held when a purge of orphans is so large that they may have been sessions a moment ago."""
    if len(plan.victims) <= len(snapshot.sessions):
        return
    sessions = quantity.counted(len(snapshot.sessions), "session")
    raise Held(
        f"{_gone(plan)}, would have to go, beside only {sessions}. Has the service lost its metadata.json, or is the "
        f"store being restored? {settings.prefix}_ORPHANS=adopt:GROUP makes sessions of them. If nobody misses them, "
        f"run `purge --orphans --age-days {settings.orphans.age_days:g}`",
        None,
        settings.max_storage_bytes,
        len(plan.victims),
        plan.freed_bytes,
    )


def _gone(plan: Plan) -> str:
    return f"{quantity.counted(len(plan.victims), plan.noun)}, {quantity.size(plan.freed_bytes)}"
