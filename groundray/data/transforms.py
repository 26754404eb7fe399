"""From an encoded image to pixels. Plain PIL and NumPy, so that a decoding process starts without torch."""

from __future__ import annotations

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image


def centre_crop(encoded: bytes, resize: int, crop: int) -> UInt8[np.ndarray, "3 {crop} {crop}"]:
    """The pixels of an image whose short side is scaled to `resize`, cropped to `crop` in the middle.

    A JPEG much larger than that is decoded at a half, quarter or eighth of its size, as libjpeg does at little cost.
    """
    with Image.open(io.BytesIO(encoded)) as image:
        image.draft("RGB", (resize, resize))
        pixels = image.convert("RGB")
    scale = resize / min(pixels.size)
    width, height = (max(resize, round(side * scale)) for side in pixels.size)
    left, top = (width - crop) // 2, (height - crop) // 2
    # the crop's own box in source pixels: nothing outside it is ever scaled
    box = tuple(edge / scale for edge in (left, top, left + crop, top + crop))
    fitted = (max(0.0, box[0]), max(0.0, box[1]), min(box[2], pixels.width), min(box[3], pixels.height))
    cropped = pixels.resize((crop, crop), Image.Resampling.BILINEAR, box=fitted)
    return np.ascontiguousarray(np.asarray(cropped).transpose(2, 0, 1))
