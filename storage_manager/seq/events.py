"""What shipping to Seq tells of itself: events about a server that fails or recovers, and about what is lost."""

from __future__ import annotations

import re
from collections.abc import Sequence

from storage_manager.base import quantity
from storage_manager.base.log import EventLog
from storage_manager.seq.delivery import Answer, Verdict
from storage_manager.seq.server import SeqServer

# A report about a report that could not be shipped would have no end.
_OWN = b'"event":"storage_manager.seq.'
_EVENT = re.compile(rb'"event":"([a-z_.]+)"')


class SeqEvents:
    """They go to all handlers, so to Seq, too. None has a part of an event that was shipped, but for its key."""

    def __init__(self, log: EventLog, server: SeqServer, prefix: str) -> None:
        self._log = log
        self._server = server
        self._prefix = prefix

    def failed(self, answer: Answer) -> None:
        self._log.warning(
            "storage_manager.seq.failed",
            self._what_to_do(answer),
            seq_url=self._server.url,
            reason=answer.reason,
            status=answer.status,
        )

    def recovered(self, outage_secs: float, dropped_count: int) -> None:
        self._log.info(
            "storage_manager.seq.recovered",
            f"{self._server.url} takes events again"
            + (f"; {quantity.counted(dropped_count, 'event')} had to go meanwhile" if dropped_count else ""),
            seq_url=self._server.url,
            outage_secs=round(outage_secs, 1),
            dropped_count=dropped_count,
        )

    def rejected(self, lines: Sequence[bytes], reason: str) -> None:
        """`lines` will not be shipped, because of what they are."""
        others = [line for line in lines if _OWN not in line]
        if not others:
            return
        found = _EVENT.search(others[0])
        self._log.warning(
            "storage_manager.seq.rejected",
            f"{quantity.counted(len(others), 'event')} cannot be shipped to {self._server.url}: {reason}",
            seq_url=self._server.url,
            rejected_count=len(others),
            reason=reason,
            rejected_event=found.group(1).decode() if found else None,
        )

    def dropped(self, count: int) -> None:
        """The oldest went, because there was no room."""
        self._lost(count, "queue_full", f"for {self._server.url} had to go: more came than it took")

    def left_behind(self, count: int) -> None:
        """The process ends, and its queue with it."""
        self._lost(count, "exit", f"had not reached {self._server.url} when the process ended")

    def _lost(self, count: int, reason: str, what: str) -> None:
        if count:
            self._log.warning(
                "storage_manager.seq.dropped",
                f"{quantity.counted(count, 'event')} {what}",
                seq_url=self._server.url,
                dropped_count=count,
                reason=reason,
            )

    def _what_to_do(self, answer: Answer) -> str:
        url, variable = self._server.url, f"{self._prefix}_SEQ_URL"
        if answer.verdict is Verdict.UNAVAILABLE:
            return f"{url} is not available: {answer.reason}"
        if answer.verdict is not Verdict.UNAUTHORISED:
            return f"{url} does not take events: {answer.reason}; check {variable}"
        hint = f"{'set' if self._server.api_key is None else 'check'} {self._prefix}_SEQ_API_KEY"
        if self._server.user_info is not None:
            hint += f", or user and password in {variable}"
        return f"{url} does not let events in: {answer.reason}; {hint}"
