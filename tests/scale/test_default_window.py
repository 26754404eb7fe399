"""The default window: an epoch reads little twice, within a bound of memory, at any number of chunks."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic import ROW_BYTES, captions, sizes

from groundray.data.plan import Plan
from groundray.data.window import AMPLIFICATION, CACHED_BYTES, CHUNK_BYTES, WINDOW, default_window, describe_window


def rows_read(plan: Plan, group_sizes: list[int], epoch: int = 0) -> float:
    """Return the rows that an epoch reads as a multiple of the data set's: a count over all windows."""
    ends = np.cumsum(group_sizes)
    read = 0
    for chunk in range(plan.chunks):
        for first in range(0, plan.steps, plan.window_steps):
            steps = range(first, min(first + plan.window_steps, plan.steps))
            rows = np.concatenate([plan.chunk(epoch, step, chunk) for step in steps])
            read += int(np.take(group_sizes, np.unique(np.searchsorted(ends, rows, side="right"))).sum())
    return read / ends[-1]


@pytest.mark.parametrize(("groups", "chunks", "window"), [(300, 4, 4096), (300, 8, 30_000), (40, 8, 10**6)])
def test_amplification_is_what_an_epoch_reads(groups: int, chunks: int, window: int) -> None:
    group_sizes = sizes(groups)
    plan = Plan(group_sizes, 256, chunks, window)
    assert plan.amplification == pytest.approx(rows_read(plan, group_sizes), rel=0.03)


@pytest.mark.parametrize("batch_size", [512, 4096])
@pytest.mark.parametrize("chunks", [1, 8, 64])
def test_an_epoch_reads_at_most_1_3_times_its_data(chunks: int, batch_size: int) -> None:
    dataset = captions(sizes(20_000))
    window = default_window(dataset, batch_size, chunks)
    plan = Plan(dataset.group_sizes, batch_size, chunks, window)
    assert plan.amplification <= AMPLIFICATION
    assert window >= WINDOW
    assert window * ROW_BYTES <= chunks * CHUNK_BYTES
    if window > WINDOW:
        assert Plan(dataset.group_sizes, batch_size, chunks, int(0.9 * window)).amplification > AMPLIFICATION
    if chunks == 64:
        assert Plan(dataset.group_sizes, batch_size, chunks).amplification > 4


def test_the_window_of_few_bytes_is_the_same_for_any_chunks() -> None:
    for chunks in (1, 8, 64):
        assert default_window(captions(sizes(60)), 180, chunks) == WINDOW
        assert default_window(captions(sizes(CACHED_BYTES // (10 * 550), 550), 1), 180, chunks) == WINDOW


def test_the_window_of_large_row_groups_is_bounded_and_the_repair_is_said() -> None:
    dataset = captions([20_000] * 1000)  # 1.2 GB each
    window = default_window(dataset, 256, 8)
    assert window == 8 * CHUNK_BYTES // ROW_BYTES
    line = describe_window(dataset, Plan(dataset.group_sizes, 256, 8, window), workers=4)
    assert "534 MB a worker; an epoch reads 5.50 times its data: data.window 540672 reads it 1.3 times" in line


def test_few_row_groups_for_many_chunks_are_said() -> None:
    dataset = captions(sizes(100))
    plan = Plan(dataset.group_sizes, 256, 64, default_window(dataset, 256, 64))
    assert plan.amplification > AMPLIFICATION
    assert "100 row groups are few for 64 chunks" in describe_window(dataset, plan, 8)
