"""COCO captions: a JSON file with `images` (id, file_name) and `annotations` (id, image_id, caption)."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from groundray.data.sources.image_files import CheckedImage
from groundray.data.sources.json_values import as_integer, is_text
from groundray.data.sources.protocol import Inputs, Row, Source, Split, Work, parts_of
from groundray.data.sources.reading import Reading
from groundray.data.sources.rejected import Rejected, summary, tally
from groundray.storage.folder import Folder


@dataclass(frozen=True)
class CaptionedImage:
    """An image with all of its usable captions, in the order of the file."""

    id: str
    file_names: tuple[str, ...]
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Captions:
    """The content of a captions file: images ordered by id, and the items that cannot be used."""

    images: tuple[CaptionedImage, ...]
    rejected: tuple[Rejected, ...]


def read_captions(file: Path) -> Captions:
    """Return the captioned images of a COCO captions file. No image is opened.

    Ids are numbers or text: an annotation with `"image_id": "42"` belongs to the image with `"id": 42`.

    Raises:
        ValueError: the file is not a captions file.
    """
    images, annotations = _entries(file)
    rejected: list[Rejected] = []
    known = _Images()
    for number, entry in enumerate(images):
        problem = _image_problem(entry, known)
        if problem:
            rejected.append(Rejected("image", _label(entry, number), *problem))
        else:
            known.add(entry["id"], entry["file_name"])

    captions: dict[str, list[str]] = {id: [] for id in known.files}
    seen: set[int | float | str] = set()
    for number, entry in enumerate(annotations):
        problem = _caption_problem(entry, known, seen)
        if problem:
            rejected.append(Rejected("caption", _label(entry, number), *problem))
        else:
            seen.add(entry["id"])
            captions[known.find(entry["image_id"]) or ""].append(" ".join(entry["caption"].split()))

    usable = []
    for id in known.ordered():
        if captions[id]:
            usable.append(CaptionedImage(id, (known.files[id],), tuple(captions[id])))
        else:
            rejected.append(Rejected("image", id, "no caption", "no usable caption names this image"))
    return Captions(tuple(usable), tuple(rejected))


def _entries(file: Path) -> tuple[list[Any], list[Any]]:
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:  # ValueError also for a number with thousands of digits
        raise ValueError(f"{file} is not JSON: {error}") from None
    lists = [content.get(key) if isinstance(content, dict) else None for key in ("images", "annotations")]
    for key, entries in zip(("images", "annotations"), lists, strict=True):
        if not isinstance(entries, list):
            raise ValueError(f"{file}: expected COCO captions with a list {key!r}, got none")
    return lists[0] or [], lists[1] or []


class _Images:
    """The file of each image, by its id as text, and the ids that annotations may give for it."""

    def __init__(self) -> None:
        self.files: dict[str, str] = {}
        self._written: dict[str, Any] = {}
        self._numbers: dict[int, str] = {}

    def add(self, id: Any, file: str) -> None:
        text = _as_text(id)
        self.files[text], self._written[text] = file, id
        if (number := as_integer(id)) is not None:
            self._numbers.setdefault(number, text)

    def find(self, id: Any) -> str | None:
        """Return the id as text of the image that an id names: as it is written, else as a number."""
        text = _as_text(id)
        if text in self.files:
            return text
        number = as_integer(id)
        return None if number is None else self._numbers.get(number)

    def ordered(self) -> list[str]:
        """Return the ids: those written as numbers in their order, then those written as text in theirs."""
        return sorted(self.files, key=lambda text: (isinstance(self._written[text], str), self._written[text]))


def _image_problem(entry: Any, known: _Images) -> tuple[str, str] | None:
    if not isinstance(entry, dict) or not _is_id(entry.get("id")) or not is_text(entry.get("file_name")):
        return "malformed", f"expected an object with id and file_name, got {_short(entry)}"
    if (id := _as_text(entry["id"])) in known.files:
        return "duplicate id", f"the id of {known.files[id]!r} is repeated at {entry['file_name']!r}"
    return None


def _caption_problem(entry: Any, known: _Images, seen: set[int | float | str]) -> tuple[str, str] | None:
    if not isinstance(entry, dict) or not all(_is_id(entry.get(key)) for key in ("id", "image_id")):
        return "malformed", f"expected an object with id, image_id and caption, got {_short(entry)}"
    if entry["id"] in seen:
        return "duplicate id", f"the id is repeated at {_short(entry)}"
    if known.find(entry["image_id"]) is None:
        return "unknown image", f"no usable image has the id {entry['image_id']!r}"
    caption = entry.get("caption")
    if not is_text(caption):
        return "malformed", f"expected a caption, got {_short(caption)}"
    if not any(letter.isalnum() for letter in caption):
        return "empty", f"the caption is {caption!r}"
    return None


def _is_id(value: Any) -> bool:
    return is_text(value) or as_integer(value) is not None


def _as_text(id: Any) -> str:
    return id if isinstance(id, str) else str(as_integer(id))


def _label(entry: Any, number: int) -> str:
    id = entry.get("id") if isinstance(entry, dict) else None
    return _as_text(id) if _is_id(id) else f"entry {number}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def rows(images: Iterable[tuple[CaptionedImage, CheckedImage]]) -> Iterator[Row]:
    """Yield rows of kind `captions` from images and their checked files."""
    for image, checked in images:
        yield {**checked.row(image.id), "captions": list(image.captions)}


@dataclass(frozen=True)
class CaptionedPart:
    """Captioned images whose files are in a folder."""

    folder: Folder
    images: tuple[CaptionedImage, ...]

    def rows(self, reading: Reading) -> Iterator[Row]:
        return rows(reading.files(self.folder, self.images))


class Coco(Source):
    name = "coco"
    help = "captioned images: a folder and a captions file in COCO's layout"

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--images", required=True, metavar="DIR", help="folder of the images")
        parser.add_argument("--captions", required=True, metavar="FILE", help="COCO's captions_*.json")

    def inputs(self) -> Inputs:
        return Inputs([self.options.captions], [self.options.images])

    def splits(self, work: Work) -> Iterable[Split]:
        yield captioned_split(".", Folder.at(self.options.images), Path(self.options.captions))


def captioned_split(name: str, images: Folder, captions: Path) -> Split:
    """Return the data set of a folder of images and a captions file.

    Raises:
        ValueError: it is not a captions file, or names no image with a usable caption.
    """
    found = read_captions(captions)
    if not found.images:
        raise ValueError(f"{captions} names no image with a usable caption: {summary(tally(found.rejected))}")
    split = Split(name, "captions", parts_of(found.images, partial(CaptionedPart, images)), total=len(found.images))
    split.rejected.extend(found.rejected)
    return split
