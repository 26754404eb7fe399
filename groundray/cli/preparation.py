"""Writing the data sets of a source: all of them or none, with whatever cannot be used named."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from rich.console import Console
from rich.progress import track

from groundray.data.schema import INDEX, REJECTED, Dataset
from groundray.data.shards import write_shards
from groundray.data.sources.image_files import CheckedImage
from groundray.data.sources.rejected import Rejected, tally
from groundray.storage.atomic import atomic_folder, is_empty
from groundray.storage.folder import Folder

LINE_SECONDS = 10.0
Item = TypeVar("Item", bound="ImageItem")
Thing = TypeVar("Thing")
Row = dict[str, Any]


class Strict(Exception):
    """With --strict: something of the source cannot be used."""


class ImageItem(Protocol):
    """What a source's reader knows of an image before its file is opened."""

    @property
    def id(self) -> str: ...

    @property
    def file_names(self) -> tuple[str, ...]: ...


@dataclass
class Prepared:
    """A data set on its way to disk: rows are made while they are written, and `rejected` grows meanwhile."""

    kind: str
    rows: Iterator[Row]
    rejected: list[Rejected]
    left_out: dict[str, int] = field(default_factory=dict)
    vocabulary: dict[str, tuple[str, ...]] = field(default_factory=dict)


def usable(
    folder: Folder, items: Sequence[Item], rejected: list[Rejected], console: Console
) -> Iterator[tuple[Item, CheckedImage]]:
    """The items whose image can be used, with its file; of the others `rejected` says why. Reads on the cluster."""
    from groundray.runtime.data.image_checks import check_images

    files = check_images(folder, [item.file_names for item in items])
    for item, file in zip(progress(items, "images", console), files, strict=True):
        if isinstance(file, CheckedImage):
            yield item, file
        else:
            rejected.append(Rejected("image", item.id, file.reason, str(file)))


def write(
    options: argparse.Namespace,
    console: Console,
    source: dict[str, Any],
    parts: dict[str, Prepared] | Callable[[Folder], dict[str, Prepared]],
) -> None:
    """Write data sets to their places in `--out`, all of them or none."""
    from groundray.runtime import cluster

    told: list[str] = []
    with atomic_folder(Folder.at(options.out), marker=INDEX) as aside:
        prepared = parts(aside) if callable(parts) else parts
        with_images = any(one.kind != "text" for one in prepared.values())
        with cluster.connect(verbose=options.verbose) if with_images else contextlib.nullcontext():
            for place, one in prepared.items():
                told += _write_one(options, aside / place, f"{options.out}/{place}".removesuffix("/."), one, source)
    for line in told:
        console.print(line)


def _write_one(
    options: argparse.Namespace, folder: Folder, shown: str, one: Prepared, source: dict[str, Any]
) -> list[str]:
    """What a person is told of a data set that was written to a folder, and that will be at `shown`."""
    what = "images" if one.kind != "text" else "lines"
    counts = {what: 0}

    def counted() -> Iterator[Row]:
        for row in one.rows:
            counts[what] += 1
            for name, value in row.items():
                if isinstance(value, list):
                    counts[name] = counts.get(name, 0) + len(value)
            yield row
        counts.update(one.left_out)

    dataset = write_shards(
        folder.make(), one.kind, counted(), counts, source, one.vocabulary, int(options.row_group_mb * 2**20)
    )
    if dataset.rows == 0:
        raise ValueError(f"{shown}: none of the {what} can be used: {listed(one.rejected)}")
    lines = "".join(json.dumps(item.as_json(), ensure_ascii=False) + "\n" for item in one.rejected)
    folder.write_bytes(REJECTED, lines.encode())
    if one.rejected and options.strict:
        first = one.rejected[0]
        raise Strict(
            f"{listed(one.rejected)} (the first: {first.what} {first.id}, {first.detail}); "
            "nothing was written; without --strict the rest would be"
        )
    groups = sum(len(shard.row_groups) for shard in dataset.shards)
    megabytes = sum(shard.bytes for shard in dataset.shards) / 2**20
    inside = ", ".join(f"{count} {name}" for name, count in counts.items() if name not in {what, *one.left_out})
    told = [
        f"{shown}: {counts[what]} {what}{f' with {inside}' if inside else ''}, {megabytes:.1f} MB "
        f"in {len(dataset.shards)} shards ({groups} row groups)"
    ]
    if one.vocabulary:
        told.append("  " + ", ".join(f"{len(words)} {name}" for name, words in one.vocabulary.items()))
    told += [f"  {name}: {count}" for name, count in one.left_out.items() if count]
    if one.rejected:
        told.append(f"rejected, see {shown}/{REJECTED}: {listed(one.rejected)}")
    return told


def source_of(format: str, files: Sequence[Path], folders: Sequence[Path], **choices: Any) -> dict[str, Any]:
    """Where a data set comes from; the fingerprint changes with any byte of `files`, any image's size or time in
    `folders`, and any choice.

    Raises:
        FileNotFoundError: one of them is not there.
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
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                state = path.stat()
                digest.update(f"{path.relative_to(folder)}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
    places = [str(place.resolve()) for place in (*files, *folders)]
    return {"format": format, "from": places, **choices, "fingerprint": digest.hexdigest()}


def is_prepared(options: argparse.Namespace, parts: Sequence[str], source: dict[str, Any], console: Console) -> bool:
    """Whether the shards of this very source are at `--out` already.

    Raises:
        OSError: `--out` is in a store that does not answer.
        ValueError: something else is there, and it is not to be overwritten.
    """
    out = Folder.connect(options.out)
    if is_empty(out):
        return False
    there = [_dataset_at(out / part) for part in parts]
    if all(found is not None and found.source.get("fingerprint") == source["fingerprint"] for found in there):
        rows = sum(found.rows for found in there if found is not None)
        console.print(f"{options.out}: this source is prepared already ({rows} rows)")
        return True
    if not options.overwrite:
        raise ValueError(
            f"--out: {options.out} holds something else than this source's shards: give another folder, or --overwrite"
        )
    return False


def _dataset_at(out: Folder) -> Dataset | None:
    """The data set at a folder, if one is there that this version can read."""
    try:
        return Dataset.open(str(out))
    except (FileNotFoundError, ValueError):
        return None


def progress(items: Iterable[Thing], what: str, console: Console, total: int | None = None) -> Iterable[Thing]:
    """The items, with a bar on a terminal and a line now and then elsewhere.

    Args:
        total: how many they are, where they do not know it themselves.
    """
    total = len(items) if isinstance(items, Sized) else total
    if console.is_terminal:
        yield from track(items, description=what, total=total, console=console, transient=True)
        return
    printed = time.monotonic()
    for done, item in enumerate(items):
        if time.monotonic() - printed > LINE_SECONDS:
            printed = time.monotonic()
            console.print(f"{what}  {done}/{total}")
        yield item


def listed(rejected: Iterable[Rejected]) -> str:
    return ", ".join(f"{count} x {reason}" for reason, count in tally(rejected).items()) or "nothing rejected"
