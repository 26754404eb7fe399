"""The plan: which samples make up which batch, a pure function of (seed, epoch, step, chunk) and the row groups.

It does not depend on the number of workers, on timing or on failures, so a run resumes from its cursor (epoch, step)
alone, on any number of workers.

Layout of an epoch, for C chunks in a global batch, of which chunk c has b(c) samples:

    row groups     shuffled as wholes:                  |  g3  | g0 |  g4  | g1 |  g2  |
    chunk spans    split into C spans of rows:          |    chunk 0    |    chunk 1     |
    windows        split into windows of m steps:       | w0 | w1 | w2 .| w0 | w1 | w2 . |
    steps          rows shuffled within a window:       step s of chunk c = b(c) rows of it

The b(c) add up to the batch size and differ by one at most, the larger ones first: 8 chunks of 180 samples are four of
23 and four of 22. Spans are in the proportion of the b(c), up to the rows of the last, short batch.

A rank owns adjacent chunks, so it reads only its own spans, a window at a time (a row group on the edge of a window or
span is read by both sides). Training drops the last, short batch of an epoch, with other samples in each epoch;
validation drops nothing and keeps the order of the shards.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from groundray.rng import shuffled

Rows = npt.NDArray[np.int64]

_GROUP_ORDER, _WINDOW_ORDER = 1, 2  # keep the two kinds of shuffle independent


@dataclass(frozen=True)
class Plan:
    """The order of a data set's rows over epochs, steps and chunks.

    Attributes:
        group_sizes: number of rows of each row group, in the data set's order.
        batch_size: number of samples of a global batch; at least `chunks`.
        chunks: number of chunks of a global batch.
        window: number of samples, over all chunks, that are shuffled together; rounded down to whole steps, at least
            one.
        seed: seed of the shuffle.
        shuffle: shuffle the rows; False keeps the data set's order within each span.
        drop_last: drop the last, short batch of each epoch.
    """

    group_sizes: tuple[int, ...]
    batch_size: int
    chunks: int = 1
    window: int = 4096
    seed: int = 0
    shuffle: bool = True
    drop_last: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.chunks <= self.batch_size:
            raise ValueError(
                f"expected a batch_size of at least {self.chunks}, a sample a chunk, got {self.batch_size}"
            )
        if self.rows == 0:
            raise ValueError("expected at least one row, got an empty data set")
        if self.steps == 0:
            raise ValueError(
                f"expected at least one batch of {self.batch_size} samples, got a data set of {self.rows}: "
                "use a smaller batch_size"
            )

    @cached_property
    def rows(self) -> int:
        return sum(self.group_sizes)

    @property
    def steps(self) -> int:
        """Number of global batches in an epoch."""
        return self.rows // self.batch_size if self.drop_last else -(-self.rows // self.batch_size)

    @property
    def dropped(self) -> int:
        """Number of samples that an epoch drops."""
        return max(0, self.rows - self.steps * self.batch_size)

    @property
    def window_steps(self) -> int:
        """Number of steps whose samples are shuffled and read together."""
        return max(1, self.window // self.batch_size)

    def chunk_size(self, chunk: int) -> int:
        """Return the number of samples of a chunk in a whole batch."""
        start, end = _part(self.batch_size, self.chunks, chunk)
        return end - start

    def span(self, chunk: int) -> tuple[int, int]:
        """Return start and end of a chunk's span in an epoch's row sequence.

        It has the rows of the chunk in all whole batches, and its part of the remaining rows.
        """
        whole, remaining = divmod(self.rows, self.batch_size)
        first, last = _part(self.batch_size, self.chunks, chunk)
        first_remaining, last_remaining = _part(remaining, self.chunks, chunk)
        return whole * first + first_remaining, whole * last + last_remaining

    def chunk(self, epoch: int, step: int, chunk: int) -> Rows:
        """Return the row numbers of a chunk of global batch `step`: `chunk_size`, or fewer in the last batch."""
        if not (0 <= step < self.steps and 0 <= chunk < self.chunks):
            raise IndexError(f"expected step < {self.steps}, chunk < {self.chunks}, got step {step}, chunk {chunk}")
        window, offset = divmod(step, self.window_steps)
        size = self.chunk_size(chunk)
        return _window(self, epoch, window, chunk)[offset * size : (offset + 1) * size]

    def batch(self, epoch: int, step: int) -> Rows:
        """Return the row numbers of a whole global batch, chunk by chunk."""
        return np.concatenate([self.chunk(epoch, step, chunk) for chunk in range(self.chunks)])

    def owned(self, rank: int, world_size: int) -> range:
        """Return the chunks of each global batch that a rank encodes.

        Raises:
            ValueError: `world_size` does not divide the number of chunks.
        """
        if self.chunks % world_size:
            raise ValueError(f"expected a number of workers that divides {self.chunks} chunks, got {world_size}")
        per_rank = self.chunks // world_size
        return range(rank * per_rank, (rank + 1) * per_rank)


@dataclass(frozen=True, order=True)
class Cursor:
    """The next global batch of a stage: its epoch, and its step within the epoch."""

    epoch: int = 0
    step: int = 0


def _part(count: int, parts: int, part: int) -> tuple[int, int]:
    """Return start and end of a part of `count` things. The remainder goes to the first parts, one each."""
    size, remainder = divmod(count, parts)
    start = part * size + min(part, remainder)
    return start, start + size + (part < remainder)


@lru_cache(maxsize=64)
def _window(plan: Plan, epoch: int, window: int, chunk: int) -> Rows:
    """Return the rows of a chunk's window, in the order of its steps."""
    per_window = plan.window_steps * plan.chunk_size(chunk)
    start, end = plan.span(chunk)
    first = start + window * per_window
    rows = _sequence(plan, epoch, first, min(first + per_window, end))
    return rows[shuffled(len(rows), plan.seed, _WINDOW_ORDER, epoch, chunk, window)] if plan.shuffle else rows


def _sequence(plan: Plan, epoch: int, first: int, last: int) -> Rows:
    """Return the rows at positions first to last - 1 of the epoch's sequence of shuffled row groups."""
    if last <= first:
        return np.empty(0, dtype=np.int64)
    order, ends, starts = _layout(plan, epoch)
    low, high = np.searchsorted(ends, [first, last - 1], side="right")
    parts = []
    for position in range(low, high + 1):
        group_start = ends[position] - plan.group_sizes[order[position]]
        skip, stop = max(0, first - group_start), min(last, ends[position]) - group_start
        parts.append(np.arange(skip, stop, dtype=np.int64) + starts[order[position]])
    return np.concatenate(parts)


@lru_cache(maxsize=8)
def _layout(plan: Plan, epoch: int) -> tuple[Rows, Rows, Rows]:
    """Return the epoch's order of row groups, the position where each of them ends, and each group's first row."""
    sizes = np.array(plan.group_sizes, dtype=np.int64)
    count = len(sizes)
    order = shuffled(count, plan.seed, _GROUP_ORDER, epoch) if plan.shuffle else np.arange(count)
    return order, np.cumsum(sizes[order]), np.cumsum(sizes) - sizes
