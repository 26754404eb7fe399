"""Iterates ahead of the caller, on threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def one_ahead(items: Iterator[Item], name: str) -> Generator[Item]:
    """Yield the items in their order; a thread makes the next one while the caller uses the last.

    All items are made on that thread, and none twice at a time. An error is raised where its item was due. The thread
    ends with its item when the caller stops early.

    Args:
        name: of the thread, in stack traces.
    """
    end = object()
    thread = ThreadPoolExecutor(1, thread_name_prefix=f"groundray-{name}")
    try:
        coming: Future[Any] = thread.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, items, end)
            yield item
            del item  # or it would be held while the next one is waited for
    finally:
        thread.shutdown(wait=False, cancel_futures=True)


def map_ahead(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], max_pending: int
) -> Iterator[Result]:
    """Yield the function's results in order, with at most `max_pending` calls running or waiting to be taken."""
    pending: deque[Future[Result]] = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) == max_pending:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
