"""Proportions of items with their intervals, their means over classes of items, and paired tests of proportions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import binomtest

from groundray.analysis.measures.statistics import FEWEST, Estimate, draws, holm, mean, measure, over_items
from groundray.analysis.result import Measure, Value


def proportion_of(share: float, items: int) -> Value:
    """Return a proportion from 0 to 1 with Wilson's 95% interval (1927); without an interval if there are no items."""
    if items == 0:
        return Value(share)
    interval = binomtest(round(share * items), items).proportion_ci(method="wilson")
    return Value(share, float(interval.low), float(interval.high))


def shares(
    key: str,
    name: str,
    hits: Mapping[str, Float[np.ndarray, " item"]],
    published: Mapping[str, float] | None = None,
) -> Measure:
    """Return the share of items that are right, 1 of 0 or 1, for each model, with Wilson's intervals. Differences are
    paired over the items, with McNemar's test."""
    items = len(next(iter(hits.values())))
    paired = measure(key, name, items, over_items(hits, mean), mcnemar_tests(hits), published)
    return replace(paired, values={model: proportion_of(float(one.mean()), items) for model, one in hits.items()})


def mean_over_classes(hits: Float[np.ndarray, " image"], truth: Int[np.ndarray, " image"]) -> Estimate:
    """Return the mean over classes of the share of a class's images that are right, resampled over images.

    Classes that a resample lacks do not count in it. Where all images are right, or none, all resamples are equal, and
    there is no interval.
    """
    value, of_class, counts = _of_classes(hits, truth)
    resampled = [
        _of_classes(hits[row], truth[row])[0] for drawn in draws(len(truth)) for row in drawn if len(truth) >= FEWEST
    ]
    influence = (hits - of_class[truth]) / counts[truth]
    return Estimate(value, np.array(resampled, dtype=np.float64), influence, () if np.ptp(hits) == 0 else None)


def _of_classes(
    hits: Float[np.ndarray, " image"], truth: Int[np.ndarray, " image"]
) -> tuple[float, Float[np.ndarray, " class"], Int[np.ndarray, " class"]]:
    """Return the mean over classes that have images, the share of each class, 0 without images, and their numbers."""
    counts = np.bincount(truth)
    shares = np.bincount(truth, hits) / np.maximum(counts, 1)
    return float(shares[counts > 0].mean()), shares, counts


def mcnemar_tests(hits: Mapping[str, Float[np.ndarray, " item"]]) -> dict[tuple[str, str], float]:
    """Return the two-sided p of McNemar's exact test (1947) for each pair of models, corrected for all (Holm).

    It asks whether, of the items that one model alone has right, each model has half. Without such items p is 1.
    """
    pairs = list(combinations(hits, 2))
    found = []
    for first, other in pairs:
        alone = int((hits[first] > hits[other]).sum()), int((hits[other] > hits[first]).sum())
        found.append(float(binomtest(alone[0], sum(alone)).pvalue) if sum(alone) else 1.0)
    return dict(zip(pairs, holm(found), strict=True))
