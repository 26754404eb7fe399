"""What a model is given of an image: pixels that are cut out of it, or what a frozen trunk made of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8, UInt16

from groundray.data.transforms import centre_crop, random_crop, stacked
from groundray.rng import hash64, hash_name

_CROP = 4  # keeps the draw of crops independent of other draws


class ImageInputs(Protocol):
    """How the column `image` of some rows becomes an array."""

    def draw(self, table: pa.Table, epoch: int) -> pa.Table:
        """The table with what is random about a picture decided, by (seed, epoch, sample id)."""
        ...

    def arrays(self, table: pa.Table) -> np.ndarray:
        """An entry for each of the drawn rows."""
        ...


@dataclass(frozen=True)
class CentreCrop:
    """The middle of an image, the same each time.

    Attributes:
        resize: short side before the crop, in pixels.
        crop: side of the square that is left, in pixels.
    """

    resize: int
    crop: int

    def draw(self, table: pa.Table, epoch: int) -> pa.Table:
        return table

    def arrays(self, table: pa.Table) -> UInt8[np.ndarray, "sample 3 {self.crop} {self.crop}"]:
        return stacked((centre_crop(encoded.as_py(), self.resize, self.crop) for encoded in table["image"]), self.crop)


@dataclass(frozen=True)
class RandomCrop:
    """A part of an image, another at each visit.

    Attributes:
        crop: side of the square that is left, in pixels.
        area: least and largest share of the image that it takes.
        flip: whether half of the crops are mirrored.
        seed: of the draw.
    """

    crop: int
    area: tuple[float, float]
    flip: bool
    seed: int

    def draw(self, table: pa.Table, epoch: int) -> pa.Table:
        """With the `crop` of this epoch, a key that (seed, epoch, id) fixes."""
        keys = [int(hash64(self.seed, _CROP, epoch, hash_name(sample))) for sample in table["id"].to_pylist()]
        return table.append_column("crop", pa.array(keys, pa.uint64()))

    def arrays(self, table: pa.Table) -> UInt8[np.ndarray, "sample 3 {self.crop} {self.crop}"]:
        cut = (
            random_crop(encoded.as_py(), self.crop, self.area, self.flip, key.as_py())
            for encoded, key in zip(table["image"], table["crop"], strict=True)
        )
        return stacked(cut, self.crop)


@dataclass(frozen=True)
class FeatureMaps:
    """A trunk's feature maps, the bits of bfloat16 numbers.

    Attributes:
        shape: channels, rows and columns.
    """

    shape: tuple[int, int, int]

    def draw(self, table: pa.Table, epoch: int) -> pa.Table:
        return table

    def arrays(self, table: pa.Table) -> UInt16[np.ndarray, "sample channel row column"]:
        maps = np.empty((len(table), *self.shape), np.uint16)
        for place, bits in enumerate(table["image"]):
            maps[place] = np.frombuffer(bits.as_buffer(), np.uint16).reshape(self.shape)
        return maps
