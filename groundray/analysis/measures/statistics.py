"""Figures over items that all models share, with 95% intervals, differences between models, and paired tests.

Intervals are bootstrap intervals, bias-corrected and accelerated (BCa, Efron 1987), of RESAMPLES resamples. Resample r
is the same for every model, so that the difference of two models has an interval of its own, narrower than theirs if
the models agree on the items. Resamples depend on SEED alone: equal items give equal intervals in every run. They are
drawn in blocks and not kept, so memory does not grow with their number.

The acceleration is of the influence of each item on the figure, found by leaving it out (jackknife); of more than
GROUPS items, groups of them are left out together. Where it is not defined, since no item changes the figure, or where
all resamples lie on one side of the figure, the interval is between percentiles (Efron and Tibshirani 1993, ch. 13).

A quantile of fewer than SMALL items has an exact interval instead, between two of the items, whose ranks are those of
the binomial distribution (Conover 1999, section 3.2): the median from 6 items on, a quartile from 13 on. Of fewer
there is no such interval at 95%, and none is given. The difference of two quantiles has a bootstrap interval.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import scipy.stats
from jaxtyping import Float, Int
from scipy.stats import binom, norm

from groundray.analysis.result import Difference, Measure, Value
from groundray.rng import pick

SEED = 801
RESAMPLES = 1000
# in an array of resamples: 1 MB stays in the caches; 100,000 items take four times the CPU time in arrays of 40 MB
NUMBERS = 2**17
GROUPS = 1000  # of items that the jackknife leaves out at most: as many computations of a figure as there are resamples
SMALL = 30  # items from which on a quantile's interval is that of the bootstrap, which then agrees with the exact one
LEVEL = 0.95  # of intervals
TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
ROUNDING = 1e-12  # relative differences and variances below it count as zero
FEWEST = 3  # minimum number of items for a correlation or an interval

Scores = Mapping[str, Float[np.ndarray, " item"]]  # scores of the same items, by model
Figure = Callable[[Float[np.ndarray, "resample item"]], Float[np.ndarray, " resample"]]


@dataclass(frozen=True)
class Estimate:
    """A figure of the items, and of each resample (none for fewer than FEWEST items).

    Attributes:
        influence: influence of each item, or group of items, on the figure: its derivative by the item's weight, or
            how much the figure rises with the item. A common factor does not matter. Empty if it is not known.
        exact: an interval that is known without resamples: its ends, or no ends if there is none at 95%.
    """

    value: float
    resampled: Float[np.ndarray, " resample"]
    influence: Float[np.ndarray, " unit"] = field(default_factory=lambda: np.empty(0))
    exact: tuple[float, float] | tuple[()] | None = None

    def __sub__(self, other: Estimate) -> Estimate:
        return Estimate(self.value - other.value, self.resampled - other.resampled, self.influence - other.influence)

    def with_interval(self) -> Value:
        """Return the figure with its interval, over the resamples that have one: a constant has no correlation."""
        if self.exact is not None:
            return Value(self.value, *self.exact)
        defined = self.resampled[np.isfinite(self.resampled)]
        if not len(defined):
            return Value(self.value)
        low, high = np.quantile(defined, self._percentiles(defined)).tolist()
        return Value(self.value, low, high)

    def _percentiles(self, defined: Float[np.ndarray, " resample"]) -> tuple[float, float]:
        """Return the percentiles of the resamples at which the BCa interval ends, or TAILS where it is not defined."""
        below = float((defined < self.value).mean() + (defined == self.value).mean() / 2)
        largest = float(np.abs(self.influence).max(initial=0))
        if not 0 < below < 1 or not largest > 0:
            return TAILS
        exponent = math.frexp(largest)[1]  # a power of two, which rounds nothing: powers of tiny influences would be 0
        influence = np.ldexp(self.influence, -exponent)
        cubes, squares = float((influence**3).sum()), float((influence**2).sum())
        if not squares > math.ldexp(ROUNDING * self.value, -exponent) ** 2:
            return TAILS
        bias, acceleration = float(norm.ppf(below)), cubes / (6 * squares**1.5)
        shifted = [bias + float(norm.ppf(tail)) for tail in TAILS]  # below 6: 1,000 resamples have a bias below 3.3
        low, high = (float(norm.cdf(bias + shift / (1 - acceleration * shift))) for shift in shifted)  # below 1/6
        return low, high


@dataclass(frozen=True)
class Quantile:
    """The quantile of each row, such as the median."""

    share: float

    def __call__(self, values: Float[np.ndarray, "resample item"]) -> Float[np.ndarray, " resample"]:
        """Return the quantile of each row."""
        return np.median(values, axis=-1) if self.share == 0.5 else np.quantile(values, self.share, axis=-1)

    def exact(self, values: Float[np.ndarray, " item"]) -> tuple[float, float] | tuple[()]:
        """Return the narrowest interval between two of the items that leaves out at most 2.5% on each side, whatever
        the distribution of the items; empty if there is none.

        The number of items below the quantile of their population is binomial.
        """
        below = binom(len(values), self.share)
        first, last = int(below.ppf(TAILS[0])), int(below.ppf(TAILS[1])) + 1  # ranks from 1
        if first < 1 or last > len(values):
            return ()
        ordered = np.sort(values)
        return float(ordered[first - 1]), float(ordered[last - 1])


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
    refuse_unfinite(scores)
    resampled: dict[str, list[Float[np.ndarray, " resample"]]] = {model: [np.empty(0)] for model in scores}
    for drawn in draws(items) if items >= FEWEST else ():
        for model, values in scores.items():
            resampled[model].append(figure(values[drawn]))
    return {
        model: Estimate(
            float(figure(values[None])[0]),
            np.concatenate(resampled[model]),
            _influence(figure, values),
            figure.exact(values) if isinstance(figure, Quantile) and items < SMALL else None,
        )
        for model, values in scores.items()
    }


def _influence(figure: Figure, values: Float[np.ndarray, " item"]) -> Float[np.ndarray, " group"]:
    """Return the influence of each item on a figure by the jackknife: how much the figure falls without it."""
    if len(values) < FEWEST:
        return np.empty(0)
    without = np.concatenate([figure(values[left]) for left in _leaving_out(len(values))])
    return without.mean() - without


def _leaving_out(items: int) -> Iterator[Int[np.ndarray, "group left"]]:
    """Yield the items that are left without each item, or without each of GROUPS groups, in arrays of NUMBERS."""
    groups = min(items, GROUPS)
    of, at_once = np.arange(items) % groups, max(1, NUMBERS // items)
    for same in np.split(np.arange(groups), [items % groups]):  # groups of one size
        for start in range(0, len(same), at_once):
            out = same[start : start + at_once, None]
            yield np.nonzero(of != out)[1].reshape(len(out), -1)


def mean(values: Float[np.ndarray, "resample item"]) -> Float[np.ndarray, " resample"]:
    """Return the mean of each row."""
    return values.mean(axis=-1)


median, lower_quartile, upper_quartile = Quantile(0.5), Quantile(0.25), Quantile(0.75)
QUARTILES = {"lower_quartile": lower_quartile, "median": median, "upper_quartile": upper_quartile}


def paired_tests(scores: Scores) -> dict[tuple[str, str], float]:
    """Return the two-sided p of Wilcoxon's signed-rank test (1945) for each pair of models, corrected for all (Holm).

    Items with equal scores do not count; if all are equal, p is 1. Empty for fewer than FEWEST items.

    Raises:
        ValueError: a score is not finite.
    """
    refuse_unfinite(scores)
    pairs = list(combinations(scores, 2))
    if _items(scores) < FEWEST:
        return {}
    found = []
    for first, other in pairs:
        differences = scores[other] - scores[first]
        result: Any = scipy.stats.wilcoxon(differences) if differences.any() else None
        found.append(float(result.pvalue) if result else 1.0)
    return dict(zip(pairs, holm(found), strict=True))


def resampled_tests(estimates: Mapping[str, Estimate]) -> dict[tuple[str, str], float]:
    """Return a two-sided p for each pair of models, from the resamples of their difference, corrected for all (Holm).

    It is twice the share of resamples on the other side of 0, the figure itself counted as one (Davison and Hinkley
    1997, section 4.2): the smallest is 2 / (RESAMPLES + 1). For figures of items that are no sample by themselves, as
    dimensions that the same words are rated on. Without resamples there is no test.
    """
    found: dict[tuple[str, str], float] = {}
    for first, other in combinations(estimates, 2):
        resampled = (estimates[other] - estimates[first]).resampled
        defined = resampled[np.isfinite(resampled)]
        if len(defined):
            beyond = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
            found[first, other] = min(1.0, 2 * (1 + beyond) / (1 + len(defined)))
    return dict(zip(found, holm(list(found.values())), strict=True))


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


def draws(units: int) -> Iterator[Int[np.ndarray, "resample unit"]]:
    """Yield the units of each resample, with repeats, in arrays of NUMBERS numbers or of one resample."""
    at_once = max(1, NUMBERS // units)
    for start in range(0, RESAMPLES, at_once):
        resample = np.arange(start, min(start + at_once, RESAMPLES), dtype=np.uint64)[:, None]
        yield pick(units, SEED, resample, np.arange(units, dtype=np.uint64))


def _items(scores: Scores) -> int:
    """Return the number of items."""
    if not scores:
        raise ValueError("expected the scores of at least one model, got none")
    return len(next(iter(scores.values())))


def refuse_unfinite(scores: Scores) -> None:
    """Raise ValueError if a number is NaN or infinite."""
    for name, values in scores.items():
        if bad := int((~np.isfinite(values)).sum()):
            raise ValueError(f"expected finite numbers, got {bad} NaN or infinite of {len(values)} in {name}")
