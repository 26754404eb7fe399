"""Images of tables with captions or a class: rows are joined by image on disk, and parts of them are read."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import groupby
from typing import Any, NamedTuple

from groundray.credentials import redacted
from groundray.data.image_decoder import UnusableImage
from groundray.data.sources.caption_lists import caption_list
from groundray.data.sources.caption_text import caption_problem, cleaned, short
from groundray.data.sources.held_out import is_held_out, part_of
from groundray.data.sources.image_files import MAX_BYTES, EncodedImage, read_image
from groundray.data.sources.json_values import as_integer, is_text
from groundray.data.sources.protocol import Row, Split, Work, parts_of
from groundray.data.sources.reading import Reading
from groundray.data.sources.rejected import Rejected, RejectedLog, Rejections, summary
from groundray.data.sources.table import Table
from groundray.data.sources.table_columns import Columns
from groundray.data.sources.table_files import ParquetFile, TableFile, TableRow
from groundray.storage.folder import Folder
from groundray.storage.object_store import Refused, is_store
from groundray.storage.patterns import short_names

SPLIT_NAME = re.compile(r"\w[\w.-]*")
SCHEMA = """
CREATE TABLE images (split INTEGER, id TEXT, file INTEGER, row INTEGER, name TEXT, UNIQUE (split, id));
CREATE TABLE captions (image INTEGER, caption TEXT);
CREATE INDEX captions_of_image ON captions (image);
"""
# in the order of their first rows; `+` scans the table, which is in that order
IN_ORDER = """
SELECT rowid, id, file, row, name FROM images
WHERE +split = ? AND {} EXISTS (SELECT 1 FROM captions WHERE image = images.rowid) ORDER BY rowid
"""


@dataclass(frozen=True)
class TableImage:
    """An image of a table with all of its usable captions, in the order of the rows; or with its class alone.

    Attributes:
        file: number of the table's file that has its first row.
        row: number of that row.
        name: path of its file, relative to the folder of the images, or a URL; None if the row has its bytes.
    """

    id: str
    file: int
    row: int
    name: str | None
    captions: tuple[str, ...]


class _Cell(NamedTuple):
    """An image, and what its row says of it: a name or URL, bytes, or a struct of `bytes` and `path`."""

    image: TableImage
    value: Any
    where: str

    @property
    def id(self) -> str:
        return self.image.id


@dataclass(frozen=True)
class TablePart:
    """Images of a table.

    Attributes:
        files: paths or URLs of the table's files.
        column: of the images.
        folder: where the images are that the table names.
        classes: names of all classes; None of a table of captions.
    """

    files: tuple[str, ...]
    column: str
    folder: Folder
    images: tuple[TableImage, ...]
    classes: tuple[str, ...] | None = None

    def rows(self, reading: Reading) -> Iterator[Row]:
        read = partial(_read, self.folder, lru_cache(Folder.at))
        labels = {name: label for label, name in enumerate(self.classes or ())}
        for cell, checked in reading.images(self._cells(), read):
            texts = cell.image.captions
            said = {"captions": list(texts)} if self.classes is None else {"label": labels[texts[0]]}
            yield {**checked.row(cell.id), **said}

    def _cells(self) -> Iterator[_Cell]:
        for (number, named), group in groupby(self.images, key=lambda image: (image.file, image.name is not None)):
            url, images = self.files[number], list(group)
            if named:
                yield from (_Cell(image, image.name, url) for image in images)
                continue
            cells = ParquetFile(url).cells(self.column, [image.row for image in images])
            for image, value in zip(images, cells, strict=True):
                yield _Cell(image, value, f"{url}, row {image.row}")


def _read(folder: Folder, at: Callable[[str], Folder], cell: _Cell) -> EncodedImage:
    """Return the encoded image of a cell.

    Args:
        at: opens a folder by its URL.

    Raises:
        UnusableImage: there is none, or it cannot be read.
    """
    value = cell.value
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes) and value:
        if len(value) > MAX_BYTES:
            raise UnusableImage("too large", f"{cell.where}: expected at most {MAX_BYTES:,} bytes, got {len(value):,}")
        return EncodedImage(value, cell.where)
    if not value:
        raise UnusableImage("missing", f"{cell.where} has no image")
    if "://" not in value:
        return read_image(folder, [value])
    if not is_store(value):
        detail = f"{redacted(value)}: expected a file's name or a URL s3:// or gs://: download the images first"
        raise UnusableImage("web address", detail)
    scheme, _, path = value.partition("://")
    bucket, _, name = path.partition("/")
    try:
        return read_image(at(f"{scheme}://{bucket}"), [name])
    except UnusableImage:
        raise
    except (Refused, ValueError) as error:  # there is no such bucket, or it may not be read
        raise UnusableImage("unreadable", str(error)) from None


class CaptionRows:
    """The rows of tables, joined by image and on disk.

    Args:
        files: paths or URLs of the files.
        folder: of the images that are named.
        splits: names of the data sets.
        val_fraction: fraction of the images that go to the second of two data sets, whatever their rows say.

    Attributes:
        rejected: what cannot be used, for each of the splits; the first has the rows without a split too.
    """

    def __init__(
        self,
        files: Sequence[str],
        columns: Columns,
        folder: Folder,
        splits: Sequence[str],
        work: Work,
        val_fraction: float | None = None,
    ) -> None:
        self._files, self._labels = tuple(files), list(short_names(files, ()))
        self._columns, self._folder, self._work, self._val_fraction = columns, folder, work, val_fraction
        self._table = Table(work.scratch, SCHEMA)
        self._splits = {name: number for number, name in enumerate(splits)}
        self.rejected = [RejectedLog() for _ in splits]

    def add(self, number: int, file: TableFile, split: str | None) -> None:
        """Add the rows of a file.

        Args:
            number: of the file among all.
            split: of all rows; None where a column says it.
        """
        columns, named = self._columns, self._columns.image not in file.binary
        classes = file.class_names(columns.label) if columns.label else []
        for row in file.rows(columns.named if named else columns.texts):
            at = f"{self._labels[number]}:{row.number}"
            if row.reason:
                self.rejected[self._splits[split] if split else 0].append(Rejected("row", at, row.reason, row.detail))
                continue
            place = split if split is not None else split_of(row.values.get(columns.split or ""))
            if place is None or place not in self._splits:
                detail = f"expected the name of a split as {columns.split}, got {row.values.get(columns.split or '')!r}"
                self.rejected[0].append(Rejected("row", at, "no split", detail))
                continue
            name = self._name(row.values[columns.image]) if named else None
            id = self._id(row, name, at)
            to = self._splits[place]
            if not is_text(id) or not id or (named and not name):
                detail = f"expected an image and its id, got {short(row.values)}"
                self.rejected[to].append(Rejected("row", at, "malformed", detail))
                continue
            if self._val_fraction is not None:
                to = int(is_held_out(id, self._val_fraction))
            log = self.rejected[to]
            image = self._image(to, number, row.number, id, name, log)
            if image is None:
                continue
            if columns.label:
                self._add_class(image, row.values.get(columns.label), classes, at, log)
            else:
                self._add_captions(image, row.values.get(columns.caption or ""), at, log)

    def reject(self, split: str, item: Rejected) -> None:
        """Add what cannot be used of a split."""
        self.rejected[self._splits[split]].append(item)

    def _id(self, row: TableRow, name: str | None, at: str) -> Any:
        """Return the id of a row's image, which need not be usable."""
        if self._columns.id:
            value = row.values.get(self._columns.id)
            number = None if isinstance(value, str) else as_integer(value)
            return str(number) if number is not None else value
        return redacted(name) if name and "://" in name else name or at

    def _image(self, split: int, file: int, row: int, id: str, name: str | None, log: Rejections) -> int | None:
        """Return the number of an image, which is added if it is new; None if its id is that of another."""
        found = self._table.row("SELECT rowid, name FROM images WHERE split = ? AND id = ?", split, id)
        if found and found[1] != name:
            detail = f"the id of {redacted(str(found[1]))!r} is repeated at {redacted(str(name))!r}"
            log.append(Rejected("image", id, "duplicate id", detail))
            return None
        if not found:
            self._table.add("INSERT INTO images VALUES (?, ?, ?, ?, ?)", split, id, file, row, name)
            found = self._table.row("SELECT last_insert_rowid()")
        return found[0]

    def _name(self, value: Any) -> str | None:
        """Return the name of an image relative to the folder of the images, or its URL; None if it is none."""
        if not is_text(value) or not value.strip():
            return None
        if "://" in value:
            return value.strip()
        name = posixpath.normpath(value.strip())
        return name.removeprefix(self._folder.path.rstrip("/") + "/") if self._folder.local else name

    def _add_captions(self, image: int, value: Any, at: str, log: Rejections) -> None:
        for caption in caption_list(value):
            if problem := caption_problem(caption):
                log.append(Rejected("caption", at, *problem))
            else:
                self._table.add("INSERT INTO captions VALUES (?, ?)", image, cleaned(caption))

    def _add_class(self, image: int, value: Any, names: Sequence[str], at: str, log: Rejections) -> None:
        """Add the class of an image, which has one. It is kept as its only caption.

        Args:
            names: of classes that the column numbers; empty if the column has the names themselves.
        """
        number = None if isinstance(value, str) else as_integer(value)
        if names and number is not None:
            name = names[number] if 0 <= number < len(names) else ""
        else:
            name = str(number) if number is not None else cleaned(value) if is_text(value) else ""
        found = self._table.row("SELECT caption FROM captions WHERE image = ?", image)
        if not name:
            detail = f"expected the name or number of a class, got {short(value)}"
            log.append(Rejected("row", at, "no class", detail))
        elif not found:
            self._table.add("INSERT INTO captions VALUES (?, ?)", image, name)
        elif found[0] != name:
            detail = f"its image has the class {found[0]!r} in an earlier row, got {name!r}"
            log.append(Rejected("row", at, "two classes", detail))

    def _classes(self) -> tuple[str, ...] | None:
        """Return the classes of all splits, numbers by their value and names in alphabetical order."""
        if not self._columns.label:
            return None
        names = [name for (name,) in self._table.rows("SELECT DISTINCT caption FROM captions ORDER BY caption")]
        numbers = all(re.fullmatch(r"-?\d{1,18}", name) for name in names)
        return tuple(sorted(names, key=int) if numbers else names)

    def images(self, split: str) -> Iterator[TableImage]:
        """Yield the images of a split that have captions."""
        for image, id, file, row, name in self._table.rows(IN_ORDER.format(""), self._splits[split]):
            captions = self._table.rows("SELECT caption FROM captions WHERE image = ? ORDER BY rowid", image)
            yield TableImage(id, file, row, name, tuple(caption for (caption,) in captions))

    def splits(self, folders: Sequence[str]) -> Iterator[Split]:
        """Yield the data sets, once all rows are added.

        Args:
            folders: of the splits, relative to `--out`.

        Raises:
            ValueError: a split has no image with a usable caption.
        """
        classes, what = self._classes(), "class" if self._columns.label else "caption"
        for (name, number), folder in zip(self._splits.items(), folders, strict=True):
            log = self.rejected[number]
            for _, id, *_ in self._table.rows(IN_ORDER.format("NOT"), number):
                log.append(Rejected("image", id, f"no {what}", f"no row has a usable {what} of this image"))
            query = "SELECT count(*) FROM images WHERE split = ? AND rowid IN (SELECT image FROM captions)"
            (count,) = self._table.row(query, number)
            if not count:
                where = f"split {name!r} of {self._files[0]}" if len(self._splits) > 1 else ", ".join(self._files[:3])
                where += part_of(self._val_fraction)
                raise ValueError(f"{where} has no image with a usable {what}: {summary(log.tally)}")
            make = partial(TablePart, self._files, self._columns.image, self._folder, classes=classes)
            parts = parts_of(self.images(name), make, self._work.limit)
            kind, words = ("captions", {}) if classes is None else ("labelled_images", {"classes": classes})
            yield Split(folder, kind, parts, words, self._work.limited(count), log)


def split_of(value: Any) -> str | None:
    """Return the name of a split in a column, which is also that of a folder; None if it is none."""
    return value.strip() if isinstance(value, str) and SPLIT_NAME.fullmatch(value.strip()) else None
