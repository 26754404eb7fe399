"""Trunk features: what is frozen is computed once.

Where a stage's trunk is frozen and its pictures are the same at each visit, one pass over its data sets keeps the
trunk's feature maps, and training reads those. They are shards of kind `trunk_features` in FOLDER/KEY, made in parts
(`data/derived.py`). KEY follows from the trunk's weights, the cut of the pictures, the fingerprint and VERSION, so
that whatever would make the same shares it: runs, sweep trials, and a pass that was interrupted with the one that goes
on.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import nn

from groundray.config import Settings
from groundray.data.derived import Parts
from groundray.data.image_inputs import CentreCrop, FeatureMaps
from groundray.data.schema import Dataset
from groundray.data.stream import Source
from groundray.model.trunk import Trunk
from groundray.model.weights import digest
from groundray.stage.protocol import Stage
from groundray.storage.folder import Folder
from groundray.training.events import FeaturesDone, FeaturesStarted
from groundray.training.worker import Worker, heed

VERSION = 1  # of the code that makes features; raise it where they would come out differently
KIND = "trunk_features"
OWN = ".features"  # in the storage of the runs
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Pass(Parts):
    """A data set's images on their way through a frozen trunk.

    Attributes:
        cut: what the trunk sees of each image.
        shape: channels, rows and columns of a feature map.
    """

    cut: CentreCrop
    shape: tuple[int, int, int]

    kind = KIND
    what = "trunk features"
    more_room = "set features.folder to a larger place, or features.use to never"

    @property
    def bytes_per_row(self) -> int:
        """Of a feature map: it is bfloat16."""
        return 2 * prod(self.shape)


def refusal(stage: Stage, settings: Settings) -> str | None:
    """Why a stage cannot, or need not, read trunk features instead of images; None where it does."""
    if settings.features.use == "never":
        return "features.use is never"
    if not stage.sees_images:
        return "it sees no images"
    if stage.settings.trains_trunk:
        return "it trains the trunk"
    if not all(isinstance(_image_inputs(source), CentreCrop) for source in (stage.train, stage.val)):
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
    trunk_digest = digest(trunk)
    found = {}
    for part, source in (("train", stage.train), ("val", stage.val)):
        cut: Any = _image_inputs(source)
        names = {
            "version": VERSION,
            "data": source.dataset.fingerprint,
            "trunk": trunk_digest,
            "cut": asdict(cut),
            "bits": "bfloat16",
        }
        key = hashlib.sha256(json.dumps(names, sort_keys=True).encode()).hexdigest()[:16]
        found[part] = Pass(source.dataset, folder_of(settings) / key, cut, map_shape(trunk, cut.crop))
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
        samples: Any = replace(source.samples, image_inputs=FeatureMaps(one.shape))  # type: ignore[type-var]
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
    return one.make(
        group,
        names,
        ["image"],
        one.cut.arrays,
        lambda images: {"image": _rows(feature_maps(trunk, images, device))},
        threads,
    )


@torch.no_grad()
def feature_maps(trunk: nn.Module, images: npt.NDArray[np.uint8], device: str) -> npt.NDArray[np.uint16]:
    """The bits of the feature maps [sample channel row column] of some pixels, in bfloat16."""
    maps = trunk.eval()(torch.from_numpy(images).to(device))
    return maps.to(torch.bfloat16).contiguous().view(torch.uint16).cpu().numpy()


def finish(one: Pass) -> Dataset:
    """The feature maps of a pass whose parts are all there, with their index."""
    return one.finish({"shape": list(one.shape), **asdict(one.cut)})


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


def _image_inputs(source: Source) -> Any:
    return getattr(source.samples, "image_inputs", None)


def _rows(maps: npt.NDArray[np.uint16]) -> pa.Array:
    """Each feature map as the bytes of a row."""
    offsets = np.arange(len(maps) + 1, dtype=np.int64) * maps[0].nbytes
    return pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(maps), [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(maps))]
    )
