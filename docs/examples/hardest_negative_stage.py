"""A stage of your own: grounding with the hinge loss of the hardest negatives (Faghri et al. 2018, "VSE++: Improving
Visual-Semantic Embeddings with Hard Negatives") instead of NT-Xent."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from groundray.config import Settings
from groundray.loss.grounding_loss import global_similarity
from groundray.stage.contrastive import Encoded, concatenate
from groundray.stage.grounding import GroundingStage
from groundray.stage.protocol import Scalars

MARGIN = 0.2  # of cosines


@dataclass(frozen=True)
class HardestNegativeStage(GroundingStage):
    """A caption's own image is more similar to it than any other of the global batch, by a margin; and vice versa."""

    @staticmethod
    def open(settings: Settings, tokenizer: PreTrainedTokenizerFast) -> HardestNegativeStage:
        """Open the stage over its shards; data, encoder and validation are those of grounding."""
        return HardestNegativeStage(**vars(GroundingStage.open(settings, tokenizer)))

    def loss(self, encoded: list[Encoded]) -> tuple[Tensor, Scalars]:
        # the similarities of all ranks' samples, with gradient; the loss is the same on every rank
        V, W, valid, *_ = concatenate(encoded)
        S = global_similarity(V, W, valid, self.settings.similarity)
        matched = torch.eye(len(S), dtype=torch.bool, device=S.device)
        others = S.masked_fill(matched, -torch.inf)
        hardest = torch.stack([others.amax(dim=0), others.amax(dim=1)])  # for each caption, and for each image
        violations = (MARGIN - S.diagonal() + hardest).clamp(min=0)
        return violations.sum() / len(S), {"violated": (violations.detach() > 0).float().mean()}
