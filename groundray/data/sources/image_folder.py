"""Image folders: ROOT/train/CLASS/*.jpg and ROOT/val/CLASS/*.jpg."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from groundray.data.image_decoder import UnusableImage, format_of
from groundray.data.sources.image_files import MAX_BYTES, CheckedImage
from groundray.data.sources.protocol import Inputs, Row, Source, Split, Work, parts_of
from groundray.data.sources.reading import Reading
from groundray.data.sources.rejected import Rejected
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


@dataclass(frozen=True)
class Labelled:
    """The content of a folder of class folders.

    Attributes:
        passed_over: number of hidden files and folders, and those of SYSTEM_NAMES.
    """

    images: tuple[LabelledImage, ...]
    classes: tuple[str, ...]
    rejected: tuple[Rejected, ...]
    passed_over: int


def read_folder(root: Path, classes: Sequence[str] | None = None) -> Labelled:
    """Return the images of the class folders in `root`, at any depth. Links to files and folders are followed.

    A folder without a picture is rejected and is no class. Only the header of one picture a class is read.

    Args:
        classes: the classes of the training images, for validation images: images of other classes are rejected.

    Raises:
        FileNotFoundError: the folder does not exist or has no class folder.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"expected a folder of class folders at {root}, got none")
    walk = _Walk(root)
    folders, stray = walk.entries(root)
    walk.reject(stray, "in no class", "is not in a class folder")
    of_class: dict[str, list[str]] = {}
    for folder in folders:
        files = walk.files(folder)
        if any(map(_is_picture, files)):
            of_class[folder.name] = [file.relative_to(root).as_posix() for file in files]
        else:
            walk.reject([folder], "no picture", "holds no picture and is no class", what="folder")
            walk.reject(files, "in no class", "is in a folder that holds no picture")
    if not of_class:
        raise FileNotFoundError(f"expected class folders such as {root / 'dog'} with pictures in them, got none")
    known = tuple(classes) if classes is not None else tuple(of_class)
    images: list[LabelledImage] = []
    for name, files in of_class.items():
        if name in known:
            images += [LabelledImage(file, (file,), known.index(name)) for file in files]
        else:
            detail = f"no training image has the class {name!r}"
            walk.rejected += [Rejected("image", file, "unknown class", detail) for file in files]
    return Labelled(tuple(images), known, tuple(walk.rejected), walk.passed_over)


def unread(root: Path, read: Sequence[str]) -> list[str]:
    """Return the names of the folders in `root` that are not among the read ones, hidden and system folders aside."""
    folders, _ = _Walk(root).entries(root)
    return [folder.name for folder in folders if folder.name not in read]


def rows(images: Iterable[tuple[LabelledImage, CheckedImage]]) -> Iterator[Row]:
    """Yield rows of kind `labelled_images` from images and their checked files."""
    for image, checked in images:
        yield {**checked.row(image.id), "label": image.label}


class _Walk:
    """Walks through a folder, and notes what cannot be used or is passed over."""

    def __init__(self, root: Path):
        self._root = root
        self.rejected: list[Rejected] = []
        self.passed_over = 0

    def files(self, folder: Path) -> list[Path]:
        """Return the files of a folder at any depth, in alphabetical order of their paths."""
        return sorted(self._files(folder, ()))

    def _files(self, folder: Path, above: tuple[str, ...]) -> Iterator[Path]:
        real = os.path.realpath(folder)
        if real in above:
            self.reject([folder], "link loop", "is a link to a folder that it lies in", what="folder")
            return
        folders, files = self.entries(folder)
        yield from files
        for inner in folders:
            yield from self._files(inner, (*above, real))

    def entries(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """Return the folders and the files directly in a folder, in alphabetical order."""
        try:
            paths = sorted(folder.iterdir())
        except OSError as error:
            self.reject([folder], "unreadable", f"cannot be read: {error.strerror}", what="folder")
            return [], []
        folders: list[Path] = []
        files: list[Path] = []
        for path in paths:
            name = path.name
            if name.startswith(".") or name in SYSTEM_NAMES:
                self.passed_over += 1
            elif not is_encodable(name):
                what = "folder" if path.is_dir() else "image"
                self.reject([path], "name not UTF-8", "has a name that is not UTF-8: rename it", what)
            else:
                (folders if path.is_dir() else files).append(path)
        return folders, files

    def reject(self, paths: Sequence[Path], reason: str, message: str, what: str = "file") -> None:
        for path in paths:
            name = escaped(path.relative_to(self._root).as_posix())
            self.rejected.append(Rejected(what, name, reason, f"{escaped(str(path))} {message}"))


def _is_picture(file: Path) -> bool:
    """Return True if a file begins as a picture does, or if only reading it shows why it cannot be used."""
    try:
        if not file.is_file() or file.stat().st_size > MAX_BYTES:
            return False
        return bool(format_of(file.read_bytes()))
    except UnusableImage as problem:
        return problem.reason != "not an image"
    except OSError:
        return True


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
        root = Path(self.options.root)
        if not (root / "train").is_dir():
            raise FileNotFoundError(f"--root: expected class folders in {root / 'train'}, there is no such folder")
        return Inputs(folders=[str(root / name) for name in self.folders()])

    def folders(self) -> Sequence[str]:
        return [name for name in ("train", "val") if (Path(self.options.root) / name).is_dir()]

    def splits(self, work: Work) -> Iterable[Split]:
        root, names = Path(self.options.root), self.folders()
        for name in unread(root, names):
            work.tell(f"{escaped(str(root / name))} is not read: expected the pictures in train/ and val/")
        return labelled_splits({name: (root / name, Folder.at(root / name)) for name in names})


def labelled_splits(folders: Mapping[str, tuple[Path, Folder]]) -> Iterator[Split]:
    """Yield a data set for each of some folders of class folders. The classes are those of the first.

    Args:
        folders: by the name of the data set, the folder that is listed, and the same one as the parts read it.
    """
    classes: tuple[str, ...] | None = None
    for name, (listed, folder) in folders.items():
        found = read_folder(listed, classes)
        classes = found.classes
        parts = parts_of(found.images, partial(LabelledPart, folder))
        split = Split(name, "labelled_images", parts, {"classes": classes}, len(found.images))
        split.rejected.extend(found.rejected)
        if found.passed_over:
            split.left_out["passed over, hidden and system files"] = found.passed_over
        yield split
