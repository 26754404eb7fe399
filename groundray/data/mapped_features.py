"""Feature maps in shards on this machine, copied from mapped files into the arrays of a batch.

A shard of feature maps is one column of byte strings of one length, uncompressed: a map lies in the file as it does in
a batch. So it is copied once, and only the pages that are asked for are read from the disk. The checksums of a row
group's pages are compared when it is first used.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from groundray.data.footers import State, check_size, open_shard, repair_of, state_of
from groundray.data.parquet_pages import PLAIN, pages
from groundray.data.schema import Dataset

COLUMN = "image"
MAPPED = 4096  # row groups that stay mapped, of about 16 MB each
READS = 8  # row groups whose checksums are compared at the same time
LENGTH_BYTES = 4  # before each byte string of a page
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Group:
    """A mapped row group.

    Attributes:
        content: the bytes of the file.
        starts: the place in it where each map begins.
        size: bytes of a map.
    """

    content: npt.NDArray[np.uint8]
    starts: Rows
    size: int


class MappedFeatures:
    """The feature maps of a data set of kind `trunk_features` in a local folder. Threads may share it."""

    def __init__(self, dataset: Dataset):
        self._dataset = dataset
        self._groups = lru_cache(MAPPED)(self._mapped)

    def __reduce__(self) -> tuple[type[MappedFeatures], tuple[Dataset]]:
        return MappedFeatures, (self._dataset,)

    def read_ahead(self, rows: Iterable[Rows]) -> None:
        """Read the row groups that hold some rows from the disk, and compare their checksums if they are new.

        Raises:
            ValueError: one is damaged; the message has the shard, the row group and the repair.
        """
        groups = np.unique(np.concatenate([self._group_of(part) for part in rows]))
        with ThreadPoolExecutor(READS, thread_name_prefix="groundray-features") as pool:
            for _ in pool.map(self._group, groups.tolist()):
                pass

    def maps(self, rows: Rows) -> pa.LargeBinaryArray:
        """Return the maps of rows, in this order, in memory of their own.

        Raises:
            ValueError: a row group is damaged; the message has the shard, the row group and the repair.
        """
        group_of = self._group_of(rows)
        groups = {group: self._group(group) for group in np.unique(group_of).tolist()}
        size = next((group.size for group in groups.values()), 0)
        # Arrow keeps memory that was freed: fresh memory would cost as much time as the copies
        buffer = pa.allocate_buffer(len(rows) * size)
        copied = np.frombuffer(buffer, np.uint8).reshape(len(rows), size)
        within = rows - (self._dataset.group_ends - self._dataset.group_sizes)[group_of] if len(rows) else rows
        for place, (number, row) in enumerate(zip(group_of.tolist(), within.tolist(), strict=True)):
            group = groups[number]
            start = group.starts[row]
            copied[place] = group.content[start : start + size]
        offsets = pa.py_buffer(np.arange(len(rows) + 1, dtype=np.int64) * size)
        return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(rows), [None, offsets, buffer])

    def _group_of(self, rows: Rows) -> Rows:
        return np.searchsorted(self._dataset.group_ends, rows, side="right")

    def _group(self, group: int) -> _Group:
        """Return a row group, mapped again if its file was replaced.

        Raises:
            ValueError: it is damaged, or another than the data set's index names.
        """
        shard, number = self._dataset.groups[group]
        try:
            return self._groups(group, state_of(self._dataset, shard))
        except (OSError, pa.ArrowException, _Unreadable) as error:
            raise ValueError(
                f"{self._dataset.folder}/{shard.file}, row group {number} cannot be read ({error}): restore the file, "
                f"or {repair_of(self._dataset)}"
            ) from error

    def _mapped(self, group: int, state: State) -> _Group:
        """Map a row group of a file in a state, and compare its checksums."""
        shard, number = self._dataset.groups[group]
        check_size(self._dataset, shard, state)
        column = open_shard(self._dataset, shard).metadata.row_group(number).column(0)
        if column.path_in_schema != COLUMN or column.compression != "UNCOMPRESSED":
            raise _Unreadable(f"expected an uncompressed column {COLUMN!r}, got {column.path_in_schema}")
        with pa.memory_map(self._dataset.folder.locate(shard.file)) as file:
            buffer = file.read_buffer(shard.bytes)
        content = memoryview(buffer).cast("B")
        starts: list[Rows] = []
        sizes: set[int] = set()
        end = column.data_page_offset + column.total_compressed_size
        try:
            for page in pages(content, column.data_page_offset, end):
                values = content[page.start : page.start + page.size]
                if page.encoding != PLAIN or page.rows == 0 or page.size % page.rows:
                    raise _Unreadable(f"expected maps of one size, got {page.rows} in {page.size} bytes")
                if page.checksum is not None and zlib.crc32(values) != page.checksum & 0xFFFFFFFF:
                    raise _Unreadable("a page has another checksum")
                stride = page.size // page.rows
                lengths = np.frombuffer(values, np.uint8).reshape(page.rows, stride)[:, :LENGTH_BYTES].copy()
                sizes |= set(lengths.view("<u4").ravel().tolist()) | {stride - LENGTH_BYTES}
                starts.append(page.start + LENGTH_BYTES + stride * np.arange(page.rows))
        except ValueError as error:
            raise _Unreadable(str(error)) from error
        places = np.concatenate(starts)
        if len(sizes) != 1 or len(places) != shard.row_groups[number]:
            raise _Unreadable(f"expected {shard.row_groups[number]} maps of one size, got {len(places)} of {sizes}")
        return _Group(np.frombuffer(buffer, np.uint8), places, sizes.pop())


class _Unreadable(ValueError):
    """A row group is not what groundray writes."""
