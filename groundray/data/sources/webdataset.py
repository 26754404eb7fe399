"""Tar files of pictures with captions, as img2dataset and webdataset write them: KEY.jpg beside KEY.txt or KEY.json.

The key of a member is its path up to the first dot of the file's name. The members of a sample stand side by side.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import chain, groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO

from groundray.data.image_decoder import UnusableImage
from groundray.data.sources.caption_text import caption_problem, cleaned
from groundray.data.sources.held_out import add_val_fraction, is_held_out, val_fraction_of
from groundray.data.sources.image_files import MAX_BYTES, EncodedImage
from groundray.data.sources.protocol import Inputs, Row, Source, Split, Work
from groundray.data.sources.reading import Reading
from groundray.data.sources.rejected import Rejected
from groundray.storage.file_names import escaped, is_encodable
from groundray.storage.folder import open_file
from groundray.storage.object_store import Refused
from groundray.storage.patterns import Matched, match_files, short_names
from groundray.storage.tar_stream import Member, TarDamaged, read_members
from groundray.storage.text_encoding import decode_text

TARS = (".tar", ".tar.gz", ".tgz")
KEY = re.compile(r"(?P<key>(?:.*/)?[^./]+)\.(?P<extension>[^/]*)", re.DOTALL)  # webdataset's rule
PICTURES = {"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif"}
FIELDS = ("caption", "captions", "text")  # of KEY.json, in the order in which they are looked for
SIDE_BY_SIDE = "the members of a key must stand side by side, as of `tar --sort=name`"


@dataclass(frozen=True)
class CaptionChoice:
    """Where the captions of a sample are.

    Attributes:
        key: a field of KEY.json, or the extension of a member. None: KEY.txt, else the first of FIELDS in KEY.json.
        by_line: whether each line of a text is a caption; otherwise a text is one caption.
    """

    key: str | None = None
    by_line: bool = False

    @cached_property
    def extensions(self) -> set[str]:
        """The extensions of the members to read."""
        return {*PICTURES, self.key.lower() if self.key else "txt", "json"}

    def find(self, texts: Mapping[str, bytes]) -> list[Any]:
        """Return the captions in the members of a sample, by extension.

        Raises:
            UnusableImage: there are none.
        """
        extension = self.key.lower() if self.key else "txt"
        if extension in texts and extension != "json":
            try:
                text = decode_text(texts[extension], f"its .{extension}")
            except ValueError as error:
                raise UnusableImage("not UTF-8", str(error)) from None
            return [line for line in text.splitlines() if line.strip()] if self.by_line else [text]
        fields = (self.key,) if self.key else FIELDS
        if "json" not in texts:
            raise UnusableImage("no caption", f"it has no .{extension} and no .json next to it: {SIDE_BY_SIDE}")
        try:
            content = json.loads(texts["json"])
        except (ValueError, RecursionError) as error:
            raise UnusableImage("malformed", f"its .json is not JSON: {error}") from None
        values = content if isinstance(content, dict) else {}
        value = next((values[name] for name in fields if values.get(name) is not None), None)
        if value is None:
            raise UnusableImage(
                "no caption",
                f"expected a field {' or '.join(fields)} in its .json, got {', '.join(map(str, values)) or 'none'}: "
                "give --caption-key",
            )
        return value if isinstance(value, list) else [value]


@dataclass(frozen=True)
class Sample:
    """A picture with captions, not decoded yet; or why it cannot be used."""

    id: str
    picture: EncodedImage | UnusableImage
    captions: tuple[str, ...] = ()
    rejected: tuple[Rejected, ...] = ()

    def read(self) -> EncodedImage:
        if isinstance(self.picture, UnusableImage):
            raise self.picture
        return self.picture


@dataclass(frozen=True)
class Half:
    """The samples of a tar file that are held out, or the others; a sample's id decides."""

    fraction: float
    held_out: bool

    def has(self, id: str) -> bool:
        return is_held_out(id, self.fraction) == self.held_out


