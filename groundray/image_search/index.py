"""Index of a pool of images: a vector and a thumbnail of each, built once and kept.

    FOLDER/KEY/part-00012-003.parquet ...   parts of the images' row groups (`data/derived.py`)
    FOLDER/KEY/dataset.json                 written when all parts are
    FOLDER/KEY/compact.bin, compact.json    made of the parts: vectors, sizes and ids (`compact.py`)
    FOLDER/KEY/ivf.*                        of a large pool (`inverted_file.py`)
    FOLDER/KEY/matches-*                    usual matches of words on a sample of the images (`calibration.py`)

KEY is a hash of the weights that a picture passes, its preprocessing, the images' fingerprint, the code, the libraries
and the arithmetic (`storage/cache_key.py`). An index is therefore never stale: another model or other images have
another key. Unused indexes may be deleted at any time.
"""

from __future__ import annotations

import io
import logging
import posixpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float32, Int64

from groundray.data import image_decoder
from groundray.data.derived import DerivedDataset, check_room, finalize, make_missing, open_derived
from groundray.data.image_decoder import UnusableImage, decode, size
from groundray.data.removed_rows import removed_rows
from groundray.data.row_groups import read_group
from groundray.data.schema import KINDS, Dataset
from groundray.image_search import compact
from groundray.image_search.compact import Compact, check_compact, open_compact, write_compact
from groundray.image_search.errors import UnknownImage
from groundray.image_search.filters import Columns, Filter, Labels
from groundray.image_search.image_ids import DuplicateIds
from groundray.image_search.query_vector import finite
from groundray.image_search.towers import PixelBatch, Towers
from groundray.model.two_towers import is_hub_name
from groundray.storage.cache_key import cache_key
from groundray.storage.folder import Folder
from groundray.storage.local_path import expanded
from groundray.storage.made_once import made_once
from groundray.storage.user_cache import user_cache

FOLDER = "index"  # beside a model's folder
THUMBNAIL, QUALITY = 192, 85  # longer side in pixels, and JPEG quality
THUMBNAIL_BYTES = 8_000  # approximate
ROWS_PER_GROUP = 256  # rows that are read to get one thumbnail: 1 to 2 MB
KIND = "image_vectors"
Read = TypeVar("Read")
Tell = Callable[[str], None]
POOLS = tuple(kind for kind, schema in KINDS.items() if "width" in schema.names and kind != KIND)


def log(line: str) -> None:
    """Write a line for the user to the log, where no console is at hand."""
    logging.getLogger(__name__).warning("%s", line)


class Decoded(NamedTuple):
    """Decoded images: the model's input, and the columns that need no model."""

    pixels: PixelBatch
    columns: dict[str, pa.Array]


def open_pool(images: str) -> Dataset:
    """Open the images at a folder or URL of shards.

    Raises:
        FileNotFoundError, ValueError: there are no shards, or they have no images.
    """
    dataset = Dataset.open(images)
    if dataset.kind not in POOLS:
        raise ValueError(
            f"expected shards of kind {' or '.join(map(repr, POOLS))} at {dataset.folder}, got kind {dataset.kind!r}, "
            "which has no images: `python -m groundray.prepare images` makes shards of a folder of images"
        )
    return dataset


def default_folder(checkpoint: str) -> str:
    """Return the default folder of a model's indexes: `index/` beside the model's folder, or in the user's cache for a
    name on a model hub."""
    if is_hub_name(checkpoint):
        return str(user_cache() / FOLDER)
    if "://" in checkpoint:
        return f"{checkpoint.rstrip('/').rpartition('/')[0]}/{FOLDER}"
    return posixpath.join(posixpath.dirname(posixpath.normpath(expanded(checkpoint).absolute())), FOLDER)


def find_index(towers: Towers, images: Dataset, folder: str, device: str = "cpu") -> DerivedDataset:
    """Return the specification of the complete index of these images for this model, made on either kind of device.

    An index has vectors of one kind of device alone, which differ from those of the other kind by rounding. If there is
    no complete index, return that of `device`.
    """
    return made_on_either(partial(index_spec, towers, images, folder), device)


def made_on_either(spec_of: Callable[[str], DerivedDataset], device: str) -> DerivedDataset:
    """Return the first complete data set of those made on a kind of device, `cpu` or `cuda`, and on the other kind; if
    none is complete, that of `device`."""
    specs = [spec_of(kind) for kind in (device, "cuda" if device == "cpu" else "cpu")]
    return next((spec for spec in specs if open_derived(spec)), specs[0])


