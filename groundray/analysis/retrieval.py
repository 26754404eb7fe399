"""Image-text retrieval of a model: how well a caption finds its image among all images, and the other way round."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from groundray.data.batches import CaptionBatch
from groundray.loss.match_map import Kind, similarity
from groundray.model.grounded import GroundedModel
from groundray.stage import grounding, retrieval
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


def by_match_map(model: GroundedModel, batches: Iterable[CaptionBatch], kind: Kind, special_tokens: bool) -> Retrieval:
    """Retrieval of a model of the grounding stage, by the match map's similarity, over all images of some batches."""
    return _retrieval([grounding.encode(model, batch, special_tokens) for batch in batches], kind)


def by_heads(model: GroundedModel, batches: Iterable[CaptionBatch], special_tokens: bool) -> Retrieval:
    """Retrieval of a model of the retrieval stage, by one vector an image and one a caption."""
    return _retrieval([retrieval.encode(model, batch, special_tokens) for batch in batches], "cosine")


def _retrieval(encoded: list[grounding.Encoded], kind: Kind) -> Retrieval:
    S = similarity(*grounding.concatenate(encoded), kind)
    return Retrieval(len(S), recalls(S), min(1.0, 10 / len(S)))
