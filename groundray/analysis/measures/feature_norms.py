"""Which features of a concept its vector tells: a classifier a feature, scored on concepts that it never saw."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Literal

import joblib
import numpy as np
from jaxtyping import Bool, Float
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from groundray.analysis.inputs import published
from groundray.analysis.measures.directions import Vectors, checked
from groundray.analysis.measures.statistics import QUARTILES, measure, over_items, paired_tests, slug
from groundray.analysis.result import Analysis, Spread, Table

Weighting = Literal["none", "balanced"]

SEED = 802
TYPES = ("visual", "other perceptual", "functional", "encyclopaedic", "taxonomic")  # the paper's, in its order
ALL, UNTYPED = "all", "untyped"
TOLERANCE = 1e-8  # of the gradient: decisions no longer change
MANY = 200  # classifiers are worth starting processes for


def norms(
    vectors: Vectors,
    concepts: Sequence[str],
    features: Sequence[str],
    has: Bool[np.ndarray, "concept feature"],
    types: Sequence[str],
    folds: int = 5,
    weighting: Weighting = "none",
    strength: float = 1.0,
    jobs: int | None = None,
    left_out: Mapping[str, int] | None = None,
) -> Analysis:
    """How well each feature is predicted from the vectors of concepts held out, by type of feature.

    Args:
        has: which concept has which feature.
        types: of each feature; empty where it has none.
        folds: of the cross-validation. A feature that fewer concepts have, or lack, is left out and counted, as a fold
            would be without any.
        weighting: `balanced` gives the concepts that have a feature as much weight as those that do not; F1 is then
            higher, and at the price of precision.
        strength: scikit-learn's C, the inverse of the L2 penalty.
        jobs: processes; None: one for each CPU where there is enough to do.
        left_out: counts of what was left out before; the result repeats them.

    Raises:
        ValueError: no feature has enough concepts, the arguments do not fit each other, or vectors are not as `checked`
            asks.
    """
    found = checked(vectors, concepts)
    if has.shape != (len(concepts), len(features)) or len(types) != len(features):
        raise ValueError(
            f"expected features of {len(concepts)} concepts and a type for each of {len(features)} features, got "
            f"{has.shape} and {len(types)} types"
        )
    if folds < 2 or strength <= 0:
        raise ValueError(f"expected at least 2 folds and a strength above 0, got {folds} and {strength:g}")
    positive = has.sum(axis=0)
    few, common = positive < folds, len(concepts) - positive < folds
    kept = np.flatnonzero(~few & ~common).tolist()
    if not kept:
        raise ValueError(
            f"expected a feature that at least {folds} concepts have and {folds} do not, got none of {len(features)}: "
            f"the commonest has {max(positive, default=0)} of {len(concepts)} concepts; take fewer folds"
        )
    scores = scored(found, has[:, kept], folds, weighting, strength, jobs)
    kinds = [types[number].strip() or UNTYPED for number in kept]
    members = _groups(kinds)
    counts = {
        f"features of fewer than {folds} concepts": int(few.sum()),
        f"features that fewer than {folds} concepts lack": int((common & ~few).sum()),
    }
    measures = []
    for kind, own in members.items():
        of_kind = {model: values[own] for model, values in scores.items()}
        tests = paired_tests(of_kind)
        for name, figure in QUARTILES.items():
            key = f"f1/{slug(kind)}/{name}"
            estimates = over_items(of_kind, figure)
            label = f"F1 of {kind} features: {name.replace('_', ' ')}"
            tested = tests if name == "median" else {}
            measures.append(measure(key, label, len(own), estimates, tested, published.of("norms", key)))
    always = 2 * positive[kept] / (positive[kept] + len(concepts))
    rows = tuple(
        (
            features[number],
            kind,
            int(positive[number]),
            float(bound),
            *(float(values[place]) for values in scores.values()),
        )
        for place, (number, kind, bound) in enumerate(zip(kept, kinds, always, strict=True))
    )
    return Analysis(
        "norms",
        f"F1 of {len(kept)} features of {len(concepts)} concepts, each predicted by L2-penalised logistic regression "
        f"(C = {strength:g}, class weights: {weighting}) of vectors standardised in each training fold; over the "
        f"held-out concepts of all {folds} stratified folds, which are the same for all models. Intervals: bootstrap "
        "over features; p: Wilcoxon's signed-rank test over features. Published: of the CSLB norms.",
        tuple(measures),
        (Table("F1 of each feature", ("feature", "type", "concepts", "F1 of always yes", *scores), rows),),
        (
            Spread(
                "norms/f1",
                "How well features are predicted",
                "held-out F1",
                {
                    kind: {model: tuple(values[own].tolist()) for model, values in scores.items()}
                    for kind, own in members.items()
                },
            ),
        ),
        {**(left_out or {}), **{what: count for what, count in counts.items() if count}},
    )


def scored(
    vectors: Vectors,
    has: Bool[np.ndarray, "concept feature"],
    folds: int,
    weighting: Weighting = "none",
    strength: float = 1.0,
    jobs: int | None = None,
) -> dict[str, Float[np.ndarray, " feature"]]:
    """The held-out F1 of each feature, by model."""
    count = has.shape[1]
    if jobs is None:
        jobs = joblib.cpu_count() if count * len(vectors) * folds >= MANY else 1
    tasks = [(model, feature) for model in vectors for feature in range(count)]
    f1 = joblib.Parallel(n_jobs=jobs)(
        joblib.delayed(held_out_f1)(vectors[model], has[:, feature], folds, weighting, strength)
        for model, feature in tasks
    )
    return dict(zip(vectors, np.array(f1, dtype=np.float64).reshape(len(vectors), count), strict=True))


def held_out_f1(
    X: Float[np.ndarray, "concept dim"],
    has: Bool[np.ndarray, " concept"],
    folds: int,
    weighting: Weighting,
    strength: float,
) -> float:
    """2 TP / (2 TP + FP + FN) of a feature over all concepts, each predicted by the classifier that did not see it."""
    predicted = np.zeros(len(has), dtype=np.bool_)
    weights = None if weighting == "none" else weighting
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        for train, held_out in StratifiedKFold(folds, shuffle=True, random_state=SEED).split(X, has):
            classifier = make_pipeline(
                StandardScaler(),
                LogisticRegression(C=strength, class_weight=weights, tol=TOLERANCE, max_iter=10_000),
            )
            try:
                classifier.fit(X[train], has[train])
            except ConvergenceWarning:
                raise ValueError(
                    f"expected a classifier that settles, got none of strength {strength:g}: give a smaller one"
                ) from None
            predicted[held_out] = classifier.predict(X[held_out])
    return 2 * float((predicted & has).sum()) / float(predicted.sum() + has.sum())


def _groups(kinds: Sequence[str]) -> dict[str, list[int]]:
    """The features of each type, the paper's types first; and of all, where there are several types or none."""
    every = list(range(len(kinds)))
    if set(kinds) == {UNTYPED}:
        return {ALL: every}
    order = [kind for kind in TYPES if kind in kinds] + sorted(set(kinds) - set(TYPES))
    groups = {kind: [place for place in every if kinds[place] == kind] for kind in order}
    return {ALL: every, **groups} if len(groups) > 1 else groups
