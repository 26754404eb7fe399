"""Streams from shards to batches in the order of the plan, in one process (`runtime/data/ray_stream.py`: on Ray).

Both streams consist of the same three functions, so that they give the same batches:

    read      a window of the plan      -> a table of encoded samples for each step
    decode    some rows of that table   -> arrays
    assemble  the arrays of a step      -> its chunks
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from groundray.data.image_inputs import stacked
from groundray.data.local_features import LocalFeatures
from groundray.data.plan import Cursor, Plan
from groundray.data.row_groups import read_parts
from groundray.data.schema import Dataset, arrow_schema

if TYPE_CHECKING:
    import torch

Arrays = Mapping[str, npt.NDArray[Any]]


class Samples(Protocol):
    """Turns rows of one kind of data set into batches."""

    @property
    def kind(self) -> str:
        """The kind of data set, a key of `schema.KINDS`."""
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that are read."""
        ...

    def draw(self, table: pa.Table, epoch: int) -> pa.Table:
        """Return the table with the random choices of each sample (its caption), fixed by (seed, epoch, sample id)."""
        ...

    def decode(self, table: pa.Table) -> Arrays:
        """Return arrays of the drawn rows, among them `id`, each with one entry per row."""
        ...

    def collate(self, arrays: Arrays) -> Any:
        """Return the batch of some rows (possibly none)."""
        ...


@dataclass(frozen=True)
class Source:
    """The input of a stage: a data set, how its rows become batches, and their order.

    Attributes:
        features: a frozen trunk's feature maps of the same rows, or keys of them, read instead of the images.
        queries: what frozen streams make of the captions of the same rows.
    """

    dataset: Dataset
    samples: Samples
    plan: Plan
    features: Dataset | None = None
    queries: Dataset | None = None

    @cached_property
    def local_features(self) -> LocalFeatures | None:
        """The features, if their shards are on this machine: `decode` reads them, not `read`."""
        return LocalFeatures(self.features) if self.features and self.features.folder.local else None

    @cached_property
    def local_queries(self) -> LocalFeatures | None:
        """The queries, if their shards are on this machine: `decode` reads them, not `read`."""
        return LocalFeatures(self.queries) if self.queries and self.queries.folder.local else None

    def with_image_inputs(self, inputs: Any, features: Dataset | None = None) -> Source:
        """Return the source with other image inputs (`image_inputs.py`), and the feature maps that they read, if any.

        Its samples must have image inputs, as those of all kinds with images have.
        """
        samples: Any = self.samples
        return replace(self, samples=replace(samples, image_inputs=inputs), features=features)


@dataclass(frozen=True)
class Window:
    """Steps `first` to `last` - 1 of an epoch, which are read together."""

    epoch: int
    first: int
    last: int


@dataclass(frozen=True)
class Step:
    """A rank's part of a global batch: (number, batch) of each chunk that it encodes."""

    epoch: int
    step: int
    ends_epoch: bool
    chunks: tuple[tuple[int, Any], ...]

    @property
    def nbytes(self) -> int:
        """Size of its batches in bytes."""
        return sum(batch.nbytes for _, batch in self.chunks)

    def to(self, device: str) -> Step:
        """Return the step with its batches on a device (`Batch.to`)."""
        return self._map(lambda batch: batch.to(device))

    def pinned(self) -> Step:
        """Return the step with its tensors in pinned memory, copied once."""
        return self._map(lambda batch: batch.map(lambda tensor: tensor.pin_memory()))

    def cloned(self) -> Step:
        """Return the step with tensors of its own memory, which may be written to and outlive shared memory."""
        return self._map(lambda batch: batch.map(lambda tensor: tensor.clone()))

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Tell the allocator that a stream uses the tensors, which another stream has allocated."""
        for _, batch in self.chunks:
            for tensor in batch.tensors.values():
                if tensor.is_cuda:
                    tensor.record_stream(stream)

    def without_images(self, blank: Callable[[Any], Any]) -> Step:
        """Return the step with blank images (see `batches.ImageBatch`)."""
        return self._map(lambda batch: batch.without_images(blank))

    def _map(self, change: Callable[[Any], Any]) -> Step:
        return replace(self, chunks=tuple((chunk, change(batch)) for chunk, batch in self.chunks))


class CachedBatches:
    """The steps of a validation set, cached in memory if they take at most `max_bytes`, otherwise read each time.

    Starting a stream costs seconds on a cluster, at the end of each epoch.
    """

    def __init__(self, read: Callable[[], Iterator[Step]], max_bytes: int = 2**28):
        self._read, self._max_bytes = read, max_bytes
        self._cached: list[Step] | None = None

    def __iter__(self) -> Iterator[Step]:
        if self._cached is not None:
            yield from self._cached
            return
        steps: list[Step] = []
        size = 0
        for step in self._read():
            size += step.nbytes
            if size <= self._max_bytes:
                steps.append(step)
            else:
                steps.clear()
            yield step
        if size <= self._max_bytes:
            self._cached = steps


def windows(plan: Plan, cursor: Cursor, epochs: int) -> Iterator[Window]:
    """Yield the windows from the cursor to the end of the last epoch."""
    for epoch in range(cursor.epoch, epochs):
        first = cursor.step if epoch == cursor.epoch else 0
        while first < plan.steps:
            last = min(plan.steps, (first // plan.window_steps + 1) * plan.window_steps)
            yield Window(epoch, first, last)
            first = last


def rows_of(plan: Plan, epoch: int, step: int, chunks: range) -> npt.NDArray[np.int64]:
    """Return the row numbers of a rank's part of a global batch, chunk by chunk."""
    return np.concatenate([plan.chunk(epoch, step, chunk) for chunk in chunks])


