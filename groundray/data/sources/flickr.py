"""Flickr8k and Flickr30k: a folder of images, a file of captions, and lists of the images of each split.

1000268201_693b08cb0e.jpg#0<TAB>A child climbs the stairs .     Flickr8k.token.txt, results_20130124.token
image_name| comment_number| comment                             results.csv, with this first row
image,caption                                                   captions.txt, with this first row
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property

from groundray.data.sources.caption_rows import CaptionRows
from groundray.data.sources.protocol import Inputs, Source, Split, Work
from groundray.data.sources.rejected import Rejected
from groundray.data.sources.table_columns import Columns, find_columns, has_columns
from groundray.data.sources.table_files import DelimitedFile, TableFile, TableRow, text_lines
from groundray.storage.folder import Folder

TOKEN = re.compile(r"(?P<image>[^\t]+)#(?P<number>\d+)\s*\t(?P<caption>.*)")
SPLITS = ("train", "val", "test")
ALL = "all"
COLUMNS = Columns("image", "caption", None, "split")


@dataclass(frozen=True)
class FlickrFile(TableFile):
    """A file of captions as a table with the columns of COLUMNS.

    Attributes:
        splits: the split of each image that a list names; None without lists.
        unlisted: gets the number of rows of images that no list names.
        seen: gets the images that have rows.
    """

    splits: dict[str, str] | None = None
    unlisted: list[int] = field(default_factory=lambda: [0])
    seen: set[str] = field(default_factory=set)

    @property
    def columns(self) -> list[str]:
        return list(COLUMNS.named)

    def rows(self, columns: Sequence[str]) -> Iterator[TableRow]:
        for row in self._token_rows() if self._has_tokens else self._delimited_rows():
            if not row.reason:
                self.seen.add(row.values["image"])
                row.values["split"] = ALL if self.splits is None else self.splits.get(row.values["image"])
                if row.values["split"] is None:
                    self.unlisted[0] += 1
                    continue
            yield row

    @cached_property
    def _has_tokens(self) -> bool:
        with text_lines(self.url) as lines:
            first = next((line.text for line in lines if line.text.strip()), "")
        return bool(TOKEN.fullmatch(first))

    def _token_rows(self) -> Iterator[TableRow]:
        with text_lines(self.url) as lines:
            for line in lines:
                if line.reason:
                    yield TableRow(line.number, {}, line.reason, line.detail)
                elif match := TOKEN.fullmatch(line.text):
                    yield TableRow(line.number, {"image": match["image"].strip(), "caption": match["caption"]})
                elif line.text.strip():
                    detail = f"expected NAME.jpg#NUMBER, a tab and a caption, got {line.text[:100]!r}"
                    yield TableRow(line.number, {}, "malformed", detail)

    def _delimited_rows(self) -> Iterator[TableRow]:
        options = argparse.Namespace(**{f"{each.name}_column": None for each in fields(Columns)})
        file = DelimitedFile(self.url, None, lambda titles: has_columns(titles, options))
        found = find_columns(file.columns, [], options, self.url)
        image, caption = found.image, found.caption or ""
        for row in file.rows((image, caption)):
            values = {"image": row.values.get(image), "caption": row.values.get(caption)}
            yield row if row.reason else row._replace(values=values)


class Flickr(Source):
    name = "flickr"
    help = "Flickr8k and Flickr30k: a folder, a file of captions, and the lists of its splits"
    captions = True

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--images", required=True, metavar="DIR", help="folder or URL of the images")
        parser.add_argument(
            "--captions",
            required=True,
            metavar="FILE",
            help="Flickr8k.token.txt, results_20130124.token, results.csv or captions.txt",
        )
        for split in SPLITS:
            parser.add_argument(
                f"--{split}", metavar="FILE", help=f"names of the images of {split}/, such as Flickr_8k.trainImages.txt"
            )

    def inputs(self) -> Inputs:
        lists = {"lists": [*self._lists]}
        return Inputs([self.options.captions, *self._lists.values()], [self.options.images], choices=lists)

    def folders(self) -> Sequence[str]:
        return list(self._lists) or ["."]

    def splits(self, work: Work) -> Iterable[Split]:
        file = FlickrFile(self.options.captions, splits=self._read_lists() if self._lists else None)
        rows = CaptionRows([file.url], COLUMNS, Folder.at(self.options.images), list(self._lists) or [ALL], work)
        rows.add(0, file, None)
        for image, split in (file.splits or {}).items():
            if image not in file.seen:
                rows.reject(split, Rejected("image", image, "no caption", f"no row of {file.url} has its name"))
        for split in rows.splits(self.folders()):
            if file.unlisted[0]:
                split.left_out["captions of images in no list"] = file.unlisted[0]
            yield split

    @cached_property
    def _lists(self) -> dict[str, str]:
        """The files with the names of the images of each split."""
        return {split: file for split in SPLITS if (file := getattr(self.options, split))}

    def _read_lists(self) -> dict[str, str]:
        """Return the split of each image.

        Raises:
            ValueError: a list is no text, or an image is in two of them.
        """
        splits: dict[str, str] = {}
        for split, file in self._lists.items():
            with text_lines(file) as lines:
                for line in lines:
                    if line.reason:
                        raise ValueError(f"{file} line {line.number}: expected the name of an image, {line.detail}")
                    name = line.text.strip()
                    if name and splits.setdefault(name, split) != split:
                        raise ValueError(
                            f"{file} line {line.number}: {name} is in the list of {splits[name]} too: leave it in one"
                        )
        return splits
