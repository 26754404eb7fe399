"""Plain text files with one sentence or paragraph per line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from groundray.data.sources.rejected import Rejected


def read_lines(files: Sequence[Path], rejected: list[Rejected]) -> Iterator[dict[str, Any]]:
    """Yield a row of kind `text` for each line that is not blank. Lines that cannot be decoded are added to `rejected`.

    A line's id is `FILE:NUMBER`, counted from 1. Memory: one line.
    """
    for file in files:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                id = f"{file.name}:{number}"
                try:
                    text = " ".join(line.decode().split())
                except UnicodeDecodeError as error:
                    rejected.append(Rejected("line", id, "not UTF-8", str(error)))
                    continue
                if text:
                    yield {"id": id, "text": text}
