"""Feature maps in shards on this machine, read from their files into the arrays of a batch.

A shard of feature maps is one column of byte strings of one length, uncompressed: a map lies in the file as it does in
a batch. So the kernel copies it once, and only what a batch asks for is read from the disk. The checksums of a row
group's pages are compared when a process first uses it, and again when its file has changed.

The files are not mapped: one that is truncated while it is read would end the process without a message (SIGBUS).
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from zlib_ng import zlib_ng

from groundray.data.footers import State, check_footer, check_size, repair_of
from groundray.data.parquet_pages import PLAIN, Page, pages
from groundray.data.schema import Dataset

COLUMN = "image"
READS = 8  # row groups whose checksums are compared at the same time
LENGTH_BYTES = 4  # before each byte string of a page
BLOCK_BYTES = 2**17  # of a page at a time, which stay in a core's cache between the copy and the checksum
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Group:
    """The places of a row group's maps in a file whose checksums were compared.

    Attributes:
        state: the file's.
        size: bytes of a map.
        firsts: number of the first row of each page.
        starts: place of each page's values.
    """

    state: State
    size: int
    firsts: tuple[int, ...]
    starts: tuple[int, ...]

    def start_of(self, row: int) -> int:
        """Return the place where the map of a row begins."""
        page = bisect_right(self.firsts, row) - 1
        return self.starts[page] + (row - self.firsts[page]) * (LENGTH_BYTES + self.size) + LENGTH_BYTES


class LocalFeatures:
    """The feature maps of a data set of kind `trunk_features` in a local folder. Threads may share it."""

    def __init__(self, dataset: Dataset):
        self._dataset = dataset
        self._groups: dict[int, _Group] = {}  # some 300 bytes for each of 16 MB

    def __reduce__(self) -> tuple[type[LocalFeatures], tuple[Dataset]]:
        return LocalFeatures, (self._dataset,)

    def check(self, rows: Iterable[Rows]) -> None:
        """Read the row groups that hold some rows and are new, and compare their checksums.

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

    def maps(self, rows: Rows) -> pa.LargeBinaryArray:
        """Return the maps of rows, in this order, in memory of their own.

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
                    buffer = pa.allocate_buffer(len(rows) * found.size)
                    copied = np.frombuffer(buffer, np.uint8).reshape(len(rows), found.size)
                if found.size != copied.shape[1]:
                    raise _Unreadable(f"expected maps of {copied.shape[1]} bytes, got {found.size}")
                for place, row in zip(here.tolist(), (rows[here] - first).tolist(), strict=True):
                    _read_into(file, copied[place], found.start_of(row))
        offsets = pa.py_buffer(np.arange(len(rows) + 1, dtype=np.int64) * copied.shape[1])
        return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(rows), [None, offsets, buffer])

    def _group_of(self, rows: Rows) -> Rows:
        return np.searchsorted(self._dataset.group_ends, rows, side="right")

    @contextmanager
    def _opened(self, group: int) -> Iterator[tuple[int, _Group]]:
        """Open a row group's file, and check the row group if it is new or its file was replaced.

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
                    found = self._groups[group] = self._checked(group, file, state)
                yield file, found
            finally:
                os.close(file)
        except (OSError, pa.ArrowException, _Unreadable) as error:
            raise ValueError(
                f"{self._dataset.folder}/{shard.file}, row group {number} cannot be read ({error}): restore the file, "
                f"or {repair_of(self._dataset)}"
            ) from error

    def _checked(self, group: int, file: int, state: State) -> _Group:
        """Return a row group of an open file, after its checksums were compared."""
        shard, number = self._dataset.groups[group]
        check_size(self._dataset, shard, state)
        with open(file, "rb", closefd=False) as whole:
            metadata = pq.read_metadata(whole)
        check_footer(self._dataset, shard, metadata)
        column = metadata.row_group(number).column(0)
        if column.path_in_schema != COLUMN or column.compression != "UNCOMPRESSED":
            raise _Unreadable(f"expected an uncompressed column {COLUMN!r}, got {column.path_in_schema}")
        start, rows = column.data_page_offset, 0
        firsts, starts, sizes = [], [], set()
        try:
            for page in pages(
                lambda place, size: os.pread(file, size, place), start, start + column.total_compressed_size
            ):
                sizes.add(_checked_size(file, page))
                firsts.append(rows)
                starts.append(page.start)
                rows += page.rows
        except ValueError as error:
            raise _Unreadable(str(error)) from error
        if len(sizes) != 1 or rows != shard.row_groups[number]:
            raise _Unreadable(f"expected {shard.row_groups[number]} maps of one size, got {rows} of {sizes}")
        return _Group(state, sizes.pop(), tuple(firsts), tuple(starts))


class _Unreadable(ValueError):
    """A row group is not what groundray writes."""


def _checked_size(file: int, page: Page) -> int:
    """Return the size of a page's maps in bytes, after its checksum was compared."""
    if page.encoding != PLAIN or page.rows == 0 or page.size % page.rows or page.size // page.rows < LENGTH_BYTES:
        raise _Unreadable(f"expected maps of one size, got {page.rows} in {page.size} bytes")
    stride = page.size // page.rows
    block = np.empty((min(page.rows, max(1, BLOCK_BYTES // stride)), stride), np.uint8)
    checksum = 0
    for first in range(0, page.rows, len(block)):
        part = block[: page.rows - first]
        _read_into(file, part, page.start + first * stride)
        checksum = zlib_ng.crc32(part.data, checksum)  # ten times as fast as zlib's
        if np.any(part[:, :LENGTH_BYTES].copy().view("<u4") != stride - LENGTH_BYTES):
            raise _Unreadable("expected maps of one size")
    if page.checksum is not None and checksum != page.checksum & 0xFFFFFFFF:
        raise _Unreadable("a page has another checksum")
    return stride - LENGTH_BYTES


def _read_into(file: int, array: npt.NDArray[np.uint8], start: int) -> None:
    """Fill an array with a file's bytes from a place on.

    Raises:
        _Unreadable: the file ends before.
    """
    left = array.data.cast("B")
    while left:
        count = os.preadv(file, [left], start)
        if not count:
            raise _Unreadable(f"it ends at byte {start} since it was opened")
        left, start = left[count:], start + count
