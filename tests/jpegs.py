"""Pictures for tests of `data.jpeg_decoding`: smooth ones, which a JPEG holds well, in many encodings."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

ORIENTATION = 0x0112


def smooth(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return a picture of random large spots."""
    spots = np.random.default_rng(seed).integers(256, size=(5, 7, 3), dtype=np.uint8)
    return Image.fromarray(spots).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, file_format: str = "JPEG", orientation: int = 1, **options: Any) -> bytes:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image.save(file, file_format, **({"exif": exif} if orientation > 1 else {}), **options)
    return file.getvalue()


def table(files: dict[str, bytes]) -> pa.Table:
    return pa.table({"id": list(files), "image": pa.array(files.values(), pa.large_binary())})


def plain() -> dict[str, bytes]:
    """JPEGs that a GPU decodes: of all subsamplings, orientations and reductions."""
    return {
        "4:4:4": encoded(smooth(97, 61), subsampling="4:4:4", quality=95),
        "4:2:2": encoded(smooth(61, 97, 1), subsampling="4:2:2", quality=95),
        "4:2:0": encoded(smooth(120, 80, 2), subsampling="4:2:0", quality=95),
        "restarts": encoded(smooth(100, 80, 3), restart_marker_blocks=2),
        **{f"orientation {o}": encoded(smooth(90, 66, 10 + o), orientation=o) for o in range(2, 9)},
        **{f"reduced {factor}": encoded(smooth(70 * factor + 3, 58 * factor + 1, 20 + factor)) for factor in (2, 4, 8)},
        "reduced, turned": encoded(smooth(203, 119, 30), orientation=6),
    }


def others() -> dict[str, bytes]:
    """Pictures that the CPU decodes, of the same sizes."""
    photo = smooth(120, 80)
    return {
        "png": encoded(photo, "PNG"),
        "webp": encoded(photo, "WEBP"),
        "grey": encoded(photo.convert("L")),
        "cmyk": encoded(photo.convert("CMYK")),
        "progressive": encoded(photo, progressive=True),
        "rgb": encoded(photo, keep_rgb=True),
        "appended": encoded(photo) + b"\0",
    }


def without_tables(file: bytes) -> bytes:
    """Return a JPEG whose first Huffman table is damaged, which its header does not show."""
    at = file.index(b"\xff\xc4") + 5
    return file[:at] + b"\xff" * 16 + file[at + 16 :]
