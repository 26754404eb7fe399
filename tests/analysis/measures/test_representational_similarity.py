"""Correlations of distances against SciPy, over all pairs and over the pairs of a resample written out."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from scipy.spatial.distance import cosine, pdist

from groundray.analysis.measures import representational_similarity as rsa
from groundray.analysis.measures.statistics import draws


def made(words: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    vectors = draw.normal(size=(words, 5))
    return vectors, vectors[:, :3] * (1, 2, 5) + draw.normal(size=(words, 3))


def test_rho_is_scipys() -> None:
    vectors, ratings = made(30)
    found = rsa.representational_similarity({"m": vectors, "n": vectors**3}, ratings)
    theirs = pdist(scipy.stats.zscore(ratings))
    for model, rows in {"m": vectors, "n": vectors**3}.items():
        expected = scipy.stats.spearmanr(pdist(rows, "cosine"), theirs).statistic
        assert found[model].value == pytest.approx(expected)
        assert len(found[model].resampled) == 1000


def test_resamples_are_those_written_out() -> None:
    vectors, ratings = made()
    count = len(vectors)
    pairs = [(one, other) for one in range(count) for other in range(one + 1, count)]
    x = scipy.stats.rankdata([cosine(vectors[one], vectors[other]) for one, other in pairs])
    z = scipy.stats.zscore(ratings)
    y = scipy.stats.rankdata([np.linalg.norm(z[one] - z[other]) for one, other in pairs])
    rank = {pair: place for place, pair in enumerate(pairs)}
    found = rsa.representational_similarity({"m": vectors}, ratings)["m"]
    for number, drawn in enumerate(next(iter(draws(count)))[:20]):
        places = [
            rank[min(one, other), max(one, other)]
            for place, one in enumerate(drawn.tolist())
            for other in drawn[place + 1 :].tolist()
            if one != other  # a word and itself are no pair
        ]
        assert found.resampled[number] == pytest.approx(np.corrcoef(x[places], y[places])[0, 1])


def test_influence_is_the_derivative_by_weight() -> None:
    vectors, ratings = made()
    found = rsa.representational_similarity({"m": vectors}, ratings)["m"]
    x = scipy.stats.rankdata(pdist(vectors, "cosine").round(12))
    y = scipy.stats.rankdata(pdist(scipy.stats.zscore(ratings)).round(12))
    first, second = np.triu_indices(len(vectors), 1)

    def weighted(weights: np.ndarray) -> float:
        of_pairs = weights[first] * weights[second]
        covariance = np.cov(x, y, aweights=of_pairs, ddof=0)
        return covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])

    steps = np.eye(len(vectors)) * 1e-5
    slopes = np.array([(weighted(1 + step) - weighted(1 - step)) / 2e-5 for step in steps])
    scale = (slopes @ found.influence) / (found.influence @ found.influence)
    np.testing.assert_allclose(slopes - slopes.mean(), scale * found.influence, rtol=1e-4, atol=1e-7)
    assert scale > 0


def test_many_words_are_sampled_once_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rsa.sample(rsa.MOST_WORDS).tolist() == list(range(rsa.MOST_WORDS))
    monkeypatch.setattr(rsa, "MOST_WORDS", 50)
    chosen = rsa.sample(400)
    assert len(set(chosen.tolist())) == 50
    assert chosen.tolist() == sorted(chosen.tolist()) == rsa.sample(400).tolist()
    assert chosen[-1] > 300  # not the first words of the file


def test_distances_that_do_not_differ_are_refused() -> None:
    vectors, ratings = made(3)
    equal = np.eye(3)
    with pytest.raises(ValueError, match="expected the vectors of model 'm' to differ"):
        rsa.representational_similarity({"m": equal}, ratings)
    with pytest.raises(ValueError, match="expected the ratings to differ"):
        rsa.representational_similarity({"m": vectors}, equal)
    with pytest.raises(ValueError, match="at least 3 words for a correlation of distances, got 2"):
        rsa.representational_similarity({"m": vectors[:2]}, ratings[:2])
