"""What the loop gives back between two cycles."""

from __future__ import annotations

import sys
import weakref
from types import SimpleNamespace
from typing import Any

import pytest

from storage_manager.loop.heap import give_back


class Node:
    me: Any = None


def test_a_circle_is_freed_whatever_the_size_of_the_store() -> None:
    node = Node()
    node.me = node
    left = weakref.ref(node)
    del node
    give_back(0)
    assert left() is None


@pytest.mark.parametrize("count, trims", [(0, []), (9_999, []), (10_000, [0]), (1_000_000, [0])])
def test_only_after_a_large_store_the_system_gets_memory_back(
    count: int, trims: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    library = SimpleNamespace(malloc_trim=asked.append)
    monkeypatch.setitem(sys.modules, "ctypes", SimpleNamespace(CDLL=lambda name: library))
    give_back(count)
    assert asked == trims


@pytest.mark.parametrize("ctypes", [None, SimpleNamespace(CDLL=lambda name: SimpleNamespace())])
def test_where_nothing_can_be_given_back_the_loop_goes_on(ctypes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ctypes", ctypes)
    give_back(1_000_000)
