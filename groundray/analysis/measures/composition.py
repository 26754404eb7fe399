"""Composition of phrases: the rank of the described word (*zebra*) in a vocabulary, by the phrase (*striped horse*).

As published, the phrase's own words are ranked like all others; beside that rank stands the one without them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from groundray.analysis.inputs import published
from groundray.analysis.measures.directions import Vectors, check_directions, directions, places_of, row_blocks
from groundray.analysis.measures.proportion import shares
from groundray.analysis.measures.statistics import Scores, mean, measure, median, over_items, paired_tests, slug
from groundray.analysis.result import Analysis, Cell, Listed, Lists, Measure, Table

NEIGHBOURS = 8
ROUNDING = 1e-9  # closer cosines count as equal
WITHOUT_OWN, LEFT_OUT = "without_own_words", "without the phrase's words"  # in keys and in names
PICTURED = 12  # phrases that have a picture
# the paper does not name it; every word of its figures is among these
RANKED_AMONG = " The paper's vocabulary seems to be SemCat's 6,238 words."
BEFORE, AFTER = ("ungrounded", "text-only"), ("grounded", "relational")  # models of a picture, in order of preference


Paper = Mapping[tuple[str, str], tuple[published.PublishedRank, ...]]  # by phrase and target
Units = Callable[[Int[np.ndarray, " some"]], Float[np.ndarray, "some dim"]]  # vectors of length 1 of some words


@runtime_checkable
class WordRows(Protocol):
    """Rows of words, of which some are taken at a time: an array, or rows that are computed when they are taken."""

    def __getitem__(self, words: Any, /) -> Any:
        """Return the rows of some words, given their indices."""
        ...


@dataclass(frozen=True)
class Ranked:
    """The ranks of the phrases' targets in one model.

    Attributes:
        rank: rank of each phrase's target among all words, from 1.
        rank_without_own: its rank among all words but the phrase's own.
        nearest: indices and cosines of the words nearest to each phrase, nearest first.
    """

    cosine: Float[np.ndarray, " phrase"]
    rank: Int[np.ndarray, " phrase"]
    rank_without_own: Int[np.ndarray, " phrase"]
    nearest: tuple[tuple[tuple[int, float], ...], ...]


def composition(
    of_phrases: Vectors,
    of_words: Mapping[str, WordRows],
    phrases: Sequence[str],
    targets: Sequence[str],
    vocabulary: Sequence[str],
    left_out: Mapping[str, int] | None = None,
    through_images: bool = False,
    images: Mapping[str, tuple[bytes, ...]] | None = None,
) -> Analysis:
    """Compute the cosine of each phrase with its target, and the target's rank among all words of the vocabulary.

    The phrase's own words are ranked like all others, as in the paper; a second rank leaves them out. Words as near as
    the target rank before it.

    Args:
        of_phrases: one row for each phrase.
        of_words: one row for each word of the vocabulary. They are taken in blocks.
        targets: target of each phrase. A target that is not in the vocabulary, or is a word of its phrase, is omitted
            and counted.
        vocabulary: distinct words.
        left_out: counts of what was omitted before; the result repeats them.
        through_images: rows are a text's similarities to the images of a pool. Texts are compared by the correlation
            of their rows, which is the cosine of the centred rows.
        images: small images to show with a phrase's words, by phrase.

    Raises:
        ValueError: no phrase has a target in the vocabulary, the vocabulary has a word twice, the models of phrases and
            words differ, or the vectors fail `check_directions` (through images: a text is equally similar to all
            images).
    """
    if len(phrases) != len(targets):
        raise ValueError(f"expected a target for each of {len(phrases)} phrases, got {len(targets)}")
    if list(of_phrases) != list(of_words):
        raise ValueError(f"expected phrases and words of the same models, got {[*of_phrases]} and {[*of_words]}")
    place = places_of(vocabulary, "word of the vocabulary")
    missing = [target not in place for target in targets]
    inside = [target in own_words(phrase) for phrase, target in zip(phrases, targets, strict=True)]
    kept = [row for row in range(len(phrases)) if not missing[row] and not inside[row]]
    if not kept:
        raise ValueError(
            f"expected a phrase with a target in the vocabulary of {len(vocabulary)} words and not in the phrase, got "
            f"none among {len(phrases)}: add the targets to the vocabulary"
        )
    pairs = [(phrases[row], targets[row]) for row in kept]
    numbers = np.array([place[target] for _, target in pairs])
    own = [(row, place[word]) for row, (phrase, _) in enumerate(pairs) for word in own_words(phrase) if word in place]
    name, about = "composition", "the cosine of their vectors"
    if through_images:
        name, about = "composition_through_images", "the correlation of their similarities over the images of a pool"
        of_phrases = {model: _centred(rows) for model, rows in of_phrases.items()}
    check_directions(of_phrases, phrases)
    if not through_images:
        check_directions({model: rows for model, rows in of_words.items() if isinstance(rows, np.ndarray)}, vocabulary)

    def units(model: str, words: Int[np.ndarray, " some"]) -> Float[np.ndarray, "some dim"]:
        rows = of_words[model][words]
        if through_images:
            rows = _centred(rows)
            check_directions({model: rows}, [vocabulary[int(word)] for word in words])
        return directions(rows)

    found = {
        model: ranked(directions(rows[kept]), partial(units, model), len(vocabulary), numbers, own)
        for model, rows in of_phrases.items()
    }
    counts = {
        "phrases whose target is not in the vocabulary": sum(missing),
        "phrases that have their target in them": sum(inside),
    }
    paper = {} if through_images else published.PHRASES
    shown = before_and_after(list(found))
    pictured = f" Pictures: of the first {PICTURED} phrases." if shown and len(pairs) > PICTURED else ""
    return Analysis(
        name,
        f"{len(pairs)} phrases rank {len(vocabulary)} words by {about}. A phrase's own words are ranked like all "
        "others, as in the paper; a second rank leaves them out. Words as near as the target stand before it. "
        "Intervals and p: over phrases."
        f"{RANKED_AMONG if any(pair in paper for pair in pairs) else ''}"
        f"{pictured}",
        tuple(_measures(found, pairs, paper)),
        (*_tables(found, pairs, paper), _neighbours(found, pairs, vocabulary)),
        tuple(_pictures({model: found[model] for model in shown}, pairs, vocabulary, images or {})),
        left_out={**(left_out or {}), **{what: count for what, count in counts.items() if count}},
    )


def _centred(rows: Float[np.ndarray, "text image"]) -> Float[np.ndarray, "text image"]:
    """Subtract the mean of each row; zero for a row that is constant up to rounding."""
    less = rows - rows.mean(axis=-1, keepdims=True)
    alike = np.ptp(rows, axis=-1, keepdims=True) <= ROUNDING * np.abs(rows).max(axis=-1, keepdims=True)
    return np.where(alike, 0.0, less)


def own_words(phrase: str) -> set[str]:
    """Return the words of a phrase, as written and in lower case."""
    return {*phrase.split(), *phrase.lower().split()}


def ranked(
    of_phrases: Float[np.ndarray, "phrase dim"],
    of_words: Units,
    count: int,
    targets: Int[np.ndarray, " phrase"],
    own: Sequence[tuple[int, int]] = (),
) -> Ranked:
    """Rank each phrase's target, with and without the phrase's own words. Words are compared a block at a time.

    Args:
        of_phrases: vectors of length 1.
        count: number of words.
        targets: index of each phrase's target, which is not among its own words.
        own: phrase and word of each of the phrases' own words, by index.
    """
    phrases, dim = of_phrases.shape
    of_target = np.einsum("pd,pd->p", of_phrases, of_words(targets))
    rank, own_as_near = np.zeros((2, phrases), dtype=np.int64)
    of_phrase, own_word = np.array(own, dtype=np.int64).reshape(-1, 2).T
    nearest = Nearest.none()
    for block in row_blocks(count, phrases + dim):
        words = np.arange(block.start, block.stop)
        cosines = of_phrases @ of_words(words).T
        as_near = cosines >= of_target[:, None] - ROUNDING
        rank += as_near.sum(axis=1)
        here = (own_word >= block.start) & (own_word < block.stop)
        own_as_near += np.bincount(
            of_phrase[here], as_near[of_phrase[here], own_word[here] - block.start], phrases
        ).astype(np.int64)
        nearest = nearest.among(cosines, block.start)
    return Ranked(of_target, rank, rank - own_as_near, nearest.by_phrase(phrases))


@dataclass(frozen=True)
class Nearest:
    """The NEIGHBOURS words nearest to each phrase among those seen: by phrase, then nearest first, then by index."""

    phrase: Int[np.ndarray, " near"]
    word: Int[np.ndarray, " near"]
    cosine: Float[np.ndarray, " near"]

    @classmethod
    def none(cls) -> Nearest:
        return cls(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), np.empty(0))

    def among(self, cosines: Float[np.ndarray, "phrase word"], first: int) -> Nearest:
        """Return the nearest of these and of a block's words, the first of which has the index `first`."""
        place = max(0, cosines.shape[1] - NEIGHBOURS)
        least = np.partition(cosines, place, axis=1)[:, place, None]  # the lowest cosine that can be kept
        row, column = np.nonzero(cosines >= least)
        phrase, word = np.concatenate([self.phrase, row]), np.concatenate([self.word, column + first])
        cosine = np.concatenate([self.cosine, cosines[row, column]])
        order = np.lexsort((word, -cosine, phrase))
        phrase = phrase[order]
        kept = np.arange(len(phrase)) - np.searchsorted(phrase, phrase) < NEIGHBOURS
        return Nearest(phrase[kept], word[order][kept], cosine[order][kept])

    def by_phrase(self, phrases: int) -> tuple[tuple[tuple[int, float], ...], ...]:
        """Return the index and the cosine of the words nearest to each phrase."""
        ends = np.searchsorted(self.phrase, np.arange(1, phrases))
        pairs = zip(np.split(self.word, ends), np.split(self.cosine, ends), strict=True)
        return tuple(tuple(zip(word.tolist(), cosine.tolist(), strict=True)) for word, cosine in pairs)


