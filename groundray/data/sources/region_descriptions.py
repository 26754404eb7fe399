"""Visual Genome's region descriptions as captions: region_descriptions.json, a list with the regions of each image."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from groundray.data.schema import LEFT_OUT
from groundray.data.sources.caption_text import caption_problem, cleaned, distinct, short
from groundray.data.sources.coco import CaptionedImage, CaptionedPart
from groundray.data.sources.held_out import add_val_fraction, is_held_out, part_of, val_fraction_of
from groundray.data.sources.json_values import as_integer, read_json_list
from groundray.data.sources.protocol import Inputs, Source, Split, Work, parts_of
from groundray.data.sources.rejected import Rejected, RejectedLog, summary
from groundray.data.sources.table import Table
from groundray.rng import hash64, hash_name
from groundray.storage.folder import Folder

FOLDERS = ("VG_100K", "VG_100K_2")  # of the images, as Visual Genome distributes them
SCHEMA = "CREATE TABLE images (id INTEGER PRIMARY KEY, held_out INTEGER, captions TEXT);"


def choose_captions(captions: Sequence[str], most: int | None, id: str) -> list[str]:
    """Return at most a number of an image's captions in their order. The image's id decides which."""
    if most is None or len(captions) <= most:
        return list(captions)
    image = hash_name(id)
    ranked = sorted(range(len(captions)), key=lambda number: int(hash64(image, number)))
    return [captions[number] for number in sorted(ranked[:most])]


class Regions:
    """The images of region_descriptions.json with their phrases, on disk. No image is opened.

    Args:
        file: path or URL.
        scratch: a folder for what is on disk.
        keep_duplicates: whether an image keeps phrases that say the same (`distinct`).
        max_captions: number of phrases of an image, at most; None for all.
        val_fraction: fraction of the images that are held out.

    Attributes:
        counts: number of usable images that are held out, and of the others.
        rejected: what cannot be used, of the images that are held out and of the others.
        left_out: numbers of phrases that are left out, likewise.

    Raises:
        OSError: the file cannot be read, or the disk is full.
        ValueError: it is not such a file.
    """

    def __init__(
        self,
        file: str | Path,
        scratch: Path,
        keep_duplicates: bool = False,
        max_captions: int | None = None,
        val_fraction: float = 0.0,
    ) -> None:
        self._table = Table(scratch, SCHEMA)
        self._keep_duplicates, self._max_captions, self._val_fraction = keep_duplicates, max_captions, val_fraction
        self.counts: Counter[bool] = Counter()
        self.rejected = {held_out: RejectedLog() for held_out in (False, True)}
        self.left_out: dict[bool, Counter[str]] = {held_out: Counter() for held_out in (False, True)}
        number, usable, first = -1, 0, ""
        for number, entry in enumerate(read_json_list(file)):
            id = as_integer(entry.get("image_id", entry.get("id"))) if isinstance(entry, dict) else None
            regions = entry.get("regions") if isinstance(entry, dict) else None
            if id is None or not isinstance(regions, list):
                detail = f"expected an object with id and a list 'regions', got {short(entry)}"
                self.rejected[False].append(Rejected("image", f"entry {number}", "malformed", detail))
                first = first or short(entry)
            else:
                self._add(id, regions)
                usable += 1
        if first and not usable:
            raise ValueError(
                f"{file}: expected entries with id and a list 'regions', got {number + 1} without, such as {first}: "
                "give Visual Genome's region_descriptions.json"
            )

    def images(self, held_out: bool) -> Iterator[CaptionedImage]:
        """Yield the images that are held out, or the others, in the order of their ids."""
        for id, captions in self._table.rows(
            "SELECT id, captions FROM images WHERE held_out = ? ORDER BY id", held_out
        ):
            names = (f"{id}.jpg", *(f"{folder}/{id}.jpg" for folder in FOLDERS))
            yield CaptionedImage(str(id), names, tuple(json.loads(captions)))

    def _add(self, id: int, regions: Sequence[Any]) -> None:
        held_out = is_held_out(str(id), self._val_fraction)
        log, left_out = self.rejected[held_out], self.left_out[held_out]
        captions: list[str] = []
        for number, region in enumerate(regions, start=1):
            phrase = region.get("phrase") if isinstance(region, dict) else region
            label = as_integer(region.get("region_id")) if isinstance(region, dict) else None
            if problem := caption_problem(phrase):
                log.append(Rejected("caption", f"{id}#{number}" if label is None else str(label), *problem))
            else:
                captions.append(cleaned(str(phrase)))
        if not captions:
            log.append(Rejected("image", str(id), "no caption", "none of its regions has a usable phrase"))
            return
        kept = captions if self._keep_duplicates else distinct(captions)
        chosen = choose_captions(kept, self._max_captions, str(id))
        if not self._table.add("INSERT OR IGNORE INTO images VALUES (?, ?, ?)", id, held_out, json.dumps(chosen)):
            log.append(Rejected("image", str(id), "duplicate id", "the id is repeated"))
            return
        self.counts[held_out] += 1
        left_out[f"{LEFT_OUT}phrases said twice of an image"] += len(captions) - len(kept)
        left_out[f"{LEFT_OUT}phrases beyond --max-captions"] += len(kept) - len(chosen)


class RegionDescriptions(Source):
    name = "visual-genome-regions"
    help = "captioned images: images and Visual Genome's region_descriptions.json"

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--images", required=True, metavar="DIR", help=f"folder of the images, or of {' and '.join(FOLDERS)}"
        )
        parser.add_argument("--regions", required=True, metavar="FILE", help="Visual Genome's region_descriptions.json")
        parser.add_argument(
            "--keep-duplicates",
            action="store_true",
            help="keep phrases of an image that differ only in case, punctuation or spaces (default: the first)",
        )
        parser.add_argument(
            "--max-captions", type=int, metavar="N", help="keep N phrases of an image, by a hash (default: all)"
        )
        add_val_fraction(parser)

    def inputs(self) -> Inputs:
        most, fraction = self.options.max_captions, val_fraction_of(self.options)
        if most is not None and most < 1:
            raise ValueError(f"--max-captions: expected at least 1, got {most}")
        choices = {"keep_duplicates": self.options.keep_duplicates, "max_captions": most, "val_share": fraction}
        return Inputs([self.options.regions], [self.options.images], choices)

    def folders(self) -> Sequence[str]:
        return ["."] if self.options.val_fraction is None else ["train", "val"]

    def splits(self, work: Work) -> Iterable[Split]:
        options, images = self.options, Folder.at(self.options.images)
        found = Regions(
            options.regions, work.scratch, options.keep_duplicates, options.max_captions, options.val_fraction or 0.0
        )
        for name in self.folders():
            held_out = name == "val"
            count, log = found.counts[held_out], found.rejected[held_out]
            if not count:
                raise ValueError(
                    f"{options.regions}: expected images with usable phrases for {name}, got none of "
                    f"{found.counts.total()}{part_of(options.val_fraction)}: {summary(log.tally)}"
                )
            parts = parts_of(found.images(held_out), partial(CaptionedPart, images), work.limit)
            yield Split(name, "captions", parts, {}, work.limited(count), log, dict(found.left_out[held_out]))
