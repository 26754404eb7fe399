"""Composition of phrases: the rank of the described word (*zebra*) in a vocabulary, by the phrase (*striped horse*).

As published, the phrase's own words are ranked like all others; beside that rank stands the one without them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from groundray.analysis.inputs import published
from groundray.analysis.measures.directions import Vectors, directions
from groundray.analysis.measures.statistics import Scores, mean, measure, median, over_items, paired_tests
from groundray.analysis.result import Analysis, Cell, Measure, Table

NEIGHBOURS = 8
ROUNDING = 1e-9  # closer cosines count as equal
WITHOUT_OWN, LEFT_OUT = "without_own_words", "without the phrase's words"  # in keys and in names


Paper = Mapping[tuple[str, str], tuple[published.PublishedRank, ...]]  # by phrase and target


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
    of_words: Vectors,
    phrases: Sequence[str],
    targets: Sequence[str],
    vocabulary: Sequence[str],
    left_out: Mapping[str, int] | None = None,
    through_images: bool = False,
) -> Analysis:
    """Compute the cosine of each phrase with its target, and the target's rank among all words of the vocabulary.

    The phrase's own words are ranked like all others, as in the paper; a second rank leaves them out. Words as near as
    the target rank before it.

    Args:
        of_phrases: one row for each phrase.
        of_words: one row for each word of the vocabulary.
        targets: target of each phrase. A target that is not in the vocabulary, or is a word of its phrase, is omitted
            and counted.
        vocabulary: distinct words.
        left_out: counts of what was omitted before; the result repeats them.
        through_images: rows are a text's similarities to the images of a pool. Texts are compared by the correlation
            of their rows, which is the cosine of the centred rows.

    Raises:
        ValueError: no phrase has a target in the vocabulary, the vocabulary has a word twice, the models of phrases and
            words differ, or the vectors fail `directions` (through images: a text is equally similar to all images).
    """
    name, about = "composition", "the cosine of their vectors"
    if through_images:
        name, about = "composition_through_images", "the correlation of their similarities over the images of a pool"
        of_phrases, of_words = _centred(of_phrases), _centred(of_words)
    if len(phrases) != len(targets):
        raise ValueError(f"expected a target for each of {len(phrases)} phrases, got {len(targets)}")
    if list(of_phrases) != list(of_words):
        raise ValueError(f"expected phrases and words of the same models, got {[*of_phrases]} and {[*of_words]}")
    place = {word: number for number, word in enumerate(vocabulary)}
    if len(place) < len(vocabulary):
        raise ValueError(f"expected each word of the vocabulary once, got {len(vocabulary) - len(place)} again")
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
    own = np.zeros((len(pairs), len(vocabulary)), dtype=np.bool_)
    for row, (phrase, _) in enumerate(pairs):
        own[row, [place[word] for word in own_words(phrase) if word in place]] = True
    P, W = directions(of_phrases, phrases), directions(of_words, vocabulary)
    found = {model: ranked(P[model][kept], W[model], numbers, own) for model in P}
    counts = {
        "phrases whose target is not in the vocabulary": sum(missing),
        "phrases that have their target in them": sum(inside),
    }
    paper = {} if through_images else published.PHRASES
    return Analysis(
        name,
        f"{len(pairs)} phrases rank {len(vocabulary)} words by {about}. A phrase's own words are ranked like all "
        "others, as in the paper; a second rank leaves them out. Words as near as the target stand before it. "
        "Intervals: bootstrap over phrases; p: Wilcoxon's signed-rank test over phrases."
        f"{' Published ranks are in a vocabulary of another size.' if paper else ''}",
        tuple(_measures(found, pairs, paper)),
        (*_tables(found, pairs, paper), _neighbours(found, pairs, vocabulary)),
        left_out={**(left_out or {}), **{what: count for what, count in counts.items() if count}},
    )


def _centred(rows: Vectors) -> Vectors:
    """Subtract the mean of each row; zero for a row that is constant up to rounding."""
    found = {}
    for model, values in rows.items():
        less = values - values.mean(axis=-1, keepdims=True)
        alike = np.ptp(values, axis=-1, keepdims=True) <= ROUNDING * np.abs(values).max(axis=-1, keepdims=True)
        found[model] = np.where(alike, 0.0, less)
    return found


def own_words(phrase: str) -> set[str]:
    """Return the words of a phrase, as written and in lower case."""
    return {*phrase.split(), *phrase.lower().split()}


def ranked(
    of_phrases: Float[np.ndarray, "phrase dim"],
    of_words: Float[np.ndarray, "word dim"],
    targets: Int[np.ndarray, " phrase"],
    own: Bool[np.ndarray, "phrase word"],
) -> Ranked:
    """Rank each phrase's target, with and without the phrase's own words. Vectors have length 1.

    Args:
        targets: index of each phrase's target, which is not among its own words.
        own: True for a phrase's own words.
    """
    cosines = of_phrases @ of_words.T
    of_target = np.take_along_axis(cosines, targets[:, None], axis=1)
    as_near = cosines >= of_target - ROUNDING
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :NEIGHBOURS].tolist()
    nearest = [tuple((word, float(cosines[row, word])) for word in words) for row, words in enumerate(order)]
    return Ranked(of_target[:, 0], as_near.sum(axis=1), (as_near & ~own).sum(axis=1), tuple(nearest))


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
        ("rank/within_3", "Targets of rank 1 to 3: fraction", within(3, ranks), within(3, paper_ranks), mean, {}),
        ("rank/within_10", "Targets of rank 1 to 10: fraction", within(10, ranks), within(10, paper_ranks), mean, {}),
        ("cosine/mean", "Cosine with the target: mean", cosines, paper_cosines, mean, paired_tests(cosines)),
        (f"{WITHOUT_OWN}/rank/median", f"Rank {LEFT_OUT}: median", others, {}, median, paired_tests(others)),
        (f"{WITHOUT_OWN}/rank/within_3", f"Rank 1 to 3 {LEFT_OUT}: fraction", within(3, others), {}, mean, {}),
        (f"{WITHOUT_OWN}/rank/within_10", f"Rank 1 to 10 {LEFT_OUT}: fraction", within(10, others), {}, mean, {}),
    ]
    return [
        measure(
            key,
            name,
            len(pairs),
            over_items(ours, figure),
            tests,
            {model: float(figure(values[None])[0]) for model, values in theirs.items()},
        )
        for key, name, ours, theirs, figure, tests in plan
    ]


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
