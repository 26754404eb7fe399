"""Data sets of any size that consist of metadata alone: there are no rows to read."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from groundray.data.schema import Dataset, Shard
from groundray.data.shards import GROUPS_PER_SHARD
from groundray.storage.folder import Folder

ROW_BYTES = 60_000  # of CC12M


def captions(group_sizes: Sequence[int], row_bytes: int = ROW_BYTES) -> Dataset:
    """Return a data set of images with captions."""
    shards = []
    for number, first in enumerate(range(0, len(group_sizes), GROUPS_PER_SHARD)):
        groups = tuple(group_sizes[first : first + GROUPS_PER_SHARD])
        digest = hashlib.sha256(f"{number}".encode()).hexdigest()
        shards.append(Shard(f"shard-{number:05d}.parquet", groups, sum(groups) * row_bytes, digest, digest))
    return Dataset(Folder.at("/nowhere"), "captions", tuple(shards), {}, {}, "synthetic")


def sizes(groups: int, rows: int = 550, seed: int = 0) -> list[int]:
    """Return the sizes of row groups of about `rows` rows."""
    return np.random.default_rng(seed).integers(int(0.8 * rows), int(1.2 * rows), groups).tolist()
