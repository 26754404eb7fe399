"""Image-text retrieval of a model: how well a caption finds its image among all images, and the other way round."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from groundray.analysis.measures.proportion import share_of
from groundray.analysis.result import Analysis, Cell, Measure, Table
from groundray.data.batches import CaptionBatch
from groundray.loss.match_map import Kind, similarity
from groundray.model.grounded import GroundedModel
from groundray.stage.contrastive import Encoded, concatenate, encode_for_match_map, encode_for_retrieval
from groundray.stage.metrics import recalls


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


WAYS = {"text_to_image": "caption to image", "image_to_text": "image to caption"}
ROWS = ("recall@1", "recall@5", "recall@10", "mean_rank", "median_rank")
HOW = {"grounding": "match map", "retrieval": "retrieval heads"}


def by_match_map(model: GroundedModel, batches: Iterable[CaptionBatch], kind: Kind, special_tokens: bool) -> Retrieval:
    """Retrieval of a model of the grounding stage, by the match map's similarity, over all images of some batches."""
    return _retrieval([encode_for_match_map(model, batch, special_tokens) for batch in batches], kind)


def by_heads(model: GroundedModel, batches: Iterable[CaptionBatch], special_tokens: bool) -> Retrieval:
    """Retrieval of a model of the retrieval stage, by one vector an image and one a caption."""
    return _retrieval([encode_for_retrieval(model, batch, special_tokens) for batch in batches], "cosine")


def _retrieval(encoded: list[Encoded], kind: Kind) -> Retrieval:
    S = similarity(*concatenate(encoded), kind)
    return Retrieval(len(S), recalls(S), min(1.0, 10 / len(S)))


def analysis(found: Mapping[str, Retrieval], models: Mapping[str, str]) -> Analysis:
    """What was found, for a report.

    Args:
        found: by stage, `grounding` or `retrieval`.
        models: the name of each stage's language stream.
    """
    measures = tuple(
        Measure(
            key=f"{stage}/{way}/recall_at_10",
            name=f"{WAYS[way]}, {HOW[stage]}: recall@10",
            items=one.images,
            values={models[stage]: share_of(one.metrics[f"{way}/recall@10"], one.images)},
        )
        for stage, one in found.items()
        for way in WAYS
    )
    columns = {f"{HOW[stage]}, {WAYS[way]}": (one, way) for stage, one in found.items() for way in WAYS}
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
