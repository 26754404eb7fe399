"""Indexes of random vectors, without images or a model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from groundray.data.derived import DerivedDataset, finalize, make_missing
from groundray.data.schema import Dataset, arrow_schema
from groundray.data.shards import write_shards
from groundray.image_search.index import KIND
from groundray.storage.folder import Folder


@dataclass(frozen=True)
class RandomVectors:
    """Encodes numbered lines as vectors of length 1, of sizes that tell the number."""

    width: int
    columns: tuple[str, ...] = ("id", "text")

    def decode(self, table: pa.Table) -> pa.Table:
        return table

    def vectors(self, numbers: Iterable[int]) -> np.ndarray:
        drawn = [np.random.default_rng(number).standard_normal(self.width) for number in numbers]
        return np.array([vector / np.linalg.norm(vector) for vector in drawn]).astype(np.float16)

    def encode(self, item: pa.Table) -> dict[str, pa.Array]:
        numbers = [int(text) for text in item["text"].to_pylist()]
        return {
            "id": item["id"].combine_chunks(),
            "width": pa.array([number + 1 for number in numbers], pa.int32()),
            "height": pa.array([2] * len(numbers), pa.int32()),
            "vector": pa.array(list(self.vectors(numbers)), arrow_schema(KIND).field("vector").type),
            "thumbnail": pa.array([b"small"] * len(numbers), pa.binary()),
        }


def vector_index(root: Path, count: int, width: int) -> DerivedDataset:
    """Write a source and the parts of an index of it, below a folder."""
    lines = [{"id": f"image {number}", "text": str(number)} for number in range(count)]
    write_shards(Folder.at(root / "source").make(), "text", lines, {}, {}, row_group_bytes=1000)
    spec = opened(root, width)
    for _ in make_missing(spec, RandomVectors(width)):
        pass
    finalize(spec)
    return spec


def opened(root: Path, width: int = 4) -> DerivedDataset:
    """Return the specification of the index that `vector_index` wrote."""
    source = Dataset.open(str(root / "source"), "text")
    folder = Folder.at(root / "index")
    return DerivedDataset(source, folder, "key", KIND, 40, "vectors", "another", provenance={"width": width})
