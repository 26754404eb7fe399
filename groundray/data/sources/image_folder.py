"""Image folders: ROOT/train/CLASS/*.jpg and ROOT/val/CLASS/*.jpg."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groundray.data.sources.image_files import CheckedImage
from groundray.data.sources.rejected import Rejected


@dataclass(frozen=True)
class LabelledImage:
    """An image file of a class; `label` is an index of the classes in alphabetical order."""

    id: str
    file_names: tuple[str, ...]
    label: int


@dataclass(frozen=True)
class Labelled:
    """The content of a folder of class folders."""

    images: tuple[LabelledImage, ...]
    classes: tuple[str, ...]
    rejected: tuple[Rejected, ...]


def read_folder(root: Path, classes: Sequence[str] | None = None) -> Labelled:
    """Return the images of the class folders in `root`. No image is opened.

    Args:
        classes: the classes of the training images, for validation images: images of other classes are rejected.

    Raises:
        FileNotFoundError: the folder does not exist or has no class folder.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"expected a folder of class folders at {root}, got none")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise FileNotFoundError(f"expected class folders such as {root / 'dog'}, got none")
    known = tuple(classes) if classes is not None else tuple(path.name for path in folders)
    images: list[LabelledImage] = []
    rejected = [
        Rejected("file", path.name, "in no class", f"{path} is not in a class folder")
        for path in sorted(root.iterdir())
        if path.is_file() and not path.name.startswith(".")
    ]
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_dir() or path.name.startswith("."):
                continue
            name = path.relative_to(root).as_posix()
            if folder.name in known:
                images.append(LabelledImage(name, (name,), known.index(folder.name)))
            else:
                rejected.append(
                    Rejected("image", name, "unknown class", f"no training image has the class {folder.name!r}")
                )
    return Labelled(tuple(images), known, tuple(rejected))


def rows(images: Iterable[tuple[LabelledImage, CheckedImage]]) -> Iterator[dict[str, Any]]:
    """Yield rows of kind `labelled_images` from images and their checked files."""
    for image, checked in images:
        yield {**checked.row(image.id), "label": image.label}
