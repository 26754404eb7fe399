"""Writes parts with processes of this machine; `runtime/data/part_tasks.py` does the same on a cluster."""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from typing import NamedTuple

from groundray.data.parts import PartTask, Tell, TellParts
from groundray.data.processes import WorkerProcess, attempt, is_of_script
from groundray.data.sources.protocol import ITEMS_PER_PART

WORTH_SAMPLES = 2000  # a process takes about two seconds to start
MAX_THREADS = 4  # of a process beside others: for the end, when some of them have no part left


def write_parts(tasks: Iterator[PartTask], workers: int, tell: TellParts) -> None:
    """Write parts with at most `workers` processes; a single part, or few samples, with as many threads of this one.

    Args:
        tasks: are taken as they are needed, in this thread.
        tell: is called in this thread, with new numbers of items that were read, and of parts that became whole.

    Raises:
        OSError: the processes were killed, or a part cannot be read or written.
        ValueError: a part cannot be read.
    """
    first: list[PartTask] = []
    for task in tasks:
        first.append(task)
        if len(first) >= workers and _are_worth_processes(first):
            break
    if len(first) < 2 or not _are_worth_processes(first):
        for task in chain(first, tasks):  # one worker has more
            task.write(workers, lambda read: tell(read, 0))
            tell(0, 1)
        return
    count = min(workers, len(first))
    threads = max(-(-workers // count), min(workers, MAX_THREADS))
    with _Processes(count, threads, any(is_of_script(type(task.part)) for task in first)) as processes:
        processes.write(chain(first, tasks), tell)


def _are_worth_processes(tasks: Sequence[PartTask]) -> bool:
    """Return True for parts that take longer than processes take to start, as far as it is known."""
    samples = [task.samples for task in tasks if task.samples is not None]
    return len(samples) < len(tasks) or sum(min(count, ITEMS_PER_PART) for count in samples) >= WORTH_SAMPLES


class _Killed(Exception):
    """A process has ended before its part was whole."""


class _Event(NamedTuple):
    """A process has read items of its part, or has ended with it.

    Attributes:
        read: number of items; None at the end of the part.
        error: why the part is not whole.
    """

    process: WorkerProcess
    task: PartTask
    read: int | None = None
    error: Exception | None = None


class _Processes:
    """Processes that write parts, with a thread for each that waits for it."""

    def __init__(self, count: int, threads: int, with_script: bool):
        self._count, self._threads = count, threads
        self._waiting = ThreadPoolExecutor(count, thread_name_prefix="groundray-parts")
        self._processes = [WorkerProcess(with_script) for _ in range(count)]
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()

    def __enter__(self) -> _Processes:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
        self._waiting.shutdown(cancel_futures=True)
        for process in self._processes:
            process.close()

    def write(self, tasks: Iterator[PartTask], tell: TellParts) -> None:
        """Write all parts. The one after those that are being written is made ahead.

        The part of a process that was killed is written by another one, so that fewer share the memory.
        """
        ahead: deque[PartTask] = deque()
        idle, busy = list(self._processes), 0
        while True:
            while idle and (ahead or ahead.extend(islice(tasks, 1)) or ahead):
                self._waiting.submit(self._write, idle.pop(), ahead.popleft())
                busy += 1
            if not busy:
                return
            if not ahead:
                ahead.extend(islice(tasks, 1))
            event = self._events.get()
            if event.read is not None:
                tell(event.read, 0)
                continue
            busy -= 1
            if isinstance(event.error, _Killed):
                ahead.appendleft(event.task)
                if not busy and not idle:
                    raise OSError(
                        f"all of {self._count} processes were killed, as the system does when memory runs out: free "
                        "some memory, and rerun the same command"
                    )
            elif event.error:
                raise event.error
            else:
                tell(0, 1)
                idle.append(event.process)

    def _write(self, process: WorkerProcess, task: PartTask) -> None:
        """Write a part in a process; runs in a thread."""
        try:
            error = process.call(
                _write, task, self._threads, tell=lambda read: self._events.put(_Event(process, task, read))
            )
        except (EOFError, OSError):
            error = _Killed()
        self._events.put(_Event(process, task, None, error))


def _write(task: PartTask, threads: int, tell: Tell) -> Exception | None:
    """Write a part in this process, and return an error as a value."""
    return attempt(task.write, threads, tell)[1]
