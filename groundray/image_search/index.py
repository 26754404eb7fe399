"""Index of a pool of images: a vector and a thumbnail of each, built once and kept.

    FOLDER/KEY/part-00012-003.parquet ...   parts of the images' row groups (`data/derived.py`)
    FOLDER/KEY/dataset.json                 written last
    FOLDER/KEY/ivf.faiss, ivf.json          of a large pool (`knn.py`)

KEY is a hash of the weights that a picture passes, the crop, the images' fingerprint, the code, the libraries and the
arithmetic (`storage/cache_key.py`). An index is therefore never stale: another model or other images have another key.
Unused indexes may be deleted at any time.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int32, UInt8

from groundray.data import image_decoder, transforms
from groundray.data.derived import DerivedDataset, open_derived
from groundray.data.image_decoder import UnusableImage, decode, size
from groundray.data.row_groups import read_group
from groundray.data.schema import KINDS, Dataset
from groundray.data.transforms import centre_crop
from groundray.image_search.errors import UnknownImage
from groundray.image_search.towers import Towers
from groundray.model import heads, relation_module, trunk, visual_stream
from groundray.stage.contrastive import image_vectors
from groundray.storage.cache_key import cache_key
from groundray.storage.folder import Folder

THUMBNAIL, QUALITY = 192, 85  # longer side in pixels, and JPEG quality
THUMBNAIL_BYTES = 8_000  # approximate
ROWS_PER_GROUP = 256  # rows that are read to get one thumbnail: 1 to 2 MB
KIND = "image_vectors"
POOLS = tuple(kind for kind, schema in KINDS.items() if "width" in schema.names and kind != KIND)


class Decoded(NamedTuple):
    """Decoded images: the model's input, and the columns that need no model."""

    pixels: UInt8[np.ndarray, "image 3 side side"]
    columns: dict[str, pa.Array]


def open_pool(images: str) -> Dataset:
    """Open the images at a folder or URL of shards.

    Raises:
        FileNotFoundError, ValueError: there are no shards, or they have no images.
    """
    return Dataset.open(images, *POOLS)


def default_folder(checkpoint: str) -> str:
    """Return the default folder of a model's indexes: `index/` beside the model's folder."""
    parent = (
        checkpoint.rstrip("/").rpartition("/")[0] if "://" in checkpoint else str(Path(checkpoint).absolute().parent)
    )
    return f"{parent}/index"


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
        code=(image_decoder, transforms, trunk, visual_stream, relation_module, heads, image_vectors, thumbnail),
        device=device,
        stored="float32",
    )
    return DerivedDataset(
        images,
        Folder.at(folder) / key[:16],
        key,
        KIND,
        bytes_per_row=4 * towers.width + THUMBNAIL_BYTES,
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
        """Return the columns of the index."""
        vectors = self.towers.embed_pixels(item.pixels)
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
        vectors: the images' vectors.
        thumbnails: small JPEGs of the images.
        pictures: the encoded images.
    """

    def __init__(self, spec: DerivedDataset):
        """
        Raises:
            FileNotFoundError: the index is not built.
            ValueError: the index is damaged; the message names the repair.
        """
        dataset = open_derived(spec)
        if dataset is None:
            raise FileNotFoundError(
                f"the images at {spec.source.folder} have no index for this model at {spec.folder}: the images or the "
                "model are new or have changed; `python -m groundray.search` and `python -m groundray.serve` build it"
            )
        self.folder, self.dataset, self.images = spec.folder, dataset, spec.source
        tables = [read_group(dataset, group, ["id", "width", "height"]) for group in range(len(dataset.groups))]
        rows = pa.concat_tables(tables)
        self.ids: tuple[str, ...] = tuple(rows["id"].to_pylist())
        self.sizes: Int32[np.ndarray, "image 2"] = np.stack(
            [rows["width"].to_numpy(), rows["height"].to_numpy()], axis=1
        )
        self._rows = {id: row for row, id in enumerate(self.ids)}
        if len(self._rows) < len(self.ids):
            duplicates = len(self.ids) - len(self._rows)
            raise ValueError(f"{spec.source.folder}: expected unique ids, {duplicates} images have a duplicate id")
        self.vectors = Column(dataset, "vector", cached_groups=32)
        self.thumbnails = Column(dataset, "thumbnail", cached_groups=32)
        self.pictures = Column(spec.source, "image", cached_groups=2)

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, id: str) -> bool:
        return id in self._rows

    def row(self, id: str) -> int:
        """Return the row of an image.

        Raises:
            UnknownImage: no image has this id.
        """
        try:
            return self._rows[id]
        except KeyError:
            raise UnknownImage(
                f"image: expected an id of one of the {len(self)} images of the pool (such as {self.ids[0]!r}), "
                f"got {id!r}"
            ) from None

    def vector(self, row: int) -> Float32[np.ndarray, " dim"]:
        """Return the vector of an image."""
        return np.array(self.vectors[row], np.float32)

    def matrix(self) -> Float32[np.ndarray, "image dim"]:
        """Return the vectors of all images."""
        groups = range(len(self.dataset.groups))
        parts = (read_group(self.dataset, group, ["vector"])["vector"].combine_chunks() for group in groups)
        return np.concatenate([part.values.to_numpy().reshape(len(part), -1) for part in parts])
