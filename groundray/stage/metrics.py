"""Rank metrics: recall@k of matched images and captions, and top-k accuracy. Ties count against the query."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

TOP_K = (1, 5, 10)


def ranks(scores: Float[Tensor, "query candidate"], own: Int[Tensor, " query"]) -> Int[Tensor, " query"]:
    """Return the rank of each query's own candidate, from 1: the number of candidates that score at least as high.

    A model that gives all n candidates the same score has rank n, not 1.
    """
    return (scores >= scores.gather(1, own[:, None])).sum(dim=1)


def recalls(S: Float[Tensor, "sample sample"], at: Sequence[int] = TOP_K) -> dict[str, float]:
    """Return recall@k (fraction of queries with rank <= k), mean and median rank, in both directions.

    Args:
        S: similarity of each image (row) and each caption (column); image i and caption i belong together.
    """
    metrics: dict[str, Tensor] = {}
    own = torch.arange(len(S), device=S.device)
    for direction, similarity in (("text_to_image", S.T), ("image_to_text", S)):
        rank = ranks(similarity, own).to(torch.float64)
        for k in at:
            metrics[f"{direction}/recall@{k}"] = (rank <= k).double().mean()
        metrics[f"{direction}/mean_rank"] = rank.mean()
        metrics[f"{direction}/median_rank"] = rank.quantile(0.5)
    return dict(zip(metrics, torch.stack(list(metrics.values())).tolist(), strict=True))


RECALL_NAMES = tuple(recalls(torch.ones(1, 1)))


def top_k_counts(
    scores: Float[Tensor, "sample option"], truth: Int[Tensor, " sample"], at: Sequence[int] = TOP_K
) -> Int[Tensor, " k"]:
    """Return the number of samples whose true option has rank <= k, for each k.

    Unlike accuracies, counts can be added up over batches and ranks.
    """
    rank = ranks(scores, truth)
    return torch.stack([(rank <= k).sum() for k in at])
