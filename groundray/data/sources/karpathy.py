"""Karpathy's splits: dataset_coco.json, dataset_flickr8k.json and dataset_flickr30k.json.

A JSON object with `images`; each has `filename`, `split`, `imgid` and `sentences`, each with `raw`. COCO's images also
have `filepath` and `cocoid`.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from groundray.data.schema import LEFT_OUT
from groundray.data.sources.caption_text import caption_problem, cleaned, short
from groundray.data.sources.coco import CaptionedImage, CaptionedPart
from groundray.data.sources.json_values import as_integer, is_text, read_json_member
from groundray.data.sources.protocol import Inputs, Source, Split, Work, parts_of
from groundray.data.sources.rejected import Rejected, RejectedLog, summary
from groundray.data.sources.table import Table
from groundray.storage.folder import Folder

SPLITS = ("train", "val", "test")
RESTVAL = "restval"  # images of COCO's validation set that most work adds to the training set
SCHEMA = """
CREATE TABLE images (id TEXT UNIQUE, split TEXT, files TEXT, captions TEXT);
CREATE INDEX images_of_split ON images (split);
"""


class KarpathySplits:
    """The images of a file of Karpathy's splits with their captions, on disk. No image is opened.

    Args:
        file: path or URL.
        restval: the split that the images of `restval` belong to; None leaves them out.
        scratch: a folder for what is on disk.

    Attributes:
        counts: number of usable images of each split.
        rejected: what cannot be used, by split; what has no split is with the empty name.
        dropped: number of images of `restval` that are left out.

    Raises:
        OSError: the file cannot be read, or the disk is full.
        ValueError: it is not such a file.
    """

    def __init__(self, file: str | Path, restval: str | None, scratch: Path) -> None:
        self._table = Table(scratch, SCHEMA)
        self.counts: Counter[str] = Counter()
        self.rejected: dict[str, RejectedLog] = {}
        self.dropped = 0
        for number, entry in enumerate(read_json_member(file, "images", "Karpathy's splits")):
            split = entry.get("split") if isinstance(entry, dict) else None
            if split == RESTVAL and restval is None:
                self.dropped += 1
            else:
                self._add(number, entry, restval if split == RESTVAL else split)

    def log(self, split: str) -> RejectedLog:
        """Return what cannot be used of a split."""
        return self.rejected.setdefault(split, RejectedLog())

    def images(self, split: str) -> Iterator[CaptionedImage]:
        """Yield the images of a split in the order of the file."""
        query = "SELECT id, files, captions FROM images WHERE split = ? ORDER BY rowid"
        for id, files, captions in self._table.rows(query, split):
            yield CaptionedImage(id, tuple(json.loads(files)), tuple(json.loads(captions)))

    def _add(self, number: int, entry: Any, split: Any) -> None:
        file, folder = (entry.get(key) if isinstance(entry, dict) else None for key in ("filename", "filepath"))
        sentences = entry.get("sentences") if isinstance(entry, dict) else None
        log = self.log(split if is_text(split) else "")
        id = _id_of(entry) or (file if is_text(file) else f"entry {number}")
        if not (is_text(file) and file and is_text(split) and split and isinstance(sentences, list)):
            detail = f"expected an object with filename, split and sentences, got {short(entry)}"
            log.append(Rejected("image", id, "malformed", detail))
            return
        captions: list[str] = []
        for at, sentence in enumerate(sentences, start=1):
            caption = _text_of(sentence)
            if problem := caption_problem(caption):
                log.append(Rejected("caption", f"{id}#{at}", *problem))
            else:
                captions.append(cleaned(caption))
        if not captions:
            log.append(Rejected("image", id, "no caption", "none of its sentences can be used"))
            return
        files = [f"{folder}/{file}", file] if is_text(folder) and folder else [file]
        values = (id, split, json.dumps(files), json.dumps(captions))
        if self._table.add("INSERT OR IGNORE INTO images VALUES (?, ?, ?, ?)", *values):
            self.counts[split] += 1
        else:
            log.append(Rejected("image", id, "duplicate id", f"the id is repeated at {file!r}"))


def _id_of(entry: Any) -> str | None:
    """Return COCO's id of an image, else its number in the file, as text."""
    for key in ("cocoid", "imgid") if isinstance(entry, dict) else ():
        if (number := as_integer(entry.get(key))) is not None:
            return str(number)
    return None


def _text_of(sentence: Any) -> Any:
    """Return what a sentence says: its text, else its tokens."""
    if not isinstance(sentence, dict):
        return sentence
    tokens = sentence.get("tokens")
    if "raw" not in sentence and isinstance(tokens, list) and all(map(is_text, tokens)):
        return " ".join(tokens)
    return sentence.get("raw")


class Karpathy(Source):
    name = "karpathy"
    help = "captioned images in Karpathy's splits: dataset_coco.json, dataset_flickr8k.json, dataset_flickr30k.json"
    captions = True

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--images", required=True, metavar="DIR", help="folder of the images, with their filepath in it or without"
        )
        parser.add_argument("--annotations", required=True, metavar="FILE", help="Karpathy's dataset_*.json")
        parser.add_argument(
            "--split",
            nargs="+",
            metavar="NAME",
            help=f"splits to write: one to --out itself, several to folders by name (default: {' '.join(SPLITS)})",
        )
        parser.add_argument(
            "--restval",
            choices=("train", "separate", "drop"),
            default="train",
            help="COCO's images of split restval: add them to train, write them to restval/, or leave them out "
            "(default: train)",
        )

    def inputs(self) -> Inputs:
        names = self._names
        if len(set(names)) < len(names):
            raise ValueError(f"--split: expected each name once, got {' '.join(names)}")
        if bad := [name for name in names if not name.isidentifier()]:
            raise ValueError(f"--split: expected names such as {' '.join(SPLITS)}, got {bad[0]!r}")
        if RESTVAL in names and self.options.restval != "separate":
            raise ValueError(f"--split {RESTVAL}: expected --restval separate too, got {self.options.restval}")
        choices = {"splits": names, "restval": self.options.restval}
        return Inputs([self.options.annotations], [self.options.images], choices)

    @property
    def _names(self) -> list[str]:
        """The splits to write."""
        restval = [RESTVAL] if self.options.restval == "separate" else []
        return self.options.split or [*SPLITS, *restval]

    def folders(self) -> Sequence[str]:
        return self._names if len(self._names) > 1 else ["."]

    def splits(self, work: Work) -> Iterable[Split]:
        file, choice, images = self.options.annotations, self.options.restval, Folder.at(self.options.images)
        found = KarpathySplits(file, {"train": "train", "separate": RESTVAL, "drop": None}[choice], work.scratch)
        first = True
        for name, folder in zip(self._names, self.folders(), strict=True):
            log, count = found.log(name), found.counts[name]
            if first:  # what has no split
                log.extend(found.log(""))
            if not count:
                has = ", ".join(f"{split} ({number})" for split, number in sorted(found.counts.items())) or "none"
                raise ValueError(
                    f"{file}: expected usable images of split {name!r}, got splits {has}: {summary(log.tally)}; "
                    "choose others by --split"
                )
            parts = parts_of(found.images(name), partial(CaptionedPart, images), work.limit)
            split = Split(folder, "captions", parts, total=work.limited(count), rejected=log)
            if first and found.dropped:
                split.left_out[f"{LEFT_OUT}images of {RESTVAL}"] = found.dropped
            if first and (others := sum(found.counts.values()) - sum(found.counts[each] for each in self._names)):
                split.left_out[f"{LEFT_OUT}images of other splits"] = others
            first = False
            yield split
