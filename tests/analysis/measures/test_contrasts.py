"""Contrasts against SciPy's Mann-Whitney U, and their intervals against resamples one by one."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from groundray.analysis.inputs.category_contrasts import Contrast
from groundray.analysis.measures.axes import axes
from groundray.analysis.measures.contrasts import Sides, rank_biserial, told_apart
from groundray.analysis.measures.statistics import draws

HUMAN = Contrast("human or not", "human", "not", frozenset({"people", "jobs"}), frozenset({"*"}))
PEOPLE_OR_DOGS = Contrast("people or dogs", "people", "dogs", frozenset({"people"}), frozenset({"dogs", "cats"}))


def effect(scores: np.ndarray, first: np.ndarray) -> float:
    """Return the share of pairs in which the first side is higher, less the share in which it is lower."""
    return float(np.sign(scores[first][:, None] - scores[~first][None]).mean())


def weighted_effect(scores: np.ndarray, first: np.ndarray, weights: np.ndarray) -> float:
    pairs = weights[first][:, None] * weights[~first][None]
    return float((np.sign(scores[first][:, None] - scores[~first][None]) * pairs).sum() / pairs.sum())


def test_the_words_of_both_sides() -> None:
    words = ["nurse", "aunt", "pup", "tree", "nurse", "mate", "mate"]
    categories = ["jobs", "people", "dogs", "plants", "people", "people", "dogs"]
    every = Sides.of(HUMAN, words, categories)
    assert [words[row] for row in every.rows[every.first]] == ["nurse", "aunt", "mate"]
    assert [words[row] for row in every.rows[~every.first]] == ["pup", "tree"]
    assert (every.sizes, every.both) == ((3, 2), 0)
    some = Sides.of(PEOPLE_OR_DOGS, words, categories)
    assert [words[row] for row in some.rows] == ["nurse", "aunt", "pup"]
    assert (some.first.tolist(), some.both) == ([True, True, False], 1)  # mate is of both


def test_rank_biserial_correlation_with_ties_and_its_interval() -> None:
    draw = np.random.default_rng(3)
    first = draw.random(40) < 0.4
    scores = draw.normal(size=(40, 2)).round(1)
    scores[first, 1] -= 1
    found = rank_biserial({"m": scores, "n": -scores}, first)
    for axis in range(2):
        u = scipy.stats.mannwhitneyu(scores[first, axis], scores[~first, axis]).statistic
        expected = 2 * u / (first.sum() * (~first).sum()) - 1
        assert found[axis]["m"].value == pytest.approx(expected) == effect(scores[:, axis], first)
        assert found[axis]["n"].value == pytest.approx(-expected)
        resampled = [effect(scores[one, axis], first[one]) for block in draws(40) for one in block]
        np.testing.assert_allclose(found[axis]["m"].resampled, resampled)
        weights = np.eye(40) * 1e-6 + 1  # the derivative by each word's weight, by a small step
        steps = [(weighted_effect(scores[:, axis], first, one) - expected) / 1e-6 for one in weights]
        np.testing.assert_allclose(found[axis]["m"].influence, steps, atol=1e-6)


def test_resamples_without_a_side_have_no_effect() -> None:
    scores = np.arange(4.0)[:, None]
    found = rank_biserial({"m": scores}, np.array([True, False, False, False]))[0]["m"]
    assert found.value == -1
    undefined = np.isnan(found.resampled)
    assert 0 < undefined.sum() < len(undefined)
    assert set(found.resampled[~undefined]) == {-1.0}
    with pytest.raises(ValueError, match="words on both sides of a contrast, got 4 of 4 on one"):
        rank_biserial({"m": scores}, np.ones(4, dtype=bool))


def test_effects_are_without_sign_and_the_ends_are_named() -> None:
    words = [f"w{row}" for row in range(12)]
    categories = ["people"] * 6 + ["dogs"] * 6
    up = np.arange(12.0)[:, None]
    (one,) = told_apart({"up": up, "down": -up, "blind": up % 2}, (PEOPLE_OR_DOGS,), words, categories)
    (measure,) = one.measures
    assert measure.key == "pc1/contrast/people_or_dogs/rank_biserial"
    assert {model: value.value for model, value in measure.values.items()} == {"up": 1, "down": 1, "blind": 0}
    assert one.first_is_high == ({"up": False, "down": True, "blind": True},)
    change = {(pair.first, pair.other): pair.value for pair in measure.differences}
    assert change["up", "down"].value == change["up", "down"].low == change["up", "down"].high == 0
    assert change["up", "blind"].high < -0.3


def test_an_axis_of_humans_and_one_of_size() -> None:
    """The second axis is humans' by construction, the third is not: seen in measures, table, picture and counts."""
    draw = np.random.default_rng(0)
    categories = ["people"] * 30 + ["dogs"] * 30 + ["plants"] * 30
    human = np.repeat([1.0, 0, 0], 30)
    ratings = draw.normal(size=90)
    vectors = np.stack([9 * ratings, 12 * human, draw.normal(size=90), draw.normal(size=90) / 9], axis=1)
    absent = Contrast("rocks or not", "rocks", "not", frozenset({"rocks"}), frozenset({"*"}))
    found = axes(
        {"m": vectors, "mirrored": -vectors},
        [f"w{row}" for row in range(90)],
        categories,
        ratings,
        contrasts=(HUMAN, PEOPLE_OR_DOGS, absent),
    )
    of = {one.key: one for one in found.measures if "contrast" in one.key}
    assert len(of) == 6
    assert of["pc2/contrast/human_or_not/rank_biserial"].values["m"].value == 1
    assert of["pc2/contrast/human_or_not/rank_biserial"].items == 90
    assert of["pc2/contrast/people_or_dogs/rank_biserial"].items == 60
    assert of["pc3/contrast/human_or_not/rank_biserial"].values["m"].value < 0.3
    assert found.left_out == {"contrasts of categories that are not there": 1}
    (told,) = [one for one in found.tables if one.title.startswith("What each axis tells apart")]
    (second,) = [row for row in told.rows if row[:3] == ("human or not", "PC2", "m")]
    assert second[3:6] == (1, 1, 1)
    assert {second[6:8], second[8:]} == {("human", 30), ("not", 60)}
    (picture,) = [one for one in found.pictures if one.key == "axes/contrasts"]
    assert list(picture.groups)[1] == "human or not: PC2"
    assert picture.items["people or dogs: PC1"] == 60
