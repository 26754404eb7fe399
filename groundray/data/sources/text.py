"""Plain text files with one sentence or paragraph per line."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from groundray.data.sources.protocol import Inputs, Part, Row, Source, Split, Work
from groundray.data.sources.reading import Reading
from groundray.data.sources.rejected import Rejected, Rejections
from groundray.storage.folder import open_file
from groundray.storage.text_encoding import TextPiece, read_text_lines, split_text

PART_BYTES = 2**26  # of text in a part, at least


def read_lines(files: Iterable[str | Path], rejected: Rejections, max_words: int | None = None) -> Iterator[Row]:
    """Yield a row of kind `text` for each line that is not blank. Lines that cannot be decoded are added to `rejected`.

    A line's id is `FILE:NUMBER`, counted from 1. Memory: one line.

    Args:
        files: paths or URLs.
        max_words: split longer lines into parts of nearly equal length, with ids `FILE:NUMBER.PART`; None keeps them.
    """
    for file in files:
        yield from _read_piece(file, None, rejected, max_words)


def _read_piece(
    file: str | Path, piece: TextPiece | None, rejected: Rejections, max_words: int | None
) -> Iterator[Row]:
    name = str(file).rpartition("/")[2]
    with open_file(file) as content:
        for line in read_text_lines(content, piece):
            id = f"{name}:{line.number}"
            if line.reason:
                rejected.append(Rejected("line", id, line.reason, line.detail))
            elif words := line.text.split():
                parts = -(-len(words) // (max_words or len(words)))
                for part in range(parts):
                    start, end = (len(words) * at // parts for at in (part, part + 1))
                    suffix = f".{part + 1}" if parts > 1 else ""
                    yield {"id": f"{id}{suffix}", "text": " ".join(words[start:end])}


@dataclass(frozen=True)
class TextPart:
    """Pieces of files.

    Attributes:
        pieces: the files with their pieces; None for all of a file.
        limit: number of rows, at most.
    """

    pieces: tuple[tuple[str, TextPiece | None], ...]
    max_words: int | None = None
    limit: int | None = None

    def rows(self, reading: Reading) -> Iterator[Row]:
        pieces = (_read_piece(*piece, reading.rejected, self.max_words) for piece in self.pieces)
        return islice(chain.from_iterable(pieces), self.limit)


def text_split(name: str, files: Sequence[str], work: Work, max_words: int | None = None) -> Split:
    """Return the data set of text files, given by paths or URLs. With a limit, it is one part."""
    if work.limit is not None:
        return Split(name, "text", [TextPart(tuple((file, None) for file in files), max_words, work.limit)])
    return Split(name, "text", _parts(files, max_words))


def _parts(files: Sequence[str], max_words: int | None) -> Iterator[Part]:
    """Yield parts of about PART_BYTES, each with as many small files as that, or with a piece of a large one."""
    pieces: list[tuple[str, TextPiece | None]] = []
    size = 0
    for file in files:
        with open_file(file) as content:
            for piece in split_text(content, PART_BYTES):
                pieces.append((file, piece))
                size += piece.end - piece.start
                if size >= PART_BYTES:
                    yield TextPart(tuple(pieces), max_words)
                    pieces, size = [], 0
    if pieces:
        yield TextPart(tuple(pieces), max_words)


class Text(Source):
    name = "text"
    help = "text files with a sentence or two per line"
    description = (
        "Write shards from text files. A line is a sample of stage language, which reads its first "
        "language.max_tokens word pieces (about 1.3 a word): put a sentence or two on a line, or split long lines "
        "with --max-words. `groundray train --dry-run` says how much of the text is cut."
    )
    images = False

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--files",
            required=True,
            nargs="+",
            metavar="FILE",
            help="text files in UTF-8, or in UTF-16 or UTF-32 with a byte order mark",
        )
        parser.add_argument(
            "--max-words",
            type=int,
            metavar="N",
            help="split longer lines into parts of at most N words (default: no split)",
        )

    def inputs(self) -> Inputs:
        words = self.options.max_words
        if words is not None and words < 1:
            raise ValueError(f"--max-words: expected at least 1, got {words}")
        return Inputs(self.options.files, choices={"max_words": words} if words else {})

    def splits(self, work: Work) -> Iterable[Split]:
        yield text_split(".", self.options.files, work, self.options.max_words)
