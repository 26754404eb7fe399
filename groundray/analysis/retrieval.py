"""Image-text retrieval of a model: how well a caption finds its image among all images, and the other way round."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from groundray.data.batches import CaptionBatch
from groundray.loss.match_map import Kind, similarity
from groundray.model.grounded import GroundedModel
from groundray.stage.grounding import concatenate, encode
from groundray.stage.recall import recalls


@dataclass(frozen=True)
class Retrieval:
    """Recall@k, mean and median rank both ways; each image's first caption is its query.

    Attributes:
        images: the size of the pool.
        metrics: `text_to_image/recall@1` and so on: shares from 0 to 1, and ranks from 1.
        chance: the recall@10 of random ranks.
    """

    images: int
    metrics: dict[str, float]
    chance: float


@torch.no_grad()
def retrieval(model: GroundedModel, batches: Iterable[CaptionBatch], kind: Kind, special_tokens: bool) -> Retrieval:
    """The retrieval metrics of a model over all images and first captions of some batches."""
    model.eval()
    V, W, valid = concatenate([encode(model, batch, special_tokens) for batch in batches])
    S = similarity(V, W, valid, kind)
    return Retrieval(len(S), recalls(S), min(1.0, 10 / len(S)))
