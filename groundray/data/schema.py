"""Data sets on disk: Parquet shards of one Arrow schema, and their index `dataset.json`.

    DIR/shard-00000.parquet ...   rows, in row groups of about 32 MB, with page checksums
    DIR/dataset.json              schema version, kind, counts, source, the row groups and the id of each shard
    DIR/rejected.jsonl            one line for each item of the source that cannot be used, with the reason

`dataset.json` alone locates every row, so planning an epoch opens no shard. It also has the id of each shard, a hash of
its content, which the shard's own metadata has as well. Readers compare both at each open, so that shards that are
replaced under a reader are an error (shards.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from groundray.storage.atomic import find_missing
from groundray.storage.folder import Folder
from groundray.storage.seals import Damaged, OtherVersion, Version

VERSION = 2
INDEX = "dataset.json"
REJECTED = "rejected.jsonl"
LEFT_OUT = "left out, "  # begins the name of a count of what a source left out of a data set
SYNSET = re.compile(r"\.[nvasr]\.\d+$")  # after the lemma of WordNet's
ROW_GROUP_BYTES = 32 * 2**20

# `image` is the source's encoded file, unchanged
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
    # (0 = none), subject and object are indices of `objects`
    "scene_graphs": pa.schema(
        [
            *IMAGE,
            _list("objects", pa.struct([("phrase", pa.string()), ("class", pa.int32())])),
            _list("relations", pa.struct([(name, pa.int32()) for name in ("subject", "predicate", "object")])),
        ]
    ),
    # an image with one class; `label` is an index of the data set's vocabulary
    "labelled_images": pa.schema([*IMAGE, pa.field("label", pa.int32(), nullable=False)]),
    # an image alone, for search
    "images": pa.schema(IMAGE),
    # a trunk's feature map of an image: the bits of bfloat16 numbers, channel by channel, row by row; row numbers are
    # those of the image data set
    "trunk_features": pa.schema([pa.field("image", pa.large_binary(), nullable=False)]),
    # what frozen streams make of an image and of its captions, in float32 (training/keys.py): the attention's keys at
    # each position, and its queries at each token of each caption
    "image_keys": pa.schema([pa.field("image", pa.large_binary(), nullable=False)]),
    "caption_queries": pa.schema([pa.field("queries", pa.large_binary(), nullable=False)]),
    # an image for search: a vector of length 1, rounded, and a small JPEG; row numbers are those of the image data set
    "image_vectors": pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("width", pa.int32(), nullable=False),
            pa.field("height", pa.int32(), nullable=False),
            _list("vector", pa.float16()),
            pa.field("thumbnail", pa.binary(), nullable=False),
        ]
    ),
    # an image's position features, one byte each: the scale of each position in float32, then the features position by
    # position; row numbers are those of the image data set
    "image_positions": pa.schema([pa.field("positions", pa.binary(), nullable=False)]),
    # a line of text
    "text": pa.schema([pa.field("id", pa.string(), nullable=False), pa.field("text", pa.string(), nullable=False)]),
}


def class_name(label: str) -> str:
    """Return the name of an object class in words: of a synset such as `tennis_racket.n.01`, its lemma."""
    return SYNSET.sub("", label).replace("_", " ")


def arrow_schema(kind: str) -> pa.Schema:
    """Return the Arrow schema of a kind of data set, with the schema version in its metadata."""
    return KINDS[kind].with_metadata({"groundray.kind": kind, "groundray.schema": str(VERSION)})


@dataclass(frozen=True)
class Shard:
    """A Parquet file: its name in the data set's folder, and the number of rows of each row group.

    Attributes:
        id: identifies the content; the file holds it too, in its metadata. None in data sets of earlier versions.
    """

    file: str
    row_groups: tuple[int, ...]
    bytes: int
    sha256: str
    id: str | None = None


@dataclass(frozen=True)
class Dataset:
    """A data set on disk, as `dataset.json` describes it.

    Rows are numbered from 0 in the order of shards and row groups; the plan refers to samples by this *row number*.
    `vocabulary` gives the names of indices in the rows, such as `classes` and `predicates`.
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
        """Return the data set at a folder or URL.

        Raises:
            FileNotFoundError: the folder holds no complete data set.
            Damaged: `dataset.json` is damaged.
            ValueError: the data set has another schema version, or none of the expected `kinds`.
        """
        folder = Folder.at(url)
        if not folder.exists(INDEX):
            moved = find_missing(folder)  # puts back what a killed `prepare` had set aside
            if not folder.exists(INDEX):
                repair = moved or "write them with `python -m groundray.prepare`"
                raise FileNotFoundError(f"expected shards at {folder}, got no {INDEX}: {repair}")
        repair = (
            "restore it from a copy, or delete the folder and make it again (shards: `python -m groundray.prepare`)"
        )
        keys = "schema|kind|fingerprint|counts|source|vocabulary|shards"  # of an index that has no seal
        try:
            index = folder.read_sealed(INDEX, keys, repair, Version("schema", VERSION))
        except OtherVersion as other:
            raise ValueError(
                f"shards at {folder} have schema {other.number}, this version reads {VERSION}: "
                "run `python -m groundray.prepare` again"
            ) from None
        try:
            shards = tuple(
                Shard(shard["file"], tuple(shard["row_groups"]), shard["bytes"], shard["sha256"], shard.get("id"))
                for shard in index["shards"]
            )
            vocabulary = {name: tuple(words) for name, words in index["vocabulary"].items()}
            dataset = Dataset(
                folder, index["kind"], shards, index["counts"], index["source"], index["fingerprint"], vocabulary
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise Damaged(f"{folder}/{INDEX}", f"it lacks {error}", repair) from None
        if kinds and dataset.kind not in kinds:
            expected = " or ".join(map(repr, kinds))
            raise ValueError(f"expected shards of kind {expected} at {folder}, got kind {dataset.kind!r}")
        return dataset

    def write_index(self) -> None:
        """Write `dataset.json`. It is written last: a folder that has one is complete."""
        self.folder.write_sealed(
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

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields without what is computed from them: it is sent to other processes."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @property
    def rows(self) -> int:
        return int(self.group_sizes.sum())

    @property
    def bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.bytes for shard in self.shards)

    @cached_property
    def groups(self) -> tuple[tuple[Shard, int], ...]:
        """(shard, row group within the shard) of every row group, in row order."""
        return tuple((shard, i) for shard in self.shards for i in range(len(shard.row_groups)))

    @cached_property
    def group_sizes(self) -> npt.NDArray[np.int64]:
        """Number of rows of each of `groups`."""
        return np.array([rows for shard in self.shards for rows in shard.row_groups], dtype=np.int64)

    @cached_property
    def group_ends(self) -> npt.NDArray[np.int64]:
        """Row number after the last row of each of `groups`."""
        return np.cumsum(self.group_sizes)
