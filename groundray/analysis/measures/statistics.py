"""Figures over items that all models share, with 95% intervals, differences between models, and paired tests.

Intervals are percentile bootstrap intervals (Efron and Tibshirani 1993, chapter 13) of RESAMPLES resamples. Resample r
is the same for every model, so that the difference of two models has an interval of its own, narrower than theirs if
the models agree on the items. Resamples depend on SEED alone: equal items give equal intervals in every run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import scipy.stats
from jaxtyping import Float, Int

from groundray.analysis.result import Difference, Measure, Value
from groundray.rng import pick

SEED = 801
RESAMPLES = 1000
AT_ONCE = 50  # resamples per array: 3 MB for 8,000 items
ROUNDING = 1e-12  # relative differences and variances below it count as zero
FEWEST = 3  # minimum number of items for a correlation or an interval

Scores = Mapping[str, Float[np.ndarray, " item"]]  # scores of the same items, by model

Figure = Callable[[Float[np.ndarray, "resample item"]], Float[np.ndarray, " resample"]]
# a figure of resamples, given how often each item occurs in them
AsDrawn = Callable[[Float[np.ndarray, "resample item"]], Float[np.ndarray, "resample item"]]


@dataclass(frozen=True)
class Estimate:
    """A figure of the items, and of each resample (none for fewer than FEWEST items)."""

    value: float
    resampled: Float[np.ndarray, " resample"]

    def __sub__(self, other: Estimate) -> Estimate:
        return Estimate(self.value - other.value, self.resampled - other.resampled)

    def with_interval(self) -> Value:
        """Return the figure with its interval, over the resamples that have one: a constant has no correlation."""
        defined = self.resampled[np.isfinite(self.resampled)]
        if not len(defined):
            return Value(self.value)
        low, high = np.quantile(defined, (0.025, 0.975)).tolist()
        return Value(self.value, low, high)


def pearson(
    scores: Scores, ratings: Float[np.ndarray, " item"], units: Int[np.ndarray, " item"] | None = None
) -> dict[str, Estimate]:
    """Compute Pearson's r of each model's scores with the ratings.

    Args:
        units: unit of each item, numbered from 0. Items of a unit are resampled together, since they are not
            independent, such as the rows of one word. None: each item is a unit.

    Raises:
        ValueError: there are too few items, an item is not finite, or all are equal.
    """

    def standardised(values: Float[np.ndarray, " item"]) -> AsDrawn:
        standard = (values - values.mean()) / values.std()
        return lambda counts: np.broadcast_to(standard, counts.shape)

    return _correlations(scores, ratings, units, standardised)


def spearman(
    scores: Scores, ratings: Float[np.ndarray, " item"], units: Int[np.ndarray, " item"] | None = None
) -> dict[str, Estimate]:
    """Compute Spearman's rho of each model's scores with the ratings: Pearson's r of ranks, ties at their mean rank.

    Every resample is ranked again. Arguments and errors as for `pearson`.
    """
    return _correlations(scores, ratings, units, lambda values: Ranking.of(values).ranks)


def over_items(scores: Scores, figure: Figure) -> dict[str, Estimate]:
    """Compute a figure of each model's scores, such as `median`.

    Args:
        figure: function of a table (one item per column) that returns a figure for each row.

    Raises:
        ValueError: there are no items, or an item is not finite.
    """
    items = _items(scores)
    if items == 0:
        raise ValueError("expected at least one item, got none")
    _refuse_unfinite(scores)
    drawn = np.concatenate(list(_draws(items))) if items >= FEWEST else np.empty((0, items), dtype=np.int64)
    return {model: Estimate(float(figure(values[None])[0]), figure(values[drawn])) for model, values in scores.items()}


def mean(values: Float[np.ndarray, "resample item"]) -> Float[np.ndarray, " resample"]:
    """Return the mean of each row."""
    return values.mean(axis=-1)


def median(values: Float[np.ndarray, "resample item"]) -> Float[np.ndarray, " resample"]:
    """Return the median of each row."""
    return np.median(values, axis=-1)


def lower_quartile(values: Float[np.ndarray, "resample item"]) -> Float[np.ndarray, " resample"]:
    """Return the lower quartile of each row."""
    return np.quantile(values, 0.25, axis=-1)


def upper_quartile(values: Float[np.ndarray, "resample item"]) -> Float[np.ndarray, " resample"]:
    """Return the upper quartile of each row."""
    return np.quantile(values, 0.75, axis=-1)


QUARTILES = {"lower_quartile": lower_quartile, "median": median, "upper_quartile": upper_quartile}


def paired_tests(scores: Scores) -> dict[tuple[str, str], float]:
    """Return the two-sided p of Wilcoxon's signed-rank test (1945) for each pair of models, corrected for all (Holm).

    Items with equal scores do not count; if all are equal, p is 1. Empty for fewer than FEWEST items.

    Raises:
        ValueError: a score is not finite.
    """
    _refuse_unfinite(scores)
    pairs = list(combinations(scores, 2))
    if _items(scores) < FEWEST:
        return {}
    found = []
    for first, other in pairs:
        differences = scores[other] - scores[first]
        result: Any = scipy.stats.wilcoxon(differences) if differences.any() else None
        found.append(float(result.pvalue) if result else 1.0)
    return dict(zip(pairs, holm(found), strict=True))


def holm(p: Sequence[float]) -> list[float]:
    """Correct p values for the number of tests (Holm 1979), which bounds the family-wise error rate."""
    corrected = [0.0] * len(p)
    highest = 0.0
    for place, number in enumerate(sorted(range(len(p)), key=lambda number: p[number])):
        highest = max(highest, min(1.0, (len(p) - place) * p[number]))
        corrected[number] = highest
    return corrected


def slug(name: str) -> str:
    """Return a name as part of a key, without characters that MLflow refuses, such as `other_perceptual`."""
    return re.sub(r"[^\w.-]+", "_", name)


def measure(
    key: str,
    name: str,
    items: int,
    estimates: Mapping[str, Estimate],
    tests: Mapping[tuple[str, str], float] | None = None,
    published: Mapping[str, float] | None = None,
) -> Measure:
    """Return a measure with the values of all models and their differences.

    Args:
        tests: p by (first, other), from `paired_tests`.
        published: published values by the paper's model.
    """
    differences = tuple(
        Difference(
            first, other, (estimates[other] - estimates[first]).with_interval(), (tests or {}).get((first, other))
        )
        for first, other in combinations(estimates, 2)
    )
    values = {model: estimate.with_interval() for model, estimate in estimates.items()}
    return Measure(key, name, items, values, differences, dict(published or {}))


@dataclass(frozen=True)
class Ranking:
    """Items sorted by value, equal values grouped.

    Attributes:
        order: items sorted by value.
        starts: index in `order` at which each group of equal values begins.
        group: group of each item.
    """

    order: Int[np.ndarray, " item"]
    starts: Int[np.ndarray, " group"]
    group: Int[np.ndarray, " item"]

    @classmethod
    def of(cls, values: Float[np.ndarray, " item"]) -> Ranking:
        distinct, group = np.unique(values, return_inverse=True)
        order = np.argsort(group, kind="stable")
        return cls(order, np.searchsorted(group[order], np.arange(len(distinct))), group)

    def ranks(self, counts: Float[np.ndarray, "resample item"]) -> Float[np.ndarray, "resample item"]:
        """Return the rank from 1 of each item in a resample, given how often it occurs; ties have their mean rank."""
        sizes = np.add.reduceat(counts[:, self.order], self.starts, axis=1)
        return (np.cumsum(sizes, axis=1) - sizes / 2 + 0.5)[:, self.group]


def _correlations(
    scores: Scores,
    ratings: Float[np.ndarray, " item"],
    units: Int[np.ndarray, " item"] | None,
    prepare: Callable[[Float[np.ndarray, " item"]], AsDrawn],
) -> dict[str, Estimate]:
    """Correlate `prepare` of scores and of ratings, over all items and over each resample."""
    _check(scores, ratings)
    y, *X = (prepare(values) for values in (ratings, *scores.values()))

    def found(counts: Float[np.ndarray, "resample item"]) -> Float[np.ndarray, "model resample"]:
        of_ratings = y(counts)
        return np.stack([_correlation(counts, x(counts), of_ratings) for x in X])

    numbers = np.arange(len(ratings)) if units is None else units
    whole = found(np.ones((1, len(ratings))))[:, 0]
    resampled = np.concatenate([found(counts) for counts in _counts(numbers)], axis=1)
    return {
        model: Estimate(float(value), values) for model, value, values in zip(scores, whole, resampled, strict=True)
    }


def _correlation(
    counts: Float[np.ndarray, "resample item"],
    x: Float[np.ndarray, "resample item"],
    y: Float[np.ndarray, "resample item"],
) -> Float[np.ndarray, " resample"]:
    """Return Pearson's r with a count for each item; NaN if x or y is constant up to rounding."""
    shares = counts / counts.sum(axis=1, keepdims=True)
    x = x - np.einsum("ri,ri->r", shares, x)[:, None]
    y = y - np.einsum("ri,ri->r", shares, y)[:, None]
    xx, yy, xy = (np.einsum("ri,ri,ri->r", shares, one, other) for one, other in ((x, x), (y, y), (x, y)))
    varied = (xx > ROUNDING) & (yy > ROUNDING)
    return np.where(varied, np.clip(xy / np.sqrt(np.where(varied, xx * yy, 1.0)), -1, 1), np.nan)


