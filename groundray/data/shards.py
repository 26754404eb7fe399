"""Shards: Parquet files whose row groups have a bounded size and whose pages have checksums."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from groundray.data.schema import INDEX, ROW_GROUP_BYTES, Dataset, Shard, arrow_schema
from groundray.storage.folder import Folder

GROUPS_PER_SHARD = 16
READS = 8  # concurrent reads: a store takes hardly longer for several
# derived data sets, and who rebuilds them
REBUILT_BY = {
    "trunk_features": "the run rebuilds it",
    "image_vectors": "the next search rebuilds it",
}
# encoded images and feature maps do not compress, and a dictionary of them would only take memory
OPTIONS: dict[str, Any] = {
    "compression": "none",
    "use_dictionary": False,
    "write_page_checksum": True,
    "write_statistics": False,
}


def write_shards(
    folder: Folder,
    kind: str,
    rows: Iterable[dict[str, Any]],
    counts: dict[str, int],
    source: dict[str, Any],
    vocabulary: dict[str, tuple[str, ...]] | None = None,
    row_group_bytes: int = ROW_GROUP_BYTES,
) -> Dataset:
    """Write rows of a kind to an empty folder, `dataset.json` last, and return the data set.

    A row group ends before it would exceed `row_group_bytes` of encoded samples (a single larger sample gets a row
    group of its own). The same rows give the same bytes. Memory: one row group.
    """
    schema = arrow_schema(kind)
    shards = [
        _write_shard(folder, f"shard-{number:05d}.parquet", schema, groups)
        for number, groups in enumerate(_shards(_groups(rows, row_group_bytes)))
    ]
    words = json.dumps(vocabulary) if vocabulary else ""
    fingerprint = hashlib.sha256(("".join(shard.sha256 for shard in shards) + words).encode()).hexdigest()
    total = {"rows": sum(sum(shard.row_groups) for shard in shards), **counts}
    dataset = Dataset(folder, kind, tuple(shards), total, source, fingerprint, vocabulary or {})
    dataset.write_index()
    return dataset


def index_shards(folder: Folder, kind: str, files: Sequence[str], source: dict[str, Any]) -> Dataset:
    """Write the `dataset.json` of shards that lie in a folder, and return the data set."""
    with ThreadPoolExecutor(READS) as pool:
        shards = tuple(pool.map(lambda file: _shard(folder, file), files))
    fingerprint = hashlib.sha256("".join(shard.sha256 for shard in shards).encode()).hexdigest()
    rows = sum(sum(shard.row_groups) for shard in shards)
    dataset = Dataset(folder, kind, shards, {"rows": rows}, source, fingerprint)
    dataset.write_index()
    return dataset


def encode_shard(kind: str, columns: Mapping[str, Any], rows_per_group: int | None = None) -> bytes:
    """Return the bytes of a shard with one row group, or with row groups of `rows_per_group` rows."""
    table = pa.table(columns, schema=arrow_schema(kind))
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, **OPTIONS) as writer:
        writer.write_table(table, row_group_size=rows_per_group or max(1, len(table)))
    return sink.getvalue().to_pybytes()


def verify_shards(dataset: Dataset) -> None:
    """Compare the checksums of a data set's shards with `dataset.json`.

    Raises:
        ValueError: a shard is damaged or missing; the message has the shard, the damaged row group and the repair.
    """
    first = 0
    for shard in dataset.shards:
        groups = range(first, first + len(shard.row_groups))
        first = groups.stop
        if not dataset.folder.exists(shard.file):
            raise ValueError(f"{dataset.folder}/{shard.file} is missing: restore the file, or {_repair(dataset)}")
        size, digest = dataset.folder.seal(shard.file)
        if (size, digest) == (shard.bytes, shard.sha256):
            continue
        for group in groups:
            read_group(dataset, group, arrow_schema(dataset.kind).names)  # raises for the damaged one
        raise ValueError(
            f"{dataset.folder}/{shard.file}: expected {shard.bytes} bytes with the checksum in {INDEX}, got "
            f"{size} bytes with another (its {len(groups)} row groups can be read): restore the file, "
            f"or {_repair(dataset)}"
        )


def read_rows(dataset: Dataset, rows: npt.NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
    """Return the rows with these row numbers, in this order. Each row group is read once.

    Raises:
        ValueError: a row group is damaged; the message has the shard, the row group and the repair.
    """
    ends = np.cumsum(dataset.group_sizes)
    groups, index = np.unique(np.searchsorted(ends, rows, side="right"), return_inverse=True)
    tables = [read_group(dataset, int(group), columns) for group in groups]
    if not tables:
        return arrow_schema(dataset.kind).empty_table().select(list(columns))
    starts = np.cumsum([0, *(len(table) for table in tables[:-1])])
    first = (ends - dataset.group_sizes)[groups]
    return pa.concat_tables(tables).take(pa.array(starts[index] + rows - first[index]))


def read_group(dataset: Dataset, group: int, columns: Sequence[str]) -> pa.Table:
    """Return a row group, numbered over all shards of the data set.

    Raises:
        ValueError: the row group or its shard is damaged.
    """
    file, number = dataset.groups[group]
    repair = _repair(dataset)
    path, remote = dataset.folder.locate(file), not dataset.folder.local
    try:
        with pq.ParquetFile(
            path,
            filesystem=dataset.folder.filesystem,
            page_checksum_verification=True,
            pre_buffer=remote,  # one request for all columns, not one for each
        ) as shard:
            table = shard.read_row_group(number, columns=list(columns))
    except (OSError, pa.ArrowException, IndexError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{dataset.folder}/{file}, row group {number} cannot be read ({error}): restore the file, or {repair}"
        ) from error
    expected = pa.schema([arrow_schema(dataset.kind).field(name) for name in columns])
    if not table.schema.equals(expected):  # pyarrow silently omits columns that do not exist
        raise ValueError(
            f"{dataset.folder}/{file}, row group {number}: expected columns {_describe(expected)}, got "
            f"{_describe(table.schema)}: restore the file, or {repair}"
        )
    if len(table) != dataset.group_sizes[group]:
        raise ValueError(
            f"{dataset.folder}/{file}, row group {number}: expected {dataset.group_sizes[group]} rows, got "
            f"{len(table)}: {repair}"
        )
    return table


def _describe(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)


def _repair(dataset: Dataset) -> str:
    if dataset.kind in REBUILT_BY:
        return f"delete the folder, and {REBUILT_BY[dataset.kind]}"
    return "delete the folder and run `python -m groundray.prepare` again"


def _groups(rows: Iterable[dict[str, Any]], max_bytes: int) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows in groups of at most `max_bytes`."""
    group: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        bytes_of_row = sum(_bytes(value) for value in row.values())
        if group and size + bytes_of_row > max_bytes:
            yield group
            group, size = [], 0
        group.append(row)
        size += bytes_of_row
    if group:
        yield group


