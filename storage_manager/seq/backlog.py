"""Lines that wait to be shipped: a queue with bounds on number and bytes, from which the oldest go when it is full."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

# A prune of fifty thousand sessions in one go fits; so do the events of an idle loop of a year.
MAX_EVENTS = 50_000

# What the process may grow by while nobody takes its events. An event has about 450 bytes.
MAX_BYTES = 32 * 1024 * 1024

# What Seq's own clients send at once, and what a proxy in front of it takes by default.
BATCH_EVENTS = 1000
BATCH_BYTES = 1_000_000


class Backlog:
    """Not for several threads at once: whoever shares it locks it."""

    def __init__(self, max_events: int = MAX_EVENTS, max_bytes: int = MAX_BYTES) -> None:
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self.dropped_count = 0
        """Lines that had to go because there was no room; whoever reports them sets it to 0."""

    def __len__(self) -> int:
        return len(self._lines)

    @property
    def fills_a_batch(self) -> bool:
        return len(self._lines) >= BATCH_EVENTS or self._bytes >= BATCH_BYTES

    def add(self, line: bytes) -> None:
        """Put a line at the end."""
        self._lines.append(line)
        self._bytes += len(line)
        self._make_room()

    def take(self) -> list[bytes]:
        """The oldest lines, as many as a batch may have; a line is taken even if it alone is larger."""
        taken: list[bytes] = []
        room_bytes = BATCH_BYTES
        while self._lines and len(taken) < BATCH_EVENTS:
            room_bytes -= len(self._lines[0]) + 1
            if taken and room_bytes < 0:
                break
            taken.append(self._pop())
        return taken

    def give_back(self, lines: Sequence[bytes]) -> None:
        """Put what could not be shipped in front again, in its order."""
        self._lines.extendleft(reversed(lines))
        self._bytes += sum(map(len, lines))
        self._make_room()

    def _make_room(self) -> None:
        while len(self._lines) > self._max_events or self._bytes > self._max_bytes:
            self._pop()
            self.dropped_count += 1

    def _pop(self) -> bytes:
        line = self._lines.popleft()
        self._bytes -= len(line)
        return line
