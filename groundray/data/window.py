"""The default window: how many samples are shuffled and read together where the settings do not say.

Row groups are read as wholes, and one across the edge of two windows is read for both. An epoch has an edge for each
chunk and window, so the window that reads little twice grows with the number of chunks and the rows of a group.
"""

from __future__ import annotations

from groundray.data.plan import Plan, reread
from groundray.data.schema import Dataset
from groundray.storage.folder import format_bytes

WINDOW = 4096  # samples
AMPLIFICATION = 1.3  # rows that an epoch reads, at most, as a multiple of the data set's
CACHED_BYTES = 2**31  # a smaller data set stays in memory, or costs little to read again
CHUNK_BYTES = 2**28  # of a chunk's part of a window: 2.5 times what row groups of 32 MB need


def default_window(dataset: Dataset, batch_size: int, chunks: int) -> int:
    """Return the number of samples of a window: the smallest of at least `WINDOW` with which an epoch reads at most
    `AMPLIFICATION` times its data.

    It is smaller where a chunk's part of it would exceed `CHUNK_BYTES` of encoded samples, and `WINDOW` for a data set
    of at most `CACHED_BYTES`. It follows from the data set, the batch size and the chunks alone.
    """
    if dataset.bytes <= CACHED_BYTES:
        return WINDOW
    needed = window_needed(dataset, batch_size, chunks) or dataset.rows
    return max(WINDOW, min(needed, chunks * CHUNK_BYTES * dataset.rows // dataset.bytes))


def window_needed(dataset: Dataset, batch_size: int, chunks: int) -> int | None:
    """Return the smallest window with which an epoch reads at most `AMPLIFICATION` times its data; None if none does:
    the chunks have few row groups each."""
    edges = (AMPLIFICATION - 1) / max(reread(dataset.group_sizes), 1e-12)
    windows = int((edges + 1) // chunks)
    return -(-dataset.rows // (batch_size * windows)) * batch_size if windows else None


def describe_window(dataset: Dataset, plan: Plan, workers: int) -> str:
    """Return a line about a window: its samples, their size, and how often an epoch reads the data.

    Args:
        workers: the smallest number of workers, each of which holds its part of a window.
    """
    samples = min(plan.rows, plan.window_steps * plan.batch_size)
    size = format_bytes(samples * dataset.bytes // dataset.rows // max(1, workers))
    line = f"window: {samples:,} samples, {size} a worker; an epoch reads {plan.amplification:.2f} times its data"
    if plan.amplification <= AMPLIFICATION:
        return line
    if dataset.bytes <= CACHED_BYTES:
        return f"{line}, which is small"
    if needed := window_needed(dataset, plan.batch_size, plan.chunks):
        size = format_bytes(needed * dataset.bytes // dataset.rows // max(1, workers))
        return f"{line}: data.window {needed} reads it {AMPLIFICATION} times and needs {size} a worker"
    return (
        f"{line}: {len(dataset.groups):,} row groups are few for {plan.chunks} chunks; fewer chunks "
        "(scaling.chunks) read less"
    )
