"""What systemd wants to hear: sd_notify's datagrams, without its library."""

from __future__ import annotations

import math
from typing import Optional

from storage_manager.base.clock import Clock
from storage_manager.base.text import printable
from storage_manager.loop.cycle import SHORTEST_SLEEP_SECS, elapsed_secs

# systemd shows the status in one line.
LONGEST_STATUS = 300

# systemd wants half of WatchdogSec= at most; half of that again leaves room for a slow step.
WATCHDOG_FRACTION = 4
READY = "READY=1"
STOPPING = "STOPPING=1"
WATCHDOG = "WATCHDOG=1"


def status(text: str) -> str:
    """A datagram's line; a line break in it would begin another assignment."""
    return f"STATUS={printable(text, LONGEST_STATUS)}"


def notify(address: str, *lines: str) -> None:
    """Send one datagram. Never waits: a service manager that does not read is told again later. Raises OSError."""
    import socket  # few runs need it

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as channel:
        # An @ stands for the zero byte in front of an abstract address. As bytes: a path need not be UTF-8.
        path = address.encode("utf-8", "surrogateescape")
        channel.sendto(
            "\n".join(lines).encode("utf-8", "backslashreplace"), b"\0" + path[1:] if path[:1] == b"@" else path
        )


class Watchdog:
    """Says when a service manager that restarts what is silent for `secs` is to be told again; None: there is none."""

    def __init__(self, secs: Optional[float], clock: Clock) -> None:
        self._every_secs = None if secs is None else secs / WATCHDOG_FRACTION
        self._clock = clock
        self._asked_at = clock.monotonic()

    @property
    def nap_secs(self) -> float:
        return math.inf if self._every_secs is None else max(SHORTEST_SLEEP_SECS, self._every_secs)

    def is_due(self) -> bool:
        """True once for each part of the time."""
        if self._every_secs is None or elapsed_secs(self._clock, self._asked_at) < self._every_secs:
            return False
        self._asked_at = self._clock.monotonic()
        return True
