"""Processes on this machine, which end with their work and with the process that started them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any

END_SECONDS = 5.0  # for a process to end by itself


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


class WorkerProcess:
    """A process that computes for this one, one call at a time. Ctrl-C is left to this process.

    Unlike a pool (`process_pool`), whose processes share two pipes, it has a pipe of its own: results may be large, and
    one that is killed halfway through its result is an error at once. A pool's reader would wait for the rest.
    """

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), name="groundray-worker", daemon=True)
        with _without_interrupts():
            self._process.start()
        theirs.close()  # so that the end of the process is the end of the pipe

    def call(self, function: Callable[..., Any], *arguments: Any, tell: Callable[[Any], None] | None = None) -> Any:
        """Return what a function of a module returns.

        Args:
            tell: is called here with what the function tells while it runs. The function then takes another `tell` as
                its last argument.

        Raises:
            EOFError, OSError: the process has ended: it was killed, or the function has raised an error.
        """
        self._connection.send((function, arguments, tell is not None))
        while True:
            is_result, value = self._connection.recv()
            if is_result:
                return value
            if tell:
                tell(value)

    def kill(self) -> None:
        """Kill the process. A thread that waits for its result gets an error at once."""
        self._process.kill()

    def close(self) -> None:
        """End the process, at the latest after END_SECONDS."""
        self._connection.close()
        self._process.join(END_SECONDS)
        self._process.kill()
        self._process.join()
        self._process.close()


def _serve(connection: Connection) -> None:
    """Answer calls until the other end of the pipe is closed, as it is when its process has ended."""
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            function, arguments, tells = connection.recv()
            tell = (lambda value: connection.send((False, value)),) if tells else ()
            connection.send((True, function(*arguments, *tell)))


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Hold back SIGINT for this thread inside the context, and for good in processes that start meanwhile."""
    resource_tracker.ensure_running()  # the first process starts it, and its start lets signals through again
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
