"""Human ratings of words on many dimensions, predicted from the words' vectors, by dimension and group of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from groundray.analysis.inputs.rating_tables import OTHER, RatedWords
from groundray.analysis.measures.correlation import Kind, by_column
from groundray.analysis.measures.directions import Vectors, check_directions, places_of
from groundray.analysis.measures.representational_similarity import MOST_WORDS, representational_similarity, sample
from groundray.analysis.measures.ridge import PENALTIES, HeldOut, held_out
from groundray.analysis.measures.statistics import (
    FEWEST,
    ROUNDING,
    Estimate,
    measure,
    median,
    over_items,
    paired_tests,
    resampled_tests,
    slug,
)
from groundray.analysis.result import Analysis, Bars, Cell, Measure, Picture, Spread, Table

FOLDS = 10
LEAST_WORDS = 20  # rated words of a dimension
MOST_ALONE = 12  # dimensions without groups: up to as many are measures of their own
KINDS: dict[Kind, str] = {"spearman": "Spearman rho", "pearson": "Pearson r"}
Estimates = Mapping[Kind, Mapping[str, Estimate]]


@dataclass(frozen=True)
class Predicted:
    """One set of ratings, predicted by each model.

    Attributes:
        rated: the set with the words and dimensions that are used.
        rows: rows of its words among all words.
        held_out: predictions by model.
        dimensions: correlations of each dimension, by kind and model.
        groups: dimensions of each group, by index.
    """

    rated: RatedWords
    rows: Int[np.ndarray, " word"]
    held_out: Mapping[str, HeldOut]
    dimensions: Sequence[Estimates]
    groups: Mapping[str, list[int]]

    def median_of(self, dimensions: Sequence[int], kind: Kind) -> dict[str, Estimate]:
        """Return the median of some dimensions' correlations, by model."""
        return {
            model: median_estimate([self.dimensions[one][kind][model] for one in dimensions]) for model in self.held_out
        }

    def ceiling(self, dimensions: Sequence[int]) -> float | None:
        """Return the median of the largest correlations that the noise of the ratings allows; None if it is unknown."""
        known = np.sqrt(self.rated.reliability[[*dimensions]]) if len(self.rated.reliability) else np.empty(0)
        return float(np.median(known)) if len(known) and np.isfinite(known).all() else None


def ratings(
    vectors: Vectors,
    words: Sequence[str],
    sets: Mapping[str, RatedWords],
    folds: int = FOLDS,
    left_out: Mapping[str, int] | None = None,
) -> Analysis:
    """Correlate ratings with what ridge regressions predict for held-out words, and distances with distances.

    Args:
        vectors: one row for each word.
        words: distinct words.
        sets: rated words by name of the set. Words without a vector are omitted, as are dimensions that are constant or
            have fewer than LEAST_WORDS rated words, and sets that keep none; all are counted.
        folds: outer folds.
        left_out: counts of what was omitted before; the result repeats them.

    Raises:
        ValueError: no set is left, the folds do not fit the words, or the vectors fail `check_directions`.
    """
    check_directions(vectors, words)
    place = places_of(words)
    found: dict[str, Predicted] = {}
    unused: list[tuple[Cell, ...]] = []
    wordless = 0
    for name, whole in sets.items():
        known = np.array([row for row, word in enumerate(whole.words) if word in place], dtype=np.int64)
        wordless += len(whole.words) - len(known)
        rated = _part(whole, known, np.arange(len(whole.dimensions)))
        reasons = [_unusable(column) for column in rated.ratings.T]
        unused += [(name, one, why) for one, why in zip(rated.dimensions, reasons, strict=True) if why]
        usable = np.array([number for number, why in enumerate(reasons) if not why], dtype=np.int64)
        if len(usable):
            found[name] = _predicted(vectors, place, _part(rated, np.arange(len(rated.words)), usable), folds)
    if not found:
        why = "; ".join(f"{name}, {dimension}: {reason}" for name, dimension, reason in unused[:3])
        raise ValueError(f"expected a set with a dimension that can be predicted, got none among {len(sets)} ({why})")
    measures, tables, pictures, incomplete = _of_sets(vectors, found)
    counts = {
        "words without a vector (ratings)": wordless,
        "dimensions that are constant or rated for too few words": len(unused),
        "sets without a dimension that can be used": len(sets) - len(found),
        "words without all ratings (distances alone)": incomplete,
    }
    if unused:
        tables.append(Table("Dimensions left out", ("set", "dimension", "reason"), tuple(unused)))
    return Analysis(
        "ratings",
        "Ratings of words, predicted for held-out words by a ridge regression a dimension, of vectors standardised in "
        f"each training fold. Nested cross-validation: {folds} outer folds, the same for all models; the penalty of "
        f"each dimension is the one of {len(PENALTIES)} from {PENALTIES[0]:g} to {PENALTIES[-1]:g} with the least "
        "leave-one-out error in the training words. Correlations are over all words, of the predictions less the mean "
        "of their training words. Distances: Spearman's rho, over pairs of words, of cosine distances with Euclidean "
        f"distances of standardised ratings; of more than {MOST_WORDS} words a sample. Intervals: bootstrap over "
        "words, predictions and ranks of pairs held fixed; p: from the same resamples. Ceiling: the square root of the "
        "ratings' reliability.",
        tuple(measures),
        tuple(tables),
        tuple(pictures),
        {**(left_out or {}), **{what: count for what, count in counts.items() if count}},
    )


