"""Principal axes against a singular value decomposition, and their correlations against SciPy and by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from groundray.analysis.measures.axes import Rated, axes
from groundray.analysis.result import Analysis, Measure, Table

NAN = float("nan")


def made(count: int = 60, dim: int = 8, seed: int = 0) -> tuple[np.ndarray, list[str], list[str], np.ndarray]:
    """Vectors of some words in five categories, of which one word in six has no rating."""
    draw = np.random.default_rng(seed)
    vectors = draw.normal(size=(count, dim)) * np.linspace(3, 0.5, dim)
    ratings = (3 + vectors[:, 0] / 4 + draw.normal(size=count) / 2).round(2)
    ratings[::6] = NAN
    return vectors, [f"w{row}" for row in range(count)], [f"c{row % 5}" for row in range(count)], ratings


def of(analysis: Analysis, key: str) -> Measure:
    (found,) = [one for one in analysis.measures if one.key == key]
    return found


def table(analysis: Analysis, start: str) -> Table:
    (found,) = [one for one in analysis.tables if one.title.startswith(start)]
    return found


def scores_of(vectors: np.ndarray, ratings: np.ndarray, fitted_on: np.ndarray | None = None) -> np.ndarray:
    """Scores of rated rows, by the singular vectors of the rated rows or others, signs by Pearson's r."""
    rated = np.isfinite(ratings)
    source = vectors[rated] if fitted_on is None else fitted_on
    right = np.linalg.svd(source - source.mean(axis=0), full_matrices=False)[2]
    scores = ((vectors - source.mean(axis=0)) @ right.T)[rated]
    return scores * [np.sign(scipy.stats.pearsonr(column, ratings[rated])[0]) for column in scores.T]


def test_scores_variance_and_correlations() -> None:
    vectors, words, categories, ratings = made()
    found = axes({"m": vectors}, words, categories, ratings)
    scores, rated = scores_of(vectors, ratings), np.isfinite(ratings)
    for axis in range(3):
        for kind, correlation in (("pearson", scipy.stats.pearsonr), ("spearman", scipy.stats.spearmanr)):
            expected = correlation(scores[:, axis], ratings[rated])[0]
            assert of(found, f"pc{axis + 1}/words/{kind}").values["m"].value == pytest.approx(expected)
    fitted = vectors[rated]
    variance = np.linalg.svd(fitted - fitted.mean(axis=0), compute_uv=False) ** 2
    shares = [row[1] for row in table(found, "Share").rows]
    assert shares == pytest.approx([*(variance / variance.sum())[:3], variance[:3].sum() / variance.sum()])
    assert of(found, "pc1/words/pearson").items == rated.sum() == 50
    assert found.left_out == {"rows without a concreteness rating": 10}


def test_categories_are_means_of_their_rated_rows() -> None:
    vectors, words, categories, ratings = made()
    found = axes({"m": vectors}, words, categories, ratings)
    scores, rated = scores_of(vectors, ratings), np.isfinite(ratings)
    names = np.array(categories)[rated]
    means = [(scores[names == f"c{one}"].mean(axis=0), ratings[rated][names == f"c{one}"].mean()) for one in range(5)]
    expected = scipy.stats.pearsonr([one[0] for one, _ in means], [rating for _, rating in means])[0]
    assert of(found, "pc1/categories/pearson").values["m"].value == pytest.approx(expected)
    assert of(found, "pc1/categories/pearson").items == 5
    rows = {row[0]: row[1:] for row in table(found, "Mean scores").rows}
    for number, (score, rating) in enumerate(means):
        assert rows[f"c{number}"] == pytest.approx((10, rating, *score[:3]))


def test_categories_of_the_same_ratings_in_another_order_are_ties() -> None:
    ratings = np.array([0.1, 0.2, 0.3, 0.3, 0.2, 0.1])
    assert sum(ratings[:3]) != sum(ratings[3:])
    one, other = Rated.of(list("abcdef"), [*"xxxyyy"], ratings).category_ratings
    assert one == other == 0.2


