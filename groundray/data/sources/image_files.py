"""Image files of a source: read, and decoded once to make sure that they can be used."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groundray.data.image_decoder import UnusableImage, decode
from groundray.storage.folder import Folder


@dataclass(frozen=True)
class CheckedImage:
    """A usable image file: its bytes on disk, and the size of the upright picture in pixels."""

    encoded: bytes
    width: int
    height: int

    def row(self, id: str) -> dict[str, Any]:
        """Return the columns that all kinds of image data sets share (`schema.IMAGE`)."""
        return {"id": id, "image": self.encoded, "width": self.width, "height": self.height}


def check_image(folder: Folder, names: Sequence[str]) -> CheckedImage:
    """Return the first existing file of `names` in a folder, after decoding it completely.

    Raises:
        UnusableImage: the file is outside the folder, missing, or not a picture that can be shown (`image_decoder`).
    """
    for name in names:
        if (encoded := _read(folder, name)) is not None:
            return _decoded(encoded, f"{folder}/{name}")
    raise UnusableImage("missing", f"there is no file {' or '.join(f'{folder}/{name}' for name in names)}")


def _read(folder: Folder, name: str) -> bytes | None:
    """Return the bytes of a file, or None if it does not exist."""
    try:
        path = Path(folder.locate(name))
    except ValueError as error:
        raise UnusableImage("outside", str(error)) from None
    try:
        if folder.local and not path.resolve().is_relative_to(Path(folder.path).resolve()):
            raise UnusableImage("outside", f"{name!r} is a link out of {folder}")
        exists = not folder.local or path.is_file()
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
            width, height = decode(encoded).size
    except UnusableImage as problem:
        raise problem.of(path) from None
    return CheckedImage(encoded, width, height)
