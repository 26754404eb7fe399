"""Write a source's data sets: all or none, with the reason for everything that cannot be used."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, cast

import joblib
from rich.console import Console

from groundray.cli.command import CommandFailed
from groundray.cli.part_progress import PartProgress
from groundray.cli.progress import Progress
from groundray.data import part_processes
from groundray.data.parts import PARTS, PartTask, Record, part_number, samples_of
from groundray.data.schema import INDEX, REJECTED, ROW_GROUP_BYTES, VERSION, Dataset, Shard
from groundray.data.shards import write_index
from groundray.data.sources.image_files import ImageRules, all_files, is_folder
from groundray.data.sources.protocol import ITEMS_PER_PART, Source, Split, Work
from groundray.data.sources.rejected import summary
from groundray.runtime.ray_address import given_address
from groundray.storage.atomic import Staging, is_empty, recover, resumable_folder
from groundray.storage.file_names import escaped, is_encodable
from groundray.storage.folder import COPIES, Folder, open_file
from groundray.storage.local_path import expanded
from groundray.storage.object_store import Refused

Tell = Callable[[str], None]


class NothingUsable(ValueError):
    """Nothing of a data set can be used."""


def prepare(
    source: Source, options: argparse.Namespace, console: Console, tell: Tell | None = None, here: bool = False
) -> None:
    """Write the data sets of a source to `--out`, unless they are there already.

    Args:
        console: for progress, and for what the user waits for.
        tell: takes the lines that describe what is written (default: print them).
        here: use processes of this machine alone, also where RAY_ADDRESS names a cluster.

    Raises:
        CommandFailed: something is rejected, and `--strict` was given.
        OSError: something cannot be read or written.
        ValueError: an option or the source has no use, or nothing of a data set can be used.
    """
    tell = tell or console.print
    inputs, choices, rules = source.inputs(), _choices(options), _image_rules(options)
    description = describe_source(
        source.name, inputs.files, inputs.folders, inputs.large_files, **inputs.choices, **choices
    )
    content = _content(description, options)
    if is_prepared(options, source.folders(), description, tell, content):
        return
    whole = 0
    try:
        with (
            resumable_folder(Folder.at(options.out), INDEX, content, console.print) as staging,
            tempfile.TemporaryDirectory() as scratch,
        ):
            preparation = _Preparation(source, options, description, rules, staging, Path(scratch), console, tell, here)
            try:
                lines = preparation.write()
            finally:
                whole = sum(name.endswith(".json") for name in staging.records.files())
    except (KeyboardInterrupt, OSError) as error:
        if not whole:
            raise
        kept = f"{_count(whole, 'whole part')} kept: the same command goes on"
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(f"interrupted; {kept}") from None
        raise OSError(f"{error}; {kept}") from error
    for line in lines:
        tell(line)


def add_options(parser: argparse.ArgumentParser, source: type[Source]) -> None:
    """Add the options that all sources have, those that all with images have, and those that all with captions have."""
    parser.add_argument("--out", required=True, metavar="DIR", help="folder or URL to write the shards to")
    parser.add_argument("--limit", type=int, metavar="N", help="read only the first N samples of each split")
    parser.add_argument("--strict", action="store_true", help="write nothing if anything has to be rejected")
    parser.add_argument("--overwrite", action="store_true", help="replace another source's shards in --out")
    parser.add_argument("--verbose", action="store_true", help="show Ray's own logs, where RAY_ADDRESS is set")
    parser.add_argument("--row-group-mb", type=float, default=ROW_GROUP_BYTES / 2**20, help=argparse.SUPPRESS)
    if not source.images:
        parser.set_defaults(min_side=None, max_side=None, quality=None, drop_duplicate_captions=False)
        return
    parser.add_argument("--min-side", type=int, metavar="N", help="reject images with fewer than N pixels on a side")
    parser.add_argument(
        "--max-side",
        type=int,
        metavar="N",
        help="encode images with more than N pixels on a side anew, as smaller JPEG (default: keep all as they are)",
    )
    parser.add_argument("--quality", type=int, metavar="Q", help="of this JPEG, from 1 to 95 (default: 90)")
    if not source.captions:
        parser.set_defaults(drop_duplicate_captions=False)
        return
    parser.add_argument(
        "--drop-duplicate-captions",
        action="store_true",
        help="drop captions of an image that differ from another one only in case, punctuation or spaces",
    )


def _choices(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options of all sources that change what is written, as far as they were given."""
    for name, least, most in (("limit", 1, None), ("min_side", 1, None), ("max_side", 1, None), ("quality", 1, 95)):
        value, option = getattr(options, name), f"--{name.replace('_', '-')}"
        if value is not None and not least <= value <= (most or value):
            raise ValueError(f"{option}: expected {f'{least} to {most}' if most else f'at least {least}'}, got {value}")
    if options.quality is not None and options.max_side is None:
        raise ValueError("--quality: expected --max-side too, since other images keep their bytes, got none")
    names = ("limit", "min_side", "max_side", "quality", "drop_duplicate_captions")
    return {name: value for name in names if (value := getattr(options, name))}


