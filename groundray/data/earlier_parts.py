"""Parts that an earlier derived data set has of the same rows: they are taken over, and nothing is encoded.

When shards are added to a source or leave it, the new source has a new derived data set, in a new folder beside the
earlier one. Both record the checksums of their source's shards and their *lineage*: a hash of all that a row depends on
beside the source. Where the lineage and a shard are the same, so are the rows of its row groups. Their parts are read,
compared with their checksums, and written under the new data set's ids, with the bytes that encoding would give. A part
that is gone or damaged is encoded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from groundray.data.schema import INDEX, Dataset, Shard
from groundray.storage.folder import Folder
from groundray.storage.seals import FileSeal

LINEAGE, SHARDS = "lineage", "shards"  # keys of `source` in `dataset.json`


@dataclass(frozen=True)
class EarlierPart:
    """A part of an earlier data set.

    Attributes:
        folder: holds it.
        shard: its entry in `dataset.json`.
    """

    folder: Folder
    shard: Shard

    def read(self, batch: int) -> pa.Table | None:
        """Return the rows, in chunks of `batch` as they were encoded; None if the part is gone or damaged."""
        try:
            content = self.folder.read_bytes(self.shard.file)
        except OSError:  # the earlier data set is deleted
            return None
        if FileSeal.of(content) != FileSeal(self.shard.bytes, self.shard.sha256):
            return None
        table = pq.read_table(pa.BufferReader(content))
        return pa.concat_tables([table.slice(start, batch) for start in range(0, len(table), batch)])


def recorded(source: Dataset, lineage: str) -> dict[str, Any]:
    """Return what `dataset.json` records, so that later data sets can take parts over; nothing without a lineage."""
    if not lineage:
        return {}
    return {LINEAGE: lineage, SHARDS: [[shard.sha256, len(shard.row_groups)] for shard in source.shards]}


def part_name(group: int, number: int) -> str:
    """Return the file of a row group's part."""
    return f"part-{group:05d}-{number:03d}.parquet"


@lru_cache(4)  # of the data sets that this process makes; a later source has another key
def earlier_parts(folder: str, key: str, kind: str, lineage: str) -> dict[tuple[str, int], tuple[EarlierPart, ...]]:
    """Return the parts of complete data sets of a lineage beside `folder`, by the checksum of the source's shard and
    the row group within it.

    Args:
        folder, key: of the data set that is made.
    """
    found: dict[tuple[str, int], tuple[EarlierPart, ...]] = {}
    for dataset in earlier_datasets(Folder.at(folder), kind, lineage):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            found |= dict(_by_group(dataset, dataset.source[SHARDS]))
    return found


def earlier_datasets(own: Folder, kind: str, lineage: str) -> Iterator[Dataset]:
    """Yield the complete data sets of a lineage beside a folder."""
    for name in own.parent.names():
        earlier = own.parent / name
        if name != own.name and earlier.exists(INDEX):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # deleted, damaged, or another's
                dataset = Dataset.open(str(earlier), kind)
                if dataset.source.get(LINEAGE) == lineage:
                    yield dataset


def _by_group(
    dataset: Dataset, shards: Sequence[tuple[str, int]]
) -> Iterator[tuple[tuple[str, int], tuple[EarlierPart, ...]]]:
    entries = {shard.file: shard for shard in dataset.shards}
    groups = [(checksum, number) for checksum, count in shards for number in range(count)]
    for group, key in enumerate(groups):
        parts: list[EarlierPart] = []
        while entry := entries.get(part_name(group, len(parts))):
            parts.append(EarlierPart(dataset.folder, entry))
        yield key, tuple(parts)
