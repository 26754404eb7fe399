"""Figures over items that all models share, with 95% intervals; how models differ, and paired tests.

Intervals are percentile bootstrap intervals (Efron and Tibshirani 1993, chapter 13) of RESAMPLES resamples. Resample r
is the same for every model, so a difference of two models has its own interval, narrower than theirs where the models
agree about the items. Resamples follow from SEED alone: the same items give the same intervals in every run.
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
AT_ONCE = 50  # resamples: 3 MB an array of 8,000 items
ROUNDING = 1e-12  # differences and variances below it, relative to the whole, are no differences
FEWEST = 3  # items that a correlation or an interval is given of

Scores = Mapping[str, Float[np.ndarray, " item"]]  # by the model's name, for the same items

Figure = Callable[[Float[np.ndarray, "resample item"]], Float[np.ndarray, " resample"]]
# what items of known values count for in resamples, by how often each has them
AsDrawn = Callable[[Float[np.ndarray, "resample item"]], Float[np.ndarray, "resample item"]]


@dataclass(frozen=True)
class Estimate:
    """A figure of the items, and of each resample of them (none of fewer than FEWEST items)."""

    value: float
    resampled: Float[np.ndarray, " resample"]

    def __sub__(self, other: Estimate) -> Estimate:
        return Estimate(self.value - other.value, self.resampled - other.resampled)

    def with_interval(self) -> Value:
        """The figure with its interval, of the resamples that have a figure: a constant has no correlation."""
        defined = self.resampled[np.isfinite(self.resampled)]
        if not len(defined):
            return Value(self.value)
        low, high = np.quantile(defined, (0.025, 0.975)).tolist()
        return Value(self.value, low, high)


def pearson(
    scores: Scores, ratings: Float[np.ndarray, " item"], units: Int[np.ndarray, " item"] | None = None
) -> dict[str, Estimate]:
    """Pearson's r of each model's scores with the ratings.

    Args:
        units: items of the same number, from 0 without a gap, are drawn together, as the rows of one word must be:
            they are not independent. None: each item on its own.

    Raises:
        ValueError: too few items, some that are not finite, or all alike.
    """

    def standardised(values: Float[np.ndarray, " item"]) -> AsDrawn:
        standard = (values - values.mean()) / values.std()
        return lambda counts: np.broadcast_to(standard, counts.shape)

    return _correlations(scores, ratings, units, standardised)


def spearman(
    scores: Scores, ratings: Float[np.ndarray, " item"], units: Int[np.ndarray, " item"] | None = None
) -> dict[str, Estimate]:
    """Spearman's rho of each model's scores with the ratings: Pearson's r of their ranks, ties at their mean rank.

    Every resample is ranked anew. Arguments and errors as of `pearson`.
    """
    return _correlations(scores, ratings, units, lambda values: Ranking.of(values).ranks)


def over_items(scores: Scores, figure: Figure) -> dict[str, Estimate]:
    """A figure of each model's scores, such as `median`.

    Args:
        figure: of each row of a table with an item a column.

    Raises:
        ValueError: no items, or some that are not finite.
    """
    items = _items(scores)
    if items == 0:
        raise ValueError("expected at least one item, got none")
    _refuse_unfinite(scores)
    drawn = np.concatenate(list(_draws(items))) if items >= FEWEST else np.empty((0, items), dtype=np.int64)
    return {model: Estimate(float(figure(values[None])[0]), figure(values[drawn])) for model, values in scores.items()}


def mean(values: Float[np.ndarray, "resample item"]) -> Float[np.ndarray, " resample"]:
    """Of each row."""
    return values.mean(axis=-1)


def median(values: Float[np.ndarray, "resample item"]) -> Float[np.ndarray, " resample"]:
    """Of each row."""
    return np.median(values, axis=-1)


def lower_quartile(values: Float[np.ndarray, "resample item"]) -> Float[np.ndarray, " resample"]:
    """Of each row."""
    return np.quantile(values, 0.25, axis=-1)


def upper_quartile(values: Float[np.ndarray, "resample item"]) -> Float[np.ndarray, " resample"]:
    """Of each row."""
    return np.quantile(values, 0.75, axis=-1)


QUARTILES = {"lower_quartile": lower_quartile, "median": median, "upper_quartile": upper_quartile}


def paired_tests(scores: Scores) -> dict[tuple[str, str], float]:
    """The two-sided p of Wilcoxon's signed-rank test (1945) for each two models, corrected for all of them (Holm).

    Items that two models have the same score of say nothing and do not count; where those are all, p is 1. Empty of
    fewer than FEWEST items.

    Raises:
        ValueError: some scores are not finite.
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
    """P values corrected for their number (Holm 1979), so that few families of tests have any that is wrongly low."""
    corrected = [0.0] * len(p)
    highest = 0.0
    for place, number in enumerate(sorted(range(len(p)), key=lambda number: p[number])):
        highest = max(highest, min(1.0, (len(p) - place) * p[number]))
        corrected[number] = highest
    return corrected


