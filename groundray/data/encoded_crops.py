"""Crops of images that a device decodes, packed as bytes: a header, then a JPEG, or pixels where the CPU decoded.

A row of a stream is one value in an array; the rows of a batch are joined, and each header tells where its row ends.
With NumPy alone: decoding processes do not load torch.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from groundray.data.image_decoder import PlainJpeg
from groundray.data.transforms import Box

FORMAT = struct.Struct("<Q4I4f3B")


class Header(NamedTuple):
    """What there is to do with the bytes behind it.

    Attributes:
        length: number of bytes.
        side: of the square crop, in pixels.
        min_side: as of `image_decoder.decode`.
        width, height: of the upright, reduced picture.
        left, top, right, bottom: the box that is scaled to the crop, in pixels of the upright picture; of single
            precision, as Pillow takes it.
        reduction: 1, 2, 4 or 8, by which the decoded picture is reduced.
        orientation: EXIF orientation of the JPEG, from 1 to 8; 0 where the bytes are the pixels of the crop.
        is_mirrored: 1 if the crop is mirrored.
    """

    length: int
    side: int
    min_side: int
    width: int
    height: int
    left: float
    top: float
    right: float
    bottom: float
    reduction: int
    orientation: int
    is_mirrored: int


def pack_jpeg(encoded: bytes, jpeg: PlainJpeg, side: int, min_side: int, box: Box, is_mirrored: bool) -> bytes:
    """Return the packed crop of a JPEG."""
    header = Header(
        len(encoded), side, min_side, jpeg.width, jpeg.height, *box, jpeg.reduction, jpeg.orientation, is_mirrored
    )
    return FORMAT.pack(*header) + encoded


def pack_pixels(pixels: UInt8[np.ndarray, "3 side side"]) -> bytes:
    """Return the packed crop of pixels."""
    side = pixels.shape[-1]
    return FORMAT.pack(*Header(pixels.nbytes, side, side, side, side, 0, 0, side, side, 1, 0, 0)) + pixels.tobytes()


def unpack(packed: UInt8[np.ndarray, " byte"]) -> Iterator[tuple[Header, slice]]:
    """Yield the header of each packed crop, and where its bytes are."""
    start = 0
    memory: Any = packed
    while start < len(packed):
        header = Header(*FORMAT.unpack_from(memory, start))
        start += FORMAT.size
        yield header, slice(start, start + header.length)
        start += header.length
