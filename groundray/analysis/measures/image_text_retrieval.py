"""Image-text retrieval of a model, in both directions: recall@k and ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from groundray.analysis.measures.proportion import proportion_of
from groundray.analysis.result import Analysis, Cell, Measure, Table
from groundray.data.batches import CaptionBatch
from groundray.loss.match_map import Kind
from groundray.model.grounded import GroundedModel
from groundray.stage.contrastive import Alignment, Encoded, encode_for_grounding, encode_for_retrieval, pool_recalls


@dataclass(frozen=True)
class Retrieval:
    """Recall@k, mean and median rank in both directions; an image's first caption is its query.

    Attributes:
        images: number of images in the pool.
        metrics: `text_to_image/recall@1` and so on: fractions from 0 to 1, and ranks from 1.
        chance: recall@10 of random ranks.
        how: what images and captions are compared by.
    """

    images: int
    metrics: dict[str, float]
    chance: float
    how: str


WAYS = {"text_to_image": "caption to image", "image_to_text": "image to caption"}
ROWS = ("recall@1", "recall@5", "recall@10", "mean_rank", "median_rank")
HOW: dict[Alignment, str] = {"match_map": "match map", "pooled": "pooled vectors"}


def by_grounding(
    model: GroundedModel, batches: Iterable[CaptionBatch], kind: Kind, special_tokens: bool, alignment: Alignment
) -> Retrieval:
    """Measure retrieval as the grounding stage was trained, over all images of the batches."""
    encoded = (encode_for_grounding(model, batch, special_tokens, alignment) for batch in batches)
    return _retrieval(model, encoded, kind, HOW[alignment])


def by_heads(model: GroundedModel, batches: Iterable[CaptionBatch], special_tokens: bool) -> Retrieval:
    """Measure retrieval by the vectors of the retrieval stage, over all images of the batches."""
    encoded = (encode_for_retrieval(model, batch, special_tokens) for batch in batches)
    return _retrieval(model, encoded, "cosine", "retrieval heads")


def _retrieval(model: GroundedModel, encoded: Iterable[Encoded], kind: Kind, how: str) -> Retrieval:
    pool = [batch.on_host() for batch in encoded]
    images = sum(len(batch.V) for batch in pool)
    return Retrieval(images, pool_recalls(pool, kind, next(model.parameters()).device), min(1.0, 10 / images), how)


def analysis(found: Mapping[str, Retrieval], models: Mapping[str, str]) -> Analysis:
    """Return the results as an analysis.

    Args:
        found: results by stage, `grounding` or `retrieval`.
        models: name of each stage's language stream.
    """
    measures = tuple(
        Measure(
            key=f"{stage}/{way}/recall_at_10",
            name=f"{WAYS[way]}, {one.how}: recall@10",
            items=one.images,
            values={models[stage]: proportion_of(one.metrics[f"{way}/recall@10"], one.images)},
        )
        for stage, one in found.items()
        for way in WAYS
    )
    columns = {f"{one.how}, {WAYS[way]}": (one, way) for one in found.values() for way in WAYS}
    rows: list[tuple[Cell, ...]] = [
        (name.replace("_", " "), *(one.metrics[f"{way}/{name}"] for one, way in columns.values())) for name in ROWS
    ]
    rows.append(("recall@10 of random ranks", *(one.chance for one, _ in columns.values())))
    return Analysis(
        "retrieval",
        "How well a caption finds its image among all images, and an image its caption. Each image's first caption is "
        "its query; intervals are Wilson's (1927), over queries.",
        measures,
        (Table("Recall and ranks", ("", *columns), tuple(rows)),),
    )
