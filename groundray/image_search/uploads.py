"""Pictures that somebody brings along: whatever arrives is looked at before it is decoded."""

from __future__ import annotations

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from groundray.data.image_inputs import CentreCrop
from groundray.data.sources.image_files import Unusable
from groundray.data.transforms import centre_crop

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MOST_BYTES = 10_000_000
MOST_PIXELS = 50_000_000
ORIENTATION = 0x0112  # of EXIF: 1 is upright


def checked(encoded: bytes) -> bytes:
    """The picture, upright, after a look at its header.

    Raises:
        Unusable: it is too large, empty, or no picture of FORMATS; the reason is `too large`, `not an image` or
            `truncated`.
    """
    if len(encoded) > MOST_BYTES:
        raise Unusable("too large", f"file: expected at most {MOST_BYTES:,} bytes, got {len(encoded):,}")
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MOST_PIXELS:
                raise Unusable(
                    "too large", f"file: expected at most {MOST_PIXELS:,} pixels, got {width:,} x {height:,}"
                )
            if image.getexif().get(ORIENTATION, 1) == 1:
                return encoded
            return _upright(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Unusable("too large", f"file: expected at most {MOST_PIXELS:,} pixels, got far more") from None
    except UnidentifiedImageError:
        raise Unusable(
            "not an image",
            f"file: expected a picture ({', '.join(FORMATS)}), got {len(encoded):,} bytes that are none",
        ) from None
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise Unusable("truncated", f"file: the picture cannot be decoded: {error}") from None


def picture(encoded: bytes, cut: CentreCrop) -> UInt8[np.ndarray, "3 side side"]:
    """What a model sees of a picture that `checked` let pass.

    Raises:
        Unusable: it is damaged.
    """
    try:
        return centre_crop(encoded, cut.resize, cut.crop)
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise Unusable("truncated", f"file: the picture cannot be decoded: {error}") from None


def _upright(image: Image.Image) -> bytes:
    """The picture as it is shown: a camera that was held upright says so in a note, which no model reads."""
    file = io.BytesIO()
    ImageOps.exif_transpose(image).convert("RGB").save(file, "PNG", compress_level=1)
    return file.getvalue()
