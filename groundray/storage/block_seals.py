"""Seals of large files, block by block: blocks are checked in parallel, and some of them without the rest.

The seals of a file belong in a sealed JSON document beside it (storage/seals.py), which is written after the file.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import joblib
import numpy as np
from jaxtyping import UInt8

from groundray.storage.folder import Folder
from groundray.storage.seals import Damaged

BLOCK_BYTES = 2**22
READ_BYTES = 2**24  # of a request to a store
STORE_READS = 16  # requests to a store at the same time
Bytes = UInt8[np.ndarray, " byte"]


class BlockSeals(NamedTuple):
    """Size in bytes of a file, and the SHA-256 of each of its blocks of BLOCK_BYTES; the last one may be shorter."""

    bytes: int
    blocks: tuple[str, ...]

    @staticmethod
    def of(content: Bytes) -> BlockSeals:
        """Return the seals of a file's content, which are computed in parallel."""
        starts = range(0, len(content), BLOCK_BYTES)
        with ThreadPoolExecutor(joblib.cpu_count()) as pool:
            return BlockSeals(len(content), tuple(pool.map(lambda start: _digest(content, start), starts)))

    @staticmethod
    def parse(entry: Mapping[str, Any]) -> BlockSeals:
        """Return the seals that `as_json` gave."""
        return BlockSeals(entry["bytes"], tuple(entry["blocks"]))

    def as_json(self) -> dict[str, Any]:
        return {"bytes": self.bytes, "blocks": list(self.blocks)}

    def check(self, content: Bytes, first_block: int = 0) -> str | None:
        """Return how whole blocks of a file, from a block on, differ from what was sealed; None if they do not."""
        starts = range(0, len(content), BLOCK_BYTES)
        with ThreadPoolExecutor(joblib.cpu_count()) as pool:
            for number, digest in enumerate(pool.map(lambda start: _digest(content, start), starts), first_block):
                if digest != self.blocks[number]:
                    return f"the checksum of its bytes from {number * BLOCK_BYTES:,} on is not the recorded one"
        return None


class SealingWriter:
    """Writes a file from its beginning to its end, and seals its blocks meanwhile."""

    def __init__(self, file: BinaryIO):
        self._file, self._hash = file, hashlib.sha256()
        self._blocks: list[str] = []
        self.bytes = 0  # written so far

    def write(self, content: Any) -> None:
        """Append some bytes, or those of an array in C order."""
        view = memoryview(content).cast("B") if len(content) else memoryview(b"")
        self._file.write(view)
        while len(view):
            room = BLOCK_BYTES - self.bytes % BLOCK_BYTES
            self._hash.update(view[:room])
            self.bytes += len(view[:room])
            view = view[room:]
            if self.bytes % BLOCK_BYTES == 0:
                self._blocks.append(self._hash.hexdigest())
                self._hash = hashlib.sha256()

    def seals(self) -> BlockSeals:
        """Return the seals of what was written."""
        rest = (self._hash.hexdigest(),) if self.bytes % BLOCK_BYTES else ()
        return BlockSeals(self.bytes, (*self._blocks, *rest))


def check_size(folder: Folder, name: str, seals: BlockSeals, repair: str) -> None:
    """Compare the size of a file with its seals.

    Raises:
        Damaged: it is missing, no file, or has another size.
    """
    size = folder.filesystem.get_file_info(folder.locate(name)).size
    if size != seals.bytes:
        reason = "it is missing" if size is None else f"it has {size} bytes of {seals.bytes}"
        raise Damaged(f"{folder}/{name}", reason, repair)


def map_sealed(folder: Folder, name: str, seals: BlockSeals, repair: str) -> Bytes:
    """Return the bytes of a local file, mapped into memory after one pass that checks them. Processes of a machine that
    map it share its memory; what is written to the array stays in this process.

    Raises:
        Damaged: the file is missing or differs from its seals.
    """
    check_size(folder, name, seals, repair)
    if not seals.bytes:
        return np.empty(0, np.uint8)
    content = np.memmap(Path(folder.locate(name)), np.uint8, mode="c")
    if damage := seals.check(content):
        raise Damaged(f"{folder}/{name}", damage, repair)
    return content


def read_sealed_bytes(folder: Folder, name: str, seals: BlockSeals, start: int, stop: int, repair: str) -> Bytes:
    """Return bytes `start` to `stop` of a file, read in parallel in ranges of READ_BYTES; its blocks are checked.

    Raises:
        Damaged: they differ from their seals.
        OSError: the file cannot be read.
    """
    first, last = start // BLOCK_BYTES, -(-stop // BLOCK_BYTES)
    begin, end = first * BLOCK_BYTES, min(seals.bytes, last * BLOCK_BYTES)
    content = np.empty(max(0, end - begin), np.uint8)

    def keep(part: bytes, at: int) -> None:
        content[at - begin : at - begin + len(part)] = np.frombuffer(part, np.uint8)

    _read_ranges(folder, name, begin, end, keep)
    if damage := seals.check(content, first):
        raise Damaged(f"{folder}/{name}", damage, repair)
    return content[start - begin : stop - begin]


def map_copy(folder: Folder, name: str, seals: BlockSeals, repair: str) -> Bytes:
    """Return the bytes of a file in a store, mapped into memory: they are copied to a temporary file, which has no name
    and ends with the array, and checked there. So a file may be larger than the memory.

    Raises:
        Damaged: they differ from their seals.
        ValueError: the disk of temporary files has no room.
        OSError: the file cannot be read.
    """
    check_size(folder, name, seals, repair)
    if not seals.bytes:
        return np.empty(0, np.uint8)
    Folder.at(tempfile.gettempdir()).check_room(
        seals.bytes, f"a local copy of {folder}/{name} takes", "free space there, or set TMPDIR to a larger disk"
    )
    with tempfile.TemporaryFile() as file:
        _read_ranges(folder, name, 0, seals.bytes, lambda part, at: _write_at(file.fileno(), part, at))
        if file.seek(0, os.SEEK_END) != seals.bytes:
            raise Damaged(f"{folder}/{name}", f"it has {file.tell()} bytes of {seals.bytes}", repair)
        content = np.memmap(file, np.uint8, mode="c")
    if damage := seals.check(content):
        raise Damaged(f"{folder}/{name}", damage, repair)
    return content


def _read_ranges(folder: Folder, name: str, begin: int, end: int, take: Callable[[bytes, int], None]) -> None:
    """Read bytes `begin` to `end` of a file in parallel, and pass each range of them on, with its place in the file."""
    with folder.readable_errors(), folder.filesystem.open_input_file(folder.locate(name)) as file:

        def read(at: int) -> None:
            take(file.read_at(min(READ_BYTES, end - at), at), at)

        with ThreadPoolExecutor(STORE_READS) as pool:
            for _ in pool.map(read, range(begin, end, READ_BYTES)):
                pass


def _write_at(file: int, content: bytes, at: int) -> None:
    left = memoryview(content)
    while left:
        count = os.pwrite(file, left, at)
        left, at = left[count:], at + count


def _digest(content: Bytes, start: int) -> str:
    block: Any = content[start : start + BLOCK_BYTES]
    return hashlib.sha256(block).hexdigest()
