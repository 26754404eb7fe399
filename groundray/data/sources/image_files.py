"""Image files of a source: read, and decoded once to make sure that they can be used."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import merge
from pathlib import Path
from typing import Any

from PIL import Image

from groundray.data.image_decoder import UnusableImage, decode
from groundray.storage import object_store
from groundray.storage.folder import Folder
from groundray.storage.local_path import expanded

MAX_BYTES = 2**30  # a shard holds less than 2 GiB in a column of a row group


@dataclass(frozen=True)
class ImageRules:
    """Which pictures are used, and how they are stored.

    Attributes:
        min_side: least number of pixels of the shorter side.
        max_side: pictures with more pixels on the longer side are made smaller, upright, and encoded as JPEG. All
            others, and all if it is None, keep their bytes.
        quality: of this JPEG, from 1 to 95.
    """

    min_side: int = 1
    max_side: int | None = None
    quality: int = 90


@dataclass(frozen=True)
class CheckedImage:
    """A usable image file: its bytes in shards, and the size of the upright picture in pixels."""

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
        return _read_stored(folder, name)
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


def _read_stored(folder: Folder, name: str) -> bytes | None:
    """Return the bytes of a file in a store, or None if it does not exist. The store's client repeats requests.

    Raises:
        OSError: the store cannot be used, or no longer.
    """
    try:
        encoded = folder.read_bytes(name)
    except FileNotFoundError:
        return None
    except OSError as error:
        object_store.probe(str(folder))
        raise UnusableImage("unreadable", str(error)) from None
    if len(encoded) > MAX_BYTES:
        raise UnusableImage("too large", f"{folder}/{name}: expected at most {MAX_BYTES:,} bytes, got {len(encoded):,}")
    return encoded


def check_encoded(image: EncodedImage, rules: ImageRules = ImageRules()) -> CheckedImage:
    """Return an image after decoding it completely.

    Raises:
        UnusableImage: it is not a picture that can be shown (`image_decoder`), or is smaller than the rules want it.
    """
    try:
        picture = decode(image.encoded)
        width, height = picture.size
        if min(picture.size) < rules.min_side:
            least = f"expected at least {rules.min_side} pixels a side (--min-side), got {width} x {height}"
            raise UnusableImage("too small", least)
    except UnusableImage as problem:
        raise problem.of(image.where) from None
    if rules.max_side is None or max(picture.size) <= rules.max_side:
        return CheckedImage(image.encoded, width, height)
    scale = rules.max_side / max(picture.size)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    out = io.BytesIO()
    picture.resize(size, Image.Resampling.LANCZOS).save(out, "JPEG", quality=rules.quality)
    return CheckedImage(out.getvalue(), *size)


def is_folder(url: str | Path) -> bool:
    """Return True if there is a folder at a path or URL."""
    return bool(Folder.at(url).files()) if "://" in str(url) else expanded(url).is_dir()


def all_files(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """Yield what is in a folder at any depth and is no folder, in the order of `sorted`. Links to folders are followed,
    but not in circles. Memory: the names in one folder.

    Args:
        above: the real paths of the folders that this one was reached through.
    """
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        folders, files = entries(folder)
    except PermissionError:
        return
    inner = set(folders)
    for name in merge(folders, files):
        if name in inner:
            yield from all_files(folder / name, (*above, real))
        else:
            yield folder / name


def entries(folder: Path) -> tuple[list[str], list[str]]:
    """Return the sorted names of the folders, and of everything else, directly in a folder. A link to a folder is one.

    Raises:
        OSError: the folder cannot be read.
    """
    folders: list[str] = []
    files: list[str] = []
    with os.scandir(folder) as found:
        for entry in found:
            # Path takes a link that leads to itself for no folder; of others than links the entry knows without asking
            is_folder = Path(entry).is_dir() if entry.is_symlink() else entry.is_dir()
            (folders if is_folder else files).append(entry.name)
    return sorted(folders), sorted(files)
