"""Writing and reading shards: Parquet files whose row groups are bounded in bytes and whose pages are checked."""

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

from groundray.data.schema import ROW_GROUP_BYTES, Dataset, Shard, arrow_schema
from groundray.storage.folder import Folder

GROUPS_PER_SHARD = 16
READS = 8  # at a time; a store takes its time to answer, and hardly longer for many
# data sets that nobody has to prepare
MADE_AGAIN = {
    "trunk_features": "the run makes them again",
    "image_vectors": "the next search makes it again",
}
# encoded images and feature maps do not get smaller, and a dictionary of them would only cost memory
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
    """The data set made of some rows of a kind, written to an empty folder; `dataset.json` comes last.

    A row group ends before it would exceed `row_group_bytes` of encoded samples (a single larger sample has a row
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
    """The data set made of the shards of a kind that lie in a folder, whose `dataset.json` is written."""
    with ThreadPoolExecutor(READS) as pool:
        shards = tuple(pool.map(lambda file: _shard(folder, file), files))
    fingerprint = hashlib.sha256("".join(shard.sha256 for shard in shards).encode()).hexdigest()
    rows = sum(sum(shard.row_groups) for shard in shards)
    dataset = Dataset(folder, kind, shards, {"rows": rows}, source, fingerprint)
    dataset.write_index()
    return dataset


def encode_shard(kind: str, columns: Mapping[str, Any], rows_per_group: int | None = None) -> bytes:
    """A shard of one row group, or of row groups of so many rows."""
    table = pa.table(columns, schema=arrow_schema(kind))
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, **OPTIONS) as writer:
        writer.write_table(table, row_group_size=rows_per_group or max(1, len(table)))
    return sink.getvalue().to_pybytes()


def verify_shards(dataset: Dataset) -> None:
    """Compare every byte of a data set's shards with what was written.

    Raises:
        ValueError: a shard is damaged or missing; the message names it, its damaged row group and the repair.
    """
    first = 0
    for shard in dataset.shards:
        groups = range(first, first + len(shard.row_groups))
        first = groups.stop
        if not dataset.folder.exists(shard.file):
            raise ValueError(f"{dataset.folder}/{shard.file} is missing: restore the file, or {_repair(dataset)}")
        size, digest = _digest(dataset.folder, shard.file)
        if (size, digest) == (shard.bytes, shard.sha256):
            continue
        for group in groups:
            read_group(dataset, group, arrow_schema(dataset.kind).names)  # names the one that is damaged
        raise ValueError(
            f"{dataset.folder}/{shard.file} is not the file that was prepared ({size} bytes of {shard.bytes}, another "
            f"checksum), though its {len(groups)} row groups can be read: restore the file, or {_repair(dataset)}"
        )


def read_rows(dataset: Dataset, rows: npt.NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
    """The rows with these row numbers, in the order asked for; each row group is opened once.

    Raises:
        ValueError: a row group is damaged; the message names shard, row group and repair.
    """
    ends = np.cumsum(dataset.group_sizes)
    needed, place = np.unique(np.searchsorted(ends, rows, side="right"), return_inverse=True)
    tables = [read_group(dataset, int(group), columns) for group in needed]
    if not tables:
        return arrow_schema(dataset.kind).empty_table().select(list(columns))
    starts = np.cumsum([0, *(len(table) for table in tables[:-1])])
    first = (ends - dataset.group_sizes)[needed]
    return pa.concat_tables(tables).take(pa.array(starts[place] + rows - first[place]))


def read_group(dataset: Dataset, group: int, columns: Sequence[str]) -> pa.Table:
    """A row group of a data set, counted over all of its shards.

    Raises:
        ValueError: it is damaged, or its shard is.
    """
    file, number = dataset.groups[group]
    repair = _repair(dataset)
    path, stored = dataset.folder.locate(file), not dataset.folder.local
    try:
        with pq.ParquetFile(
            path,
            filesystem=dataset.folder.filesystem,
            page_checksum_verification=True,
            pre_buffer=stored,  # a request for all columns, not one for each
        ) as shard:
            table = shard.read_row_group(number, columns=list(columns))
    except (OSError, pa.ArrowException, IndexError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{dataset.folder}/{file}, row group {number} cannot be read ({error}): restore the file, or {repair}"
        ) from error
    expected = pa.schema([arrow_schema(dataset.kind).field(name) for name in columns])
    if not table.schema.equals(expected):  # columns that pyarrow does not find are left out without a word
        raise ValueError(
            f"{dataset.folder}/{file}, row group {number}: expected columns {_said(expected)}, got "
            f"{_said(table.schema)}: restore the file, or {repair}"
        )
    if len(table) != dataset.group_sizes[group]:
        raise ValueError(
            f"{dataset.folder}/{file}, row group {number}: expected {dataset.group_sizes[group]} rows, got "
            f"{len(table)}: {repair}"
        )
    return table


def _said(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)


def _repair(dataset: Dataset) -> str:
    if dataset.kind in MADE_AGAIN:
        return f"delete the folder, and {MADE_AGAIN[dataset.kind]}"
    return "delete the folder and run `python -m groundray.prepare` again"


def _groups(rows: Iterable[dict[str, Any]], most: int) -> Iterator[list[dict[str, Any]]]:
    """The rows in groups of at most `most` bytes."""
    group: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        bytes_of_row = sum(_bytes(value) for value in row.values())
        if group and size + bytes_of_row > most:
            yield group
            group, size = [], 0
        group.append(row)
        size += bytes_of_row
    if group:
        yield group


def _shards(groups: Iterator[list[dict[str, Any]]]) -> Iterator[Iterator[list[dict[str, Any]]]]:
    """The groups in shards of GROUPS_PER_SHARD; each must be used up before the next is asked for."""

    def rest_of_shard(first: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
        yield first
        for _ in range(GROUPS_PER_SHARD - 1):
            if (group := next(groups, None)) is None:
                return
            yield group

    while (first := next(groups, None)) is not None:
        yield rest_of_shard(first)


def _write_shard(folder: Folder, name: str, schema: pa.Schema, groups: Iterator[list[dict[str, Any]]]) -> Shard:
    with pq.ParquetWriter(folder.locate(name), schema, filesystem=folder.filesystem, **OPTIONS) as writer:
        for group in groups:
            writer.write_table(pa.Table.from_pylist(group, schema=schema), row_group_size=len(group))
    return _shard(folder, name)


def _shard(folder: Folder, name: str) -> Shard:
    """A shard that has been written, as the index tells of it."""
    path = folder.locate(name)
    with pq.ParquetFile(path, filesystem=folder.filesystem) as file:
        metadata = file.metadata
        sizes = tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
    return Shard(name, sizes, *_digest(folder, name))


def _digest(folder: Folder, name: str) -> tuple[int, str]:
    """Size and SHA-256 of a file."""
    digest, size = hashlib.sha256(), 0
    with folder.filesystem.open_input_stream(folder.locate(name)) as stream:
        while block := stream.read(2**22):
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()


def _bytes(value: Any) -> int:
    """About how many bytes a value takes in a shard."""
    if isinstance(value, bytes | str):
        return len(value)
    if isinstance(value, list):
        return sum(_bytes(item) for item in value)
    if isinstance(value, dict):
        return sum(_bytes(item) for item in value.values())
    return 8
