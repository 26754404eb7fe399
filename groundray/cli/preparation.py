"""Write a source's data sets: all or none, with the reason for everything that cannot be used."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from rich.console import Console

from groundray.cli.command import CommandFailed
from groundray.cli.progress import Progress
from groundray.data.image_decoder import UnusableImage
from groundray.data.schema import INDEX, REJECTED, Dataset
from groundray.data.shards import write_shards
from groundray.data.sources import image_pool
from groundray.data.sources.image_files import CheckedImage, all_files
from groundray.data.sources.rejected import Rejected, tally
from groundray.runtime.ray_address import given_address
from groundray.storage.atomic import atomic_folder, is_empty, recover
from groundray.storage.file_names import escaped, is_encodable
from groundray.storage.folder import Folder

Row = dict[str, Any]


class ImageItem(Protocol):
    """An image of a source before its file is opened."""

    @property
    def id(self) -> str: ...

    @property
    def file_names(self) -> tuple[str, ...]: ...


Item = TypeVar("Item", bound=ImageItem)


@dataclass
class Prepared:
    """A data set to write. `rejected` grows while the rows are read, `left_out` is what else of the source is told."""

    kind: str
    rows: Iterator[Row]
    rejected: list[Rejected]
    left_out: dict[str, int] = field(default_factory=dict)
    vocabulary: dict[str, tuple[str, ...]] = field(default_factory=dict)


def usable_images(
    folder: Folder | Path, items: Sequence[Item], rejected: list[Rejected], console: Console
) -> Iterator[tuple[Item, CheckedImage]]:
    """Yield each item whose image can be used, with the image; add the others to `rejected`."""
    folder = folder if isinstance(folder, Folder) else Folder.at(folder)
    images = _checked_images(folder, [item.file_names for item in items])
    with Progress(console) as progress:
        for item, image in zip(progress.track(items, "images"), images, strict=True):
            if isinstance(image, CheckedImage):
                yield item, image
            else:
                rejected.append(Rejected("image", item.id, image.reason, str(image)))


def _cluster(verbose: bool) -> AbstractContextManager[None]:
    from groundray.runtime import cluster

    return cluster.connect(verbose=verbose)


def _checked_images(folder: Folder, names: Sequence[Sequence[str]]) -> Iterator[CheckedImage | UnusableImage]:
    if given_address():  # as in a Ray job; on one machine, processes take a fifth of Ray's time
        from groundray.runtime.data import image_checks

        return image_checks.check_images(folder, names)
    return image_pool.checked_images(folder, names)


def write_datasets(
    options: argparse.Namespace,
    console: Console,
    source: dict[str, Any],
    parts: dict[str, Prepared] | Callable[[Folder], dict[str, Prepared]],
) -> None:
    """Write data sets to folders of `--out`: all or none.

    Args:
        parts: the data sets by folder; or a function that returns them, given the folder that will become `--out`.

    Raises:
        CommandFailed: something is rejected, and `--strict` was given.
        ValueError: nothing of a data set can be used.
    """
    lines: list[str] = []
    with atomic_folder(Folder.at(options.out), marker=INDEX) as out:
        datasets = parts(out) if callable(parts) else parts
        images = any(dataset.kind != "text" for dataset in datasets.values())
        with _cluster(options.verbose) if images and given_address() else contextlib.nullcontext():
            for name, dataset in datasets.items():
                shown = f"{options.out}/{name}".removesuffix("/.")
                lines += _write_dataset(options, out / name, shown, dataset, source)
    for line in lines:
        console.print(line)


def _write_dataset(
    options: argparse.Namespace, folder: Folder, shown: str, prepared: Prepared, source: dict[str, Any]
) -> list[str]:
    """Write a data set and return the lines that describe it.

    Args:
        folder: where it is written.
        shown: where it will be, for messages.
    """
    what = "images" if prepared.kind != "text" else "lines"
    counts = {what: 0}

    def counted() -> Iterator[Row]:
        for row in prepared.rows:
            counts[what] += 1
            for name, value in row.items():
                if isinstance(value, list):
                    counts[name] = counts.get(name, 0) + len(value)
            yield row
        counts.update(prepared.left_out)

    row_group_bytes = int(options.row_group_mb * 2**20)
    dataset = write_shards(
        folder.make(), prepared.kind, counted(), counts, source, prepared.vocabulary, row_group_bytes
    )
    if dataset.rows == 0:
        raise ValueError(f"{shown}: none of the {what} can be used: {summary(prepared.rejected)}")
    lines = "".join(json.dumps(item.as_json(), ensure_ascii=False) + "\n" for item in prepared.rejected)
    # a lone surrogate, which UTF-8 cannot hold, becomes JSON's own escape of it
    folder.write_bytes(REJECTED, lines.encode(errors="backslashreplace"))
    if prepared.rejected and options.strict:
        first = prepared.rejected[0]
        raise CommandFailed(
            f"{summary(prepared.rejected)} (the first: {first.what} {first.id}, {first.detail}); "
            "nothing was written; leave out --strict to write the rest"
        )
    groups = sum(len(shard.row_groups) for shard in dataset.shards)
    megabytes = sum(shard.bytes for shard in dataset.shards) / 2**20
    nested = ", ".join(f"{count} {name}" for name, count in counts.items() if name not in {what, *prepared.left_out})
    description = [
        f"{shown}: {counts[what]} {what}{f' with {nested}' if nested else ''}, {megabytes:.1f} MB "
        f"in {len(dataset.shards)} shards ({groups} row groups)"
    ]
    if prepared.vocabulary:
        description.append("  " + ", ".join(f"{len(words)} {name}" for name, words in prepared.vocabulary.items()))
    description += [f"  {name}: {count}" for name, count in prepared.left_out.items() if count]
    if prepared.rejected:
        description.append(f"rejected, see {shown}/{REJECTED}: {summary(prepared.rejected)}")
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


def scene_graph_vocabulary(shards: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the predicates and classes of scene graph shards at a path or URL."""
    Folder.connect(shards)
    words = Dataset.open(shards, "scene_graphs").vocabulary
    return words["predicates"], words["classes"]


def summary(rejected: Iterable[Rejected]) -> str:
    """Return the number of rejected things by reason, in one line."""
    return ", ".join(f"{count} x {reason}" for reason, count in tally(rejected).items()) or "nothing rejected"
