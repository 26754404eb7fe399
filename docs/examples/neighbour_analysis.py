"""An analysis of your own: how often a word's nearest neighbour belongs to the same category."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from groundray.analysis.measures.directions import Vectors, check_directions, directions, row_blocks
from groundray.analysis.measures.statistics import mean, measure, over_items
from groundray.analysis.result import Analysis, Table


def neighbours(vectors: Vectors, words: Sequence[str], categories: Sequence[str]) -> Analysis:
    """Return the fraction of words whose nearest other word, by cosine, is of the same category.

    Args:
        vectors: by model, one row per word.
        words, categories: as many as rows; each word once.

    Raises:
        ValueError: a model's vectors are not finite, or one is zero.
    """
    category = np.array(categories)
    same: dict[str, np.ndarray] = {}
    nearest: dict[str, np.ndarray] = {}
    check_directions(vectors, words)
    for model, rows in vectors.items():
        units, nearest[model] = directions(rows), np.empty(len(words), dtype=np.int64)  # vectors at length 1
        for block in row_blocks(len(words), len(words)):  # never the cosines of all words with all words
            cosines = units[block] @ units.T
            cosines[np.arange(len(cosines)), np.arange(len(words))[block]] = -np.inf  # a word with itself
            nearest[model][block] = cosines.argmax(axis=1)
        same[model] = (category[nearest[model]] == category).astype(float)

    # the resamples of words are the same for every model: a difference of two models is paired, with its own interval
    estimates = over_items(same, mean)
    purity = measure("neighbours/purity", "Nearest neighbour of the same category", len(words), estimates)
    table = tuple(
        (word, own, *(words[found[place]] for found in nearest.values()))
        for place, (word, own) in enumerate(zip(words, categories, strict=True))
    )
    return Analysis(
        "neighbours",
        "Fraction of words whose nearest other word, by cosine, is of the same category. Intervals: over words.",
        (purity,),
        (Table("Nearest words", ("word", "category", *nearest), table),),
    )
