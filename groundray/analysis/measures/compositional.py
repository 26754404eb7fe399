"""Compositional sets: whether a model prefers the true caption to others of the same words or nearly so.

Two controls show what a set tells without its pictures: captions scored with a blank image, and text alone, a caption's
mean score with other pictures of the set. A set on which they are far above chance can be solved without looking.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata

from groundray.analysis.inputs.compositional_scores import SetScores
from groundray.analysis.inputs.compositional_sets import NAMED, CompositionalSet
from groundray.analysis.measures.proportion import mean_over_classes, shares
from groundray.analysis.measures.statistics import FEWEST, Estimate, draws, measure, refuse_unfinite
from groundray.analysis.result import Analysis, Cell, Measure, Table

FOLDS = 5  # of the images, for the threshold
VIEWS = {"": "", "blank_image/": ", blank image", "text_alone/": ", text alone"}
CHANCE = {"text": 0.25, "image": 0.25, "group": 1 / 6}  # of random scores (Thrush et al. 2022)

Scores = Float[np.ndarray, "item image caption"]
Hits = dict[str, Float[np.ndarray, " item"]]


@dataclass(frozen=True)
class _Scored:
    """The usable items of a set, with the scores of each model: the images', a blank image's, and text alone."""

    some: CompositionalSet
    rows: Int[np.ndarray, " item"]
    views: dict[str, dict[str, Scores]]

    @property
    def categories(self) -> list[str]:
        return [self.some.items[row].category for row in self.rows]


def compositional(
    sets: Sequence[CompositionalSet], scores: Mapping[str, Mapping[str, SetScores]], how: Mapping[str, str]
) -> Analysis:
    """Return the accuracy of each model on each set.

    Args:
        scores: by model and the set's name.
        how: what each model compares images and texts by.

    Raises:
        ValueError: no item of a set has a usable picture, or a score of a set of true and false captions is not finite.
    """
    measures: list[Measure] = []
    tables: list[Table] = []
    left_out: dict[str, int] = {}
    problems: list[tuple[Cell, ...]] = []
    for some in sets:
        found = {model: of_sets[some.name] for model, of_sets in scores.items()}
        scored = _usable(some, found)
        own = {"choice": _choice, "pairs": _pairs, "truth": _truth}[some.task](scored)
        measures += own.measures
        tables += [_overview(scored, own, how), *_by_category(scored, own.hits)]
        unusable = next(iter(found.values())).unusable
        counts = {f"malformed entries of {some.name}": some.left_out.total()}
        for problem in unusable.values():
            counts[name] = counts.get(name := f"entries of {some.name} with a picture that is {problem.reason}", 0) + 1
        for model, one in found.items():
            counts[f"captions of {some.name} with pieces that {model} does not know"] = one.unknown
        left_out |= {name: count for name, count in counts.items() if count}
        problems += [(some.name, *problem) for problem in some.problems]
        problems += [
            (some.name, some.items[number].where, str(problem)) for number, problem in list(unusable.items())[:NAMED]
        ]
    if problems:
        tables.append(Table("Entries that cannot be used", ("set", "entry", "why"), tuple(problems)))
    return Analysis(
        "compositional",
        "Whether the true caption of an image scores higher than others of the same words or nearly so; equal scores "
        "count against the model. Blank image: the same captions with an image of the mean colour. Text alone: a "
        "caption's mean score with other pictures of the set. Shares have Wilson's intervals (1927); means over "
        "categories, areas and differences are resampled over entries.",
        tuple(measures),
        tuple(tables),
        left_out=left_out,
    )


@dataclass(frozen=True)
class _Made:
    """Measures of a set, chance by the measure's key without the view, and which entries are right by category."""

    measures: list[Measure]
    chance: dict[str, float]
    hits: Hits