def _shards(groups: Iterator[list[dict[str, Any]]]) -> Iterator[Iterator[list[dict[str, Any]]]]:
    """Yield the groups in shards of GROUPS_PER_SHARD. Each shard must be exhausted before the next is taken."""

    def rest_of_shard(first: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
        yield first
        for _ in range(GROUPS_PER_SHARD - 1):
            if (group := next(groups, None)) is None:
                return
            yield group

    while (first := next(groups, None)) is not None:
        yield rest_of_shard(first)


def _write_shard(folder: Folder, name: str, schema: pa.Schema, groups: Iterator[list[dict[str, Any]]]) -> Shard:
    with folder.open_output(name) as file, pq.ParquetWriter(file, schema, **OPTIONS) as writer:
        for group in groups:
            writer.write_table(pa.Table.from_pylist(group, schema=schema), row_group_size=len(group))
    return _shard(folder, name)


def _shard(folder: Folder, name: str) -> Shard:
    """Return the index entry of a shard file."""
    path = folder.locate(name)
    with pq.ParquetFile(path, filesystem=folder.filesystem) as file:
        metadata = file.metadata
        sizes = tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
    return Shard(name, sizes, *folder.seal(name))


def _bytes(value: Any) -> int:
    """Return the approximate size of a value in a shard."""
    if isinstance(value, bytes | str):
        return len(value)
    if isinstance(value, list):
        return sum(_bytes(item) for item in value)
    if isinstance(value, dict):
        return sum(_bytes(item) for item in value.values())
    return 8
