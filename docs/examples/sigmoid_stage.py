"""A stage of your own: grounding with a pairwise sigmoid loss (Zhai et al. 2023, "Sigmoid Loss for Language Image
Pre-Training") instead of NT-Xent."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from groundray.config import Settings
from groundray.loss.grounding_loss import global_similarity
from groundray.stage.contrastive import Encoded, concatenate
from groundray.stage.grounding import GroundingStage
from groundray.stage.protocol import Scalars

BIAS = -5.0  # of B x B pairs, B are positive: begin near "no pair matches"


@dataclass(frozen=True)
class SigmoidStage(GroundingStage):
    """Every (image, caption) pair of the global batch is a binary decision: does the caption describe the image?"""

    @staticmethod
    def open(settings: Settings, tokenizer: PreTrainedTokenizerFast) -> SigmoidStage:
        """Open the stage over its shards; data, encoder and validation are those of grounding."""
        return SigmoidStage(**vars(GroundingStage.open(settings, tokenizer)))

    def loss(self, encoded: list[Encoded]) -> tuple[Tensor, Scalars]:
        # the similarities of all ranks' samples, with gradient; the loss is the same on every rank
        S = global_similarity(*concatenate(encoded), self.settings.similarity)
        logits = S / self.settings.temperature + BIAS
        signs = 2 * torch.eye(len(S), dtype=S.dtype, device=S.device) - 1
        loss = -F.logsigmoid(signs * logits).sum() / len(S)
        positives = logits.detach().diagonal().sigmoid().mean()
        return loss, {"positive_probability": positives}
