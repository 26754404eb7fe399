"""Checks of uploaded pictures. The header is checked before anything is decoded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from groundray.data.image_decoder import Limits, UnusableImage, format_of
from groundray.image_search.towers import Pixels
from groundray.image_search.upload_limits import MAX_BYTES, MAX_FULL_PIXELS, MAX_PIXELS, MAX_SIDE

LIMITS = Limits(formats=("JPEG", "PNG", "WEBP", "GIF", "BMP"), pixels=MAX_PIXELS, side=MAX_SIDE)
FULL_LIMITS = replace(LIMITS, pixels=MAX_FULL_PIXELS)  # of formats that are decoded at their full size


def checked(encoded: bytes) -> bytes:
    """Return an encoded picture after checking its size, its format and its header.

    Raises:
        UnusableImage: the picture is too large, empty, or not in one of the formats of LIMITS. The reason is
            `too large`, `not an image` or `truncated`.
    """
    if len(encoded) > MAX_BYTES:
        raise UnusableImage("too large", f"file: expected at most {MAX_BYTES:,} bytes, got {len(encoded):,}")
    try:
        if format_of(encoded, LIMITS) != "JPEG":
            format_of(encoded, FULL_LIMITS)
    except UnusableImage as problem:
        raise problem.of("file") from None
    return encoded


def model_input(encoded: bytes, preprocess: Callable[[bytes], Pixels]) -> Pixels:
    """Return a picture that `checked` accepted as the model takes it.

    Raises:
        UnusableImage: the picture is damaged or cannot be shown.
    """
    try:
        return preprocess(encoded)
    except UnusableImage as problem:
        raise problem.of("file") from None
