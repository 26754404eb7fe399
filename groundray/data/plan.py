"""Which samples make up which batch: a pure function of (seed, epoch, step, chunk) and the shards' row groups.

It never depends on the number of workers, on timing or on failures, so the cursor (epoch, step) is all that it takes
to go on after a kill, on any number of workers.

How an epoch is laid out, for C chunks a global batch and b = batch_size / C samples a chunk:

    row groups     shuffled whole:                      |  g3  | g0 |  g4  | g1 |  g2  |
    chunk spans    cut into C equal spans of rows:      |    chunk 0    |    chunk 1     |
    windows        cut into windows of m steps:         | w0 | w1 | w2 .| w0 | w1 | w2 . |
    steps          rows shuffled inside a window:       step s of chunk c = b rows of it

A rank owns chunks next to each other, so it reads its own spans, a window at a time, and no row that it does not use
(a row group on the edge of a window or span is opened by both sides). Training drops the last, short batch of an
epoch (which samples those are differs between epochs); validation drops nothing, and its order is the shards' own.
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
        group_sizes: rows of each row group, in the data set's row order.
        batch_size: samples of a global batch; a multiple of `chunks`.
        chunks: parts of a global batch.
        window: global samples that are shuffled together (rounded down to whole steps, at least one).
        seed: of the shuffle.
        shuffle: False gives the rows in the data set's own order, each span in turn.
        drop_last: leave out the last, short batch of each epoch.
    """

    group_sizes: tuple[int, ...]
    batch_size: int
    chunks: int = 1
    window: int = 4096
    seed: int = 0
    shuffle: bool = True
    drop_last: bool = True

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.chunks < 1 or self.batch_size % self.chunks:
            raise ValueError(f"expected batch_size a multiple of {self.chunks} chunks, got {self.batch_size}")
        if self.rows == 0:
            raise ValueError("expected at least one row, got an empty data set")
        if self.steps == 0:
            raise ValueError(
                f"expected at least a batch of {self.batch_size} samples, the data set has {self.rows}: "
                "use a smaller batch_size"
            )

    @cached_property
    def rows(self) -> int:
        return sum(self.group_sizes)

    @property
    def steps(self) -> int:
        """Global batches of an epoch."""
        return self.rows // self.batch_size if self.drop_last else -(-self.rows // self.batch_size)

    @property
    def dropped(self) -> int:
        """Samples that an epoch leaves out."""
        return max(0, self.rows - self.steps * self.batch_size)

    @property
    def window_steps(self) -> int:
        """Steps whose samples are shuffled together, and read together."""
        return max(1, self.window // self.batch_size)

    def chunk(self, epoch: int, step: int, chunk: int) -> Rows:
        """The row numbers of a chunk of global batch `step`: batch_size / chunks of them, fewer in a last batch."""
        if not (0 <= step < self.steps and 0 <= chunk < self.chunks):
            raise IndexError(f"expected step < {self.steps}, chunk < {self.chunks}, got step {step}, chunk {chunk}")
        window, offset = divmod(step, self.window_steps)
        size = self.batch_size // self.chunks
        return _window(self, epoch, window, chunk)[offset * size : (offset + 1) * size]

    def batch(self, epoch: int, step: int) -> Rows:
        """The row numbers of a whole global batch, chunk after chunk."""
        return np.concatenate([self.chunk(epoch, step, chunk) for chunk in range(self.chunks)])

    def owned(self, rank: int, world_size: int) -> range:
        """The chunks of each global batch that a rank encodes.

        Raises:
            ValueError: the chunks cannot be shared evenly.
        """
        if self.chunks % world_size:
            raise ValueError(f"expected a number of workers that divides {self.chunks} chunks, got {world_size}")
        share = self.chunks // world_size
        return range(rank * share, (rank + 1) * share)


@dataclass(frozen=True, order=True)
class Cursor:
    """The next global batch of a stage: its epoch, and the step in it."""

    epoch: int = 0
    step: int = 0


def span(rows: int, chunks: int, chunk: int) -> tuple[int, int]:
    """Start and end of a chunk's span of an epoch's row sequence; the first spans take one row more."""
    size, more = divmod(rows, chunks)
    start = chunk * size + min(chunk, more)
    return start, start + size + (chunk < more)


@lru_cache(maxsize=64)
def _window(plan: Plan, epoch: int, window: int, chunk: int) -> Rows:
    """The rows of a chunk's window, in the order in which its steps take them."""
    per_window = plan.window_steps * (plan.batch_size // plan.chunks)
    start, end = span(plan.rows, plan.chunks, chunk)
    first = start + window * per_window
    rows = _sequence(plan, epoch, first, min(first + per_window, end))
    return rows[shuffled(len(rows), plan.seed, _WINDOW_ORDER, epoch, chunk, window)] if plan.shuffle else rows


def _sequence(plan: Plan, epoch: int, first: int, last: int) -> Rows:
    """The rows at places first to last - 1 of the epoch's sequence of shuffled row groups."""
    if last <= first:
        return np.empty(0, dtype=np.int64)
    order, ends, starts = _layout(plan, epoch)
    low, high = np.searchsorted(ends, [first, last - 1], side="right")
    parts = []
    for place in range(low, high + 1):
        group_start = ends[place] - plan.group_sizes[order[place]]
        skip, stop = max(0, first - group_start), min(last, ends[place]) - group_start
        parts.append(np.arange(skip, stop, dtype=np.int64) + starts[order[place]])
    return np.concatenate(parts)


@lru_cache(maxsize=8)
def _layout(plan: Plan, epoch: int) -> tuple[Rows, Rows, Rows]:
    """The epoch's order of row groups, the place at which each of them ends, and each group's first row number."""
    sizes = np.array(plan.group_sizes, dtype=np.int64)
    count = len(sizes)
    order = shuffled(count, plan.seed, _GROUP_ORDER, epoch) if plan.shuffle else np.arange(count)
    return order, np.cumsum(sizes[order]), np.cumsum(sizes) - sizes
