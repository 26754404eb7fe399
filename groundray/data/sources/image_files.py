"""Image files of a source: read, and decoded once to make sure that they can be used."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groundray.data.image_decoder import UnusableImage, decode
from groundray.storage.folder import Folder

MAX_BYTES = 2**30  # a shard holds less than 2 GiB in a column of a row group


@dataclass(frozen=True)
class CheckedImage:
    """A usable image file: its bytes on disk, and the size of the upright picture in pixels."""

    encoded: bytes
    width: int
    height: int

    def row(self, id: str) -> dict[str, Any]:
        """Return the columns that all kinds of image data sets share (`schema.IMAGE`)."""
        return {"id": id, "image": self.encoded, "width": self.width, "height": self.height}


@dataclass(frozen=True)
class EncodedImage:
    """An image that is not decoded yet; `where` it was read, for messages."""

    encoded: bytes
    where: str


def check_image(folder: Folder, names: Sequence[str]) -> CheckedImage:
    """Return the first existing file of `names` in a folder, after decoding it completely. Links are followed.

    Raises:
        UnusableImage: the name leads out of the folder, the file is missing or unreadable, or it is not a picture that
            can be shown (`image_decoder`).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of unusual metadata, which is harmless
        return check_encoded(read_image(folder, names))


def read_image(folder: Folder, names: Sequence[str]) -> EncodedImage:
    """Return the first existing file of `names` in a folder. Links are followed.

    Raises:
        UnusableImage: the name leads out of the folder, or the file is missing or unreadable.
    """
    for name in names:
        if (encoded := _read(folder, name)) is not None:
            return EncodedImage(encoded, f"{folder}/{name}")
    raise UnusableImage("missing", f"there is no file {' or '.join(f'{folder}/{name}' for name in names)}")


def _read(folder: Folder, name: str) -> bytes | None:
    """Return the bytes of a file, or None if it does not exist."""
    try:
        path = Path(folder.locate(name))
    except ValueError as error:
        raise UnusableImage("outside", str(error)) from None
    if not folder.local:
        try:
            return folder.read_bytes(name)
        except FileNotFoundError:
            return None
    try:
        if not path.is_file():
            return None
        if (size := path.stat().st_size) > MAX_BYTES:
            raise UnusableImage("too large", f"{path}: expected at most {MAX_BYTES:,} bytes, got {size:,}")
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:  # of this file alone: its name is too long, it may not be read, its blocks are damaged
        raise UnusableImage("unreadable", f"{path} cannot be read: {error.strerror}") from None


def check_encoded(image: EncodedImage) -> CheckedImage:
    """Return an image after decoding it completely.

    Raises:
        UnusableImage: it is not a picture that can be shown (`image_decoder`).
    """
    try:
        width, height = decode(image.encoded).size
    except UnusableImage as problem:
        raise problem.of(image.where) from None
    return CheckedImage(image.encoded, width, height)


def all_files(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """Yield what is in a folder at any depth and is no folder. Links to folders are followed, but not in circles.

    Args:
        above: the real paths of the folders that this one was reached through.
    """
    real = os.path.realpath(folder)
    if real in above:
        return
    with contextlib.suppress(PermissionError), os.scandir(folder) as entries:
        for entry in entries:
            path = Path(entry)
            # Path takes a link that leads to itself for no folder; of others than links the entry knows without asking
            if path.is_dir() if entry.is_symlink() else entry.is_dir():
                yield from all_files(path, (*above, real))
            else:
                yield path
