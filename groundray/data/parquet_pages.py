"""The pages of a column in a Parquet file, which pyarrow does not show: their places, rows and checksums.

A page begins with a header in Thrift's compact protocol (parquet.thrift, `PageHeader`). Only what a header needs is
read of the protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

DATA_PAGE, PLAIN = 0, 0
HEADER_BYTES = 1024  # at most; those of groundray's shards have 30
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 12


class Page(NamedTuple):
    """A data page: where its values begin in the file, their size in bytes, their number, encoding and CRC-32."""

    start: int
    size: int
    rows: int
    encoding: int
    checksum: int | None


def pages(read: Callable[[int, int], bytes], start: int, end: int) -> Iterator[Page]:
    """Yield the data pages of an uncompressed column.

    Args:
        read: returns the bytes of the file from a place on, as many as asked for, or up to its end.
        start, end: of the column's pages in the file.

    Raises:
        ValueError: there is something else.
    """
    at = start
    while at < end:
        try:
            header, length = _struct(read(at, HEADER_BYTES), 0)
            kind, size, data = header[1], header[3], header[5]
            page = Page(at + length, size, data[1], data[2], header.get(4))
        except (IndexError, KeyError, TypeError) as error:
            raise ValueError(f"no header of a data page at byte {at}") from error
        if kind != DATA_PAGE or size < 0 or page.start + size > end:
            raise ValueError(f"a page of kind {kind} and {size} bytes at byte {at}, where the column ends at {end}")
        yield page
        at = page.start + size


def _struct(content: bytes, at: int) -> tuple[dict[int, Any], int]:
    """Return the fields of a struct by id, and the place after it."""
    fields: dict[int, Any] = {}
    id = 0
    while head := content[at]:
        at += 1
        if head >> 4:
            id += head >> 4
        else:
            id, at = _integer(content, at)
        fields[id], at = _value(content, at, head & 15)
    return fields, at + 1


def _value(content: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind in (_TRUE, _FALSE):
        return kind == _TRUE, at
    if kind == _BYTE:
        return content[at], at + 1
    if kind == _DOUBLE:
        return None, at + 8
    if kind == _BINARY:
        size, at = _unsigned(content, at)
        return None, at + size
    if kind == _STRUCT:
        return _struct(content, at)
    if kind in (_LIST, _SET):
        raise TypeError("a header has no list")
    return _integer(content, at)


def _integer(content: bytes, at: int) -> tuple[int, int]:
    value, at = _unsigned(content, at)
    return (value >> 1) ^ -(value & 1), at


def _unsigned(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