def _measures(found: Mapping[str, Ranked], pairs: Sequence[tuple[str, str]], paper: Paper) -> list[Measure]:
    """Return figures over the phrases, with the published ones if the paper has all of these phrases."""
    ranks = {model: one.rank.astype(np.float64) for model, one in found.items()}
    others = {model: one.rank_without_own.astype(np.float64) for model, one in found.items()}
    cosines = {model: one.cosine for model, one in found.items()}
    cells = [paper[pair] for pair in pairs if pair in paper]
    whole = published.MODELS if len(cells) == len(pairs) else ()
    paper_ranks = {model: np.array([float(of[place].rank) for of in cells]) for place, model in enumerate(whole)}
    paper_cosines = {model: np.array([of[place].cosine for of in cells]) for place, model in enumerate(whole)}

    def within(most: int, ranks: Scores) -> Scores:
        return {model: (values <= most).astype(np.float64) for model, values in ranks.items()}

    plan = [
        ("rank/median", "Rank of the target: median", ranks, paper_ranks, median, paired_tests(ranks)),
        ("cosine/mean", "Cosine with the target: mean", cosines, paper_cosines, mean, paired_tests(cosines)),
        (f"{WITHOUT_OWN}/rank/median", f"Rank {LEFT_OUT}: median", others, {}, median, paired_tests(others)),
    ]
    of_ranks, of_cosines, of_others = (
        measure(
            key,
            name,
            len(pairs),
            over_items(ours, figure),
            tests,
            {model: float(figure(values[None])[0]) for model, values in theirs.items()},
        )
        for key, name, ours, theirs, figure, tests in plan
    )
    within_whole = [
        shares(
            f"rank/within_{most}",
            f"Targets of rank 1 to {most}: fraction",
            within(most, ranks),
            {model: float(values.mean()) for model, values in within(most, paper_ranks).items()},
        )
        for most in (3, 10)
    ]
    within_others = [
        shares(f"{WITHOUT_OWN}/rank/within_{most}", f"Rank 1 to {most} {LEFT_OUT}: fraction", within(most, others))
        for most in (3, 10)
    ]
    return [of_ranks, *within_whole, of_cosines, of_others, *within_others]


