"""Yields the same steps as `data.stream.stream`; Ray Data reads and decodes on the cluster's CPUs.

Each rank builds its own datasets from the plan. Their items are windows of steps: one task reads the row groups of a
window, other tasks decode its rows, and blocks keep their order. A rank reads only what it uses, and resumes at the
cursor, independent of what other ranks have consumed.

Ray Data (2.60) takes all items of a dataset before its first task, 1.2 ms and a task's memory for each. So the windows
are cut into segments, each a dataset of its own, and the first step comes after the same time for any number of epochs.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple

import ray
from ray.data import DataContext, ExecutionResources, TaskPoolStrategy

from groundray.data.plan import Cursor
from groundray.data.stream import Source, Step, Window, assemble, empty_arrays, rows_of, windows
from groundray.runtime import compat
from groundray.runtime.data.scheduling import Scheduling, quiet_context
from groundray.runtime.data.stream_tasks import DecodeRows, ReadWindows, SentSource
from groundray.runtime.train.resources import DataCpuBudget

# A block is the input of one decoding task and the unit in which a rank receives rows. Small blocks bring the first
# batch soon and keep memory low; large blocks hide the pause of up to 0.1 s before the next task, in which Ray Data
# (2.60) waits for all running tasks. Photos of 640 x 480 on two CPUs, samples/s and seconds to the first batch: 16 MB
# 510 and 2.8, 4 MB 330 and 1.9, 32 MB 480 and 3.2.
BLOCK_BYTES = 16 * 2**20
CPUS_PER_READER = 4  # decoding CPUs that one reading task keeps busy
# Decoding tasks a whole CPU, rounded up. After a task its place stays empty until Ray Data looks again: two tasks that
# only waited were busy 77% of the time (.73 to .78 in four rounds), three as much as two that are always busy.
DECODERS_PER_CPU = 1.25
VALIDATION_FRACTION = 1 / 16  # of a rank's CPUs, which training leaves free
SEGMENT_WINDOWS = 256  # a million samples with the default window
_STARTING = threading.Lock()  # Ray Data's settings are those of the process, and training and validation have threads
AHEAD_SAMPLES = 8192  # of a segment's end, at which the next one starts: a start takes a second or two


def stream(
    source: Source,
    cursor: Cursor,
    epochs: int,
    rank: int,
    world_size: int,
    cpu_budget: DataCpuBudget,
    prefetch: int,
) -> Iterator[Step]:
    """Yield a rank's steps from the cursor to the end of the last epoch.

    Args:
        cpu_budget: the CPUs for this rank's reading and decoding.
        prefetch: number of batches that are fetched ahead.
    """
    plan, chunks = source.plan, source.plan.owned(rank, world_size)
    remaining = windows(plan, cursor, epochs)
    sent = SentSource(ray.put(source))

    def next_segment() -> _Segment | None:
        ahead = list(itertools.islice(remaining, SEGMENT_WINDOWS))
        return _Segment.start(sent, chunks, ahead, cpu_budget, prefetch) if ahead else None

    segment = next_segment()
    while segment:
        following: _Segment | None = None
        left = sum(window.last - window.first for window in segment.windows)
        for window in segment.windows:
            for step in range(window.first, window.last):
                # a rank may own none of the last samples of a validation set
                expected = len(rows_of(plan, window.epoch, step, chunks))
                arrays = segment.next_arrays() if expected else empty_arrays(source)
                yield assemble(source, window.epoch, step, chunks, arrays)
                left -= 1
                # two datasets whose tasks wait for the same CPUs could wait for each other
                if not following and left * plan.batch_size <= AHEAD_SAMPLES and segment.is_produced():
                    following = next_segment()
        segment = following or next_segment()


@dataclass(frozen=True)
class _Segment:
    """Consecutive windows as a dataset, which a thread has started to execute.

    Attributes:
        batches: the decoded rows of each step.
        first: the first of them, or None if there are no rows.
    """

    windows: list[Window]
    dataset: ray.data.Dataset
    batches: Iterator[Any]
    first: deque[Future[Any]]

    @staticmethod
    def start(
        sent: SentSource, chunks: range, ahead: list[Window], cpu_budget: DataCpuBudget, prefetch: int
    ) -> _Segment:
        """Return a segment whose execution has begun. It does not wait for the first batch."""
        plan = sent.source.plan
        sizes = task_sizes(cpu_budget, training=plan.shuffle)
        with _STARTING, DataContext.current(_context(sizes.cpus)):
            dataset = (
                ray.data.from_items([vars(window) for window in ahead], override_num_blocks=len(ahead))
                .map_batches(
                    ReadWindows(sent, chunks),
                    batch_size=1,
                    batch_format="pyarrow",
                    num_cpus=sizes.reading,
                    # by default Ray Data reserves a quarter of the CPUs for reading, which decoding then lacks
                    compute=TaskPoolStrategy(size=sizes.readers),
                )
                .map_batches(
                    DecodeRows(sent),
                    batch_size=None,
                    batch_format="pyarrow",
                    num_cpus=sizes.decoding,
                    compute=TaskPoolStrategy(size=sizes.decoders),
                )
            )
            rows = sum(plan.chunk_size(chunk) for chunk in chunks)
            batches = iter(dataset.iter_batches(batch_size=rows, batch_format="numpy", prefetch_batches=prefetch))
        first: Future[Any] = Future()

        def fetch() -> None:
            try:
                first.set_result(next(batches, None))
            except BaseException as error:  # noqa: BLE001  raised where the batch is used
                first.set_exception(error)

        threading.Thread(target=fetch, name="groundray-segment", daemon=True).start()
        return _Segment(ahead, dataset, batches, deque([first]))

    def next_arrays(self) -> Any:
        """Return the decoded rows of the next step."""
        return self.first.popleft().result() if self.first else next(self.batches)

    def is_produced(self) -> bool:
        """Return True if no task of the segment is left to run."""
        return not self.first and compat.has_produced_all(self.dataset)


class TaskSizes(NamedTuple):
    """The division of a rank's CPUs between tasks that read and tasks that decode.

    Attributes:
        cpus: limit for all tasks together.
        readers: number of concurrent reading tasks.
        reading: CPUs of a reading task.
        decoders: maximum number of concurrent decoding tasks; None for as many as fit.
        decoding: CPUs of a decoding task.
    """

    cpus: float
    readers: int
    reading: float
    decoders: int | None
    decoding: float


def task_sizes(cpu_budget: DataCpuBudget, training: bool = True) -> TaskSizes:
    """Return the task sizes of a rank's stream. They are chosen so that no task waits forever for CPUs.

    In training there are `DECODERS_PER_CPU` decoding tasks for each whole CPU beside those of the readers, which run as
    long as their windows. A decoding task fits on the node with most free CPUs even if the readers of all ranks run
    there.

    A validation starts while the training stream is open and not consumed. Once Ray Data's part of the object store is
    full, that stream blocks and keeps its CPUs. So validation tasks use only `VALIDATION_FRACTION` of the CPUs, which
    training leaves free.
    """
    whole = int(cpu_budget.cpus)
    readers, decoders = max(1, whole // CPUS_PER_READER), max(1, whole)
    if not training:
        cpus = VALIDATION_FRACTION * min(cpu_budget.cpus, cpu_budget.largest / cpu_budget.ranks)
        each = cpus / (readers + decoders)
        return TaskSizes(cpus, readers, each, decoders, each)
    cpus, largest = (1 - VALIDATION_FRACTION) * cpu_budget.cpus, (1 - VALIDATION_FRACTION) * cpu_budget.largest
    reading = min(0.25, cpus / 4, largest / (2 * cpu_budget.ranks * readers))
    beside = largest - cpu_budget.ranks * readers * reading
    tasks = max(1, math.ceil(DECODERS_PER_CPU * whole))
    each = (1 - 1e-6) * (cpus - readers * reading) / tasks  # less, so that rounded sums of them stay below the limit
    return TaskSizes(cpus, readers, reading, None, min(1.0, beside, each))


def _context(cpus: float) -> DataContext:
    """Return Ray Data's settings for one rank: ordered blocks, no output, and a limit on CPUs."""
    context = quiet_context()
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ExecutionResources.for_limits(cpu=cpus)
    context.target_max_block_size = BLOCK_BYTES
    compat.set_execution_callbacks(context, [Scheduling.with_cpus(cpus)])
    return context
