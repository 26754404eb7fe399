"""Index of a pool of images: a vector and a thumbnail of each, built once and kept.

    FOLDER/KEY/part-00012-003.parquet ...   parts of the images' row groups (`data/derived.py`)
    FOLDER/KEY/dataset.json                 written when all parts are
    FOLDER/KEY/compact.bin, compact.json    made of the parts: vectors, sizes and ids (`compact.py`)
    FOLDER/KEY/ivf.*                        of a large pool (`inverted_file.py`)

KEY is a hash of the weights that a picture passes, the crop, the images' fingerprint, the code, the libraries and the
arithmetic (`storage/cache_key.py`). An index is therefore never stale: another model or other images have another key.
Unused indexes may be deleted at any time.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, UInt8

from groundray.data import image_decoder, transforms
from groundray.data.derived import DerivedDataset, open_derived
from groundray.data.image_decoder import UnusableImage, decode, size
from groundray.data.row_groups import read_group
from groundray.data.schema import KINDS, Dataset
from groundray.data.transforms import centre_crop
from groundray.image_search import compact
from groundray.image_search.compact import Compact, check_compact, open_compact, write_compact
from groundray.image_search.errors import UnknownImage
from groundray.image_search.image_ids import DuplicateIds
from groundray.image_search.towers import Towers
from groundray.model import heads, relation_module, timm_trunk, trunk, visual_stream
from groundray.stage.contrastive import image_vectors
from groundray.storage.cache_key import cache_key
from groundray.storage.folder import Folder
from groundray.storage.made_once import made_once

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

    pixels: UInt8[np.ndarray, "image 3 side side"]
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
    """Return the default folder of a model's indexes: `index/` beside the model's folder."""
    parent = (
        checkpoint.rstrip("/").rpartition("/")[0] if "://" in checkpoint else str(Path(checkpoint).absolute().parent)
    )
    return f"{parent}/{FOLDER}"


def find_index(towers: Towers, images: Dataset, folder: str, device: str = "cpu") -> DerivedDataset:
    """Return the specification of the complete index of these images for this model, made on either kind of device.

    An index has vectors of one kind of device alone, which differ from those of the other kind by rounding. If there is
    no complete index, return that of `device`.
    """
    specs = [index_spec(towers, images, folder, kind) for kind in (device, "cuda" if device == "cpu" else "cpu")]
    return next((spec for spec in specs if open_derived(spec)), specs[0])


def index_spec(towers: Towers, images: Dataset, folder: str, device: str = "cpu") -> DerivedDataset:
    """Return the specification of the index of these images for this model, in its own subfolder of `folder`.

    Args:
        device: kind of device that makes the vectors, `cpu` or `cuda`.
    """
    key = cache_key(
        {"images": images.fingerprint, "model": towers.fingerprint(), "thumbnail": (THUMBNAIL, QUALITY)},
        code=(
            *(image_decoder, transforms, trunk, timm_trunk, visual_stream, relation_module, heads),
            *(image_vectors, thumbnail),
        ),
        device=device,
        stored="float16",
    )
    return DerivedDataset(
        images,
        Folder.at(folder) / key[:16],
        key,
        KIND,
        bytes_per_row=2 * towers.width + THUMBNAIL_BYTES,
        rows_per_group=ROWS_PER_GROUP,
        provenance={"width": towers.width, "resize": towers.crop.resize, "crop": towers.crop.crop},
        title="vectors and thumbnails",
        out_of_space_hint="choose a folder on a larger disk with --index",
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
        crop = self.towers.crop
        pixels, thumbnails, sizes = [], [], []
        for id, encoded in zip(table["id"].to_pylist(), table["image"].to_pylist(), strict=True):
            try:
                pixels.append(centre_crop(encoded, crop.resize, crop.crop))
                thumbnails.append(thumbnail(encoded))
                sizes.append(size(encoded))
            except UnusableImage as error:
                raise ValueError(f"{self.images}: image {id!r} cannot be decoded: {error}") from error
        columns = {
            "id": table["id"].combine_chunks(),
            "width": pa.array([width for width, _ in sizes], pa.int32()),
            "height": pa.array([height for _, height in sizes], pa.int32()),
            "thumbnail": pa.array(thumbnails, pa.binary()),
        }
        return Decoded(np.stack(pixels), columns)

    def encode(self, item: Decoded) -> dict[str, pa.Array]:
        """Return the columns of the index. Each component of a vector is rounded by 2^-11 of itself at most."""
        vectors = self.towers.embed_pixels(item.pixels).astype(np.float16)
        starts = np.arange(len(vectors) + 1, dtype=np.int32) * self.towers.width
        vector_type = KINDS[KIND].field("vector").type
        return {**item.columns, "vector": pa.ListArray.from_arrays(starts, vectors.ravel(), type=vector_type)}


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
    """

    def __init__(self, spec: DerivedDataset, dataset: Dataset, compact: Compact):
        self.folder, self.dataset, self.images = spec.folder, dataset, spec.source
        self.vectors, self.sizes, self.ids = compact
        self.thumbnails = Column(dataset, "thumbnail", cached_groups=32)
        self.pictures = Column(spec.source, "image", cached_groups=2)

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
        dataset = _complete(spec)
        return Index(
            spec, dataset, _made(spec, dataset, tell, lambda: open_compact(dataset, spec.folder, keep_vectors_in_store))
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, id: str) -> bool:
        return id in self.ids

    def row(self, id: str) -> int:
        """Return the row of an image.

        Raises:
            UnknownImage: no image has this id.
        """
        if (row := self.ids.row(id)) is None:
            raise UnknownImage(
                f"image: expected an id of one of the {len(self)} images of the pool (such as {self.ids[0]!r}), "
                f"got {id!r}"
            )
        return row

    def vector(self, row: int) -> Float32[np.ndarray, " dim"]:
        """Return the vector of an image."""
        return np.asarray(self.vectors[row], np.float32)


def make_compact(spec: DerivedDataset, tell: Tell) -> Dataset:
    """Make the compact file of an index whose parts are complete, unless it is there; return the parts. What is there
    is not read.

    Raises:
        FileNotFoundError, ValueError: as `Index.open`.
    """
    dataset = _complete(spec)
    _made(spec, dataset, tell, lambda: check_compact(dataset, spec.folder))
    return dataset


def _complete(spec: DerivedDataset) -> Dataset:
    dataset = open_derived(spec)
    if dataset is None:
        raise FileNotFoundError(
            f"the images at {spec.source.folder} have no index for this model at {spec.folder}: the images or the "
            "model are new or have changed; `python -m groundray.search` and `python -m groundray.serve` build it"
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
