"""Image files of a source: read whole, and decoded once to be sure of them."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from groundray.storage.folder import Folder

MAX_PIXELS = 178_956_970  # PIL's own limit, above which it speaks of a decompression bomb


@dataclass(frozen=True)
class CheckedImage:
    """An image file that can be used: its bytes as they are on disk, and its size in pixels."""

    encoded: bytes
    width: int
    height: int

    def row(self, id: str) -> dict[str, Any]:
        """The columns that every kind of data set with images has (`schema.IMAGE`)."""
        return {"id": id, "image": self.encoded, "width": self.width, "height": self.height}


class UnusableImage(Exception):
    """An image that cannot be used: `reason` is a word for counting, the message is for a person."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


def check_image(folder: Folder, names: Sequence[str]) -> CheckedImage:
    """The image file in a folder that has the first of `names` that is there, after it has been decoded in full.

    Raises:
        UnusableImage: it is outside the folder, missing, empty, not an image, truncated, or far too large.
    """
    for name in names:
        if (encoded := _read(folder, name)) is not None:
            return _decoded(encoded, f"{folder}/{name}")
    raise UnusableImage("missing", f"there is no file {' or '.join(f'{folder}/{name}' for name in names)}")


def _read(folder: Folder, name: str) -> bytes | None:
    """The bytes of a file; None where there is none."""
    try:
        path = Path(folder.locate(name))
        if folder.local and not path.resolve().is_relative_to(Path(folder.path).resolve()):
            raise UnusableImage("outside", f"{name!r} leads out of {folder} by a link")
        there = not folder.local or path.is_file()
    except ValueError as error:
        raise UnusableImage("outside", str(error)) from None
    except OSError as error:  # too long
        raise UnusableImage("missing", f"there can be no file {name!r} in {folder}: {error}") from None
    try:
        return folder.read_bytes(name) if there else None
    except FileNotFoundError:
        return None


def _decoded(encoded: bytes, path: str) -> CheckedImage:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, which does no harm
            with Image.open(io.BytesIO(encoded)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise UnusableImage("too large", f"{path} has {image.width} x {image.height} pixels")
                image.convert("RGB")
                return CheckedImage(encoded, image.width, image.height)
    except Image.DecompressionBombError:
        raise UnusableImage("too large", f"{path} has more than {MAX_PIXELS} pixels") from None
    except UnidentifiedImageError:
        raise UnusableImage("not an image", f"{path} ({len(encoded)} bytes) is no image that PIL knows") from None
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise UnusableImage("truncated", f"{path} cannot be decoded: {error}") from None
