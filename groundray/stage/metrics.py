"""Rank metrics: recall@k of matched images and captions, top-k accuracy, average precision. Ties count as errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
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


def average_precisions(
    scores: Float[Tensor, "sample option"], is_true: Bool[Tensor, "sample option"]
) -> Float[Tensor, " option"]:
    """Return the average precision of each option, from 0 to 1; NaN for one that is true of no sample.

    It is the mean, over the samples of which the option is true, of the precision among those that do not score lower
    (the area under the precision-recall curve as a sum, without interpolation). Scores that are all the same, or NaN,
    have the fraction of true ones.
    """
    comparable = scores.nan_to_num(-torch.inf, torch.inf, -torch.inf)
    found = []
    for of_option, is_true_of_option in zip(comparable.T, is_true.T, strict=True):
        true = of_option[is_true_of_option]
        found.append((_not_lower(true, true).double() / _not_lower(of_option, true)).mean())
    return torch.stack(found)


def _not_lower(scores: Float[Tensor, " sample"], thresholds: Float[Tensor, " threshold"]) -> Int[Tensor, " threshold"]:
    """Return the number of scores that are not lower than each threshold."""
    return len(scores) - torch.searchsorted(scores.sort().values, thresholds.contiguous())
