"""Correlations of scores with human ratings, over all items and over bootstrap resamples of `statistics`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from threadpoolctl import threadpool_limits

from groundray.analysis.measures import statistics
from groundray.analysis.measures.statistics import FEWEST, ROUNDING, Estimate, Scores, draws, holm, refuse_unfinite

SEED = 805
FEWEST_OF_INTERVAL = 6  # units of a correlation with an interval: resamples of fewer reach from -1 to 1
SWAPS = 9_999  # of a test; with that of the data itself p is a multiple of 1 / 10,000
Kind = Literal["pearson", "spearman"]
# the numbers to correlate in resamples, given how often each item occurs in them
AsDrawn = Callable[[Float[np.ndarray, "resample item"]], Float[np.ndarray, "resample item"]]


def pearson(
    scores: Scores, ratings: Float[np.ndarray, " item"], units: Int[np.ndarray, " item"] | None = None
) -> dict[str, Estimate]:
    """Compute Pearson's r of each model's scores with the ratings. Arguments and errors as for `correlations`."""
    return _of_one_column(scores, ratings, units, "pearson")


def spearman(
    scores: Scores, ratings: Float[np.ndarray, " item"], units: Int[np.ndarray, " item"] | None = None
) -> dict[str, Estimate]:
    """Compute Spearman's rho of each model's scores with the ratings. Arguments and errors as for `correlations`."""
    return _of_one_column(scores, ratings, units, "spearman")


def correlations(
    scores: Mapping[str, Float[np.ndarray, "item column"]],
    ratings: Float[np.ndarray, " item"],
    units: Int[np.ndarray, " item"] | None = None,
    kinds: Sequence[Kind] = ("pearson", "spearman"),
) -> list[dict[Kind, dict[str, Estimate]]]:
    """Correlate each column of each model's scores with the ratings; return the estimates by column, kind and model.

    Pearson's r, and Spearman's rho: Pearson's r of ranks, ties at their mean rank, every resample ranked again. All
    are over the same resamples, which are drawn once: that takes longer than a correlation. The acceleration of their
    intervals is of each unit's exact influence, so that no correlation is computed without each unit.

    Args:
        units: unit of each item, numbered from 0. Items of a unit are resampled together, since they are not
            independent, such as the rows of one word. None: each item is a unit. Fewer than FEWEST_OF_INTERVAL units
            have no interval.

    Raises:
        ValueError: there are too few items, an item is not finite, or all are equal.
    """
    columns = [(model, column) for column in range(_columns(scores)) for model in scores]
    for model, column in columns:
        _check({model: scores[model][:, column]}, ratings)
    tables = [ratings, *(scores[model][:, column] for model, column in columns)]
    drawn = [[_as_drawn(values, kind) for values in tables] for kind in kinds]

    def found(counts: Float[np.ndarray, "resample item"]) -> Float[np.ndarray, "kind column resample"]:
        shares = counts / counts.sum(axis=1, keepdims=True)
        of_kinds = []
        for of_ratings, *of_scores in drawn:
            y = Deviations.of(shares, of_ratings(counts))
            of_kinds.append([_correlation(shares, Deviations.of(shares, x(counts)), y) for x in of_scores])
        return np.array(of_kinds)

    whole = found(np.ones((1, len(ratings))))[..., 0]
    numbers = np.arange(len(ratings)) if units is None else units
    enough = int(numbers.max()) + 1 >= FEWEST_OF_INTERVAL
    of_draws = [found(counts) for counts in occurrences(numbers)] if enough else []
    resampled = np.concatenate([np.empty((len(kinds), len(columns), 0)), *of_draws], axis=-1)
    estimates: list[dict[Kind, dict[str, Estimate]]] = [{kind: {} for kind in kinds} for _ in range(_columns(scores))]
    for row, kind in enumerate(kinds):
        of_ratings, *of_scores = [Standardised.of(values, kind) for values in tables]
        for place, (model, column) in enumerate(columns):
            influence = np.bincount(numbers, weights=of_scores[place].influence(of_ratings))
            estimates[column][kind][model] = Estimate(float(whole[row, place]), resampled[row, place], influence)
    return estimates


def paired_correlation_tests(
    scores: Scores, ratings: Float[np.ndarray, " item"], kind: Kind
) -> dict[tuple[str, str], float]:
    """Return the two-sided p of a permutation test for each pair of models, corrected for all (Holm).

    If two models are alike, it is chance which of an item's two standard scores (or ranks) is whose: p is the share of
    SWAPS random swaps, and of none, under which the correlations differ as much. Models with equal scores have p = 1.

    Raises:
        ValueError: as for `correlations`.
    """
    _check(scores, ratings)
    y = Standardised.of(ratings, kind).values
    standard = {model: Standardised.of(values, kind).values for model, values in scores.items()}
    pairs = list(combinations(standard, 2))
    if not pairs:
        return {}
    first, other = (np.stack([standard[pair[place]] for pair in pairs], axis=1) for place in (0, 1))
    # what a swap turns around: differences of scores, of their squares, and of their products with the ratings
    half = np.hstack([other - first, other**2 - first**2, (other - first) * y[:, None]]) / (2 * len(y))
    middle = np.hstack([first + other, first**2 + other**2, (first + other) * y[:, None]]).mean(axis=0) / 2

    def difference(signs: Float[np.ndarray, "swap item"]) -> Float[np.ndarray, "swap pair"]:
        turned = signs @ half  # one product for the three sums of all pairs of models
        low, high = (
            product / np.sqrt(np.maximum(square - mean**2, ROUNDING))
            for mean, square, product in (np.hsplit(end, 3) for end in (middle - turned, middle + turned))
        )
        return np.abs(high - low)

    observed = difference(np.ones((1, len(y)))) - ROUNDING
    as_large = np.ones(len(pairs))  # none is swapped
    with threadpool_limits(1):  # small products: threads that wait for each other took ten times the time
        for signs in _signs(len(y)):
            as_large += (difference(signs) >= observed).sum(axis=0)
    return dict(zip(pairs, holm((as_large / (1 + SWAPS)).tolist()), strict=True))


def _signs(items: int) -> Iterator[Float[np.ndarray, "swap item"]]:
    """Yield a random 1 or -1 of each item in each of SWAPS swaps, in arrays of NUMBERS numbers or of 8 swaps.

    The bits of 8 swaps are drawn together, as bytes, so that the size of an array changes nothing.
    """
    draw = np.random.default_rng(SEED)
    eights = max(1, statistics.NUMBERS // (8 * items))
    for start in range(0, SWAPS, 8 * eights):
        drawn = np.frombuffer(b"".join(draw.bytes(items) for _ in range(eights)), np.uint8)
        signs = np.unpackbits(drawn).reshape(-1, items)[: SWAPS - start].astype(np.float64)
        signs *= -2
        signs += 1
        yield signs


def by_column(
    scores: Mapping[str, Float[np.ndarray, "item column"]],
    ratings: Float[np.ndarray, "item column"],
    kinds: Sequence[Kind] = ("pearson", "spearman"),
) -> list[dict[Kind, dict[str, Estimate]]]:
    """Correlate each column of each model's scores with the same column of the ratings, as `correlations` does.

    All columns are over the same resamples of items, so that a median over columns has an interval over items.

    Args:
        ratings: NaN where an item has no rating in a column. Its scores there do not count.

    Raises:
        ValueError: a column has too few ratings, one of its items is not finite, or all are equal.
    """
    rated = np.isfinite(ratings)
    tables: list[dict[str, Float[np.ndarray, " item"]]] = []
    for column, rows in enumerate(rated.T):
        own = {model: values[rows, column] for model, values in scores.items()}
        _check(own, ratings[rows, column])
        tables.append({"": ratings[rows, column], **own})
    drawn = [[[_as_drawn(values, kind) for values in table.values()] for kind in kinds] for table in tables]

    def found(counts: Float[np.ndarray, "resample item"]) -> Float[np.ndarray, "column kind model resample"]:
        of_columns = []
        for rows, of_kinds in zip(rated.T, drawn, strict=True):
            own = counts if rows.all() else counts.compress(rows, axis=1)
            with np.errstate(invalid="ignore"):  # a resample may draw no item of a column
                shares = own / own.sum(axis=1, keepdims=True)
            of_columns.append([])
            for y_of, *x_of in of_kinds:
                y = Deviations.of(shares, y_of(own))
                of_columns[-1].append([_correlation(shares, Deviations.of(shares, x(own)), y) for x in x_of])
        return np.array(of_columns)

    whole = found(np.ones((1, len(ratings))))[..., 0]
    resampled = np.concatenate([found(counts) for counts in occurrences(np.arange(len(ratings)))], axis=-1)
    estimates: list[dict[Kind, dict[str, Estimate]]] = []
    for column, table in enumerate(tables):
        estimates.append({kind: {} for kind in kinds})
        for row, kind in enumerate(kinds):
            y = Standardised.of(table[""], kind)
            for place, model in enumerate(scores):
                influence = np.zeros(len(ratings))  # an item without a rating has none
                share = rated[:, column].mean()
                influence[rated[:, column]] = Standardised.of(table[model], kind).influence(y) / share
                estimates[column][kind][model] = Estimate(
                    float(whole[column, row, place]), resampled[column, row, place], influence
                )
    return estimates


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
        sizes = counts.take(self.order, axis=1)  # five times as fast as an index of columns
        if len(self.starts) < len(self.order):
            sizes = np.add.reduceat(sizes, self.starts, axis=1)
        return (np.cumsum(sizes, axis=1) - sizes / 2 + 0.5).take(self.group, axis=1)

    def mean_above(self, values: Float[np.ndarray, " item"]) -> Float[np.ndarray, " item"]:
        """Return, for each item, the sum of the values of all items that rank above it, and half of those that tie
        with it, over the number of items."""
        sums = np.bincount(self.group, weights=values)
        return (sums.sum() - np.cumsum(sums) + sums / 2)[self.group] / len(values)


@dataclass(frozen=True)
class Standardised:
    """Values, or ranks, of mean 0 and variance 1.

    Attributes:
        ranking: order of the items; None of values.
        sd: standard deviation of the ranks, as fractions of the number of items.
    """

    values: Float[np.ndarray, " item"]
    ranking: Ranking | None = None
    sd: float = 1.0

    @classmethod
    def of(cls, values: Float[np.ndarray, " item"], kind: Kind) -> Standardised:
        if kind == "pearson":
            return cls((values - values.mean()) / values.std())
        ranking = Ranking.of(values)
        ranks = ranking.ranks(np.ones((1, len(values))))[0] / len(values)
        return cls((ranks - ranks.mean()) / ranks.std(), ranking, float(ranks.std()))

    def influence(self, other: Standardised) -> Float[np.ndarray, " item"]:
        """Return the derivative of the correlation by each item's weight (Efron 1987), less its mean.

        A change of weights moves the ranks of all items above: that is a part of Spearman's influence, and what it
        takes is a sum over the items above, not over pairs of items.
        """
        x, y = self.values, other.values
        r = float((x * y).mean())
        influence = x * y - r / 2 * (x**2 + y**2)
        for one, by_value in ((self, y - r * x), (other, x - r * y)):
            if one.ranking is not None:
                influence = influence + one.ranking.mean_above(by_value) / one.sd
        return influence - influence.mean()


@dataclass(frozen=True)
class Deviations:
    """Deviations of items from their mean in each resample, and their variance there."""

    values: Float[np.ndarray, "resample item"]
    variance: Float[np.ndarray, " resample"]

    @classmethod
    def of(cls, shares: Float[np.ndarray, "resample item"], values: Float[np.ndarray, "resample item"]) -> Deviations:
        """Return the deviations, given each item's share of its resample."""
        values = values - np.einsum("ri,ri->r", shares, values)[:, None]
        return cls(values, np.einsum("ri,ri,ri->r", shares, values, values))


