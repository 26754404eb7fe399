"""Rows that were removed from a data set: they stay in its shards, and whoever reads the data set passes them over.

`dataset.json` has them in its `source`, by shard. Nothing that was made of the data set changes by it, since its
fingerprint is that of the shards.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
from jaxtyping import Int64

from groundray.data.schema import Dataset

REMOVED = "removed"  # key of `source` in `dataset.json`: the rows of each shard, counted from its first


def removed_rows(dataset: Dataset) -> Int64[np.ndarray, " row"]:
    """Return the row numbers of the removed rows, sorted."""
    removed, first, rows = dataset.source.get(REMOVED, {}), 0, list[int]()
    for shard in dataset.shards:
        rows += [first + row for row in removed.get(shard.file, [])]
        first += sum(shard.row_groups)
    return np.array(sorted(rows), np.int64)


def with_removed(dataset: Dataset, rows: Int64[np.ndarray, " row"]) -> Dataset:
    """Return the data set with these rows removed too."""
    ends = np.cumsum([sum(shard.row_groups) for shard in dataset.shards])
    removed: dict[str, list[int]] = defaultdict(list)
    for row in np.union1d(removed_rows(dataset), rows).tolist():
        shard = int(np.searchsorted(ends, row, side="right"))
        first = int(ends[shard - 1]) if shard else 0
        removed[dataset.shards[shard].file].append(row - first)
    return replace(dataset, source={**dataset.source, REMOVED: dict(removed)})
