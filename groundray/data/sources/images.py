"""Images without captions or labels, for search: all pictures in a folder, at any depth."""

from __future__ import annotations

import argparse
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from groundray.data.sources.image_files import is_folder
from groundray.data.sources.image_folder import walk_folder
from groundray.data.sources.protocol import Inputs, Part, Row, Source, Split, Work, parts_of
from groundray.data.sources.reading import Reading
from groundray.storage.folder import Folder


@dataclass(frozen=True)
class ImageFile:
    """An image file; its id is its path in the folder."""

    id: str

    @property
    def file_names(self) -> tuple[str, ...]:
        return (self.id,)


@dataclass(frozen=True)
class ImagesPart:
    """Images whose files are in a folder."""

    folder: Folder
    images: tuple[ImageFile, ...]

    def rows(self, reading: Reading) -> Iterator[Row]:
        return (checked.row(image.id) for image, checked in reading.files(self.folder, self.images))


class Images(Source):
    name = "images"
    help = "images alone, for search: all pictures in a folder"

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--images", metavar="DIR", help="folder or URL of the images, at any depth")
        changes = parser.add_mutually_exclusive_group()
        changes.add_argument(
            "--add", action="store_true", help="add the images that --out lacks to those that it has, as further shards"
        )
        changes.add_argument(
            "--remove",
            nargs="+",
            default=[],
            metavar="ID",
            help="remove images from --out: search does not find them any more",
        )

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        self.skipped: Container[str] = ()  # ids that are left out
        self.added_to = ""  # fingerprint of the pool that the images are added to

    def inputs(self) -> Inputs:
        if not self.options.images:
            raise ValueError("--images: expected a folder or URL, got none")
        return Inputs([], [self.options.images], {"added_to": self.added_to} if self.added_to else {})

    def ids(self) -> Iterator[str]:
        """Yield the ids of all files in the folder."""
        return walk_folder(Folder.at(self.options.images), []).files("")

    def splits(self, work: Work) -> Iterable[Split]:
        if not is_folder(self.options.images):
            raise FileNotFoundError(f"--images: expected a folder at {self.options.images}, got none")
        split = Split(".", "images", [])
        split.parts = self._parts(split, work.limit)
        yield split

    def _parts(self, split: Split, limit: int | None) -> Iterator[Part]:
        folder = Folder.at(self.options.images)
        walk = walk_folder(folder, split.rejected)
        ids = (id for id in walk.files("") if id not in self.skipped)
        yield from parts_of(map(ImageFile, ids), partial(ImagesPart, folder), limit)
        if walk.passed_over:
            split.left_out["passed over, hidden and system files"] = walk.passed_over
