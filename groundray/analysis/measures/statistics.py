"""Figures over items that all models share, with 95% intervals, differences between models, and paired tests.

Intervals are percentile bootstrap intervals (Efron and Tibshirani 1993, chapter 13) of RESAMPLES resamples. Resample r
is the same for every model, so that the difference of two models has an interval of its own, narrower than theirs if
the models agree on the items. Resamples depend on SEED alone: equal items give equal intervals in every run. They are
drawn in blocks and not kept, so memory does not grow with their number.
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
# in an array of resamples: 1 MB stays in the caches; 100,000 items take four times the CPU time in arrays of 40 MB
NUMBERS = 2**17
ROUNDING = 1e-12  # relative differences and variances below it count as zero
FEWEST = 3  # minimum number of items for a correlation or an interval

Scores = Mapping[str, Float[np.ndarray, " item"]]  # scores of the same items, by model
Figure = Callable[[Float[np.ndarray, "resample item"]], Float[np.ndarray, " resample"]]


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
        model: Estimate(float(figure(values[None])[0]), np.concatenate(resampled[model]))
        for model, values in scores.items()
    }


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
