"""Cohesion of categories of words: silhouettes (Rousseeuw 1987) by cosine distance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from groundray.analysis.inputs import published
from groundray.analysis.inputs.norm_tables import WORDS_BY_CATEGORY, Kinds
from groundray.analysis.measures.directions import Vectors, check_directions, directions, row_blocks
from groundray.analysis.measures.statistics import QUARTILES, mean, measure, over_items, paired_tests, slug
from groundray.analysis.result import Analysis, Bars, Cell, Point, Scatter, Spread, Table, Value

SEED = 803
FORMS = {"rest": "against the rest", "nearest": "against the nearest {category}"}
MOST_IMPROVED = 12  # categories of a picture and a table for each two models
SHOWN, WORDS_SHOWN, SHARED = 12, 80, 0.1  # of the picture: categories, words of each, share of words that two may share
PERPLEXITY = 30.0  # of t-SNE: about as many words are each word's neighbours


@dataclass(frozen=True)
class Membership:
    """The membership of words in categories.

    Attributes:
        words: distinct words.
        first: first row of each word.
        categories: categories in the order of their first row.
        of: sparse matrix with a row for each word and a column for each category, 1 where the word belongs to it.
        repeated: number of rows that repeat another.
    """

    words: tuple[str, ...]
    first: Int[np.ndarray, " word"]
    categories: tuple[str, ...]
    of: csr_array
    repeated: int

    @classmethod
    def by(cls, words: Sequence[str], categories: Sequence[str]) -> Membership:
        if len(words) != len(categories):
            raise ValueError(f"expected a category for each of {len(words)} words, got {len(categories)}")
        rows = {word: row for row, word in reversed(list(enumerate(words)))}
        distinct = tuple(dict.fromkeys(words))
        names = tuple(dict.fromkeys(categories))
        word = {name: number for number, name in enumerate(distinct)}
        category = {name: number for number, name in enumerate(names)}
        pairs = np.unique([[word[one] for one in words], [category[one] for one in categories]], axis=1)
        of = csr_array((np.ones(pairs.shape[1]), pairs), shape=(len(distinct), len(names)))
        return cls(distinct, np.array([rows[one] for one in distinct]), names, of, len(words) - of.nnz)

    @property
    def sizes(self) -> Int[np.ndarray, " category"]:
        """Return the number of words of each category."""
        return np.bincount(self.of.indices, minlength=len(self.categories))

    @property
    def common(self) -> Bool[np.ndarray, " word"]:
        """Return which words are of all categories."""
        return np.diff(self.of.indptr) == len(self.categories)

    @property
    def sizes_without_common(self) -> Int[np.ndarray, " category"]:
        """Return the number of words of each category that are not of all categories."""
        return self.sizes - self.common.sum()

    def words_of(self) -> list[Int[np.ndarray, " member"]]:
        """Return the indices of each category's words, ascending."""
        columns = self.of.tocsc()
        return np.split(columns.indices, columns.indptr[1:-1])


