"""Retrieval metrics of a square similarity matrix, where image i and caption i belong together."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def ranks(S: Float[Tensor, "query candidate"]) -> Int[Tensor, " query"]:
    """The rank of each query's own candidate (the diagonal), from 1.

    Ties count against the query: a model that finds everything alike has rank n, not 1.
    """
    return (S.diagonal()[:, None] <= S).sum(dim=1)


def recalls(S: Float[Tensor, "image caption"], at: tuple[int, ...] = (1, 5, 10)) -> dict[str, float]:
    """Recall@k (share of queries with rank <= k), mean and median rank, both ways."""
    metrics = {}
    for direction, similarity in (("text_to_image", S.T), ("image_to_text", S)):
        found = ranks(similarity).to(torch.float64)
        for k in at:
            metrics[f"{direction}/recall@{k}"] = (found <= k).double().mean().item()
        metrics[f"{direction}/mean_rank"] = found.mean().item()
        metrics[f"{direction}/median_rank"] = found.quantile(0.5).item()
    return metrics


RECALLS = tuple(recalls(torch.ones(1, 1)))  # the names of these metrics
