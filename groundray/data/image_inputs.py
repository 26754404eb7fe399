"""Image inputs of a model: cropped pixels, JPEGs that a device will decode, or what its frozen parts make of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from jaxtyping import Shaped, UInt8

from groundray.data.encoded_crops import pack_jpeg, pack_pixels
from groundray.data.image_decoder import plain_jpeg
from groundray.data.transforms import (
    Box,
    centre_box,
    centre_crop,
    random_box,
    random_crop,
    random_min_side,
    stack_images,
)
from groundray.rng import hash64, hash_name

MAX_PIXELS = 2**24  # of a JPEG for a device, which takes 3 bytes of its memory for each
_CROP = 4  # keeps the draw of crops independent of other draws


class ImageInputs(Protocol):
    """Turns the column `image` of rows into an array."""

    def draw(self, table: pa.Table, epoch: int) -> pa.Table:
        """Return the table with the random choices of each image, fixed by (seed, epoch, sample id)."""
        ...

    def arrays(self, table: pa.Table) -> np.ndarray:
        """Return an array with one entry per drawn row."""
        ...


@dataclass(frozen=True)
class CentreCrop:
    """The centre of an image, the same at each visit.

    Attributes:
        resize: short side before the crop, in pixels.
        crop: side of the cropped square, in pixels.
    """

    resize: int
    crop: int

    def draw(self, table: pa.Table, epoch: int) -> pa.Table:
        return table

    def arrays(self, table: pa.Table) -> UInt8[np.ndarray, "sample 3 {self.crop} {self.crop}"]:
        return stack_images(
            (centre_crop(encoded.as_py(), self.resize, self.crop) for encoded in table["image"]), self.crop
        )

    @property
    def min_side(self) -> int:
        """The short side that a reduced JPEG must keep."""
        return self.resize

    def box(self, row: pa.Table, width: int, height: int) -> tuple[Box, bool]:
        """Return the box that `arrays` keeps of an image of this size, the only one of `row`; it is not mirrored."""
        return centre_box(width, height, self.resize, self.crop), False


@dataclass(frozen=True)
class RandomCrop:
    """A random part of an image, another at each visit.

    Attributes:
        crop: side of the cropped square, in pixels.
        area: minimum and maximum fraction of the image's area.
        flip: mirror half of the crops.
        seed: seed of the draw.
    """

    crop: int
    area: tuple[float, float]
    flip: bool
    seed: int

    def draw(self, table: pa.Table, epoch: int) -> pa.Table:
        """Return the table with the column `crop`, this epoch's key, fixed by (seed, epoch, id)."""
        keys = [int(hash64(self.seed, _CROP, epoch, hash_name(sample))) for sample in table["id"].to_pylist()]
        return table.append_column("crop", pa.array(keys, pa.uint64()))

    def arrays(self, table: pa.Table) -> UInt8[np.ndarray, "sample 3 {self.crop} {self.crop}"]:
        crops = (
            random_crop(encoded.as_py(), self.crop, self.area, self.flip, key.as_py())
            for encoded, key in zip(table["image"], table["crop"], strict=True)
        )
        return stack_images(crops, self.crop)

    @property
    def min_side(self) -> int:
        """The short side that a reduced JPEG must keep."""
        return random_min_side(self.crop, self.area)

    def box(self, row: pa.Table, width: int, height: int) -> tuple[Box, bool]:
        """Return the box that `arrays` keeps of an image of this size, the only one of `row`, and if it is mirrored."""
        return random_box(width, height, self.area, self.flip, row["crop"][0].as_py())


@dataclass(frozen=True)
class EncodedCrops:
    """Crops whose JPEGs stay encoded, for a device that decodes them (`device_decoding`).

    Pictures that only the CPU's decoder shows rightly (`image_decoder.plain_jpeg`) are decoded here.
    """

    crops: CentreCrop | RandomCrop

    def draw(self, table: pa.Table, epoch: int) -> pa.Table:
        return self.crops.draw(table, epoch)

    def arrays(self, table: pa.Table) -> npt.NDArray[Any]:
        """Return the packed crop of each row (`encoded_crops`); for no rows, no pixels."""
        if not len(table):
            return self.crops.arrays(table)
        packed = np.empty(len(table), object)
        packed[:] = [self._packed(table.slice(row, 1)) for row in range(len(table))]
        return packed

    def _packed(self, row: pa.Table) -> bytes:
        encoded = row["image"][0].as_py()
        jpeg = plain_jpeg(encoded, self.crops.min_side)
        if jpeg is None or jpeg.width * jpeg.height * jpeg.reduction**2 > MAX_PIXELS:
            return pack_pixels(self.crops.arrays(row)[0])
        box, is_mirrored = self.crops.box(row, jpeg.width, jpeg.height)
        return pack_jpeg(encoded, jpeg, self.crops.crop, self.crops.min_side, box, is_mirrored)


@dataclass(frozen=True)
class FeatureMaps:
    """A trunk's feature maps, or keys of images (`training/keys.py`).

    Attributes:
        shape: channels, rows and columns; of keys, positions and dimensions.
        type: `uint16` are the bits of bfloat16 numbers.
    """

    shape: tuple[int, ...]
    type: Literal["uint16", "float32"] = "uint16"

    def draw(self, table: pa.Table, epoch: int) -> pa.Table:
        return table

    def arrays(self, table: pa.Table) -> Shaped[np.ndarray, "sample ..."]:
        """Return the maps in the memory of the table, if they are adjacent there."""
        return stacked(table["image"], self.shape, self.type)


def stacked(column: pa.ChunkedArray, shape: tuple[int, ...], type: str) -> Shaped[np.ndarray, "row ..."]:
    """Return the arrays that the byte strings of a column hold, in its memory if they are adjacent there."""
    parts = [_array(chunk, type).reshape(-1, *shape) for chunk in column.chunks if len(chunk)]
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.empty((0, *shape), type)


def _array(rows: pa.LargeBinaryArray, type: str) -> npt.NDArray[Any]:
    _, offsets, values = rows.buffers()
    places = np.frombuffer(offsets, np.int64)[rows.offset : rows.offset + len(rows) + 1]
    return np.frombuffer(values, np.uint8)[places[0] : places[-1]].view(type)
