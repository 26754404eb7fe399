"""Batches of rows with images whose other columns stay as they are: captions as text, labels as numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from groundray.data.image_inputs import ImageInputs
from groundray.data.plan import Cursor, Plan
from groundray.data.schema import Dataset
from groundray.data.stream import Source, stream
from groundray.data.window import default_window

Rows = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class ImageRows:
    """Samples of a kind of data set with images.

    Attributes:
        image_inputs: how the images become arrays.
        others: the columns that are read besides `id` and `image`.
    """

    kind: str
    image_inputs: ImageInputs
    others: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        return ("id", "image", *self.others)

    def draw(self, table: pa.Table, epoch: int) -> pa.Table:
        """Return the table with the random choices of its images."""
        return self.image_inputs.draw(table, epoch)

    def decode(self, table: pa.Table) -> dict[str, npt.NDArray[Any]]:
        """Return `id`, `image` and the other columns of each row; a column of lists becomes an array of lists."""
        columns: dict[str, npt.NDArray[Any]] = {"id": np.array(table["id"].to_pylist(), dtype=np.str_)}
        for name in self.others:
            columns[name] = np.empty(len(table), object)
            columns[name][:] = table[name].to_pylist()
        return {**columns, "image": self.image_inputs.arrays(table)}

    def collate(self, arrays: Rows) -> Rows:
        """Return the arrays of decoded rows."""
        return arrays


def read_image_rows(dataset: Dataset, inputs: ImageInputs, others: tuple[str, ...], batch_size: int) -> Iterator[Rows]:
    """Yield the rows of a data set in its order, in batches of arrays: `id`, `image` and the other columns.

    Raises:
        ValueError: the batch size is below 1, or an image cannot be decoded; the message names it.
    """
    if batch_size < 1:
        raise ValueError(f"--batch-size: expected at least 1, got {batch_size}")
    plan = Plan(
        dataset.group_sizes,
        batch_size,
        window=default_window(dataset, batch_size, 1),
        shuffle=False,
        drop_last=False,
    )
    source = Source(dataset, ImageRows(dataset.kind, inputs, others), plan)
    return (rows for step in stream(source, Cursor(), epochs=1) for _, rows in step.chunks)
