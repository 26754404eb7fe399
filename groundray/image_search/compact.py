"""The compact file of an index: the vectors, sizes and ids of all images, opened with one read.

    FOLDER/KEY/compact.bin    sections: vectors, sizes, order of ids, ends of ids, ids
    FOLDER/KEY/compact.json   where each section lies, and the seals of the file's blocks; written last

It is made of the index's parts when they are complete, and again when it is missing or damaged. A local file is mapped
into memory, which the processes of a machine share; one in a store is read in ranges, to a temporary file. Vectors are
float16, as the parts have them: 1.5 kB an image at width 768.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Float16, Int32

from groundray.data.ahead import map_ahead
from groundray.data.row_groups import read_group
from groundray.data.schema import Dataset
from groundray.data.shards import READS
from groundray.image_search.image_ids import ImageIds
from groundray.storage.block_seals import (
    BlockSeals,
    SealingWriter,
    check_size,
    map_copy,
    map_sealed,
    read_sealed_bytes,
)
from groundray.storage.folder import Folder

FILE, ABOUT = "compact.bin", "compact.json"
FILES = (FILE, ABOUT)
FORMAT = 1  # of the compact file; increment it when its content changes
ALIGNED = 64  # bytes; sections begin at multiples
CACHED_VECTORS = 4096  # of a store
REPAIR = "delete it, and the next search makes it again"
ANOTHER_FOLDER = "free space there, or choose a folder on a larger disk with --index"


class Compact(NamedTuple):
    """The content of a compact file.

    Attributes:
        vectors: of length 1 up to rounding; an array, or those in a store.
        sizes: the images' widths and heights, in pixels.
    """

    vectors: Float16[np.ndarray, "image dim"] | StoredVectors
    sizes: Int32[np.ndarray, "image 2"]
    ids: ImageIds


@dataclass(frozen=True)
class Section:
    """A part of the file: an array of numbers."""

    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def stop(self) -> int:
        return self.start + math.prod(self.shape) * np.dtype(self.dtype).itemsize


class StoredVectors:
    """The vectors of a compact file in a store, read when they are asked for; the last CACHED_VECTORS are kept."""

    def __init__(self, folder: Folder, section: Section, seals: BlockSeals):
        count, width = section.shape
        self._count = count

        def read(row: int) -> Float16[np.ndarray, " dim"]:
            start = section.start + row * 2 * width
            content = read_sealed_bytes(folder, FILE, seals, start, start + 2 * width, REPAIR)
            return content.copy().view(section.dtype)  # without the rest of its block

        self._read = lru_cache(CACHED_VECTORS)(read)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: int) -> Float16[np.ndarray, " dim"]:
        return self._read(row)


def write_compact(dataset: Dataset, folder: Folder) -> None:
    """Write the compact file of a complete index.

    Memory: some row groups, and about 60 bytes an image beside its id.

    Raises:
        ValueError: two images have the same id, a part is damaged, or the disk has no room.
    """
    rows, width = dataset.rows, int(dataset.source["width"])
    folder.check_room(rows * (2 * width + 60), "the compact file of the index takes", ANOTHER_FOLDER)
    columns: list[pa.Table] = []
    with folder.open_output(FILE) as file:
        writer, sections = SealingWriter(file), dict[str, Section]()
        sections["vectors"] = Section("<f2", (rows, width), 0)
        for table in _groups(dataset):
            vectors = table["vector"].combine_chunks()
            writer.write(vectors.flatten().to_numpy().reshape(len(table), width).astype("<f2", copy=False))
            columns.append(table.select(["id", "width", "height"]))
        table = pa.concat_tables(columns)
        ids = ImageIds.of(table["id"])
        sizes = np.stack([table["width"].to_numpy(), table["height"].to_numpy()], axis=1)
        for name, array in {"sizes": sizes, "order": ids.order, "ends": ids.ends, "ids": ids.text}.items():
            writer.write(bytes(-writer.bytes % ALIGNED))
            stored = array.astype(array.dtype.newbyteorder("<"), copy=False)
            sections[name] = Section(stored.dtype.str, stored.shape, writer.bytes)
            writer.write(stored)
    about = {
        "format": FORMAT,
        "made_of": dataset.fingerprint,
        "sections": {name: vars(section) for name, section in sections.items()},
        "file": writer.seals().as_json(),
    }
    folder.write_sealed(ABOUT, about)


def check_compact(dataset: Dataset, folder: Folder) -> tuple[dict[str, Section], BlockSeals]:
    """Return the sections and seals of the compact file of an index, after a check of its size. It is not read.

    Raises:
        FileNotFoundError: there is none, or it is one of other parts or of another version.
        Damaged: it is damaged.
    """
    about = folder.read_sealed(ABOUT, repair=REPAIR)
    if (about.get("format"), about.get("made_of")) != (FORMAT, dataset.fingerprint):
        raise FileNotFoundError(f"{folder}/{ABOUT} is not of this index")
    seals = BlockSeals.parse(about["file"])
    check_size(folder, FILE, seals, REPAIR)
    return {
        name: Section(each["dtype"], tuple(each["shape"]), each["start"]) for name, each in about["sections"].items()
    }, seals


def open_compact(dataset: Dataset, folder: Folder, keep_vectors_in_store: bool = False) -> Compact:
    """Open the compact file of an index, and check it.

    Args:
        keep_vectors_in_store: of a store, read no vector until it is asked for.

    Raises:
        FileNotFoundError, Damaged: as `check_compact`.
    """
    sections, seals = check_compact(dataset, folder)
    vectors: np.ndarray | StoredVectors
    if not folder.local and keep_vectors_in_store:
        start = sections["sizes"].start
        content = read_sealed_bytes(folder, FILE, seals, start, seals.bytes, REPAIR)
        vectors = StoredVectors(folder, sections["vectors"], seals)
    else:
        start, mapped = 0, map_sealed if folder.local else map_copy
        content = mapped(folder, FILE, seals, REPAIR)
        vectors = _array(content, sections["vectors"], start)
    arrays = {name: _array(content, sections[name], start) for name in ("sizes", "order", "ends", "ids")}
    return Compact(vectors, arrays["sizes"], ImageIds(arrays["ids"], arrays["ends"], arrays["order"]))


def _array(content: np.ndarray, section: Section, start: int) -> np.ndarray:
    """Return a section of a file whose bytes from `start` on are in memory, as a plain array over the same memory."""
    part = np.asarray(content[section.start - start : section.stop - start])
    return part.view(section.dtype).reshape(section.shape)


def _groups(dataset: Dataset) -> Iterator[pa.Table]:
    """Yield the row groups without their thumbnails, read in parallel."""
    with ThreadPoolExecutor(READS) as pool:
        yield from map_ahead(
            pool,
            lambda group: read_group(dataset, group, ["id", "width", "height", "vector"]),
            range(len(dataset.groups)),
            2 * READS,
        )
