"""Plain text: a sentence or paragraph a line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from groundray.data.sources.rejected import Rejected


def read_lines(files: Sequence[Path], rejected: list[Rejected]) -> Iterator[dict[str, Any]]:
    """Rows of kind `text`, one for each line that says something; what cannot be read is added to `rejected`.

    A line's id is `FILE:NUMBER`, counted from 1. Blank lines are no lines. Memory: a line.
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