def categories(
    vectors: Vectors,
    words: Sequence[str],
    categories: Sequence[str],
    left_out: Mapping[str, int] | None = None,
    kinds: Kinds = WORDS_BY_CATEGORY,
    of_semcat: bool = False,
) -> Analysis:
    """Compute the silhouette of each category: the mean of its words' silhouettes.

    A word's silhouette in a category is (b − a) / max(a, b), where a is its mean distance to the category's other
    words and b that to others: to all words outside the category (`rest`, as in the paper), or to those of the nearest
    category without the word (`nearest`, the usual silhouette). Distance is 1 − cosine. A word of several categories
    has a silhouette in each of them, and counts in none of them as one of the others. A word of all categories has none
    of the form `nearest`, nor has a category of such words alone.

    Args:
        vectors: one row for each word of each category; rows of one word have equal vectors.
        left_out: counts of what was omitted before; the result repeats them.
        kinds: what the words and categories are, such as sentences and scenes, in the result's own words.
        of_semcat: the rows are SemCat's 100 categories: only then do the paper's values stand beside the measured ones.

    Raises:
        ValueError: there are fewer than two categories, none has a silhouette, or the vectors fail `check_directions`.
    """
    check_directions(vectors, words)
    member = Membership.by(words, categories)
    if len(member.categories) < 2:
        raise ValueError(
            f"expected words of at least 2 categories, got {', '.join(member.categories)!r} alone: "
            "a silhouette tells a category from others"
        )
    sizes = member.sizes
    single, whole = sizes < 2, sizes == len(member.words)
    kept = ~single & ~whole
    if not kept.any():
        raise ValueError(
            "expected a category of at least 2 words that not all words are of, got none: "
            f"{int(single.sum())} have one word and {int(whole.sum())} have all"
        )
    taken = choose_shown(member)
    shown = [place for of_category in taken.values() for place in of_category]
    found: dict[str, dict[str, Float[np.ndarray, " category"]]] = {}
    of_words: dict[str, Float[np.ndarray, " member"]] = {}
    drawn: dict[str, Float[np.ndarray, "word dim"]] = {}
    for model, own in vectors.items():
        units = directions(own, member.first)
        each = word_silhouettes(units, member)
        found[model], of_words[model], drawn[model] = _means(each, member), each["rest"], units[shown]
    forms = {form: about.format(category=kinds.category) for form, about in FORMS.items()}
    compared = {"rest": kept, "nearest": kept & (member.sizes_without_common > 0)}
    scores = {
        form: {model: one[form][compared[form]] for model, one in found.items()}
        for form in FORMS
        if compared[form].any()
    }
    names = [name for name, keep in zip(member.categories, kept.tolist(), strict=True) if keep]
    several = int((np.diff(member.of.indptr) > 1).sum())
    every, (one_category, one_word) = kinds.plural, kinds
    counts = {
        f"{every.text} that stand twice in their {one_category}": member.repeated,
        f"{every.text} of all {every.category}, for the nearest {one_category}": int(member.common.sum()),
        f"{every.category} of one {one_word}": int(single.sum()),
        f"{every.category} that all {every.text} are of": int(whole.sum()),
    }
    measures = []
    for form, of_models in scores.items():
        tests = paired_tests(of_models)
        for name, figure in QUARTILES.items():
            key = f"silhouette/{form}/{name}"
            estimates = over_items(of_models, figure)
            label = f"Silhouette {forms[form]}: {name.replace('_', ' ')}"
            tested = tests if name == "median" else {}
            count = int(compared[form].sum())
            paper = published.of("categories", key) if of_semcat else {}
            measures.append(measure(key, label, count, estimates, tested, paper))
    rows: list[tuple[Cell, ...]] = [
        (
            name,
            size,
            *(
                float(found[model][form][place]) if compared[form][place] else None
                for form in FORMS
                for model in vectors
            ),
        )
        for place, name, size in zip(np.flatnonzero(kept).tolist(), names, sizes[kept].tolist(), strict=True)
    ]
    columns = (one_category, every.text, *(f"{about}, {model}" for about in forms.values() for model in vectors))
    improved = most_improved(of_words, member, kept)
    return Analysis(
        "categories",
        f"Silhouettes by cosine distance of {len(names)} {every.category} of {len(member.words)} {every.text}. "
        f"{several} {every.text} have several {every.category}: they have a silhouette in each, and in none are they "
        f"among the others. Against the rest: all {every.text} that are not of the {one_category}, as in the paper; "
        f"against the nearest {one_category}: the usual silhouette. Intervals and p: over {every.category}"
        f"{f'; of the change of one {one_category}: over its {every.text}' if len(vectors) > 1 else ''}.",
        tuple(measures),
        (Table(f"Silhouette of each {one_category}", columns, tuple(rows)), *_changes(improved, kinds)),
        (
            Spread(
                "categories/silhouette",
                f"Silhouettes of {every.category}",
                "silhouette",
                {
                    forms[form]: {model: tuple(values.tolist()) for model, values in of_models.items()}
                    for form, of_models in scores.items()
                },
            ),
            *_bars(improved, kinds),
            *_picture(drawn, taken, member, kinds),
        ),
        {**(left_out or {}), **{what: count for what, count in counts.items() if count}},
    )


