"""Image folders: ROOT/train/CLASS/*.jpg and ROOT/val/CLASS/*.jpg."""

from __future__ import annotations

import argparse
import os
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from heapq import merge
from pathlib import Path
from typing import Protocol

from groundray.data.image_decoder import UnusableImage, format_of
from groundray.data.sources.image_files import CheckedImage, entries, is_folder, read_image
from groundray.data.sources.protocol import Inputs, Part, Row, Source, Split, Work, parts_of
from groundray.data.sources.reading import Reading
from groundray.data.sources.rejected import Rejected, Rejections
from groundray.storage.file_names import escaped, is_encodable
from groundray.storage.folder import Folder

# what systems and programs leave in folders, beside everything whose name begins with a dot
SYSTEM_NAMES = {
    *("__MACOSX", "Thumbs.db", "ehthumbs.db", "desktop.ini", "Desktop.ini", "$RECYCLE.BIN", "lost+found", "@eaDir"),
    *("System Volume Information", "__pycache__"),
}


@dataclass(frozen=True)
class LabelledImage:
    """An image file of a class; `label` is an index of the classes in alphabetical order."""

    id: str
    file_names: tuple[str, ...]
    label: int


class ClassFolders:
    """The images of the class folders in a folder, at any depth. Links to files and folders are followed.

    A folder without a picture is rejected and is no class. Only the header of one picture a class is read.

    Args:
        root: path or URL.
        rejected: gets what cannot be used, while `images` is iterated.
        classes: the classes of the training images, for validation images: images of other classes are rejected.

    Attributes:
        classes: names of the classes in alphabetical order.
        count: number of images.
        passed_over: number of hidden files and folders, and those of SYSTEM_NAMES, once `images` has ended.

    Raises:
        FileNotFoundError: the folder does not exist or has no class folder.
    """

    def __init__(self, root: str | Path, rejected: Rejections, classes: Sequence[str] | None = None) -> None:
        self._folder, self._rejected, self.passed_over = Folder.at(root), rejected, 0
        if not is_folder(root):
            raise FileNotFoundError(f"expected a folder of class folders at {root}, got none")
        self._listing = _listing(self._folder)
        walk = _Walk(self._folder, self._listing, [])
        counts = {name: self._count(walk, name) for name in walk.entries("")[0]}
        self._of_class = [name for name, count in counts.items() if count]
        if not self._of_class:
            raise FileNotFoundError(f"expected class folders such as {root}/dog with pictures in them, got none")
        self.classes = tuple(classes) if classes is not None else tuple(self._of_class)
        self.count = sum(count for name, count in counts.items() if name in self.classes)

    def images(self) -> Iterator[LabelledImage]:
        """Yield the images, class by class, in alphabetical order of their paths."""
        walk = _Walk(self._folder, self._listing, self._rejected)
        folders, stray = walk.entries("")
        for file in stray:
            walk.reject(file, "in no class", "is not in a class folder")
        labels = {name: label for label, name in enumerate(self.classes)}
        for name in folders:
            if name not in self._of_class:
                walk.reject(name, "no picture", "holds no picture and is no class", what="folder")
                for file in walk.files(name):
                    walk.reject(file, "in no class", "is in a folder that holds no picture")
            elif name in labels:
                yield from (LabelledImage(file, (file,), labels[name]) for file in walk.files(name))
            else:
                for file in walk.files(name):
                    detail = f"no training image has the class {name!r}"
                    self._rejected.append(Rejected("image", file, "unknown class", detail))
        self.passed_over = walk.passed_over

    def _count(self, walk: _Walk, folder: str) -> int:
        """Return the number of files in a folder, 0 if none is a picture."""
        count, holds_picture = 0, False
        for file in walk.files(folder):
            count += 1
            holds_picture = holds_picture or _is_picture(self._folder, file)
        return count if holds_picture else 0


def unread(root: str | Path, read: Sequence[str]) -> list[str]:
    """Return the names of the folders in `root` that are not among the read ones, hidden and system folders aside."""
    folder = Folder.at(root)
    folders, _ = _Walk(folder, _listing(folder), []).entries("")
    return [name for name in folders if name not in read]


def rows(images: Iterable[tuple[LabelledImage, CheckedImage]]) -> Iterator[Row]:
    """Yield rows of kind `labelled_images` from images and their checked files."""
    for image, checked in images:
        yield {**checked.row(image.id), "label": image.label}


class _Listing(Protocol):
    """Lists folders by their names relative to one folder."""

    def entries(self, folder: str) -> tuple[list[str], list[str]]:
        """Return the sorted names of the folders, and of everything else, directly in a folder."""
        ...

    def real(self, folder: str) -> str:
        """Return the path of a folder, without links."""
        ...


@dataclass(frozen=True)
class _LocalListing:
    root: Path

    def entries(self, folder: str) -> tuple[list[str], list[str]]:
        return entries(self.root / folder)

    def real(self, folder: str) -> str:
        return os.path.realpath(self.root / folder)


