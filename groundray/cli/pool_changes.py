"""`prepare images --add` and `--remove`: images join a pool for search, and leave it.

    POOL/adding-5e6f7a8b/            the new images of a folder as a data set of their own, made as any other is, and
                                     deleted after
    POOL/shard-1a2b3c4d-00000...     its shards, named for its fingerprint
    POOL/dataset.json                written last: until then the pool is as it was

The shards that are there stay as they are, so that what reads them goes on, and so do the parts of indexes that were
made of them. A command that is killed has changed nothing, and the same command goes on. Of several that change a pool
at once, one after the other writes `dataset.json`. Removed images stay in their shards (data/removed_rows.py).
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from rich.console import Console

from groundray.cli.preparation import NothingUsable, prepare, resolved
from groundray.data.removed_rows import removed_rows, with_removed
from groundray.data.row_groups import read_group
from groundray.data.schema import INDEX, REJECTED, Dataset, Shard
from groundray.data.shards import write_index
from groundray.data.sources.images import Images
from groundray.storage.folder import BLOCK_BYTES
from groundray.storage.made_once import made_once
from groundray.storage.seals import FileSeal

ADDED = "added"  # key of `source` in `dataset.json`: what the further images are from


def add(source: Images, options: argparse.Namespace, console: Console) -> None:
    """Add the images of a folder to the pool at `--out`, but those that it has.

    Raises:
        FileNotFoundError: there is no pool.
        ValueError: the pool has other shards than those of `prepare images`, or an image of another folder with the
            same id.
        OSError: something cannot be read or written.
    """
    pool = Dataset.open(options.out, "images")
    known, given = _folders(pool), source.inputs().folders[0]
    adding = f"adding-{hashlib.sha256(resolved(given).encode(errors='surrogateescape')).hexdigest()[:8]}"
    present = set(_ids(pool))
    if resolved(given) not in known:
        _check_new(source.ids(), present, options.out)
    if all(id in present for id in source.ids()):
        console.print(f"{options.out}: has all images of {given} already ({pool.rows} rows)")
        pool.folder.delete(adding)
        return
    source.skipped, source.added_to = present, pool.fingerprint
    places = {"out": f"{options.out}/{adding}", "shown": options.out}
    staged = argparse.Namespace(**{**vars(options), **places, "overwrite": True})
    try:
        prepare(source, staged, console)
    except NothingUsable as problem:
        console.print(f"{options.out}: nothing is added ({problem})")
        return
    more = Dataset.open(staged.out, "images")
    names = {_name(more, number): shard for number, shard in enumerate(more.shards)}

    def read() -> Dataset:
        now = Dataset.open(options.out, "images")
        if not names.keys() <= {shard.file for shard in now.shards}:
            raise FileNotFoundError(f"{now.folder}/{INDEX} lacks the new shards")
        return now

    def make() -> None:
        now = Dataset.open(options.out, "images")
        if now.fingerprint != pool.fingerprint:  # another command has added images meanwhile
            _check_new(_ids(more), set(_ids(now)), options.out)
        _join(now, more, names)

    joined = made_once(pool.folder, "pool", (INDEX,), read, make, console.print)
    pool.folder.delete(adding)
    console.print(f"{options.out}: {more.rows} images added, {joined.rows} in all")


def remove(ids: Sequence[str], options: argparse.Namespace, console: Console) -> None:
    """Remove images from the pool at `--out`.

    Raises:
        FileNotFoundError: there is no pool.
        ValueError: the pool has other shards than those of `prepare images`, or no image with one of the ids.
    """
    pool = Dataset.open(options.out, "images")
    asked = set(ids)
    found = {id: row for row, id in enumerate(_ids(pool)) if id in asked}
    if unknown := [id for id in ids if id not in found]:
        raise ValueError(f"--remove: expected ids of images of {options.out}, got {unknown[0]!r}")
    rows = np.array(sorted(found.values()), np.int64)

    def read() -> Dataset:
        now = Dataset.open(options.out, "images")
        if not np.isin(rows, removed_rows(now)).all():
            raise FileNotFoundError(f"{now.folder}/{INDEX} has the images yet")
        return now

    def make() -> None:
        with_removed(Dataset.open(options.out, "images"), rows).write_index()

    now = made_once(pool.folder, "pool", (INDEX,), read, make, console.print)
    console.print(f"{options.out}: {len(rows)} images removed, {now.rows - len(removed_rows(now))} left")


def _join(pool: Dataset, more: Dataset, names: dict[str, Shard]) -> None:
    """Copy the shards of `more` to the pool, and write what describes it."""
    for name, shard in names.items():
        with more.folder.open_input(shard.file) as reading, pool.folder.open_output(name) as writing:
            shutil.copyfileobj(reading, writing, BLOCK_BYTES)
        pool.folder.verify(name, FileSeal(shard.bytes, shard.sha256))
    if rejected := more.folder.read_bytes(REJECTED):
        earlier = pool.folder.read_bytes(REJECTED) if pool.folder.exists(REJECTED) else b""
        if not earlier.endswith(rejected):  # else those of this command before it was killed
            pool.folder.write_bytes(REJECTED, earlier + rejected)
    renamed = [Shard(name, each.row_groups, each.bytes, each.sha256, each.id) for name, each in names.items()]
    counts = Counter(pool.counts)
    counts.update(more.counts)
    source = {**pool.source, ADDED: [*pool.source.get(ADDED, []), more.source]}
    write_index(pool.folder, pool.kind, [*pool.shards, *renamed], counts, source, pool.vocabulary)


def _name(more: Dataset, number: int) -> str:
    return f"shard-{more.fingerprint[:8]}-{number:05d}.parquet"


def _ids(dataset: Dataset) -> Iterator[str]:
    for group in range(len(dataset.groups)):
        yield from read_group(dataset, group, ["id"])["id"].to_pylist()


def _folders(pool: Dataset) -> set[str]:
    """Return the folders that a pool's images are from."""
    return {folder for each in (pool.source, *pool.source.get(ADDED, [])) for folder in each.get("from", [])}


def _check_new(ids: Iterator[str], present: set[str], pool: str) -> None:
    """Raise ValueError if an id is one of a pool's."""
    taken = next((id for id in ids if id in present), None)
    if taken is not None:
        raise ValueError(
            f"{pool} has an image {taken!r} already, of another folder: give the folder above, so that the ids, which "
            "are paths, differ, or rename the image"
        )