def silhouettes(units: Float[np.ndarray, "word dim"], member: Membership) -> dict[str, Float[np.ndarray, " category"]]:
    """Return the silhouette of each category, by form: the mean of `word_silhouettes`; NaN if it has one word only, or
    all words. In the form `nearest`, words of all categories do not count; NaN for a category of such words alone.

    Args:
        units: vectors of length 1.
    """
    return _means(word_silhouettes(units, member), member)


def _means(
    each: Mapping[str, Float[np.ndarray, " member"]], member: Membership
) -> dict[str, Float[np.ndarray, " category"]]:
    sizes = member.sizes
    whole = (sizes < 2) | (sizes == len(member.words))
    counts = {"rest": sizes, "nearest": member.sizes_without_common}
    with np.errstate(invalid="ignore"):  # no words
        return {
            form: np.where(whole, np.nan, np.bincount(member.of.indices, values, len(sizes)) / counts[form])
            for form, values in each.items()
        }


def word_silhouettes(
    units: Float[np.ndarray, "word dim"], member: Membership
) -> dict[str, Float[np.ndarray, " member"]]:
    """Return the silhouette of each word in each of its categories, in the order of `member.of`, by form.

    That of a word of all categories is 0 in the form `nearest`. Those of a category of one word, or of all words, have
    no meaning.

    The mean cosine of a word with a set of words is its product with their mean, so that no two words are compared: the
    cost is O(word · category · dim), instead of 39 million distances for 6,238 words. Words are multiplied with all
    categories a block at a time; only their silhouettes in their own categories are kept.

    Args:
        units: vectors of length 1.
    """
    sizes, of = member.sizes, member.of
    sums = of.T @ units
    every = units.sum(axis=0)
    found: dict[str, list[Float[np.ndarray, " _member"]]] = {form: [] for form in FORMS}
    for block in row_blocks(len(units), len(sizes)):
        rows = units[block]
        row, column = of[block].nonzero()  # a word in one of its categories
        with_each = rows @ sums.T  # sum of a word's cosines with each category
        with_own = with_each[row, column]
        itself, with_all = np.einsum("wd,wd->w", rows, rows)[row], (rows @ every)[row]
        with_each /= sizes
        with_each[row, column] = -np.inf
        nearest = 1 - with_each.max(axis=1)[row]
        with np.errstate(divide="ignore", invalid="ignore"):
            within = 1 - (with_own - itself) / (sizes[column] - 1)
            rest = 1 - (with_all - with_own) / (len(units) - sizes[column])
            for form, between in {"rest": rest, "nearest": nearest}.items():
                larger = np.maximum(within, between)
                each = np.where(larger == 0, 0.0, (between - within) / larger)
                each = np.where(between == np.inf, 0.0, each)  # of a word of all categories
                found[form].append(each)
    return {form: np.concatenate(parts) for form, parts in found.items()}


@dataclass(frozen=True)
class Change:
    """How a category's silhouette changes from one model to another, over its words.

    Attributes:
        before, after: its silhouettes against the rest.
        value: the change, with its interval: the words that stand for the category are resampled.
    """

    category: str
    words: int
    before: float
    after: float
    value: Value


def most_improved(
    each: Mapping[str, Float[np.ndarray, " member"]], member: Membership, kept: Bool[np.ndarray, " category"]
) -> dict[tuple[str, str], tuple[Change, ...]]:
    """Return the categories whose silhouette rises most from each model to the next, at most MOST_IMPROVED; equal
    changes in the order of the categories.

    An interval is of one category, and not corrected for having been chosen as one of the largest.

    Args:
        each: silhouettes against the rest of `word_silhouettes`, by model.
        kept: categories that have a silhouette.
    """
    column, sizes = member.of.indices, member.sizes
    counted = kept[column]
    found: dict[tuple[str, str], tuple[Change, ...]] = {}
    for first, other in pairwise(each):
        change_of = np.zeros(len(column))
        change_of[counted] = each[other][counted] - each[first][counted]
        rises = np.bincount(column, change_of, len(sizes)) / np.maximum(sizes, 1)
        order = [place for place in np.argsort(-rises, kind="stable").tolist() if kept[place] and rises[place] > 0]
        changes = []
        for place in order[:MOST_IMPROVED]:
            own = column == place
            change = over_items({other: change_of[own]}, mean)[other].with_interval()
            before, after = (float(each[model][own].mean()) for model in (first, other))
            changes.append(Change(member.categories[place], int(sizes[place]), before, after, change))
        found[first, other] = tuple(changes)
    return found


