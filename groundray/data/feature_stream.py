"""Yields the same steps as `stream.stream` from features on this machine: threads of this process read them ahead.

A copy is all that they need, so they do not pass through other processes, or through Ray's object store.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from groundray.data.ahead import map_ahead, one_ahead
from groundray.data.plan import Cursor
from groundray.data.stream import Source, Step, assemble, decode, read, windows

MAX_THREADS = 8  # each has a batch under way


def stream(
    source: Source, cursor: Cursor, epochs: int, rank: int, world_size: int, threads: float, prefetch: int
) -> Iterator[Step]:
    """Yield a rank's steps from the cursor to the end of the last epoch.

    Args:
        threads: number of threads that read, at least 1, rounded down, and at most `MAX_THREADS` of it.
        prefetch: number of steps that are made ahead, at least; there are as many as threads.
    """
    chunks, workers = source.plan.owned(rank, world_size), min(MAX_THREADS, max(1, int(threads)))
    read_windows = ((window, read(source, window, chunks)) for window in windows(source.plan, cursor, epochs))
    tables = (
        (window.epoch, step, table) for window, steps in one_ahead(read_windows, "reading") for step, table in steps
    )

    def step_of(item: tuple[int, int, pa.Table]) -> Step:
        epoch, step, table = item
        return assemble(source, epoch, step, chunks, decode(source, table))

    pool = ThreadPoolExecutor(workers, thread_name_prefix="groundray-features")
    try:
        yield from map_ahead(pool, step_of, tables, max(prefetch, workers) + 1)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
