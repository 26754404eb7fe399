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

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from groundray.rng import shuffled

Rows = npt.NDArray[np.int64]

_GROUP_ORDER, _WINDOW_ORDER = 1, 2  # keep the two kinds of shuffle independent
_EPOCHS = 2  # whose layouts are kept: a window is read ahead across the end of an epoch


@dataclass(frozen=True, eq=False)
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

    group_sizes: Sequence[int] | Rows
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
        return int(self._sizes.sum())

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

    @property
    def epoch_windows(self) -> int:
        """Number of windows of a chunk in an epoch."""
        return -(-self.steps // self.window_steps)

    @property
    def amplification(self) -> float:
        """Rows that an epoch reads, as a multiple of the data set's, where each chunk has a rank of its own.

        Row groups are read as wholes, and one across the edge of two windows is read for both. Expected value over
        edges at random positions.
        """
        return 1 + (self.chunks * self.epoch_windows - 1) * reread(self._sizes)

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
        return self._window(epoch, window, chunk)[offset * size : (offset + 1) * size]

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

    @cached_property
    def _sizes(self) -> Rows:
        return np.asarray(self.group_sizes, dtype=np.int64)

    @cached_property
    def _starts(self) -> Rows:
        """First row of each row group."""
        return np.cumsum(self._sizes) - self._sizes

    @cached_property
    def _window(self) -> Callable[[int, int, int], Rows]:
        """`_window_rows`, with the last windows of each chunk kept: one that is used, and the next, which is read."""
        return lru_cache(2 * self.chunks)(self._window_rows)

    @cached_property
    def _layout(self) -> Callable[[int], tuple[Rows, Rows]]:
        return lru_cache(_EPOCHS)(self._epoch_layout)

    def _window_rows(self, epoch: int, window: int, chunk: int) -> Rows:
        """Return the rows of a chunk's window, in the order of its steps."""
        per_window = self.window_steps * self.chunk_size(chunk)
        start, end = self.span(chunk)
        first = start + window * per_window
        rows = self._sequence(epoch, first, min(first + per_window, end))
        return rows[shuffled(len(rows), self.seed, _WINDOW_ORDER, epoch, chunk, window)] if self.shuffle else rows

    def _sequence(self, epoch: int, first: int, last: int) -> Rows:
        """Return the rows at positions first to last - 1 of the epoch's sequence of shuffled row groups."""
        if last <= first:
            return np.empty(0, dtype=np.int64)
        order, ends = self._layout(epoch)
        low, high = np.searchsorted(ends, [first, last - 1], side="right")
        groups = order[low : high + 1]
        counts, starts = self._sizes[groups], self._starts[groups]
        skipped = first - (ends[low] - counts[0])
        counts[0] -= skipped
        starts[0] += skipped
        counts[-1] -= ends[high] - last
        return np.arange(last - first) + np.repeat(starts - (np.cumsum(counts) - counts), counts)

    def _epoch_layout(self, epoch: int) -> tuple[Rows, Rows]:
        """Return the epoch's order of row groups, and the position where each of them ends."""
        count = len(self._sizes)
        order = shuffled(count, self.seed, _GROUP_ORDER, epoch) if self.shuffle else np.arange(count)
        return order, np.cumsum(self._sizes[order])

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields without the caches, which are large and cannot be pickled."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, order=True)
class Cursor:
    """The next global batch of a stage: its epoch, and its step within the epoch."""

    epoch: int = 0
    step: int = 0


def reread(group_sizes: Rows) -> float:
    """Return the expected fraction of a data set that is read again because of one edge at a random row.

    The row group across the edge is read twice; larger groups have more edges.
    """
    total = float(group_sizes.sum())
    return float(((group_sizes - 1.0) * group_sizes).sum()) / total**2


def _part(count: int, parts: int, part: int) -> tuple[int, int]:
    """Return start and end of a part of `count` things. The remainder goes to the first parts, one each."""
    size, remainder = divmod(count, parts)
    start = part * size + min(part, remainder)
    return start, start + size + (part < remainder)
