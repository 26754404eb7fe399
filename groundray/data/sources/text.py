"""Plain text files with one sentence or paragraph per line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from groundray.data.sources.rejected import Rejected
from groundray.storage.text_encoding import read_text_lines


def read_lines(files: Sequence[Path], rejected: list[Rejected]) -> Iterator[dict[str, Any]]:
    """Yield a row of kind `text` for each line that is not blank. Lines that cannot be decoded are added to `rejected`.

    A line's id is `FILE:NUMBER`, counted from 1. Memory: one line.
    """
    for file in files:
        with file.open("rb") as content:
            for line in read_text_lines(content):
                id = f"{file.name}:{line.number}"
                if line.reason:
                    rejected.append(Rejected("line", id, line.reason, line.detail))
                elif text := " ".join(line.text.split()):
                    yield {"id": id, "text": text}
