"""Held-out predictions against scikit-learn's nested cross-validation, and against one written out."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from groundray.analysis.measures import directions, ridge
from groundray.analysis.measures.ridge import PENALTIES, SEED, held_out


def made(words: int, dim: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of uneven scale with a constant column, and ratings: two that the vectors tell, one that is chance."""
    draw = np.random.default_rng(seed)
    X = (draw.normal(size=(words, dim)) * draw.uniform(0.1, 30, dim) + 3).astype(np.float32)
    X[:, -1] = 0.3
    told = X[:, :2] / X[:, :2].std(axis=0) + draw.normal(size=(words, 2)) / 2
    return X, np.concatenate([told, draw.normal(size=(words, 1))], axis=1)


@pytest.mark.parametrize(("words", "dim"), [(60, 8), (40, 55), (40, 36)], ids=["long", "wide", "in between"])
def test_predictions_are_scikit_learns(words: int, dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    X, Y = made(words, dim)
    monkeypatch.setattr(directions, "NUMBERS", 500)  # several blocks of rows
    found = held_out(X, Y, 5)
    expected, means = np.empty_like(Y), np.empty_like(Y)
    for train, test in KFold(5, shuffle=True, random_state=SEED).split(X):
        model = make_pipeline(StandardScaler(), RidgeCV(PENALTIES, alpha_per_target=True))
        expected[test] = model.fit(X[train].astype(np.float64), Y[train]).predict(X[test].astype(np.float64))
        means[test] = Y[train].mean(axis=0)
    # both are exact; their decompositions differ by rounding
    np.testing.assert_allclose(found.deviation + found.mean, expected, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(found.mean, means, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dim", [4, 20])
def test_the_leave_one_out_error_is_the_one_written_out(dim: int) -> None:
    draw = np.random.default_rng(1)
    X = draw.normal(size=(18, dim))
    Y = np.stack([X[:, 0] + draw.normal(size=18) * noise for noise in (0.1, 1, 3)], axis=1)
    found = held_out(X, Y, 3)
    chosen = []
    for train, test in KFold(3, shuffle=True, random_state=SEED).split(X):
        for column in range(3):
            expected, penalty = reference.ridge(X[train], Y[train, column], X[test], PENALTIES.tolist())
            np.testing.assert_allclose(found.deviation[test, column], expected, rtol=1e-7, atol=1e-9)
            chosen.append(penalty)
    assert len(set(chosen)) > 1  # the penalty is chosen, not fixed


def test_missing_ratings_leave_their_words_out_of_that_dimension_alone() -> None:
    X, Y = made(60, 8)
    gaps = Y.copy()
    gaps[::7, 0] = np.nan
    found, whole = held_out(X, gaps, 5), held_out(X, Y, 5)
    np.testing.assert_array_equal(np.isnan(found.deviation), np.isnan(gaps))
    np.testing.assert_allclose(found.deviation[:, 1:], whole.deviation[:, 1:], rtol=1e-9, atol=1e-12)
    rated = np.flatnonzero(np.isfinite(gaps[:, 0]))
    for train, test in KFold(5, shuffle=True, random_state=SEED).split(X):
        train, test = np.intersect1d(train, rated), np.intersect1d(test, rated)
        model = make_pipeline(StandardScaler(), RidgeCV(PENALTIES)).fit(X[train].astype(np.float64), Y[train, 0])
        predicted = model.predict(X[test].astype(np.float64))
        np.testing.assert_allclose((found.deviation + found.mean)[test, 0], predicted, rtol=1e-7, atol=1e-9)


def test_chance_is_predicted_backwards_less_without_the_means_of_folds() -> None:
    """The means of the training words correlate negatively with what they leave out."""
    draw = np.random.default_rng(2)
    X, Y = draw.normal(size=(60, 5)), draw.normal(size=(60, 200))
    found = held_out(X, Y, 10)

    def mean_r(predicted: np.ndarray) -> float:
        return float(np.mean([np.corrcoef(predicted[:, column], Y[:, column])[0, 1] for column in range(200)]))

    assert mean_r(found.mean) < -0.35
    assert mean_r(found.deviation + found.mean) < 1.5 * mean_r(found.deviation) < 0


@pytest.mark.parametrize(("folds", "rated"), [(1, 10), (11, 10), (2, 2)])
def test_folds_that_do_not_fit_are_refused(folds: int, rated: int) -> None:
    X, Y = made(10, 3)
    Y[rated:] = np.nan
    with pytest.raises(ValueError, match=r"expected 2 to 10 folds|at least 2 rated words outside"):
        held_out(X, Y, folds)


def test_all_words_are_held_out_once() -> None:
    X, Y = made(23, 3)
    assert np.isfinite(ridge.held_out(X, Y, 4).deviation).all()
