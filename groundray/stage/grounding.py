"""The grounding stage: captions are matched with their images, by match maps (paper, stage 2) or pooled vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from torch import Tensor
from transformers import PreTrainedTokenizerFast

from groundray import config
from groundray.data.batches import CaptionBatch
from groundray.data.stream import Source, Step
from groundray.loss.grounding_loss import grounding_loss
from groundray.loss.sigmoid_loss import sigmoid_loss
from groundray.model.freezing import freeze, set_dropout, set_language_dropout
from groundray.model.grounded import GroundedModel
from groundray.model.heads import GroundingHeads, Vocabulary
from groundray.stage.contrastive import Encoded, captioned_images, concatenate, encode_for_grounding, validate
from groundray.stage.metrics import RECALL_NAMES
from groundray.stage.protocol import LOWEST_LOSS, Best, Metrics, Scalars


@dataclass(frozen=True)
class GroundingStage:
    """A contrastive loss of all pairs of the global batch, on captioned images: two-way NT-Xent, or a sigmoid."""

    settings: config.Grounding
    train: Source
    val: Source
    vocabulary: Vocabulary = field(default_factory=dict)
    name: str = "grounding"
    best: Best = LOWEST_LOSS
    metric_names: tuple[str, ...] = ("loss", *RECALL_NAMES)
    sees_images: bool = True
    takes_keys: bool = False

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
        encoded = encode_for_grounding(model, batch, self.settings.special_tokens, self.settings.alignment)
        temperature, bias = model.head(GroundingHeads).logits(len(batch))
        return encoded._replace(temperature=temperature, bias=bias)

    def loss(self, encoded: list[Encoded]) -> tuple[Tensor, Scalars]:
        V, W, valid, temperature, bias = concatenate(encoded)
        learned = {"temperature": temperature, "bias": bias}
        metrics = {name: rows.detach().mean() for name, rows in learned.items() if rows is not None}
        chunks, kind = [len(chunk.V) for chunk in encoded], self.settings.similarity
        temperature = self.settings.temperature if temperature is None else temperature
        if self.settings.loss == "sigmoid":
            assert bias is not None, "the heads lack the bias of the sigmoid loss (build.learn_logits)"
            return sigmoid_loss(V, W, valid, temperature, bias, kind, chunks), metrics
        return grounding_loss(V, W, valid, temperature, kind, chunks), metrics

    def validate(self, encode: Callable[[CaptionBatch], Encoded], steps: Iterable[Step]) -> Metrics:
        return validate(encode, steps, self.loss, self.settings.similarity)
