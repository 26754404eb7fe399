"""Checksums of the rows of a shard of large byte strings, in its metadata.

A page of a shard of feature maps holds 16 MB of them, and its checksum tells of all or none: with a checksum for each
row, a reader compares those that it needs, while it needs them. Each is the CRC-32 of a row as it is in a page, the
length of its byte string and its bytes, so that the checksum of a page follows from those of its rows.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from zlib_ng import zlib_ng  # its CRC-32 is ten times as fast as zlib's

from groundray.data.footers import value_of

CHECKSUMS = "groundray.checksums"  # key of a shard's metadata: eight hexadecimal digits a row
ROW_BYTES = 2**14  # of a row on average, from which on a shard has them: they take a two-thousandth of it, or less


def row_checksums(table: pa.Table) -> str | None:
    """Return the checksums of a table's rows as hexadecimal digits; None where they are small or in several columns."""
    if table.num_columns > 1 or not pa.types.is_large_binary(table.schema.field(0).type):
        return None
    if table.nbytes < ROW_BYTES * max(1, len(table)):
        return None
    return b"".join(
        checksum(len(value).to_bytes(4, "little"), value).to_bytes(4, "big")
        for chunk in table.column(0).chunks
        if len(chunk)
        for value in _values(chunk)
    ).hex()


def checksum(*parts: bytes | bytearray | memoryview, begun: int = 0) -> int:
    """Return the CRC-32 of byte strings that follow each other, and those before them, whose checksum is `begun`."""
    for part in parts:
        begun = zlib_ng.crc32(part, begun)
    return begun


def read_checksums(metadata: pq.FileMetaData, group: int) -> array[int] | None:
    """Return the checksums of a row group's rows; None in shards of small rows and of earlier versions.

    Raises:
        ValueError: there are others than one for each row of the shard.
    """
    digits = value_of(metadata, CHECKSUMS)
    if digits is None:
        return None
    found = bytes.fromhex(digits)
    if len(found) != 4 * metadata.num_rows:
        raise ValueError(f"expected checksums of {metadata.num_rows} rows, got {len(found) / 4:g}")
    first = sum(metadata.row_group(number).num_rows for number in range(group))
    return array("I", np.frombuffer(found, ">u4")[first : first + metadata.row_group(group).num_rows].tolist())


def joined(checksums: Sequence[int], size: int) -> int:
    """Return the checksum of rows of a size that follow each other, from the checksums of the rows."""
    found = 0
    for one in checksums:
        found = zlib_ng.crc32_combine(found, one, size)
    return found


def _values(column: pa.LargeBinaryArray) -> list[memoryview]:
    """Return the byte strings of an array, in its own memory."""
    _, offsets, content = column.buffers()
    ends = np.frombuffer(offsets, np.int64)[column.offset : column.offset + len(column) + 1].tolist()
    whole = memoryview(content)
    return [whole[start:end] for start, end in pairwise(ends)]
