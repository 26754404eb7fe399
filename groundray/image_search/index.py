"""The index of a pool of images: a vector and a thumbnail of each, made once and kept.

    FOLDER/KEY/part-00012-003.parquet ...   parts of the images' row groups (`data/derived.py`)
    FOLDER/KEY/dataset.json                 comes last
    FOLDER/KEY/ivf.faiss, ivf.json          of a large pool (`nearest.py`)

KEY follows from the weights that a picture passes through, the cut of the pictures, the images' fingerprint and
VERSION. So an index is never stale: another model or other images have another, and what nobody asks for any more may
be deleted at any time.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int32, UInt8
from PIL import Image

from groundray.data.derived import DerivedDataset, open_derived
from groundray.data.schema import KINDS, Dataset
from groundray.data.shards import read_group
from groundray.data.transforms import centre_crop
from groundray.image_search.errors import UnknownImage
from groundray.image_search.towers import Towers
from groundray.storage.folder import Folder

VERSION = 1  # of the code that makes an index; raise it where it would come out differently
THUMBNAIL, QUALITY = 192, 85  # long side in pixels, and quality, of a thumbnail
THUMBNAIL_BYTES = 8_000  # about
ROWS_PER_GROUP = 256  # what is read for one thumbnail: a megabyte or two
KIND = "image_vectors"
POOLS = tuple(kind for kind, schema in KINDS.items() if "width" in schema.names and kind != KIND)


class Decoded(NamedTuple):
    """What is made of some images before the model sees them."""

    pixels: UInt8[np.ndarray, "image 3 side side"]
    columns: dict[str, pa.Array]


def open_pool(images: str) -> Dataset:
    """The images at a folder or URL of shards.

    Raises:
        FileNotFoundError, ValueError: there are no shards, or shards without images.
    """
    return Dataset.open(images, *POOLS)


def place_beside(checkpoint: str) -> str:
    """Where the indexes of a model are kept, unless somebody says otherwise: `index/` beside its folder."""
    parent = (
        checkpoint.rstrip("/").rpartition("/")[0] if "://" in checkpoint else str(Path(checkpoint).absolute().parent)
    )
    return f"{parent}/index"


def index_spec(towers: Towers, images: Dataset, place: str) -> DerivedDataset:
    """Return the specification of the index of these images for this model, in a folder of its own within `place`."""
    names = {"version": VERSION, "images": images.fingerprint, "model": towers.fingerprint()}
    key = hashlib.sha256(json.dumps(names, sort_keys=True).encode()).hexdigest()[:16]
    return DerivedDataset(
        images,
        Folder.at(place) / key,
        KIND,
        bytes_per_row=4 * towers.width + THUMBNAIL_BYTES,
        rows_per_group=ROWS_PER_GROUP,
        provenance={"width": towers.width, "resize": towers.crop.resize, "crop": towers.crop.crop},
        title="vectors and thumbnails",
        out_of_space_hint="give a larger place with --index",
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
    columns: tuple[str, ...] = ("id", "image", "width", "height")

    def decode(self, table: pa.Table) -> Decoded:
        """Return pixels and thumbnails.

        Raises:
            ValueError: an image cannot be decoded; the message names it.
        """
        columns = {name: table[name].combine_chunks() for name in ("id", "width", "height")}
        crop = self.towers.crop
        pixels, thumbnails = [], []
        for id, encoded in zip(table["id"].to_pylist(), table["image"].to_pylist(), strict=True):
            try:
                pixels.append(centre_crop(encoded, crop.resize, crop.crop))
                thumbnails.append(thumbnail(encoded))
            except (OSError, ValueError, Image.DecompressionBombError) as error:
                raise ValueError(f"{self.images}: image {id!r} cannot be decoded: {error}") from error
        return Decoded(np.stack(pixels), {**columns, "thumbnail": pa.array(thumbnails, pa.binary())})

    def encode(self, item: Decoded) -> dict[str, pa.Array]:
        """Return the columns of the index."""
        vectors = self.towers.embed_pixels(item.pixels)
        starts = np.arange(len(vectors) + 1, dtype=np.int32) * self.towers.width
        vector_type = KINDS[KIND].field("vector").type
        return {**item.columns, "vector": pa.ListArray.from_arrays(starts, vectors.ravel(), type=vector_type)}


def thumbnail(encoded: bytes) -> bytes:
    """A small JPEG of an encoded image."""
    with Image.open(io.BytesIO(encoded)) as image:
        image.draft("RGB", (THUMBNAIL, THUMBNAIL))
        small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


class Column:
    """A column of a data set by row number. The row groups that were looked at last are kept: memory is bounded."""

    def __init__(self, dataset: Dataset, name: str, kept: int):
        self._ends = np.cumsum(dataset.group_sizes)
        self._read = lru_cache(kept)(lambda group: read_group(dataset, group, [name])[name])

    def __getitem__(self, row: int) -> Any:
        group = int(np.searchsorted(self._ends, row, side="right"))
        column = self._read(group)
        return column[row - int(self._ends[group]) + len(column)].as_py()


class Index:
    """An index that is made: who is in it, and what each looks like, by row number.

    Attributes:
        ids: of the images.
        sizes: of the images, in pixels: width and height.
        vectors, thumbnails, pictures: of an image; its picture is the whole encoded file.
    """

    def __init__(self, spec: DerivedDataset):
        """
        Raises:
            FileNotFoundError: it is not made.
            ValueError: it is damaged; the message names the repair.
        """
        made = open_derived(spec)
        if made is None:
            raise FileNotFoundError(
                f"the images at {spec.source.folder} have no index for this model at {spec.folder}: they or the model "
                "are new or have changed; `python -m groundray.search` and `python -m groundray.serve` make it"
            )
        self.folder, self.dataset, self.images = spec.folder, made, spec.source
        tables = [read_group(made, group, ["id", "width", "height"]) for group in range(len(made.groups))]
        listed = pa.concat_tables(tables)
        self.ids: tuple[str, ...] = tuple(listed["id"].to_pylist())
        self.sizes: Int32[np.ndarray, "image 2"] = np.stack(
            [listed["width"].to_numpy(), listed["height"].to_numpy()], axis=1
        )
        self._rows = {id: row for row, id in enumerate(self.ids)}
        if len(self._rows) < len(self.ids):
            again = len(self.ids) - len(self._rows)
            raise ValueError(f"{spec.source.folder}: expected each image once, {again} come with an id that is taken")
        self.vectors = Column(made, "vector", kept=32)
        self.thumbnails = Column(made, "thumbnail", kept=32)
        self.pictures = Column(spec.source, "image", kept=2)

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, id: str) -> bool:
        return id in self._rows

    def row(self, id: str) -> int:
        """The row of an image.

        Raises:
            UnknownImage: there is none of that id.
        """
        try:
            return self._rows[id]
        except KeyError:
            raise UnknownImage(
                f"image: expected the id of one of the {len(self)} images of the pool (such as {self.ids[0]!r}), "
                f"got {id!r}"
            ) from None

    def vector(self, row: int) -> Float32[np.ndarray, " dim"]:
        """The vector of an image."""
        return np.array(self.vectors[row], np.float32)

    def matrix(self) -> Float32[np.ndarray, "image dim"]:
        """The vectors of all images."""
        groups = range(len(self.dataset.groups))
        parts = (read_group(self.dataset, group, ["vector"])["vector"].combine_chunks() for group in groups)
        return np.concatenate([part.values.to_numpy().reshape(len(part), -1) for part in parts])
