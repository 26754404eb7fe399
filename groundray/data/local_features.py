"""Feature maps in shards on this machine, read from their files into the arrays of a batch.

A shard of feature maps is one column of byte strings of one length, uncompressed: a map lies in the file as it does in
a batch. So the kernel copies it once, and only what a batch asks for is read from the disk. The checksum of a map
(`row_checksums.py`) is compared when a process first reads it, while the copy is in a core's cache, and again when its
file has changed. Small maps and those of earlier versions have none: all pages of their row group are read first, and
their checksums compared.

The files are not mapped: one that is truncated while it is read would end the process without a message (SIGBUS).
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from groundray.data.footers import State, check_footer, check_size, repair_of
from groundray.data.parquet_pages import PLAIN, Page, pages
from groundray.data.row_checksums import checksum, joined, read_checksums
from groundray.data.schema import Dataset, arrow_schema

READS = 8  # row groups that are opened for the first time at the same time
LENGTH_BYTES = 4  # before each byte string of a page
BLOCK_BYTES = 2**17  # of a page at a time, which stay in a core's cache between the copy and the checksum
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Group:
    """The places of a row group's maps in a file.

    Attributes:
        state: the file's.
        size: bytes of a map.
        firsts: number of the first row of each page.
        starts: place of each page's values.
        checksums: of each row; None where those of the pages were compared.
        compared: 1 for each row whose checksum was compared.
    """

    state: State
    size: int
    firsts: tuple[int, ...]
    starts: tuple[int, ...]
    checksums: array[int] | None
    compared: bytearray

    def read_into(self, file: int, row: int, copied: npt.NDArray[np.uint8], part: int = 0) -> None:
        """Fill an array with the map of a row; a smaller array with that one of the map's parts of this size.

        Raises:
            _Unreadable: it is damaged.
        """
        if copied.nbytes < self.size and self.checksums and not self.compared[row]:
            whole = np.empty(self.size, np.uint8)
            self.read_into(file, row, whole)
            copied[:] = whole[part * copied.nbytes : (part + 1) * copied.nbytes]
            return
        page = bisect_right(self.firsts, row) - 1
        start = self.starts[page] + (row - self.firsts[page]) * (LENGTH_BYTES + self.size)
        if copied.nbytes < self.size:
            _read_into(file, start + LENGTH_BYTES + part * copied.nbytes, copied.data)
            return
        length = bytearray(LENGTH_BYTES)
        _read_into(file, start, length, copied.data)
        if self.checksums and not self.compared[row]:
            _compare(checksum(length, copied.data), self.checksums[row], f"map {row}")
            self.compared[row] = 1


class LocalFeatures:
    """The feature maps of a data set of one column in a local folder. Threads may share it."""

    def __init__(self, dataset: Dataset):
        self._dataset = dataset
        self._groups: dict[int, _Group] = {}  # some 500 bytes for each of 16 MB, and 5 for each large map

    def __reduce__(self) -> tuple[type[LocalFeatures], tuple[Dataset]]:
        return LocalFeatures, (self._dataset,)

    def check(self, rows: Iterable[Rows]) -> None:
        """Open the row groups that hold some rows and are new, and compare those checksums that `maps` does not.

        Raises:
            ValueError: one is damaged; the message has the shard, the row group and the repair.
        """

        def check(group: int) -> None:
            with self._opened(group):
                pass

        groups = np.unique(np.concatenate([self._group_of(part) for part in rows]))
        with ThreadPoolExecutor(READS, thread_name_prefix="groundray-features") as pool:
            for _ in pool.map(check, groups.tolist()):
                pass

    def maps(self, rows: Rows, parts: Rows | None = None, count: int = 1) -> pa.LargeBinaryArray:
        """Return the maps of rows, in this order, in memory of their own.

        Args:
            parts: which part of each row's map to read, from 0; None for whole maps.
            count: number of equal parts of a map.

        Raises:
            ValueError: a row group is damaged; the message has the shard, the row group and the repair.
        """
        places = np.argsort(rows, kind="stable")  # as they lie in the files
        groups, counts = np.unique(self._group_of(rows), return_counts=True)
        firsts = (self._dataset.group_ends - self._dataset.group_sizes)[groups]
        buffer, copied = pa.allocate_buffer(0), np.empty((len(rows), 0), np.uint8)
        for group, first, here in zip(groups.tolist(), firsts, np.split(places, np.cumsum(counts)[:-1]), strict=False):
            with self._opened(group) as (file, found):
                if not len(buffer):
                    # Arrow keeps memory that was freed: fresh memory would cost as much time as the copies
                    buffer = pa.allocate_buffer(len(rows) * (found.size // count))
                    copied = np.frombuffer(buffer, np.uint8).reshape(len(rows), found.size // count)
                if found.size != copied.shape[1] * count:
                    raise _Unreadable(f"expected maps of {copied.shape[1] * count} bytes, got {found.size}")
                for place, row in zip(here.tolist(), (rows[here] - first).tolist(), strict=True):
                    found.read_into(file, row, copied[place], int(parts[place]) if parts is not None else 0)
        offsets = pa.py_buffer(np.arange(len(rows) + 1, dtype=np.int64) * copied.shape[1])
        return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(rows), [None, offsets, buffer])

    def _group_of(self, rows: Rows) -> Rows:
        return np.searchsorted(self._dataset.group_ends, rows, side="right")

    @contextmanager
    def _opened(self, group: int) -> Iterator[tuple[int, _Group]]:
        """Open a row group's file, and find its maps if the row group is new or its file was replaced.

        Raises:
            ValueError: it is damaged, is another than the data set's index names, or cannot be read inside the context.
        """
        shard, number = self._dataset.groups[group]
        try:
            file = os.open(self._dataset.folder.locate(shard.file), os.O_RDONLY)
            try:
                status = os.fstat(file)
                state = State(status.st_size, status.st_mtime_ns)
                found = self._groups.get(group)
                if found is None or found.state != state:
                    found = self._groups[group] = self._found(group, file, state)
                yield file, found
            finally:
                os.close(file)
        except (OSError, pa.ArrowException, _Unreadable) as error:
            raise ValueError(
                f"{self._dataset.folder}/{shard.file}, row group {number} cannot be read ({error}): restore the file, "
                f"or {repair_of(self._dataset)}"
            ) from error

    def _found(self, group: int, file: int, state: State) -> _Group:
        """Return a row group of an open file, after the checksums of its pages were compared: with those of its rows,
        or with the pages."""
        shard, number = self._dataset.groups[group]
        check_size(self._dataset, shard, state)
        with open(file, "rb", closefd=False) as whole:
            metadata = pq.read_metadata(whole)
        check_footer(self._dataset, shard, metadata)
        column = metadata.row_group(number).column(0)
        (name,) = arrow_schema(self._dataset.kind).names
        if column.path_in_schema != name or column.compression != "UNCOMPRESSED":
            raise _Unreadable(f"expected an uncompressed column {name!r}, got {column.path_in_schema}")
        start, rows = column.data_page_offset, 0
        firsts, starts, sizes = [], [], set()
        try:
            checksums = read_checksums(metadata, number)
            for page in pages(
                lambda place, size: os.pread(file, size, place), start, start + column.total_compressed_size
            ):
                sizes.add(_size_of_maps(page))
                if checksums is None:
                    found = _checksum(file, page)
                else:
                    found = joined(checksums[rows : rows + page.rows], page.size // page.rows)
                if page.checksum is not None:
                    _compare(found, page.checksum & 0xFFFFFFFF, "a page")
                firsts.append(rows)
                starts.append(page.start)
                rows += page.rows
        except ValueError as error:
            raise _Unreadable(str(error)) from error
        if len(sizes) != 1 or rows != shard.row_groups[number]:
            raise _Unreadable(f"expected {shard.row_groups[number]} maps of one size, got {rows} of {sizes}")
        return _Group(state, sizes.pop(), tuple(firsts), tuple(starts), checksums, bytearray(rows))


class _Unreadable(ValueError):
    """A row group is not what groundray writes."""


def _size_of_maps(page: Page) -> int:
    """Return the size of a page's maps in bytes, if all have the same."""
    if page.encoding != PLAIN or page.rows <= 0 or page.size % page.rows or page.size // page.rows < LENGTH_BYTES:
        raise _Unreadable(f"expected maps of one size, got {page.rows} in {page.size} bytes")
    return page.size // page.rows - LENGTH_BYTES


