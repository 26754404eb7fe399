"""Principal axes of word vectors: their correlation with human ratings of concreteness, and what they tell apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from sklearn.decomposition import PCA

from groundray.analysis.inputs import published
from groundray.analysis.inputs.category_contrasts import Contrast
from groundray.analysis.measures.contrasts import ABOUT, bars, table, told_apart
from groundray.analysis.measures.correlation import Kind, correlations
from groundray.analysis.measures.directions import Vectors, check
from groundray.analysis.measures.statistics import FEWEST, measure
from groundray.analysis.result import Analysis, Cell, Measure, Point, Scatter, Table

Level = Literal["words", "categories"]
FitOn = Literal["rated", "words", "rows"]

DIGITS = 12  # of a mean rating; the order in which ratings are added does not break ties
FLAT = 1e-12  # of the variance: rounding
EXTREMES = 5  # words at each end of an axis
MOST_WORDS = 100  # that a picture shows; of more it shows the categories' means
MOST_NAMES = 24  # of categories in a picture
# the words of the categories that axes are fitted on; how many there are is put in front
FITS: dict[FitOn, str] = {
    "rated": "rated words of the categories, each once",
    "words": "words of the categories, each once",
    "rows": "rows, a word as often as it stands in the categories",
}
DEFAULT_FIT: FitOn = "rated"
CORRELATIONS: dict[Kind, str] = {"pearson": "Pearson r", "spearman": "Spearman rho"}


@dataclass(frozen=True)
class Rated:
    """The category-word rows that have a rating.

    Attributes:
        places: indices among all rows.
        categories: categories with a rated row.
        category: index of each row's category in `categories`.
        word: number of each row's word; rows of one word share it.
        each: first row of each word.
        of_word: categories of each word, in one text.
    """

    places: Int[np.ndarray, " row"]
    words: tuple[str, ...]
    ratings: Float[np.ndarray, " row"]
    categories: tuple[str, ...]
    category: Int[np.ndarray, " row"]
    word: Int[np.ndarray, " row"]
    each: Int[np.ndarray, " word"]
    of_word: tuple[str, ...]

    @classmethod
    def of(cls, words: Sequence[str], categories: Sequence[str], ratings: Float[np.ndarray, " every"]) -> Rated:
        if not len(words) == len(categories) == len(ratings):
            counts = f"{len(words)}, {len(categories)} and {len(ratings)}"
            raise ValueError(f"expected a word, a category and a rating (or NaN) a row, got {counts}")
        places = np.flatnonzero(np.isfinite(ratings))
        if len(places) < FEWEST:
            raise ValueError(
                f"expected at least {FEWEST} words with a concreteness rating, got {len(places)} among {len(words)}: "
                "give ratings that have these words"
            )
        kept = places.tolist()
        own, names = [words[place] for place in kept], [categories[place] for place in kept]
        distinct = {name: number for number, name in enumerate(dict.fromkeys(names))}
        _, each, word = np.unique(own, return_index=True, return_inverse=True)
        of_word: list[dict[str, None]] = [{} for _ in each]
        for number, name in zip(word.tolist(), names, strict=True):
            of_word[number][name] = None
        return cls(
            places,
            tuple(own),
            ratings[places].astype(np.float64),
            tuple(distinct),
            np.array([distinct[name] for name in names]),
            word,
            each,
            tuple(map(", ".join, of_word)),
        )

    @property
    def repeated(self) -> int:
        """Return the number of rows whose word stood before in the same category."""
        return len(self.places) - len({*zip(self.word.tolist(), self.category.tolist(), strict=True)})

    @property
    def category_ratings(self) -> Float[np.ndarray, " category"]:
        """Return the mean rating of each category's rows; means that only rounding tells apart are equal."""
        return self.means(self.ratings[:, None])[:, 0].round(DIGITS)

    def means(self, values: Float[np.ndarray, "row column"]) -> Float[np.ndarray, "category column"]:
        """Return the mean of each category's rows."""
        sums = [np.bincount(self.category, weights=column, minlength=len(self.categories)) for column in values.T]
        return np.stack(sums, axis=1) / np.bincount(self.category)[:, None]


@dataclass(frozen=True)
class Axes:
    """The first principal axes of one model.

    Attributes:
        scores: scores on each axis: of each rated row in `words`, and the mean of each category in `categories`.
        every: scores of all rows, rated or not.
        variance: fraction of the total variance along each axis.
    """

    scores: dict[Level, Float[np.ndarray, "item axis"]]
    every: Float[np.ndarray, "row axis"]
    variance: Float[np.ndarray, " axis"]


