"""Opens shards: their footers are compared with the data set's index, and kept.

A footer that was read before is used again as long as the file has the same size and time of change.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import pyarrow.fs as pafs
import pyarrow.parquet as pq

from groundray.data.schema import INDEX, Dataset, Shard
from groundray.storage.folder import Folder

if TYPE_CHECKING:
    import pyarrow.dataset as pads

ID = "groundray.id"  # key of a shard's metadata
FOOTERS = 2048  # that are kept, of about 30 kB each
# derived data sets, and who rebuilds them
REBUILT_BY = {
    "trunk_features": "the run makes it again",
    "image_keys": "the run makes it again",
    "caption_queries": "the run makes it again",
    "image_vectors": "the next search makes it again",
    "image_positions": "the next search makes it again",
}


class State(NamedTuple):
    """What tells that a file is another one: its size, and its time of change in nanoseconds since 1970."""

    size: int
    changed: int | None


@dataclass(frozen=True)
class OpenShard:
    """A shard whose footer was compared with the index when its file was in a state."""

    fragment: pads.ParquetFileFragment
    state: State


@dataclass(frozen=True)
class Footers:
    """The shards that were opened last, by folder, file and id."""

    _kept: OrderedDict[tuple[str, str, str | None], OpenShard] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, dataset: Dataset, shard: Shard) -> OpenShard | None:
        """Return the shard if it is kept."""
        key = _key(dataset, shard)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, dataset: Dataset, shard: Shard, opened: OpenShard | None) -> None:
        """Keep an open shard, or with None keep none."""
        with self._lock:
            self._kept.pop(_key(dataset, shard), None)
            if opened:
                self._kept[_key(dataset, shard)] = opened
            while len(self._kept) > FOOTERS:
                self._kept.popitem(last=False)


def state_of(dataset: Dataset, shard: Shard) -> State:
    """Return the state of a shard's file.

    Raises:
        FileNotFoundError: there is no such file.
    """
    folder = dataset.folder
    info = folder.filesystem.get_file_info(folder.locate(shard.file))
    if info.type == pafs.FileType.NotFound:
        raise FileNotFoundError("no such file")
    return State(info.size, info.mtime_ns)


def open_shard(dataset: Dataset, shard: Shard) -> pads.ParquetFileFragment:
    """Read a shard's footer, and compare it with the data set's index. Its size is not compared.

    Raises:
        OSError, pa.ArrowException: it cannot be read.
        ValueError: the file has another id or number of rows.
    """
    folder = dataset.folder
    # with the size, no request asks for it
    fragment = _format().make_fragment(folder.locate(shard.file), folder.filesystem, file_size=shard.bytes)
    fragment.ensure_complete_metadata()
    check_footer(dataset, shard, fragment.metadata)
    return fragment


def check_footer(dataset: Dataset, shard: Shard, metadata: pq.FileMetaData) -> None:
    """Compare a shard's footer with the data set's index.

    Raises:
        ValueError: the file has another id or number of rows.
    """
    if (id := id_of(metadata)) != shard.id:
        raise mismatch(dataset, shard, f"id {shard.id or 'none'}", id or "none")
    if (rows := rows_of_groups(metadata)) != shard.row_groups:
        raise mismatch(dataset, shard, f"row groups of {shard.row_groups} rows", f"{rows}")


def check_size(dataset: Dataset, shard: Shard, state: State) -> None:
    """Compare the size of a shard's file with the data set's index.

    Raises:
        ValueError: it is another.
    """
    if state.size != shard.bytes:
        raise mismatch(dataset, shard, f"{shard.bytes:,} bytes", f"{state.size:,}")


def check_unchanged(dataset: Dataset) -> None:
    """Check that the data set in the folder is still the one that was opened.

    Raises:
        ValueError: it is another one, or none.
    """
    if (now := _fingerprint(dataset.folder)) != dataset.fingerprint:
        raise ValueError(
            f"{dataset.folder}: expected the data set with fingerprint {dataset.fingerprint[:12]}, got "
            f"{now[:12] if now else 'none'}: its shards were replaced since this command opened them; rerun the "
            "command to read the new ones"
        )


def id_of(metadata: pq.FileMetaData) -> str | None:
    """Return the id in a shard's metadata; None in shards of earlier versions."""
    return value_of(metadata, ID)


def value_of(metadata: pq.FileMetaData, key: str) -> str | None:
    """Return what a shard's metadata has under a key of groundray; None if it lacks it."""
    value = (metadata.metadata or {}).get(key.encode())
    return value.decode(errors="replace") if value is not None else None


def rows_of_groups(metadata: pq.FileMetaData) -> tuple[int, ...]:
    """Return the number of rows of each row group."""
    return tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))


def repair_of(dataset: Dataset) -> str:
    """Return what replaces a damaged data set."""
    if dataset.kind in REBUILT_BY:
        return f"delete it, and {REBUILT_BY[dataset.kind]}"
    return "delete the folder and run `python -m groundray.prepare` again"


def mismatch(dataset: Dataset, shard: Shard, expected: str, got: str) -> ValueError:
    """Return the error for a shard that is not the one in the index: it was damaged, or its data set was replaced."""
    try:
        replaced = _fingerprint(dataset.folder) != dataset.fingerprint
    except OSError:
        replaced = False
    if replaced:
        repair = (
            "its data set was replaced since this command opened it; rerun the command to read the new one (a run "
            "that was trained with the old one needs another --run.name)"
        )
    else:
        repair = f"restore the file, or {repair_of(dataset)}"
    return ValueError(f"{dataset.folder}/{shard.file}: expected {expected}, got {got}: {repair}")


@lru_cache
def _format() -> pads.ParquetFileFormat:
    import pyarrow.dataset as pads  # loads pandas, which takes .3 s, and which processes that only write do not need

    scanning = pads.ParquetFragmentScanOptions(
        pre_buffer=True,  # one request for adjacent columns, not one for each
        page_checksum_verification=True,
    )
    return pads.ParquetFileFormat(default_fragment_scan_options=scanning)


def _fingerprint(folder: Folder) -> str | None:
    """Return the fingerprint of the data set that is in a folder now; None if there is none."""
    try:
        return str(folder.read_json(INDEX)["fingerprint"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _key(dataset: Dataset, shard: Shard) -> tuple[str, str, str | None]:
    return str(dataset.folder), shard.file, shard.id
