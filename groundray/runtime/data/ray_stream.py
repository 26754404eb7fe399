"""The same stream as `data.stream.stream`, with Ray Data reading and decoding on the cluster's CPUs.

Each rank makes a dataset of its own from the plan: its items are windows of steps, one task reads a window's row
groups, others decode what that task brings, and blocks keep their order. So a rank reads what it uses and no more,
and where it goes on follows from the cursor, not from what another rank has consumed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy.typing as npt
import pyarrow as pa
import ray
from ray.data import DataContext, ExecutionResources, TaskPoolStrategy

from groundray.data.plan import Cursor
from groundray.data.stream import Source, Step, Window, assemble, decode, empty_arrays, read, rows_of, windows
from groundray.runtime import compat
from groundray.runtime.train.resources import DataCpuBudget

# A block is what one decoding task takes and what a rank receives at a time: small enough that the first batch
# comes soon and that ranks stay within their memory, large enough that the time to the next task is lost in it. That is
# up to 0.1 s, for which Ray Data (2.60) waits for all tasks that are under way. Photos of 640 x 480 on two CPUs:
# 510 samples/s, and the first batch after 2.8 s; in blocks of 4 MB 330, after 1.9 s; in 32 MB 480, after 3.2 s.
BLOCK_BYTES = 16 * 2**20
REST_SECONDS = 0.05
CPUS_A_READER = 4  # decoding CPUs that one reading task keeps busy
VALIDATING = 1 / 16  # of a rank's CPUs, which training leaves free


class SchedulingPause(compat.ExecutionCallback):
    """Keeps the steps of Ray Data's scheduling loop apart, where the loop has not waited for a task itself.

    The loop runs on a thread of the training worker, and where everything is read ahead and nothing is under way it
    spins (Ray 2.60): measured, it held the interpreter 80% of the time and halved a worker's samples a second.
    """

    def __init__(self) -> None:
        self._last = 0.0

    def on_execution_step(self, executor: Any) -> None:
        time.sleep(max(0.0, self._last + REST_SECONDS - time.monotonic()))
        self._last = time.monotonic()


@dataclass(frozen=True)
class ReadWindows:
    """Reads windows: a task of its own for each, which yields the rows of one step after the other."""

    source: Source
    chunks: range

    def __call__(self, items: pa.Table) -> Iterator[pa.Table]:
        for item in items.to_pylist():
            window = Window(item["epoch"], item["first"], item["last"])
            table = read(self.source, window, self.chunks)
            start = 0
            for step in range(window.first, window.last):
                size = len(rows_of(self.source.plan, window.epoch, step, self.chunks))
                yield table.slice(start, size)
                start += size


@dataclass(frozen=True)
class DecodeRows:
    """Decodes the rows of a block."""

    source: Source

    def __call__(self, table: pa.Table) -> dict[str, npt.NDArray[Any]]:
        return decode(self.source, table)


def stream(
    source: Source,
    cursor: Cursor,
    epochs: int,
    rank: int,
    world_size: int,
    cpu_budget: DataCpuBudget,
    prefetch: int,
) -> Iterator[Step]:
    """A rank's steps from the cursor to the end of the last epoch.

    Args:
        cpu_budget: the CPUs that this rank's reading and decoding may take.
        prefetch: batches that wait ready.
    """
    chunks = source.plan.owned(rank, world_size)
    ahead = list(windows(source.plan, cursor, epochs))
    if not ahead:
        return
    items = [vars(window) for window in ahead]
    wanted = task_sizes(cpu_budget, trains=source.plan.shuffle)
    with DataContext.current(_context(wanted.cpus)):
        dataset = (
            ray.data.from_items(items, override_num_blocks=len(items))
            .map_batches(
                ReadWindows(source, chunks),
                batch_size=1,
                batch_format="pyarrow",
                num_cpus=wanted.reading,
                # else Ray Data keeps a quarter of the CPUs for tasks that read, and decoding goes without
                compute=TaskPoolStrategy(size=wanted.readers),
            )
            .map_batches(
                DecodeRows(source),
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=wanted.decoding,
                compute=TaskPoolStrategy(size=wanted.decoders),
            )
        )
        rows = len(chunks) * source.plan.batch_size // source.plan.chunks
        arriving: Iterator[Any] = iter(
            dataset.iter_batches(batch_size=rows, batch_format="numpy", prefetch_batches=prefetch)
        )
    for window in ahead:
        for step in range(window.first, window.last):
            # a rank may own none of the last samples of a validation set
            expected = len(rows_of(source.plan, window.epoch, step, chunks))
            arrays = next(arriving) if expected else empty_arrays(source)
            yield assemble(source, window.epoch, step, chunks, arrays)


class TaskSizes(NamedTuple):
    """What a stream takes of a rank's CPUs: at most so many, in tasks that read and tasks that decode. There are no
    more `decoders` at a time than that; without a number, as many as the CPUs hold."""

    cpus: float
    readers: int
    reading: float
    decoders: int | None
    decoding: float


def task_sizes(cpu_budget: DataCpuBudget, trains: bool = True) -> TaskSizes:
    """The tasks of a rank's stream.

    Of training, as many decode as there are whole CPUs beside those that read, which last as long as their windows. One
    fits on the node with most room even where all ranks' reading happens there: else it might wait for ever.

    A validation begins while the stream of training is open and nobody takes what it brings. As soon as Ray Data's part
    of the object store is full, that stream stands still with its CPUs in hand, so that a validation that needed one of
    them would wait for ever. Its tasks, as many, take next to none, which training leaves free.
    """
    readers, decoders = max(1, int(cpu_budget.cpus) // CPUS_A_READER), max(1, int(cpu_budget.cpus))
    if not trains:
        cpus = VALIDATING * min(cpu_budget.cpus, cpu_budget.largest / cpu_budget.ranks)
        each = cpus / (readers + decoders)
        return TaskSizes(cpus, readers, each, decoders, each)
    cpus, largest = (1 - VALIDATING) * cpu_budget.cpus, (1 - VALIDATING) * cpu_budget.largest
    reading = min(0.25, cpus / 4, largest / (2 * cpu_budget.ranks * readers))
    beside = largest - cpu_budget.ranks * readers * reading
    return TaskSizes(cpus, readers, reading, None, min(1.0, beside, (cpus - readers * reading) / decoders))


def _context(cpus: float) -> DataContext:
    """Ray Data's settings for one rank: ordered, quiet, and within its share of the CPUs."""
    context = quiet_context()
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ExecutionResources.for_limits(cpu=cpus)
    context.target_max_block_size = BLOCK_BYTES
    compat.set_execution_callbacks(context, [SchedulingPause])
    return context


def quiet_context() -> DataContext:
    """Ray Data's settings, without its own progress bars."""
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True  # else all that is told of an error is that there was one
    return context
