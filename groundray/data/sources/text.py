"""Plain text files with one sentence or paragraph per line."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from groundray.data.sources.protocol import Inputs, Row, Source, Split, Work
from groundray.data.sources.reading import Reading
from groundray.data.sources.rejected import Rejected, Rejections
from groundray.storage.text_encoding import read_text_lines


def read_lines(files: Sequence[Path], rejected: Rejections, max_words: int | None = None) -> Iterator[Row]:
    """Yield a row of kind `text` for each line that is not blank. Lines that cannot be decoded are added to `rejected`.

    A line's id is `FILE:NUMBER`, counted from 1. Memory: one line.

    Args:
        max_words: split longer lines into parts of nearly equal length, with ids `FILE:NUMBER.PART`; None keeps them.
    """
    for file in files:
        with file.open("rb") as content:
            for line in read_text_lines(content):
                id = f"{file.name}:{line.number}"
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
    """The lines of files."""

    files: tuple[Path, ...]
    max_words: int | None = None

    def rows(self, reading: Reading) -> Iterator[Row]:
        return read_lines(self.files, reading.rejected, self.max_words)


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
        yield Split(".", "text", [TextPart(tuple(map(Path, self.options.files)), self.options.max_words)])
