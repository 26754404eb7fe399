"""Yields the same steps as `stream.stream`: processes of this machine decode ahead, a thread reads the next window."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from groundray.data import feature_stream
from groundray.data.ahead import one_ahead
from groundray.data.plan import Cursor
from groundray.data.processes import WorkerProcess
from groundray.data.stream import Arrays, Samples, Source, Step, assemble, decode, read, stream, windows

BLOCK_ROWS = 32  # decoded in one call: few enough for an early first batch, many enough to hide a call's own 0.2 ms
BLOCKS_EACH = 2  # given to each process: one that it decodes, and one that waits for it
WORTH_SECONDS = 10.0  # of decoding that is left; a process takes about a second to start


class DecodingProcesses:
    """Processes that decode for a run. They start when a stream has so much to decode that they are worth it.

    Args:
        processes: number of processes; 0 decodes in this process.
        prefetch: number of steps that are decoded ahead, at least. There may be more, so that every process has work.
        tell: receives a message when a process was killed.
        worth_seconds: of decoding that is left in a stream, from which processes are started.
    """

    def __init__(
        self,
        processes: int,
        prefetch: int = 2,
        tell: Callable[[str], None] = lambda _: None,
        worth_seconds: float = WORTH_SECONDS,
    ):
        self._processes, self._prefetch, self._tell, self._worth_seconds = processes, prefetch, tell, worth_seconds
        self._idle: queue.SimpleQueue[WorkerProcess] = queue.SimpleQueue()
        self._threads: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()  # training and validation may have a thread each

    def close(self) -> None:
        """End the processes. Work that has not begun is dropped."""
        with self._lock:
            self._processes, threads = 0, self._threads
        if threads:
            threads.shutdown(cancel_futures=True)
        while not self._idle.empty():
            self._idle.get().close()

    def stream(self, source: Source, cursor: Cursor, epochs: int) -> Iterator[Step]:
        """Yield the steps from the cursor to the end of the last epoch.

        Raises:
            ValueError: a sample cannot be decoded; the message names it.
        """
        if not self._processes:
            yield from stream(source, cursor, epochs)
            return
        if source.local_features:
            yield from feature_stream.stream(source, cursor, epochs, 0, 1, self._processes, self._prefetch)
            return
        chunks = range(source.plan.chunks)
        read_windows = ((window, read(source, window, chunks)) for window in windows(source.plan, cursor, epochs))
        tables = (
            (window.epoch, step, part) for window, steps in one_ahead(read_windows, "reading") for step, part in steps
        )
        left = (epochs - cursor.epoch) * source.plan.steps - cursor.step
        for epoch, step, table in tables:
            started = time.perf_counter()
            arrays = decode(source, table)
            left -= 1
            is_worth = (time.perf_counter() - started) * left > self._worth_seconds
            yield assemble(source, epoch, step, chunks, arrays)
            if is_worth and source.features is None:  # a store's feature maps are not decoded, only copied
                break
        else:
            return
        yield from one_ahead(self._decoded(source, chunks, tables), "assembling")

    def _decoded(self, source: Source, chunks: range, tables: Iterator[tuple[int, int, pa.Table]]) -> Iterator[Step]:
        """Yield the steps of tables that the processes decode."""
        for epoch, step, blocks in self._ahead(source, tables):
            parts = [block.result() for block in blocks]
            arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            yield assemble(source, epoch, step, chunks, arrays)

    def _ahead(
        self, source: Source, tables: Iterator[tuple[int, int, pa.Table]]
    ) -> Iterator[tuple[int, int, list[Future[Arrays]]]]:
        """Yield the blocks of each step, after those of later steps have been given to the processes."""
        under_way: deque[tuple[int, int, list[Future[Arrays]]]] = deque()
        threads = self._start()
        for epoch, step, table in tables:
            parts = (table.slice(start, BLOCK_ROWS) for start in range(0, max(1, len(table)), BLOCK_ROWS))
            under_way.append((epoch, step, [threads.submit(self._arrays, source, part) for part in parts]))
            behind = sum(len(blocks) for _, _, blocks in under_way) - len(under_way[0][2])
            if len(under_way) > self._prefetch and behind >= BLOCKS_EACH * self._processes:
                yield under_way.popleft()
        yield from under_way

    def _start(self) -> ThreadPoolExecutor:
        """Return a thread for each process, which waits for it. The processes are started if there are none yet."""
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(max(1, self._processes), thread_name_prefix="groundray-decoding")
                for _ in range(self._processes):
                    self._idle.put(WorkerProcess())
            return self._threads

    def _arrays(self, source: Source, table: pa.Table) -> Arrays:
        """Return the arrays of a block, decoded in this process if no other one can."""
        try:
            process = self._idle.get_nowait()
        except queue.Empty:  # all were killed
            return decode(source, table)
        try:
            arrays = process.call(_decode, source.samples, _encoded(table))
        except (EOFError, OSError):
            process.close()
            self._tell(
                "a decoding process was killed, as the system does when memory runs out: those that are left decode, "
                "slower; fewer processes (data.processes) need less memory"
            )
            arrays = None
        else:
            self._idle.put(process)
        return arrays or decode(source, table)  # an error is raised here, with the sample's name


def _encoded(table: pa.Table) -> pa.Buffer:
    """Return a part of a table as bytes. Pickled, it would bring all of the table."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _decode(samples: Samples, encoded: pa.Buffer) -> dict[str, Any] | None:
    """Return the arrays of encoded rows, or None if they cannot be decoded; runs in a decoding process."""
    table = pa.ipc.open_stream(encoded).read_all()
    try:
        return {**samples.decode(table), "row": table["row"].to_numpy()}
    except (OSError, ValueError):
        return None
