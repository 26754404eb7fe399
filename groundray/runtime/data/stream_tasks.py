"""The tasks of a rank's stream, which read and decode.

Ray Data has a process for each that runs at once. They load neither torch nor transformers: those would take seconds of
each, and most of its memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy.typing as npt
import pyarrow as pa
import ray

from groundray.data.stream import Source, Window, decode, read

SOURCES = 4  # that a process keeps: training and validation of two stages


@dataclass(frozen=True)
class SentSource:
    """A source in the object store. A process that runs tasks takes it once, not for each task: one of a million row
    groups takes .4 s."""

    reference: ray.ObjectRef[Source]

    @property
    def source(self) -> Source:
        return _taken(self.reference)


@lru_cache(SOURCES)
def _taken(reference: ray.ObjectRef[Source]) -> Source:
    return ray.get(reference)


@dataclass(frozen=True)
class ReadWindows:
    """Reads windows, each in its own task, which yields a table a step."""

    sent: SentSource
    chunks: range

    def __call__(self, items: pa.Table) -> Iterator[pa.Table]:
        for item in items.to_pylist():
            window = Window(item["epoch"], item["first"], item["last"])
            yield from (table for _, table in read(self.sent.source, window, self.chunks))


@dataclass(frozen=True)
class DecodeRows:
    """Decodes the rows of a block into arrays."""

    sent: SentSource

    def __call__(self, table: pa.Table) -> dict[str, npt.NDArray[Any]]:
        return decode(self.sent.source, table)