def _tables(found: Mapping[str, Ranked], pairs: Sequence[tuple[str, str]], paper: Paper) -> tuple[Table, Table]:
    """Return the ranks and the cosine of each phrase's target, beside the paper's if it has any of these phrases."""
    theirs = published.MODELS if any(pair in paper for pair in pairs) else ()
    papers = tuple(f"paper: {model}" for model in theirs)
    both = tuple(column for model in found for column in (model, f"{model}, {LEFT_OUT}"))
    ranks: list[tuple[Cell, ...]] = []
    cosines: list[tuple[Cell, ...]] = []
    for row, pair in enumerate(pairs):
        cells = paper[pair] if pair in paper else (None,) * len(theirs)
        row_ranks = [int(rank[row]) for one in found.values() for rank in (one.rank, one.rank_without_own)]
        ranks.append((*pair, *row_ranks, *(cell and cell.rank for cell in cells)))
        row_cosines = [float(one.cosine[row]) for one in found.values()]
        cosines.append((*pair, *row_cosines, *(cell and cell.cosine for cell in cells)))
    return (
        Table("Rank of each target", ("phrase", "target", *both, *papers), tuple(ranks)),
        Table("Cosine of each target", ("phrase", "target", *found, *papers), tuple(cosines)),
    )


def before_and_after(models: Sequence[str]) -> tuple[str, ...]:
    """Return the two models whose nearest words a picture sets side by side: `ungrounded`, or else the first, and
    `grounded`, `relational`, or else the last. None if these are one model."""
    before = next((name for name in BEFORE if name in models), models[0])
    after = next((name for name in AFTER if name in models), models[-1])
    return (before, after) if before != after else ()