def index_spec(towers: Towers, images: Dataset, folder: str, device: str = "cpu") -> DerivedDataset:
    """Return the specification of the index of these images for this model, in its own subfolder of `folder`.

    Args:
        device: kind of device that makes the vectors, `cpu` or `cuda`.
    """
    model = {"model": towers.fingerprint(), "thumbnail": (THUMBNAIL, QUALITY)}
    code = (image_decoder, *towers.code, thumbnail, each_decoded, finite, IndexEncoder)
    key_of = partial(cache_key, code=code, device=device, stored="float16")
    key = key_of({"images": images.fingerprint, **model})
    return DerivedDataset(
        images,
        Folder.at(folder) / key[:16],
        key,
        KIND,
        bytes_per_row=2 * towers.width + THUMBNAIL_BYTES,
        rows_per_group=ROWS_PER_GROUP,
        provenance={"width": towers.width, **towers.preprocessing},
        title="vectors and thumbnails",
        out_of_space_hint="choose a folder on a larger disk with --index",
        lineage=key_of(model),
    )


@dataclass(frozen=True)
class IndexEncoder:
    """Encodes images as rows of an index.

    Attributes:
        towers: the model, on the device that it computes on.
        images: folder of the images, for messages.
    """

    towers: Towers
    images: str
    columns: tuple[str, ...] = ("id", "image")

    def decode(self, table: pa.Table) -> Decoded:
        """Return pixels, thumbnails, and the sizes of the upright pictures: old shards have those of the stored ones.

        Raises:
            ValueError: an image cannot be decoded; the message names it.
        """
        decoded = each_decoded(
            table, self.images, lambda encoded: (self.towers.preprocess(encoded), thumbnail(encoded), size(encoded))
        )
        pixels, thumbnails, sizes = zip(*decoded, strict=True)
        columns = {
            "id": table["id"].combine_chunks(),
            "width": pa.array([width for width, _ in sizes], pa.int32()),
            "height": pa.array([height for _, height in sizes], pa.int32()),
            "thumbnail": pa.array(thumbnails, pa.binary()),
        }
        return Decoded(np.stack(pixels), columns)

    def encode(self, item: Decoded) -> dict[str, pa.Array]:
        """Return the columns of the index. Each component of a vector is rounded by 2^-11 of itself at most.

        Raises:
            ValueError: a vector is not finite.
        """
        vectors = finite(self.towers.embed_pixels(item.pixels), "vectors of pictures").astype(np.float16)
        starts = np.arange(len(vectors) + 1, dtype=np.int32) * self.towers.width
        vector_type = KINDS[KIND].field("vector").type
        return {**item.columns, "vector": pa.ListArray.from_arrays(starts, vectors.ravel(), type=vector_type)}


def make_index(spec: DerivedDataset, towers: Towers) -> Iterator[int]:
    """Make the missing parts of an index in this process and finalize it. Yields the number of images of each task.

    Raises:
        ValueError: the disk has no room, or an image cannot be decoded; the message names it.
    """
    check_room(spec)
    yield from make_missing(spec, IndexEncoder(towers, str(spec.source.folder)))
    finalize(spec)


def each_decoded(table: pa.Table, images: str, decode_one: Callable[[bytes], Read]) -> list[Read]:
    """Return what a function makes of the encoded image of each row.

    Args:
        table: with columns `id` and `image`.
        images: folder of the images, for the message.

    Raises:
        ValueError: an image cannot be decoded; the message names it.
    """
    found = []
    for id, encoded in zip(table["id"].to_pylist(), table["image"].to_pylist(), strict=True):
        try:
            found.append(decode_one(encoded))
        except UnusableImage as error:
            raise ValueError(f"{images}: image {id!r} cannot be decoded: {error}") from error
    return found


def thumbnail(encoded: bytes) -> bytes:
    """Return a small JPEG of an encoded image."""
    small = decode(encoded, THUMBNAIL)
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


class Column:
    """A column of a data set, by row number. Keeps the most recently used row groups, so that memory is bounded."""

    def __init__(self, dataset: Dataset, name: str, cached_groups: int):
        self._ends = np.cumsum(dataset.group_sizes)
        self._read = lru_cache(cached_groups)(lambda group: read_group(dataset, group, [name])[name])

    def __getitem__(self, row: int) -> Any:
        group = int(np.searchsorted(self._ends, row, side="right"))
        column = self._read(group)
        return column[row - int(self._ends[group]) + len(column)].as_py()