@dataclass(frozen=True)
class TarFile:
    """A tar file of samples.

    Attributes:
        file: absolute path or URL.
        name: of the file, with which ids begin.
        half: None for all samples.
    """

    file: str
    name: str
    captions: CaptionChoice = field(default_factory=CaptionChoice)
    half: Half | None = None

    def samples(self, problems: list[Rejected]) -> Iterator[Sample]:
        """Yield the samples in the order of the file, and then add what is wrong with the file itself to `problems`.

        Memory: a sample, and the keys of the file.

        Raises:
            OSError: the store of the file does not answer.
        """
        keys: set[str] = set()
        damage: list[Rejected] = []
        try:
            with open_file(self.file) as stream:
                for key, group in groupby(self._members(stream, damage), itemgetter(0)):
                    if not self._has(key):
                        continue
                    members = [(extension, member) for _, extension, member in group]
                    # of the last sample of a file that is cut off, members may be missing
                    if sample := self._sample(key, members, key in keys, bool(damage)):
                        yield sample
                    keys.add(key)
        except FileNotFoundError:
            damage.append(Rejected("file", self.name, "missing", f"there is no file {self.file}"))
        except OSError as error:
            if "://" in self.file and not isinstance(error, Refused):
                raise
            detail = f"{self.file} cannot be read: {error.strerror or error}"
            damage.append(Rejected("file", self.name, "unreadable", detail))
        problems += damage

    def _members(self, stream: BinaryIO, damage: list[Rejected]) -> Iterator[tuple[str, str, Member]]:
        """Yield the members that belong to a key, after the key and the extension."""
        key = ""
        try:
            for member in read_members(stream, self._is_wanted, MAX_BYTES):
                key, extension = _split(member.name)
                if key:
                    yield key, extension, member
        except TarDamaged as error:
            reason, after = "not a tar", "at its start"
            if error.whole:
                reason, after = "truncated", f"after {error.whole} members, the last of key {escaped(key)!r}"
            detail = f"{self.file} is cut off or damaged {after}: {error}: fetch it again"
            damage.append(Rejected("file", self.name, reason, detail))

    def _is_wanted(self, name: str) -> bool:
        key, extension = _split(name)
        return bool(key) and extension in self.captions.extensions and self._has(key)

    def _has(self, key: str) -> bool:
        return self.half is None or self.half.has(self._id(key))

    def _id(self, key: str) -> str:
        return f"{self.name}/{escaped(key)}"

    def _sample(self, key: str, members: Sequence[tuple[str, Member]], repeated: bool, cut: bool) -> Sample | None:
        """Return a sample from its members; None if it may only lack what was cut off."""
        id, where, rejected = self._id(key), f"{self.file}: {escaped(key)}", list[Rejected]()
        try:
            if not is_encodable(key):
                raise UnusableImage("name not UTF-8", f"its key {escaped(key)} is not UTF-8: rename it")
            if repeated:
                raise UnusableImage("duplicate id", f"the key is there before: {SIDE_BY_SIDE}")
            picture, texts = self._contents(members)
            captions: list[str] = []
            for number, caption in enumerate(self.captions.find(texts), start=1):
                if why := caption_problem(caption):
                    rejected.append(Rejected("caption", f"{id}#{number}", *why))
                else:
                    captions.append(cleaned(caption))
            if not captions:
                why = rejected[0].detail if rejected else "the text is empty"
                raise UnusableImage("no caption", f"none of its captions can be used: {why}")
        except UnusableImage as problem:
            lacks_some = problem.reason in ("missing", "no caption")
            return None if cut and lacks_some else Sample(id, problem.of(where))
        return Sample(id, EncodedImage(picture, where), tuple(captions), tuple(rejected))

    def _contents(self, members: Sequence[tuple[str, Member]]) -> tuple[bytes, dict[str, bytes]]:
        """Return the picture, and the other members that were read by extension.

        Raises:
            UnusableImage: there is not one picture, or a member cannot be read or is there twice.
        """
        contents: dict[str, bytes] = {}
        for extension, member in members:
            if extension not in self.captions.extensions:
                continue
            if member.problem:
                reason, detail = member.problem
                raise UnusableImage(reason, f".{extension}: {detail}")
            if extension in contents:
                raise UnusableImage("duplicate id", f"expected one .{extension} of a key, got two")
            contents[extension] = member.content or b""
        pictures = sorted(PICTURES & contents.keys())
        if not pictures:
            got = ", ".join(f".{extension}" for extension, _ in members[:5])
            raise UnusableImage("missing", f"expected a picture next to {got}: {SIDE_BY_SIDE}")
        if len(pictures) > 1:
            raise UnusableImage("two pictures", f"expected one picture of a key, got .{' and .'.join(pictures)}")
        return contents.pop(pictures[0]), contents