def test_an_axis_points_to_where_concreteness_rises() -> None:
    """A model and its mirror image are the same; ratings turned round turn the scores and not the correlation."""
    vectors, words, categories, ratings = made()
    found = axes({"m": vectors, "mirrored": -vectors}, words, categories, ratings)
    for one in found.measures:
        assert one.values["m"].value == pytest.approx(one.values["mirrored"].value)
        assert one.differences[0].value.value == pytest.approx(0, abs=1e-9)
        if "words/pearson" in one.key:
            assert one.values["m"].value >= 0
    turned = axes({"m": vectors}, words, categories, 6 - ratings)
    assert of(turned, "pc1/words/pearson").values["m"].value == pytest.approx(
        of(found, "pc1/words/pearson").values["m"].value
    )
    before, after = (
        [row[3:] for row in table(one, "Mean scores").rows]
        for one in (axes({"m": vectors}, words, categories, ratings), turned)
    )
    np.testing.assert_allclose(np.array(before, float), -np.array(after, float))


def test_rows_of_a_word_are_drawn_together() -> None:
    """Each row twice says nothing more: over rows of other words intervals would shrink, over rows of the same not."""
    vectors, words, categories, ratings = made()
    once = axes({"m": vectors}, words, categories, ratings)
    double = [np.repeat(values, 2, axis=0) for values in (vectors, ratings)]
    twice = axes({"m": double[0]}, np.repeat(words, 2).tolist(), np.repeat(categories, 2).tolist(), double[1])
    others = axes({"m": double[0]}, [f"w{row}" for row in range(120)], np.repeat(categories, 2).tolist(), double[1])

    def width(analysis: Analysis) -> float:
        value = of(analysis, "pc1/words/pearson").values["m"]
        return value.high - value.low

    assert width(twice) == pytest.approx(width(once), rel=0.15)
    assert width(others) < 0.8 * width(once)


def test_axes_of_another_vocabulary() -> None:
    vectors, words, categories, ratings = made()
    other = np.random.default_rng(9).normal(size=(90, 8)) * np.linspace(0.5, 3, 8) + 1
    found = axes(
        {"m": vectors}, words, categories, ratings, number=2, fitted_on={"m": other}, fitted_on_name="of a.txt"
    )
    scores = scores_of(vectors, ratings, other)
    expected = scipy.stats.pearsonr(scores[:, 1], ratings[np.isfinite(ratings)])[0]
    assert of(found, "pc2/words/pearson").values["m"].value == pytest.approx(expected)
    assert "the 90 words of a.txt" in found.about
    assert "the 50 rated words" in axes({"m": vectors}, words, categories, ratings).about
    assert {one.key for one in found.measures if one.key.endswith("words/pearson")} == {
        "pc1/words/pearson",
        "pc2/words/pearson",
    }


def repeated() -> tuple[np.ndarray, list[str], list[str], np.ndarray]:
    """The words of `made`, the first 20 in a second category too, and the next 5 twice in theirs."""
    vectors, words, categories, ratings = made()
    rows = [*range(60), *range(20), *range(20, 25)]
    again = ["second"] * 20 + categories[20:25]
    return vectors[rows], [words[row] for row in rows], [*categories, *again], ratings[rows]


