"""Trunk features: what is frozen is computed once.

Where a stage's trunk is frozen and its pictures are the same at each visit, one pass over its data sets keeps the
trunk's feature maps, and training reads those. They are shards of kind `trunk_features`:

    FOLDER/KEY/part-00012-003.parquet ...   parts of the images' row groups, rows in the same order
    FOLDER/KEY/dataset.json                 comes last

KEY follows from the trunk's weights, the cut of the pictures, the data's fingerprint and VERSION, so that whatever
would make the same shares it: runs, sweep trials, and a pass that was interrupted with the one that goes on.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any, TypeVar

import joblib
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import nn

from groundray.config import Settings
from groundray.data.pictures import CentreCrop, FeatureMaps
from groundray.data.schema import INDEX, Dataset
from groundray.data.shards import as_shard, index, read_group
from groundray.data.stream import Source
from groundray.model.trunk import Trunk
from groundray.stage.protocol import Stage
from groundray.storage import Folder, size_of
from groundray.training.events import FeaturesDone, FeaturesStarted
from groundray.training.worker import Worker, heed

VERSION = 1  # of the code that makes features; raise it where they would come out differently
KIND = "trunk_features"
OWN = ".features"  # in the storage of the runs
PART_BYTES = 16 * 2**20
BATCH = 32  # images that go through the trunk together
POLL_SECONDS = 0.2

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Pass:
    """A data set's images on their way through a frozen trunk.

    Attributes:
        dataset: that has the images.
        cut: what the trunk sees of each.
        shape: channels, rows and columns of a feature map.
        folder: where the feature maps are kept.
    """

    dataset: Dataset
    cut: CentreCrop
    shape: tuple[int, int, int]
    folder: Folder

    @property
    def bytes_a_row(self) -> int:
        return 2 * prod(self.shape)

    @property
    def bytes(self) -> int:
        """Of all feature maps: they are bfloat16."""
        return self.dataset.rows * self.bytes_a_row

    def made(self) -> Dataset | None:
        """The feature maps, once all of them are there."""
        return Dataset.open(str(self.folder), KIND) if self.folder.exists(INDEX) else None

    def parts(self, group: int) -> dict[str, range]:
        """The files of a row group, and the rows that each holds, counted from the group's first."""
        rows, most = int(self.dataset.group_sizes[group]), max(1, PART_BYTES // self.bytes_a_row)
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
        needed = self.missing_rows * self.bytes_a_row
        if needed > free:
            raise ValueError(
                f"trunk features of {self.dataset.folder} take {size_of(needed)} more, there are {size_of(free)} free "
                f"at {self.folder}: set features.folder to a larger place, or features.use to never"
            )


def refusal(stage: Stage, settings: Settings) -> str | None:
    """Why a stage cannot, or need not, read trunk features instead of images; None where it does."""
    if settings.features.use == "never":
        return "features.use is never"
    if not stage.sees_images:
        return "it sees no images"
    if stage.settings.trains_trunk:
        return "it trains the trunk"
    if not all(isinstance(_pictures(source), CentreCrop) for source in (stage.train, stage.val)):
        return "its pictures are cut at random, other ones at each visit"
    if stage.settings.precision == "float64":
        return "its precision float64 is finer than that of features, bfloat16"
    if stage.settings.epochs == 1:
        return "it visits each image once"
    return None


def passes(stage: Stage, settings: Settings, trunk: Trunk) -> dict[str, Pass]:
    """The passes that a stage wants, by `train` and `val`; none where it does without features."""
    if refusal(stage, settings):
        return {}
    digest = _digest(trunk)
    found = {}
    for part, source in (("train", stage.train), ("val", stage.val)):
        cut: Any = _pictures(source)
        names = {
            "version": VERSION,
            "data": source.dataset.fingerprint,
            "trunk": digest,
            "cut": asdict(cut),
            "bits": "bfloat16",
        }
        key = hashlib.sha256(json.dumps(names, sort_keys=True).encode()).hexdigest()[:16]
        found[part] = Pass(source.dataset, cut, map_shape(trunk, cut.crop), folder_of(settings) / key)
    return found


def folder_of(settings: Settings) -> Folder:
    """Where trunk features are kept: beside the runs, for all of them, unless the settings name a place."""
    return Folder.at(settings.features.folder) if settings.features.folder else Folder.at(settings.run.storage) / OWN


def map_shape(trunk: Trunk, size: int) -> tuple[int, int, int]:
    """The shape of a feature map of a picture of `size` pixels a side."""
    return trunk.channels, size // trunk.stride, size // trunk.stride


def with_features(stage: Stage, settings: Settings, trunk: Trunk, worker: Worker) -> Stage:
    """The stage as it reads trunk features, which ranks make together where they are not there yet.

    Each rank takes its share of the row groups. What another run makes meanwhile is not made again.
    """
    attached = {}
    for part, one in passes(stage, settings, trunk).items():
        source: Source = getattr(stage, part)
        if (found := one.made()) is None:
            started = time.monotonic()
            if worker.rank == 0:
                one.check_room()
                worker.emit(started_event(f"{stage.name}.{part}", one))
            for group, names in one.work(worker.world_size)[worker.rank :: worker.world_size]:
                make(one, group, names, trunk, worker.device)
                worker.alive()
                heed(worker)  # what is made is kept
            found = _finished(one, worker)
            if worker.rank == 0:
                worker.emit(FeaturesDone(f"{stage.name}.{part}", one.dataset.rows, time.monotonic() - started))
        samples: Any = replace(source.samples, pictures=FeatureMaps(one.shape))  # type: ignore[type-var]
        attached[part] = replace(source, samples=samples, features=found)
    return replace(stage, **attached) if attached else stage  # type: ignore[type-var]


def started_event(what: str, one: Pass) -> FeaturesStarted:
    """What is told before a pass starts."""
    return FeaturesStarted(what, one.dataset.rows, one.missing_rows, one.bytes, str(one.folder))


def make(one: Pass, group: int, names: list[str], trunk: Trunk, device: str, threads: int | None = None) -> int:
    """Make some parts of a row group, those that are still not there; the number of images that it took.

    Args:
        threads: that decode images while the trunk works (default: the machine's cores, at most 8).
    """
    missing = {name: rows for name, rows in one.parts(group).items() if name in names and not one.folder.exists(name)}
    if not missing:
        return 0
    table = read_group(one.dataset, group, ["image"])
    batches = [
        (name, table.slice(start, min(BATCH, rows.stop - start)))
        for name, rows in missing.items()
        for start in range(rows.start, rows.stop, BATCH)
    ]
    one.folder.make()
    done: list[npt.NDArray[np.uint16]] = []
    threads = threads or min(8, joblib.cpu_count())
    with ThreadPoolExecutor(threads) as pool:
        pixels = _ahead(pool, lambda batch: one.cut.arrays(batch[1]), batches, threads + 1)
        for (name, _), images in zip(batches, pixels, strict=True):
            done.append(feature_maps(trunk, images, device))
            if sum(map(len, done)) == len(missing[name]):
                one.folder.write_bytes(name, as_shard(KIND, {"image": _rows(np.concatenate(done))}))
                done.clear()
    return sum(map(len, missing.values()))


@torch.no_grad()
def feature_maps(trunk: nn.Module, images: npt.NDArray[np.uint8], device: str) -> npt.NDArray[np.uint16]:
    """The bits of the feature maps [sample channel row column] of some pixels, in bfloat16."""
    maps = trunk.eval()(torch.from_numpy(images).to(device))
    return maps.to(torch.bfloat16).contiguous().view(torch.uint16).cpu().numpy()


def finish(one: Pass) -> Dataset:
    """The feature maps of a pass whose parts are all there, with their index."""
    names = [name for group in one.groups for name in one.parts(group)]
    about = {"images": str(one.dataset.folder), "fingerprint": one.dataset.fingerprint, **asdict(one.cut)}
    return index(one.folder, KIND, names, {"shape": list(one.shape), **about})


def _finished(one: Pass, worker: Worker) -> Dataset:
    """The feature maps, when all ranks have made theirs. Nobody waits in a collective: those give up in time."""
    missing = None
    while True:
        if worker.rank == 0 and not one.missing():
            return finish(one)
        if worker.rank > 0 and (found := one.made()):
            return found
        if missing != (missing := one.missing_rows):  # the others are at work
            worker.alive()
        heed(worker)
        time.sleep(POLL_SECONDS)


def _pictures(source: Source) -> Any:
    return getattr(source.samples, "pictures", None)


def _digest(trunk: nn.Module) -> str:
    """The fingerprint of a trunk: the names, shapes and bits of all that it computes with."""
    digest = hashlib.sha256()
    for name, tensor in sorted({**dict(trunk.named_buffers()), **trunk.state_dict()}.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _rows(maps: npt.NDArray[np.uint16]) -> pa.Array:
    """Each feature map as the bytes of a row."""
    offsets = np.arange(len(maps) + 1, dtype=np.int64) * maps[0].nbytes
    return pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(maps), [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(maps))]
    )


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
