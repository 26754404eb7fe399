"""Tables of captions or classes: CSV, TSV, JSON lines, or Parquet such as a model hub serves, with images as files or
as bytes."""

from __future__ import annotations

import argparse
import posixpath
import re
from collections.abc import Iterable, Sequence
from functools import cached_property

from groundray.data.sources.caption_rows import CaptionRows, split_of
from groundray.data.sources.held_out import add_val_fraction, val_fraction_of
from groundray.data.sources.protocol import Inputs, Source, Split, Work
from groundray.data.sources.table_columns import Columns, add_options, find_columns, has_columns
from groundray.data.sources.table_files import ENDS, ParquetFile, TableFile, open_table
from groundray.storage.folder import Folder
from groundray.storage.patterns import match_files, short_names

# the hub's `train-00000-of-00012.parquet`, and `train.csv`
SPLIT_OF_FILE = re.compile(r"(?P<hub>\w+)-\d{5}-of-\d{5}.*|(?P<name>train|val|valid|validation|dev|test)\.\w+")
MAX_SPLITS = 20


class CaptionTable(Source):
    name = "table"
    help = "captioned images: CSV, TSV, JSON lines or Parquet, such as a model hub serves"
    description = (
        "Write shards from tables of images and captions. A row has an image (a path, a URL s3:// or gs://, or bytes) "
        "and a caption or a list of captions; rows of the same image are joined. Columns have well-known names or are "
        "named by options. A column `split`, or files such as train-00000-of-00012.parquet and test-..., give a data "
        "set for each split in a folder of its name. With --label-column a row has an image and a class."
    )
    captions = True

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--files",
            required=True,
            nargs="+",
            metavar="FILE",
            help="paths, URLs, folders, or quoted patterns such as 's3://BUCKET/data/train-*.parquet'",
        )
        parser.add_argument(
            "--images", metavar="DIR", help="folder or URL of the images that are named (default: that of the files)"
        )
        add_options(parser)
        add_val_fraction(parser)
        parser.add_argument(
            "--columns", nargs="+", metavar="NAME", help="names of all columns, of text files without a row of names"
        )

    def inputs(self) -> Inputs:
        options = self.options
        choices = {
            name: getattr(options, name)
            for name in ("image_column", "caption_column", "label_column", "id_column", "split_column", "columns")
            if getattr(options, name)
        }
        if options.label_column and options.drop_duplicate_captions:
            raise ValueError("--drop-duplicate-captions: expected a table of captions, got --label-column")
        if (fraction := val_fraction_of(options)) is not None:
            choices["val_share"] = fraction
        large = [url for url in self._urls if url.lower().endswith(ParquetFile.ENDS)]
        texts = [url for url in self._urls if url not in large]
        images = [options.images] if options.images else []
        return Inputs(texts, images, choices=choices, large_files=short_names(large, ()))

    def folders(self) -> Sequence[str]:
        if self.options.val_fraction is not None:
            return ["train", "val"]
        return self._splits if len(self._splits) > 1 else ["."]

    def splits(self, work: Work) -> Iterable[Split]:
        columns, names, fraction = self._columns, self._splits, self.options.val_fraction
        if fraction is not None:
            if len(names) > 1:
                raise ValueError(f"--val-fraction: expected a table without splits, got {', '.join(names)}")
            names = ["train", "val"]
        for role, title in vars(columns).items():
            if title:
                work.tell(f"column {role}: {title}")
        rows = CaptionRows(self._urls, columns, Folder.at(self._images), names, work, fraction)
        for number, file in enumerate(work.track(self._files, "files")):
            split = None if columns.split else _split_of_file(file.url)
            rows.add(number, file, split if fraction is None else names[0])
        return rows.splits(self.folders())

    @cached_property
    def _urls(self) -> list[str]:
        files = match_files(self.options.files, ENDS).files
        if not files:
            raise FileNotFoundError(f"--files: no file matches {' '.join(self.options.files)}")
        return files

    @property
    def _images(self) -> str:
        """The folder of the images that are named.

        Raises:
            ValueError: the files are in several folders.
        """
        if self.options.images:
            return self.options.images
        folders = sorted({posixpath.dirname(url) for url in self._urls})
        if len(folders) > 1 and self._columns.image not in self._files[0].binary:
            raise ValueError(f"--images: expected the folder of the images, since files are in {', '.join(folders)}")
        return folders[0] or ("/" if self._urls[0].startswith("/") else ".")

    @cached_property
    def _files(self) -> list[TableFile]:
        def fits(titles: Sequence[str]) -> bool:
            return has_columns(titles, self.options)

        return [open_table(url, self.options.columns, fits) for url in self._urls]

    @cached_property
    def _columns(self) -> Columns:
        """The columns, which all files have.

        Raises:
            ValueError: a file lacks one, or the files are of different layouts.
        """
        first, *others = self._files
        columns = find_columns(first.columns, first.binary, self.options, first.url)
        for file in others:
            found = find_columns(file.columns, file.binary, self.options, file.url)
            if found != columns or (columns.image in first.binary) != (columns.image in file.binary):
                raise ValueError(f"{file.url}: expected the columns of {first.url}, {columns}, got {found}")
        return columns

    @cached_property
    def _splits(self) -> list[str]:
        """The names of the splits, in alphabetical order; `all` where nothing tells splits apart."""
        if column := self._columns.split:
            values = {
                split
                for file in self._files
                for row in file.rows([column])
                if (split := split_of(row.values.get(column))) is not None
            }
            if not 0 < len(values) <= MAX_SPLITS:
                raise ValueError(f"column {column}: expected names of 1 to {MAX_SPLITS} splits, got {len(values)}")
            return sorted(values)
        return sorted({_split_of_file(url) for url in self._urls})


def _split_of_file(url: str) -> str:
    """Return the split that a file's name says, such as `train-00000-of-00012.parquet`; `all` if it says none."""
    match = SPLIT_OF_FILE.fullmatch(posixpath.basename(url))
    return (match["hub"] or match["name"]) if match else "all"
