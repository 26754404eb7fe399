"""Crops of encoded images as arrays, with PIL and NumPy alone: decoding processes do not load torch."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from groundray.data.image_decoder import decode
from groundray.rng import hash64

ASPECTS = (3 / 4, 4 / 3)  # minimum and maximum aspect of a random crop
ATTEMPTS = 10
Box = tuple[float, float, float, float]  # left, top, right and bottom, in pixels


def centre_crop(encoded: bytes, resize: int, crop: int) -> UInt8[np.ndarray, "3 {crop} {crop}"]:
    """Return the central `crop` x `crop` pixels of an image whose short side is scaled to `resize`.

    A much larger JPEG is decoded at a half, quarter or eighth of its size, which libjpeg does at little cost.
    """
    pixels = decode(encoded, resize)
    return _scaled(pixels, centre_box(*pixels.size, resize, crop), crop)


def centre_box(width: int, height: int, resize: int, crop: int) -> Box:
    """Return the box that `centre_crop` keeps: left, top, right and bottom, in pixels of the image before scaling.

    Sides and offsets are rounded as by torchvision's `Resize` (down) and `CenterCrop` (to the nearest, halves to even).
    """
    wide, tall = (resize * side // min(width, height) for side in (width, height))
    left, top = round((wide - crop) / 2), round((tall - crop) / 2)
    across, down = width / wide, height / tall
    return left * across, top * down, (left + crop) * across, (top + crop) * down


def random_crop(
    encoded: bytes, crop: int, area: tuple[float, float], flip: bool, key: int
) -> UInt8[np.ndarray, "3 {crop} {crop}"]:
    """Return a random part of an image, scaled to `crop` x `crop` pixels and possibly mirrored, as `key` determines.

    The part's fraction of the image's area is within `area`, its aspect within ASPECTS (Szegedy et al. 2015). Both are
    drawn again until the part fits into the image, at most ATTEMPTS times. After that it is the largest central part
    whose aspect is within ASPECTS.
    """
    pixels = decode(encoded, random_min_side(crop, area))
    box, is_mirrored = random_box(*pixels.size, area, flip, key)
    pixels_of_part = _scaled(pixels, box, crop)
    return np.ascontiguousarray(pixels_of_part[:, :, ::-1]) if is_mirrored else pixels_of_part


def random_min_side(crop: int, area: tuple[float, float]) -> int:
    """Return the short side that a reduced image must keep to have `crop` pixels even in the smallest part."""
    return math.ceil(crop / math.sqrt(area[0]))


def random_box(width: int, height: int, area: tuple[float, float], flip: bool, key: int) -> tuple[Box, bool]:
    """Return the box that `random_crop` keeps, in pixels of the image before scaling, and whether it is mirrored."""
    left, top, wide, tall = _part(width, height, area, key)
    return (left, top, left + wide, top + tall), flip and _uniform(key, ATTEMPTS) < 0.5


def stack_images(
    images: Iterable[UInt8[np.ndarray, "3 side side"]], side: int
) -> UInt8[np.ndarray, "image 3 side side"]:
    """Return the images as one array, possibly empty."""
    return np.stack([np.empty((3, side, side), np.uint8), *images])[1:]


def _part(width: int, height: int, area: tuple[float, float], key: int) -> tuple[float, float, float, float]:
    """Return left, top, width and height of a random part of an image."""
    for attempt in range(ATTEMPTS):
        fraction = area[0] + (area[1] - area[0]) * _uniform(key, attempt, 0)
        low, high = map(math.log, ASPECTS)
        aspect = math.exp(low + (high - low) * _uniform(key, attempt, 1))
        wide = math.sqrt(width * height * fraction * aspect)
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


def fitted(box: Box, width: int, height: int) -> Box:
    """Return a box without what rounding has put outside the image."""
    return max(0.0, box[0]), max(0.0, box[1]), min(box[2], width), min(box[3], height)


def _scaled(pixels: Image.Image, box: Box, side: int) -> UInt8[np.ndarray, "3 side side"]:
    scaled = pixels.resize((side, side), Image.Resampling.BILINEAR, box=fitted(box, *pixels.size))
    return np.ascontiguousarray(np.asarray(scaled).transpose(2, 0, 1))


def _uniform(*key: int) -> float:
    """Return a number from 0 to 1."""
    return int(hash64(*key)) / 2**64