def _pictures(
    found: Mapping[str, Ranked],
    pairs: Sequence[tuple[str, str]],
    vocabulary: Sequence[str],
    images: Mapping[str, tuple[bytes, ...]],
) -> Iterator[Lists]:
    """Yield a picture of each of the first phrases: the nearest words of both models, and the target at its rank."""
    if not found:
        return
    for row, (phrase, target) in enumerate(pairs[:PICTURED]):
        lists = {}
        for model, one in found.items():
            rank = int(one.rank[row])
            near = [vocabulary[word] for word, _ in one.nearest[row]]
            listed = [Listed(word, place) for place, word in enumerate(near, start=1) if word != target]
            lists[model] = tuple(sorted([*listed, Listed(target, rank, marked=True)], key=lambda one: one.rank))
        yield Lists(
            f"composition/{row + 1:02d}-{slug(phrase)}",
            f"Words nearest to {phrase!r}, and the rank of {target!r}: {' and '.join(found)}",
            lists,
            images.get(phrase, ()),
        )


def _neighbours(found: Mapping[str, Ranked], pairs: Sequence[tuple[str, str]], vocabulary: Sequence[str]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for row, pair in enumerate(pairs):
        for place in range(min(NEIGHBOURS, len(vocabulary))):
            cells: list[Cell] = []
            for one in found.values():
                word, cosine = one.nearest[row][place]
                cells += [vocabulary[word], cosine]
            rows.append((*pair, place + 1, *cells))
    columns = [column for model in found for column in (model, f"cosine, {model}")]
    return Table("Words nearest to each phrase", ("phrase", "target", "place", *columns), tuple(rows))
