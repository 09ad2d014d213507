"""What may come of a batch: the server's answer in our terms, and how the one bad event is found among the good."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import NamedTuple, Optional

# So many events refused one by one, and none taken between them: it is not the events. Going on would cost two
# requests for each of them, and each would be lost.
REFUSALS_IN_A_ROW = 10


class Verdict(Enum):
    """What an answer means for the events that were sent."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    """Because of what was sent: one of the events, or all of them together."""
    UNAUTHORISED = "unauthorised"
    MISDIRECTED = "misdirected"
    """Somebody answered, but not as a Seq server does. Trying again soon will not help."""
    UNAVAILABLE = "unavailable"
    """Nobody answered, or it was asked to try again later."""


class Answer(NamedTuple):
    """What the server said to one request."""

    verdict: Verdict
    reason: str = ""
    """Safe to show: what went wrong, in words that hold no secret."""
    status: Optional[int] = None
    """The HTTP status, if there was one."""
    retry_after_secs: Optional[float] = None
    minimum_level: Optional[str] = None
    """The least level that the server wants, by its name in CLEF."""


class Delivery(NamedTuple):
    """What became of a batch."""

    answer: Answer
    """The last answer; if it is neither ACCEPTED nor REFUSED, it says why there are lines left."""
    accepted: Optional[Answer]
    """The last answer that took events, if one did."""
    rejected: list[bytes]
    """Lines that the server refused each on its own."""
    rejected_reason: str
    left: list[bytes]
    """Lines that nothing is known of, in their order."""


def deliver(lines: list[bytes], post: Callable[[list[bytes]], Answer]) -> Delivery:
    """Post `lines`; halve what is refused until the offender stands alone, and go on with the rest.

    Every line is accepted, rejected or left. Stops at the first answer of any other kind.
    """
    accepted: Optional[Answer] = None
    rejected: list[bytes] = []
    rejected_reason = ""
    refusals = 0
    todo = [lines]  # a stack: the oldest lines on top
    answer = Answer(Verdict.ACCEPTED)
    while todo:
        part = todo.pop()
        answer = post(part)
        if answer.verdict is Verdict.ACCEPTED:
            accepted, refusals = answer, 0
        elif answer.verdict is not Verdict.REFUSED:
            todo.append(part)
            break
        elif len(part) > 1:
            half = len(part) // 2
            todo += [part[half:], part[:half]]
        else:
            rejected += part
            rejected_reason = answer.reason
            refusals += 1
            if refusals >= REFUSALS_IN_A_ROW and todo:
                reason = f"it refuses one event after the other: {answer.reason}"
                answer = Answer(Verdict.MISDIRECTED, reason, answer.status)
                break
    left = [line for part in reversed(todo) for line in part]
    return Delivery(answer, accepted, rejected, rejected_reason, left)
