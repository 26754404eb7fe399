"""Write a source's data sets: all or none, with the reason for everything that cannot be used."""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import joblib
from rich.console import Console

from groundray.cli.command import CommandFailed
from groundray.cli.progress import Progress
from groundray.data import part_processes
from groundray.data.parts import PartTask, Record, samples_of
from groundray.data.schema import INDEX, REJECTED, Dataset, Shard
from groundray.data.shards import write_index
from groundray.data.sources.image_files import all_files
from groundray.data.sources.protocol import Source, Split, Work
from groundray.data.sources.rejected import summary
from groundray.runtime.ray_address import given_address
from groundray.storage.atomic import atomic_folder, is_empty, recover
from groundray.storage.file_names import escaped, is_encodable
from groundray.storage.folder import Folder


def prepare(source: Source, options: argparse.Namespace, console: Console) -> None:
    """Write the data sets of a source to `--out`, unless they are there already.

    Raises:
        CommandFailed: something is rejected, and `--strict` was given.
        OSError: something cannot be read or written.
        ValueError: an option or the source has no use, or nothing of a data set can be used.
    """
    inputs = source.inputs()
    description = describe_source(
        source.name,
        [Path(file) for file in inputs.files],
        [Path(folder) for folder in inputs.folders],
        **inputs.choices,
    )
    if is_prepared(options, source.folders(), description, console):
        return
    with atomic_folder(Folder.at(options.out), marker=INDEX) as out, tempfile.TemporaryDirectory() as scratch:
        lines = _Preparation(source, options, description, out, Path(scratch), console).write()
    for line in lines:
        console.print(line)


@dataclass
class _Opened:
    """A split whose parts are being written.

    Attributes:
        parts: number of parts that were made so far.
    """

    split: Split
    folder: Folder
    records: Folder
    parts: int = 0


class _Preparation:
    """Writes the parts of all splits, and then what describes them.

    Args:
        description: what the data sets are made from.
        out: the folder that becomes `--out`. The records of its parts are beside it.
        scratch: a temporary folder of this machine.
    """

    def __init__(
        self,
        source: Source,
        options: argparse.Namespace,
        description: dict[str, Any],
        out: Folder,
        scratch: Path,
        console: Console,
    ):
        self._source, self._options, self._description = source, options, description
        self._out, self._scratch, self._console = out, scratch, console
        self._progress = Progress(console)
        self._splits: list[_Opened] = []
        self._read = 0

    def write(self) -> list[str]:
        """Write the data sets, and return the lines that describe them."""
        with self._progress:
            if self._source.images and given_address():  # as in a Ray job
                from groundray.runtime import cluster
                from groundray.runtime.data import part_tasks

                with cluster.connect(verbose=self._options.verbose):
                    part_tasks.write_parts(self._tasks(), self._tell)
            else:
                part_processes.write_parts(self._tasks(), joblib.cpu_count(), self._tell)
        return [line for opened in self._splits for line in self._finish(opened)]

    def _tasks(self) -> Iterator[PartTask]:
        """Yield the parts of all splits, one split after the other."""
        row_group_bytes = int(self._options.row_group_mb * 2**20)
        for split in self._source.splits(
            Work(self._out, self._scratch, self._console.print, lambda items, name: self._progress.track(items, name))
        ):
            folder = (self._out / split.folder).make()
            opened = _Opened(split, folder, (self._out.parent / "records" / split.folder).make())
            self._splits.append(opened)
            parts = iter(split.parts)
            start = list(islice(parts, 2))
            for part in chain(start, parts):
                name = "shard-{:05d}.parquet" if len(start) < 2 else f"shard-{opened.parts:05d}-{{:03d}}.parquet"
                task = PartTask(
                    part,
                    opened.parts,
                    folder,
                    opened.records,
                    name,
                    split.kind,
                    split.vocabulary,
                    row_group_bytes,
                    split.total,
                )
                opened.parts += 1
                yield task

    def _tell(self, read: int) -> None:
        """Show that more samples were read."""
        self._read += read
        totals = [opened.split.total for opened in self._splits]
        self._progress.update("samples", self._read, None if None in totals else sum(filter(None, totals)))

    def _finish(self, opened: _Opened) -> list[str]:
        """Write what describes a data set whose parts are whole, and return the lines that describe it.

        Raises:
            CommandFailed: something is rejected, and `--strict` was given.
            ValueError: nothing can be used.
        """
        split, folder, samples = opened.split, opened.folder, samples_of(opened.split.kind)
        shown = f"{self._options.out}/{split.folder}".removesuffix("/.")
        shards: list[Shard] = []
        counts, rejected, first = Counter({samples: 0}), Counter(split.rejected.tally), split.rejected.first
        with folder.open_output(REJECTED) as lines:
            shutil.copyfileobj(split.rejected.open(), lines)
            for number in range(opened.parts):
                record = Record.read(opened.records, number)
                shards += record.shards
                counts.update(record.counts)
                rejected.update(record.rejected)
                first = first or record.first
                record.copy_rejected(opened.records, number, lines)
        if not shards:
            raise ValueError(f"{shown}: none of the {samples} can be used: {summary(rejected)}")
        if first and self._options.strict:
            raise CommandFailed(
                f"{summary(rejected)} (the first: {first.what} {first.id}, {first.detail}); "
                "nothing was written; leave out --strict to write the rest"
            )
        write_index(folder, split.kind, shards, {**counts, **split.left_out}, self._description, split.vocabulary)
        groups = sum(len(shard.row_groups) for shard in shards)
        megabytes = sum(shard.bytes for shard in shards) / 2**20
        nested = ", ".join(f"{count} {name}" for name, count in counts.items() if name != samples)
        description = [
            f"{shown}: {counts[samples]} {samples}{f' with {nested}' if nested else ''}, {megabytes:.1f} MB "
            f"in {len(shards)} shards ({groups} row groups)"
        ]
        if split.vocabulary:
            description.append("  " + ", ".join(f"{len(words)} {name}" for name, words in split.vocabulary.items()))
        description += [f"  {name}: {count}" for name, count in split.left_out.items() if count]
        if rejected:
            description.append(f"rejected, see {shown}/{REJECTED}: {summary(rejected)}")
        return description