def median_estimate(estimates: Sequence[Estimate]) -> Estimate:
    """Return the median of figures of the same items; its influence is that of the middle one or two."""
    order = np.argsort([one.value for one in estimates], kind="stable")
    middle = [estimates[place] for place in order[(len(order) - 1) // 2 : len(order) // 2 + 1]]
    return Estimate(
        float(np.median([one.value for one in estimates])),
        np.median([one.resampled for one in estimates], axis=0),
        np.mean([one.influence for one in middle], axis=0),
    )


def _part(rated: RatedWords, words: Int[np.ndarray, " word"], dimensions: Int[np.ndarray, " dimension"]) -> RatedWords:
    """Return some of the words and dimensions."""
    kept = dimensions.tolist()
    return replace(
        rated,
        words=tuple(rated.words[row] for row in words.tolist()),
        dimensions=tuple(rated.dimensions[one] for one in kept),
        ratings=rated.ratings[np.ix_(words, dimensions)],
        groups=tuple(rated.groups[one] for one in kept) if rated.groups else (),
        reliability=rated.reliability[kept] if len(rated.reliability) else rated.reliability,
        profile=None if rated.profile is None else rated.profile[words],
    )


def _unusable(column: Float[np.ndarray, " word"]) -> str:
    """Return why a dimension cannot be predicted; empty if it can."""
    rated = column[np.isfinite(column)]
    if len(rated) < LEAST_WORDS:
        return f"rated for {len(rated)} words with a vector, fewer than {LEAST_WORDS}"
    if np.ptp(rated) <= ROUNDING * np.abs(rated).max():
        return f"constant: {rated[0]:g} for all {len(rated)} words"
    return ""


def _predicted(vectors: Vectors, place: Mapping[str, int], rated: RatedWords, folds: int) -> Predicted:
    rows = np.array([place[word] for word in rated.words])
    some = np.flatnonzero(np.isfinite(rated.ratings).any(axis=1))
    if len(some) < len(rows):
        rated, rows = _part(rated, some, np.arange(len(rated.dimensions))), rows[some]
    predictions = {model: held_out(own[rows], rated.ratings, folds) for model, own in vectors.items()}
    scores = {model: one.deviation for model, one in predictions.items()}
    groups = {
        group: [number for number, own in enumerate(rated.groups) if own == group]
        for group in sorted(dict.fromkeys(rated.groups), key=lambda group: group == OTHER)
    }
    return Predicted(rated, rows, predictions, by_column(scores, rated.ratings, tuple(KINDS)), groups)


def _of_sets(vectors: Vectors, found: Mapping[str, Predicted]) -> tuple[list[Measure], list[Table], list[Picture], int]:
    """Return the measures, tables and pictures of all sets, and how many words are left out of the distances."""
    measures: list[Measure] = []
    pictures: list[Picture] = []
    incomplete = 0
    for name, one in found.items():
        measures += _measures(name, one)
        measures += _profile(name, one)
        complete = np.flatnonzero(np.isfinite(one.rated.ratings).all(axis=1))
        incomplete += len(one.rows) - len(complete)
        measures += _distances(name, one, vectors, complete[sample(len(complete))])
        pictures.append(_picture(name, one, measures))
    return measures, [_sets(found), _groups(found), _dimensions(found)], pictures, incomplete


def _measures(name: str, found: Predicted) -> Iterator[Measure]:
    """Return the medians over all dimensions, and those of each group, or the dimensions where there are no groups."""
    words, everything = len(found.rows), list(range(len(found.dimensions)))

    def of(key: str, label: str, estimates: Mapping[str, Estimate]) -> Measure:
        return measure(f"{slug(name)}/{key}", f"{name}, {label}", words, estimates, resampled_tests(estimates))

    what = f"median of {len(everything)} dimensions" if len(everything) > 1 else found.rated.dimensions[0]
    for kind, label in KINDS.items():
        yield of(kind, f"{what}: {label}", found.median_of(everything, kind))
    if len(found.groups) > 1:
        for group, own in found.groups.items():
            label = f"median of {len(own)}" if len(own) > 1 else "1 dimension"
            estimates = found.median_of(own, "spearman")
            yield of(f"group/{slug(group)}/spearman", f"{group} ({label}): Spearman rho", estimates)
    elif 1 < len(everything) <= MOST_ALONE:
        for dimension, estimates in zip(found.rated.dimensions, found.dimensions, strict=True):
            key = f"dimension/{slug(dimension)}/spearman"
            yield of(key, f"{dimension}: Spearman rho", estimates["spearman"])


def _profile(name: str, found: Predicted) -> Iterator[Measure]:
    """Return the median correlation of words' predicted and rated profiles, where the file says a rater's."""
    if found.rated.profile is None:
        return
    scores = profiles(found.rated.ratings, {model: one.deviation + one.mean for model, one in found.held_out.items()})
    count = len(next(iter(scores.values())))
    if count:
        label = f"{name}, profile of a word over its dimensions, median: Pearson r"
        yield measure(f"{slug(name)}/profile/pearson", label, count, over_items(scores, median), paired_tests(scores))


def profiles(
    rated: Float[np.ndarray, "word dimension"], predicted: Mapping[str, Float[np.ndarray, "word dimension"]]
) -> dict[str, Float[np.ndarray, " profile"]]:
    """Return Pearson's r of each word's predicted ratings with its own, over the dimensions that it has.

    Words with fewer than FEWEST ratings, or with equal ones, have none.
    """
    has = np.isfinite(rated)
    means = np.where(has, rated, 0).sum(axis=1) / np.maximum(1, has.sum(axis=1))
    y = np.where(has, rated - means[:, None], 0)
    kept = (has.sum(axis=1) >= FEWEST) & ((y**2).sum(axis=1) > ROUNDING)
    found = {}
    for model, values in predicted.items():
        x = np.where(has, values, 0)
        x = np.where(has, x - x.sum(axis=1, keepdims=True) / np.maximum(1, has.sum(axis=1, keepdims=True)), 0)
        lengths = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
        found[model] = ((x * y).sum(axis=1)[kept] / lengths[kept]).clip(-1, 1)
    return found


def _distances(name: str, found: Predicted, vectors: Vectors, chosen: Int[np.ndarray, " word"]) -> Iterator[Measure]:
    """Return the correlation of distances over the chosen words, if there are enough and no dimension is constant."""
    own = found.rated.ratings[chosen]
    varied = np.ptp(own, axis=0) > 0 if len(own) else np.zeros(0, dtype=np.bool_)
    if len(chosen) < FEWEST or not varied.any():
        return
    estimates = representational_similarity(
        {model: rows[found.rows[chosen]] for model, rows in vectors.items()}, own[:, varied]
    )
    label = f"{name}, distances of words: Spearman rho"
    yield measure(f"{slug(name)}/distances/spearman", label, len(chosen), estimates, resampled_tests(estimates))


def _picture(name: str, found: Predicted, measures: Sequence[Measure]) -> Picture:
    """Return bars of the groups or dimensions, or the spread of many dimensions without groups."""
    key, title = f"ratings/{slug(name)}", f"{name}: ratings predicted for held-out words"
    y = "held-out Spearman rho"
    of_key = {one.key: one for one in measures}
    bars = {group: f"{slug(name)}/group/{slug(group)}/spearman" for group in found.groups}
    bars = bars or {one: f"{slug(name)}/dimension/{slug(one)}/spearman" for one in found.rated.dimensions}
    whole = of_key[f"{slug(name)}/spearman"].values
    if len(found.dimensions) == 1:
        return Bars(key, title, y, {found.rated.dimensions[0]: whole})
    if all(one in of_key for one in bars.values()):
        return Bars(key, title, y, {"all: median": whole, **{group: of_key[one].values for group, one in bars.items()}})
    of_models = {model: tuple(one["spearman"][model].value for one in found.dimensions) for model in found.held_out}
    return Spread(key, title, y, {"dimensions": of_models})


def _sets(found: Mapping[str, Predicted]) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (
            name,
            len(one.rows),
            len(one.dimensions),
            one.ceiling(range(len(one.dimensions))),
            None if one.rated.profile is None else float(np.nanmedian(one.rated.profile)),
        )
        for name, one in found.items()
    ]
    columns = ("set", "words used", "dimensions used", "ceiling of r, median", "profile of one rater: median r")
    return Table("Words and dimensions used", columns, tuple(rows))


def _groups(found: Mapping[str, Predicted]) -> Table:
    models = list(next(iter(found.values())).held_out)
    rows: list[tuple[Cell, ...]] = []
    for name, one in found.items():
        for group, own in {"all": list(range(len(one.dimensions))), **one.groups}.items():
            medians = {kind: one.median_of(own, kind) for kind in KINDS}
            values = [medians[kind][model].value for model in models for kind in KINDS]
            rows.append((name, group, len(own), one.ceiling(own), *values))
    columns = [f"{model}: {label}" for model in models for label in KINDS.values()]
    return Table(
        "Median of each group of dimensions", ("set", "group", "dimensions", "ceiling of r", *columns), tuple(rows)
    )


def _dimensions(found: Mapping[str, Predicted]) -> Table:
    models = list(next(iter(found.values())).held_out)
    rows: list[tuple[Cell, ...]] = []
    for name, one in found.items():
        for number, (dimension, estimates) in enumerate(zip(one.rated.dimensions, one.dimensions, strict=True)):
            cells: list[Cell] = []
            for model in models:
                rho = estimates["spearman"][model].with_interval()
                cells += [rho.value, rho.low, rho.high, estimates["pearson"][model].value]
            group = one.rated.groups[number] if one.rated.groups else None
            words = int(np.isfinite(one.rated.ratings[:, number]).sum())
            rows.append((name, dimension, group, words, one.ceiling([number]), *cells))
    columns = [f"{model}: {what}" for model in models for what in ("Spearman rho", "low", "high", "Pearson r")]
    return Table(
        "Correlation of each dimension", ("set", "dimension", "group", "words", "ceiling of r", *columns), tuple(rows)
    )
