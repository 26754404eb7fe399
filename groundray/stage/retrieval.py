"""The retrieval stage: one vector for each image and each caption, on frozen streams, for image search (paper)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from torch import Tensor
from transformers import PreTrainedTokenizerFast

from groundray import config
from groundray.data.batches import CaptionBatch
from groundray.data.stream import Source, Step
from groundray.loss.grounding_loss import grounding_loss
from groundray.model.freezing import freeze
from groundray.model.grounded import GroundedModel
from groundray.model.heads import RetrievalHeads, Vocabulary
from groundray.stage.contrastive import Encoded, captioned_images, concatenate, encode_for_retrieval, validate
from groundray.stage.metrics import RECALL_NAMES
from groundray.stage.protocol import LOWEST_LOSS, Best, Metrics, Scalars


@dataclass(frozen=True)
class RetrievalStage:
    """Two-way NT-Xent of the cosine of an image's and a caption's vector over the global batch, on captioned images."""

    settings: config.Retrieval
    train: Source
    val: Source
    vocabulary: Vocabulary = field(default_factory=dict)
    name: str = "retrieval"
    best: Best = LOWEST_LOSS
    metric_names: tuple[str, ...] = ("loss", *RECALL_NAMES)
    sees_images: bool = True
    takes_keys: bool = True

    @staticmethod
    def open(settings: config.Settings, tokenizer: PreTrainedTokenizerFast) -> RetrievalStage:
        """Open the stage over its shards.

        Raises:
            FileNotFoundError, ValueError: shards are missing, of another kind, or fewer than a batch.
        """
        stage: config.Retrieval = settings.stage("retrieval")
        train, val = (
            captioned_images(settings, stage, tokenizer, shards, shuffle)
            for shards, shuffle in ((stage.train, True), (stage.val, False))
        )
        return RetrievalStage(stage, train, val)

    def prepare(self, model: GroundedModel) -> None:
        freeze(model, self.name)
        model.head(RetrievalHeads).set_dropout(self.settings.dropout)

    def encode(self, model: GroundedModel, batch: CaptionBatch) -> Encoded:
        return encode_for_retrieval(model, batch, self.settings.special_tokens)

    def loss(self, encoded: list[Encoded]) -> tuple[Tensor, Scalars]:
        chunks = [len(chunk.V) for chunk in encoded]
        V, W, valid, *_ = concatenate(encoded)
        return grounding_loss(V, W, valid, self.settings.temperature, "cosine", chunks), {}

    def validate(self, encode: Callable[[CaptionBatch], Encoded], steps: Iterable[Step]) -> Metrics:
        return validate(encode, steps, self.loss, "cosine")
