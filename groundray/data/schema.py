"""What a data set on disk looks like: Parquet shards of one Arrow schema, and `dataset.json`, their index.

    DIR/shard-00000.parquet ...   rows, in row groups of about 32 MB, with page checksums
    DIR/dataset.json              schema version, kind, counts, where it came from, the row groups of each shard
    DIR/rejected.jsonl            one line for each thing of the source that could not be used, with its reason

A reader needs `dataset.json` alone to know which row lies where, so that planning an epoch opens no shard.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from groundray.storage.folder import Folder

VERSION = 2
INDEX = "dataset.json"
REJECTED = "rejected.jsonl"
ROW_GROUP_BYTES = 32 * 2**20

# `image` is the encoded file, as the source has it
IMAGE = (
    pa.field("id", pa.string(), nullable=False),
    pa.field("image", pa.binary(), nullable=False),
    pa.field("width", pa.int32(), nullable=False),
    pa.field("height", pa.int32(), nullable=False),
)


def _list(name: str, item: pa.DataType) -> pa.Field:
    return pa.field(name, pa.list_(pa.field("item", item, nullable=False)), nullable=False)


KINDS: dict[str, pa.Schema] = {
    # an image with all of its captions
    "captions": pa.schema(
        [
            *IMAGE,
            _list("captions", pa.string()),
        ]
    ),
    # an image with its objects and their relations; classes and predicates are indices of the data set's vocabulary
    # (0 = none), subject and object are places in `objects`
    "scene_graphs": pa.schema(
        [
            *IMAGE,
            _list("objects", pa.struct([("phrase", pa.string()), ("class", pa.int32())])),
            _list("relations", pa.struct([(name, pa.int32()) for name in ("subject", "predicate", "object")])),
        ]
    ),
    # an image of one thing; `label` is an index of the data set's vocabulary
    "labelled_images": pa.schema([*IMAGE, pa.field("label", pa.int32(), nullable=False)]),
    # the feature map that a trunk makes of an image: the bits of bfloat16 numbers, channel by channel, row by row; rows
    # are numbered as those of the images' own data set
    "trunk_features": pa.schema([pa.field("image", pa.large_binary(), nullable=False)]),
    # an image as search knows it: a vector of length 1 and a small JPEG; rows are numbered as those of the images' own
    # data set
    "image_vectors": pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("width", pa.int32(), nullable=False),
            pa.field("height", pa.int32(), nullable=False),
            _list("vector", pa.float32()),
            pa.field("thumbnail", pa.binary(), nullable=False),
        ]
    ),
    # a line of text
    "text": pa.schema([pa.field("id", pa.string(), nullable=False), pa.field("text", pa.string(), nullable=False)]),
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
    `vocabulary` holds what the numbers in the rows stand for, such as `classes` and `predicates`.
    """

    folder: Folder
    kind: str
    shards: tuple[Shard, ...]
    counts: dict[str, int]
    source: dict[str, Any]
    fingerprint: str
    vocabulary: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @staticmethod
    def open(url: str, *kinds: str) -> Dataset:
        """The data set at a folder or URL.

        Raises:
            FileNotFoundError: no finished data set is there.
            ValueError: it is of another schema version, or of none of the `kinds` asked for.
        """
        folder = Folder.at(url)
        if not folder.exists(INDEX):
            raise FileNotFoundError(
                f"expected shards at {folder}, found no {INDEX} there: write them with `python -m groundray.prepare`"
            )
        index = folder.read_json(INDEX)
        if index.get("schema") != VERSION:
            raise ValueError(
                f"shards at {folder} have schema {index.get('schema')}, this version reads {VERSION}: "
                "run `python -m groundray.prepare` again"
            )
        if kinds and index["kind"] not in kinds:
            asked = " or ".join(map(repr, kinds))
            raise ValueError(f"expected shards of kind {asked} at {folder}, found kind {index['kind']!r}")
        shards = tuple(
            Shard(shard["file"], tuple(shard["row_groups"]), shard["bytes"], shard["sha256"])
            for shard in index["shards"]
        )
        vocabulary = {name: tuple(words) for name, words in index["vocabulary"].items()}
        return Dataset(
            folder, index["kind"], shards, index["counts"], index["source"], index["fingerprint"], vocabulary
        )

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
                "vocabulary": self.vocabulary,
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
