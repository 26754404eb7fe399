"""COCO captions: a JSON file with `images` (id, file_name) and `annotations` (id, image_id, caption)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from groundray.data.sources.image_files import CheckedImage
from groundray.data.sources.rejected import Rejected


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

    Raises:
        ValueError: the file is not a captions file.
    """
    images, annotations = _entries(file)
    rejected: list[Rejected] = []
    files: dict[int | str, str] = {}
    for number, entry in enumerate(images):
        problem = _image_problem(entry, files)
        if problem:
            rejected.append(Rejected("image", _id(entry, number), *problem))
        else:
            files[entry["id"]] = entry["file_name"]

    captions: dict[int | str, list[str]] = {key: [] for key in files}
    seen: set[int | str] = set()
    for number, entry in enumerate(annotations):
        problem = _caption_problem(entry, files, seen)
        if problem:
            rejected.append(Rejected("caption", _id(entry, number), *problem))
        else:
            seen.add(entry["id"])
            captions[entry["image_id"]].append(" ".join(entry["caption"].split()))

    usable = []
    for key in sorted(files, key=lambda key: (isinstance(key, str), key)):
        if captions[key]:
            usable.append(CaptionedImage(str(key), (files[key],), tuple(captions[key])))
        else:
            rejected.append(Rejected("image", str(key), "no caption", "no usable caption names this image"))
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


def _image_problem(entry: Any, files: dict[int | str, str]) -> tuple[str, str] | None:
    if not isinstance(entry, dict) or not _is_id(entry.get("id")) or not _is_text(entry.get("file_name")):
        return "malformed", f"expected an object with id and file_name, got {_short(entry)}"
    if entry["id"] in files:
        return "duplicate id", f"the id of {files[entry['id']]!r} is repeated at {entry['file_name']!r}"
    return None


def _caption_problem(entry: Any, files: dict[int | str, str], seen: set[int | str]) -> tuple[str, str] | None:
    if not isinstance(entry, dict) or not all(_is_id(entry.get(key)) for key in ("id", "image_id")):
        return "malformed", f"expected an object with id, image_id and caption, got {_short(entry)}"
    if entry["id"] in seen:
        return "duplicate id", f"the id is repeated at {_short(entry)}"
    if entry["image_id"] not in files:
        return "unknown image", f"no usable image has the id {entry['image_id']!r}"
    caption = entry.get("caption")
    if not _is_text(caption):
        return "malformed", f"expected a caption, got {_short(caption)}"
    if not any(letter.isalnum() for letter in caption):
        return "empty", f"the caption is {caption!r}"
    return None


def _is_id(value: Any) -> bool:
    return _is_text(value) or (isinstance(value, int) and not isinstance(value, bool))


def _is_text(value: Any) -> TypeGuard[str]:
    """Return True for text that can be encoded. A lone surrogate such as `\\ud83d`, half of an emoji, cannot."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _id(entry: Any, number: int) -> str:
    id = entry.get("id") if isinstance(entry, dict) else None
    return str(id) if _is_id(id) else f"entry {number}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def rows(images: Iterable[tuple[CaptionedImage, CheckedImage]]) -> Iterator[dict[str, Any]]:
    """Yield rows of kind `captions` from images and their checked files."""
    for image, checked in images:
        yield {**checked.row(image.id), "captions": list(image.captions)}
