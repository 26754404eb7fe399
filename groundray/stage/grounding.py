"""The grounding stage: captions are matched with their images by match maps (paper, stage 2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from torch import Tensor
from transformers import PreTrainedTokenizerFast

from groundray import config
from groundray.data.batches import CaptionBatch
from groundray.data.stream import Source, Step
from groundray.loss.grounding_loss import grounding_loss
from groundray.model.freezing import freeze, set_dropout, set_language_dropout
from groundray.model.grounded import GroundedModel
from groundray.model.heads import Vocabulary
from groundray.stage.contrastive import Encoded, captioned_images, concatenate, encode_for_match_map, validate
from groundray.stage.metrics import RECALL_NAMES
from groundray.stage.protocol import LOWEST_LOSS, Best, Metrics, Scalars


@dataclass(frozen=True)
class GroundingStage:
    """Two-way NT-Xent of match map similarities over the global batch, on captioned images."""

    settings: config.Grounding
    train: Source
    val: Source
    vocabulary: Vocabulary = field(default_factory=dict)
    name: str = "grounding"
    best: Best = LOWEST_LOSS
    metric_names: tuple[str, ...] = ("loss", *RECALL_NAMES)
    sees_images: bool = True

    @staticmethod
    def open(settings: config.Settings, tokenizer: PreTrainedTokenizerFast) -> GroundingStage:
        """Open the stage over its shards.

        Raises:
            FileNotFoundError, ValueError: shards are missing, of another kind, or fewer than a batch.
        """
        stage: config.Grounding = settings.stage("grounding")
        train, val = (
            captioned_images(settings, stage, tokenizer, shards, shuffle)
            for shards, shuffle in ((stage.train, True), (stage.val, False))
        )
        return GroundingStage(stage, train, val)

    def prepare(self, model: GroundedModel) -> None:
        freeze(model, self.name, self.settings.trains)
        set_dropout(model, self.settings.dropout, self.settings.channel_dropout)
        set_language_dropout(model, self.settings.language_dropout)

    def encode(self, model: GroundedModel, batch: CaptionBatch) -> Encoded:
        return encode_for_match_map(model, batch, self.settings.special_tokens)

    def loss(self, encoded: list[Encoded]) -> tuple[Tensor, Scalars]:
        chunks = [len(chunk.V) for chunk in encoded]
        return grounding_loss(*concatenate(encoded), self.settings.temperature, self.settings.similarity, chunks), {}

    def validate(self, encode: Callable[[CaptionBatch], Encoded], steps: Iterable[Step]) -> Metrics:
        return validate(encode, steps, self.loss, self.settings.similarity)
