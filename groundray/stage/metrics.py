"""Rank metrics: recall@k of matched images and captions, and top-k accuracy. Ties count against the query."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

TOP_K = (1, 5, 10)


class MatchedRanks(NamedTuple):
    """Ranks from 1, in the order of processes; the same on every process, on the host.

    Attributes:
        text_to_image: rank of each caption's image among all images.
        image_to_text: rank of the best of each image's captions. Images without a caption are left out.
    """

    text_to_image: Int[Tensor, " caption"]
    image_to_text: Int[Tensor, " image"]


def ranks(scores: Float[Tensor, "query candidate"], own: Int[Tensor, " query"]) -> Int[Tensor, " query"]:
    """Return the rank of each query's own candidate, from 1: the number of candidates that do not score lower.

    A model that gives all n candidates the same score, or NaN, has rank n, not 1.
    """
    return (~(scores < scores.gather(1, own[:, None]))).sum(dim=1)


def recalls(matched: MatchedRanks, at: Sequence[int] = TOP_K) -> dict[str, float]:
    """Return recall@k (fraction of queries with rank <= k), mean and median rank, in both directions."""
    metrics: dict[str, Tensor] = {}
    for direction, of_queries in matched._asdict().items():
        rank = of_queries.to(torch.float64)
        for k in at:
            metrics[f"{direction}/recall@{k}"] = (rank <= k).double().mean()
        metrics[f"{direction}/mean_rank"] = rank.mean()
        metrics[f"{direction}/median_rank"] = rank.quantile(0.5)
    return dict(zip(metrics, torch.stack(list(metrics.values())).tolist(), strict=True))


RECALL_NAMES = tuple(recalls(MatchedRanks(torch.ones(1, dtype=torch.int64), torch.ones(1, dtype=torch.int64))))


def top_k_counts(
    scores: Float[Tensor, "sample option"], truth: Int[Tensor, " sample"], at: Sequence[int] = TOP_K
) -> Int[Tensor, " k"]:
    """Return the number of samples whose true option has rank <= k, for each k.

    Unlike accuracies, counts can be added up over batches and ranks.
    """
    rank = ranks(scores, truth)
    return torch.stack([(rank <= k).sum() for k in at])
