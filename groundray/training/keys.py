"""Keys: what retrieval heads take of frozen streams, computed once.

Where a stage trains retrieval heads alone and reads trunk features, two passes store the rest of what is frozen: the
keys of the cross-modal attention at each position of an image, and its queries at each token of all captions of an
image. Training then computes the heads alone. Both are derived data sets (`data/derived.py`) beside the trunk features,
with keys that follow from the features, the captions, the weights and the code, as theirs do (`trunk_features.py`).

They are float32 numbers, as the streams give them. An image's keys are the same bits as without the cache. The last
bits of a caption's queries depend on which captions are computed together, which is another thing at each step without
the cache.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int

from groundray import arithmetic
from groundray.config import Settings
from groundray.data import batches, image_inputs, tokenization
from groundray.data.batches import ImageBatch
from groundray.data.captions import CaptionSamples
from groundray.data.derived import DerivedDataset, Encoder
from groundray.data.image_inputs import FeatureMaps
from groundray.data.row_groups import read_group
from groundray.data.schema import INDEX, Dataset
from groundray.data.stream import Source
from groundray.data.tokenization import WordPieceTokenizer
from groundray.distributed import gather_strings
from groundray.model import encoder_layout, language_stream, packing, relation_module, visual_stream
from groundray.model.grounded import GroundedModel
from groundray.model.relation_module import RelationalModule
from groundray.model.weights import architecture, digest
from groundray.stage.contrastive import image_keys, text_queries
from groundray.stage.protocol import Stage
from groundray.storage.cache_key import cache_key
from groundray.storage.folder import Folder
from groundray.training import trunk_features
from groundray.training.layout import features_folder, folder_of
from groundray.training.trunk_features import agree_on_cache, make_together
from groundray.training.worker import Worker

FLOAT_BYTES = 4
LARGER_PLACE = "set features.folder to a larger place, or features.keys to never"
SIZES = "sizes"  # key of `source` in the queries' `dataset.json`
Sizes = tuple[int, int]  # the most captions of an image that are drawn from, and the most tokens of one of them


def refusal(stage: Stage, settings: Settings) -> str | None:
    """Return why a stage cannot, or need not, read keys; None where it does."""
    if settings.features.keys == "never":
        return "features.keys is never"
    if not stage.takes_keys:
        return "it trains more than retrieval heads"
    if stage.train.features is None and (reason := trunk_features.refusal(stage, settings)):
        return f"it reads no trunk features: {reason}"
    if settings.scaling.use_gpu:
        return "a GPU computes them about as fast as they are read, and they take more room than trunk features"
    if stage.settings.precision not in ("float32", "tf32"):
        return f"they are float32, and its precision is {stage.settings.precision}"
    rows = stage.train.dataset.rows
    captions, visits = stage.train.dataset.counts.get("captions", rows), stage.settings.epochs * rows
    if visits < captions:
        return f"its {stage.settings.epochs} epochs visit {visits:,} captions, and there are {captions:,}"
    return None


def with_keys(stage: Stage, settings: Settings, model: GroundedModel, worker: Worker) -> Stage:
    """Return the stage reading keys, which the ranks make together where they are missing; the stage itself where it
    does not read trunk features, or keys do not fit.

    Args:
        stage: with its trunk features attached (`trunk_features.with_features`).
    """
    if refusal(stage, settings) or stage.train.features is None:
        return stage
    model.eval()
    sources: dict[str, Source] = {"train": stage.train, "val": stage.val}
    sizes: dict[str, Sizes] = {}
    wanted: dict[str, list[tuple[DerivedDataset, Encoder[Any]]]] = {}
    for split, source in sources.items():
        key = _queries_key(source, model)
        folder = features_folder(settings) / key[:16]
        sizes[split] = _agreed_sizes(source, folder, worker)
        wanted[split] = [_keys(source, settings, model), _queries(source, folder, key, sizes[split], model)]
    specs = [spec for both in wanted.values() for spec, _ in both]
    if not agree_on_cache(stage.name, specs, settings, worker, "keys", "computes keys, and does not store them"):
        return stage
    work = [(f"{stage.name}.{split}", spec, encoder) for split, both in wanted.items() for spec, encoder in both]
    made = iter(make_together(work, worker, folder_of(settings)))
    attached: dict[str, Source] = {}
    for split, source in sources.items():
        keyed = source.with_image_inputs(FeatureMaps((model.visual.positions, model.width), "float32"), next(made))
        samples: Any = replace(
            _samples(source), image_inputs=_samples(keyed).image_inputs, queries=(*sizes[split], model.width)
        )
        attached[split] = replace(keyed, samples=samples, queries=next(made))
    return replace(stage, **attached)  # type: ignore[type-var]


def _keys(source: Source, settings: Settings, model: GroundedModel) -> tuple[DerivedDataset, Encoder[Any]]:
    """Return the data set of a source's keys of images, and its encoder."""
    assert source.features
    parts = (model.visual.embedder, model.visual.attention, model.head(RelationalModule).attention.key)
    inputs = {
        "features": source.features.fingerprint,
        "weights": [digest(part) for part in parts],
        "heads": model.visual.heads,
    }
    code = (visual_stream, image_keys, relation_module, image_inputs, batches, _KeyEncoder, _rows)
    key = cache_key(inputs, code, device="cpu", stored="float32")
    spec = DerivedDataset(
        source.features,
        features_folder(settings) / key[:16],
        key,
        "image_keys",
        bytes_per_row=FLOAT_BYTES * model.visual.positions * model.width,
        title="image keys",
        out_of_space_hint=LARGER_PLACE,
    )
    return spec, _KeyEncoder(model, FeatureMaps(tuple(source.features.source["shape"])))