def test_words_that_the_axes_are_fitted_on() -> None:
    """Fitted on each rated word once, on each word once, or on all rows: by hand each, and all of them in a table."""
    vectors, words, categories, ratings = repeated()
    once = vectors[:60]
    sources = {"rated": once[np.isfinite(ratings[:60])], "words": once, "rows": vectors}
    expected = {
        fit: scipy.stats.pearsonr(scores_of(vectors, ratings, source)[:, 1], ratings[np.isfinite(ratings)])[0]
        for fit, source in sources.items()
    }
    assert len({round(one, 6) for one in expected.values()}) == 3
    for fit in ("rated", "words", "rows"):
        found = axes({"m": vectors}, words, categories, ratings, fitted_on=fit)
        assert of(found, "pc2/words/pearson").values["m"].value == pytest.approx(expected[fit])
        assert f"the {len(sources[fit])} " in found.about
        own = [row for row in table(found, "Pearson r of each axis").rows if row[1:3] == ("PC2", "words")]
        assert [row[0].split()[1] for row in own] == [str(len(sources[one])) for one in dict.fromkeys((fit, *sources))]
        assert [row[3] for row in own] == pytest.approx([expected[one] for one in dict.fromkeys((fit, *sources))])
    assert axes({"m": vectors}, words, categories, ratings) == axes(
        {"m": vectors}, words, categories, ratings, fitted_on="rated"
    )
    whole = made()
    assert not [
        one
        for one in axes({"m": whole[0]}, whole[1], whole[2], np.nan_to_num(whole[3], nan=2.0)).tables
        if one.title.startswith("Pearson r of each axis")
    ]  # all choices are the same words


def test_a_row_that_stands_twice_counts_twice() -> None:
    vectors, words, categories, ratings = repeated()
    found = axes({"m": vectors}, words, categories, ratings)
    rated = np.isfinite(ratings)
    scores = scores_of(vectors, ratings, vectors[:60][rated[:60]])
    assert of(found, "pc1/words/pearson").items == rated.sum()
    assert of(found, "pc1/words/pearson").values["m"].value == pytest.approx(
        scipy.stats.pearsonr(scores[:, 0], ratings[rated])[0]
    )
    of_second = [row for row in table(found, "Mean scores").rows if row[0] == "c4"]
    places = np.flatnonzero(np.array(categories)[rated] == "c4")
    assert (of_second[0][1], of_second[0][3]) == (len(places), pytest.approx(scores[places, 0].mean()))
    twice = int(rated[80:].sum())
    assert twice == 4
    assert f"{twice} stand twice in their category" in found.about


def test_words_of_the_paper_and_the_ends_of_an_axis() -> None:
    vectors, words, categories, ratings = made()
    words[1], words[2], ratings[1] = "zebra", "cheerful", 4.86
    found = axes({"m": vectors, "n": vectors * 2}, words, categories, ratings)
    example = table(found, "The paper's example")
    assert example.columns == ("word", "category", "rating", "paper", "m", "n")
    scores = dict(zip(np.array(words)[np.isfinite(ratings)], scores_of(vectors, ratings)[:, 0], strict=True))
    assert [row[0] for row in example.rows] == ["zebra", "cheerful"]
    assert example.rows[0][1] == dict(zip(words, categories, strict=True))["zebra"]
    assert example.rows[0][2:] == pytest.approx((4.86, 24.74, scores["zebra"], 2 * scores["zebra"]))
    ends = [row for row in table(found, "Words at the ends").rows if row[:2] == ("PC1", "m")]
    ordered = sorted(scores, key=lambda word: scores[word])
    assert [row[3] for row in ends if row[2] == "high"] == ordered[::-1][:5]
    assert [row[3] for row in ends if row[2] == "low"] == ordered[:5]
    assert all(row[4] == dict(zip(words, categories, strict=True))[row[3]] for row in ends)
    vectors, words, categories, ratings = made()
    assert not [one for one in axes({"m": vectors}, words, categories, ratings).tables if "paper" in one.title]


