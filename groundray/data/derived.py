"""Derived data sets: one row for each row of a source data set, written in parts.

    FOLDER/part-00012-003.parquet ...   parts of the source's row groups, rows in the source's order
    FOLDER/seals/00012-003.json ...     size and checksum of the parts that a process wrote, from this one on
    FOLDER/dataset.json                 written last

Every part is written atomically and depends only on the source and the encoder. An interrupted job therefore resumes
with the missing parts, and any number of processes on any machines that see the folder can share the work without
coordination. A part that is gone, cut or of another data set counts as missing, even if `dataset.json` is there: a
lifecycle rule may delete any file. Parts are hashed while they are written, so that none is read again to complete the
data set; one without a seal, as of a process that was killed, is read. Before a part is written, its source must still
be the data set that was opened. Rows that an earlier data set has are taken over from it (`earlier_parts.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import joblib
import numpy as np
import pyarrow as pa

from groundray.data import earlier_parts
from groundray.data.ahead import map_ahead
from groundray.data.earlier_parts import EarlierPart, part_name
from groundray.data.footers import check_unchanged
from groundray.data.row_groups import read_group
from groundray.data.schema import INDEX, Dataset
from groundray.data.shards import READS, Footer, describe_damage, encode_shard, index_shards, read_footer
from groundray.storage.folder import Folder
from groundray.storage.seals import FileSeal

SEALS = "seals"  # folder of the parts' seals
PART_BYTES = 16 * 2**20
BATCH = 32  # rows that are encoded together

Item = TypeVar("Item")


@dataclass(frozen=True)
class DerivedDataset:
    """Specification of a data set with one row for each row of `source`.

    Attributes:
        source: the data set that it is derived from.
        folder: the folder that it is written to.
        key: identifies the data set; a hash of all that its rows depend on (storage/cache_key.py).
        kind: kind of the derived data set, a key of `schema.KINDS`.
        bytes_per_row: approximate size of a row.
        rows_per_group: rows of a row group within a part; None writes a part as a single row group.
        provenance: what `dataset.json` records beside the source's folder and fingerprint.
        title: what its rows are, for messages.
        out_of_space_hint: what to do when the disk is full, for messages.
        lineage: a hash of all that a row depends on beside the source, for a data set of which later ones take rows
            over; empty if none does.
    """

    source: Dataset
    folder: Folder
    key: str
    kind: str
    bytes_per_row: int
    title: str
    out_of_space_hint: str
    rows_per_group: int | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    lineage: str = ""

    @property
    def bytes(self) -> int:
        """Approximate size of all rows."""
        return self.source.rows * self.bytes_per_row

    @property
    def groups(self) -> range:
        """The source's row groups."""
        return range(len(self.source.groups))

    def part_id(self, name: str) -> str:
        """Return the id in the metadata of a part."""
        return hashlib.sha256(f"{self.key} {name}".encode()).hexdigest()


class Encoder(Protocol[Item]):
    """Turns rows of the source into columns of the derived data set."""

    @property
    def columns(self) -> Sequence[str]:
        """Columns that are read from the source."""
        ...

    def decode(self, table: pa.Table) -> Item:
        """Return what `encode` takes for some rows. Called in threads, ahead of `encode`."""
        ...

    def encode(self, item: Item) -> dict[str, pa.Array]:
        """Return the derived columns of these rows."""
        ...


def open_derived(spec: DerivedDataset) -> Dataset | None:
    """Return the data set, or None unless it is complete: each part is there and has its size."""
    if not spec.folder.exists(INDEX):
        return None
    try:
        dataset = Dataset.open(str(spec.folder), spec.kind)
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # deleted meanwhile, damaged, or of another version
        return None
    sizes = spec.folder.sizes()
    ids = {name: spec.part_id(name) for group in spec.groups for name in parts_of(spec, group)}
    complete = {shard.file: shard.id for shard in dataset.shards if sizes.get(shard.file) == shard.bytes}
    return dataset if complete == ids else None


