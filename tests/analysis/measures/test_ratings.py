"""Held-out correlations of ratings by dimension and group: against SciPy, on known answers, and on real norms."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold

from groundray.analysis.inputs.rating_tables import RatedWords, read_rated_words
from groundray.analysis.measures.correlation import by_column
from groundray.analysis.measures.ratings import median_estimate, profiles, ratings
from groundray.analysis.measures.ridge import PENALTIES, held_out
from groundray.analysis.measures.statistics import Estimate, resampled_tests
from groundray.analysis.result import Bars, Spread

SHARED = Path(__file__).parents[4] / "shared" / "data"
WORDS = tuple(f"w{number}" for number in range(60))


def made(seed: int = 0) -> tuple[dict[str, np.ndarray], RatedWords]:
    """Two models: one knows what the first three dimensions rate, the other nothing; the fourth dimension is chance."""
    draw = np.random.default_rng(seed)
    knows = draw.normal(size=(60, 6))
    values = knows[:, :3] * (1, 2, 3) + draw.normal(size=(60, 3)) * 0.3
    values = np.concatenate([values, draw.normal(size=(60, 1))], axis=1)
    dimensions, groups = ("red", "round", "kind", "odd"), ("visual", "visual", "social", "other")
    return {"knows": knows, "not": draw.normal(size=(60, 6))}, RatedWords(WORDS, dimensions, values, groups)


def test_correlations_are_scipys_of_the_held_out_predictions() -> None:
    models, rated = made()
    found = ratings(models, WORDS, {"own set": rated}, folds=5)
    by_key = {one.key: one for one in found.measures}
    assert list(by_key) == [
        "own_set/spearman",
        "own_set/pearson",
        "own_set/group/visual/spearman",
        "own_set/group/social/spearman",
        "own_set/group/other/spearman",
        "own_set/distances/spearman",
    ]
    for model, vectors in models.items():
        predicted = held_out(vectors, rated.ratings, 5).deviation
        rho = [scipy.stats.spearmanr(predicted[:, at], rated.ratings[:, at]).statistic for at in range(4)]
        r = [scipy.stats.pearsonr(predicted[:, at], rated.ratings[:, at]).statistic for at in range(4)]
        assert by_key["own_set/spearman"].values[model].value == pytest.approx(np.median(rho))
        assert by_key["own_set/pearson"].values[model].value == pytest.approx(np.median(r))
        assert by_key["own_set/group/visual/spearman"].values[model].value == pytest.approx(np.median(rho[:2]))
        assert by_key["own_set/group/social/spearman"].values[model].value == pytest.approx(rho[2])
    assert by_key["own_set/spearman"].items == 60
    assert found == ratings(models, WORDS, {"own set": rated}, folds=5)


def test_what_the_vectors_tell_is_predicted_and_chance_is_not() -> None:
    models, rated = made()
    by_key = {one.key: one for one in ratings(models, WORDS, {"set": rated}).measures}
    visual, other = by_key["set/group/visual/spearman"], by_key["set/group/other/spearman"]
    assert visual.values["knows"].value > 0.9
    for value in (visual.values["not"], *other.values.values()):
        assert value.low is not None
        assert value.low < 0
        assert value.value < 0.2
    assert visual.differences[0].value.high is not None
    assert visual.differences[0].value.high < -0.5
    assert visual.differences[0].p == pytest.approx(2 / 1001)
    assert other.differences[0].p is not None
    assert other.differences[0].p > 0.05
    assert by_key["set/distances/spearman"].values["knows"].value > 0.4


def test_tables_and_pictures_have_every_dimension() -> None:
    models, rated = made()
    rated = replace(rated, reliability=np.array([0.81, 0.64, np.nan, np.nan]))
    found = ratings(models, WORDS, {"set": rated})
    used, groups, dimensions = found.tables
    assert used.rows == (("set", 60, 4, None, None),)
    assert [row[:4] for row in groups.rows] == [
        ("set", "all", 4, None),
        ("set", "visual", 2, pytest.approx(0.85)),
        ("set", "social", 1, None),
        ("set", "other", 1, None),
    ]
    assert [row[:5] for row in dimensions.rows][:2] == [
        ("set", "red", "visual", 60, pytest.approx(0.9)),
        ("set", "round", "visual", 60, pytest.approx(0.8)),
    ]
    assert dimensions.columns[5:9] == ("knows: Spearman rho", "knows: low", "knows: high", "knows: Pearson r")
    (bars,) = found.pictures
    assert isinstance(bars, Bars)
    assert list(bars.groups) == ["all: median", "visual", "social", "other"]
    assert bars.groups["visual"] == found.measures[2].values


def test_dimensions_without_groups_are_measures_of_their_own_up_to_twelve() -> None:
    models, rated = made()
    few = ratings(models, WORDS, {"set": replace(rated, groups=())})
    assert [one.key for one in few.measures][2:-1] == [
        f"set/dimension/{name}/spearman" for name in ("red", "round", "kind", "odd")
    ]
    assert isinstance(few.pictures[0], Bars)
    many = replace(
        rated,
        groups=(),
        dimensions=tuple(f"d{number}" for number in range(16)),
        ratings=np.tile(rated.ratings, 4) + np.random.default_rng(3).normal(size=(60, 16)),
    )
    found = ratings({"knows": models["knows"]}, WORDS, {"set": many})
    assert [one.key for one in found.measures] == ["set/spearman", "set/pearson", "set/distances/spearman"]
    (spread,) = found.pictures
    assert isinstance(spread, Spread)
    assert len(spread.groups["dimensions"]["knows"]) == 16


def test_one_dimension_is_a_set_of_its_own() -> None:
    models, rated = made()
    one = replace(rated, groups=("visual",), dimensions=("red",), ratings=rated.ratings[:, :1])
    found = ratings(models, WORDS, {"set": one})
    assert [measure.key for measure in found.measures] == ["set/spearman", "set/pearson", "set/distances/spearman"]
    assert found.measures[0].name == "set, red: Spearman rho"
    (bars,) = found.pictures
    assert isinstance(bars, Bars)
    assert bars.groups == {"red": found.measures[0].values}


def test_what_cannot_be_used_is_counted_and_named() -> None:
    models, rated = made()
    values = rated.ratings.copy()
    values[:, 1] = 2.5
    values[5:, 2] = np.nan
    values[:10, 0] = np.nan
    rated = replace(rated, words=(*WORDS[:-1], "unknown"), ratings=values)
    empty = replace(rated, ratings=np.full((60, 4), np.nan))
    found = ratings(models, WORDS, {"set": rated, "empty": empty}, left_out={"rows": 3})
    assert found.left_out == {
        "rows": 3,
        "words without a vector (ratings)": 2,
        "dimensions that are constant or rated for too few words": 6,
        "sets without a dimension that can be used": 1,
        "words without all ratings (distances alone)": 10,
    }
    assert found.tables[-1].rows[:2] == (
        ("set", "round", "constant: 2.5 for all 59 words"),
        ("set", "kind", "rated for 5 words with a vector, fewer than 20"),
    )
    assert [row[1] for row in found.tables[2].rows] == ["red", "odd"]
    assert [row[3] for row in found.tables[2].rows] == [49, 59]


def test_profiles_of_words_stand_beside_a_raters() -> None:
    models, rated = made()
    rated = replace(rated, profile=np.linspace(0.5, 0.9, 60))
    found = {one.key: one for one in ratings(models, WORDS, {"set": rated}, folds=5).measures}["set/profile/pearson"]
    whole = held_out(models["knows"], rated.ratings, 5)
    predicted = whole.deviation + whole.mean
    expected = [np.corrcoef(one, other)[0, 1] for one, other in zip(predicted, rated.ratings, strict=True)]
    assert found.values["knows"].value == pytest.approx(np.median(expected))
    assert found.items == 60
    assert ratings(models, WORDS, {"set": rated}).tables[0].rows[0][4] == pytest.approx(0.7)


def test_profiles_are_over_the_dimensions_that_a_word_has() -> None:
    draw = np.random.default_rng(4)
    rated, predicted = draw.normal(size=(2, 4, 6))
    rated[0, :2] = np.nan
    rated[1, 2:] = np.nan  # two ratings
    rated[2] = 1.0
    found = profiles(rated, {"m": predicted})["m"]
    expected = [np.corrcoef(rated[0, 2:], predicted[0, 2:])[0, 1], np.corrcoef(rated[3], predicted[3])[0, 1]]
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize("count", [3, 4])
def test_a_median_of_figures_has_their_resamples(count: int) -> None:
    draw = np.random.default_rng(5)
    own = [Estimate(value, draw.normal(size=50), draw.normal(size=9)) for value in (0.9, 0.1, 0.4, 0.3)[:count]]
    found = median_estimate(own)
    assert found.value == pytest.approx(0.4 if count == 3 else 0.35)
    np.testing.assert_allclose(found.resampled, [np.median([one.resampled[at] for one in own]) for at in range(50)])
    middle = own[2:3] if count == 3 else own[2:4]
    np.testing.assert_allclose(found.influence, np.mean([one.influence for one in middle], axis=0))


def test_columns_are_correlated_over_the_same_resamples() -> None:
    """A column without gaps is that of `correlations`; one with gaps is that of its own items, drawn among all."""
    from groundray.analysis.measures.correlation import correlations
    from groundray.analysis.measures.statistics import draws

    draw = np.random.default_rng(6)
    scores = {"m": draw.normal(size=(30, 2)), "n": draw.normal(size=(30, 2))}
    rated = scores["m"] + draw.normal(size=(30, 2))
    rated[:7, 1] = np.nan
    whole, gaps = by_column(scores, rated)
    for kind in ("pearson", "spearman"):
        for model in scores:
            alone = correlations({model: scores[model][:, :1]}, rated[:, 0])[0][kind][model]
            assert whole[kind][model].value == pytest.approx(alone.value)
            np.testing.assert_allclose(whole[kind][model].resampled, alone.resampled)
            np.testing.assert_allclose(whole[kind][model].influence, alone.influence)
            scipys = {"pearson": scipy.stats.pearsonr, "spearman": scipy.stats.spearmanr}[kind]
            for number, drawn in enumerate(next(iter(draws(30)))[:10]):
                own = drawn[drawn >= 7]
                expected = scipys(scores[model][own, 1], rated[own, 1]).statistic
                assert gaps[kind][model].resampled[number] == pytest.approx(expected)


def test_tests_count_resamples_beyond_zero() -> None:
    first = Estimate(0.5, np.zeros(999))
    other = Estimate(0.6, np.where(np.arange(999) < 9, -1.0, 1.0))
    same = Estimate(0.5, np.zeros(999))
    assert resampled_tests({"a": first, "b": other}) == {("a", "b"): pytest.approx(2 * 10 / 1000)}
    found = resampled_tests({"a": first, "b": other, "c": same})
    assert found["a", "c"] == 1.0
    assert found["a", "b"] == pytest.approx(3 * 2 * 10 / 1000)  # Holm
    assert resampled_tests({"a": Estimate(0.1, np.empty(0)), "b": Estimate(0.2, np.empty(0))}) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sets": {}}, "expected a set with a dimension that can be predicted, got none among 0"),
        ({"words": ["w1"] * 60}, "each word once, got 59 again"),
        ({"folds": 61}, "expected 2 to 60 folds"),
        ({"vectors": {"m": np.zeros((60, 3))}}, "vectors with a direction"),
        ({"vectors": {"m": np.ones((60, 3))}}, "expected the scores of model 'm' to differ"),
    ],
)
def test_invalid_input_is_refused(change: dict, message: str) -> None:
    models, rated = made()
    with pytest.raises(ValueError, match=message):
        ratings(**({"vectors": models, "words": WORDS, "sets": {"set": rated}} | change))


@pytest.mark.thorough
def test_glove_on_binders_attributes_is_plain_scikit_learns() -> None:
    """Median held-out rho .66 over 65 attributes, within .01; that of plain RidgeCV, unstandardised, within .01."""
    file = SHARED / "vectors" / "glove.6B.100d.txt.gz"
    if not file.exists():
        pytest.skip(f"needs GloVe and Binder's ratings in {SHARED}")
    rated = read_rated_words(SHARED / "norms" / "ratings" / "binder2016.tsv")
    wanted = set(rated.words)
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = {word: line for word, _, line in (line.partition(" ") for line in lines) if word in wanted}
    words = [word for word in rated.words if word in rows]
    vectors = np.array([np.array(rows[word].split(), dtype=np.float32) for word in words])
    found = {one.key: one for one in ratings({"glove": vectors}, words, {"binder2016": rated}).measures}
    assert len(words) == 523
    of_all = found["binder2016/spearman"].values["glove"].value
    assert of_all == pytest.approx(0.66, abs=0.01)
    known = [rated.words.index(word) for word in words]
    plain = []
    for column in rated.ratings[known].T:
        X, y = vectors[np.isfinite(column)].astype(np.float64), column[np.isfinite(column)]
        predicted = np.empty(len(y))
        for train, test in KFold(10, shuffle=True, random_state=0).split(X):
            predicted[test] = RidgeCV(PENALTIES).fit(X[train], y[train]).predict(X[test])
        plain.append(scipy.stats.spearmanr(predicted, y).statistic)
    assert of_all == pytest.approx(np.median(plain), abs=0.01)
    visual = [at for at, group in enumerate(rated.groups) if group == "visual"]
    of_visual = found["binder2016/group/visual/spearman"].values["glove"].value
    assert of_visual == pytest.approx(np.median([plain[at] for at in visual]), abs=0.01)
