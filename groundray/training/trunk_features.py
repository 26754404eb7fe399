"""Trunk features: the output of a frozen trunk, computed once.

Where a stage's trunk is frozen and it sees each image the same way at each visit, one pass over its data sets stores
the trunk's feature maps, and training reads those. They are shards of kind `trunk_features` in FOLDER/KEY, made in
parts (`data/derived.py`). KEY follows from the trunk's weights, the crop, the data set's fingerprint, the code, the
libraries and the arithmetic (`storage/cache_key.py`), so that runs, sweep trials and resumed passes share the features
that they have in common, and no others. Features are computed in float32, whatever the precision of the stages that
read them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor, nn

from groundray import arithmetic
from groundray.config import Settings
from groundray.data import device_decoding, image_decoder, transforms
from groundray.data.batches import ImageBatch
from groundray.data.derived import (
    DerivedDataset,
    Encoder,
    KnownParts,
    count_missing_rows,
    damaged_parts,
    finalize,
    make_parts,
    open_derived,
    parts_of,
    tasks,
)
from groundray.data.image_decoder import UnusableImage
from groundray.data.image_inputs import CentreCrop, EncodedCrops, FeatureMaps
from groundray.data.schema import INDEX, Dataset
from groundray.data.stream import Source
from groundray.distributed import gather_strings
from groundray.model import timm_trunk
from groundray.model import trunk as trunks
from groundray.model.trunk import Trunk
from groundray.model.weights import digest
from groundray.stage.protocol import Stage
from groundray.storage.cache_key import cache_key
from groundray.storage.folder import Folder
from groundray.training.events import FeaturesDone, FeaturesStarted, Notice
from groundray.training.feature_choice import Cached, misfit, record, recorded
from groundray.training.feature_uses import MARK_SECONDS, mark_used
from groundray.training.layout import features_folder, folder_of
from groundray.training.worker import Worker, raise_if_stop_requested

KIND = "trunk_features"
POLL_SECONDS, MAX_POLL_SECONDS = 0.2, 10.0  # between two listings
POLL_SHARE = 10  # at least this many times what a listing takes


@dataclass(frozen=True)
class TrunkFeatures:
    """The feature maps of a data set's images.

    Attributes:
        spec: the derived data set that holds them.
        crop: how the trunk sees each image.
        shape: channels, rows and columns of a feature map.
    """

    spec: DerivedDataset
    crop: CentreCrop | EncodedCrops
    shape: tuple[int, int, int]

    def encoder(self, trunk: nn.Module, device: str) -> Encoder[ImageBatch]:
        """Return the encoder of images to feature maps with a trunk on a device."""
        return _TrunkEncoder(self.crop, trunk, device, str(self.spec.source.folder))


@dataclass(frozen=True)
class _TrunkEncoder:
    crop: CentreCrop | EncodedCrops
    trunk: nn.Module
    device: str
    images: str  # folder of the images, for messages
    columns: tuple[str, ...] = ("id", "image")

    def decode(self, table: pa.Table) -> ImageBatch:
        try:
            return ImageBatch.of_images(table["id"].to_pylist(), self.crop.arrays(table))
        except UnusableImage:
            for row in range(len(table)):
                try:
                    self.crop.arrays(table.slice(row, 1))
                except UnusableImage as problem:
                    raise problem.of(f"{self.images}: image {table['id'][row].as_py()!r} cannot be decoded") from None
            raise

    def encode(self, item: ImageBatch) -> dict[str, pa.Array]:
        try:
            images = device_decoding.pixels_of([item], self.device)[0] if item.images.dim() == 1 else item.images
        except UnusableImage as problem:
            raise problem.of(self.images) from None
        with arithmetic.using("float32", self.device):
            return {"image": _binary_rows(feature_maps(self.trunk, images, self.device))}


def refusal(stage: Stage, settings: Settings) -> str | None:
    """Return why a stage cannot, or need not, read trunk features instead of images; None where it does."""
    if settings.features.use == "never":
        return "features.use is never"
    if not stage.sees_images:
        return "it sees no images"
    if stage.settings.trains_trunk:
        return "it trains the trunk"
    if not all(isinstance(_image_inputs(source), CentreCrop) for source in (stage.train, stage.val)):
        return "its images are cropped at random, differently at each visit"
    if stage.settings.precision == "float64":
        return "its precision float64 is finer than that of features, bfloat16"
    if stage.settings.epochs == 1:
        return "it visits each image once"
    return None


def features_of(stage: Stage, settings: Settings, trunk: Trunk) -> dict[str, TrunkFeatures]:
    """Return the features that a stage reads, by `train` and `val`; none where it reads images."""
    if refusal(stage, settings):
        return {}
    trunk_digest = digest(trunk)
    features = {}
    for split, source in (("train", stage.train), ("val", stage.val)):
        crop: CentreCrop = _image_inputs(source)
        is_encoded = settings.data.jpeg_decoding == "gpu"
        decoded = {"jpeg_decoding": "gpu", "cuda": torch.version.cuda} if is_encoded else {}
        trunk_and_crop = {"trunk": trunk_digest, "origin": trunk.origin, "crop": asdict(crop), **decoded}
        code = (image_decoder, transforms, trunks, timm_trunk, feature_maps, _binary_rows)
        key_of = partial(
            cache_key,
            code=(*code, *[device_decoding] * is_encoded),
            device="cuda" if settings.scaling.use_gpu else "cpu",
            stored="bfloat16",
        )
        key = key_of({"data": source.dataset.fingerprint, **trunk_and_crop})
        shape = trunk.shape
        spec = DerivedDataset(
            source.dataset,
            features_folder(settings) / key[:16],
            key,
            KIND,
            bytes_per_row=2 * prod(shape),  # bfloat16
            provenance={"shape": list(shape), **asdict(crop)},
            title="trunk features",
            out_of_space_hint="set features.folder to a larger place, or features.use to never",
            lineage=key_of(trunk_and_crop),
        )
        features[split] = TrunkFeatures(spec, EncodedCrops(crop) if is_encoded else crop, shape)
    return features


def prepare_cache(
    stage: str,
    specs: Sequence[DerivedDataset],
    settings: Settings,
    run: Folder,
    user: Folder,
    notice: Callable[[str], None],
    cached: Cached = "features",
) -> str | None:
    """Return why a stage reads images in place of features, or computes keys; None where it reads what is cached.

    Keeps the cache's limit before features are made, and reports what of them is damaged.

    Args:
        specs: the features that the stage would read.
        user: the run or sweep that uses them.
        notice: takes a line for each deletion and each damaged part.

    Raises:
        ValueError: the stage has begun with features, and there is no room to make them again.
    """
    known = recorded(run, stage, cached)
    if known is False:
        return "it began with images" if cached == "features" else "it began without"
    for spec in specs:
        mark_used(spec.folder, user)
    if problem := misfit(specs, settings, notice):
        if known:
            raise ValueError(
                f"{stage} began with {'trunk features' if cached == 'features' else 'keys'}, which must be made again: "
                f"{problem}: free space there, set features.folder to a larger place or raise features.max_gb; without "
                "them it would end otherwise"
            )
        return problem
    for spec in specs:
        if not open_derived(spec):
            for line in damaged_parts(spec):
                notice(line)
    return None


def agree_on_cache(
    stage: str, specs: Sequence[DerivedDataset], settings: Settings, worker: Worker, cached: Cached, otherwise: str
) -> bool:
    """Decide on rank 0 whether a stage reads what is cached, record that, and return it on every rank.

    Args:
        specs: what the stage would read.
        otherwise: what it does if it does not, for the notice that has the reason.

    Raises:
        ValueError: as `prepare_cache`.
    """
    run, problem = folder_of(settings), ""
    if worker.rank == 0:

        def notice(text: str) -> None:
            worker.emit(Notice(text))

        problem = prepare_cache(stage, specs, settings, run, run, notice, cached) or ""
        record(run, stage, cached, not problem)
    if (problem := gather_strings(problem)[0]) and worker.rank == 0:
        worker.emit(Notice(f"{stage} {otherwise}: {problem}"))
    return not problem


def with_features(stage: Stage, settings: Settings, trunk: Trunk, worker: Worker) -> Stage:
    """Return the stage reading trunk features, which the ranks make together where they are missing; the stage itself
    where they do not fit.

    Each rank makes the parts of its tasks, except those that another run has written by then.
    """
    wanted = features_of(stage, settings, trunk)
    if not wanted:
        return stage
    specs = [features.spec for features in wanted.values()]
    if not agree_on_cache(stage.name, specs, settings, worker, "features", "reads images, not trunk features"):
        return stage
    work = [
        (f"{stage.name}.{split}", features.spec, features.encoder(trunk, worker.device))
        for split, features in wanted.items()
    ]
    made = make_together(work, worker, folder_of(settings))
    attached: dict[str, Source] = {}
    for (split, features), dataset in zip(wanted.items(), made, strict=True):
        attached[split] = getattr(stage, split).with_image_inputs(FeatureMaps(features.shape), dataset)
    return replace(stage, **attached)  # type: ignore[type-var]


def make_together(
    work: Sequence[tuple[str, DerivedDataset, Encoder[Any]]], worker: Worker, run: Folder
) -> list[Dataset]:
    """Return derived data sets, which the ranks of a run make together where they are missing.

    Args:
        work: of each, its name for messages (as `grounding.train`), what it is, and its encoder.
    """
    if worker.rank > 0:
        for _, spec, _ in work:
            mark_used(spec.folder, run)
    marked = time.monotonic()

    def progress() -> None:
        nonlocal marked
        worker.heartbeat()
        if worker.rank == 0 and time.monotonic() - marked > MARK_SECONDS:
            marked = time.monotonic()
            for _, spec, _ in work:
                mark_used(spec.folder, run)
        raise_if_stop_requested(worker)  # the parts that are written remain

    made: list[Dataset] = []
    for what, spec, encoder in work:
        if (dataset := open_derived(spec)) is None:
            started = time.monotonic()
            if worker.rank == 0:
                worker.emit(started_event(what, spec))
            for group, names in tasks(spec, worker.world_size)[worker.rank :: worker.world_size]:
                make_parts(spec, group, names, encoder)
                progress()
            dataset = _finalized(spec, worker, progress)
            if worker.rank == 0:
                worker.emit(FeaturesDone(what, spec.source.rows, time.monotonic() - started, spec.title))
        made.append(dataset)
    return made


def started_event(what: str, spec: DerivedDataset) -> FeaturesStarted:
    """Return the event that announces a pass."""
    return FeaturesStarted(what, spec.source.rows, count_missing_rows(spec), spec.bytes, str(spec.folder), spec.title)


@torch.no_grad()
def feature_maps(trunk: nn.Module, images: Tensor, device: str) -> npt.NDArray[np.uint16]:
    """Return the feature maps [sample channel row column] of pixels as the bits of bfloat16 numbers."""
    maps = trunk.eval()(images.to(device))
    return maps.to(torch.bfloat16).contiguous().view(torch.uint16).cpu().numpy()


def _finalized(spec: DerivedDataset, worker: Worker, progress: Callable[[], None]) -> Dataset:
    """Return the features once all ranks have written their parts; rank 0 finalizes them.

    Ranks list the folder, and only rank 0 opens parts, each once: a collective would time out while one of them still
    encodes, or while rank 0 completes what may be hundreds of GB. If rank 0 hangs then, its own watchdog ends it. A
    listing that takes long is made less often.

    Args:
        progress: is called where this rank or another one makes progress.
    """
    parts = {name for group in spec.groups for name in parts_of(spec, group)}
    known, present = KnownParts(spec), dict[str, int]()
    while True:
        began = time.monotonic()
        before = present
        if worker.rank == 0:
            if not known.missing(progress):
                return finalize(spec, progress, known)
            present = known.present
        else:
            present = spec.folder.sizes()
            if INDEX in present and (dataset := open_derived(spec)):
                return dataset
        if present != before or parts <= present.keys():
            progress()
        raise_if_stop_requested(worker)
        time.sleep(min(MAX_POLL_SECONDS, max(POLL_SECONDS, POLL_SHARE * (time.monotonic() - began))))


def _image_inputs(source: Source) -> Any:
    return getattr(source.samples, "image_inputs", None)


def _binary_rows(maps: npt.NDArray[np.uint16]) -> pa.Array:
    """Return an array with the bytes of each feature map."""
    offsets = np.arange(len(maps) + 1, dtype=np.int64) * maps[0].nbytes
    return pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(maps), [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(maps))]
    )