def _usable(some: CompositionalSet, found: Mapping[str, SetScores]) -> _Scored:
    bad = {number: problem for one in found.values() for number, problem in one.unusable.items()}
    rows = np.array([row for row in range(len(some.items)) if row not in bad], dtype=np.int64)
    if len(rows) == 0:
        first = min(bad)
        raise ValueError(
            f"{some.name}: expected entries with a picture, got none: {some.items[first].where}: {bad[first]}"
        )
    images = next(iter(found.values())).own.shape[1]
    views = {
        "": {model: one.own[rows] for model, one in found.items()},
        "blank_image/": {model: np.repeat(one.blank[rows, None], images, axis=1) for model, one in found.items()},
        "text_alone/": {model: np.repeat(one.others[rows, None], images, axis=1) for model, one in found.items()},
    }
    if any(np.isnan(one.others[rows, 0]).any() for one in found.values()):
        del views["text_alone/"]  # an entry has no other picture to be compared with
    return _Scored(some, rows, views)


def _choice(scored: _Scored) -> _Made:
    """Return accuracies of finding the true caption, and their means over categories where there are several."""
    name = scored.some.name
    counts = np.array([len(scored.some.items[row].captions) for row in scored.rows])
    numbers = np.unique(scored.categories, return_inverse=True)[1]
    measures = []
    for view, title in VIEWS.items():
        if view not in scored.views:
            continue
        hits = {model: chosen(S[:, 0]) for model, S in scored.views[view].items()}
        measures.append(shares(f"{name}/{view}accuracy", f"{name}: accuracy{title}", hits))
        if numbers.max() > 0:
            of_classes = {model: mean_over_classes(one, numbers) for model, one in hits.items()}
            key, label = f"{name}/{view}category_mean", f"{name}: mean over categories{title}"
            measures.append(measure(key, label, int(numbers.max()) + 1, of_classes))
    chance = {"accuracy": float((1 / counts).mean())}
    chance["category_mean"] = float(np.mean([(1 / counts[numbers == one]).mean() for one in np.unique(numbers)]))
    return _Made(measures, chance, {model: chosen(S[:, 0]) for model, S in scored.views[""].items()})


def chosen(S: Float[np.ndarray, "item caption"]) -> Float[np.ndarray, " item"]:
    """Return 1 where the first caption scores higher than all others that an item has, else 0; 0 of NaN."""
    others = np.where(np.isnan(S[:, 1:]), -np.inf, S[:, 1:]).max(axis=1)
    return (S[:, 0] > others).astype(np.float64)


def _pairs(scored: _Scored) -> _Made:
    """Return Winoground's text, image and group scores."""
    name, measures = scored.some.name, []
    for view, title in VIEWS.items():
        found = {model: matched(S) for model, S in scored.views.get(view, {}).items()}
        for kind in CHANCE if found else ():
            hits = {model: one[kind] for model, one in found.items()}
            measures.append(shares(f"{name}/{view}{kind}", f"{name}: {kind} score{title}", hits))
    return _Made(measures, CHANCE, {model: matched(S)["group"] for model, S in scored.views[""].items()})


def matched(S: Float[np.ndarray, "item 2 2"]) -> dict[str, Float[np.ndarray, " item"]]:
    """Return which items are right: `text`, each image prefers its caption; `image`, each caption prefers its image;
    `group`, both (Thrush et al. 2022).

    Args:
        S: score of each image and each caption of an item.
    """
    own_0, own_1, first_1, second_0 = S[:, 0, 0], S[:, 1, 1], S[:, 0, 1], S[:, 1, 0]
    text = (own_0 > first_1) & (own_1 > second_0)
    image = (own_0 > second_0) & (own_1 > first_1)
    return {name: one.astype(np.float64) for name, one in (("text", text), ("image", image), ("group", text & image))}


def _truth(scored: _Scored) -> _Made:
    """Return how well scores tell true captions from false ones: the area under the ROC curve, and the accuracy of a
    threshold that is chosen on other images."""
    name, items = scored.some.name, [scored.some.items[row] for row in scored.rows]
    truth = np.array([item.is_true for item in items])
    images = {key: number for number, key in enumerate(dict.fromkeys(item.images[0].key for item in items))}
    fold = np.array([images[item.images[0].key] % FOLDS for item in items])
    measures, own = [], {}
    for view, title in VIEWS.items():
        found = {model: S[:, 0, 0] for model, S in scored.views.get(view, {}).items()}
        if not found:
            continue
        refuse_unfinite(found)
        if 0 < truth.sum() < len(truth):
            areas = {model: area(one, truth) for model, one in found.items()}
            measures.append(measure(f"{name}/{view}auc", f"{name}: area under ROC{title}", len(truth), areas))
        hits = {model: by_threshold(one, truth, fold) for model, one in found.items()}
        measures.append(shares(f"{name}/{view}accuracy", f"{name}: accuracy by threshold{title}", hits))
        own = own or hits
    majority = float(max(truth.mean(), 1 - truth.mean()))
    return _Made(measures, {"auc": 0.5, "accuracy": majority}, own)


