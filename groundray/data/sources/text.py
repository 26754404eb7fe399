"""Plain text files with one sentence or paragraph per line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from groundray.data.sources.rejected import Rejected
from groundray.storage.text_encoding import read_text_lines


def read_lines(
    files: Sequence[Path], rejected: list[Rejected], max_words: int | None = None
) -> Iterator[dict[str, Any]]:
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
