"""The language stage: masked language modelling on text alone (paper, stage 1; Devlin et al. 2019).

From scratch it pretrains the language stream; from published weights, on captions, it is the text-only control that
grounding has to be better than.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from groundray import config
from groundray.data.batches import TextBatch
from groundray.data.schema import Dataset
from groundray.data.stream import Source, Step
from groundray.data.texts import IGNORE_INDEX, TextSamples
from groundray.data.tokenization import WordPieceTokenizer
from groundray.distributed import sum_over_chunks
from groundray.model.freezing import freeze
from groundray.model.grounded import GroundedModel
from groundray.model.heads import MaskedLanguageHead, Vocabulary
from groundray.stage.protocol import LOWEST_LOSS, Best, Metrics, source


class Predicted(NamedTuple):
    """The logits at each masked place, and the word piece that stood there."""

    logits: Float[Tensor, "place word"]
    targets: Int[Tensor, " place"]


@dataclass(frozen=True)
class LanguageStage:
    """Cross-entropy of the masked word pieces, the mean over those of the global batch."""

    settings: config.MaskedLanguage
    train: Source
    val: Source
    vocabulary: Vocabulary
    name: str = "language"
    best: Best = LOWEST_LOSS
    metric_names: tuple[str, ...] = ("loss", "perplexity", "accuracy")
    sees_images: bool = False

    @staticmethod
    def open(settings: config.Settings, tokenizer: PreTrainedTokenizerFast) -> LanguageStage:
        """The stage over its shards, of text or of captions.

        Raises:
            FileNotFoundError, ValueError: shards are missing, of another kind, or fewer than a batch.
        """
        stage: config.MaskedLanguage = settings.stage("language")
        word_pieces = WordPieceTokenizer(tokenizer.backend_tokenizer.to_str(), stage.max_tokens)
        if word_pieces.backend.token_to_id("[MASK]") is None:
            raise ValueError("stage language: the tokenizer has no [MASK]: give another (model.language.tokenizer)")

        def read(shards: str, shuffle: bool) -> Source:
            dataset = Dataset.open(shards, "text", "captions")
            seed = settings.run.seed if shuffle else None
            return source(
                settings, stage, dataset, TextSamples(dataset.kind, word_pieces, stage.mask_fraction, seed), shuffle
            )

        return LanguageStage(stage, read(stage.train, shuffle=True), read(stage.val, shuffle=False), {})

    def prepare(self, model: GroundedModel) -> None:
        freeze(model, self.name, self.settings.trains)

    def encode(self, model: GroundedModel, batch: TextBatch) -> Predicted:
        masked = batch.targets != IGNORE_INDEX
        embeddings = model.language.bert.embeddings.word_embeddings.weight
        if not masked.any():
            return Predicted(embeddings.new_zeros(0, len(embeddings)), batch.targets[masked])
        hidden = model.language(batch.tokens, batch.attention_mask)[masked]
        logits = model.head(MaskedLanguageHead)(hidden, embeddings)
        return Predicted(logits.float() if logits.dtype == torch.bfloat16 else logits, batch.targets[masked])

    def loss(self, encoded: list[Predicted]) -> tuple[Tensor, Metrics]:
        loss, places = sum_over_chunks([_sums(one) for one in encoded])
        return loss / places.clamp(min=1), {}

    def validate(self, encode: Callable[[TextBatch], Predicted], steps: Iterable[Step]) -> Metrics:
        """Loss a masked word piece, its exponential (perplexity), and the share of them that are predicted right."""
        counted = []
        for step in steps:
            for _, batch in step.chunks:
                one = encode(batch)
                right = (one.logits.argmax(dim=1) == one.targets).sum()
                counted.append(torch.cat([_sums(one), right[None]]))
        loss, places, right = sum_over_chunks([torch.stack(counted).double().sum(dim=0)]).tolist()
        if places == 0:
            raise ValueError(f"{self.settings.val}: no word piece is masked: validate on more text")
        return {"loss": loss / places, "perplexity": math.exp(min(loss / places, 700.0)), "accuracy": right / places}


def _sums(one: Predicted) -> Tensor:
    """The sum of losses, and how many there are."""
    loss = F.cross_entropy(one.logits, one.targets, reduction="sum")
    return torch.stack([loss, loss.new_tensor(len(one.targets))])