class Index:
    """A complete index, by row number.

    Attributes:
        ids: the images' ids.
        sizes: the images' widths and heights, in pixels.
        vectors: the images' vectors, float16.
        thumbnails: small JPEGs of the images.
        pictures: the encoded images.
        labels: the classes of the images, if their shards have any.
        present: which images were not removed from the pool, by row; None if none was.
    """

    def __init__(self, spec: DerivedDataset, dataset: Dataset, compact: Compact):
        self.folder, self.dataset, self.images = spec.folder, dataset, spec.source
        self.vectors, self.sizes, self.ids = compact
        self.thumbnails = Column(dataset, "thumbnail", cached_groups=32)
        self.pictures = Column(spec.source, "image", cached_groups=2)
        self.labels = Labels(spec.source)
        self.present: Bool[np.ndarray, " image"] | None = None
        if len(removed := removed_rows(spec.source)):
            self.present = np.ones(len(self.ids), bool)
            self.present[removed] = False

    @staticmethod
    def open(spec: DerivedDataset, tell: Tell = log, keep_vectors_in_store: bool = False) -> Index:
        """Open an index whose parts are complete. Its compact file is made if it is missing or damaged.

        Args:
            tell: receives lines for the user.
            keep_vectors_in_store: as of `open_compact`.

        Raises:
            FileNotFoundError: the index is not built.
            ValueError: the index is damaged, the message names the repair; or two images have the same id.
        """
        dataset = complete(spec, "index")
        return Index(
            spec, dataset, _made(spec, dataset, tell, lambda: open_compact(dataset, spec.folder, keep_vectors_in_store))
        )

    def __len__(self) -> int:
        return len(self.ids) if self.present is None else int(np.count_nonzero(self.present))

    def __contains__(self, id: str) -> bool:
        return self._row(id) is not None

    def row(self, id: str) -> int:
        """Return the row of an image.

        Raises:
            UnknownImage: no image has this id.
        """
        if (row := self._row(id)) is None:
            if not len(self):
                raise UnknownImage(f"image: expected an id of an image of the pool, which has none left, got {id!r}")
            example = self.ids[0 if self.present is None else int(np.argmax(self.present))]
            raise UnknownImage(
                f"image: expected an id of one of the {len(self)} images of the pool (such as {example!r}), got {id!r}"
            )
        return row

    def _row(self, id: str) -> int | None:
        row = self.ids.row(id)
        return row if row is None or self.present is None or self.present[row] else None

    def accepted(self, filter: Filter) -> Bool[np.ndarray, " image"] | None:
        """Return which images meet a filter and were not removed, by row; None if all do.

        Raises:
            BadQuery: the images have no labels, or none of this name.
        """
        met = filter.accepted(Columns(self.ids, self.sizes, self.labels)) if filter else None
        return self.present if met is None else met if self.present is None else met & self.present

    def vector(self, row: int) -> Float32[np.ndarray, " dim"]:
        """Return the vector of an image."""
        return np.asarray(self.vectors[row], np.float32)

    def vectors_of(self, rows: Int64[np.ndarray, " row"]) -> Float32[np.ndarray, "row dim"]:
        """Return the vectors of some images."""
        if isinstance(self.vectors, np.ndarray):
            return self.vectors[rows].astype(np.float32)
        return np.stack([self.vector(row) for row in rows.tolist()])


def make_compact(spec: DerivedDataset, tell: Tell) -> Dataset:
    """Make the compact file of an index whose parts are complete, unless it is there; return the parts. What is there
    is not read.

    Raises:
        FileNotFoundError, ValueError: as `Index.open`.
    """
    dataset = complete(spec, "index")
    _made(spec, dataset, tell, lambda: check_compact(dataset, spec.folder))
    return dataset


def complete(spec: DerivedDataset, what: str) -> Dataset:
    """Return the parts of an index or of position features.

    Raises:
        FileNotFoundError: they are not all there.
    """
    dataset = open_derived(spec)
    if dataset is None:
        raise FileNotFoundError(
            f"the images at {spec.source.folder} have no {what} for this model at {spec.folder}: the images or the "
            "model are new or have changed; `python -m groundray.search` and `python -m groundray.serve` make it"
        )
    return dataset


def _made(spec: DerivedDataset, dataset: Dataset, tell: Tell, read: Callable[[], Read]) -> Read:
    """Return what `read` reads of the compact file; it is made first if need be."""

    def make() -> None:
        try:
            write_compact(dataset, spec.folder)
        except DuplicateIds as error:
            raise ValueError(f"{spec.source.folder}: {error}") from None

    return made_once(spec.folder, "compact", compact.FILES, read, make, tell)
