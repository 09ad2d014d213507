"""Memory that a cycle has used, given back: a loop sleeps for an hour beside services that need it."""

from __future__ import annotations

import gc
from contextlib import suppress

# With less than this in use, there is nothing to give back that is worth the library.
_SMALL_STORE_SESSIONS = 10_000


def give_back(session_count: int) -> None:
    """Free what a cycle over so many sessions has left, and hand free memory to the system, where its C library can.

    The collector is off while a command runs (see cli). Raises nothing.
    """
    gc.collect()
    if session_count < _SMALL_STORE_SESSIONS:
        return
    with suppress(ImportError, OSError, AttributeError):  # a Python without ctypes, a C library without that function
        import ctypes

        ctypes.CDLL(None).malloc_trim(0)