def _image_rules(options: argparse.Namespace) -> ImageRules:
    given = {name: getattr(options, name) for name in ("min_side", "max_side", "quality")}
    return ImageRules(**{name: value for name, value in given.items() if value is not None})


def _content(source: dict[str, Any], options: argparse.Namespace) -> str:
    """Return what identifies the parts of a source: those of an interrupted command are used only if it is the same."""
    parts = [source["fingerprint"], options.row_group_mb, ITEMS_PER_PART, VERSION, PARTS]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _count(number: int, what: str) -> str:
    return f"{number} {what} is" if number == 1 else f"{number} {what}s are"


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
        rules: which images are used, and how they are stored.
        staging: the folder that becomes `--out`, and the records of its parts.
        scratch: a temporary folder of this machine.
    """

    def __init__(
        self,
        source: Source,
        options: argparse.Namespace,
        description: dict[str, Any],
        rules: ImageRules,
        staging: Staging,
        scratch: Path,
        console: Console,
        tell: Tell,
        here: bool,
    ):
        self._source, self._options, self._description = source, options, description
        self._rules, self._staging, self._scratch, self._tell, self._here = rules, staging, scratch, tell, here
        self._progress = Progress(console)
        self._done = PartProgress(self._progress)
        self._splits: list[_Opened] = []

    def write(self) -> list[str]:
        """Write the data sets, and return the lines that describe them."""
        tasks = self._tasks()
        with self._progress:
            if self._source.images and given_address() and not self._here:  # as in a Ray job
                from groundray.runtime import cluster
                from groundray.runtime.data import part_tasks

                with cluster.connect(verbose=self._options.verbose):
                    part_tasks.write_parts(tasks, self._done.tell)
            else:
                part_processes.write_parts(tasks, joblib.cpu_count(), self._done.tell)
        if next(tasks, None):
            raise RuntimeError("a part was not written")
        return [line for opened in self._splits for line in self._finish(opened)]

    def _tasks(self) -> Iterator[PartTask]:
        """Yield the parts of all splits that are not whole yet, one split after the other."""
        row_group_bytes = int(self._options.row_group_mb * 2**20)
        work = Work(self._staging.new, self._scratch, self._tell, self._progress.track, self._options.limit)
        for split in self._source.splits(work):
            opened = _Opened(split, self._staging.new / split.folder, self._staging.records / split.folder)
            self._splits.append(opened)
            self._done.splits.append(split)
            whole = _whole_parts(opened.folder.make(), opened.records.make())
            if whole:
                shown = f"{self._options.out}/{split.folder}".removesuffix("/.")
                self._tell(f"{shown}: {_count(len(whole), 'part')} whole from an earlier command")
            parts = iter(split.parts)
            start = list(islice(parts, 2))
            for part in chain(start, parts):
                number, opened.parts = opened.parts, opened.parts + 1
                if number in whole:
                    self._done.tell(whole[number], 1)
                    continue
                name = "shard-{:05d}.parquet" if len(start) < 2 else f"shard-{number:05d}-{{:03d}}.parquet"
                yield PartTask(
                    part,
                    number,
                    opened.folder,
                    opened.records,
                    name,
                    split.kind,
                    split.vocabulary,
                    row_group_bytes,
                    self._rules,
                    self._options.drop_duplicate_captions,
                    split.total,
                )

    def _finish(self, opened: _Opened) -> list[str]:
        """Write what describes a data set whose parts are whole, and return the lines that describe it.

        Raises:
            CommandFailed: something is rejected, and `--strict` was given.
            OSError: a shard that was written is not there.
            ValueError: nothing can be used.
        """
        split, folder, samples = opened.split, opened.folder, samples_of(opened.split.kind)
        shown = f"{getattr(self._options, 'shown', self._options.out)}/{split.folder}".removesuffix("/.")
        shards: list[Shard] = []
        counts, rejected, first = Counter({samples: 0}), Counter(split.rejected.tally), split.rejected.first
        left_out = Counter(split.left_out)
        with folder.open_output(REJECTED) as lines:
            shutil.copyfileobj(split.rejected.open(), lines)
            for number in range(opened.parts):
                record = Record.read(opened.records, number)
                shards += record.shards
                counts.update(record.counts)
                rejected.update(record.rejected)
                left_out.update(record.left_out)
                first = first or record.first
                record.copy_rejected(opened.records, number, lines)
        if not shards:
            why = f" (the first: {first.what} {first.id}, {first.detail})" if first else ""
            raise NothingUsable(f"{shown}: none of the {samples} can be used: {summary(rejected)}{why}")
        if first and self._options.strict:
            raise CommandFailed(
                f"{summary(rejected)} (the first: {first.what} {first.id}, {first.detail}); "
                "nothing was written; leave out --strict to write the rest"
            )
        _check_shards(folder, shards)
        write_index(folder, split.kind, shards, {**counts, **left_out}, self._description, split.vocabulary)
        groups = sum(len(shard.row_groups) for shard in shards)
        megabytes = sum(shard.bytes for shard in shards) / 2**20
        nested = ", ".join(f"{count} {name}" for name, count in counts.items() if name != samples)
        description = [
            f"{shown}: {counts[samples]} {samples}{f' with {nested}' if nested else ''}, {megabytes:.1f} MB "
            f"in {len(shards)} shards ({groups} row groups)"
        ]
        if split.vocabulary:
            description.append("  " + ", ".join(f"{len(words)} {name}" for name, words in split.vocabulary.items()))
        description += [f"  {name}: {count}" for name, count in left_out.items() if count]
        if rejected:
            description.append(f"rejected, see {shown}/{REJECTED}: {summary(rejected)}")
        return description


def _whole_parts(folder: Folder, records: Folder) -> dict[int, int]:
    """Return the parts that are whole, by number, and the number of samples that each has read."""
    sizes, whole = folder.sizes(), {}
    for name in records.sizes():
        if (number := part_number(name)) is not None:
            with contextlib.suppress(ValueError):  # a damaged record
                record = Record.read(records, number)
                if all(sizes.get(shard.file) == shard.bytes for shard in record.shards):
                    whole[number] = record.samples
    return whole


def _check_shards(folder: Folder, shards: Sequence[Shard]) -> None:
    """Check that all shards are there, and delete what processes that were killed have left of others.

    Raises:
        OSError: one is not there.
    """
    sizes, names = folder.sizes(), {shard.file for shard in shards}
    for shard in shards:
        if sizes.get(shard.file) != shard.bytes:
            raise OSError(
                f"{folder}/{shard.file}: expected {shard.bytes:,} bytes that a task has written, got "
                f"{sizes.get(shard.file, 0):,}: on a cluster, give an --out that its machines share, such as a URL"
            )
    for name in sizes:
        if name.startswith("shard-") and name not in names:
            folder.delete(name)


def describe_source(
    format: str, files: Sequence[str], folders: Sequence[str], large_files: Mapping[str, str], **choices: Any
) -> dict[str, Any]:
    """Return what a data set is made from. Its fingerprint changes with any byte of `files`, with the size or time of
    any file in `folders`, with the name, size or time of any of `large_files`, and with any choice.

    Args:
        files, folders: paths or URLs.
        large_files: absolute paths or URLs by name.

    Raises:
        FileNotFoundError: a file or folder does not exist.
        OSError: one cannot be read.
    """
    digest = hashlib.sha256(json.dumps([format, choices], sort_keys=True).encode())
    for file in files:
        try:
            with open_file(file) as content:
                digest.update(hashlib.file_digest(cast(Any, content), "sha256").digest())
        except (FileNotFoundError, IsADirectoryError):
            raise FileNotFoundError(f"there is no file {escaped(file)}") from None
    for folder in folders:
        is_empty_folder = True
        for name, size, time in _states(folder):
            is_empty_folder = False
            digest.update(f"{name}\0{size}\0{time}\n".encode(errors="surrogateescape"))  # a name need not be UTF-8
        if is_empty_folder and not is_folder(folder):
            raise FileNotFoundError(f"there is no folder {escaped(folder)}")
    with ThreadPoolExecutor(COPIES) as pool:  # a request for each file of a store
        for name, state in zip(large_files, pool.map(_state, large_files.values()), strict=True):
            digest.update(f"{name}\0{state}\n".encode())
    paths = [resolved(path) for path in (*files, *folders)]
    paths += large_files.values()
    for path in paths:
        if not is_encodable(path):
            raise ValueError(f"expected a path in UTF-8, got {escaped(path)}: rename it")
    return {"format": format, "from": paths, **choices, "fingerprint": digest.hexdigest()}


def resolved(path: str) -> str:
    """Return a path as `dataset.json` has it: absolute and without links; a URL as it is."""
    return path if "://" in path else str(expanded(path).resolve())


def _state(file: str) -> str:
    """Return the size and time of a file; empty if it is missing or may not be read, which its part rejects.

    Raises:
        OSError: its store does not answer.
    """
    try:
        return Folder.at(file).state()
    except Refused:
        return ""


def _states(folder: str) -> Iterator[tuple[str, int, int]]:
    """Yield name, size in bytes and time of each file in a folder, in a fixed order."""
    if "://" in folder:
        yield from Folder.connect(folder).states()
        return
    root = expanded(folder)
    for path in all_files(root) if root.is_dir() else ():
        if path.is_file():
            state = path.stat()
            yield str(path.relative_to(root)), state.st_size, state.st_mtime_ns


def is_prepared(
    options: argparse.Namespace, parts: Sequence[str], source: dict[str, Any], tell: Tell, content: str
) -> bool:
    """Return True if `--out` holds the shards of exactly this source.

    Args:
        tell: takes a line that says so.
        content: what identifies the parts of this source, of which those that were written are left.

    Raises:
        OSError: `--out` is in a store that cannot be reached.
        ValueError: `--out` holds something else, and `--overwrite` was not given.
    """
    out = Folder.connect(options.out)
    recover(out, INDEX, content)
    if is_empty(out):
        return False
    datasets = [_open_dataset(out / part) for part in parts]
    if all(dataset and dataset.source.get("fingerprint") == source["fingerprint"] for dataset in datasets):
        rows = sum(dataset.rows for dataset in datasets if dataset)
        tell(f"{options.out}: this source is prepared already ({rows} rows)")
        recover(out, INDEX)  # of others that wrote the same
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
