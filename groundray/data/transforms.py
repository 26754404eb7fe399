"""From an encoded image to pixels. Plain PIL and NumPy, so that a decoding process starts without torch."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from groundray.rng import hash64

ASPECTS = (3 / 4, 4 / 3)  # of a random crop, least and largest
ATTEMPTS = 10


def centre_crop(encoded: bytes, resize: int, crop: int) -> UInt8[np.ndarray, "3 {crop} {crop}"]:
    """The pixels of an image whose short side is scaled to `resize`, cropped to `crop` in the middle.

    A JPEG much larger than that is decoded at a half, quarter or eighth of its size, as libjpeg does at little cost.
    """
    pixels = _open(encoded, resize)
    return _scaled(pixels, centre_box(*pixels.size, resize, crop), crop)


def centre_box(width: int, height: int, resize: int, crop: int) -> tuple[float, float, float, float]:
    """What `centre_crop` keeps of an image of this size: left, top, right and bottom in the image's own pixels."""
    scale = resize / min(width, height)
    wide, tall = (max(resize, round(side * scale)) for side in (width, height))
    left, top = (wide - crop) // 2, (tall - crop) // 2
    # nothing outside the box is ever scaled
    return left / scale, top / scale, (left + crop) / scale, (top + crop) / scale


def random_crop(
    encoded: bytes, crop: int, area: tuple[float, float], flip: bool, key: int
) -> UInt8[np.ndarray, "3 {crop} {crop}"]:
    """The pixels of a part of an image, scaled to `crop` a side, and mirrored or not, as `key` fixes.

    The part has a share of the image's area within `area` and an aspect within ASPECTS (Szegedy et al. 2015), drawn
    until it fits; where it never does it is the largest in the middle that has an aspect within ASPECTS.
    """
    # a part may be scaled up: what is decoded at a fraction of its size must still hold `crop` pixels in the least part
    pixels = _open(encoded, math.ceil(crop / math.sqrt(area[0])))
    left, top, width, height = _part(*pixels.size, area, key)
    found = _scaled(pixels, (left, top, left + width, top + height), crop)
    return np.ascontiguousarray(found[:, :, ::-1]) if flip and _uniform(key, ATTEMPTS) < 0.5 else found


def stacked(images: Iterable[UInt8[np.ndarray, "3 side side"]], side: int) -> UInt8[np.ndarray, "image 3 side side"]:
    """The images as one array, which may hold none."""
    return np.stack([np.empty((3, side, side), np.uint8), *images])[1:]


def _open(encoded: bytes, least: int) -> Image.Image:
    """The image in RGB, its short side at least `least` pixels where the file has that many."""
    with Image.open(io.BytesIO(encoded)) as image:
        image.draft("RGB", (least, least))
        return image.convert("RGB")


def _part(width: int, height: int, area: tuple[float, float], key: int) -> tuple[float, float, float, float]:
    """Left, top, width and height of a random part of an image."""
    for attempt in range(ATTEMPTS):
        share = area[0] + (area[1] - area[0]) * _uniform(key, attempt, 0)
        low, high = map(math.log, ASPECTS)
        aspect = math.exp(low + (high - low) * _uniform(key, attempt, 1))
        wide = math.sqrt(width * height * share * aspect)
        tall = wide / aspect
        if wide <= width and tall <= height:
            return (
                (width - wide) * _uniform(key, attempt, 2),
                (height - tall) * _uniform(key, attempt, 3),
                wide,
                tall,
            )
    wide, tall = min(float(width), height * ASPECTS[1]), min(float(height), width / ASPECTS[0])
    return (width - wide) / 2, (height - tall) / 2, wide, tall


def _scaled(pixels: Image.Image, box: tuple[float, ...], side: int) -> UInt8[np.ndarray, "3 side side"]:
    fitted = (max(0.0, box[0]), max(0.0, box[1]), min(box[2], pixels.width), min(box[3], pixels.height))
    scaled = pixels.resize((side, side), Image.Resampling.BILINEAR, box=fitted)
    return np.ascontiguousarray(np.asarray(scaled).transpose(2, 0, 1))


def _uniform(*key: int) -> float:
    """A number from 0 to 1."""
    return int(hash64(*key)) / 2**64
