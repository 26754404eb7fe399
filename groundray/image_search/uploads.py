"""Checks of uploaded pictures. The header is checked before anything is decoded."""

from __future__ import annotations

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from groundray.data.image_inputs import CentreCrop
from groundray.data.sources.image_files import UnusableImage
from groundray.data.transforms import centre_crop

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MAX_BYTES = 10_000_000
MAX_PIXELS = 50_000_000
ORIENTATION = 0x0112  # EXIF tag; 1 is upright


def checked(encoded: bytes) -> bytes:
    """Check the header of an encoded picture, and return the picture upright.

    Raises:
        UnusableImage: the picture is too large, empty, or not one of FORMATS. The reason is `too large`,
            `not an image` or `truncated`.
    """
    if len(encoded) > MAX_BYTES:
        raise UnusableImage("too large", f"file: expected at most {MAX_BYTES:,} bytes, got {len(encoded):,}")
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise UnusableImage(
                    "too large", f"file: expected at most {MAX_PIXELS:,} pixels, got {width:,} x {height:,}"
                )
            if image.getexif().get(ORIENTATION, 1) == 1:
                return encoded
            return _upright(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UnusableImage("too large", f"file: expected at most {MAX_PIXELS:,} pixels, got far more") from None
    except UnidentifiedImageError:
        raise UnusableImage(
            "not an image",
            f"file: expected a picture ({', '.join(FORMATS)}), got {len(encoded):,} bytes in another format",
        ) from None
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise UnusableImage("truncated", f"file: the picture cannot be decoded: {error}") from None


def model_input(encoded: bytes, crop: CentreCrop) -> UInt8[np.ndarray, "3 side side"]:
    """Decode and crop a picture that `checked` accepted, as the model sees it.

    Raises:
        UnusableImage: the picture is damaged.
    """
    try:
        return centre_crop(encoded, crop.resize, crop.crop)
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise UnusableImage("truncated", f"file: the picture cannot be decoded: {error}") from None


def _upright(image: Image.Image) -> bytes:
    """Return the picture as viewers show it: rotated by its EXIF orientation, which no model reads."""
    file = io.BytesIO()
    ImageOps.exif_transpose(image).convert("RGB").save(file, "PNG", compress_level=1)
    return file.getvalue()