@dataclass(frozen=True)
class TarPart:
    """The samples of tar files: of one, or, where their number is limited, of as many as it takes.

    Memory: the samples that the threads work on, and the keys of a file.
    """

    tars: tuple[TarFile, ...]
    limit: int | None = None

    def rows(self, reading: Reading) -> Iterator[Row]:
        """Yield the rows in the order of the files. A file that is missing, unreadable, damaged or cut off is rejected;
        what is before the damage is used.

        Raises:
            OSError: the store of a file does not answer.
        """
        problems: list[Rejected] = []
        samples = islice(chain.from_iterable(tar.samples(problems) for tar in self.tars), self.limit)
        for sample, checked in reading.images(samples, Sample.read):
            for item in sample.rejected:
                reading.rejected.append(item)
            yield {**checked.row(sample.id), "captions": list(sample.captions)}
        for item in problems:
            reading.rejected.append(item)


@lru_cache(maxsize=8)  # it is asked for a member's name twice
def _split(name: str) -> tuple[str, str]:
    """Return the key of a member and its extension in small letters; both empty if it has none."""
    match = KEY.fullmatch(name.removeprefix("./"))
    return (match["key"], match["extension"].lower()) if match else ("", "")


class WebDataset(Source):
    name = "webdataset"
    help = "captioned images in tar files, as img2dataset writes them: KEY.jpg with KEY.txt or KEY.json"
    captions = True

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--shards",
            required=True,
            nargs="+",
            metavar="PATTERN",
            help="tar files on paths or URLs: a range 'cc-{00000..00331}.tar', a glob 'cc-*.tar', a folder",
        )
        held_out = parser.add_mutually_exclusive_group()
        held_out.add_argument(
            "--val",
            nargs="+",
            metavar="PATTERN",
            help="tar files to hold out: writes train/ and val/ (default: no split)",
        )
        add_val_fraction(held_out)
        parser.add_argument(
            "--caption-key",
            metavar="NAME",
            help="field of KEY.json, or extension of a member, with the captions (default: KEY.txt, else the first of "
            f"the fields {', '.join(FIELDS)})",
        )
        parser.add_argument(
            "--caption-lines", action="store_true", help="each line of a text is a caption (default: a text is one)"
        )

    def inputs(self) -> Inputs:
        options, fraction = self.options, val_fraction_of(self.options)
        local = [file for file in self._names.values() if "://" not in file]
        if local and len(local) == len(self._names) and not any(Path(file).is_file() for file in local):
            raise FileNotFoundError(f"--shards: none of {len(local)} tar files exists, such as {local[0]}")
        choices = {
            "val": [name for name, file in self._names.items() if file in self._files["val"].files],
            "val_share": fraction,
            "caption_key": options.caption_key,
            "caption_lines": options.caption_lines,
        }
        return Inputs(large_files=self._names, choices={name: value for name, value in choices.items() if value})

    def folders(self) -> Sequence[str]:
        return ["train", "val"] if self.options.val or self.options.val_fraction else ["."]

    @cached_property
    def _files(self) -> dict[str, Matched]:
        """The tar files of each option.

        Raises:
            ValueError: a pattern has no use or stands for nothing, or a file is in both options.
        """
        found: dict[str, Matched] = {}
        for option, patterns in (("shards", self.options.shards), ("val", self.options.val or [])):
            found[option] = match_files(patterns, TARS)
            if patterns and not found[option].files:
                raise ValueError(f"--{option}: expected tar files, got none at {' '.join(patterns)}")
        if both := sorted(set(found["shards"].files) & set(found["val"].files)):
            raise ValueError(f"--val: expected other tar files than --shards, got {both[0]} in both")
        return found

    @cached_property
    def _names(self) -> dict[str, str]:
        """All tar files by the names that ids begin with."""
        return short_names([*self._files["shards"].files, *self._files["val"].files], TARS)

    def splits(self, work: Work) -> Iterable[Split]:
        names = {file: name for name, file in self._names.items()}
        captions = CaptionChoice(self.options.caption_key, self.options.caption_lines)
        for folder in self.folders():
            option = "val" if folder == "val" and self.options.val else "shards"
            half = Half(self.options.val_fraction, folder == "val") if self.options.val_fraction else None
            tars = [TarFile(file, names[file], captions, half) for file in self._files[option].files]
            parts = [TarPart((tar,)) for tar in tars] if work.limit is None else [TarPart(tuple(tars), work.limit)]
            split = Split(folder, "captions", parts)
            if passed_over := self._files[option].passed_over:
                split.left_out["passed over, other files than tar files"] = passed_over
            yield split