def _queries_key(source: Source, model: GroundedModel) -> str:
    """Return a hash of all that a source's queries of captions depend on, and so their sizes."""
    samples = _samples(source)
    inputs = {
        "data": source.dataset.fingerprint,
        "captions": _drawn_from(samples),
        "weights": [digest(part) for part in (model.language, model.head(RelationalModule).attention.query)],
        "encoder": architecture(model.language.encoder.config),
        "tokenizer": [samples.tokenizer.json, samples.tokenizer.max_tokens],
    }
    code = (language_stream, packing, encoder_layout, tokenization, text_queries, relation_module)
    return cache_key(inputs, (*code, _Captions, _QueryEncoder, _rows), device="cpu", stored="float32")


def _queries(
    source: Source, folder: Folder, key: str, sizes: Sizes, model: GroundedModel
) -> tuple[DerivedDataset, Encoder[Any]]:
    """Return the data set of a source's queries of captions, and its encoder."""
    spec = DerivedDataset(
        source.dataset,
        folder,
        key,
        "caption_queries",
        bytes_per_row=FLOAT_BYTES * prod(sizes) * model.width,
        provenance={SIZES: list(sizes)},
        title="caption queries",
        out_of_space_hint=LARGER_PLACE,
    )
    return spec, _QueryEncoder(model, _samples(source).tokenizer, sizes)


@dataclass(frozen=True)
class _KeyEncoder:
    """Turns feature maps into keys."""

    model: GroundedModel
    maps: FeatureMaps
    columns: tuple[str, ...] = ("image",)

    def decode(self, table: pa.Table) -> torch.Tensor:
        return ImageBatch.of_images([], self.maps.arrays(table)).images

    def encode(self, item: torch.Tensor) -> dict[str, pa.Array]:
        with arithmetic.using("float32", "cpu"):
            return {"image": _rows(image_keys(self.model, item).numpy())}


@dataclass(frozen=True)
class _Captions:
    """The first captions of some images as word pieces, image by image.

    Attributes:
        counts: number of captions of each image.
    """

    counts: Int[np.ndarray, " image"]
    tokens: Int[np.ndarray, "caption slot"]
    lengths: Int[np.ndarray, " caption"]

    @staticmethod
    def of(table: pa.Table, tokenizer: WordPieceTokenizer, most: int | None) -> _Captions:
        kept = [captions[:most] for captions in table["captions"].to_pylist()]
        tokens, lengths = tokenizer.encode([caption for captions in kept for caption in captions])
        return _Captions(np.array([len(captions) for captions in kept]), tokens, lengths)


@dataclass(frozen=True)
class _QueryEncoder:
    """Turns the captions of images into queries, 0 at padding and in place of captions that an image lacks."""

    model: GroundedModel
    tokenizer: WordPieceTokenizer
    sizes: Sizes
    columns: tuple[str, ...] = ("captions",)

    def decode(self, table: pa.Table) -> _Captions:
        return _Captions.of(table, self.tokenizer, self.sizes[0])

    def encode(self, item: _Captions) -> dict[str, pa.Array]:
        captions, slots = self.sizes
        tokens = torch.from_numpy(item.tokens[:, :slots].astype(np.int64))
        mask = torch.from_numpy(np.arange(slots) < item.lengths[:, None])
        with arithmetic.using("float32", "cpu"):
            queries = text_queries(self.model, tokens, mask).masked_fill(~mask[:, :, None], 0)
        is_caption = np.arange(captions) < item.counts[:, None]
        stored = np.zeros((*is_caption.shape, slots, self.model.width), np.float32)
        stored[is_caption] = queries.numpy()
        return {"queries": _rows(stored)}


def _agreed_sizes(source: Source, folder: Folder, worker: Worker) -> Sizes:
    """Return the sizes of a source's queries on every rank: those that complete queries have recorded, else of the
    captions, of which each rank reads its share."""
    recorded = json.loads(gather_strings(json.dumps(_recorded_sizes(folder) if worker.rank == 0 else None))[0])
    if recorded:
        captions, tokens = recorded
        return captions, tokens
    groups = range(worker.rank, len(source.dataset.groups), worker.world_size)
    found = [json.loads(text) for text in gather_strings(json.dumps(_text_sizes(source, groups, worker)))]
    captions, tokens = (max(of_ranks) for of_ranks in zip(*found, strict=True))
    return captions, tokens


def _recorded_sizes(folder: Folder) -> list[int] | None:
    """Return the sizes of the queries in a folder; None if they are not complete."""
    try:
        return Dataset.open(str(folder), "caption_queries").source[SIZES] if folder.exists(INDEX) else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # deleted meanwhile, or damaged
        return None


def _text_sizes(source: Source, groups: Iterable[int], worker: Worker) -> Sizes:
    """Return the sizes of the captions of some row groups: all of them are tokenised."""
    samples, most, longest = _samples(source), 1, 1
    for group in groups:
        table = read_group(source.dataset, group, ["captions"])
        found = _Captions.of(table, samples.tokenizer, _drawn_from(samples))
        most, longest = max(most, int(found.counts.max())), max(longest, int(found.lengths.max()))
        worker.heartbeat()
    return most, longest


def _rows(arrays: Float[np.ndarray, "row ..."]) -> pa.Array:
    """Return a column with the bytes of each row of an array."""
    return pa.array([row.tobytes() for row in arrays], pa.large_binary())


def _drawn_from(samples: CaptionSamples) -> int | None:
    """Return how many of an image's first captions are drawn from; None for all."""
    return None if samples.seed is not None else 1


def _samples(source: Source) -> CaptionSamples:
    samples: Any = source.samples
    return samples