def axes(
    vectors: Vectors,
    words: Sequence[str],
    categories: Sequence[str],
    ratings: Float[np.ndarray, " row"],
    number: int = 3,
    fitted_on: Vectors | FitOn = "rated",
    fitted_on_name: str = "of another vocabulary",
    left_out: Mapping[str, int] | None = None,
    contrasts: Sequence[Contrast] = (),
) -> Analysis:
    """Correlate the first principal axes with human concreteness, over words and over categories; and measure how well
    each tells sets of categories apart.

    Over words, the scores of all rated rows are correlated with their ratings: a word of two categories has two rows,
    as in the paper, and one that stands twice in its category has them too; resamples draw the rows of a word together.
    Over categories, it is the mean score of each category's rated rows with their mean rating.

    The sign of an axis is arbitrary. Here each points to higher concreteness of the rated words, so that models can be
    compared. Pearson's r over words is therefore never negative; only its size is informative. So it is with contrasts:
    a table says at which end of the axis a side is.

    Args:
        vectors: one row for each word of each category.
        ratings: rating of each row; NaN if the word is not rated.
        number: number of axes.
        fitted_on: the vectors on which the axes are fitted, centred: of words of the categories (see FITS), or those of
            another vocabulary. The choice changes the correlations; a table has those of every choice of FITS.
        fitted_on_name: what the words of another vocabulary are, as in "of words.txt".
        left_out: counts of what was omitted before; the result repeats them.
        contrasts: sets of categories to tell apart, over all words, rated or not. One without words on both sides is
            left out and counted.

    Raises:
        ValueError: too few words are rated, or all equally; a model has fewer dimensions or vectors than axes; the
            vectors fail `check`.
    """
    rated = Rated.of(words, categories, ratings)
    check(vectors, words)
    rows = _rows(words, rated)
    choice, others = (fitted_on, None) if isinstance(fitted_on, str) else (DEFAULT_FIT, fitted_on)
    chosen = rows[choice] if others is None else None
    found = {
        model: _axes(model, own.astype(np.float64), rated, number, chosen, others) for model, own in vectors.items()
    }
    apart = told_apart({model: one.every for model, one in found.items()}, contrasts, words, categories)
    enough = len(rated.categories) >= FEWEST
    counts = {
        "rows without a concreteness rating": len(words) - len(rated.words),
        "categories without a rated word": len(set(categories)) - len(rated.categories),
        f"categories, as a correlation of their means needs {FEWEST}": 0 if enough else len(rated.categories),
        "contrasts of categories that are not there": len(contrasts) - len(apart),
        "words that are of both sides of a contrast": sum(of.sides.both for of in apart),
    }
    if others is None:
        name = f"the {len(rows[choice])} {FITS[choice]}"
    else:
        name = f"the {len(next(iter(others.values())))} words {fitted_on_name}"
    return Analysis(
        "axes",
        f"Principal axes fitted on the centred vectors of {name}, "
        f"against human concreteness of {len(rated.words)} rated rows (a word of two categories has two"
        f"{f'; {rated.repeated} stand twice in their category' if rated.repeated else ''}). Each axis "
        "points to where the concreteness of the rated words rises: Pearson's r over words is never negative, its size "
        f"counts. {ABOUT if apart else ''}Intervals: over words, and over categories for their means.",
        (*_measures(found, rated, number), *(one for of in apart for one in of.measures)),
        (
            _variance(found, number),
            *_fits(found, vectors, rows, rated, number, name, chosen),
            *table(apart),
            *_examples(found, rated),
            _extremes(found, rated, number),
            _categories(found, rated, number),
        ),
        (*_pictures(found, rated, number), *bars(apart)),
        {**(left_out or {}), **{what: count for what, count in counts.items() if count}},
    )


def _rows(words: Sequence[str], rated: Rated) -> dict[FitOn, Int[np.ndarray, " _row"]]:
    """Return the rows of each choice of FITS."""
    first = {word: row for row, word in reversed(list(enumerate(words)))}
    return {
        "rated": np.sort(rated.places[rated.each]),
        "words": np.array(sorted(first.values())),
        "rows": np.arange(len(words)),
    }


