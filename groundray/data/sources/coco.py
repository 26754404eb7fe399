"""COCO captions: a JSON file with `images` (id, file_name) and `annotations` (id, image_id, caption)."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from groundray.data.sources.caption_text import caption_problem, cleaned, short
from groundray.data.sources.image_files import CheckedImage
from groundray.data.sources.json_values import as_integer, is_text, read_json_member
from groundray.data.sources.protocol import Inputs, Row, Source, Split, Work, parts_of
from groundray.data.sources.reading import Reading
from groundray.data.sources.rejected import Rejected, RejectedLog, Rejections, summary
from groundray.data.sources.table import Table
from groundray.storage.folder import Folder


@dataclass(frozen=True)
class CaptionedImage:
    """An image with all of its usable captions, in the order of the file."""

    id: str
    file_names: tuple[str, ...]
    captions: tuple[str, ...]


# `id` of an image is text; `number` is what it is as a number, `position` the same if it is written as one
SCHEMA = """
CREATE TABLE images (id TEXT UNIQUE, number INTEGER, is_text INTEGER, position INTEGER, file TEXT);
CREATE INDEX images_by_number ON images (number);
CREATE INDEX images_in_order ON images (is_text, position, id);
CREATE TABLE captions (id UNIQUE, image INTEGER, caption TEXT);
CREATE INDEX captions_of_image ON captions (image);
"""
ADD_CAPTION = "INSERT OR IGNORE INTO captions SELECT ?, rowid, ? FROM images WHERE id = ?"
IN_ORDER = """
SELECT rowid, id, file FROM images WHERE {} EXISTS (SELECT 1 FROM captions WHERE image = images.rowid)
ORDER BY is_text, position, id
"""


class Captions:
    """The images of a COCO captions file with their captions, on disk. No image is opened.

    Ids are numbers or text: an annotation with `"image_id": "42"` belongs to the image with `"id": 42`.

    Args:
        file: path or URL.
        scratch: a folder for what is on disk.
        rejected: gets the items that cannot be used.

    Attributes:
        count: number of images.

    Raises:
        OSError: the file cannot be read, or the disk is full.
        ValueError: it is not a captions file.
    """

    def __init__(self, file: str | Path, scratch: Path, rejected: Rejections) -> None:
        self._table = Table(scratch, SCHEMA)
        what = "COCO captions"
        for number, entry in enumerate(read_json_member(file, "images", what)):
            if problem := self._add_image(entry):
                rejected.append(Rejected("image", _label(entry, number), *problem))
        for number, entry in enumerate(read_json_member(file, "annotations", what)):
            if problem := self._add_caption(entry):
                rejected.append(Rejected("caption", _label(entry, number), *problem))
        for _, id, _ in self._table.rows(IN_ORDER.format("NOT")):
            rejected.append(Rejected("image", id, "no caption", "no usable caption names this image"))
        (self.count,) = self._table.row("SELECT count(DISTINCT image) FROM captions")

    def images(self) -> Iterator[CaptionedImage]:
        """Yield the images that have captions: those whose ids are numbers in their order, then those with text."""
        for row, id, file in self._table.rows(IN_ORDER.format("")):
            captions = self._table.rows("SELECT caption FROM captions WHERE image = ? ORDER BY rowid", row)
            yield CaptionedImage(id, (file,), tuple(caption for (caption,) in captions))

    def _add_image(self, entry: Any) -> tuple[str, str] | None:
        """Add an image, or return why it cannot be used: the reason and the detail."""
        if not isinstance(entry, dict) or not _is_id(entry.get("id")) or not is_text(entry.get("file_name")):
            return "malformed", f"expected an object with id and file_name, got {short(entry)}"
        id, text = entry["id"], _as_text(entry["id"])
        number, is_word = as_integer(id), isinstance(id, str)
        values = (text, number, is_word, None if is_word else number, entry["file_name"])
        if not self._table.add("INSERT OR IGNORE INTO images VALUES (?, ?, ?, ?, ?)", *values):
            (file,) = self._table.row("SELECT file FROM images WHERE id = ?", text)
            return "duplicate id", f"the id of {file!r} is repeated at {entry['file_name']!r}"
        return None

    def _add_caption(self, entry: Any) -> tuple[str, str] | None:
        """Add a caption, or return why it cannot be used: the reason and the detail."""
        if not isinstance(entry, dict) or not all(_is_id(entry.get(key)) for key in ("id", "image_id")):
            return "malformed", f"expected an object with id, image_id and caption, got {short(entry)}"
        id = entry["id"] if isinstance(entry["id"], str) else as_integer(entry["id"])
        problem = caption_problem(entry.get("caption"))
        caption = "" if problem else cleaned(entry["caption"])
        if not problem and self._table.add(ADD_CAPTION, id, caption, _as_text(entry["image_id"])):
            return None
        if self._table.row("SELECT 1 FROM captions WHERE id = ?", id):
            return "duplicate id", f"the id is repeated at {short(entry)}"
        if (image := self._find(entry["image_id"])) is None:
            return "unknown image", f"no usable image has the id {entry['image_id']!r}"
        if not problem:
            self._table.add("INSERT INTO captions VALUES (?, ?, ?)", id, image, caption)
        return problem

    def _find(self, id: Any) -> int | None:
        """Return the row of the image that an id names: as it is written, else as a number."""
        row = self._table.row("SELECT rowid FROM images WHERE id = ?", _as_text(id))
        if row is None and (number := as_integer(id)) is not None:
            row = self._table.row("SELECT rowid FROM images WHERE number = ? ORDER BY rowid LIMIT 1", number)
        return row[0] if row else None


def _is_id(value: Any) -> bool:
    return is_text(value) or as_integer(value) is not None


def _as_text(id: Any) -> str:
    return id if isinstance(id, str) else str(as_integer(id))


def _label(entry: Any, number: int) -> str:
    id = entry.get("id") if isinstance(entry, dict) else None
    return _as_text(id) if _is_id(id) else f"entry {number}"


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
    captions = True

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--images", required=True, metavar="DIR", help="folder of the images")
        parser.add_argument("--captions", required=True, metavar="FILE", help="COCO's captions_*.json")

    def inputs(self) -> Inputs:
        return Inputs([self.options.captions], [self.options.images])

    def splits(self, work: Work) -> Iterable[Split]:
        yield captioned_split(".", Folder.at(self.options.images), self.options.captions, work)


def captioned_split(name: str, images: Folder, file: str | Path, work: Work) -> Split:
    """Return the data set of a folder of images and a captions file.

    Raises:
        ValueError: it is not a captions file, or names no image with a usable caption.
    """
    rejected = RejectedLog()
    captions = Captions(file, work.scratch, rejected)
    if not captions.count:
        raise ValueError(f"{file} names no image with a usable caption: {summary(rejected.tally)}")
    parts = parts_of(captions.images(), partial(CaptionedPart, images), work.limit)
    return Split(name, "captions", parts, total=work.limited(captions.count), rejected=rejected)
