"""Images without captions or labels, for search: all pictures in a folder, at any depth."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
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
        parser.add_argument("--images", required=True, metavar="DIR", help="folder or URL of the images, at any depth")

    def inputs(self) -> Inputs:
        return Inputs(folders=[self.options.images])

    def splits(self, work: Work) -> Iterable[Split]:
        if not is_folder(self.options.images):
            raise FileNotFoundError(f"--images: expected a folder at {self.options.images}, got none")
        split = Split(".", "images", [])
        split.parts = self._parts(split, work.limit)
        yield split

    def _parts(self, split: Split, limit: int | None) -> Iterator[Part]:
        folder = Folder.at(self.options.images)
        walk = walk_folder(folder, split.rejected)
        yield from parts_of(map(ImageFile, walk.files("")), partial(ImagesPart, folder), limit)
        if walk.passed_over:
            split.left_out["passed over, hidden and system files"] = walk.passed_over