def _draws(units: int) -> Iterator[Int[np.ndarray, "resample unit"]]:
    """Return the units of each resample, with repeats."""
    for start in range(0, RESAMPLES, AT_ONCE):
        resample = np.arange(start, min(start + AT_ONCE, RESAMPLES), dtype=np.uint64)[:, None]
        yield pick(units, SEED, resample, np.arange(units, dtype=np.uint64))


def _counts(units: Int[np.ndarray, " item"]) -> Iterator[Float[np.ndarray, "resample item"]]:
    """Return how often each item occurs in each resample."""
    count = int(units.max()) + 1
    for drawn in _draws(count):
        yield np.stack([np.bincount(one, minlength=count) for one in drawn]).astype(np.float64)[:, units]


def _items(scores: Scores) -> int:
    """Return the number of items."""
    if not scores:
        raise ValueError("expected the scores of at least one model, got none")
    return len(next(iter(scores.values())))


def _check(scores: Scores, ratings: Float[np.ndarray, " item"]) -> None:
    everything = {"the ratings": ratings, **{f"the scores of model {model!r}": one for model, one in scores.items()}}
    items = _items(scores)
    if items < FEWEST:
        raise ValueError(f"expected at least {FEWEST} items for a correlation, got {items}")
    _refuse_unfinite(everything)
    for name, values in everything.items():
        if np.ptp(values) <= ROUNDING * np.abs(values).max():
            raise ValueError(
                f"expected {name} to differ, got {values[0]:g} for all {items} items: a constant has no correlation"
            )


def _refuse_unfinite(scores: Scores) -> None:
    for name, values in scores.items():
        if bad := int((~np.isfinite(values)).sum()):
            raise ValueError(f"expected finite numbers, got {bad} NaN or infinite of {len(values)} in {name}")
