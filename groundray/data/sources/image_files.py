"""Image files of a source: read, and decoded once to make sure that they can be used."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from groundray.storage.folder import Folder

MAX_PIXELS = 178_956_970  # PIL's own limit, above which it warns of a decompression bomb


@dataclass(frozen=True)
class CheckedImage:
    """A usable image file: its bytes on disk, and its size in pixels."""

    encoded: bytes
    width: int
    height: int

    def row(self, id: str) -> dict[str, Any]:
        """Return the columns that all kinds of image data sets share (`schema.IMAGE`)."""
        return {"id": id, "image": self.encoded, "width": self.width, "height": self.height}


class UnusableImage(Exception):
    """An image cannot be used; `reason` is a short category, the message has the details."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[UnusableImage], tuple[str, str]]:
        """Pickle both arguments: an exception keeps only the message."""
        return type(self), (self.reason, str(self))


def check_image(folder: Folder, names: Sequence[str]) -> CheckedImage:
    """Return the first existing file of `names` in a folder, after decoding it completely.

    Raises:
        UnusableImage: the file is outside the folder, missing, empty, not an image, truncated, or too large.
    """
    for name in names:
        if (encoded := _read(folder, name)) is not None:
            return _decoded(encoded, f"{folder}/{name}")
    raise UnusableImage("missing", f"there is no file {' or '.join(f'{folder}/{name}' for name in names)}")


def _read(folder: Folder, name: str) -> bytes | None:
    """Return the bytes of a file, or None if it does not exist."""
    try:
        path = Path(folder.locate(name))
        if folder.local and not path.resolve().is_relative_to(Path(folder.path).resolve()):
            raise UnusableImage("outside", f"{name!r} is a link out of {folder}")
        exists = not folder.local or path.is_file()
    except ValueError as error:
        raise UnusableImage("outside", str(error)) from None
    except OSError as error:  # the name is too long
        raise UnusableImage("missing", f"a file {name!r} cannot exist in {folder}: {error}") from None
    try:
        return folder.read_bytes(name) if exists else None
    except FileNotFoundError:
        return None


def _decoded(encoded: bytes, path: str) -> CheckedImage:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings of unusual metadata, which is harmless
            with Image.open(io.BytesIO(encoded)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise UnusableImage("too large", f"{path} has {image.width} x {image.height} pixels")
                image.convert("RGB")
                return CheckedImage(encoded, image.width, image.height)
    except Image.DecompressionBombError:
        raise UnusableImage("too large", f"{path} has more than {MAX_PIXELS} pixels") from None
    except UnidentifiedImageError:
        raise UnusableImage(
            "not an image", f"{path} ({len(encoded)} bytes) is not an image that PIL can read"
        ) from None
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise UnusableImage("truncated", f"{path} cannot be decoded: {error}") from None
