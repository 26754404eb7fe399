"""Pools of processes on this machine, which end with their work and with the process that started them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool


@contextlib.contextmanager
def process_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of processes. At the end of the context, work that has not begun is dropped.

    Ctrl-C is left to this process, which then leaves the context.

    Raises:
        OSError: a process was killed.
    """
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _end_with_parent)
    try:
        with _without_interrupts():
            for _ in range(workers):  # each starts a process, which inherits that SIGINT is blocked
                pool.submit(int)
        yield pool
    except BrokenProcessPool as error:
        raise OSError(
            f"one of {workers} processes was killed, as the system does when memory runs out: {error}; free some "
            "memory, and rerun the same command"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Hold back SIGINT for this thread inside the context, and for good in processes that start meanwhile."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    """End this process when the one that started it has ended: otherwise it would wait for work for ever."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, name="groundray-parent", daemon=True).start()