def test_pictures_show_words_where_they_are_few_and_categories_where_they_are_many() -> None:
    vectors, words, categories, ratings = made()
    first, second = axes({"m": vectors}, words, categories, ratings).pictures
    assert (first.key, second.key, second.shade) == ("axes/pc1-concreteness", "axes/pc2-pc3", "concreteness")
    rated = dict(zip(words, zip(categories, ratings.tolist(), strict=True), strict=True))
    assert len(first.panels["m"]) == 50
    assert all((point.group, point.shade) == rated[point.text] and point.named for point in first.panels["m"])
    assert all(point.y == point.shade for point in first.panels["m"])
    assert (first.line, second.line) == (True, False)

    vectors, words, _, ratings = made(200)
    first, second = axes({"m": vectors}, words, [f"c{row % 40}" for row in range(200)], ratings).pictures
    for picture in (first, second):
        assert len(picture.panels["m"]) == 40
        assert [point.named for point in picture.panels["m"]] == [True] * 24 + [False] * 16


def test_left_out_counts_are_repeated_and_few_categories_are_noted() -> None:
    vectors, words, categories, ratings = made()
    categories[0] = "unrated"
    found = axes({"m": vectors}, words, categories, ratings, left_out={"words out of vocabulary": 3})
    assert found.left_out == {
        "words out of vocabulary": 3,
        "rows without a concreteness rating": 10,
        "categories without a rated word": 1,
    }
    found = axes({"m": vectors}, words, ["all"] * 60, ratings)
    assert found.left_out["categories, as a correlation of their means needs 3"] == 1
    assert {one.key.split("/")[1] for one in found.measures} == {"words"}


def test_the_same_again() -> None:
    vectors, words, categories, ratings = made()
    one, other = (axes({"m": vectors, "n": vectors**2}, words, categories, ratings) for _ in range(2))
    assert one == other


def test_published_numbers_stand_beside() -> None:
    vectors, words, categories, ratings = made()
    found = axes({"m": vectors}, words, categories, ratings)
    paper = {"ungrounded": 0.1040, "grounded": 0.6615, "relational": 0.6948}
    assert of(found, "pc1/words/pearson").published == paper
    assert of(found, "pc2/words/pearson").published == {}
    assert replace(of(found, "pc1/categories/pearson")).published["grounded"] == 0.8749


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vectors": {}}, "the vectors of at least one model, got none"),
        (
            {"words": [], "categories": [], "ratings": np.empty(0)},
            "at least 3 words with a concreteness rating, got 0 among 0",
        ),
        ({"ratings": np.full(60, NAN)}, "at least 3 words with a concreteness rating, got 0 among 60"),
        ({"ratings": np.full(60, 2.5)}, "expected the ratings to differ, got 2.5 for all 60"),
        ({"ratings": np.ones(59)}, "a word, a category and a rating .* got 60, 60 and 59"),
        (
            {"vectors": {"m": np.full((60, 8), NAN)}},
            "model 'm': expected finite vectors, got NaN or .* 60 of 60, first for 'w0'",
        ),
        ({"vectors": {"m": np.ones((59, 8))}}, r"model 'm': expected a vector for each of 60 texts, got \(59, 8\)"),
        ({"vectors": {"m": np.ones((60, 8))}}, "expected vectors that differ, got 50 that are all the same"),
        ({"vectors": {"m": np.eye(60)[:, :2]}}, r"expected 1 to 2 axes of vectors \(50, 2\), got 3"),
        ({"vectors": {"m": np.outer(np.arange(60.0), np.ones(8))}}, "differ along 3 axes, got fewer"),
        ({"number": 0}, "expected 1 to 8 axes"),
        ({"fitted_on": {"n": np.ones((9, 8))}}, "model 'm': expected 8-wide vectors to fit the axes on, got none"),
        ({"fitted_on": {"m": np.ones((9, 7))}}, r"8-wide vectors to fit the axes on, got \(9, 7\)"),
        ({"fitted_on": {"m": np.full((9, 8), NAN)}}, "finite vectors to fit the axes on"),
    ],
)
def test_invalid_input_is_refused(change: dict, message: str) -> None:
    vectors, words, categories, ratings = made()
    given = {"vectors": {"m": vectors}, "words": words, "categories": categories, "ratings": ratings} | change
    with pytest.raises(ValueError, match=message):
        axes(**given)
