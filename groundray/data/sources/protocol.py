"""What `prepare` asks of a source: its options, what it reads, its data sets (splits), and the parts of each.

A part is a bounded number of samples. One task reads it and writes it to shards of its own, in any process and on any
machine. Parts follow from the source and its options alone, never from the number of tasks, and so do the shards.
"""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from groundray.data.sources.reading import Reading
from groundray.data.sources.rejected import RejectedLog
from groundray.storage.folder import Folder

Row = dict[str, Any]  # a sample, by the columns of its kind (schema.KINDS)
ITEMS_PER_PART = 10_000

Item = TypeVar("Item")


class Part(Protocol):
    """A bounded number of samples. It is small and can be pickled: what it reads is opened in `rows`."""

    def rows(self, reading: Reading) -> Iterator[Row]:
        """Yield the rows in a fixed order, and add what cannot be used to `reading.rejected`."""
        ...


@dataclass
class Split:
    """A data set that is made of a source.

    Attributes:
        folder: where it is written, relative to `--out`; `.` for `--out` itself.
        kind: kind of its rows (`schema.KINDS`).
        parts: the parts in a fixed order. They are made as they are asked for, and asked for once.
        vocabulary: names of the indices in the rows, such as `classes`.
        total: number of samples that the parts have, as far as it is known, for the display of progress.
        rejected: what cannot be used and belongs to no part. It may grow until the parts end.
        left_out: counts of what else is told of the source. It may change until the parts end.
    """

    folder: str
    kind: str
    parts: Iterable[Part]
    vocabulary: dict[str, tuple[str, ...]] = field(default_factory=dict)
    total: int | None = None
    rejected: RejectedLog = field(default_factory=RejectedLog)
    left_out: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Inputs:
    """What a source is read from. Shards are made again when any of it changes.

    Attributes:
        files: paths or URLs of files; any byte counts.
        folders: paths or URLs of folders; the names, sizes and times of the files in them count.
        choices: options that change what is written, as JSON. The names are part of the fingerprint: another name would
            make every prepared data set another source.
        large_files: paths or URLs of files by name; the names, sizes and times count. They may not exist.
    """

    files: Sequence[str] = ()
    folders: Sequence[str] = ()
    choices: dict[str, Any] = field(default_factory=dict)
    large_files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """What a source may use while it lists its parts.

    Attributes:
        out: the folder that becomes `--out`. Every machine of a cluster can read what is written there.
        scratch: a temporary folder of this machine.
        tell: prints a line for the user.
        track: wraps a sequence, to show progress; takes its name too.
        limit: number of samples of each split to list, at most (`--limit`); None for all. Some of them may be rejected.
    """

    out: Folder
    scratch: Path
    tell: Callable[[str], None]
    track: Callable[[Sequence[Any], str], Iterable[Any]]
    limit: int | None = None

    def limited(self, count: int) -> int:
        """Return a number of samples, or the limit if that is less."""
        return count if self.limit is None else min(count, self.limit)


class Source(ABC):
    """A layout of data, and the options that say where it is. `prepare NAME` makes shards of it.

    Attributes:
        name: of the subcommand, and the format in `dataset.json`.
        help: one line for `prepare --help`.
        description: of the subcommand's own help, where `help` does not suffice.
        images: whether its samples have images.
        captions: whether `--drop-duplicate-captions` is one of its options.
    """

    name: ClassVar[str]
    help: ClassVar[str]
    description: ClassVar[str | None] = None
    images: ClassVar[bool] = True
    captions: ClassVar[bool] = False

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options

    @staticmethod
    @abstractmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        """Add the source's own options to those that all sources have."""

    @abstractmethod
    def inputs(self) -> Inputs:
        """Return what the source is read from. It opens no file.

        Raises:
            ValueError: an option has no use; the message names it.
            FileNotFoundError: there is no such source.
        """

    def folders(self) -> Sequence[str]:
        """Return the folders of the splits, relative to `--out`."""
        return ["."]

    @abstractmethod
    def splits(self, work: Work) -> Iterable[Split]:
        """Yield the data sets. The parts of one are asked for before the next one is.

        Raises:
            ValueError: nothing of the source can be used.
        """


def parts_of(
    items: Iterable[Item], make: Callable[[tuple[Item, ...]], Part], limit: int | None = None
) -> Iterator[Part]:
    """Yield the parts of a stream of items, of ITEMS_PER_PART items each.

    Args:
        limit: number of items that are taken, at most.
    """
    stream = islice(items, limit)
    while part := tuple(islice(stream, ITEMS_PER_PART)):
        yield make(part)
