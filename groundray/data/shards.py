"""Shards: Parquet files whose row groups have a bounded size, whose pages have checksums and whose content has an id.

The id is a hash of the kind, the vocabulary and the bytes of all rows. `dataset.json` has it with the file's size, the
file has it in its metadata (`groundray.id`), and every reader compares them when it opens the file.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from groundray.data.ahead import map_ahead
from groundray.data.footers import ID, id_of, repair_of, rows_of_groups, value_of
from groundray.data.row_checksums import CHECKSUMS, row_checksums
from groundray.data.row_groups import read_group
from groundray.data.schema import INDEX, ROW_GROUP_BYTES, VERSION, Dataset, Shard, arrow_schema
from groundray.storage.folder import Folder
from groundray.storage.seals import FileSeal

GROUPS_PER_SHARD = 16
CONTENT = "groundray.content"  # of a part of a derived data set: the SHA-256 of its rows, as they are in the file
READS = 8  # concurrent reads: a store takes hardly longer for several
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

    The same rows give the same bytes. Memory: one row group.
    """
    words = vocabulary or {}
    shards = write_shard_files(folder, kind, rows, words, row_group_bytes)
    return write_index(folder, kind, shards, counts, source, words)


def write_shard_files(
    folder: Folder,
    kind: str,
    rows: Iterable[dict[str, Any]],
    vocabulary: Mapping[str, Sequence[str]],
    row_group_bytes: int = ROW_GROUP_BYTES,
    name: str = "shard-{:05d}.parquet",
) -> list[Shard]:
    """Write rows of a kind to shards in a folder, and return their index entries.

    A row group ends before it would exceed `row_group_bytes` of encoded samples (a single larger sample gets a row
    group of its own).

    Args:
        name: name of a shard, with a place for its number.
    """
    words = json.dumps(vocabulary) if vocabulary else ""
    return [
        _write_shard(folder, name.format(number), kind, groups, words)
        for number, groups in enumerate(_shards(_groups(rows, row_group_bytes)))
    ]


def write_index(
    folder: Folder,
    kind: str,
    shards: Sequence[Shard],
    counts: Mapping[str, int],
    source: dict[str, Any],
    vocabulary: Mapping[str, tuple[str, ...]],
) -> Dataset:
    """Write the `dataset.json` of shards in a folder, and return the data set."""
    words = json.dumps(vocabulary) if vocabulary else ""
    fingerprint = hashlib.sha256(("".join(shard.sha256 for shard in shards) + words).encode()).hexdigest()
    total = {"rows": sum(sum(shard.row_groups) for shard in shards), **counts}
    dataset = Dataset(folder, kind, tuple(shards), total, source, fingerprint, dict(vocabulary))
    dataset.write_index()
    return dataset


class Footer(NamedTuple):
    """What the end of a shard tells of it.

    Attributes:
        bytes: size of the file.
        row_groups: number of rows of each row group.
        id: None in shards of earlier versions.
        content: SHA-256 of the rows as they are in the file; None where the shard does not record it.
    """

    bytes: int
    row_groups: tuple[int, ...]
    id: str | None
    content: str | None


def read_footer(folder: Folder, file: str) -> Footer:
    """Return what the end of a shard tells. Reads no rows.

    Raises:
        FileNotFoundError: there is no such file.
        OSError, pa.ArrowException: it cannot be read, as a file that was cut.
    """
    with folder.filesystem.open_input_file(folder.locate(file)) as content:
        size = content.size()
        if size == 0:
            raise OSError("the file is empty")
        with pq.ParquetFile(content) as shard:
            return Footer(
                size, rows_of_groups(shard.metadata), id_of(shard.metadata), value_of(shard.metadata, CONTENT)
            )


def index_shards(
    folder: Folder,
    kind: str,
    files: Sequence[str],
    source: dict[str, Any],
    on_progress: Callable[[], None] = lambda: None,
    footers: Mapping[str, Footer] | None = None,
    seals: Mapping[tuple[str, str], FileSeal] | None = None,
) -> Dataset:
    """Write the `dataset.json` of shards that lie in a folder, and return the data set.

    Args:
        on_progress: is called in this thread after each shard; what it raises ends the reading.
        footers: of shards, by name; the others are read.
        seals: of shards, by name and the content that their footers tell; all others are read whole.

    Raises:
        ValueError: a shard is damaged or missing; the message names it.
    """
    footers, seals = footers or {}, seals or {}

    def entry(file: str) -> Shard:
        try:
            footer = footers.get(file) or read_footer(folder, file)
            seal = seals.get((file, footer.content or ""))
            seal = seal if seal and seal.bytes == footer.bytes else folder.seal(file)
        except (OSError, pa.ArrowException) as error:
            raise ValueError(f"{folder}/{file} cannot be read ({error}): delete it, and rerun the command") from error
        return Shard(file, footer.row_groups, *seal, footer.id)

    shards: list[Shard] = []
    with ThreadPoolExecutor(READS) as pool:
        for shard in map_ahead(pool, entry, files, 2 * READS):
            shards.append(shard)
            on_progress()
    fingerprint = hashlib.sha256("".join(shard.sha256 for shard in shards).encode()).hexdigest()
    rows = sum(sum(shard.row_groups) for shard in shards)
    dataset = Dataset(folder, kind, tuple(shards), {"rows": rows}, source, fingerprint)
    dataset.write_index()
    return dataset


