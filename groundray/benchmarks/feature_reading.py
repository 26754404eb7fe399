"""Trunk features from local shards to batches, against a plain read of the same files with pyarrow."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from groundray.benchmarks.measure import Row, compared
from groundray.benchmarks.session import Case, Session
from groundray.data import feature_stream
from groundray.data.image_inputs import FeatureMaps
from groundray.data.plan import Cursor, Plan
from groundray.data.schema import Dataset
from groundray.data.shards import encode_shard, index_shards, write_shards
from groundray.data.stream import Source
from groundray.storage.folder import Folder

PLAIN, VERIFIED = "features: pyarrow alone", "features: pyarrow, checksums"
FIRST, LATER = "features: first epoch", "features: later epochs"
SHAPE = (512, 14, 14)  # of VGG16 at 224 pixels, 200 kB
PART_MAPS, PARTS = 80, 24  # 16 MB a part
EPOCHS = 4
CASE = Case("local files", (PLAIN, VERIFIED, FIRST, LATER))


def write_features(folder: Path, parts: int = PARTS, shape: tuple[int, int, int] = SHAPE) -> tuple[Dataset, Dataset]:
    """Write parts of random feature maps, and the captions of as many images without pixels."""
    draw = np.random.default_rng(0)
    out = Folder.at(folder / "features").make()
    names = [f"part-{number:05d}.parquet" for number in range(parts)]
    for name in names:
        maps = draw.integers(0, 2**16, (PART_MAPS, *shape), np.uint16)
        column = pa.array([one.tobytes() for one in maps], pa.large_binary())
        out.write_bytes(name, encode_shard("trunk_features", {"image": column}, name).bytes)

    def rows() -> Iterator[dict[str, Any]]:
        for number in range(parts * PART_MAPS):
            yield {"id": str(number), "image": b"", "width": 1, "height": 1, "captions": [f"noise {number}"]}

    captions = write_shards(Folder.at(folder / "captions").make(), "captions", rows(), {}, {"noise": parts})
    return captions, index_shards(out, "trunk_features", names, {})


def with_features(source: Source, captions: Dataset, features: Dataset, batch_size: int) -> Source:
    """Return a source of captions that reads features instead of images."""
    over = Source(captions, source.samples, Plan(captions.group_sizes, batch_size))
    return over.with_image_inputs(FeatureMaps(SHAPE), features)


def measure(source: Source, cpus: int, session: Session, case: Mapping[str, int | str]) -> list[Row]:
    """Return the rows of the table: bytes of features a second with a thread for each CPU.

    Args:
        session: that has planned CASE.
        source: of captions and features (`with_features`).
    """
    assert source.features
    files = [source.features.folder.locate(shard.file) for shard in source.features.shards]

    def plain(verified: bool) -> int:
        def read(file: str) -> int:
            return pq.read_table(file, use_threads=False, page_checksum_verification=verified).nbytes

        with ThreadPoolExecutor(cpus) as pool:
            return sum(pool.map(read, files))

    def streamed(source: Source, epochs: int) -> int:
        steps = feature_stream.stream(source, Cursor(), epochs, 0, 1, cpus, prefetch=2)
        return sum(batch.images.nbytes for step in steps for _, batch in step.chunks)

    contenders: dict[str, Callable[[], int]] = {
        PLAIN: lambda: plain(verified=False),
        VERIFIED: lambda: plain(verified=True),
        FIRST: lambda: streamed(replace(source), 1),  # which has read none of the files
        LATER: lambda: streamed(source, EPOCHS),
    }
    runs = session.interleaved(CASE.title, {name: _timed(run) for name, run in contenders.items()})
    return [
        Row(case, name, *compared(figures, runs.get(PLAIN), "bytes_per_second", "rate_of_plain"))
        for name, figures in runs.items()
    ]


def _timed(run: Callable[[], int]) -> Callable[[], dict[str, float]]:
    def timed() -> dict[str, float]:
        started, cpu = time.perf_counter(), time.process_time()
        read = run()
        return {
            "bytes_per_second": read / (time.perf_counter() - started),
            "cpu_per_gb": (time.process_time() - cpu) / (read / 1e9),
        }

    return timed
