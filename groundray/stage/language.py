"""The language stage: masked language modelling on text alone (paper, stage 1; Devlin et al. 2019).

From random weights it pretrains the language stream. From published weights, on captions, it gives the text-only
control with which grounded models are compared.
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
from groundray.device_copy import to_device
from groundray.distributed import sum_over_chunks
from groundray.model.freezing import freeze, set_language_dropout
from groundray.model.grounded import GroundedModel
from groundray.model.heads import MaskedLanguageHead, Vocabulary
from groundray.model.pooling import at_least_float32
from groundray.stage.protocol import LOWEST_LOSS, Best, Metrics, Scalars, source


class Predicted(NamedTuple):
    """Logits at each masked token, and the id of its word piece before it was masked."""

    logits: Float[Tensor, "token word"]
    targets: Int[Tensor, " token"]


@dataclass(frozen=True)
class LanguageStage:
    """Cross-entropy of the masked word pieces, the mean over those of the global batch, on text or captions."""

    settings: config.MaskedLanguage
    train: Source
    val: Source
    vocabulary: Vocabulary
    name: str = "language"
    best: Best = LOWEST_LOSS
    metric_names: tuple[str, ...] = ("loss", "perplexity", "accuracy")
    sees_images: bool = False
    takes_keys: bool = False

    @staticmethod
    def open(settings: config.Settings, tokenizer: PreTrainedTokenizerFast) -> LanguageStage:
        """Open the stage over its shards.

        Raises:
            FileNotFoundError, ValueError: shards are missing, of another kind, or fewer than a batch; or the tokenizer
                has no mask token.
        """
        stage: config.MaskedLanguage = settings.stage("language")
        word_pieces = WordPieceTokenizer.of(tokenizer, stage.max_tokens)
        if word_pieces.mask_id is None:
            raise ValueError(
                "stage language: the tokenizer has no mask token, as [MASK]: give another (model.language.tokenizer), "
                "or leave the stage out (stages)"
            )

        def read(shards: str, shuffle: bool) -> Source:
            dataset = Dataset.open(shards, "text", "captions")
            seed = settings.run.seed if shuffle else None
            return source(
                settings, stage, dataset, TextSamples(dataset.kind, word_pieces, stage.mask_fraction, seed), shuffle
            )

        return LanguageStage(stage, read(stage.train, shuffle=True), read(stage.val, shuffle=False), {})

    def prepare(self, model: GroundedModel) -> None:
        freeze(model, self.name, self.settings.trains)
        set_language_dropout(model, self.settings.language_dropout)

    def encode(self, model: GroundedModel, batch: TextBatch) -> Predicted:
        embeddings = model.language.encoder.get_input_embeddings().weight
        every = batch.targets.flatten()
        masked = (every != IGNORE_INDEX).nonzero().squeeze(1)
        if len(masked) == 0:
            return Predicted(embeddings.new_zeros(0, len(embeddings)), to_device(every[masked], embeddings.device))
        masked, targets = to_device(torch.stack([masked, every[masked]]), embeddings.device)
        hidden = model.language(batch.tokens, batch.attention_mask).flatten(0, 1).index_select(0, masked)
        logits = model.head(MaskedLanguageHead)(hidden, embeddings)
        return Predicted(at_least_float32(logits), targets)

    def loss(self, encoded: list[Predicted]) -> tuple[Tensor, Scalars]:
        loss, tokens = sum_over_chunks([_loss_and_count(chunk) for chunk in encoded])
        return loss / tokens.clamp(min=1), {}

    def validate(self, encode: Callable[[TextBatch], Predicted], steps: Iterable[Step]) -> Metrics:
        """Return the mean loss over masked word pieces, its exponential (perplexity), and the accuracy, from 0 to 1.

        Raises:
            ValueError: no word piece is masked.
        """
        sums = []
        for step in steps:
            for _, batch in step.chunks:
                predicted = encode(batch)
                correct = (predicted.logits.argmax(dim=1) == predicted.targets).sum()
                sums.append(torch.cat([_loss_and_count(predicted), correct[None]]))
        loss, tokens, correct = sum_over_chunks([torch.stack(sums).double().sum(dim=0)]).tolist()
        if tokens == 0:
            raise ValueError(f"{self.settings.val}: no word piece is masked: validate on more text")
        return {"loss": loss / tokens, "perplexity": math.exp(min(loss / tokens, 700.0)), "accuracy": correct / tokens}


def _loss_and_count(predicted: Predicted) -> Tensor:
    """Return the sum of the losses of masked tokens, and their number."""
    loss = F.cross_entropy(predicted.logits, predicted.targets, reduction="sum")
    return torch.stack([loss, loss.new_full((), len(predicted.targets))])
