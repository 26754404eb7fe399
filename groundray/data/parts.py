"""Parts of a source as shards: a task writes the shards of a part, what it rejected, and then a sealed record.

FOLDER/shard-PPPPP-NNN.parquet     shards of part P; shard-NNNNN.parquet where the data set has one part
RECORDS/part-PPPPP.jsonl           what is rejected
RECORDS/part-PPPPP.json            shards, counts and numbers of rejected items: the part is whole
"""

from __future__ import annotations

import re
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

from groundray.data.schema import LEFT_OUT, Shard
from groundray.data.shards import write_shard_files
from groundray.data.sources.caption_text import distinct
from groundray.data.sources.image_files import ImageRules
from groundray.data.sources.protocol import Part, Row
from groundray.data.sources.reading import Reading
from groundray.data.sources.rejected import Rejected, RejectedLog
from groundray.storage.folder import Folder

PARTS = 1  # version of parts and records; increment it when the same source would give other parts
ITEMS_TOLD = 50  # between two calls of `tell`
Tell = Callable[[int], None]  # takes a number of items that were read
TellParts = Callable[[int, int], None]  # takes a number of items that were read, and of parts that became whole


@dataclass(frozen=True)
class Record:
    """What a part has written.

    Attributes:
        samples: number of samples that were read, rejected ones too.
        counts: number of rows (images or lines), and of the items in their lists, such as captions.
        left_out: numbers of what else of the part is not in the rows.
        rejected: number of rejected items by kind and reason.
        first: the first rejected item.
    """

    shards: tuple[Shard, ...]
    samples: int
    counts: dict[str, int]
    left_out: dict[str, int]
    rejected: dict[str, int]
    first: Rejected | None

    @staticmethod
    def read(records: Folder, number: int) -> Record:
        """Return the record of a whole part.

        Raises:
            FileNotFoundError: the part is not whole.
            Damaged: the record is damaged.
        """
        content = records.read_sealed(f"{_name(number)}.json")
        shards = tuple(Shard(**shard | {"row_groups": tuple(shard["row_groups"])}) for shard in content["shards"])
        first = Rejected(**content["first"]) if content["first"] else None
        numbers = {name: content[name] for name in ("samples", "counts", "left_out", "rejected")}
        return Record(shards, **numbers, first=first)

    def write(self, records: Folder, number: int, log: RejectedLog) -> None:
        """Write the rejected items and then the record."""
        if log:
            with records.open_output(f"{_name(number)}.jsonl") as lines:
                shutil.copyfileobj(log.open(), lines)
        shards = [vars(shard) | {"row_groups": list(shard.row_groups)} for shard in self.shards]
        first = self.first.as_json() if self.first else None
        content = {name: getattr(self, name) for name in ("samples", "counts", "left_out", "rejected")}
        content |= {"shards": shards, "first": first}
        records.write_sealed(f"{_name(number)}.json", content)

    def copy_rejected(self, records: Folder, number: int, lines: BinaryIO) -> None:
        """Append the rejected items of a part to a stream."""
        if self.rejected:
            with records.filesystem.open_input_stream(records.locate(f"{_name(number)}.jsonl")) as stream:
                shutil.copyfileobj(stream, lines)


@dataclass(frozen=True)
class PartTask:
    """A part to read and to write.

    Attributes:
        number: of the part in its data set, from 0.
        folder: where its shards go.
        records: where its record goes.
        name: name of a shard, with a place for its number.
        kind: kind of the rows.
        vocabulary: of the data set.
        row_group_bytes: largest size of a row group.
        rules: which images are used, and how they are stored.
        distinct_captions: leave out captions of an image that say the same as an earlier one.
        samples: number of samples of the data set, as far as it is known.
    """

    part: Part
    number: int
    folder: Folder
    records: Folder
    name: str
    kind: str
    vocabulary: Mapping[str, tuple[str, ...]]
    row_group_bytes: int
    rules: ImageRules = field(default_factory=ImageRules)
    distinct_captions: bool = False
    samples: int | None = None

    def write(self, threads: int = 1, tell: Tell = lambda _: None) -> None:
        """Read the part, and write its shards, what is rejected, and its record. The same part gives the same bytes.

        Memory: one row group, and the images that the threads work on.

        Args:
            threads: number of threads that read and decode images.
            tell: is called with the number of items that were read since the last call.
        """
        log, counts = RejectedLog(), Counter[str]()
        reading = Reading(log, threads, self.rules)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unusual metadata of images, which is harmless
            rows = self._counted(self._distinct(reading), counts, log, tell)
            shards = write_shard_files(self.folder, self.kind, rows, self.vocabulary, self.row_group_bytes, self.name)
        samples = counts[samples_of(self.kind)] + len(log)
        left_out, rejected = dict(sorted(reading.left_out.items())), dict(log.tally)
        Record(tuple(shards), samples, dict(counts), left_out, rejected, log.first).write(
            self.records, self.number, log
        )

    def _distinct(self, reading: Reading) -> Iterator[Row]:
        """Yield the rows, without captions that say the same as an earlier one of their image if that is asked for."""
        for row in self.part.rows(reading):
            if self.distinct_captions and "captions" in row:
                captions = distinct(row["captions"])
                reading.left_out[f"{LEFT_OUT}captions said twice"] += len(row["captions"]) - len(captions)
                yield row | {"captions": captions}
            else:
                yield row

    def _counted(self, rows: Iterator[Row], counts: Counter[str], log: RejectedLog, tell: Tell) -> Iterator[Row]:
        read, samples = 0, samples_of(self.kind)
        for row in rows:
            counts[samples] += 1
            for name, value in row.items():
                if isinstance(value, list):
                    counts[name] += len(value)
            yield row
            if (now := counts[samples] + len(log)) - read >= ITEMS_TOLD:
                tell(now - read)
                read = now
        tell(counts[samples] + len(log) - read)


def samples_of(kind: str) -> str:
    """Return what the rows of a kind are called in `counts`."""
    return "images" if kind != "text" else "lines"


def part_number(record: str) -> int | None:
    """Return the number of the part that a record of this name is of; None for another file."""
    match = re.fullmatch(r"part-(\d+)\.json", record)
    return int(match[1]) if match else None


def _name(number: int) -> str:
    return f"part-{number:05d}"