class EncodedShard(NamedTuple):
    """The bytes of a shard, and the SHA-256 of its rows, which its footer has too."""

    bytes: bytes
    content: str


def encode_shard(kind: str, columns: Mapping[str, Any], id: str, rows_per_group: int | None = None) -> EncodedShard:
    """Return a shard with an id of its own, with one row group or with row groups of `rows_per_group` rows.

    Its metadata has the checksum of each row of a single column of large byte strings (`row_checksums.py`).
    """
    table = pa.table(columns, schema=arrow_schema(kind))
    sink, content = io.BytesIO(), hashlib.sha256()
    with pq.ParquetWriter(_Digesting(sink, content), table.schema, **OPTIONS) as writer:
        writer.write_table(table, row_group_size=rows_per_group or max(1, len(table)))
        digest = content.hexdigest()
        checksums = {CHECKSUMS: found} if (found := row_checksums(table)) else {}
        writer.add_key_value_metadata({ID: id, CONTENT: digest, **checksums})
    return EncodedShard(sink.getvalue(), digest)


def describe_damage(footer: Footer | Exception, id: str, rows: int) -> str | None:
    """Return why a file is not the complete shard with this id and number of rows, or None if it is.

    Args:
        footer: its footer, or what was raised when it was read.
    """
    if isinstance(footer, Exception):
        return "is missing" if isinstance(footer, FileNotFoundError) else f"cannot be read ({footer})"
    got = (footer.id, sum(footer.row_groups))
    return None if got == (id, rows) else f"holds {got[1]} rows with id {got[0]}, not {rows} rows with id {id}"


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
            raise ValueError(f"{dataset.folder}/{shard.file} is missing: restore the file, or {repair_of(dataset)}")
        size, digest = dataset.folder.seal(shard.file)
        if (size, digest) == (shard.bytes, shard.sha256):
            continue
        for group in groups:
            read_group(dataset, group, arrow_schema(dataset.kind).names)  # raises for the damaged one
        raise ValueError(
            f"{dataset.folder}/{shard.file}: expected {shard.bytes} bytes with the checksum in {INDEX}, got "
            f"{size} bytes with another (its {len(groups)} row groups can be read): restore the file, "
            f"or {repair_of(dataset)}"
        )


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


class _Digesting:
    """A file that hashes what is written to it. Has what pyarrow asks of a file.

    Attributes:
        size: number of bytes written.
    """

    closed = False

    def __init__(self, sink: BinaryIO, *digests: Any):
        self.size = 0
        self._sink, self._digests = sink, digests

    def write(self, content: Any) -> int:
        for digest in self._digests:
            digest.update(content)
        self.size += len(content)
        return self._sink.write(content)

    def flush(self) -> None:
        self._sink.flush()

    def close(self) -> None:
        self.closed = True  # whoever opened the sink closes it


def _write_shard(folder: Folder, name: str, kind: str, groups: Iterator[list[dict[str, Any]]], words: str) -> Shard:
    """Write a shard and return its index entry. Its id is known when its rows are written, before its metadata."""
    schema, sizes = arrow_schema(kind), []
    digest, content = hashlib.sha256(), hashlib.sha256(f"{kind} {VERSION} {words}".encode())
    with folder.open_output(name) as sink:
        file = _Digesting(sink, digest, content)
        with pq.ParquetWriter(file, schema, **OPTIONS) as writer:
            for group in groups:
                writer.write_table(pa.Table.from_pylist(group, schema=schema), row_group_size=len(group))
                sizes.append(len(group))
            id = content.hexdigest()
            writer.add_key_value_metadata({ID: id})
    return Shard(name, tuple(sizes), file.size, digest.hexdigest(), id)


def _bytes(value: Any) -> int:
    """Return the approximate size of a value in a shard."""
    if isinstance(value, bytes | str):
        return len(value)
    if isinstance(value, list):
        return sum(_bytes(item) for item in value)
    if isinstance(value, dict):
        return sum(_bytes(item) for item in value.values())
    return 8