class _StoredListing:
    """A listing of a folder in a store, where one request lists all."""

    def __init__(self, folder: Folder) -> None:
        self._entries: dict[str, tuple[dict[str, None], list[str]]] = {"": ({}, [])}
        for file in folder.files():
            *above, name = file.split("/")
            for depth, inner in enumerate(above):
                self._of("/".join(above[:depth]))[0][inner] = None
            self._of("/".join(above))[1].append(name)

    def _of(self, folder: str) -> tuple[dict[str, None], list[str]]:
        return self._entries.setdefault(folder, ({}, []))

    def entries(self, folder: str) -> tuple[list[str], list[str]]:
        folders, files = self._of(folder)
        return sorted(folders), sorted(files)

    def real(self, folder: str) -> str:
        return folder


def _listing(folder: Folder) -> _Listing:
    return _LocalListing(Path(folder.path)) if folder.local else _StoredListing(folder)


class _Walk:
    """Walks through a folder, and notes what cannot be used or is passed over. Names are relative to the folder."""

    def __init__(self, root: Folder, listing: _Listing, rejected: Rejections):
        self._root, self._listing, self._rejected = root, listing, rejected
        self.passed_over = 0

    def files(self, folder: str, above: tuple[str, ...] = ()) -> Iterator[str]:
        """Yield the files of a folder at any depth, in alphabetical order of their paths.

        Args:
            above: the real paths of the folders that this one was reached through.
        """
        real = self._listing.real(folder)
        if real in above:
            self.reject(folder, "link loop", "is a link to a folder that it lies in", what="folder")
            return
        folders, files = self.entries(folder)
        inner = set(folders)
        for name in merge(folders, files):
            if name in inner:
                yield from self.files(name, (*above, real))
            else:
                yield name

    def entries(self, folder: str) -> tuple[list[str], list[str]]:
        """Return the folders and the files directly in a folder, in alphabetical order."""
        try:
            listed = self._listing.entries(folder)
        except OSError as error:
            self.reject(folder, "unreadable", f"cannot be read: {error.strerror or error}", what="folder")
            return [], []
        return self._usable(folder, listed[0], "folder"), self._usable(folder, listed[1], "image")

    def _usable(self, folder: str, names: Sequence[str], what: str) -> list[str]:
        usable: list[str] = []
        for name in names:
            if name.startswith(".") or name in SYSTEM_NAMES:
                self.passed_over += 1
            elif not is_encodable(name):
                path = posixpath.join(folder, name)
                self.reject(path, "name not UTF-8", "has a name that is not UTF-8: rename it", what)
            else:
                usable.append(posixpath.join(folder, name))
        return usable

    def reject(self, name: str, reason: str, message: str, what: str = "file") -> None:
        self._rejected.append(Rejected(what, escaped(name), reason, f"{escaped(f'{self._root}/{name}')} {message}"))


def walk_folder(folder: Folder, rejected: Rejections) -> _Walk:
    """Return what walks through a folder, which is listed now if it is in a store."""
    return _Walk(folder, _listing(folder), rejected)


def _is_picture(folder: Folder, name: str) -> bool:
    """Return True if a file begins as a picture does, or if only reading it shows why it cannot be used."""
    try:
        encoded = read_image(folder, [name]).encoded
    except UnusableImage as problem:
        return problem.reason == "unreadable"
    try:
        return bool(format_of(encoded))
    except UnusableImage as problem:
        return problem.reason != "not an image"


@dataclass(frozen=True)
class LabelledPart:
    """Labelled images whose files are in a folder."""

    folder: Folder
    images: tuple[LabelledImage, ...]

    def rows(self, reading: Reading) -> Iterator[Row]:
        return rows(reading.files(self.folder, self.images))


class ImageFolder(Source):
    name = "image-folder"
    help = "images with one label each: train/CLASS/*.jpg and val/CLASS/*.jpg"

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--root", required=True, metavar="DIR", help="folder that contains train/ and, if any, val/"
        )

    def inputs(self) -> Inputs:
        if "train" not in self.folders():
            train = f"{self.options.root}/train"
            raise FileNotFoundError(f"--root: expected class folders in {train}, there is no such folder")
        return Inputs(folders=[f"{self.options.root}/{name}" for name in self.folders()])

    def folders(self) -> Sequence[str]:
        return [name for name in ("train", "val") if is_folder(f"{self.options.root}/{name}")]

    def splits(self, work: Work) -> Iterable[Split]:
        root, names = self.options.root, self.folders()
        for name in unread(root, names):
            work.tell(f"{escaped(f'{root}/{name}')} is not read: expected the pictures in train/ and val/")
        return labelled_splits({name: (f"{root}/{name}", Folder.at(root) / name) for name in names}, work)


def labelled_splits(folders: Mapping[str, tuple[str | Path, Folder]], work: Work) -> Iterator[Split]:
    """Yield a data set for each of some folders of class folders. The classes are those of the first.

    Args:
        folders: by the name of the data set, the folder that is listed, and the same one as the parts read it.
    """
    classes: tuple[str, ...] | None = None
    for name, (listed, folder) in folders.items():
        split = Split(name, "labelled_images", [])
        found = ClassFolders(listed, split.rejected, classes)
        classes = found.classes
        split.vocabulary, split.total = {"classes": classes}, work.limited(found.count)
        split.parts = _parts(found, folder, split, work.limit)
        yield split


def _parts(found: ClassFolders, folder: Folder, split: Split, limit: int | None) -> Iterator[Part]:
    yield from parts_of(found.images(), partial(LabelledPart, folder), limit)
    if found.passed_over:
        split.left_out["passed over, hidden and system files"] = found.passed_over
