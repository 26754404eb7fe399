"""Writing and reading shards: Parquet files whose row groups are bounded in bytes and checked page by page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from groundray.data.schema import Dataset


def read_rows(dataset: Dataset, rows: npt.NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
    """The rows with these row numbers, in the order asked for; each row group is opened once.

    Raises:
        ValueError: a row group is damaged; the message names shard, row group and repair.
    """
    ends = np.cumsum(dataset.group_sizes)
    groups = np.searchsorted(ends, rows, side="right")
    needed, place = np.unique(groups, return_inverse=True)
    tables = [read_group(dataset, int(group), columns) for group in needed]
    starts = np.cumsum([0] + [len(table) for table in tables])
    first = ends[needed] - dataset.group_sizes[needed]
    return pa.concat_tables(tables).take(pa.array(starts[place] + rows - first[place]))


def read_group(dataset: Dataset, group: int, columns: Sequence[str]) -> pa.Table:
    file, number = dataset.groups[group]
    path = dataset.folder.locate(file)
    with pq.ParquetFile(path, filesystem=dataset.folder.filesystem, page_checksum_verification=True) as shard:
        return shard.read_row_group(number, columns=list(columns))
