"""What the loop's settings say where evidence is in doubt, for jobs/evidence to judge."""

from __future__ import annotations

from typing import Optional

from storage_manager.config import DEFAULT, Settings, limit_text
from storage_manager.jobs.evidence import Lost, Mandate, Unusable


def prune_mandate(settings: Settings) -> Mandate:
    age_days, limit_bytes = settings.max_age_days, settings.max_storage_bytes
    if_right = ""
    if age_days is not None and limit_bytes is not None:
        if_right = f"run `purge --age-days {age_days:g} --yes`"
        if settings.keep_last or settings.min_age_mins:
            if_right += f", which keeps nothing for {settings.prefix}_KEEP_LAST or {settings.prefix}_MIN_AGE_MINS"
    return Mandate(
        max_delete=settings.max_delete,
        let_through=f"To let it through once, run `run-loop --once` with {settings.prefix}_MAX_DELETE=off",
        if_clock_is_right=if_right,
        unusable=_unusable(settings, limit_text(limit_bytes, settings.limit_source)),
    )


def orphan_mandate(settings: Settings, age_days: float) -> Mandate:
    purge = f"run `purge --orphans --age-days {age_days:g}"
    remedy = f"{settings.prefix}_ORPHANS=adopt:GROUP makes sessions of them. If nobody misses them, {purge}`"
    return Mandate(
        max_delete=settings.max_delete,
        let_through=f"To let it through, {purge}`",
        if_clock_is_right=f"{purge} --yes`",
        unusable=_unusable(settings, str(settings.orphans)),
        lost=Lost(remedy, settings.max_storage_bytes),
    )


def _unusable(settings: Settings, rule: str) -> Optional[Unusable]:
    """What cannot be used of the settings; `rule` is what counts instead."""
    problem = settings.held_by
    if problem is None:
        return None
    trouble = f"{problem.variable} is {problem.value!r}: {problem.reason}"
    if problem.remedy:
        return Unusable(problem.variable, trouble, problem.remedy, None, settings.max_storage_bytes)
    # A limit that nobody sets can be held for the sake of the file alone.
    has_gone = problem.variable == settings.limit_variable and settings.limit_source == DEFAULT
    in_file = problem.variable in settings.from_file or has_gone
    remedy = f"Correct {problem.variable}" + (f" in {settings.env_file}" if in_file else ", and restart the loop")
    return Unusable(problem.variable, trouble, remedy, rule, settings.max_storage_bytes)
