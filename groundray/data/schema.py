"""What a data set on disk looks like: Parquet shards of one Arrow schema, and `dataset.json`, their index.

    DIR/shard-00000.parquet ...   rows, in row groups of about 32 MB, with page checksums
    DIR/dataset.json              schema version, kind, counts, where it came from, the row groups of each shard
    DIR/rejected.jsonl            one line for each thing of the source that could not be used, with its reason

A reader needs `dataset.json` alone to know which row lies where, so that planning an epoch opens no shard.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from groundray.storage import Folder

VERSION = 1
INDEX = "dataset.json"
REJECTED = "rejected.jsonl"
ROW_GROUP_BYTES = 32 * 2**20

KINDS: dict[str, pa.Schema] = {
    # an image with all of its captions; `image` is the encoded file, as the source has it
    "captions": pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("image", pa.binary(), nullable=False),
            pa.field("width", pa.int32(), nullable=False),
            pa.field("height", pa.int32(), nullable=False),
            pa.field("captions", pa.list_(pa.field("item", pa.string(), nullable=False)), nullable=False),
        ]
    ),
}


def arrow_schema(kind: str) -> pa.Schema:
    """The Arrow schema of a kind of data set, with its version in the metadata."""
    return KINDS[kind].with_metadata({"groundray.kind": kind, "groundray.schema": str(VERSION)})


@dataclass(frozen=True)
class Shard:
    """One Parquet file: its name in the data set's folder, and the rows of each of its row groups."""

    file: str
    row_groups: tuple[int, ...]
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Dataset:
    """A data set on disk, as `dataset.json` tells of it.

    Rows are numbered from 0 in the order of shards and row groups; this *row number* is how the plan names a sample.
    """

    folder: Folder
    kind: str
    shards: tuple[Shard, ...]
    counts: dict[str, int]
    source: dict[str, Any]
    fingerprint: str

    @staticmethod
    def open(url: str, kind: str | None = None) -> Dataset:
        """The data set at a folder or URL.

        Raises:
            FileNotFoundError: no finished data set is there.
            ValueError: it is of another schema version, or not of the `kind` asked for.
        """
        folder = Folder.at(url)
        if not folder.exists(INDEX):
            raise FileNotFoundError(
                f"expected shards at {folder}, found no {INDEX} there: write them with `python -m groundray.prepare`"
            )
        index = folder.read_json(INDEX)
        if index["schema"] != VERSION:
            raise ValueError(
                f"shards at {folder} have schema {index['schema']}, this version reads {VERSION}: "
                "run `python -m groundray.prepare` again"
            )
        if kind is not None and index["kind"] != kind:
            raise ValueError(f"expected shards of kind {kind!r} at {folder}, found kind {index['kind']!r}")
        shards = tuple(
            Shard(shard["file"], tuple(shard["row_groups"]), shard["bytes"], shard["sha256"])
            for shard in index["shards"]
        )
        return Dataset(folder, index["kind"], shards, index["counts"], index["source"], index["fingerprint"])

    def write_index(self) -> None:
        """Write `dataset.json`; it comes last, so that a folder that has one is whole."""
        self.folder.write_json(
            INDEX,
            {
                "schema": VERSION,
                "kind": self.kind,
                "fingerprint": self.fingerprint,
                "counts": self.counts,
                "source": self.source,
                "shards": [vars(shard) | {"row_groups": list(shard.row_groups)} for shard in self.shards],
            },
        )

    @property
    def rows(self) -> int:
        return int(self.group_sizes.sum())

    @cached_property
    def groups(self) -> tuple[tuple[str, int], ...]:
        """(file, row group within the file) of every row group, in row order."""
        return tuple((shard.file, i) for shard in self.shards for i in range(len(shard.row_groups)))

    @cached_property
    def group_sizes(self) -> npt.NDArray[np.int64]:
        """Rows in each of `groups`."""
        return np.array([rows for shard in self.shards for rows in shard.row_groups], dtype=np.int64)