def _axes(
    model: str,
    own: Float[np.ndarray, "text dim"],
    rated: Rated,
    number: int,
    rows: Int[np.ndarray, " row"] | None,
    fitted_on: Vectors | None = None,
) -> Axes:
    source = own if rows is None else own[rows]
    if fitted_on is not None:
        if model not in fitted_on or fitted_on[model].shape[1] != own.shape[1]:
            got = fitted_on[model].shape if model in fitted_on else "none"
            raise ValueError(f"model {model!r}: expected {own.shape[1]}-wide vectors to fit the axes on, got {got}")
        source = fitted_on[model].astype(np.float64)
        if not np.isfinite(source).all():
            raise ValueError(f"model {model!r}: expected finite vectors to fit the axes on, got NaN or infinite ones")
    most = min(len(source) - 1, source.shape[1])
    if not 1 <= number <= most:
        raise ValueError(
            f"model {model!r}: expected 1 to {most} axes of vectors {source.shape}, got {number}: take other "
            "--components, or words to fit them on (--fit-on)"
        )
    if (source == source[0]).all():
        raise ValueError(f"model {model!r}: expected vectors that differ, got {len(source)} that are all the same")
    fitted = PCA(number, svd_solver="covariance_eigh").fit(source)
    if fitted.explained_variance_ratio_[-1] < FLAT:
        raise ValueError(
            f"model {model!r}: expected vectors that differ along {number} axes, got fewer: take fewer axes"
        )
    every = fitted.transform(own)
    slopes = (rated.ratings - rated.ratings.mean()) @ every[rated.places]
    every *= np.where(slopes < 0, -1.0, 1.0)
    scores = every[rated.places]
    return Axes({"words": scores, "categories": rated.means(scores)}, every, fitted.explained_variance_ratio_)


def _measures(found: Mapping[str, Axes], rated: Rated, number: int) -> Iterator[Measure]:
    ratings: dict[Level, Float[np.ndarray, " item"]] = {"words": rated.ratings}
    if len(rated.categories) >= FEWEST:
        ratings["categories"] = rated.category_ratings
    estimates = {
        level: correlations(
            {model: one.scores[level] for model, one in found.items()},
            of_level,
            rated.word if level == "words" else None,
            tuple(CORRELATIONS),
        )
        for level, of_level in ratings.items()
    }
    for axis in range(number):
        for level, of_level in ratings.items():
            for kind, name in CORRELATIONS.items():
                key = f"pc{axis + 1}/{level}/{kind}"
                yield measure(
                    key,
                    f"PC{axis + 1} and concreteness, {level}: {name}",
                    len(of_level),
                    estimates[level][axis][kind],
                    published=published.of("axes", key),
                )


def _fits(
    found: Mapping[str, Axes],
    vectors: Vectors,
    rows: Mapping[FitOn, Int[np.ndarray, " _row"]],
    rated: Rated,
    number: int,
    name: str,
    chosen: Int[np.ndarray, " _row"] | None,
) -> Iterator[Table]:
    """Return Pearson's r by the words that the axes are fitted on, if these differ: of the choice, then of the others.

    Other words than the chosen ones that are too few, or alike, have no axes and are left out.
    """
    fits: dict[str, Mapping[str, Axes]] = {name: found}
    seen = {len(chosen)} if chosen is not None else set()
    for fit, places in rows.items():
        if len(places) in seen:  # each choice has all rows of the one before: as many rows are the same rows
            continue
        seen.add(len(places))
        try:
            fits[f"the {len(places)} {FITS[fit]}"] = {
                model: _axes(model, own.astype(np.float64), rated, number, places) for model, own in vectors.items()
            }
        except ValueError:
            continue
    if len(fits) == 1:
        return
    levels: dict[Level, Float[np.ndarray, " item"]] = {"words": rated.ratings}
    if len(rated.categories) >= FEWEST:
        levels["categories"] = rated.category_ratings
    yield Table(
        "Pearson r of each axis with concreteness, by the words that the axes are fitted on",
        ("fitted on", "axis", "over", *found),
        tuple(
            (fit, f"PC{axis + 1}", level, *(_pearson(one.scores[level][:, axis], of_level) for one in axes_of.values()))
            for fit, axes_of in fits.items()
            for axis in range(number)
            for level, of_level in levels.items()
        ),
    )


def _pearson(scores: Float[np.ndarray, " item"], ratings: Float[np.ndarray, " item"]) -> float:
    return float(np.corrcoef(scores, ratings)[0, 1])