def describe_source(format: str, files: Sequence[Path], folders: Sequence[Path], **choices: Any) -> dict[str, Any]:
    """Return what a data set is made from. Its fingerprint changes with any byte of `files`, with the size or time of
    any file in `folders`, and with any choice.

    Raises:
        FileNotFoundError: a file or folder does not exist.
    """
    digest = hashlib.sha256(json.dumps([format, choices], sort_keys=True).encode())
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"there is no file {file}")
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no folder {folder}")
        for path in sorted(all_files(folder)):
            if path.is_file():
                state = path.stat()
                line = f"{path.relative_to(folder)}\0{state.st_size}\0{state.st_mtime_ns}\n"
                digest.update(line.encode(errors="surrogateescape"))  # a name need not be UTF-8
    paths = [str(path.resolve()) for path in (*files, *folders)]
    for path in paths:
        if not is_encodable(path):
            raise ValueError(f"expected a path in UTF-8, got {escaped(path)}: rename it")
    return {"format": format, "from": paths, **choices, "fingerprint": digest.hexdigest()}


def is_prepared(options: argparse.Namespace, parts: Sequence[str], source: dict[str, Any], console: Console) -> bool:
    """Return True if `--out` holds the shards of exactly this source.

    Raises:
        OSError: `--out` is in a store that cannot be reached.
        ValueError: `--out` holds something else, and `--overwrite` was not given.
    """
    out = Folder.connect(options.out)
    recover(out, INDEX)
    if is_empty(out):
        return False
    datasets = [_open_dataset(out / part) for part in parts]
    if all(dataset and dataset.source.get("fingerprint") == source["fingerprint"] for dataset in datasets):
        rows = sum(dataset.rows for dataset in datasets if dataset)
        console.print(f"{options.out}: this source is prepared already ({rows} rows)")
        return True
    if not options.overwrite:
        raise ValueError(
            f"--out: expected an empty folder or this source's shards, {options.out} holds something else: "
            "give another folder, or --overwrite"
        )
    return False


def _open_dataset(folder: Folder) -> Dataset | None:
    """Return the data set of a folder, or None if there is none that this version can read."""
    try:
        return Dataset.open(str(folder))
    except (FileNotFoundError, ValueError):
        return None
