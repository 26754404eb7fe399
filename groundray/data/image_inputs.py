"""Image inputs of a model: cropped pixels, or a frozen trunk's feature maps of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8, UInt16

from groundray.data.transforms import centre_crop, random_crop, stack_images
from groundray.rng import hash64, hash_name

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


@dataclass(frozen=True)
class FeatureMaps:
    """A trunk's feature maps, as the bits of bfloat16 numbers.

    Attributes:
        shape: channels, rows and columns.
    """

    shape: tuple[int, int, int]

    def draw(self, table: pa.Table, epoch: int) -> pa.Table:
        return table

    def arrays(self, table: pa.Table) -> UInt16[np.ndarray, "sample channel row column"]:
        maps = np.empty((len(table), *self.shape), np.uint16)
        for row, bits in enumerate(table["image"]):
            maps[row] = np.frombuffer(bits.as_buffer(), np.uint16).reshape(self.shape)
        return maps
