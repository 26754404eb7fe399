"""The retrieval stage: one vector an image and one a caption, on frozen streams, for image search (paper)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from groundray import config
from groundray.data.batches import CaptionBatch
from groundray.data.stream import Source, Step
from groundray.loss.grounding_loss import grounding_loss
from groundray.model.freezing import freeze
from groundray.model.grounded import GroundedModel
from groundray.model.heads import RetrievalHeads, Vocabulary
from groundray.model.relation_module import RelationalModule
from groundray.model.visual_stream import Images
from groundray.stage.grounding import Encoded, captions, concatenate, counted_tokens, nothing, validate
from groundray.stage.protocol import LOWEST_LOSS, Best, Metrics
from groundray.stage.recall import RECALLS


@dataclass(frozen=True)
class RetrievalStage:
    """Two-way NT-Xent of the cosine between an image's vector and a caption's, over the global batch."""

    settings: config.Retrieval
    train: Source
    val: Source
    vocabulary: Vocabulary = field(default_factory=dict)
    name: str = "retrieval"
    best: Best = LOWEST_LOSS
    metric_names: tuple[str, ...] = ("loss", *RECALLS)
    sees_images: bool = True

    @staticmethod
    def open(settings: config.Settings, tokenizer: PreTrainedTokenizerFast) -> RetrievalStage:
        """The stage over its shards.

        Raises:
            FileNotFoundError, ValueError: shards are missing, of another kind, or fewer than a batch.
        """
        stage: config.Retrieval = settings.stage("retrieval")
        train, val = (
            captions(settings, stage, tokenizer, shards, shuffle)
            for shards, shuffle in ((stage.train, True), (stage.val, False))
        )
        return RetrievalStage(stage, train, val)

    def prepare(self, model: GroundedModel) -> None:
        freeze(model, self.name)
        model.head(RetrievalHeads).set_dropout(self.settings.dropout)

    def encode(self, model: GroundedModel, batch: CaptionBatch) -> Encoded:
        return encode(model, batch, self.settings.special_tokens)

    def loss(self, encoded: list[Encoded]) -> tuple[Tensor, Metrics]:
        plan = self.train.plan
        chunk = plan.batch_size // plan.chunks
        return grounding_loss(*concatenate(encoded), self.settings.temperature, "cosine", chunk), {}

    def validate(self, encode: Callable[[CaptionBatch], Encoded], steps: Iterable[Step]) -> Metrics:
        """Loss a sample over batches in the training size, and recall@k among all validation images."""
        return validate(encode, steps, self.settings.temperature, "cosine")


def encode(model: GroundedModel, batch: CaptionBatch, special_tokens: bool) -> Encoded:
    """The vectors of a batch, as images of one position and captions of one token: their match map is their cosine."""
    if len(batch) == 0:
        empty = nothing(model, batch)
        return Encoded(empty.V[:, :1], empty.V[:, :1], empty.V.new_zeros(0, 1, dtype=torch.bool))
    images = image_vectors(model, batch.images)
    texts = text_vectors(model, batch.tokens, batch.attention_mask, special_tokens)
    ones = torch.ones(len(batch), 1, dtype=torch.bool, device=images.device)
    return Encoded(images[:, None], texts[:, None], ones)


def image_vectors(model: GroundedModel, images: Images) -> Float[Tensor, "image dim"]:
    """One vector an image, of length 1, in at least float32."""
    with torch.no_grad():  # all of it is frozen
        keys = model.head(RelationalModule).attention.key(model.visual(images))
    vectors = model.head(RetrievalHeads).images(keys)
    return vectors.float() if vectors.dtype == torch.bfloat16 else vectors


def text_vectors(
    model: GroundedModel, tokens: Int[Tensor, "text token"], mask: Bool[Tensor, "text token"], special_tokens: bool
) -> Float[Tensor, "text dim"]:
    """One vector a text, of length 1, in at least float32."""
    with torch.no_grad():
        queries = model.head(RelationalModule).attention.query(model.language(tokens, mask))
    vectors = model.head(RetrievalHeads).texts(queries, counted_tokens(mask, special_tokens))
    return vectors.float() if vectors.dtype == torch.bfloat16 else vectors