def _checksum(file: int, page: Page) -> int:
    """Return the checksum of a page, which is read."""
    stride = page.size // page.rows
    block = np.empty((min(page.rows, max(1, BLOCK_BYTES // stride)), stride), np.uint8)
    found = 0
    for first in range(0, page.rows, len(block)):
        part = block[: page.rows - first]
        _read_into(file, page.start + first * stride, part.data)
        found = checksum(part.data, begun=found)
        if np.any(part[:, :LENGTH_BYTES].copy().view("<u4") != stride - LENGTH_BYTES):
            raise _Unreadable("expected maps of one size")
    return found


def _compare(found: int, expected: int, what: str) -> None:
    if found != expected:
        raise _Unreadable(f"{what} has another checksum")


def _read_into(file: int, start: int, *parts: bytearray | memoryview) -> None:
    """Fill parts of memory with a file's bytes from a place on, one after the other.

    Raises:
        _Unreadable: the file ends before.
    """
    left = [memoryview(part).cast("B") for part in parts]
    while left:
        count = os.preadv(file, left, start)
        if not count:
            raise _Unreadable(f"it ends at byte {start} since it was opened")
        start += count
        while left and count >= len(left[0]):
            count -= len(left.pop(0))
        if left:
            left[0] = left[0][count:]