def _changes(improved: Mapping[tuple[str, str], Sequence[Change]], kinds: Kinds) -> Iterator[Table]:
    rows: list[tuple[Cell, ...]] = [
        (first, other, one.category, one.words, one.before, one.after, one.value.value, one.value.low, one.value.high)
        for (first, other), changes in improved.items()
        for one in changes
    ]
    columns = ("from model", "to model", kinds.category, kinds.plural.text, "before", "after", "change", "low", "high")
    if rows:
        title = f"{kinds.plural.category.capitalize()} whose silhouette rises most, with 95% intervals"
        yield Table(title, columns, tuple(rows))


def _bars(improved: Mapping[tuple[str, str], Sequence[Change]], kinds: Kinds) -> Iterator[Bars]:
    for (first, other), changes in improved.items():
        if changes:
            yield Bars(
                f"categories/most-improved/{slug(other)}",
                f"{kinds.plural.category.capitalize()} whose silhouette rises most from {first} to {other}",
                f"change of silhouette from {first}",
                {one.category: {other: one.value} for one in changes},
                {one.category: one.words for one in changes},
            )


def choose_shown(member: Membership) -> dict[str, list[int]]:
    """Choose the categories of the picture, with the indices of their words. The choice does not depend on the models.

    These are the SHOWN largest categories that share at most a tenth of their words with an earlier one, with at most
    WORDS_SHOWN words each, evenly spaced along its list. A word of two categories is shown in the first.
    """
    words_of = member.words_of()
    taken: dict[str, list[int]] = {}
    drawn = np.zeros(len(member.words), dtype=np.bool_)
    columns: list[int] = []
    for column in np.argsort(-member.sizes, kind="stable").tolist():
        if len(columns) == SHOWN:
            break
        own = words_of[column]
        shared = max((len(np.intersect1d(own, words_of[other], assume_unique=True)) for other in columns), default=0)
        places = own[~drawn[own]]
        if shared > SHARED * len(own) or not len(places):
            continue
        columns.append(column)
        spaced = places[np.linspace(0, len(places) - 1, min(WORDS_SHOWN, len(places))).round().astype(int)]
        taken[member.categories[column]] = spaced.tolist()
        drawn[spaced] = True
    return taken


def _picture(
    units: Vectors, taken: Mapping[str, Sequence[int]], member: Membership, kinds: Kinds
) -> tuple[Scatter, ...]:
    """Return the words taken in a plane by t-SNE (van der Maaten and Hinton 2008); none for fewer than four words.

    Args:
        units: vectors of length 1 of these words.
    """
    places = [place for of_category in taken.values() for place in of_category]
    groups = [name for name, of_category in taken.items() for _ in of_category]
    if len(places) < 4:
        return ()
    perplexity = min(PERPLEXITY, (len(places) - 1) / 3)
    panels = {}
    for model, rows in units.items():
        with threadpool_limits(1):  # one thread: sums of several differ between runs; 960 words take 3 s
            start = "pca" if rows.shape[1] > 1 else "random"  # of vectors of one dimension there is one component
            tsne = TSNE(perplexity=perplexity, metric="cosine", init=start, random_state=SEED)
            plane = tsne.fit_transform(rows)
        panels[model] = tuple(
            Point(member.words[place], float(x), float(y), group)
            for place, group, (x, y) in zip(places, groups, plane, strict=True)
        )
    title = f"{kinds.plural.text.capitalize()} of {len(taken)} {kinds.plural.category} in a plane (t-SNE)"
    return (Scatter("categories/tsne", title, "", "", panels),)
