"""The grounding stage: captions meet their images in a match map (paper, stage 2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from groundray import config
from groundray.data.batches import CaptionBatch
from groundray.data.captions import CaptionSamples
from groundray.data.image_inputs import CentreCrop
from groundray.data.schema import Dataset
from groundray.data.stream import Source, Step
from groundray.data.tokenization import WordPieceTokenizer
from groundray.loss.grounding_loss import global_similarity, grounding_loss
from groundray.loss.match_map import Kind
from groundray.loss.nt_xent import two_way_nt_xent
from groundray.model.freezing import freeze, set_dropout
from groundray.model.grounded import GroundedModel
from groundray.model.heads import GroundingHeads, Vocabulary
from groundray.stage.protocol import LOWEST_LOSS, Best, Metrics, source
from groundray.stage.recall import RECALLS, recalls


class Encoded(NamedTuple):
    """Embeddings of images (V) and captions (W), and which tokens of the captions count."""

    V: Float[Tensor, "sample position dim"]
    W: Float[Tensor, "sample token dim"]
    valid: Bool[Tensor, "sample token"]


@dataclass(frozen=True)
class GroundingStage:
    """Match map and two-way NT-Xent over the global batch, on captioned images."""

    settings: config.Grounding
    train: Source
    val: Source
    vocabulary: Vocabulary = field(default_factory=dict)
    name: str = "grounding"
    best: Best = LOWEST_LOSS
    metric_names: tuple[str, ...] = ("loss", *RECALLS)
    sees_images: bool = True

    @staticmethod
    def open(settings: config.Settings, tokenizer: PreTrainedTokenizerFast) -> GroundingStage:
        """The stage over its shards.

        Raises:
            FileNotFoundError, ValueError: shards are missing, of another kind, or fewer than a batch.
        """
        stage: config.Grounding = settings.stage("grounding")
        train, val = (
            captions(settings, stage, tokenizer, shards, shuffle)
            for shards, shuffle in ((stage.train, True), (stage.val, False))
        )
        return GroundingStage(stage, train, val)

    def prepare(self, model: GroundedModel) -> None:
        freeze(model, self.name, self.settings.trains)
        set_dropout(model, self.settings.dropout, self.settings.channel_dropout)

    def encode(self, model: GroundedModel, batch: CaptionBatch) -> Encoded:
        return encode(model, batch, self.settings.special_tokens)

    def loss(self, encoded: list[Encoded]) -> tuple[Tensor, Metrics]:
        plan, settings = self.train.plan, self.settings
        chunk = plan.batch_size // plan.chunks
        return grounding_loss(*concatenate(encoded), settings.temperature, settings.similarity, chunk), {}

    def validate(self, encode: Callable[[CaptionBatch], Encoded], steps: Iterable[Step]) -> Metrics:
        """Loss a sample over batches in the training size, and recall@k among all validation images."""
        return validate(encode, steps, self.settings.temperature, self.settings.similarity)


def captions(
    settings: config.Settings,
    stage: config.Grounding | config.Retrieval,
    tokenizer: PreTrainedTokenizerFast,
    shards: str,
    shuffle: bool,
) -> Source:
    """Captioned images: shuffled with a caption drawn at each visit, or in their own order with the first caption."""
    samples = CaptionSamples(
        tokenizer=WordPieceTokenizer(tokenizer.backend_tokenizer.to_str(), stage.max_tokens),
        image_inputs=CentreCrop(stage.resize or settings.model.image_size, settings.model.image_size),
        seed=settings.run.seed if shuffle else None,
    )
    return source(settings, stage, Dataset.open(shards, "captions"), samples, shuffle)


def encode(model: GroundedModel, batch: CaptionBatch, special_tokens: bool) -> Encoded:
    """The embeddings of a batch, to be matched with each other; a batch of no sample gives none."""
    if len(batch) == 0:
        return nothing(model, batch)
    heads = model.head(GroundingHeads)
    V = heads.visual(model.visual(batch.images))
    W = heads.language(model.language(batch.tokens, batch.attention_mask))
    if V.dtype == torch.bfloat16:
        V, W = V.float(), W.float()
    return Encoded(V, W, counted_tokens(batch.attention_mask, special_tokens))


def nothing(model: GroundedModel, batch: CaptionBatch) -> Encoded:
    """The embeddings of no sample."""
    V = model.visual.empty()
    return Encoded(V, V.new_zeros(0, 0, model.width), batch.attention_mask)


def counted_tokens(mask: Bool[Tensor, "text token"], special_tokens: bool) -> Bool[Tensor, "text token"]:
    """The tokens of a text that count: all, or without [CLS], its first, and [SEP], its last."""
    if special_tokens:
        return mask
    places = torch.arange(mask.shape[1], device=mask.device)
    return mask & (places > 0) & (places < mask.sum(dim=1, keepdim=True) - 1)


def validate(
    encode: Callable[[CaptionBatch], Encoded], steps: Iterable[Step], temperature: float, kind: Kind
) -> Metrics:
    """Loss a sample over batches in the training size, and recall@k among all images."""
    pool, total, samples = [], 0.0, 0
    for step in steps:
        encoded = concatenate([encode(batch) for _, batch in step.chunks])
        S = global_similarity(*encoded, kind)
        total += two_way_nt_xent(S, temperature).item() * len(S)
        samples += len(S)
        pool.append(encoded)
    return {"loss": total / samples, **recalls(global_similarity(*concatenate(pool), kind))}


def concatenate(encoded: list[Encoded]) -> Encoded:
    """One `Encoded` of several; captions are padded to the longest of them all."""
    V, W, valid = zip(*encoded, strict=True)
    return Encoded(torch.cat(V), _cat_padded(W), _cat_padded(valid))


def _cat_padded(parts: tuple[Tensor, ...]) -> Tensor:
    longest = max(part.shape[1] for part in parts)
    return torch.cat([_pad(part, longest) for part in parts])


def _pad(part: Tensor, length: int) -> Tensor:
    missing = length - part.shape[1]
    return torch.cat([part, part.new_zeros(part.shape[0], missing, *part.shape[2:])], dim=1) if missing else part