def _variance(found: Mapping[str, Axes], number: int) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (f"PC{axis + 1}", *(float(one.variance[axis]) for one in found.values())) for axis in range(number)
    ]
    if number > 1:
        rows.append((f"PC1 to PC{number}", *(float(one.variance.sum()) for one in found.values())))
    return Table("Share of the variance along each axis", ("axis", *found), tuple(rows))


def _examples(found: Mapping[str, Axes], rated: Rated) -> Iterator[Table]:
    """Return the slides' words with their scores, if the rows have any of them."""
    rows = [(word, rated.words.index(word)) for word in published.PC1_WORDS if word in rated.words]
    if rows:
        yield Table(
            "The paper's example words along PC1",
            ("word", "category", "rating", "paper", *found),
            tuple(
                (
                    word,
                    rated.of_word[rated.word[row]],
                    float(rated.ratings[row]),
                    published.PC1_WORDS[word],
                    *_scores(found, "words", row, 0),
                )
                for word, row in rows
            ),
        )


def _extremes(found: Mapping[str, Axes], rated: Rated, number: int) -> Table:
    cells: list[tuple[Cell, ...]] = []
    for axis in range(number):
        for model, one in found.items():
            scores = one.scores["words"][:, axis]
            order = rated.each[np.argsort(scores[rated.each], kind="stable")].tolist()
            named = {row: (rated.words[row], rated.of_word[rated.word[row]]) for row in order}
            ends = {"high": order[::-1][:EXTREMES], "low": order[:EXTREMES]}
            cells += [
                (f"PC{axis + 1}", model, end, *named[row], float(scores[row]), float(rated.ratings[row]))
                for end, places in ends.items()
                for row in places
            ]
    columns = ("axis", "model", "end", "word", "category", "score", "rating")
    return Table("Words at the ends of each axis", columns, tuple(cells))


def _categories(found: Mapping[str, Axes], rated: Rated, number: int) -> Table:
    sizes = np.bincount(rated.category).tolist()
    ratings = rated.category_ratings.tolist()
    columns = [f"PC{axis + 1}, {model}" for axis in range(number) for model in found]
    rows = []
    for place, (name, size, rating) in enumerate(zip(rated.categories, sizes, ratings, strict=True)):
        scores = [score for axis in range(number) for score in _scores(found, "categories", place, axis)]
        rows.append((name, size, rating, *scores))
    return Table("Mean scores of the categories' rated words", ("category", "words", "rating", *columns), tuple(rows))


def _scores(found: Mapping[str, Axes], level: Level, row: int, axis: int) -> tuple[float, ...]:
    return tuple(float(one.scores[level][row, axis]) for one in found.values())


def _pictures(found: Mapping[str, Axes], rated: Rated, number: int) -> Iterator[Scatter]:
    """Return the words to draw, or the categories' means if there are many words; the outermost are named first."""
    words = len(rated.each) <= MOST_WORDS
    rows = np.sort(rated.each) if words else np.arange(len(rated.categories))
    texts = [rated.words[row] for row in rows] if words else list(rated.categories)
    groups = [rated.categories[rated.category[row]] for row in rows] if words else [None] * len(rows)
    shades = rated.ratings[rows] if words else rated.category_ratings
    what = "words" if words else "means of categories"

    def panel(x: Float[np.ndarray, " point"], y: Float[np.ndarray, " point"]) -> tuple[Point, ...]:
        place = np.stack([x, y])
        out = ((place - place.mean(axis=1, keepdims=True)) / (place.std(axis=1, keepdims=True) + 1e-30)) ** 2
        order = np.argsort(-out.sum(axis=0), kind="stable").tolist()
        return tuple(
            Point(
                texts[point],
                float(x[point]),
                float(y[point]),
                groups[point],
                float(shades[point]),
                named=words or rank < MOST_NAMES,
            )
            for rank, point in enumerate(order)
        )

    scores = {model: one.scores["words" if words else "categories"][rows] for model, one in found.items()}
    yield Scatter(
        "axes/pc1-concreteness",
        f"The first principal axis against concreteness: {what}",
        "PC1",
        "concreteness",
        {model: panel(one[:, 0], shades) for model, one in scores.items()},
        line=True,
    )
    if number >= 3:
        yield Scatter(
            "axes/pc2-pc3",
            f"The second principal axis against the third: {what}",
            "PC2",
            "PC3",
            {model: panel(one[:, 1], one[:, 2]) for model, one in scores.items()},
            shade="concreteness",
        )