def area(scores: Float[np.ndarray, " item"], truth: Bool[np.ndarray, " item"]) -> Estimate:
    """Return the share of pairs of a true and a false item in which the true one scores higher, ties counted half."""
    resampled = [
        _area(scores[row], truth[row])[0] for drawn in draws(len(truth)) for row in drawn if len(truth) >= FEWEST
    ]
    value, above = _area(scores, truth)
    return Estimate(
        value, np.array(resampled, dtype=np.float64), (above - value) / np.where(truth, truth.sum(), (~truth).sum())
    )


def _area(
    scores: Float[np.ndarray, " item"], truth: Bool[np.ndarray, " item"]
) -> tuple[float, Float[np.ndarray, " item"]]:
    """Return the area, NaN without true or without false items; and for each item the share of the others' kind that
    it is ranked rightly with."""
    true, false = int(truth.sum()), int((~truth).sum())
    if not true or not false:
        return float("nan"), np.zeros(len(truth))
    whole = rankdata(scores)
    within = np.empty(len(truth))
    within[truth], within[~truth] = rankdata(scores[truth]), rankdata(scores[~truth])
    below = whole - within  # items of the other kind that score lower, ties half
    above = np.where(truth, below / false, 1 - below / true)
    return float(above[truth].mean()), above


def by_threshold(
    scores: Float[np.ndarray, " item"], truth: Bool[np.ndarray, " item"], fold: Int[np.ndarray, " item"]
) -> Float[np.ndarray, " item"]:
    """Return 1 for the items that a threshold is right on, which was chosen for the most right items of other folds."""
    right = np.zeros(len(scores))
    for one in np.unique(fold):
        held_out = fold == one
        cut = threshold(scores[~held_out], truth[~held_out])
        right[held_out] = (scores[held_out] > cut) == truth[held_out]
    return right


def threshold(scores: Float[np.ndarray, " item"], truth: Bool[np.ndarray, " item"]) -> float:
    """Return the lowest threshold above which calling items true is right most often: minus infinity, or a score."""
    order = np.argsort(scores, kind="stable")
    values, true = scores[order], truth[order]
    right = np.concatenate([[true.sum()], true.sum() + np.cumsum(np.where(true, -1, 1))])
    ends = np.concatenate([[True], np.append(values[1:] != values[:-1], True)]) if len(values) else np.array([True])
    best = int(np.argmax(np.where(ends, right, -1)))
    return float(values[best - 1]) if best else -np.inf


def _overview(scored: _Scored, made: _Made, how: Mapping[str, str]) -> Table:
    prefix = f"{scored.some.name}/"
    columns = [one.name.removeprefix(f"{scored.some.name}: ") for one in made.measures]
    rows: list[tuple[Cell, ...]] = [
        (model, compared, *(one.values[model].value for one in made.measures)) for model, compared in how.items()
    ]
    keys = [one.key.removeprefix(prefix).rpartition("/")[2] for one in made.measures]
    rows.append(("chance", "", *(made.chance[key] for key in keys)))
    title = f"{scored.some.name}: {len(scored.rows):,} entries"
    return Table(title, ("", "compared by", *columns), tuple(rows))


def _by_category(scored: _Scored, hits: Hits) -> list[Table]:
    names = np.array(scored.categories)
    if len(set(scored.categories)) < 2:
        return []
    rows = tuple(
        (str(name), int((names == name).sum()), *(float(one[names == name].mean()) for one in hits.values()))
        for name in np.unique(names)
    )
    what = {"choice": "accuracy", "pairs": "group score", "truth": "accuracy by threshold"}[scored.some.task]
    return [Table(f"{scored.some.name}: {what} of each category", ("category", "entries", *hits), rows)]
