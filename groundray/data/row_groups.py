"""Reads rows of shards: row groups in parallel, and of each only the rows that are asked for.

A window of a store's shards takes the time of one request: those for its row groups are sent together, with one for the
state of each file, which tells whether the footer that was read before still holds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from groundray.data.footers import Footers, OpenShard, State, check_size, open_shard, repair_of, state_of
from groundray.data.schema import Dataset, Shard, arrow_schema

STORE_READS = 32  # row groups that are read from a store at the same time, each of which takes its size in memory
LOCAL_READS = 8  # from a disk, at most, and not more than there are CPUs
TAKE_BYTES = 2**30  # that are put in order at once: Arrow's offsets in a column end at 2 GiB
Rows = npt.NDArray[np.int64]
_FOOTERS = Footers()


def read_rows(dataset: Dataset, rows: Rows, columns: Sequence[str]) -> pa.Table:
    """Return the rows with these row numbers, in this order. Each row group is read once.

    Raises:
        ValueError: a row group is damaged; the message has the shard, the row group and the repair.
    """
    return next(read_parts(dataset, [rows], columns))


def read_parts(dataset: Dataset, parts: Sequence[Rows], columns: Sequence[str]) -> Iterator[pa.Table]:
    """Return an iterator over a table for each part, with the rows of these row numbers in this order.

    All rows are read before this returns, each row group once. Memory: the rows, and the row groups that are being
    read. A part's table is made when it is its turn.

    Raises:
        ValueError: a row group is damaged; the message has the shard, the row group and the repair.
    """
    rows = np.concatenate(parts)
    groups, group_of = np.unique(np.searchsorted(dataset.group_ends, rows, side="right"), return_inverse=True)
    firsts = dataset.group_ends[groups] - dataset.group_sizes[groups]
    by_group = np.argsort(group_of, kind="stable")
    ends = np.cumsum(np.bincount(group_of, minlength=len(groups)))
    wanted = np.split((rows - firsts[group_of])[by_group], ends[:-1])
    tables = _read_groups(dataset, groups.tolist(), wanted, columns)
    empty = arrow_schema(dataset.kind).empty_table().select(list(columns))
    return _in_order(tables, group_of, [len(part) for part in parts], empty)


def read_group(dataset: Dataset, group: int, columns: Sequence[str]) -> pa.Table:
    """Return a row group, numbered over all shards of the data set.

    Raises:
        ValueError: the row group or its shard is damaged, or the shard is another one than `dataset.json` names.
    """
    return _read_group(dataset, group, columns, lambda: state_of(dataset, dataset.groups[group][0]))


def _read_groups(dataset: Dataset, groups: list[int], wanted: list[Rows], columns: Sequence[str]) -> list[pa.Table]:
    """Return the wanted rows of row groups, which are read in parallel."""
    reads = min(LOCAL_READS, os.cpu_count() or 1)
    if not dataset.folder.local:
        reads = STORE_READS
        pa.set_io_thread_count(max(reads, pa.io_thread_count()))
    shards = {dataset.groups[group][0].file: dataset.groups[group][0] for group in groups}
    with ThreadPoolExecutor(reads, thread_name_prefix="groundray-rows") as pool:
        # before the row groups, which wait for them
        states = {file: pool.submit(state_of, dataset, shard) for file, shard in shards.items()}

        def read(group: int, rows: Rows) -> pa.Table:
            state = states[dataset.groups[group][0].file]
            return _read_group(dataset, group, columns, state.result).take(pa.array(rows))

        return list(pool.map(read, groups, wanted))


def _read_group(dataset: Dataset, group: int, columns: Sequence[str], state: Callable[[], State]) -> pa.Table:
    """Return a row group.

    Args:
        state: returns the state of the shard's file.
    """
    shard, number = dataset.groups[group]
    kept = _FOOTERS.get(dataset, shard)
    fragment, table, now, failure = kept.fragment if kept else None, None, None, None
    try:
        fragment = fragment or open_shard(dataset, shard)
        _check_columns(dataset, shard, number, fragment.physical_schema, columns)
        table = fragment.subset(row_group_ids=[number]).to_table(columns=list(columns), use_threads=False)
    except (OSError, pa.ArrowException, IndexError, UnicodeDecodeError) as error:
        failure = error
    try:
        now = state()
        check_size(dataset, shard, now)
        if kept and kept.state != now:  # another file, or the same again
            _FOOTERS.put(dataset, shard, None)
            return _read_group(dataset, group, columns, state)
    except OSError as error:
        failure = failure or error
    if fragment is None or table is None or now is None:
        raise ValueError(
            f"{dataset.folder}/{shard.file}, row group {number} cannot be read ({failure}): restore the file, or "
            f"{repair_of(dataset)}"
        ) from failure
    if not kept:
        _FOOTERS.put(dataset, shard, OpenShard(fragment, now))
    if len(table) != dataset.group_sizes[group]:
        raise ValueError(
            f"{dataset.folder}/{shard.file}, row group {number}: expected {dataset.group_sizes[group]} rows, got "
            f"{len(table)}: {repair_of(dataset)}"
        )
    return table


def _check_columns(dataset: Dataset, shard: Shard, number: int, schema: pa.Schema, columns: Sequence[str]) -> None:
    expected = pa.schema([arrow_schema(dataset.kind).field(name) for name in columns])
    got = pa.schema([schema.field(name) for name in columns if name in schema.names])
    if not got.equals(expected):
        raise ValueError(
            f"{dataset.folder}/{shard.file}, row group {number}: expected columns {_describe(expected)}, got "
            f"{_describe(got)}: restore the file, or {repair_of(dataset)}"
        )


def _describe(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)


def _in_order(
    tables: Sequence[pa.Table], group_of: Rows, lengths: Sequence[int], empty: pa.Table
) -> Iterator[pa.Table]:
    """Yield the rows of each part.

    Args:
        tables: the rows of each row group, in the order in which the parts have them.
        group_of: the row group of each row of all parts.
        lengths: number of rows of each part.
        empty: a part without rows.
    """
    used = np.zeros(len(tables), np.int64)

    def ordered(groups_of_rows: Rows) -> pa.Table:
        groups, counts = np.unique(groups_of_rows, return_counts=True)
        pieces = [tables[group].slice(used[group], count) for group, count in zip(groups, counts, strict=True)]
        if len(groups_of_rows) > 1 and sum(piece.nbytes for piece in pieces) > TAKE_BYTES:
            middle = len(groups_of_rows) // 2
            return pa.concat_tables([ordered(groups_of_rows[:middle]), ordered(groups_of_rows[middle:])])
        used[groups] += counts
        places = np.empty(len(groups_of_rows), np.int64)
        places[np.argsort(groups_of_rows, kind="stable")] = np.arange(len(groups_of_rows))
        return pa.concat_tables(pieces).take(pa.array(places))

    start = 0
    for length in lengths:
        yield ordered(group_of[start : start + length]) if length else empty
        start += length
