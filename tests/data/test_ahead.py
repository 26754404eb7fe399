"""Iteration one item ahead of the caller."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from groundray.data.ahead import one_ahead


def counted(made: list[int], count: int = 5) -> Iterator[int]:
    for number in range(count):
        made.append(number)
        yield number


def until(condition: threading.Event) -> None:
    assert condition.wait(10)


def test_items_keep_their_order() -> None:
    assert list(one_ahead(counted([]), "test")) == [0, 1, 2, 3, 4]
    assert list(one_ahead(iter([None, 0]), "test")) == [None, 0]
    assert list(one_ahead(iter([]), "test")) == []


def test_the_next_item_is_made_while_the_caller_uses_the_last_and_no_other() -> None:
    made: list[int] = []
    items = one_ahead(counted(made), "test")
    assert next(items) == 0
    deadline = time.monotonic() + 10
    while len(made) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    time.sleep(0.02)
    assert made == [0, 1]


def test_an_error_is_raised_where_its_item_was_due() -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise ValueError("sample 7 cannot be decoded")

    items = one_ahead(failing(), "test")
    assert next(items) == 1
    with pytest.raises(ValueError, match="sample 7"):
        next(items)


def test_a_caller_that_stops_does_not_wait_for_the_next_item() -> None:
    released, began = threading.Event(), threading.Event()

    def slow() -> Iterator[int]:
        yield 1
        began.set()
        until(released)
        yield 2

    items = one_ahead(slow(), "test")
    assert next(items) == 1
    until(began)
    items.close()
    released.set()