def parts_of(spec: DerivedDataset, group: int) -> dict[str, range]:
    """Return the part files of a row group, and the rows in each, counted from the group's first row."""
    rows, max_rows = int(spec.source.group_sizes[group]), max(1, PART_BYTES // spec.bytes_per_row)
    return {
        part_name(group, number): range(start, min(start + max_rows, rows))
        for number, start in enumerate(range(0, rows, max_rows))
    }


class KnownParts:
    """The footers of parts that were found whole. Each part is opened once, and again if its size has changed."""

    def __init__(self, spec: DerivedDataset):
        self.footers: dict[str, Footer] = {}
        self.present: dict[str, int] = {}  # size of each file at the last call of `missing`
        self._spec = spec

    def missing(self, on_progress: Callable[[], None] = lambda: None) -> dict[int, list[str]]:
        """Return the parts that are not written yet or are damaged, by row group.

        Args:
            on_progress: is called after each part that is found whole; what it raises ends the reading.
        """
        spec, self.present = self._spec, self._spec.folder.sizes()
        parts = {group: parts_of(spec, group) for group in spec.groups}
        rows = {name: len(part) for each in parts.values() for name, part in each.items()}
        self.footers = {name: footer for name, footer in self.footers.items() if self.present.get(name) == footer.bytes}
        unknown = [name for name in rows if name in self.present and name not in self.footers]
        with ThreadPoolExecutor(READS) as pool:
            read = map_ahead(pool, lambda name: _footer(spec, name), unknown, 2 * READS)
            for name, footer in zip(unknown, read, strict=True):
                if not isinstance(footer, Exception) and not describe_damage(footer, spec.part_id(name), rows[name]):
                    self.footers[name] = footer
                    on_progress()
        missing = {group: [name for name in each if name not in self.footers] for group, each in parts.items()}
        return {group: names for group, names in missing.items() if names}


def missing_parts(spec: DerivedDataset) -> dict[int, list[str]]:
    """Return the parts that are not written yet or are damaged, by row group."""
    return KnownParts(spec).missing()


def damaged_parts(spec: DerivedDataset) -> list[str]:
    """Return a line for each part that is there and has to be made again."""
    present = spec.folder.sizes()
    lines = []
    for group, names in missing_parts(spec).items():
        for name in names:
            if name in present and (damage := _damage(spec, name, parts_of(spec, group)[name])):
                lines.append(f"{spec.folder}/{name} {damage}: it is made again")
    return lines


def count_missing_rows(spec: DerivedDataset) -> int:
    """Return the number of rows that are not written yet."""
    return sum(len(parts_of(spec, group)[name]) for group, names in missing_parts(spec).items() for name in names)


def count_earlier_rows(spec: DerivedDataset) -> int:
    """Return the number of rows that are not written yet and that an earlier data set has."""
    return sum(
        len(parts_of(spec, group)[name])
        for group, names in missing_parts(spec).items()
        for name in names
        if _earlier(spec, group, name)
    )


def tasks(spec: DerivedDataset, workers: int) -> list[tuple[int, list[str]]]:
    """Split all parts into tasks (row group, names of its parts) for a number of workers.

    A task reads its row group once. Where row groups are few they are split, so that there are at least four tasks a
    worker if there are that many parts. Parts that are written already are included: workers that ask at different
    times get the same list.
    """
    parts = {group: list(parts_of(spec, group)) for group in spec.groups}
    max_parts = max(1, sum(map(len, parts.values())) // (4 * workers))
    return [
        (group, names[start : start + max_parts])
        for group, names in parts.items()
        for start in range(0, len(names), max_parts)
    ]


def check_room(spec: DerivedDataset) -> None:
    """Check that the disk has room for the missing rows.

    Raises:
        ValueError: it has not; the message has both sizes and the repair. Object stores are not checked.
    """
    if spec.folder.local:
        needed = count_missing_rows(spec) * spec.bytes_per_row
        spec.folder.check_room(needed, f"{spec.title} of {spec.source.folder} still take", spec.out_of_space_hint)


def make_parts(
    spec: DerivedDataset, group: int, names: Sequence[str], encoder: Encoder[Any], threads: int | None = None
) -> int:
    """Write those of a row group's parts `names` that are not written yet, and return the number of rows written.

    Args:
        threads: number of decoding threads (default: the machine's cores, at most 8).

    Raises:
        ValueError: the row group is damaged, or the source was replaced; nothing is written of another source.
    """
    missing = {
        name: rows for name, rows in parts_of(spec, group).items() if name in names and _damage(spec, name, rows)
    }
    if not missing:
        return 0
    spec.folder.make()
    seals: dict[str, dict[str, Any]] = {}
    for name, part in _parts(spec, group, missing, encoder, threads):
        columns = dict(zip(part.column_names, part.columns, strict=True))
        shard = encode_shard(spec.kind, columns, spec.part_id(name), spec.rows_per_group)
        check_unchanged(spec.source)
        spec.folder.write_bytes(name, shard.bytes)
        seals[name] = {**FileSeal.of(shard.bytes).as_json(), "content": shard.content}
    first = next(iter(missing)).removeprefix("part-").removesuffix(".parquet")
    (spec.folder / SEALS).make().write_sealed(f"{first}.json", {"parts": seals})
    return sum(map(len, missing.values()))


def _parts(
    spec: DerivedDataset, group: int, missing: Mapping[str, range], encoder: Encoder[Any], threads: int | None
) -> Iterator[tuple[str, pa.Table]]:
    """Yield the rows of a row group's missing parts: those that an earlier data set has, and then the encoded ones."""
    left = dict(missing)
    for name in missing:
        if (earlier := _earlier(spec, group, name)) and (rows := earlier.read(BATCH)) is not None:
            del left[name]
            yield name, rows
    if not left:
        return
    table = read_group(spec.source, group, encoder.columns)
    batches = [
        (name, table.slice(start, min(BATCH, rows.stop - start)))
        for name, rows in left.items()
        for start in range(rows.start, rows.stop, BATCH)
    ]
    encoded: list[pa.Table] = []
    threads = threads or min(8, joblib.cpu_count())
    with ThreadPoolExecutor(threads) as pool:
        decoded = map_ahead(pool, lambda batch: encoder.decode(batch[1]), batches, threads + 1)
        for (name, _), item in zip(batches, decoded, strict=True):
            encoded.append(pa.table(encoder.encode(item)))
            if sum(map(len, encoded)) == len(left[name]):
                yield name, pa.concat_tables(encoded)
                encoded.clear()


def _earlier(spec: DerivedDataset, group: int, name: str) -> EarlierPart | None:
    """Return the part of an earlier data set with the rows of a part."""
    if not spec.lineage:
        return None
    shard, number = spec.source.groups[group]
    earlier = earlier_parts.earlier_parts(str(spec.folder), spec.key, spec.kind, spec.lineage)
    parts, own = earlier.get((shard.sha256, number), ()), parts_of(spec, group)
    by_name = dict(zip(own, parts, strict=False)) if len(parts) == len(own) else {}
    found = by_name.get(name)
    return found if found and sum(found.shard.row_groups) == len(own[name]) else None


def make_missing(spec: DerivedDataset, encoder: Encoder[Any]) -> Iterator[int]:
    """Write all missing parts in this process, and yield the number of rows of each task.

    The order is random, so that several processes that do this at once work on different parts.
    """
    work = tasks(spec, workers=1)
    for number in np.random.default_rng().permutation(len(work)):
        group, names = work[number]
        yield make_parts(spec, group, names, encoder)


def finalize(
    spec: DerivedDataset, on_progress: Callable[[], None] = lambda: None, known: KnownParts | None = None
) -> Dataset:
    """Write `dataset.json` of a data set whose parts are all written, and return the data set. Reads the footers and
    seals of the parts, and those parts that have no seal.

    Args:
        on_progress: is called after each part; what it raises ends the reading.
        known: parts whose footers need not be read again.

    Raises:
        ValueError: a part was damaged meanwhile, or the source was replaced.
    """
    check_unchanged(spec.source)
    names = [name for group in spec.groups for name in parts_of(spec, group)]
    source = {"images": str(spec.source.folder), "fingerprint": spec.source.fingerprint, **spec.provenance}
    source |= earlier_parts.recorded(spec.source, spec.lineage)
    footers = known.footers if known else {}
    return index_shards(spec.folder, spec.kind, names, source, on_progress, footers, _seals(spec, on_progress))


def _seals(spec: DerivedDataset, on_progress: Callable[[], None]) -> dict[tuple[str, str], FileSeal]:
    """Return the recorded seals of parts, by name and content: two processes may have written one part."""
    folder, found = spec.folder / SEALS, dict[tuple[str, str], FileSeal]()

    def read(name: str) -> dict[tuple[str, str], FileSeal]:
        try:
            parts = folder.read_sealed(name)["parts"]
            return {(part, entry["content"]): FileSeal.parse(entry) for part, entry in parts.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # the parts are read
            return {}

    with ThreadPoolExecutor(READS) as pool:
        for seals in map_ahead(pool, read, folder.names(), 2 * READS):
            found |= seals
            on_progress()
    return found


def _footer(spec: DerivedDataset, name: str) -> Footer | Exception:
    """Return the footer of a part, or why it cannot be read."""
    try:
        return read_footer(spec.folder, name)
    except (OSError, pa.ArrowException) as error:
        return error


def _damage(spec: DerivedDataset, name: str, rows: range) -> str | None:
    """Return why a part has to be made, or None if it is whole."""
    return describe_damage(_footer(spec, name), spec.part_id(name), len(rows))
