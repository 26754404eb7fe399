"""Rank correlation of the cosines of word vectors with human ratings of similarity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from groundray.analysis.measures.correlation import spearman
from groundray.analysis.measures.directions import Vectors, check_directions, directions, row_blocks
from groundray.analysis.measures.statistics import FEWEST, measure, slug
from groundray.analysis.result import Analysis, Cell, Measure, Table

DIGITS = 12  # of a cosine; words beside themselves have all the same
Pair = tuple[str, str, float]  # two words and their human score


def similarity(
    vectors: Vectors,
    words: Sequence[str],
    sets: Mapping[str, Sequence[Pair]],
    left_out: Mapping[str, int] | None = None,
    given: Mapping[str, int] | None = None,
) -> Analysis:
    """Compute Spearman's rho of cosines with human scores, for each set of word pairs.

    Args:
        vectors: one row for each word.
        words: distinct words.
        sets: sets of pairs by name. A pair with an unknown word is omitted, as is a set that keeps fewer than FEWEST
            pairs; the table lists the number of pairs used.
        left_out: counts of what was omitted before; the result repeats them.
        given: number of pairs that each set has with those omitted before, of which the share used is taken.

    Raises:
        ValueError: no set has enough pairs, all scores or cosines of a set are equal, or the vectors fail
            `directions`.
    """
    check_directions(vectors, words)
    place = {word: number for number, word in enumerate(words)}
    if len(place) < len(words):
        raise ValueError(f"expected each word once, got {len(words) - len(place)} again")
    measures: list[Measure] = []
    rows: list[tuple[Cell, ...]] = []
    for name, pairs in sets.items():
        known = [pair for pair in pairs if pair[0] in place and pair[1] in place]
        estimates = {}
        if len(known) >= FEWEST:
            first, second = np.array([(place[one], place[other]) for one, other, _ in known]).T
            cosines = {model: _cosines(own, first, second).round(DIGITS) for model, own in vectors.items()}
            try:
                estimates = spearman(cosines, np.array([score for _, _, score in known], dtype=np.float64))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            measures.append(measure(f"{slug(name)}/spearman", f"{name}: Spearman rho", len(known), estimates))
        values = (estimates[model].value if estimates else None for model in vectors)
        total = (given or {}).get(name, len(pairs))
        rows.append((name, total, len(known), _share(len(known), total), *values))
    if not measures:
        raise ValueError(
            f"expected a set with at least {FEWEST} pairs of known words, got none: {', '.join(sets) or 'no set'}"
        )
    usable, used = sum(map(len, sets.values())), sum(one.items for one in measures)
    counts = {
        "pairs with a word that has no vector, or of a set with too few others": usable - used,
        f"sets of fewer than {FEWEST} pairs with vectors": len(sets) - len(measures),
    }
    return Analysis(
        "similarity",
        "Spearman's rho of the cosine of two words' vectors with human scores. Intervals: over pairs.",
        tuple(measures),
        (Table("Pairs used and correlation", ("set", "pairs", "used", "share used", *vectors), tuple(rows)),),
        left_out={**(left_out or {}), **{what: count for what, count in counts.items() if count}},
    )


def _cosines(
    rows: Float[np.ndarray, "word dim"], first: Int[np.ndarray, " pair"], second: Int[np.ndarray, " pair"]
) -> Float[np.ndarray, " pair"]:
    """Return the cosine of each pair of rows."""
    return np.concatenate(
        [
            np.einsum("pd,pd->p", directions(rows[first[block]]), directions(rows[second[block]]))
            for block in row_blocks(len(first), 2 * rows.shape[1])
        ]
    )


def _share(used: int, total: int) -> float:
    """Return a share with three decimals, rounded down: 1.000 is said of all alone."""
    return used * 1000 // total / 1000 if total else 0.0
