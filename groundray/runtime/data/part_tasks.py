"""Writes the parts of a source with a task for each on a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

import ray
from ray.exceptions import RayError

from groundray.data.parts import PartTask, TellParts
from groundray.data.processes import attempt

AHEAD = 2  # parts that wait for a CPU; more would only take memory
FEW, MAX_THREADS = 16, 8  # parts; threads of each
RETRIES = 3  # of a task whose process was killed, such as for memory; or whose machine was lost


def write_parts(tasks: Iterator[PartTask], tell: TellParts) -> None:
    """Write parts on the cluster, one for each CPU at a time.

    Args:
        tasks: are taken as they are needed, in this thread.
        tell: is called with the number of items of each whole part, and with 1.

    Raises:
        OSError: a part cannot be read or written.
        ValueError: a part cannot be read.
    """
    remote: Any = _write
    running: list[Any] = []
    first = list(islice(tasks, FEW))  # few parts get the CPUs that nothing else needs
    threads = 1 if len(first) == FEW else max(1, min(MAX_THREADS, _cpus() // max(1, len(first))))
    tasks = chain(first, tasks)
    try:
        while True:
            running += [remote.remote(task, threads) for task in islice(tasks, max(0, _cpus() + AHEAD - len(running)))]
            if not running:
                return
            (done,), running = ray.wait(running)
            try:
                items, error = ray.get(done)
            except RayError as lost:
                raise OSError(
                    f"a part was not written: {' '.join(str(lost).split())}: rerun the same command"
                ) from None
            if error:
                raise error
            tell(items, 1)
    finally:
        for task in running:
            ray.cancel(task, force=True)


def _cpus() -> int:
    """Return the CPUs of the cluster, which may grow meanwhile."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


@ray.remote(num_cpus=1, max_retries=RETRIES)
def _write(task: PartTask, threads: int) -> tuple[int, Exception | None]:
    """Write a part, and return its number of items, or an error as a value."""
    items = 0

    def tell(read: int) -> None:
        nonlocal items
        items += read

    _, error = attempt(task.write, threads, tell)
    return items, error
