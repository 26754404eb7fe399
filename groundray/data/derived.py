"""A data set made of another, row by row, in parts that anybody may make at any time.

    FOLDER/part-00012-003.parquet ...   parts of the other's row groups, rows in the same order
    FOLDER/dataset.json                 comes last

A part is there whole or not at all. So who is interrupted goes on with what is missing, and many make it together
without talking to each other, on any machines that see the folder.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import joblib
import pyarrow as pa

from groundray.data.schema import INDEX, Dataset
from groundray.data.shards import encode_shard, index, read_group
from groundray.storage.folder import Folder, format_bytes

PART_BYTES = 16 * 2**20
BATCH = 32  # rows that are encoded together

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Parts(ABC):
    """A data set on its way that has a row for each row of another.

    Attributes:
        dataset: the other.
        folder: where the new one is kept.
    """

    dataset: Dataset
    folder: Folder

    kind: ClassVar[str]  # of data set that is made, a key of `schema.KINDS`
    what: ClassVar[str]  # for a person
    more_room: ClassVar[str]  # how a person finds more, where there is not enough
    rows_per_group: ClassVar[int | None] = None  # of a part, which by default is one row group

    @property
    @abstractmethod
    def bytes_per_row(self) -> int:
        """About how many bytes a row takes."""

    @property
    def bytes(self) -> int:
        """Of all rows."""
        return self.dataset.rows * self.bytes_per_row

    def made(self) -> Dataset | None:
        """The data set, once all of it is there."""
        return Dataset.open(str(self.folder), self.kind) if self.folder.exists(INDEX) else None

    def parts(self, group: int) -> dict[str, range]:
        """The files of a row group, and the rows that each holds, counted from the group's first."""
        rows, most = int(self.dataset.group_sizes[group]), max(1, PART_BYTES // self.bytes_per_row)
        starts = range(0, rows, most)
        return {f"part-{group:05d}-{n:03d}.parquet": range(at, min(at + most, rows)) for n, at in enumerate(starts)}

    def missing(self) -> dict[int, list[str]]:
        """The parts that are not there yet, by row group."""
        there = set(self.folder.names())
        parts = {group: [name for name in self.parts(group) if name not in there] for group in self.groups}
        return {group: names for group, names in parts.items() if names}

    @property
    def missing_rows(self) -> int:
        return sum(len(self.parts(group)[name]) for group, names in self.missing().items() for name in names)

    @property
    def groups(self) -> range:
        return range(len(self.dataset.groups))

    def work(self, workers: int) -> list[tuple[int, list[str]]]:
        """All parts in tasks for some workers: parts of a row group, which is read once a task.

        Row groups are cut up where there are few: each worker finds four tasks or more, if there are so many parts.
        What is there already is among them, so that workers who ask at different times share the same list.
        """
        parts = {group: list(self.parts(group)) for group in self.groups}
        most = max(1, sum(map(len, parts.values())) // (4 * workers))
        return [
            (group, names[start : start + most])
            for group, names in parts.items()
            for start in range(0, len(names), most)
        ]

    def check_room(self) -> None:
        """Raise ValueError where the disk has no room for what is missing."""
        if not self.folder.local:
            return
        free = shutil.disk_usage(self.folder.make().path).free
        needed = self.missing_rows * self.bytes_per_row
        if needed > free:
            raise ValueError(
                f"{self.what} of {self.dataset.folder} take {format_bytes(needed)} more, there are "
                f"{format_bytes(free)} free at {self.folder}: {self.more_room}"
            )

    def make(
        self,
        group: int,
        names: Sequence[str],
        columns: Sequence[str],
        decode: Callable[[pa.Table], Item],
        encode: Callable[[Item], dict[str, pa.Array]],
        threads: int | None = None,
    ) -> int:
        """Make some parts of a row group, those that are still not there; the number of rows that it took.

        Args:
            columns: that are read of the other data set.
            decode: makes of some rows what `encode` takes, in threads and ahead of it.
            encode: the new columns of these rows.
            threads: that decode (default: the machine's cores, at most 8).
        """
        missing = {
            name: rows for name, rows in self.parts(group).items() if name in names and not self.folder.exists(name)
        }
        if not missing:
            return 0
        table = read_group(self.dataset, group, columns)
        batches = [
            (name, table.slice(start, min(BATCH, rows.stop - start)))
            for name, rows in missing.items()
            for start in range(rows.start, rows.stop, BATCH)
        ]
        self.folder.make()
        done: list[pa.Table] = []
        threads = threads or min(8, joblib.cpu_count())
        with ThreadPoolExecutor(threads) as pool:
            decoded = _ahead(pool, lambda batch: decode(batch[1]), batches, threads + 1)
            for (name, _), item in zip(batches, decoded, strict=True):
                done.append(pa.table(encode(item)))
                if sum(map(len, done)) == len(missing[name]):
                    whole = pa.concat_tables(done)
                    columns_made = dict(zip(whole.column_names, whole.columns, strict=True))
                    self.folder.write_bytes(name, encode_shard(self.kind, columns_made, self.rows_per_group))
                    done.clear()
        return sum(map(len, missing.values()))

    def finish(self, source: dict[str, Any]) -> Dataset:
        """The data set whose parts are all there, with its index.

        Args:
            source: what else is told of where it comes from.
        """
        names = [name for group in self.groups for name in self.parts(group)]
        about = {"images": str(self.dataset.folder), "fingerprint": self.dataset.fingerprint, **source}
        return index(self.folder, self.kind, names, about)


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item], most: int
) -> Iterator[Result]:
    """The results of some work in order, at most so many of them under way or waiting."""
    under_way: deque[Future[Result]] = deque()
    for item in items:
        under_way.append(pool.submit(work, item))
        if len(under_way) == most:
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()