def read(source: Source, window: Window, chunks: range) -> Iterator[tuple[int, pa.Table]]:
    """Read a window. Return an iterator over its steps, each with its encoded, drawn samples and their `row` numbers.

    All rows are read before this returns. Of local features the column `image` is empty, and `decode` fills it.
    """
    steps = range(window.first, window.last)
    parts = [rows_of(source.plan, window.epoch, step, chunks) for step in steps]
    if source.features is None:
        tables = read_parts(source.dataset, parts, source.samples.columns)
    else:
        others = [column for column in source.samples.columns if column != "image"]
        if source.local_features:
            source.local_features.check(parts)
            maps = (pa.table({"image": pa.nulls(len(rows))}) for rows in parts)
        else:
            maps = read_parts(source.features, parts, ["image"])
        tables = map(_with_image, read_parts(source.dataset, parts, others), maps)
    drawn = (source.samples.draw(table, window.epoch) for table in tables)
    if source.local_queries:
        source.local_queries.check(parts)
    elif source.queries:
        stored = read_parts(source.queries, parts, ["queries"])
        drawn = (_with_queries(source, table, queries) for table, queries in zip(drawn, stored, strict=True))
    return (
        (step, table.append_column("row", pa.array(rows)))
        for step, rows, table in zip(steps, parts, drawn, strict=True)
    )


def _filled(source: Source, table: pa.Table) -> pa.Table:
    """Return a table with local features and queries, if the source has them."""
    rows = table["row"].to_numpy()
    if source.local_queries:
        samples: Any = source.samples
        queries = source.local_queries.maps(rows, table["number"].to_numpy(), samples.queries[0])
        table = table.append_column("queries", pa.chunked_array([queries]))
    elif source.queries and "queries" not in table.column_names:  # of no row
        table = table.append_column("queries", pa.chunked_array([], pa.large_binary()))
    if source.local_features:
        column = table.column_names.index("image")
        table = table.set_column(column, "image", source.local_features.maps(rows))
    return table


def _with_queries(source: Source, table: pa.Table, stored: pa.Table) -> pa.Table:
    """Return a drawn table with the queries of its captions, of the stored ones of all captions."""
    samples: Any = source.samples
    of_all = stacked(stored["queries"], samples.queries, "float32")
    drawn = of_all[np.arange(len(table)), table["number"].to_numpy()]
    return table.append_column("queries", pa.array([row.tobytes() for row in drawn], pa.large_binary()))


def _with_image(table: pa.Table, maps: pa.Table) -> pa.Table:
    return table.append_column("image", maps["image"])


def decode(source: Source, table: pa.Table) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of some rows of a table that `read` made.

    Raises:
        ValueError: a sample cannot be decoded; the message names it. Or local features are damaged; the message has
            the shard, the row group and the repair.
    """
    table = _filled(source, table)
    try:
        return {**source.samples.decode(table), "row": table["row"].to_numpy()}
    except (OSError, ValueError) as error:
        raise ValueError(_undecodable(source, table, error)) from error


def _undecodable(source: Source, table: pa.Table, error: Exception) -> str:
    """Return a message that names the first row that cannot be decoded, and why."""
    for index in range(len(table)):
        row = table.slice(index, 1)
        try:
            source.samples.decode(row)
        except (OSError, ValueError) as cause:
            sample, number = row["id"][0].as_py(), row["row"][0].as_py()
            return (
                f"{source.dataset.folder}: sample {sample!r} (row {number}) cannot be decoded: {cause}; "
                "run `python -m groundray.prepare` again with --overwrite to leave it out"
            )
    return f"{source.dataset.folder}: some of {len(table)} samples cannot be decoded: {error}"


def empty_arrays(source: Source) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of zero rows."""
    empty = arrow_schema(source.samples.kind).empty_table().select(list(source.samples.columns))
    rows = pa.array([], pa.int64())
    return decode(source, source.samples.draw(empty, epoch=0).append_column("row", rows))


def assemble(source: Source, epoch: int, step: int, chunks: range, arrays: Arrays) -> Step:
    """Return a step from its decoded rows.

    Raises:
        RuntimeError: the rows are not the planned ones, so that no stream can train on wrong rows.
    """
    planned = rows_of(source.plan, epoch, step, chunks)
    if not np.array_equal(arrays["row"], planned):
        raise RuntimeError(
            f"epoch {epoch} step {step}: expected rows {planned[:4]}... ({len(planned)}), "
            f"got {arrays['row'][:4]}... ({len(arrays['row'])})"
        )
    parts = []
    start = 0
    for chunk in chunks:
        end = start + len(source.plan.chunk(epoch, step, chunk))
        parts.append((chunk, source.samples.collate({name: array[start:end] for name, array in arrays.items()})))
        start = end
    return Step(epoch, step, step == source.plan.steps - 1, tuple(parts))


def stream(source: Source, cursor: Cursor, epochs: int, rank: int = 0, world_size: int = 1) -> Iterator[Step]:
    """Yield a rank's steps from the cursor to the end of the last epoch, reading in this process."""
    chunks = source.plan.owned(rank, world_size)
    for window in windows(source.plan, cursor, epochs):
        for step, table in read(source, window, chunks):
            yield assemble(source, window.epoch, step, chunks, decode(source, table))
