"""Features of concepts, predicted from the concepts' vectors by one classifier per feature."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import joblib
import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csc_array, csr_array
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from groundray.analysis.inputs import published
from groundray.analysis.measures.directions import Vectors, check
from groundray.analysis.measures.statistics import QUARTILES, Scores, measure, over_items, paired_tests, slug
from groundray.analysis.result import Analysis, Measure, Spread, Table

Weighting = Literal["none", "balanced"]

SEED = 802
TYPES = ("visual", "other perceptual", "functional", "encyclopaedic", "taxonomic")  # in the paper's order
ALL, UNTYPED = "all", "untyped"
TOLERANCE = 1e-8  # of the gradient: below it, predictions no longer change
PARALLEL_FROM = 200  # number of classifiers from which several processes are faster


@dataclass(frozen=True)
class ClassifierOptions:
    """Options of the classifiers that predict features.

    Attributes:
        folds: folds of the cross-validation, 2 or more. A feature that fewer concepts have, or lack, is omitted and
            counted, since some fold would be without it.
        weighting: `balanced` gives the concepts that have a feature as much weight as those that lack it: F1 rises, at
            the price of precision.
        strength: scikit-learn's C, the inverse of the L2 penalty, above 0.
        processes: number of processes; None for one per CPU if there are enough classifiers.
    """

    folds: int = 5
    weighting: Weighting = "none"
    strength: float = 1.0
    processes: int | None = None


DEFAULT = ClassifierOptions()


def feature_norms(
    vectors: Vectors,
    concepts: Sequence[str],
    features: Sequence[str],
    has: csr_array,
    types: Sequence[str],
    options: ClassifierOptions = DEFAULT,
    left_out: Mapping[str, int] | None = None,
) -> Analysis:
    """Measure how well each feature is predicted from the vectors of held-out concepts, by type of feature.

    Args:
        has: sparse matrix with a row for each concept and a column for each feature, 1 where the concept has it.
        types: type of each feature; empty if it has none.
        left_out: counts of what was omitted before; the result repeats them.

    Raises:
        ValueError: no feature has enough concepts, the arguments do not fit each other, or the vectors fail `check`.
    """
    check(vectors, concepts)
    _check_arguments(concepts, features, has, types, options)
    columns = has.tocsc()
    positive = np.diff(columns.indptr)
    rare, common = positive < options.folds, len(concepts) - positive < options.folds
    usable = np.flatnonzero(~rare & ~common).tolist()
    if not usable:
        raise ValueError(
            f"expected a feature that at least {options.folds} concepts have and {options.folds} do not, got none of "
            f"{len(features)}: the commonest has {max(positive, default=0)} of {len(concepts)} concepts; "
            "use fewer folds"
        )
    scores = scored(vectors, columns[:, usable], options)
    kinds = [types[number].strip() or UNTYPED for number in usable]
    groups = _groups(kinds)
    counts = {
        f"features of fewer than {options.folds} concepts": int(rare.sum()),
        f"features that fewer than {options.folds} concepts lack": int((common & ~rare).sum()),
    }
    spread = {
        kind: {model: tuple(values[own].tolist()) for model, values in scores.items()} for kind, own in groups.items()
    }
    return Analysis(
        "norms",
        f"F1 of {len(usable)} features of {len(concepts)} concepts, each predicted by L2-penalised logistic regression "
        f"(C = {options.strength:g}, class weights: {options.weighting}) of vectors standardised in each training "
        f"fold; over the held-out concepts of all {options.folds} stratified folds, which are the same for all models. "
        "Intervals and p: over features. Published: of the CSLB norms.",
        tuple(_measures(scores, groups)),
        (_table(scores, [features[number] for number in usable], kinds, positive[usable], len(concepts)),),
        (Spread("norms/f1", "How well features are predicted", "held-out F1", spread),),
        {**(left_out or {}), **{what: count for what, count in counts.items() if count}},
    )


def _check_arguments(
    concepts: Sequence[str],
    features: Sequence[str],
    has: csr_array,
    types: Sequence[str],
    options: ClassifierOptions,
) -> None:
    if has.shape != (len(concepts), len(features)) or len(types) != len(features):
        raise ValueError(
            f"expected features of {len(concepts)} concepts and a type for each of {len(features)} features, got "
            f"{has.shape} and {len(types)} types"
        )
    if options.folds < 2 or options.strength <= 0:
        raise ValueError(
            f"expected at least 2 folds and a strength above 0, got {options.folds} and {options.strength:g}"
        )


def _measures(scores: Scores, groups: Mapping[str, list[int]]) -> Iterator[Measure]:
    """Yield the quartiles of F1 for each type of feature."""
    for kind, own in groups.items():
        of_kind = {model: values[own] for model, values in scores.items()}
        tests = paired_tests(of_kind)
        for name, figure in QUARTILES.items():
            key = f"f1/{slug(kind)}/{name}"
            label = f"F1 of {kind} features: {name.replace('_', ' ')}"
            tested = tests if name == "median" else {}
            yield measure(key, label, len(own), over_items(of_kind, figure), tested, published.of("norms", key))


def _table(
    scores: Scores, features: Sequence[str], kinds: Sequence[str], positive: Int[np.ndarray, " feature"], concepts: int
) -> Table:
    """Return the F1 of each feature, beside that of always predicting it."""
    always = 2 * positive / (positive + concepts)
    rows = tuple(
        (feature, kind, int(count), float(bound), *(float(values[index]) for values in scores.values()))
        for index, (feature, kind, count, bound) in enumerate(zip(features, kinds, positive, always, strict=True))
    )
    return Table("F1 of each feature", ("feature", "type", "concepts", "F1 of always yes", *scores), rows)


def scored(vectors: Vectors, has: csc_array, options: ClassifierOptions = DEFAULT) -> Scores:
    """Return the held-out F1 of each feature, by model."""
    count = len(has.indptr) - 1
    processes = options.processes
    if processes is None:
        processes = joblib.cpu_count() if count * len(vectors) * options.folds >= PARALLEL_FROM else 1

    scores = {}
    for model, rows in vectors.items():
        X = rows.astype(np.float64)
        f1 = joblib.Parallel(n_jobs=processes)(
            joblib.delayed(held_out_f1)(
                X, _column(has, feature, len(X)), options.folds, options.weighting, options.strength
            )
            for feature in range(count)
        )
        scores[model] = np.array(f1, dtype=np.float64)
    return scores


def _column(has: csc_array, feature: int, concepts: int) -> Bool[np.ndarray, " concept"]:
    """Return which concepts have a feature."""
    found = np.zeros(concepts, dtype=np.bool_)
    found[has.indices[has.indptr[feature] : has.indptr[feature + 1]]] = True
    return found


def held_out_f1(
    X: Float[np.ndarray, "concept dim"],
    has: Bool[np.ndarray, " concept"],
    folds: int,
    weighting: Weighting,
    strength: float,
) -> float:
    """Return F1 = 2 TP / (2 TP + FP + FN) of a feature; no classifier has seen the concepts that it predicts."""
    predicted = np.zeros(len(has), dtype=np.bool_)
    weights = None if weighting == "none" else weighting
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        for train, held_out in StratifiedKFold(folds, shuffle=True, random_state=SEED).split(X, has):
            classifier = make_pipeline(
                StandardScaler(copy=False),  # the rows of a fold are copies
                LogisticRegression(C=strength, class_weight=weights, tol=TOLERANCE, max_iter=10_000),
            )
            try:
                classifier.fit(X[train], has[train])
            except ConvergenceWarning:
                raise ValueError(
                    f"expected a classifier that converges, got none with strength {strength:g}: use a smaller one"
                ) from None
            predicted[held_out] = classifier.predict(X[held_out])
    return 2 * float((predicted & has).sum()) / float(predicted.sum() + has.sum())


def _groups(kinds: Sequence[str]) -> dict[str, list[int]]:
    """Return the features of each type, the paper's types first; and of all, if there are several types or none."""
    every = list(range(len(kinds)))
    if set(kinds) == {UNTYPED}:
        return {ALL: every}
    order = [kind for kind in TYPES if kind in kinds] + sorted(set(kinds) - set(TYPES))
    groups = {kind: [index for index in every if kinds[index] == kind] for kind in order}
    return {ALL: every, **groups} if len(groups) > 1 else groups