def _of_one_column(
    scores: Scores, ratings: Float[np.ndarray, " item"], units: Int[np.ndarray, " item"] | None, kind: Kind
) -> dict[str, Estimate]:
    tables = {model: values[:, None] for model, values in scores.items()}
    return correlations(tables, ratings, units, (kind,))[0][kind]


def _columns(scores: Mapping[str, Float[np.ndarray, "item column"]]) -> int:
    if not scores:
        raise ValueError("expected the scores of at least one model, got none")
    return next(iter(scores.values())).shape[1]


def _as_drawn(values: Float[np.ndarray, " item"], kind: Kind) -> AsDrawn:
    """Return a function of a resample's counts that returns the numbers to correlate: values, or ranks."""
    if kind == "spearman":
        return Ranking.of(values).ranks
    standard = (values - values.mean()) / values.std()
    return lambda counts: np.broadcast_to(standard, counts.shape)


def _correlation(
    shares: Float[np.ndarray, "resample item"], x: Deviations, y: Deviations
) -> Float[np.ndarray, " resample"]:
    """Return Pearson's r in each resample; NaN if x or y is constant there up to rounding."""
    xx, yy, xy = x.variance, y.variance, np.einsum("ri,ri,ri->r", shares, x.values, y.values)
    varied = (xx > ROUNDING) & (yy > ROUNDING)
    return np.where(varied, np.clip(xy / np.sqrt(np.where(varied, xx * yy, 1.0)), -1, 1), np.nan)


def occurrences(units: Int[np.ndarray, " item"]) -> Iterator[Float[np.ndarray, "resample item"]]:
    """Return how often each item occurs in each resample."""
    count = int(units.max()) + 1
    for drawn in draws(count):
        counts = np.stack([np.bincount(one, minlength=count) for one in drawn]).astype(np.float64)
        yield counts.take(units, axis=1)


def _check(scores: Scores, ratings: Float[np.ndarray, " item"]) -> None:
    everything = {"the ratings": ratings, **{f"the scores of model {model!r}": one for model, one in scores.items()}}
    items = len(ratings)
    if items < FEWEST:
        raise ValueError(f"expected at least {FEWEST} items for a correlation, got {items}")
    refuse_unfinite(everything)
    for name, values in everything.items():
        if np.ptp(values) <= ROUNDING * np.abs(values).max():
            raise ValueError(
                f"expected {name} to differ, got {values[0]:g} for all {items} items: a constant has no correlation"
            )