def slug(name: str) -> str:
    """A name as part of a measure's key, without what MLflow has no room for: `other_perceptual`."""
    return re.sub(r"[^\w.-]+", "_", name)


def measure(
    key: str,
    name: str,
    items: int,
    estimates: Mapping[str, Estimate],
    tests: Mapping[tuple[str, str], float] | None = None,
    published: Mapping[str, float] | None = None,
) -> Measure:
    """A measure with the values of all models and all differences.

    Args:
        tests: p by (first, other), from `paired_tests`.
        published: by the paper's model.
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
    """Items in the order of their values, equal ones together.

    Attributes:
        order: the items, by value.
        starts: where in `order` each group of equal values begins.
        group: of each item.
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
        """The rank from 1 of each item among those drawn, each as often as it was; equal ones have their mean rank."""
        sizes = np.add.reduceat(counts[:, self.order], self.starts, axis=1)
        return (np.cumsum(sizes, axis=1) - sizes / 2 + 0.5)[:, self.group]


def _correlations(
    scores: Scores,
    ratings: Float[np.ndarray, " item"],
    units: Int[np.ndarray, " item"] | None,
    prepare: Callable[[Float[np.ndarray, " item"]], AsDrawn],
) -> dict[str, Estimate]:
    """Correlations of what `prepare` makes of scores and ratings, over all items and over each resample."""
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
    """Pearson's r where each item counts so often; NaN where x or y does not vary but by rounding."""
    shares = counts / counts.sum(axis=1, keepdims=True)
    x = x - np.einsum("ri,ri->r", shares, x)[:, None]
    y = y - np.einsum("ri,ri->r", shares, y)[:, None]
    xx, yy, xy = (np.einsum("ri,ri,ri->r", shares, one, other) for one, other in ((x, x), (y, y), (x, y)))
    varied = (xx > ROUNDING) & (yy > ROUNDING)
    return np.where(varied, np.clip(xy / np.sqrt(np.where(varied, xx * yy, 1.0)), -1, 1), np.nan)


def _draws(units: int) -> Iterator[Int[np.ndarray, "resample unit"]]:
    """Which units each resample has, with repeats."""
    for start in range(0, RESAMPLES, AT_ONCE):
        resample = np.arange(start, min(start + AT_ONCE, RESAMPLES), dtype=np.uint64)[:, None]
        yield pick(units, SEED, resample, np.arange(units, dtype=np.uint64))


def _counts(units: Int[np.ndarray, " item"]) -> Iterator[Float[np.ndarray, "resample item"]]:
    """How often each resample has each item."""
    count = int(units.max()) + 1
    for drawn in _draws(count):
        yield np.stack([np.bincount(one, minlength=count) for one in drawn]).astype(np.float64)[:, units]


def _items(scores: Scores) -> int:
    """How many items there are."""
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
