"""Representational similarity: do words that people rate alike have vectors that are alike (Kriegeskorte et al. 2008)?

Spearman's rho, over pairs of words, of the cosine distance of two words' vectors with the Euclidean distance of their
ratings, each dimension standardised. Memory grows with the square of the words, so of more than MOST_WORDS a sample is
taken, drawn by SEED, the same for all models.

Pairs are not independent; words are. Intervals are over words (Nili et al. 2014, but with the pairs of a word and
itself left out): a resample weights a pair by the product of how often its words are drawn. The pairs keep their ranks
among all pairs, so that a resample is a few products of matrices.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial.distance import pdist, squareform
from scipy.stats import rankdata

from groundray.analysis.measures.correlation import occurrences
from groundray.analysis.measures.directions import directions
from groundray.analysis.measures.statistics import FEWEST, ROUNDING, Estimate
from groundray.rng import shuffled

MOST_WORDS = 1000  # 499,500 pairs: 8 MB a matrix, two matrices a model at a time
SEED = 804
DIGITS = 12  # of a distance: closer ones are tied

Drawn = Float[np.ndarray, "resample word"]
Square = Float[np.ndarray, "word word"]


def sample(words: int) -> Int[np.ndarray, " word"]:
    """Return the rows of the words to compare: all, or MOST_WORDS drawn without repeats, ascending."""
    if words <= MOST_WORDS:
        return np.arange(words)
    return np.sort(shuffled(words, SEED)[:MOST_WORDS])


def representational_similarity(
    vectors: Mapping[str, Float[np.ndarray, "word _dim"]], ratings: Float[np.ndarray, "word dimension"]
) -> dict[str, Estimate]:
    """Correlate the distances of each model's vectors with those of the ratings.

    Args:
        vectors: none of them zero.
        ratings: finite, and not constant in any dimension.

    Raises:
        ValueError: fewer than FEWEST words, or all pairs of words are equally far apart.
    """
    count = len(ratings)
    if count < FEWEST:
        raise ValueError(f"expected at least {FEWEST} words for a correlation of distances, got {count}")
    y = _ranks(pdist((ratings - ratings.mean(axis=0)) / ratings.std(axis=0)), "the ratings")
    found = {}
    for model, rows in vectors.items():
        units = directions(rows)
        x = _ranks(1 - (units @ units.T)[np.triu_indices(count, 1)], f"the vectors of model {model!r}")
        products = (x, y, x * x, y * y, x * y)

        def correlation(counts: Drawn, products: tuple[Square, ...] = products) -> Float[np.ndarray, " resample"]:
            pairs = counts.sum(axis=1) ** 2 - (counts**2).sum(axis=1)
            mean_x, mean_y, xx, yy, xy = (np.einsum("rw,rw->r", counts @ matrix, counts) / pairs for matrix in products)
            variances = (xx - mean_x**2) * (yy - mean_y**2)
            varied = variances > ROUNDING
            return np.where(varied, (xy - mean_x * mean_y) / np.sqrt(np.where(varied, variances, 1.0)), np.nan)

        value = float(correlation(np.ones((1, count)))[0])
        resampled = np.concatenate([correlation(counts) for counts in occurrences(np.arange(count))])
        influence = (products[4] - value / 2 * (products[2] + products[3])).mean(axis=1)
        found[model] = Estimate(value, resampled, influence - influence.mean())
    return found


def _ranks(distances: Float[np.ndarray, " pair"], of: str) -> Square:
    """Return the ranks of all pairs as a symmetric matrix: mean 0 and variance 1 over the pairs, 0 on the diagonal."""
    ranks = rankdata(distances.round(DIGITS))
    if np.ptp(ranks) == 0:
        raise ValueError(f"expected {of} to differ, got words that are all equally far apart")
    return squareform((ranks - ranks.mean()) / ranks.std())
