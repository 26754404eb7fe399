"""Processes on this machine, which end with their work and with the process that started them."""

from __future__ import annotations

import contextlib
import multiprocessing
import queue
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any

END_SECONDS = 5.0  # for a process to end by itself
_STARTING = threading.Lock()  # of processes without a script, by one thread at a time


class WorkerProcess:
    """A process that computes for this one, one call at a time. Ctrl-C is left to this process.

    Unlike the processes of Python's pool, which share two pipes, it has a pipe of its own: one that is killed halfway
    through its result is an error at once. A pool's reader would wait for the rest.

    Args:
        with_script: import the script of this process, where what is called is defined there. Python runs it again, as
            far as it is not below `if __name__ == "__main__"`: one that trains would train in each process.
    """

    def __init__(self, with_script: bool = False) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), name="groundray-worker", daemon=True)
        with _without_interrupts(), contextlib.nullcontext() if with_script else _without_script():
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


def call_in_processes(
    function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], workers: int
) -> Generator[Any, None, None]:
    """Yield what a function of a module returns for each of many arguments, in their order.

    When the caller stops early, the processes are killed.

    Raises:
        OSError: a process was killed, or the function has raised one.
        ValueError: the function has raised one.
    """
    workers = min(workers, len(calls))
    processes = [WorkerProcess(is_of_script(function)) for _ in range(workers)]
    idle: queue.SimpleQueue[WorkerProcess] = queue.SimpleQueue()
    for process in processes:
        idle.put(process)

    def call(arguments: tuple[Any, ...]) -> Any:
        process = idle.get()
        try:
            return process.call(attempt, function, *arguments)
        except (EOFError, OSError):
            return None, OSError(
                f"one of {workers} processes was killed, as the system does when memory runs out: free some memory, "
                "and rerun the same command"
            )
        finally:
            idle.put(process)

    threads = ThreadPoolExecutor(max(1, workers), thread_name_prefix="groundray-processes")
    try:
        for result, error in threads.map(call, calls):
            if error:
                raise error
            yield result
    finally:
        for process in processes:
            process.kill()
        threads.shutdown(cancel_futures=True)
        for process in processes:
            process.close()


def is_of_script(thing: Any) -> bool:
    """Return True if a function or class is defined in the script that runs, and in no module."""
    return getattr(thing, "__module__", None) == "__main__"


def attempt(function: Callable[..., Any], *arguments: Any) -> tuple[Any, Exception | None]:
    """Return what a function returns, or the OSError or ValueError that it raises, in a form that can be pickled."""
    try:
        return function(*arguments), None
    except OSError as error:
        return None, OSError(str(error))
    except ValueError as error:
        return None, ValueError(str(error))


def _serve(connection: Connection) -> None:
    """Answer calls until the other end of the pipe is closed, as it is when its process has ended."""
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            function, arguments, tells = connection.recv()
            tell = (lambda value: connection.send((False, value)),) if tells else ()
            connection.send((True, function(*arguments, *tell)))


@contextlib.contextmanager
def _without_script() -> Iterator[None]:
    """Have processes that start inside the context not import the script of this one."""
    with _STARTING:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Hold back SIGINT for this thread inside the context, and for good in processes that start meanwhile."""
    resource_tracker.ensure_running()  # the first process starts it, and its start lets signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
